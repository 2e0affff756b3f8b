"""What OVMF itself extends into PCR 0, computed from its file.

Four events (TCG PC Client Platform Firmware Profile 1.06 section 3.3.4.1), as read from the log of real boots of OVMF
2025.02: the version text, the PEI volume, the DXE volume, the separator. Both volumes lie in one LZMA section of the
file (UEFI Platform Initialization 1.8, volume 3). The DXE volume is measured as it is in the file. The PEI volume is
measured from memory *after* its code ran, and differs from the file wherever that code keeps a variable: which bytes
these are is no property of the file's format, so they are recorded per firmware file in the image's definition. A
firmware without such a record is not predicted.
"""

from __future__ import annotations

import hashlib
import lzma
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from cloister.errors import FormatRefused

_LZMA_SECTION: Final = bytes.fromhex("98584eee143959429d6edc7bd79403cf")  # GUID EE4E5898-3914-4259-9D6E-DC7BD79403CF
_GUIDED_HEADER: Final = struct.Struct("<HH")  # data offset, attributes: after the common header and the GUID
_COMMON_HEADER_BYTES: Final = 4  # u24 size, u8 type
_EXTENDED_SIZE: Final = 0xFFFFFF
_FIRMWARE_VOLUME: Final = 0x17  # EFI_SECTION_FIRMWARE_VOLUME_IMAGE
_VOLUMES_BYTES: Final = 64 * 1024 * 1024
_SEPARATOR: Final = bytes(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryWrite:
    """Bytes that the PEI phase leaves at `offset` of its own volume before it measures that volume."""

    offset: int
    data: bytes


def firmware_digests(code: bytes, *, version: str, writes: Sequence[MemoryWrite]) -> tuple[bytes, ...]:
    """Return the digests of the four PCR 0 events of the OVMF file `code`, in order.

    Args:
        code: `OVMF_CODE.fd`.
        version: the firmware's version text (Debian: the package version).
        writes: what the PEI phase changes in its volume.

    Raises:
        FormatRefused: not an OVMF file, or a write outside the volume (`imagetool.measure.firmware`).
    """
    volumes = list(_volumes(_decompressed(code)))
    if len(volumes) != 2:
        raise _malformed(f"{len(volumes)} volumes where PEI and DXE are expected")
    pei, dxe = bytearray(volumes[0]), volumes[1]
    for write in writes:
        if write.offset < 0 or write.offset + len(write.data) > len(pei):
            raise _malformed("a recorded write is outside the PEI volume")
        pei[write.offset : write.offset + len(write.data)] = write.data
    text = version.encode("utf-16-le") + bytes(2)
    return tuple(hashlib.sha256(event).digest() for event in (text, bytes(pei), dxe, _SEPARATOR))


def _decompressed(code: bytes) -> bytes:
    at = code.find(_LZMA_SECTION)
    if at < _COMMON_HEADER_BYTES:
        raise _malformed("no LZMA section")
    size = int.from_bytes(code[at - 4 : at - 1], "little")
    try:
        offset, _ = _GUIDED_HEADER.unpack_from(code, at + len(_LZMA_SECTION))
        start = at - _COMMON_HEADER_BYTES
        reader = lzma.LZMADecompressor(format=lzma.FORMAT_ALONE)
        return reader.decompress(code[start + offset : start + size], max_length=_VOLUMES_BYTES)
    except (struct.error, lzma.LZMAError) as err:
        raise _malformed("LZMA section does not decompress") from err


def _volumes(sections: bytes) -> Iterator[bytes]:
    """Yield the firmware volumes among `sections`, which follow each other aligned to four bytes."""
    at = 0
    while at + _COMMON_HEADER_BYTES <= len(sections):
        size = int.from_bytes(sections[at : at + 3], "little")
        header = _COMMON_HEADER_BYTES
        if size == _EXTENDED_SIZE:
            size = int.from_bytes(sections[at + 4 : at + 8], "little")
            header += 4
        if size < header or at + size > len(sections):
            raise _malformed("section leaves the file")
        if sections[at + 3] == _FIRMWARE_VOLUME:
            yield sections[at + header : at + size]
        at += size + -size % 4


def _malformed(reason: str) -> FormatRefused:
    return FormatRefused("imagetool.measure.firmware", f"not an OVMF file that can be predicted: {reason}")
