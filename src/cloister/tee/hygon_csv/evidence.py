"""Hygon CSV evidence as CoCo's guest sends it, parsed strictly. Pure; verifies nothing.

`attestation_report` is csv-rs' wrapper (a page of 4096 numbers, and magic and flags of version 2), `cert_chain` holds
the PEK and, where the guest could have them, HSK and CEK, `serial_number` names the chip, `cc_eventlog` is a CC event
log in base64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from cloister.errors import EvidenceError, FormatRefused
from cloister.rats.evidence import Evidence
from cloister.tee.hygon_csv.abi import EXTENDED_MAGIC, REPORT, Report, parse_report, parse_serial
from cloister.tee.jsonfile import read_json_evidence
from cloister.tee.registry import ReadEvidence
from cloister.wire.base64 import decode_b64
from cloister.wire.limits import EVENT_LOG_BYTES

TEE: Final = "csv"


class _Report(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    data: list[int]
    flags: int = 0
    magic: list[int] = []


class _Firmware(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    major: int
    minor: int


class _Key(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    g: int
    x: list[int]
    y: list[int]


class _PublicKey(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    usage: int
    algo: int
    key: _Key


class _Data(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    firmware: _Firmware
    reserved1: int
    pubkey: _PublicKey
    uid_size: int
    user_id: list[int]
    sid: list[int]
    reserved2: list[int]


class _Body(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    ver: int
    data: _Data


class _Scalars(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    r: list[int]
    s: list[int]


class _Signature(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    usage: int
    algo: int
    signature: _Scalars
    reserved: list[int] = msgspec.field(name="_reserved")


class _Certificate(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    body: _Body
    sigs: list[_Signature]


class _Chain(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    pek: _Certificate
    hsk_cek: dict[str, Any] | None = None  # Any: not read, nothing here could verify it


class _EvidenceWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    attestation_report: _Report
    cert_chain: _Chain
    serial_number: list[int]
    cc_eventlog: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedEvidence:
    """What the evidence says; nothing of it is verified.

    Attributes:
        report: None for a report of version 2.
        serial_number: of the chip.
        key_name: user id of the PEK.
        has_chain: whether the vendor's certificates above the PEK came with it.
        event_log: CC event log, may be empty.
    """

    report: Report | None
    serial_number: str
    key_name: str
    has_chain: bool
    event_log: bytes


def parse_evidence(evidence: Evidence) -> ParsedEvidence:
    """Parse the members of `evidence`.

    Raises:
        FormatRefused: a member does not parse (`tee.hygon_csv.malformed`, `tee.hygon_csv.report.*`).
        EvidenceError: another technology (`tee.hygon_csv.malformed`).
    """
    if evidence.tee != TEE:
        raise EvidenceError(
            "tee.hygon_csv.malformed", "evidence of another technology", expected=TEE, actual=evidence.tee[:40]
        )
    try:
        wire = msgspec.convert(evidence.body, _EvidenceWire)
    except msgspec.ValidationError as err:
        raise FormatRefused("tee.hygon_csv.malformed", f"not CSV evidence: {err}") from err
    magic = _octets(wire.attestation_report.magic, "attestation_report.magic")
    extended = magic == EXTENDED_MAGIC
    if any(magic) and not extended:
        raise FormatRefused("tee.hygon_csv.malformed", "report is of no known version", actual=magic[:16].hex())
    data = _octets(wire.attestation_report.data, "attestation_report.data")
    pek = wire.cert_chain.pek.body.data
    name = _octets(pek.user_id, "cert_chain.pek.body.data.user_id")[: max(pek.uid_size, 0)]
    try:
        event_log = decode_b64(wire.cc_eventlog or "", path="cc_eventlog", ceiling=EVENT_LOG_BYTES)
    except FormatRefused as err:
        raise FormatRefused("tee.hygon_csv.malformed", err.message, path="cc_eventlog", expected=err.expected) from err
    return ParsedEvidence(
        report=None if extended else parse_report(data),
        serial_number=parse_serial(_octets(wire.serial_number, "serial_number"), REPORT),
        key_name=name.decode("ascii", "replace"),
        has_chain=wire.cert_chain.hsk_cek is not None,
        event_log=event_log,
    )


def read_evidence(data: bytes, *, tee: str) -> ReadEvidence:
    """Return the body of CSV evidence in a file.

    Raises:
        FormatRefused: not a JSON object (`tee.file.*`).
    """
    return ReadEvidence(body=read_json_evidence(data, tee=tee), form="JSON as CoCo's guest sends it")


def _octets(numbers: list[int], path: str) -> bytes:
    if not all(0 <= number <= 0xFF for number in numbers):
        raise FormatRefused("tee.hygon_csv.malformed", "not a list of bytes", path=path)
    return bytes(numbers)
