"""The extension with which Google says whose virtual TPM it certifies: OID 1.3.6.1.4.1.11129.2.1.21.

    SEQUENCE { zone UTF8String, projectNumber INTEGER, projectId UTF8String, instanceId INTEGER,
               instanceName UTF8String, securityProperties [0] EXPLICIT SEQUENCE {
                   securityVersion [0] EXPLICIT INTEGER OPTIONAL,
                   isProduction [1] EXPLICIT BOOLEAN OPTIONAL, ... } OPTIONAL }

(google/go-tpm-tools, server/verify.go.) Newer members of the last part, tags 2 and up, are not published; they are
skipped. Strict DER otherwise. Pure; the caller has verified the certificate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from cryptography import x509

from cloister.errors import FormatRefused
from cloister.wire.binary import BinaryReader

OID: Final = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.1.21")
_CODE: Final = "tee.tpm.instance_info"
_BOOLEAN, _INTEGER, _UTF8, _SEQUENCE, _TAGGED = 0x01, 0x02, 0x0C, 0x30, 0xA0
_TRUE: Final = b"\xff"
_CEILING: Final = 1024
_INTEGER_BYTES: Final = 9  # 64 bits and a leading zero


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceInfo:
    """Which instance a virtual TPM belongs to, as its vendor certifies.

    Attributes:
        zone: of the cloud.
        project_id: name of the owner's project.
        project_number: its number.
        instance_name: chosen by the owner, not unique over time.
        instance_id: unique.
        production: whether the vendor calls the host's software production.
        security_version: of that software.
    """

    zone: str
    project_id: str
    project_number: int
    instance_name: str
    instance_id: int
    production: bool
    security_version: int

    def as_dict(self) -> dict[str, Any]:  # Any: text, numbers and one boolean
        """Return the members for JSON claims; numbers over 53 bits as text, as JSON readers round them."""
        return {
            "zone": self.zone,
            "project_id": self.project_id,
            "project_number": str(self.project_number),
            "instance_name": self.instance_name,
            "instance_id": str(self.instance_id),
            "production": self.production,
            "security_version": self.security_version,
        }


def read_instance_info(certificate: x509.Certificate) -> InstanceInfo | None:
    """Return what the certificate's extension says; None when it has none.

    Raises:
        FormatRefused: it does not parse (`tee.tpm.instance_info.*`).
    """
    try:
        value = certificate.extensions.get_extension_for_oid(OID).value
    except x509.ExtensionNotFound:
        return None
    if not isinstance(value, x509.UnrecognizedExtension):
        raise TypeError("the library knows this extension now")
    return parse_instance_info(value.value)


def parse_instance_info(data: bytes) -> InstanceInfo:
    """Parse the extension's value.

    Raises:
        FormatRefused: it does not parse (`tee.tpm.instance_info.*`).
    """
    outer = BinaryReader(data, order="big", code=_CODE)
    reader = _reader(_take(outer, _SEQUENCE, "instance information"))
    outer.finish()
    zone = _text(reader, "zone")
    project_number = _integer(reader, "projectNumber")
    project_id = _text(reader, "projectId")
    instance_id = _integer(reader, "instanceId")
    instance_name = _text(reader, "instanceName")
    security_version, production = 0, False
    if reader.remaining:
        tagged = _reader(_take(reader, _TAGGED, "securityProperties"))
        security_version, production = _properties(_reader(_take(tagged, _SEQUENCE, "securityProperties")))
        tagged.finish()
    reader.finish()
    return InstanceInfo(
        zone=zone,
        project_id=project_id,
        project_number=project_number,
        instance_name=instance_name,
        instance_id=instance_id,
        production=production,
        security_version=security_version,
    )


def _properties(reader: BinaryReader) -> tuple[int, bool]:
    version, production = 0, False
    last = -1
    while reader.remaining:
        tag = reader.unsigned(1, "property tag")
        content = _reader(_content(reader, "property"))
        if not last < tag - _TAGGED <= 0x1E:
            raise FormatRefused(f"{_CODE}.malformed", "properties are not tagged in order", actual=f"{tag:#04x}")
        last = tag - _TAGGED
        if last == 0:
            version = _integer(content, "securityVersion")
        elif last == 1:
            production = _boolean(content, "isProduction")
        else:
            continue
        content.finish()
    return version, production


def _reader(data: bytes) -> BinaryReader:
    return BinaryReader(data, order="big", code=_CODE)


def _take(reader: BinaryReader, tag: int, name: str) -> bytes:
    found = reader.unsigned(1, f"{name} tag")
    if found != tag:
        raise FormatRefused(
            f"{_CODE}.malformed", f"{name} is of another type", expected=f"{tag:#04x}", actual=f"{found:#04x}"
        )
    return _content(reader, name)


def _content(reader: BinaryReader, name: str) -> bytes:
    length = reader.unsigned(1, f"{name} length")
    if length >= 0x80:
        octets = length & 0x7F
        length = reader.unsigned(octets, f"{name} length") if octets in (1, 2) else _CEILING + 1
        if length < (0x80 if octets == 1 else 0x100) or length > _CEILING:
            raise FormatRefused(f"{_CODE}.malformed", f"{name} has an impossible length")
    return reader.take(length, name)


def _text(reader: BinaryReader, name: str) -> str:
    try:
        return _take(reader, _UTF8, name).decode("utf-8")
    except UnicodeDecodeError as err:
        raise FormatRefused(f"{_CODE}.malformed", f"{name} is not UTF-8") from err


def _integer(reader: BinaryReader, name: str) -> int:
    data = _take(reader, _INTEGER, name)
    minimal = len(data) == 1 or data[:1] != b"\0" or data[1:2] >= b"\x80"
    if not 0 < len(data) <= _INTEGER_BYTES or data[0] >= 0x80 or not minimal:
        raise FormatRefused(f"{_CODE}.malformed", f"{name} is not a minimal, non-negative integer of 64 bits")
    return int.from_bytes(data, "big")


def _boolean(reader: BinaryReader, name: str) -> bool:
    data = _take(reader, _BOOLEAN, name)
    if data not in (b"\0", _TRUE):
        raise FormatRefused(f"{_CODE}.malformed", f"{name} is not a boolean")
    return data == _TRUE
