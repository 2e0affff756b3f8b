"""Certificates of NVIDIA devices: which role a name stands for, and what the leaf says about the firmware (DICE).

A chain is leaf `<chip> <step> <core> FMC LF` (key of the running firmware) <- `<same> BROM` (key burnt into the chip)
<- `NVIDIA <chip> Provisioner ICA <n>` <- `NVIDIA <chip> Identity` <- `NVIDIA Device Identity CA`. The names keep a
certificate of the same PKI but of another use (network cards, signers of manifests) from standing where a device key
must. The last eight bytes of the BROM's serialNumber are the device's PDI, by which switches and GPUs name each other.

The leaf carries the firmware id in one of two extensions: 2.23.133.5.4.1 (TCG DICE CompositeDeviceID; Hopper, LS10) or
2.23.133.5.4.1.1 (TCG DICE DiceTcbInfo; Blackwell). Both are read as DER, strictly. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from cloister.errors import EndorsementError, FormatRefused

DEVICE_ROOT_NAME: Final = "NVIDIA Device Identity CA"
MANIFEST_ROOT_NAME: Final = "NVIDIA CoRIM signing Root CA"
COMPOSITE_DEVICE_ID: Final = x509.ObjectIdentifier("2.23.133.5.4.1")
DICE_TCB_INFO: Final = x509.ObjectIdentifier("2.23.133.5.4.1.1")
CHAIN_LENGTH: Final = 5

_LEAF: Final = re.compile(r"(?P<chip>[A-Z0-9_]{3,12}) [A-Z]\d\d [A-Z]{3,4} FMC LF")
_ARCHITECTURES: Final = (
    (re.compile(r"GH1\d\d"), "HOPPER"),
    (re.compile(r"GB[12]\d\d"), "BLACKWELL"),
    (re.compile(r"LS_?10"), "LS10"),
)
_BROM_SERIAL: Final = re.compile(r"[0-9A-F]{2}(?P<pdi>[0-9A-F]{16})")
_SHA384_OID: Final = bytes.fromhex("0609608648016503040202")
_SEQUENCE, _INTEGER, _OCTETS = 0x30, 0x02, 0x04
_FWIDS, _FLAGS = 0xA6, 0x87  # [6] IMPLICIT SEQUENCE OF FWID, [7] IMPLICIT OperationalFlags
_DEBUG_BIT: Final = 3  # OperationalFlags, DICE Attestation Architecture 1.1, 6.1.1
_CODE: Final = "tee.nvidia_gpu.chain"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceIdentity:
    """What the verified chain of a device says.

    Attributes:
        chip: as the certificates name it, without underscore (`GH100`, `LS10`).
        arch: `HOPPER`, `BLACKWELL` or `LS10`.
        pdi: identifier of the device, 8 bytes.
        fwids: SHA-384 of the firmware that was loaded, in the order of the certificate.
        flags: DICE operational flags, None in certificates that have none.
        names: common names of the chain, leaf first.
    """

    chip: str
    arch: str
    pdi: bytes
    fwids: tuple[bytes, ...]
    flags: bytes | None
    names: tuple[str, ...]

    @property
    def switch(self) -> bool:
        """Whether the device is a switch, not a GPU."""
        return self.arch == "LS10"

    @property
    def debug(self) -> bool:
        """Whether the flags say `debug`, in either order of the bits: a doubt about the order must not hide it."""
        if not self.flags:
            return False
        number, width = int.from_bytes(self.flags, "big"), 8 * len(self.flags)
        return bool(number >> (width - 1 - _DEBUG_BIT) & 1 or number >> _DEBUG_BIT & 1)


def common_name(certificate: x509.Certificate) -> str:
    """Return the common name; empty when there is none, or more than one."""
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if len(found) == 1 else ""


def names_a_device_key(certificate: x509.Certificate) -> bool:
    """Return whether the name is that of a device's attestation key."""
    return _LEAF.fullmatch(common_name(certificate)) is not None


def read_chip(leaf: x509.Certificate) -> tuple[str, str]:
    """Return chip (`GH100`) and architecture (`HOPPER`) that the name of a device's leaf says; it need not be verified.

    Raises:
        EndorsementError: the name is not that of a known device (`tee.nvidia_gpu.chain.role`).
    """
    found = _LEAF.fullmatch(common_name(leaf))
    arch = next((name for pattern, name in _ARCHITECTURES if found and pattern.fullmatch(found["chip"])), "")
    if found is None or not arch:
        raise _role("GH1xx, GB1xx, GB2xx or LS10", common_name(leaf))
    return found["chip"].replace("_", ""), arch


@lru_cache(maxsize=256)
def read_identity(path: tuple[x509.Certificate, ...]) -> DeviceIdentity:
    """Return what a verified path, leaf first, says of its device.

    Raises:
        EndorsementError: the path is not that of a known device (`tee.nvidia_gpu.chain.role`).
        FormatRefused: the firmware extension does not parse (`tee.nvidia_gpu.chain.dice`).
    """
    names = [common_name(certificate) for certificate in path]
    leaf = _LEAF.fullmatch(names[0])
    stem = names[0].removesuffix(" FMC LF")
    roles_hold = (
        leaf is not None
        and len(names) == CHAIN_LENGTH
        and names[1] == f"{stem} BROM"
        and re.fullmatch(r"NVIDIA [A-Z0-9_]+ Provisioner ICA \S+", names[2]) is not None
        and re.fullmatch(r"NVIDIA [A-Z0-9_]+ Identity", names[3]) is not None
        and names[4] == DEVICE_ROOT_NAME
    )
    if leaf is None or not roles_hold:
        raise _role("FMC LF < BROM < Provisioner ICA < Identity < Device Identity CA", " < ".join(names))
    chip, arch = read_chip(path[0])
    serial = path[1].subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)
    brom = _BROM_SERIAL.fullmatch(str(serial[0].value)) if len(serial) == 1 else None
    if brom is None:
        raise _role("a BROM with its identifier as serialNumber", "none, or of another form")
    fwids, flags = _read_dice(path[0])
    return DeviceIdentity(
        chip=chip,
        arch=arch,
        pdi=bytes.fromhex(brom["pdi"]),
        fwids=fwids,
        flags=flags,
        names=tuple(names),
    )


def require_root(roots: Sequence[x509.Certificate], name: str) -> list[x509.Certificate]:
    """Return those of `roots` that bear `name`: a root of one use never anchors a chain of another."""
    return [root for root in roots if common_name(root) == name]


def _read_dice(leaf: x509.Certificate) -> tuple[tuple[bytes, ...], bytes | None]:
    """Return firmware ids and flags. Of a leaf with both extensions, what both say."""
    found = {
        item.oid: item.value.value
        for item in leaf.extensions
        if item.oid in (COMPOSITE_DEVICE_ID, DICE_TCB_INFO) and isinstance(item.value, x509.UnrecognizedExtension)
    }
    if not found:
        raise _role("an extension with the firmware id (DICE)", "none")
    ids: list[tuple[bytes, ...]] = []
    flags: bytes | None = None
    if COMPOSITE_DEVICE_ID in found:
        ids.append((_composite_fwid(found[COMPOSITE_DEVICE_ID]),))
    if DICE_TCB_INFO in found:
        fwids, flags = _tcb_info(found[DICE_TCB_INFO])
        ids.append(fwids)
    return tuple(item for item in ids[0] if all(item in other for other in ids)), flags


def _composite_fwid(der: bytes) -> bytes:
    """CompositeDeviceID ::= SEQUENCE { version INTEGER, deviceID SubjectPublicKeyInfo, fwid FWID }."""
    items = _items(_only(der, _SEQUENCE))
    if [tag for tag, _ in items] != [_INTEGER, _SEQUENCE, _SEQUENCE]:
        raise _dice("not a CompositeDeviceID")
    return _fwid(items[2][1])


def _tcb_info(der: bytes) -> tuple[tuple[bytes, ...], bytes | None]:
    """DiceTcbInfo ::= SEQUENCE of context-tagged members, of which fwids [6] and flags [7] are read."""
    items = _items(_only(der, _SEQUENCE))
    tags = [tag for tag, _ in items]
    if len(set(tags)) != len(tags) or _FWIDS not in tags:
        raise _dice("not a DiceTcbInfo with firmware ids")
    members = dict(items)
    fwids = tuple(_fwid(content) for tag, content in _items(members[_FWIDS]) if tag == _SEQUENCE)
    bits = members.get(_FLAGS)
    if not fwids or (bits is not None and not 2 <= len(bits) <= 5):
        raise _dice("firmware ids or flags are not of a DiceTcbInfo")
    # What is zero was not measured: a zero in the record must match nothing.
    return tuple(item for item in fwids if any(item)), bits[1:] if bits is not None else None


def _fwid(content: bytes) -> bytes:
    """FWID ::= SEQUENCE { hashAlg OBJECT IDENTIFIER, digest OCTET STRING }."""
    if not content.startswith(_SHA384_OID):
        raise _dice("firmware id is not of SHA-384")
    digest = _only(content[len(_SHA384_OID) :], _OCTETS)
    if len(digest) != 48:
        raise _dice("firmware id is not of SHA-384")
    return digest


def _items(content: bytes) -> list[tuple[int, bytes]]:
    """Split DER into (tag, content); lengths up to two bytes, in their shortest form."""
    items: list[tuple[int, bytes]] = []
    offset = 0
    while offset < len(content):
        head = content[offset : offset + 4]
        if len(head) < 2 or head[0] & 0x1F == 0x1F:
            raise _dice("tag or length is cut or of several bytes")
        size, start = head[1], offset + 2
        if size & 0x80:
            width = size & 0x7F
            size, start = int.from_bytes(head[2 : 2 + width], "big"), start + width
            if width not in (1, 2) or len(head) < 2 + width or size < (0x80 if width == 1 else 0x100):
                raise _dice("length is not in its shortest form")
        if start + size > len(content):
            raise _dice("content is cut")
        items.append((head[0], content[start : start + size]))
        offset = start + size
    return items


def _only(der: bytes, tag: int) -> bytes:
    items = _items(der)
    if len(items) != 1 or items[0][0] != tag:
        raise _dice("another type than expected, or bytes behind it")
    return items[0][1]


def _role(expected: str, actual: str) -> EndorsementError:
    return EndorsementError(
        f"{_CODE}.role",
        "certificates are not those of a known NVIDIA device",
        path="certificate",
        expected=expected,
        actual=actual[:200],
    )


def _dice(message: str) -> FormatRefused:
    return FormatRefused(f"{_CODE}.dice", f"firmware id in the certificate: {message}", path="certificate")
