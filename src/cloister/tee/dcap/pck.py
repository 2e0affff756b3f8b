"""The SGX extension of a PCK certificate: which platform it is and which security versions it has. Pure.

Intel SGX PCK Certificate and Certificate Revocation List Profile Specification, section 1.3.5. The extension is a DER
SEQUENCE of (OID, value) pairs; member 2 holds pairs of its own, member 7 too. DER is read by the few lines below:
definite lengths in their shortest form, nothing behind the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cryptography import x509

from cloister.errors import EndorsementError

EXTENSION: Final = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
COMPONENTS: Final = 16
_CODE: Final = "tee.dcap.pck"
_PREFIX: Final = bytes.fromhex("2a864886f84d010d01")  # the OID above in DER
_SEQUENCE, _INTEGER, _OCTETS, _ENUMERATED, _BOOLEAN, _OID = 0x30, 0x02, 0x04, 0x0A, 0x01, 0x06
_TYPES: Final = {0: "Standard", 1: "Scalable", 2: "ScalableWithIntegrity"}
_CACHED: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class PCKExtension:
    """What the certificate says of its platform.

    Attributes:
        ppid: 16 bytes, identity of the platform.
        components: security version of each of the 16 parts.
        pce_svn: security version of the provisioning certification enclave.
        cpu_svn: 16 bytes.
        pce_id: 2 bytes.
        fmspc: 6 bytes, kind of the platform: what collateral is chosen by.
        sgx_type: `Standard`, `Scalable` or `ScalableWithIntegrity`.
        platform_instance: 16 bytes; empty where the certificate has none (single socket).
        dynamic_platform: whether sockets may be added; None where not told.
        cached_keys: whether Intel keeps the platform's keys; None where not told.
        smt_enabled: None where not told.
    """

    ppid: bytes
    components: tuple[int, ...]
    pce_svn: int
    cpu_svn: bytes
    pce_id: bytes
    fmspc: bytes
    sgx_type: str
    platform_instance: bytes
    dynamic_platform: bool | None
    cached_keys: bool | None
    smt_enabled: bool | None


@lru_cache(maxsize=_CACHED)
def parse_pck_extension(certificate: x509.Certificate) -> PCKExtension:
    """Return the extension of a certificate.

    Raises:
        EndorsementError: no such extension, or a malformed one (`tee.dcap.pck.extension`).
    """
    try:
        value = certificate.extensions.get_extension_for_oid(EXTENSION).value
    except x509.ExtensionNotFound as err:
        raise _malformed("certificate has no SGX extension") from err
    if not isinstance(value, x509.UnrecognizedExtension):
        raise _malformed("SGX extension is of another kind")
    return _read_extension(value.value)


def _read_extension(der: bytes) -> PCKExtension:
    members = _pairs(der, _PREFIX)
    tcb = _pairs(_member(members, 2, _SEQUENCE, wrapped=True), _PREFIX + b"\x02")
    components = tuple(_number(tcb, index + 1, ceiling=255) for index in range(COMPONENTS))
    configuration: dict[int, tuple[int, bytes]] = {}
    if 7 in members:
        configuration = _pairs(_member(members, 7, _SEQUENCE, wrapped=True), _PREFIX + b"\x07")
    kind = int.from_bytes(_member(members, 5, _ENUMERATED, size=1), "big")
    if kind not in _TYPES:
        raise _malformed(f"unknown SGX type {kind}")
    return PCKExtension(
        ppid=_member(members, 1, _OCTETS, size=16),
        components=components,
        pce_svn=_number(tcb, 17, ceiling=0xFFFF),
        cpu_svn=_member(tcb, 18, _OCTETS, size=16),
        pce_id=_member(members, 3, _OCTETS, size=2),
        fmspc=_member(members, 4, _OCTETS, size=6),
        sgx_type=_TYPES[kind],
        platform_instance=_member(members, 6, _OCTETS, size=16) if 6 in members else b"",
        dynamic_platform=_flag(configuration, 1),
        cached_keys=_flag(configuration, 2),
        smt_enabled=_flag(configuration, 3),
    )


def _pairs(der: bytes, prefix: bytes) -> dict[int, tuple[int, bytes]]:
    """Return tag and content of each value of a SEQUENCE OF SEQUENCE {OID, value}, by the OID's last arc."""
    tag, content, rest = _element(der)
    if tag != _SEQUENCE or rest:
        raise _malformed("not one SEQUENCE")
    found: dict[int, tuple[int, bytes]] = {}
    while content:
        tag, pair, content = _element(content)
        kind, oid, value = _element(pair)
        value_tag, value_content, rest = _element(value)
        if tag != _SEQUENCE or kind != _OID or rest or oid[:-1] != prefix or oid[-1] in found:
            raise _malformed("not a list of members, or one of them twice")
        # A SEQUENCE keeps its header, because it is read by this function again.
        found[oid[-1]] = (value_tag, value if value_tag == _SEQUENCE else value_content)
    return found


def _element(der: bytes) -> tuple[int, bytes, bytes]:
    """Return tag and content of the first element, and what follows it."""
    if len(der) < 2:
        raise _malformed("ends inside an element")
    start, size = 2, der[1]
    if size >= 0x80:
        octets = size & 0x7F
        start += octets
        size = int.from_bytes(der[2:start], "big")
        if octets not in (1, 2) or size < (0x80 if octets == 1 else 0x100):
            raise _malformed("length is not in its shortest form")
    if start + size > len(der):
        raise _malformed("ends inside an element")
    return der[0], der[start : start + size], der[start + size :]


def _member(
    members: Mapping[int, tuple[int, bytes]], index: int, tag: int, *, size: int | None = None, wrapped: bool = False
) -> bytes:
    found = members.get(index)
    if found is None or found[0] != tag or (not wrapped and size is not None and len(found[1]) != size):
        raise _malformed(f"member {index} is absent or of another kind or size")
    return found[1]


def _number(members: Mapping[int, tuple[int, bytes]], index: int, *, ceiling: int) -> int:
    content = _member(members, index, _INTEGER)
    if not content or content[0] & 0x80 or int.from_bytes(content, "big") > ceiling:
        raise _malformed(f"security version {index} is out of range")
    return int.from_bytes(content, "big")


def _flag(members: Mapping[int, tuple[int, bytes]], index: int) -> bool | None:
    if index not in members:
        return None
    return _member(members, index, _BOOLEAN, size=1) != b"\0"


def _malformed(message: str) -> EndorsementError:
    return EndorsementError(f"{_CODE}.extension", message, path=EXTENSION.dotted_string)
