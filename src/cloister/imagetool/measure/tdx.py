"""What a TDX module measures of a trust domain: MRTD from the firmware file, RTMR 1 and 2 from what it boots.

MRTD (Intel TDX Module Base Architecture Specification, measurement of the initial TD): SHA-384 over one 128-byte
record per page that the hypervisor adds (`MEM.PAGE.ADD` and the address) and, for measured pages, per 256 bytes
(`MR.EXTEND`, the address, the content). Which pages those are says the metadata in the firmware (TDX Virtual Firmware
Design Guide, section 11), found through the table of GUIDs at the end of the file. The order is the hypervisor's: Linux
adds and extends page by page; some older ones add a whole section first.

RTMR 1 and 2 follow from the unified kernel image, as PCR 4, 9 and 11 do under the same firmware, stub and kernel: PCR
2 to 6 are RTMR 1, PCR 8 to 15 RTMR 2 (UEFI 2.10 section 38.4.1), by SHA-384, and RTMR 1 ends with two records of
leaving the boot services. RTMR 0 is not predicted: it holds tables that the hypervisor makes (memory map, ACPI).
Nothing here was compared with hardware; docs/howto/predict-measurements.md says with what it was.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from cloister.errors import FormatRefused
from cloister.imagetool.measure.events import BootEvent, replay_events
from cloister.imagetool.measure.uki import uki_events
from cloister.wire.limits import FIRMWARE_BYTES, FIRMWARE_MEMORY_BYTES, FIRMWARE_SECTIONS

ALGORITHM: Final = "sha384"
INITIAL: Final = bytes(48)
EXIT_ACTIONS: Final = (b"Exit Boot Services Invocation", b"Exit Boot Services Returned with Success")
_PAGE: Final = 4096
_CHUNK: Final = 256
_TABLE_END: Final = 32  # the table of GUIDs ends this far before the end of the file
_FOOTER: Final = bytes.fromhex("de82b596b21ff745baeaa366c55a082d")  # GUID 96b582de-1fb2-45f7-baea-a366c55a082d
_METADATA: Final = bytes.fromhex("35657ae44a989847865e4685a7bf8ec2")  # GUID e47a6535-984a-4798-865e-4685a7bf8ec2
_ENTRY: Final = struct.Struct("<H16s")  # length of the entry, GUID: behind the entry's data
_DESCRIPTOR: Final = struct.Struct("<4sIII")  # signature, length, version, number of sections
_SECTION: Final = struct.Struct("<IIQQII")
_EXTEND_MR: Final = 0x1  # attribute: the content is measured
_PAGE_AUG: Final = 0x2  # attribute: the guest itself accepts the pages later


class PageOrder(enum.StrEnum):
    """In which order the hypervisor adds and extends the pages of a section."""

    PAGE = "page"  # each page is added, then extended: Linux' KVM
    SECTION = "section"  # all pages of a section are added, then all extended


class SectionKind(enum.IntEnum):
    """Types of a section (TDX Virtual Firmware Design Guide, table 11-3)."""

    BFV = 0
    CFV = 1
    TD_HOB = 2
    TEMPORARY = 3
    PERMANENT = 4
    PAYLOAD = 5
    PAYLOAD_PARAMETER = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class TDVFSection:
    """One section of the metadata; offsets and sizes in bytes."""

    file_offset: int
    file_bytes: int
    address: int
    memory_bytes: int
    kind: SectionKind
    attributes: int


def parse_tdvf(firmware: bytes) -> tuple[TDVFSection, ...]:
    """Return the sections that the metadata of a TDX firmware file lists.

    Raises:
        FormatRefused: no metadata, or a section that leaves the file or is not made of pages
            (`imagetool.tdx.firmware`).
    """
    if len(firmware) > FIRMWARE_BYTES:
        raise _malformed(f"longer than {FIRMWARE_BYTES} bytes")
    try:
        start = len(firmware) - _metadata_distance(firmware)
        if start < 0:
            raise _malformed("metadata lies outside the file")
        signature, length, version, count = _DESCRIPTOR.unpack_from(firmware, start)
        if signature != b"TDVF" or version != 1:
            raise _malformed("no metadata of version 1 where the table points")
        if not 0 < count <= FIRMWARE_SECTIONS or length != _DESCRIPTOR.size + count * _SECTION.size:
            raise _malformed(f"impossible number of sections: {count}")
        first = start + _DESCRIPTOR.size
        sections = tuple(_section(firmware, first + number * _SECTION.size) for number in range(count))
    except struct.error as err:
        raise _malformed("metadata is cut off") from err
    if sum(section.memory_bytes for section in sections) > FIRMWARE_MEMORY_BYTES:
        raise _malformed(f"sections take more than {FIRMWARE_MEMORY_BYTES} bytes of memory")
    return sections


def mrtd(firmware: bytes, *, order: PageOrder = PageOrder.PAGE) -> bytes:
    """Return MRTD (48 bytes) of a trust domain that was built from this firmware file.

    Raises:
        FormatRefused: as `parse_tdvf`.
    """
    digest = hashlib.sha384()
    for section in parse_tdvf(firmware):
        added = [] if section.attributes & _PAGE_AUG else [_record(b"MEM.PAGE.ADD", page) for page in _pages(section)]
        content = firmware[section.file_offset : section.file_offset + section.file_bytes]
        measured = bool(section.attributes & _EXTEND_MR)
        if order is PageOrder.SECTION:
            digest.update(b"".join(added))
        for number, page in enumerate(_pages(section)):
            if order is PageOrder.PAGE and added:
                digest.update(added[number])
            if measured:
                data = content[number * _PAGE : (number + 1) * _PAGE].ljust(_PAGE, b"\0")
                for offset in range(0, _PAGE, _CHUNK):
                    digest.update(_record(b"MR.EXTEND", page + offset) + data[offset : offset + _CHUNK])
    return digest.digest()


def runtime_events(uki: bytes, *, algorithm: str = ALGORITHM) -> Mapping[str, tuple[BootEvent, ...]]:
    """Return the events of `rtmr1` and `rtmr2` of a trust domain that boots the unified kernel image `uki`.

    Raises:
        FormatRefused: as `cloister.imagetool.measure.uki.uki_events`.
    """
    events = uki_events(uki, algorithm=algorithm)
    leaving = tuple(
        BootEvent(name=action.decode("ascii"), digest=hashlib.new(algorithm, action).digest())
        for action in EXIT_ACTIONS
    )
    return {"rtmr1": events["pcr04"] + leaving, "rtmr2": events["pcr11"] + events["pcr09"]}


def runtime_registers(uki: bytes) -> Mapping[str, bytes]:
    """Return `rtmr1` and `rtmr2` (48 bytes each), see `runtime_events`."""
    return {
        name: replay_events(events, start=INITIAL, algorithm=ALGORITHM) for name, events in runtime_events(uki).items()
    }


def _metadata_distance(firmware: bytes) -> int:
    """Return how far before the end of the file the metadata begins, from the table of GUIDs."""
    end = len(firmware) - _TABLE_END - _ENTRY.size
    if end < 0:
        raise _malformed("no table of GUIDs")
    size, guid = _ENTRY.unpack_from(firmware, end)
    if guid != _FOOTER or not _ENTRY.size <= size <= end + _ENTRY.size:
        raise _malformed("no table of GUIDs")
    at, begin = end, end + _ENTRY.size - size
    while at - _ENTRY.size >= begin:
        length, guid = _ENTRY.unpack_from(firmware, at - _ENTRY.size)
        if not _ENTRY.size <= length <= at - begin:
            raise _malformed("an entry leaves the table of GUIDs")
        if guid == _METADATA:
            if length != _ENTRY.size + 4:
                raise _malformed("entry of the metadata has another size")
            return int.from_bytes(firmware[at - length : at - length + 4], "little")
        at -= length
    raise _malformed("no TDX metadata: it is not built for TDX")


def _section(firmware: bytes, offset: int) -> TDVFSection:
    file_offset, file_bytes, address, memory_bytes, kind, attributes = _SECTION.unpack_from(firmware, offset)
    if file_offset + file_bytes > len(firmware) or file_bytes > memory_bytes:
        raise _malformed("section leaves the file or its memory")
    if address % _PAGE or memory_bytes % _PAGE or address + memory_bytes > 1 << 52:
        raise _malformed("section is not made of pages")
    if kind not in SectionKind.__members__.values() or attributes & ~(_EXTEND_MR | _PAGE_AUG):
        raise _malformed(f"section of unknown kind {kind} or attributes {attributes:#x}")
    if attributes & _EXTEND_MR and attributes & _PAGE_AUG:
        raise _malformed("a section cannot be measured and added later")
    return TDVFSection(
        file_offset=file_offset,
        file_bytes=file_bytes,
        address=address,
        memory_bytes=memory_bytes,
        kind=SectionKind(kind),
        attributes=attributes,
    )


def _pages(section: TDVFSection) -> Iterator[int]:
    return iter(range(section.address, section.address + section.memory_bytes, _PAGE))


def _record(name: bytes, address: int) -> bytes:
    """Return the 128 bytes that one leaf of the TDX module extends: its name, and the address at offset 16."""
    return name.ljust(16, b"\0") + address.to_bytes(8, "little") + bytes(104)


def _malformed(reason: str) -> FormatRefused:
    return FormatRefused("imagetool.tdx.firmware", f"not a firmware for TDX: {reason}", path="ovmf")
