"""Reading and extending PE32+ images (Microsoft PE Format): what measuring and building a unified kernel image needs.

Reads headers and section table, appends sections; knows nothing of code, imports or relocations.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cloister.errors import FormatRefused

_MAX_IMAGE: Final = 1 << 31
_MAX_SECTIONS: Final = 96  # the ceiling of the PE loader
_MAX_FILE_ALIGNMENT: Final = 64 * 1024  # the format's own ceiling; each appended section is padded to it
_PE_POINTER: Final = 0x3C
_COFF_BYTES: Final = 20
_PE32_PLUS: Final = 0x20B
_OPTIONAL_CHECKSUM: Final = 64
_OPTIONAL_DIRECTORIES: Final = 112
_CERTIFICATE_DIRECTORY: Final = 4
_SECTION: Final = struct.Struct("<8sIIIIIIHHI")  # section header, 40 bytes
_READABLE_DATA: Final = 0x40000040  # IMAGE_SCN_MEM_READ | IMAGE_SCN_CNT_INITIALIZED_DATA


@dataclass(frozen=True, slots=True, kw_only=True)
class PESection:
    """One section: `content` is its file bytes up to the smaller of file and memory size, as a loader sees it."""

    name: str
    memory_offset: int
    memory_bytes: int
    file_offset: int
    file_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PEImage:
    """Where things are in a PE32+ file; all offsets and sizes in bytes."""

    optional_offset: int
    section_table_offset: int
    headers_bytes: int
    checksum_offset: int
    certificate_entry_offset: int
    certificate_bytes: int
    file_alignment: int
    section_alignment: int
    sections: tuple[PESection, ...]


def parse_pe(data: bytes) -> PEImage:
    """Parse headers and section table.

    Raises:
        FormatRefused: not PE32+, or a structure leaves the file (`imagetool.pe.malformed`).
    """
    try:
        return _parse(data)
    except struct.error as err:
        raise _malformed("headers are cut off") from err


def section_content(data: bytes, name: str) -> bytes:
    """Return the content of section `name` as it lies in memory, without alignment padding.

    Raises:
        FormatRefused: not PE32+, or no such section (`imagetool.pe.malformed`).
    """
    for section in parse_pe(data).sections:
        if section.name == name:
            length = min(section.memory_bytes, section.file_bytes)
            return data[section.file_offset : section.file_offset + length]
    raise _malformed(f"no section {name}")


def append_sections(data: bytes, added: Sequence[tuple[str, bytes]]) -> bytes:
    """Return the image with read-only data sections appended, in the given order, after its last section.

    Raises:
        FormatRefused: not PE32+, signed, no room left in the headers, a bad name, or sizes beyond what a header can say
            (`imagetool.pe.malformed`).
    """
    try:
        return _append(parse_pe(data), data, added)
    except struct.error as err:
        raise _malformed("sizes or addresses do not fit the headers") from err


def _append(image: PEImage, data: bytes, added: Sequence[tuple[str, bytes]]) -> bytes:
    if image.certificate_bytes:
        raise _malformed("a signed image cannot be extended")
    table_end = image.section_table_offset + (len(image.sections) + len(added)) * _SECTION.size
    if table_end > image.headers_bytes or len(image.sections) + len(added) > _MAX_SECTIONS:
        raise _malformed("no room for more section headers")
    file_end = max(section.file_offset + section.file_bytes for section in image.sections)
    memory_end = max(section.memory_offset + section.memory_bytes for section in image.sections)
    out = bytearray(data[:file_end])
    for number, (name, content) in enumerate(added, len(image.sections)):
        out += bytes(-len(out) % image.file_alignment)
        memory_end += -memory_end % image.section_alignment
        file_bytes = len(content) + -len(content) % image.file_alignment
        header = _SECTION.pack(
            _encoded_name(name), len(content), memory_end, file_bytes, len(out), 0, 0, 0, 0, _READABLE_DATA
        )
        start = image.section_table_offset + number * _SECTION.size
        if any(out[start : start + _SECTION.size]):
            raise _malformed("no room for more section headers")
        out[start : start + _SECTION.size] = header
        out += content + bytes(file_bytes - len(content))
        memory_end += len(content)
    _patch_headers(out, image, len(image.sections) + len(added), memory_end)
    return bytes(out)


def _patch_headers(out: bytearray, image: PEImage, sections: int, memory_end: int) -> None:
    struct.pack_into("<H", out, image.optional_offset - _COFF_BYTES + 2, sections)
    added = sum(_SECTION.unpack_from(out, image.section_table_offset + n * _SECTION.size)[3] for n in range(sections))
    kept = sum(section.file_bytes for section in image.sections)
    (initialized,) = struct.unpack_from("<I", out, image.optional_offset + 8)
    struct.pack_into("<I", out, image.optional_offset + 8, initialized + added - kept)
    struct.pack_into("<I", out, image.optional_offset + 56, memory_end + -memory_end % image.section_alignment)
    struct.pack_into("<I", out, image.checksum_offset, 0)


def _parse(data: bytes) -> PEImage:
    if len(data) > _MAX_IMAGE or data[:2] != b"MZ":
        raise _malformed("no DOS header")
    (pe_offset,) = struct.unpack_from("<I", data, _PE_POINTER)
    if data[pe_offset : pe_offset + 4] != b"PE\0\0":
        raise _malformed("no PE signature")
    _, count, _, _, _, optional_bytes, _ = struct.unpack_from("<HHIIIHH", data, pe_offset + 4)
    optional = pe_offset + 4 + _COFF_BYTES
    (magic,) = struct.unpack_from("<H", data, optional)
    if magic != _PE32_PLUS:
        raise _malformed("not PE32+")
    section_alignment, file_alignment = struct.unpack_from("<II", data, optional + 32)
    (headers_bytes,) = struct.unpack_from("<I", data, optional + 60)
    (directories,) = struct.unpack_from("<I", data, optional + 108)
    if directories <= _CERTIFICATE_DIRECTORY or count > _MAX_SECTIONS or not section_alignment:
        raise _malformed("headers are not those of a UEFI program")
    if not 0 < file_alignment <= _MAX_FILE_ALIGNMENT:
        raise _malformed(f"file alignment of {file_alignment} bytes: expected 1 to {_MAX_FILE_ALIGNMENT}")
    certificate_entry = optional + _OPTIONAL_DIRECTORIES + _CERTIFICATE_DIRECTORY * 8
    _, certificate_bytes = struct.unpack_from("<II", data, certificate_entry)
    table = optional + optional_bytes
    sections = tuple(_section(data, table + number * _SECTION.size) for number in range(count))
    if not sections or headers_bytes > len(data) or table + count * _SECTION.size > headers_bytes:
        raise _malformed("headers leave the file")
    return PEImage(
        optional_offset=optional,
        section_table_offset=table,
        headers_bytes=headers_bytes,
        checksum_offset=optional + _OPTIONAL_CHECKSUM,
        certificate_entry_offset=certificate_entry,
        certificate_bytes=certificate_bytes,
        file_alignment=file_alignment,
        section_alignment=section_alignment,
        sections=sections,
    )


def _section(data: bytes, offset: int) -> PESection:
    name, memory_bytes, memory_offset, file_bytes, file_offset, *_ = _SECTION.unpack_from(data, offset)
    if file_offset + file_bytes > len(data):
        raise _malformed("section leaves the file")
    return PESection(
        name=name.rstrip(b"\0").decode("latin-1"),
        memory_offset=memory_offset,
        memory_bytes=memory_bytes,
        file_offset=file_offset,
        file_bytes=file_bytes,
    )


def _encoded_name(name: str) -> bytes:
    encoded = name.encode("ascii")
    if not 0 < len(encoded) <= 8:
        raise _malformed("section name is not 1 to 8 characters")
    return encoded


def _malformed(reason: str) -> FormatRefused:
    return FormatRefused("imagetool.pe.malformed", f"not a PE image that can be used: {reason}")
