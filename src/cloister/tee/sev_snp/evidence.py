"""SNP evidence: the JSON CoCo's guests send, and the forms a report is found in on disk.

The body has two members. `attestation_report` is CoCo's structure of integers and byte arrays, which is put back into
exactly 1184 bytes, or the report itself in base64. `cert_chain` is what the host handed out beside it; certificates in
it are as little trusted as any. In a file a report may also be raw, alone or followed by the host's certificate table
(an extended report). Pure; verifies nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec

from cloister.crypto.pem import split_pem
from cloister.errors import EvidenceError, FormatRefused
from cloister.rats.evidence import Evidence
from cloister.tee.jsonfile import looks_like_json, read_json_evidence
from cloister.tee.registry import ReadEvidence
from cloister.tee.sev_snp.abi import (
    COMPONENT_BYTES,
    P384_ORDER,
    WITH_CPUID,
    WITH_MITIGATIONS,
    Report,
    encode_report,
    parse_report,
)
from cloister.tee.sev_snp.certtable import SMALLEST_TABLE_BYTES, parse_certificate_table
from cloister.tee.sev_snp.products import CLASSIC, WITH_FMC, TCBLayout, product_of_cpu
from cloister.wire.base64 import decode_b64, encode_b64
from cloister.wire.limits import CERTIFICATE_BYTES, REVOCATION_LIST_BYTES, SNP_CERTIFICATES, SNP_REPORT_BYTES

TEE: Final = "snp"
_CODE: Final = "tee.sev_snp.malformed"
_PEM: Final = b"-----BEGIN"
_LIST: Final = "CRL"

_U8 = Annotated[int, msgspec.Meta(ge=0, le=0xFF)]
_U32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]
_U64 = Annotated[int, msgspec.Meta(ge=0)]  # the ceiling is checked when the report is put together
_Bytes16 = Annotated[list[_U8], msgspec.Meta(min_length=16, max_length=16)]
_Bytes32 = Annotated[list[_U8], msgspec.Meta(min_length=32, max_length=32)]
_Bytes48 = Annotated[list[_U8], msgspec.Meta(min_length=48, max_length=48)]
_Bytes64 = Annotated[list[_U8], msgspec.Meta(min_length=64, max_length=64)]
_Bytes72 = Annotated[list[_U8], msgspec.Meta(min_length=COMPONENT_BYTES, max_length=COMPONENT_BYTES)]


class _TCBWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    bootloader: _U8
    tee: _U8
    snp: _U8
    microcode: _U8
    fmc: _U8 | None = None


class _VersionWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    major: _U8
    minor: _U8
    build: _U8


class _SignatureWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    r: _Bytes72
    s: _Bytes72


class _ReportWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    version: _U32
    guest_svn: _U32
    policy: _U64
    family_id: _Bytes16
    image_id: _Bytes16
    vmpl: _U32
    sig_algo: _U32
    current_tcb: _TCBWire
    plat_info: _U64
    key_info: _U32
    report_data: _Bytes64
    measurement: _Bytes48
    host_data: _Bytes32
    id_key_digest: _Bytes48
    author_key_digest: _Bytes48
    report_id: _Bytes32
    report_id_ma: _Bytes32
    reported_tcb: _TCBWire
    chip_id: _Bytes64
    committed_tcb: _TCBWire
    current: _VersionWire
    committed: _VersionWire
    launch_tcb: _TCBWire
    signature: _SignatureWire
    cpuid_fam_id: _U8 | None = None
    cpuid_mod_id: _U8 | None = None
    cpuid_step: _U8 | None = None
    launch_mit_vector: _U64 | None = None
    current_mit_vector: _U64 | None = None


class _CertificateWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    cert_type: str | dict[str, str]
    data: list[_U8]


class _EvidenceWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    attestation_report: str | _ReportWire
    cert_chain: list[_CertificateWire] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedEvidence:
    """The members of the evidence; nothing of it is verified.

    Attributes:
        report: 1184 bytes, or another length when they came so.
        certificates: DER.
        revocation_lists: DER or PEM.
    """

    report: bytes
    certificates: tuple[bytes, ...]
    revocation_lists: tuple[bytes, ...]


def parse_evidence(evidence: Evidence) -> ParsedEvidence:
    """Parse the members of `evidence`.

    Raises:
        FormatRefused: a member does not parse (`tee.sev_snp.malformed`).
        EvidenceError: another technology (`tee.sev_snp.malformed`).
    """
    if evidence.tee != TEE:
        raise EvidenceError(_CODE, "evidence of another technology", expected=TEE, actual=evidence.tee[:40])
    try:
        wire = msgspec.convert(evidence.body, _EvidenceWire)
    except msgspec.ValidationError as err:
        raise FormatRefused(_CODE, f"not SNP evidence: {err}") from err
    chain = wire.cert_chain or []
    if len(chain) > SNP_CERTIFICATES:
        raise FormatRefused(
            _CODE, "too many certificates", path="cert_chain", expected=f"at most {SNP_CERTIFICATES}",
            actual=str(len(chain)),
        )  # fmt: skip
    entries = [(item.cert_type if isinstance(item.cert_type, str) else "", bytes(item.data)) for item in chain]
    report = wire.attestation_report
    return ParsedEvidence(
        report=_decode(report) if isinstance(report, str) else _assemble(report),
        certificates=tuple(der for kind, data in entries if kind != _LIST for der in _certificates(data)),
        revocation_lists=tuple(data for kind, data in entries if kind == _LIST),
    )


def read_evidence(data: bytes, *, tee: str) -> ReadEvidence:
    """Return the body of SNP evidence in a file: JSON, a raw report, or a raw extended report.

    Raises:
        FormatRefused: none of the forms (`tee.file.*`, `tee.sev_snp.report.*`, `tee.sev_snp.certificate_table.*`).
    """
    if looks_like_json(data):
        return ReadEvidence(body=read_json_evidence(data, tee=tee), form="JSON as CoCo's guests send it")
    report, table = data[:SNP_REPORT_BYTES], data[SNP_REPORT_BYTES:]
    entries: Sequence[tuple[str, bytes]] = ()
    if len(table) < SMALLEST_TABLE_BYTES:
        report = data  # nothing, or the rest of a report that is too long
    else:
        entries = parse_certificate_table(table)
    parse_report(report)
    return ReadEvidence(
        body={
            "attestation_report": encode_b64(report),
            "cert_chain": [{"cert_type": kind, "data": list(content)} for kind, content in entries],
        },
        form="raw report" if report is data else "raw report with the host's certificate table",
    )


def _decode(text: str) -> bytes:
    try:
        return decode_b64(text, path="attestation_report", ceiling=2 * SNP_REPORT_BYTES)
    except FormatRefused as err:
        raise FormatRefused(_CODE, err.message, path="attestation_report", expected=err.expected) from err


def _certificates(data: bytes) -> Sequence[bytes]:
    """Return the certificates of one entry: DER as the specification says, or PEM as some hosts write."""
    if data.startswith(_PEM):
        return split_pem(data, code="tee.sev_snp.certificate", path="cert_chain", ceiling=CERTIFICATE_BYTES)
    if len(data) > REVOCATION_LIST_BYTES:
        raise FormatRefused(_CODE, "certificate too long", path="cert_chain")
    return (data,)


def _assemble(wire: _ReportWire) -> bytes:
    """Return the 1184 bytes that CoCo's structure was read from."""
    cpuid = (wire.cpuid_fam_id, wire.cpuid_mod_id, wire.cpuid_step)
    with_cpuid = wire.version >= WITH_CPUID
    if any((part is not None) is not with_cpuid for part in cpuid):
        raise _inconsistent("the CPU is given by version 3 and newer, and by those only", "cpuid_fam_id")
    vectors = (wire.launch_mit_vector, wire.current_mit_vector)
    with_vectors = wire.version >= WITH_MITIGATIONS
    if any((part is not None) is not with_vectors for part in vectors):
        raise _inconsistent("mitigation vectors are given by version 5 and newer, and by those only", "mit_vector")
    layout = _layout(wire)
    r, s = (int.from_bytes(bytes(part), "little") for part in (wire.signature.r, wire.signature.s))
    if max(wire.policy, wire.plat_info, *(part or 0 for part in vectors)) >> 64 or max(r, s) >= P384_ORDER:
        raise _inconsistent("a number is longer than its field", "attestation_report")
    return encode_report(
        Report(
            wire.version, wire.guest_svn, wire.policy, bytes(wire.family_id), bytes(wire.image_id), wire.vmpl,
            wire.sig_algo, _tcb(layout, wire.current_tcb), wire.plat_info, wire.key_info, bytes(wire.report_data),
            bytes(wire.measurement), bytes(wire.host_data), bytes(wire.id_key_digest), bytes(wire.author_key_digest),
            bytes(wire.report_id), bytes(wire.report_id_ma), _tcb(layout, wire.reported_tcb),
            tuple(part or 0 for part in cpuid) if with_cpuid else None,  # type: ignore[arg-type]  # three of them
            bytes(wire.chip_id), _tcb(layout, wire.committed_tcb), _version(wire.current), _version(wire.committed),
            _tcb(layout, wire.launch_tcb), vectors[0] or 0, vectors[1] or 0, r, s,
        )
    )  # fmt: skip


def _layout(wire: _ReportWire) -> TCBLayout:
    """Return where the components go: by the CPU, or in version 2 by whether there is an `fmc`."""
    if wire.cpuid_fam_id is not None and wire.cpuid_mod_id is not None:
        product = product_of_cpu(wire.cpuid_fam_id, wire.cpuid_mod_id)
        if product is not None:
            return product.layout
    return CLASSIC if wire.reported_tcb.fmc is None else WITH_FMC


def _tcb(layout: TCBLayout, wire: _TCBWire) -> bytes:
    if (wire.fmc is not None) is not ("fmc" in layout.places):
        raise _inconsistent("`fmc` is given where the product line has it, and there only", "tcb.fmc")
    components = {"bootloader": wire.bootloader, "tee": wire.tee, "snp": wire.snp, "microcode": wire.microcode}
    return layout.encode(components | {"fmc": wire.fmc or 0})


def _version(wire: _VersionWire) -> tuple[int, int, int]:
    return (wire.major, wire.minor, wire.build)


def _inconsistent(message: str, path: str) -> FormatRefused:
    return FormatRefused(_CODE, message, path=path)
