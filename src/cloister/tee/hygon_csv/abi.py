"""The attestation report of Hygon CSV, version 1, and Hygon's own certificate format. Pure; verifies nothing.

Little endian. In a report the measured values, from the first byte to `sig_algo`, are masked: each 32-bit word is
XORed with `anonce`. The report is followed by the certificate of its key (PEK) and the chip's serial number, and by a
MAC that only the guest which asked can check. Layouts after csv-rs, compared with one real report; version 2 (magic
`ATTESTATION_EXT`) is recognised and not read.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from cloister.errors import FormatRefused
from cloister.wire.binary import BinaryReader

REPORT: Final = "tee.hygon_csv.report"
ROOT: Final = "tee.hygon_csv.root"
DATA_BYTES: Final = 4096  # the page that the device fills
EXTENDED_MAGIC: Final = b"ATTESTATION_EXT\0"
_MASKED_BYTES: Final = 188
_SCALAR_BYTES: Final = 72  # of r, s and coordinates, little endian; SM2 uses the first 32
PEK_BYTES: Final = 2084
SERIAL_BYTES: Final = 64
ROOT_BYTES: Final = 832
_USER_ID_BYTES: Final = 254
_ANY: Final = 1 << 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A report of version 1, unmasked.

    Attributes:
        user_pubkey_digest: SM3 of the guest owner's key, 32 bytes.
        vm_id: 16 bytes.
        vm_version: 16 bytes.
        report_data: 64 bytes of the guest's.
        mnonce: 16 bytes of the guest's, key of the MAC.
        measurement: SM3 of what was launched, 32 bytes.
        policy: of the guest; bit 0 forbids debug.
        signature_usage: what the key is for.
        signature_algorithm: 4 is SM2 with SM3.
        anonce: the mask, 4 bytes.
        signature: r and s, 144 bytes.
        pek: certificate of the key, 2084 bytes.
        serial_number: of the chip, text.
        mac: 32 bytes.
    """

    user_pubkey_digest: bytes
    vm_id: bytes
    vm_version: bytes
    report_data: bytes
    mnonce: bytes
    measurement: bytes
    policy: int
    signature_usage: int
    signature_algorithm: int
    anonce: bytes
    signature: bytes
    pek: bytes
    serial_number: str
    mac: bytes


def parse_report(data: bytes) -> Report:
    """Parse a report of version 1, with the page that holds it.

    Raises:
        FormatRefused: another length, bytes behind the report, or a serial number that is none
            (`tee.hygon_csv.report.malformed`).
    """
    if len(data) != DATA_BYTES:
        raise _malformed(REPORT, "page of the report has another length", str(DATA_BYTES), str(len(data)))
    anonce = data[_MASKED_BYTES : _MASKED_BYTES + 4]
    reader = BinaryReader(_mask(data[:_MASKED_BYTES], anonce) + data[_MASKED_BYTES:], order="little", code=REPORT)
    report = Report(
        user_pubkey_digest=reader.take(32, "user_pubkey_digest"),
        vm_id=reader.take(16, "vm_id"),
        vm_version=reader.take(16, "vm_version"),
        report_data=reader.take(64, "report_data"),
        mnonce=reader.take(16, "mnonce"),
        measurement=reader.take(32, "measure"),
        policy=reader.unsigned(4, "policy"),
        signature_usage=reader.unsigned(4, "sig_usage"),
        signature_algorithm=reader.unsigned(4, "sig_algo"),
        anonce=reader.take(4, "anonce"),
        signature=reader.take(2 * _SCALAR_BYTES, "signature"),
        pek=reader.take(PEK_BYTES, "pek_cert"),
        serial_number=parse_serial(reader.take(SERIAL_BYTES, "serial number"), REPORT),
        mac=_behind_zeros(reader, 32, "mac"),
    )
    if any(reader.take(reader.remaining, "rest of the page")):
        raise _malformed(REPORT, "bytes follow the report in its page", "zeros", "others")
    return report


def encode_report(report: Report) -> bytes:
    """Return the page with the report masked; the inverse of `parse_report`."""
    values = struct.pack("<III", report.policy, report.signature_usage, report.signature_algorithm)
    plain = b"".join(
        (
            report.user_pubkey_digest,
            report.vm_id,
            report.vm_version,
            report.report_data,
            report.mnonce,
            report.measurement,
            values,
        )
    )
    serial = report.serial_number.encode("ascii").ljust(SERIAL_BYTES, b"\0")
    rest = report.anonce + report.signature + report.pek + serial + bytes(32) + report.mac
    return (_mask(plain, report.anonce) + rest).ljust(DATA_BYTES, b"\0")


@dataclass(frozen=True, slots=True, kw_only=True)
class RootCertificate:
    """A certificate in Hygon's format for its root (HRK) and signing keys (HSK).

    Attributes:
        key_id: 16 bytes.
        issuer_id: key id of who signed it.
        usage: what the key is for; 0 is the root.
        curve: 3 is SM2.
        user_id: name that SM2 hashes.
        signature: r and s, 144 bytes.
    """

    key_id: bytes
    issuer_id: bytes
    usage: int
    curve: int
    user_id: str
    signature: bytes


def parse_root_certificate(data: bytes) -> RootCertificate:
    """Parse a certificate of 832 bytes.

    Raises:
        FormatRefused: another length, version or name (`tee.hygon_csv.root.malformed`).
    """
    if len(data) != ROOT_BYTES:
        raise _malformed(ROOT, "certificate has another length", str(ROOT_BYTES), str(len(data)))
    reader = BinaryReader(data, order="little", code=ROOT)
    version = reader.unsigned(4, "version")
    if version != 1:
        raise _malformed(ROOT, "certificate is of another version", "1", str(version))
    key_id, issuer_id = reader.take(16, "key id"), reader.take(16, "certifying id")
    usage = reader.unsigned(4, "key usage")
    reader.take(24, "reserved")
    curve = reader.unsigned(4, "curve")
    reader.take(2 * _SCALAR_BYTES, "public key")
    length = reader.unsigned(2, "user id length")
    user_id = reader.take(_USER_ID_BYTES, "user id")
    if length > _USER_ID_BYTES or not user_id[:length].isascii():
        raise _malformed(ROOT, "name of the key is none", f"at most {_USER_ID_BYTES} ASCII characters", str(length))
    reader.take(108, "reserved")
    signature = reader.take(2 * _SCALAR_BYTES, "signature")
    return RootCertificate(
        key_id=key_id,
        issuer_id=issuer_id,
        usage=usage,
        curve=curve,
        user_id=user_id[:length].decode("ascii"),
        signature=signature,
    )


def parse_serial(data: bytes, code: str) -> str:
    """Return a chip's serial number: text, then zeros.

    Raises:
        FormatRefused: not such text (`<code>.malformed`).
    """
    text = data.rstrip(b"\0")
    if len(data) != SERIAL_BYTES or not text or not text.isascii() or not text.decode("ascii").isalnum():
        raise _malformed(code, "serial number of the chip is none", f"text in {SERIAL_BYTES} bytes", data[:16].hex())
    return text.decode("ascii")


def _mask(data: bytes, anonce: bytes) -> bytes:
    return bytes(byte ^ anonce[index % 4] for index, byte in enumerate(data))


def _behind_zeros(reader: BinaryReader, count: int, field: str) -> bytes:
    if any(reader.take(32, "reserved")):
        raise _malformed(REPORT, "reserved bytes are not zero", "zeros", "others")
    return reader.take(count, field)


def _malformed(code: str, message: str, expected: str, actual: str) -> FormatRefused:
    return FormatRefused(f"{code}.malformed", message, expected=expected, actual=actual)
