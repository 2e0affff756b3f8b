"""Just enough of ELF-64 little-endian (System V gABI, chapters 4 and 5) to ask two questions about a file.

Which shared libraries does it need, and what does a named section hold. Input comes from packages whose hash is
locked; a file that does not follow the format is refused all the same.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cloister.errors import FormatRefused

MAGIC: Final = b"\x7fELF"
_HEADER: Final = struct.Struct("<4sBBBB8xHHIQQQIHHHHHH")  # Elf64_Ehdr, figure 4-3
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")  # Elf64_Shdr, figure 4-8
_DYNAMIC: Final = struct.Struct("<qQ")  # Elf64_Dyn, figure 5-9
_CLASS_64: Final = 2
_LITTLE_ENDIAN: Final = 1
_SHT_DYNAMIC: Final = 6
_SHT_NOBITS: Final = 8
_DT_NULL: Final = 0
_DT_NEEDED: Final = 1
_MAX_SECTIONS: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One section: index into the name table, type, content bounds, index of the linked section."""

    name: int
    kind: int
    offset: int
    size: int
    link: int


def needed_libraries(data: bytes) -> tuple[str, ...]:
    """Return the DT_NEEDED names of an ELF file, in order; none for a static one.

    Raises:
        FormatRefused: not ELF-64, or a structure leaves the file (`imagetool.elf.malformed`).
    """
    sections = _sections(data)
    names = []
    for section in sections:
        if section.kind != _SHT_DYNAMIC:
            continue
        if section.link >= len(sections):
            raise _malformed("dynamic section links to no string table")
        strings = _content(data, sections[section.link])
        for tag, value in _dynamic_entries(_content(data, section)):
            if tag == _DT_NEEDED:
                names.append(_text(strings, value))
    return tuple(names)


def section_content(data: bytes, name: str) -> bytes:
    """Return the content of the section called `name`.

    Raises:
        FormatRefused: not ELF-64, no such section, or it leaves the file (`imagetool.elf.malformed`).
    """
    sections = _sections(data)
    index = _HEADER.unpack_from(data)[-1]
    if index >= len(sections):
        raise _malformed("no section name table")
    strings = _content(data, sections[index])
    for section in sections:
        if _text(strings, section.name) == name:
            return _content(data, section)
    raise _malformed(f"no section {name}")


def _sections(data: bytes) -> list[Section]:
    if len(data) < _HEADER.size:
        raise _malformed("shorter than a header")
    fields = _HEADER.unpack_from(data)
    magic, file_class, encoding = fields[:3]
    offset, entry_bytes, count = fields[10], fields[15], fields[16]
    if magic != MAGIC or file_class != _CLASS_64 or encoding != _LITTLE_ENDIAN:
        raise _malformed("not ELF-64 little-endian")
    if count > _MAX_SECTIONS or (count and entry_bytes != _SECTION.size) or offset + count * _SECTION.size > len(data):
        raise _malformed("section table leaves the file")
    found = []
    for number in range(count):
        name, kind, _, _, start, size, link, _, _, _ = _SECTION.unpack_from(data, offset + number * _SECTION.size)
        found.append(Section(name=name, kind=kind, offset=start, size=size, link=link))
    return found


def _content(data: bytes, section: Section) -> bytes:
    if section.kind == _SHT_NOBITS:
        return b""
    if section.offset + section.size > len(data):
        raise _malformed("section leaves the file")
    return data[section.offset : section.offset + section.size]


def _dynamic_entries(content: bytes) -> Iterator[tuple[int, int]]:
    for offset in range(0, len(content) - _DYNAMIC.size + 1, _DYNAMIC.size):
        tag, value = _DYNAMIC.unpack_from(content, offset)
        if tag == _DT_NULL:
            return
        yield tag, value


def _text(strings: bytes, offset: int) -> str:
    end = strings.find(b"\0", offset)
    if offset >= len(strings) or end < 0:
        raise _malformed("name leaves its string table")
    try:
        return strings[offset:end].decode("ascii")
    except UnicodeDecodeError as err:
        raise _malformed("name is not ASCII") from err


def _malformed(reason: str) -> FormatRefused:
    return FormatRefused("imagetool.elf.malformed", f"not an ELF file that can be used: {reason}")
