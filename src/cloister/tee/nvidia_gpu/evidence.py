"""The JSON shape of NVIDIA evidence, its strict parser, and the forms in which it is found in files.

CoCo's guests send `{"device_evidence_list": [{arch, uuid, evidence, certificate}]}`: report and PEM chain, both base64
(older guests wrote the report as hex). NVIDIA's tools keep a bare list of the same objects, with `nonce`, `version`,
`driver_version` and `vbios_version` beside them. A report alone, raw or as hex text, is a list of one device whose
chain comes with the endorsements.

Nothing beside report and chain is signed: the verifier compares each with what is, and only `uuid`, which has nothing
to be compared with, is passed on as what it is, an unsigned name. Pure; verifies nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import msgspec

from cloister.crypto.pem import split_pem
from cloister.errors import EvidenceError, FormatRefused
from cloister.rats.evidence import Evidence
from cloister.tee.jsonfile import looks_like_json, read_json_evidence
from cloister.tee.nvidia_gpu.abi import GET_MEASUREMENTS, VERSION, Report, parse_report
from cloister.tee.nvidia_gpu.endorsements import TEE
from cloister.tee.registry import ReadEvidence
from cloister.wire.base64 import decode_b64, encode_b64
from cloister.wire.limits import CERTIFICATE_BYTES, CERTIFICATE_CHAIN, GPU_DEVICES, SPDM_BYTES

_HEX_TEXT: Final = re.compile(r"(?:[0-9a-f]{2})+|(?:[0-9A-F]{2})+")
_START: Final = bytes((VERSION, GET_MEASUREMENTS))
_UUID: Final = re.compile(r"[0-9A-Za-z-]{0,80}")
_PEM: Final = "-----BEGIN"
_PEM_BYTES: Final = 2 * CERTIFICATE_CHAIN * CERTIFICATE_BYTES
_LIST: Final = "device_evidence_list"
_CODE: Final = "tee.nvidia_gpu.malformed"


class _DeviceWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    evidence: str
    certificate: str = ""
    arch: str = ""
    uuid: str = ""
    nonce: str = ""
    driver_version: str = ""
    vbios_version: str = ""
    version: str = ""


class _EvidenceWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    device_evidence_list: list[_DeviceWire]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedDevice:
    """What was sent of one device.

    Attributes:
        path: place in the evidence.
        data: the report's bytes.
        report: the same, parsed.
        certificates: DER, as sent; empty when the chain comes with the endorsements.
        uuid: unsigned.
        unsigned: what was written beside the report and must agree with it, by name; only what is there.
    """

    path: str
    data: bytes
    report: Report
    certificates: tuple[bytes, ...]
    uuid: str
    unsigned: tuple[tuple[str, str], ...]


def parse_evidence(evidence: Evidence) -> tuple[ParsedDevice, ...]:
    """Parse all devices of `evidence`; at least one.

    Raises:
        FormatRefused: a member does not parse (`tee.nvidia_gpu.malformed`, `tee.nvidia_gpu.report.*`,
            `tee.nvidia_gpu.chain.malformed`).
        EvidenceError: another technology (`tee.nvidia_gpu.malformed`).
    """
    if evidence.tee != TEE:
        raise EvidenceError(_CODE, "evidence of another technology", expected=TEE, actual=evidence.tee[:40])
    try:
        wire = msgspec.convert(evidence.body, _EvidenceWire)
    except msgspec.ValidationError as err:
        raise FormatRefused(_CODE, f"not NVIDIA evidence: {err}"[:200]) from err
    if not 0 < len(wire.device_evidence_list) <= GPU_DEVICES:
        raise FormatRefused(
            _CODE,
            "number of devices out of range",
            path=_LIST,
            expected=f"1 to {GPU_DEVICES}",
            actual=str(len(wire.device_evidence_list)),
        )
    return tuple(_parse_device(item, f"{_LIST}[{index}]") for index, item in enumerate(wire.device_evidence_list))


def read_evidence(data: bytes, *, tee: str) -> ReadEvidence:
    """Return the body of NVIDIA evidence in a file, and which form it was.

    Raises:
        FormatRefused: none of the forms (`tee.file.*`, `tee.nvidia_gpu.malformed`).
    """
    if data.startswith(_START):
        return ReadEvidence(body=_one_report(data), form="raw report of one device")
    if looks_like_json(data):
        return ReadEvidence(body=read_json_evidence(data, tee=tee), form="JSON as CoCo's guest sends it")
    if data.lstrip()[:1] == b"[":
        body = read_json_evidence(b'{"%s":%s}' % (_LIST.encode(), data), tee=tee)
        return ReadEvidence(body=body, form="JSON list as NVIDIA's tools write it")
    text = data.decode("ascii", "replace").strip()
    if len(text) <= 2 * SPDM_BYTES and _HEX_TEXT.fullmatch(text):
        return ReadEvidence(body=_one_report(bytes.fromhex(text)), form="hex text of one report")
    raise FormatRefused(_CODE, "file holds no NVIDIA evidence", expected="a report, its hex text, or JSON of devices")


def _one_report(data: bytes) -> dict[str, list[dict[str, str]]]:
    return {_LIST: [{"evidence": encode_b64(data)}]}


def _parse_device(wire: _DeviceWire, path: str) -> ParsedDevice:
    if not _UUID.fullmatch(wire.uuid):
        raise FormatRefused(_CODE, "uuid is not one", path=f"{path}.uuid")
    if wire.version not in ("", "1.0"):
        raise FormatRefused(_CODE, "unknown version", path=f"{path}.version", expected="1.0", actual=wire.version[:20])
    data = _decode_report(wire.evidence, f"{path}.evidence")
    names = ("arch", "nonce", "driver_version", "vbios_version")
    return ParsedDevice(
        path=path,
        data=data,
        report=parse_report(data),
        certificates=_decode_chain(wire.certificate, f"{path}.certificate"),
        uuid=wire.uuid,
        unsigned=tuple((name, text) for name in names if (text := getattr(wire, name))),
    )


def _decode_report(text: str, path: str) -> bytes:
    """Decode base64, or hex: a report begins with bytes whose hex begins unlike any base64 of them."""
    if text[:4].lower() == _START.hex():
        if len(text) > 2 * SPDM_BYTES or not _HEX_TEXT.fullmatch(text):
            raise FormatRefused(_CODE, "not hexadecimal", path=path)
        return bytes.fromhex(text)
    return _decode(text, path, SPDM_BYTES)


def _decode_chain(text: str, path: str) -> tuple[bytes, ...]:
    """Decode PEM text, plain or as base64."""
    if not text:
        return ()
    pem = text.encode() if text.startswith(_PEM) else _decode(text, path, _PEM_BYTES)
    found = split_pem(pem, code="tee.nvidia_gpu.chain", path=path, ceiling=CERTIFICATE_BYTES)
    if len(found) > CERTIFICATE_CHAIN:
        raise FormatRefused(
            "tee.nvidia_gpu.chain.malformed",
            "too many certificates",
            path=path,
            expected=f"at most {CERTIFICATE_CHAIN}",
            actual=str(len(found)),
        )
    return tuple(found)


def _decode(text: str, path: str, ceiling: int) -> bytes:
    try:
        return decode_b64(text, path=path, ceiling=ceiling)
    except FormatRefused as err:
        raise FormatRefused(_CODE, err.message, path=path, expected=err.expected) from err
