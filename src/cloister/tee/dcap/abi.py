"""Bytes of a DCAP quote: header, report body, signature data. Parser and encoder, pure.

Sources: Intel SGX ECDSA QuoteLib Reference, appendix A (version 3); Intel TDX DCAP Quoting Library API, appendix A
(versions 4 and 5); Intel SDM volume 3D table 38-21 (enclave report); Intel TDX Module ABI (TD report). Little endian.

    header 48 | body | signature data length 4 | signature data | zero padding
    body: SGX 384, TD 1.0 584, TD 1.5 648; version 5 puts its type (2) and size (4) before it
    signature data: signature 64, attestation key 64, [version 4 and 5: type 6, size 4,] enclave report 384,
        its signature 64, authentication data with length 2, certification type 2, certification data with length 4

Buffers are padded with zeros by kernels and clouds: the declared lengths say where a quote ends. What follows is kept
apart, is part of nothing that is signed, and appraisal refuses it unless it is zero. Nothing here is authentic.
"""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass
from typing import Final

from cloister.errors import FormatRefused
from cloister.wire.binary import BinaryReader
from cloister.wire.limits import DCAP_QUOTE_BYTES

CODE: Final = "tee.dcap.quote"
SGX: Final = 0x00000000
TDX: Final = 0x00000081
ECDSA_P256: Final = 2  # attestation key type
INTEL_QE: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
PCK_CHAIN: Final = 5  # certification data type: PCK certificate chain, PEM
QE_REPORT: Final = 6  # certification data type: report of the quoting enclave and what certifies it
SIGNATURE_BYTES: Final = 64
REPORT_BYTES: Final = 384
TD10_BYTES: Final = 584
TD15_BYTES: Final = 648
_BODY_TYPES: Final = {1: (SGX, REPORT_BYTES), 2: (TDX, TD10_BYTES), 3: (TDX, TD15_BYTES)}
_HEADER: Final = struct.Struct("<HHI4s16s20s")
_ENCLAVE: Final = struct.Struct("<16sI12s16s16s32s32s32s32s64sHHH42s16s64s")
_TD10: Final = struct.Struct("<16s48s48s8s8s8s48s48s48s48s48s48s48s48s64s")
_TD15_TAIL: Final = struct.Struct("<16s48s")


@dataclass(frozen=True, slots=True)
class QuoteHeader:
    """The first 48 bytes.

    Attributes:
        version: 3 (SGX), 4 (TDX) or 5.
        key_type: of the attestation key; 2 is ECDSA P-256.
        tee_type: 0 SGX, 0x81 TDX; reserved and zero in version 3.
        reserved: 4 bytes; version 3 has the security versions of quoting enclave and PCE there.
        vendor_id: 16 bytes, who wrote the quoting enclave.
        user_data: 20 bytes.
    """

    version: int
    key_type: int
    tee_type: int
    reserved: bytes
    vendor_id: bytes
    user_data: bytes

    def encode(self) -> bytes:
        """Return the 48 bytes."""
        return _HEADER.pack(*astuple(self))


@dataclass(frozen=True, slots=True)
class EnclaveReport:
    """Report body of an enclave, 384 bytes. Reserved parts are kept as found: they are signed."""

    cpu_svn: bytes
    misc_select: int
    reserved1: bytes
    isv_ext_prod_id: bytes
    attributes: bytes
    mr_enclave: bytes
    reserved2: bytes
    mr_signer: bytes
    reserved3: bytes
    config_id: bytes
    isv_prod_id: int
    isv_svn: int
    config_svn: int
    reserved4: bytes
    isv_family_id: bytes
    report_data: bytes

    @property
    def flags(self) -> int:
        """The low 64 bits of the attributes: bit 1 debug, 2 64-bit, 4 provisioning key, 5 launch key."""
        return int.from_bytes(self.attributes[:8], "little")

    def encode(self) -> bytes:
        """Return the 384 bytes."""
        return _ENCLAVE.pack(*astuple(self))


@dataclass(frozen=True, slots=True)
class TDReport:
    """Report body of a TD: 584 bytes (1.0), or 648 with the last two members (1.5)."""

    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmr0: bytes
    rtmr1: bytes
    rtmr2: bytes
    rtmr3: bytes
    report_data: bytes
    tee_tcb_svn2: bytes | None = None
    mr_service_td: bytes | None = None

    @property
    def rtmrs(self) -> tuple[bytes, bytes, bytes, bytes]:
        """The four runtime measurement registers."""
        return (self.rtmr0, self.rtmr1, self.rtmr2, self.rtmr3)

    @property
    def flags(self) -> int:
        """The TD's attributes as a number: bits 0 to 7 debug (TUD), 28 SEPT_VE_DISABLE, 29 migratable, 30 PKS, 31 KL,
        63 PERFMON."""
        return int.from_bytes(self.td_attributes, "little")

    def encode(self) -> bytes:
        """Return the 584 or 648 bytes."""
        values = astuple(self)
        body = _TD10.pack(*values[:-2])
        if self.tee_tcb_svn2 is None or self.mr_service_td is None:
            return body
        return body + _TD15_TAIL.pack(self.tee_tcb_svn2, self.mr_service_td)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureData:
    """What is behind the body.

    Attributes:
        signature: over header and body, by the attestation key: r and s, 64 bytes big endian.
        attestation_key: x and y, 64 bytes.
        qe_report: of the quoting enclave, 384 bytes.
        qe_signature: over `qe_report`, by the PCK.
        authentication: data that `qe_report` binds together with the attestation key.
        certification_type: of `certification`; 5 is the only one understood here.
        certification: PEM text of the PCK certificate chain.
    """

    signature: bytes
    attestation_key: bytes
    qe_report: bytes
    qe_signature: bytes
    authentication: bytes
    certification_type: int
    certification: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """A parsed quote.

    Attributes:
        header: the first 48 bytes.
        body_type: of version 5: 1 SGX, 2 TD 1.0, 3 TD 1.5; None in versions without it.
        body: report of the enclave or TD.
        signed: header and body as received: what the attestation key signed.
        data: signature data.
        tail: what follows the quote; zeros, or it is refused by appraisal.
    """

    header: QuoteHeader
    body_type: int | None
    body: EnclaveReport | TDReport
    signed: bytes
    data: SignatureData
    tail: bytes = b""

    @property
    def tee_type(self) -> int:
        """`SGX` or `TDX`, by the body that was read."""
        return TDX if isinstance(self.body, TDReport) else SGX

    @property
    def foreign_bytes(self) -> int:
        """How many bytes other than zeros follow the quote, with the zeros among them."""
        return len(self.tail.rstrip(b"\0"))

    def encode(self) -> bytes:
        """Return the quote with its tail."""
        body = self.body.encode()
        if self.body_type is not None:
            body = struct.pack("<HI", self.body_type, len(body)) + body
        data = encode_signature_data(self.data, nested=self.header.version > 3)
        return self.header.encode() + body + struct.pack("<I", len(data)) + data + self.tail


def parse_quote(data: bytes) -> Quote:
    """Parse a quote of version 3, 4 or 5.

    Raises:
        FormatRefused: too long, truncated, an unknown version, key type, body or certification type, or lengths that
            contradict each other (`tee.dcap.quote.*`, `tee.dcap.certification_type`).
    """
    if len(data) > DCAP_QUOTE_BYTES:
        raise _refused("too_long", "quote too long", expected=f"at most {DCAP_QUOTE_BYTES} bytes")
    reader = BinaryReader(data, order="little", code=CODE)
    header = QuoteHeader(*_HEADER.unpack(reader.take(_HEADER.size, "header")))
    _check_header(header)
    body_type = reader.unsigned(2, "body type") if header.version == 5 else None
    body = _read_body(reader, header, body_type)
    signed = data[: reader.offset]
    parsed = _read_signature_data(reader.sized(4, "signature data", ceiling=DCAP_QUOTE_BYTES), header.version)
    tail = reader.take(reader.remaining, "tail")
    return Quote(header=header, body_type=body_type, body=body, signed=signed, data=parsed, tail=tail)


def parse_enclave_report(data: bytes) -> EnclaveReport:
    """Parse the 384 bytes of an enclave's report body.

    Raises:
        FormatRefused: another length (`tee.dcap.quote.truncated`).
    """
    if len(data) != REPORT_BYTES:
        raise _refused("truncated", "not an enclave report", expected=f"{REPORT_BYTES} bytes", actual=str(len(data)))
    return EnclaveReport(*_ENCLAVE.unpack(data))


def parse_td_report(data: bytes) -> TDReport:
    """Parse the 584 or 648 bytes of a TD's report body.

    Raises:
        FormatRefused: another length (`tee.dcap.quote.truncated`).
    """
    if len(data) not in (TD10_BYTES, TD15_BYTES):
        raise _refused("truncated", "not a TD report", expected=f"{TD10_BYTES} or {TD15_BYTES}", actual=str(len(data)))
    tail = _TD15_TAIL.unpack(data[TD10_BYTES:]) if len(data) == TD15_BYTES else ()
    return TDReport(*_TD10.unpack(data[:TD10_BYTES]), *tail)


def encode_signature_data(data: SignatureData, *, nested: bool) -> bytes:
    """Return signature data; `nested` as versions 4 and 5 have it."""
    certificates = struct.pack("<HI", data.certification_type, len(data.certification)) + data.certification
    report = (
        data.qe_report
        + data.qe_signature
        + struct.pack("<H", len(data.authentication))
        + data.authentication
        + certificates
    )
    if nested:
        report = struct.pack("<HI", QE_REPORT, len(report)) + report
    return data.signature + data.attestation_key + report


def _check_header(header: QuoteHeader) -> None:
    if header.version not in (3, 4, 5):
        raise _refused("version", "unknown quote version", expected="3, 4 or 5", actual=str(header.version))
    if header.key_type != ECDSA_P256:
        raise _refused("key_type", "unknown attestation key type", expected="2 (P-256)", actual=str(header.key_type))
    accepted = {3: (SGX,), 4: (TDX,), 5: (SGX, TDX)}[header.version]
    if header.tee_type not in accepted:
        raise _refused(
            "tee_type",
            "quote version and TEE type do not go together",
            expected=" or ".join(f"{item:#x}" for item in accepted),
            actual=f"{header.tee_type:#x}",
        )


def _read_body(reader: BinaryReader, header: QuoteHeader, body_type: int | None) -> EnclaveReport | TDReport:
    if body_type is None:
        size = TD10_BYTES if header.tee_type == TDX else REPORT_BYTES
    else:
        declared = reader.unsigned(4, "body size")
        tee_type, size = _BODY_TYPES.get(body_type, (None, 0))
        if tee_type != header.tee_type or declared != size:
            raise _refused(
                "body_type",
                "unknown body type, or one of another size or TEE",
                expected=f"{size} bytes",
                actual=f"type {body_type}, {declared} bytes",
            )
    body = reader.take(size, "body")
    return parse_td_report(body) if header.tee_type == TDX else parse_enclave_report(body)


def _read_signature_data(data: bytes, version: int) -> SignatureData:
    reader = BinaryReader(data, order="little", code=CODE)
    signature = reader.take(SIGNATURE_BYTES, "signature")
    key = reader.take(SIGNATURE_BYTES, "attestation key")
    if version > 3:
        _check_certification(reader.unsigned(2, "certification type"), QE_REPORT)
        nested = reader.sized(4, "certification data", ceiling=DCAP_QUOTE_BYTES)
        reader.finish()
        reader = BinaryReader(nested, order="little", code=CODE)
    report = reader.take(REPORT_BYTES, "report of the quoting enclave")
    report_signature = reader.take(SIGNATURE_BYTES, "signature of the quoting enclave's report")
    authentication = reader.sized(2, "authentication data", ceiling=DCAP_QUOTE_BYTES)
    kind = reader.unsigned(2, "certification type")
    _check_certification(kind, PCK_CHAIN)
    certification = reader.sized(4, "certification data", ceiling=DCAP_QUOTE_BYTES)
    reader.finish()
    return SignatureData(
        signature=signature,
        attestation_key=key,
        qe_report=report,
        qe_signature=report_signature,
        authentication=authentication,
        certification_type=kind,
        certification=certification,
    )


def _check_certification(kind: int, expected: int) -> None:
    if kind != expected:
        raise FormatRefused(
            "tee.dcap.certification_type",
            "certification data of a type that is not understood",
            expected=str(expected),
            actual=str(kind),
            hint="configure the quoting service to put the PCK certificate chain into its quotes",
        )


def _refused(reason: str, message: str, *, expected: str = "", actual: str = "") -> FormatRefused:
    return FormatRefused(f"{CODE}.{reason}", message, expected=expected, actual=actual)
