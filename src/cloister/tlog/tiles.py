"""Tiles (C2SP tlog-tiles): addresses of pieces of a log, 256 hashes or entries each, that never change.

    checkpoint                      the newest checkpoint
    tile/<level>/<index>[.p/<w>]    hashes of tree level 8 * level; the last tile is partial, <w> of 256
    tile/entries/<index>[.p/<w>]    entries, each after its length (2 bytes, big-endian)

An index is written in groups of three digits, all but the last with an `x` before: 1234067 is `x001/x234/067`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from cloister.errors import FormatRefused
from cloister.tlog.merkle import HASH_BYTES, MAX_SIZE

HEIGHT: Final = 8
WIDTH: Final = 1 << HEIGHT
ENTRY_BYTES: Final = 2**16 - 1
ENTRIES: Final = -1
"""Level of a bundle of entries."""

_LEVELS: Final = 7  # 8 * 7 > 53 bits
_LENGTH_BYTES: Final = 2
_PATH: Final = re.compile(
    r"tile/(?P<level>entries|[0-6])/(?P<index>(?:x[0-9]{3}/){0,5}[0-9]{3})(?:\.p/(?P<width>[1-9][0-9]{0,2}))?"
)
_MALFORMED: Final = "tlog.tile.malformed"


class Tile(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One tile.

    Attributes:
        level: of tiles, 0 to 6; `ENTRIES` for a bundle of entries.
        index: position in its level.
        width: hashes or entries in it, 1 to 256.
    """

    level: int
    index: int
    width: int = WIDTH

    @property
    def first(self) -> int:
        """Index, in its level of the tree, of the first node in it."""
        return self.index * WIDTH

    def path(self) -> str:
        """Return its address below that of the log."""
        level = "entries" if self.level == ENTRIES else str(self.level)
        partial = "" if self.width == WIDTH else f".p/{self.width}"
        return f"tile/{level}/{_index_text(self.index)}{partial}"


def parse_tile_path(path: str) -> Tile:
    """Parse an address.

    Raises:
        FormatRefused: none of a tile, or not in its one form (`tlog.tile.malformed`).
    """
    match = _PATH.fullmatch(path)
    if match is None:
        raise FormatRefused(_MALFORMED, "not the address of a tile", actual=path[:60])
    level = ENTRIES if match["level"] == "entries" else int(match["level"])
    index = int(match["index"].replace("/", "").replace("x", ""))
    tile = Tile(level=level, index=index, width=int(match["width"] or WIDTH))
    if tile.path() != path or index * WIDTH > MAX_SIZE:
        raise FormatRefused(_MALFORMED, "not the address of a tile", actual=path[:60])
    return tile


def tiles_of(size: int, *, level: int) -> list[Tile]:
    """Return the tiles of one level of a log of `size` entries, the last one maybe partial."""
    nodes = size >> (HEIGHT * max(level, 0))
    full, rest = divmod(nodes, WIDTH)
    found = [Tile(level=level, index=index) for index in range(full)]
    return [*found, Tile(level=level, index=full, width=rest)] if rest else found


def levels_of(size: int) -> range:
    """Return the levels of tiles that a log of `size` entries has."""
    return range(sum(1 for level in range(_LEVELS) if size >> (HEIGHT * level)))


def parse_hashes(tile: Tile, data: bytes) -> list[bytes]:
    """Return the hashes in a tile.

    Raises:
        FormatRefused: not as many as its width (`tlog.tile.malformed`).
    """
    if len(data) != tile.width * HASH_BYTES:
        raise FormatRefused(_MALFORMED, "tile has the wrong length", path=tile.path())
    return [data[start : start + HASH_BYTES] for start in range(0, len(data), HASH_BYTES)]


def encode_entries(entries: Sequence[bytes]) -> bytes:
    """Return a bundle of entries.

    Raises:
        FormatRefused: an entry is too long (`tlog.tile.malformed`).
    """
    parts = []
    for entry in entries:
        if len(entry) > ENTRY_BYTES:
            raise FormatRefused(_MALFORMED, "entry is too long", expected=f"at most {ENTRY_BYTES} bytes")
        parts += [len(entry).to_bytes(_LENGTH_BYTES, "big"), entry]
    return b"".join(parts)


def parse_entries(tile: Tile, data: bytes) -> list[bytes]:
    """Return the entries in a bundle.

    Raises:
        FormatRefused: cut short, or not as many as its width (`tlog.tile.malformed`).
    """
    entries: list[bytes] = []
    place = 0
    while place < len(data) and len(entries) < tile.width:
        end = place + _LENGTH_BYTES + int.from_bytes(data[place : place + _LENGTH_BYTES], "big")
        entries.append(data[place + _LENGTH_BYTES : end])
        place = end
    if place != len(data) or len(entries) != tile.width:
        raise FormatRefused(_MALFORMED, "bundle of entries has the wrong length", path=tile.path())
    return entries


def _index_text(index: int) -> str:
    groups = [f"{index % 1000:03d}"]
    while index := index // 1000:
        groups.append(f"x{index % 1000:03d}")
    return "/".join(reversed(groups))
