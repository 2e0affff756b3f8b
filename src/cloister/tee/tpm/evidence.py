"""The JSON shape of TPM evidence, and its strict parser.

CoCo's `tpm` attester sends `ak_public` and `tpm_quote` (`signature`: TPMT_SIGNATURE, `message`: TPMS_ATTEST, both
base64; `pcrs`: 24 hexadecimal digests). Cloister's adds `ek_certificate` (DER), `activation` (what credential
activation recovered) and `event_log` (TCG log, may be empty), and writes `ak_public` as TPM2B_PUBLIC, because a name
and attributes are needed where CoCo sends only the key. Evidence without the first two still parses in CoCo's shape,
and is refused here with a code of its own: nothing vouches for its key. Pure; verifies nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from cloister.errors import EvidenceError, FormatRefused
from cloister.rats.evidence import Evidence
from cloister.tee.jsonfile import read_json_evidence
from cloister.tee.registry import ReadEvidence
from cloister.tee.tpm import constants as c
from cloister.tee.tpm.abi import Public, Signature, parse_public, parse_signature
from cloister.tee.tpm.eventlog import Event, parse_event_log
from cloister.wire.base64 import decode_b64
from cloister.wire.limits import CERTIFICATE_BYTES, EVENT_LOG_BYTES, TPM_RESPONSE_BYTES

TEE: Final = "tpm"
_HEX_DIGITS: Final = frozenset("0123456789abcdef")


class _QuoteWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    signature: str
    message: str
    pcrs: list[str]


class _EvidenceWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    ak_public: str
    tpm_quote: _QuoteWire
    ek_certificate: str = ""
    activation: str = ""
    event_log: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedEvidence:
    """The members of the evidence as typed values; nothing of it is verified."""

    ek_certificate: bytes
    ak_public: bytes
    ak: Public
    activation: bytes
    message: bytes
    signature: Signature
    values: tuple[bytes, ...]
    events: tuple[Event, ...] | None


def parse_evidence(evidence: Evidence) -> ParsedEvidence:
    """Parse the members of `evidence`.

    The TPMS_ATTEST stays bytes, because they are what is signed: the verifier parses it when it comes to it.

    Raises:
        FormatRefused: a member does not parse (`tee.tpm.malformed`, `tee.tpm.ak_public.*`, `tee.tpm.signature.*`,
            `tee.tpm.eventlog.*`).
        EvidenceError: another technology, or no statement on whose key the AK is (`tee.tpm.no_ek_certificate`,
            `tee.tpm.no_activation`).
    """
    if evidence.tee != TEE:
        raise EvidenceError(
            "tee.tpm.malformed", "evidence of another technology", expected=TEE, actual=evidence.tee[:40]
        )
    try:
        wire = msgspec.convert(evidence.body, _EvidenceWire)
    except msgspec.ValidationError as err:
        raise FormatRefused("tee.tpm.malformed", f"not TPM evidence: {err}") from err
    if not wire.ek_certificate:
        raise EvidenceError(
            "tee.tpm.no_ek_certificate",
            "nothing vouches for the AK: the evidence has no EK certificate",
            path="ek_certificate",
            hint="the guest must enrol its EK certificate and activate a credential; CoCo's `tpm` attester does not",
        )
    if not wire.activation:
        raise EvidenceError(
            "tee.tpm.no_activation",
            "nothing ties the AK to the EK: the evidence has no activated credential",
            path="activation",
            hint="the guest must activate the credential of this session",
        )
    ak_public = _decode(wire.ak_public, "ak_public", TPM_RESPONSE_BYTES)
    event_log = _decode(wire.event_log, "event_log", EVENT_LOG_BYTES)
    return ParsedEvidence(
        ek_certificate=_decode(wire.ek_certificate, "ek_certificate", CERTIFICATE_BYTES),
        ak_public=ak_public,
        ak=parse_public(ak_public),
        activation=_decode(wire.activation, "activation", TPM_RESPONSE_BYTES),
        message=_decode(wire.tpm_quote.message, "tpm_quote.message", TPM_RESPONSE_BYTES),
        signature=parse_signature(_decode(wire.tpm_quote.signature, "tpm_quote.signature", TPM_RESPONSE_BYTES)),
        values=_parse_values(wire.tpm_quote.pcrs),
        events=parse_event_log(event_log) if event_log else None,
    )


def read_evidence(data: bytes, *, tee: str) -> ReadEvidence:
    """Return the body of TPM evidence in a file.

    Raises:
        FormatRefused: not a JSON object (`tee.file.*`).
    """
    return ReadEvidence(body=read_json_evidence(data, tee=tee), form="JSON of a guest with a TPM")


def _decode(text: str, path: str, ceiling: int) -> bytes:
    try:
        return decode_b64(text, path=path, ceiling=ceiling)
    except FormatRefused as err:
        raise FormatRefused("tee.tpm.malformed", err.message, path=path, expected=err.expected) from err


def _parse_values(pcrs: list[str]) -> tuple[bytes, ...]:
    if len(pcrs) != c.PCRS or any(len(text) != 2 * c.SHA256_BYTES or set(text) - _HEX_DIGITS for text in pcrs):
        raise FormatRefused(
            "tee.tpm.malformed",
            "register values are not 24 lower-case SHA-256 digests",
            path="tpm_quote.pcrs",
            expected=str(c.PCRS),
            actual=str(len(pcrs)),
        )
    return tuple(bytes.fromhex(text) for text in pcrs)
