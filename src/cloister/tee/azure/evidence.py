"""The JSON shapes of Azure evidence, and their strict parser.

CoCo's attesters send, for `az-snp-vtpm` and `az-tdx-vtpm`: `tpm_quote` (`message`, `signature`, `pcrs`), `hcl_report`,
and `vcek` or `td_quote`. Versions 1 and 2 say so in `version`; quotes are hexadecimal, the rest base64url with padding.
Version 2 promises that the paravisor bound the report data too. Version 0 has no `version` and lists of bytes; of SNP
its members are called `quote`, `report` and `vcek` (PEM). Pure; verifies nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from cloister.crypto.pem import split_pem
from cloister.errors import EvidenceError, FormatRefused
from cloister.rats.evidence import Evidence
from cloister.tee.azure.abi import SNP, TDX, HCLReport, parse_hcl_report
from cloister.tee.jsonfile import looks_like_json, read_json_evidence
from cloister.tee.registry import ReadEvidence
from cloister.tee.tpm import constants as c
from cloister.wire.base64 import decode_b64
from cloister.wire.limits import CERTIFICATE_BYTES, DCAP_QUOTE_BYTES, HCL_REPORT_BYTES, TPM_RESPONSE_BYTES

AZ_SNP: Final = "az-snp-vtpm"
AZ_TDX: Final = "az-tdx-vtpm"
TEES: Final = (AZ_SNP, AZ_TDX)
WITH_USER_DATA: Final = 2
VERSIONS: Final = (1, WITH_USER_DATA)
_HARDWARE: Final = {AZ_SNP: SNP, AZ_TDX: TDX}
_CODE: Final = "tee.azure.malformed"
_PEM_BYTES: Final = 2 * CERTIFICATE_BYTES
_MAGIC: Final = b"HCLA"


class _Quote(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    signature: str
    message: str
    pcrs: list[str]


class _SNP(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    version: int
    tpm_quote: _Quote
    hcl_report: str
    vcek: str


class _TDX(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    version: int
    tpm_quote: _Quote
    hcl_report: str
    td_quote: str


class _Quote0(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    signature: list[int]
    message: list[int]
    pcrs: list[list[int]]


class _SNP0(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    quote: _Quote0
    report: list[int]
    vcek: str


class _TDX0(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    tpm_quote: _Quote0
    hcl_report: list[int]
    td_quote: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedEvidence:
    """The members of the evidence as typed values; nothing of it is verified.

    Attributes:
        tee: wire name of the technology.
        version: 0, 1 or 2.
        message: TPMS_ATTEST.
        signature: RSASSA signature over it, raw.
        values: of the registers in the signed selection, ascending.
        hcl: the paravisor's report.
        vcek: DER, of SNP; else empty.
        td_quote: of TDX; else empty.
    """

    tee: str
    version: int
    message: bytes
    signature: bytes
    values: tuple[bytes, ...]
    hcl: HCLReport
    vcek: bytes = b""
    td_quote: bytes = b""


def parse_evidence(evidence: Evidence) -> ParsedEvidence:
    """Parse the members of `evidence`.

    Raises:
        FormatRefused: a member does not parse (`tee.azure.malformed`, `tee.azure.hcl.*`).
        EvidenceError: another technology (`tee.azure.malformed`), or a report of other hardware
            (`tee.azure.hardware`).
    """
    tee = evidence.tee
    if tee not in TEES:
        raise EvidenceError(_CODE, "evidence of another technology", expected=" or ".join(TEES), actual=tee[:40])
    versioned = isinstance(evidence.body, dict) and "version" in evidence.body
    kind: type[_SNP | _TDX | _SNP0 | _TDX0] = _SNP if versioned else _SNP0
    if tee == AZ_TDX:
        kind = _TDX if versioned else _TDX0
    try:
        wire = msgspec.convert(evidence.body, kind)
    except msgspec.ValidationError as err:
        raise FormatRefused(_CODE, f"not Azure evidence: {err}") from err
    parsed = _read_texts(wire, tee) if isinstance(wire, (_SNP, _TDX)) else _read_lists(wire, tee)
    if parsed.hcl.report_type != _HARDWARE[tee]:
        raise EvidenceError(
            "tee.azure.hardware",
            "paravisor's report is of other hardware than the evidence",
            path="hcl_report",
            expected=str(_HARDWARE[tee]),
            actual=str(parsed.hcl.report_type),
        )
    return parsed


def read_evidence(data: bytes, *, tee: str) -> ReadEvidence:
    """Return the body of Azure evidence in a file.

    Raises:
        FormatRefused: not a JSON object (`tee.file.*`), or a paravisor's report alone (`tee.azure.hcl_alone`).
    """
    if data[: len(_MAGIC)] == _MAGIC and not looks_like_json(data):
        raise FormatRefused(
            "tee.azure.hcl_alone",
            "a paravisor's report alone is no evidence: nothing in it answers a nonce or tells what was booted",
            expected="JSON as CoCo's guest sends it",
            hint="collect the quote of the virtual TPM with it",
        )
    return ReadEvidence(body=read_json_evidence(data, tee=tee), form="JSON as CoCo's guest on Azure sends it")


def _read_texts(wire: _SNP | _TDX, tee: str) -> ParsedEvidence:
    if wire.version not in VERSIONS:
        raise FormatRefused(
            _CODE,
            "unknown version of the evidence",
            path="version",
            expected=" or ".join(map(str, VERSIONS)),
            actual=str(wire.version),
        )
    return ParsedEvidence(
        tee=tee,
        version=wire.version,
        message=_hex(wire.tpm_quote.message, "tpm_quote.message", TPM_RESPONSE_BYTES),
        signature=_hex(wire.tpm_quote.signature, "tpm_quote.signature", TPM_RESPONSE_BYTES),
        values=_hex_values(wire.tpm_quote.pcrs),
        hcl=parse_hcl_report(_base64url(wire.hcl_report, "hcl_report", HCL_REPORT_BYTES)),
        vcek=_base64url(wire.vcek, "vcek", CERTIFICATE_BYTES) if isinstance(wire, _SNP) else b"",
        td_quote=_base64url(wire.td_quote, "td_quote", DCAP_QUOTE_BYTES) if isinstance(wire, _TDX) else b"",
    )


def _read_lists(wire: _SNP0 | _TDX0, tee: str) -> ParsedEvidence:
    quote = wire.quote if isinstance(wire, _SNP0) else wire.tpm_quote
    report = wire.report if isinstance(wire, _SNP0) else wire.hcl_report
    return ParsedEvidence(
        tee=tee,
        version=0,
        message=_octets(quote.message, "message", TPM_RESPONSE_BYTES),
        signature=_octets(quote.signature, "signature", TPM_RESPONSE_BYTES),
        values=_values([_octets(item, "pcrs", c.SHA256_BYTES) for item in quote.pcrs[: c.PCRS + 1]]),
        hcl=parse_hcl_report(_octets(report, "report", HCL_REPORT_BYTES)),
        vcek=_certificate(wire.vcek) if isinstance(wire, _SNP0) else b"",
        td_quote=_octets(wire.td_quote, "td_quote", DCAP_QUOTE_BYTES) if isinstance(wire, _TDX0) else b"",
    )


def _hex_values(texts: list[str]) -> tuple[bytes, ...]:
    """Return the register values, decoded at one go."""
    if not set(map(len, texts)) <= {2 * c.SHA256_BYTES}:
        texts = []
    joined = _hex("".join(texts), "tpm_quote.pcrs", c.PCRS * c.SHA256_BYTES)
    return _values([joined[start : start + c.SHA256_BYTES] for start in range(0, len(joined), c.SHA256_BYTES)])


def _values(values: list[bytes]) -> tuple[bytes, ...]:
    if not 0 < len(values) <= c.PCRS or any(len(value) != c.SHA256_BYTES for value in values):
        raise FormatRefused(
            _CODE,
            "register values are not SHA-256 digests, one for each register",
            path="pcrs",
            expected=f"1 to {c.PCRS}",
            actual=str(len(values)),
        )
    return tuple(values)


def _hex(text: str, path: str, ceiling: int) -> bytes:
    if len(text) <= 2 * ceiling:
        try:
            data = bytes.fromhex(text)
        except ValueError:
            data = b""
        if data.hex() == text:  # fromhex takes capitals and blanks too
            return data
    raise FormatRefused(_CODE, "not lower-case hexadecimal digits", path=path, expected=f"at most {ceiling} bytes")


def _octets(numbers: list[int], path: str, ceiling: int) -> bytes:
    if len(numbers) > ceiling:
        raise FormatRefused(_CODE, "list of bytes is too long", path=path, expected=f"at most {ceiling}")
    try:
        return bytes(numbers)
    except ValueError as err:
        raise FormatRefused(_CODE, "not a list of bytes", path=path) from err


def _base64url(text: str, path: str, ceiling: int) -> bytes:
    """Decode base64url with padding (RFC 4648, section 5), as CoCo's guests write it; its one canonical form."""
    if "+" in text or "/" in text:
        raise FormatRefused(_CODE, "not URL-safe base64", path=path)
    try:
        return decode_b64(text.replace("-", "+").replace("_", "/"), path=path, ceiling=ceiling)
    except FormatRefused as err:
        raise FormatRefused(_CODE, err.message, path=path, expected=err.expected) from err


def _certificate(pem: str) -> bytes:
    try:
        data = pem.encode("ascii")
    except UnicodeEncodeError as err:
        raise FormatRefused(_CODE, "not PEM", path="vcek") from err
    if len(data) > _PEM_BYTES:
        raise FormatRefused(_CODE, "certificate too long", path="vcek", expected=f"at most {_PEM_BYTES} bytes")
    blocks = split_pem(data, code="tee.azure.vcek", path="vcek", ceiling=CERTIFICATE_BYTES)
    if len(blocks) != 1:
        raise FormatRefused(_CODE, "not one certificate", path="vcek", expected="1", actual=str(len(blocks)))
    return blocks[0]
