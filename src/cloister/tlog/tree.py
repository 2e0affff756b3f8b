"""Making trees and proofs: compact ranges, and ranges of entries that proofs are the hashes of.

A node is named by level and index: (0, i) is the hash of entry i, (l, i) covers entries i*2**l to (i+1)*2**l. Only
complete subtrees are nodes; any other range of RFC 6962's recursion is hashed from them. So whoever keeps the nodes,
a database or a set of tiles, can make every root and every proof of every size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from cloister.tlog.merkle import EMPTY_ROOT, node_hash

Node = tuple[int, int]
Range = tuple[int, int]
Read = Callable[[int, int], bytes]
"""Level and index to hash."""

_FIRST: Final = 0


class CompactRange(msgspec.Struct, kw_only=True):
    """The tree of `size` entries, by its complete subtrees from left to right: what it takes to go on.

    Attributes:
        size: entries.
        hashes: one per bit that is set in `size`, largest subtree first.
    """

    size: int = 0
    hashes: list[bytes] = msgspec.field(default_factory=list)

    def append(self, leaf: bytes) -> list[tuple[Node, bytes]]:
        """Add an entry by its leaf hash; return the nodes that became complete, the leaf first."""
        level, index, running = 0, self.size, leaf
        made = [((level, index), running)]
        while index & 1:
            running = node_hash(self.hashes.pop(), running)
            level, index = level + 1, index >> 1
            made.append(((level, index), running))
        self.hashes.append(running)
        self.size += 1
        return made

    def root(self) -> bytes:
        """Return the root of the tree."""
        if not self.hashes:
            return EMPTY_ROOT
        running = self.hashes[-1]
        for left in reversed(self.hashes[:-1]):
            running = node_hash(left, running)
        return running

    def nodes(self) -> list[tuple[Node, bytes]]:
        """Return the complete subtrees with their names."""
        return list(zip(nodes_of((_FIRST, self.size)), self.hashes, strict=True))

    def copy(self) -> CompactRange:
        """Return one that goes its own way."""
        return CompactRange(size=self.size, hashes=list(self.hashes))


def nodes_of(wanted: Range) -> list[Node]:
    """Return the largest complete subtrees that make up entries `wanted`, from left to right."""
    low, high = wanted
    found = []
    while low < high:
        room = (high - low).bit_length() - 1
        level = room if low == 0 else min(room, (low & -low).bit_length() - 1)
        found.append((level, low >> level))
        low += 1 << level
    return found


def hash_of(wanted: Range, read: Read) -> bytes:
    """Return the hash of entries `wanted`, as RFC 6962 defines it for a list of them (MTH)."""
    low, high = wanted
    size = high - low
    if size == 0:
        return EMPTY_ROOT
    if size & (size - 1) == 0 and low % size == 0:
        level = size.bit_length() - 1
        return read(level, low >> level)
    middle = low + _largest_power_below(size)
    return node_hash(hash_of((low, middle), read), hash_of((middle, high), read))


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """Return the ranges whose hashes are the inclusion proof (RFC 6962, section 2.1.1), leaf to root."""
    if not 0 <= index < size:
        raise ValueError("no such entry")
    low, high, found = 0, size, []
    while high - low > 1:
        middle = low + _largest_power_below(high - low)
        if index < middle:
            found.append((middle, high))
            high = middle
        else:
            found.append((low, middle))
            low = middle
    return found[::-1]


def consistency_ranges(old: int, new: int) -> list[Range]:
    """Return the ranges whose hashes are the consistency proof (RFC 6962, section 2.1.2), in its order."""
    if not 0 <= old <= new:
        raise ValueError("a tree does not become smaller")
    if old in (0, new):
        return []
    low, high, found, whole = 0, new, [], True
    while old != high:
        middle = low + _largest_power_below(high - low)
        if old <= middle:
            found.append((middle, high))
            high = middle
        else:
            found.append((low, middle))
            low, whole = middle, False
    if not whole:
        found.append((low, high))
    return found[::-1]


def nodes_for(ranges: Iterable[Range]) -> set[Node]:
    """Return every node that hashing these ranges reads, so that they can be fetched at once."""
    return {node for wanted in ranges for node in nodes_of(wanted)}


def prove(ranges: Iterable[Range], read: Read) -> list[bytes]:
    """Return the proof that `inclusion_ranges` or `consistency_ranges` describe."""
    return [hash_of(wanted, read) for wanted in ranges]


def _largest_power_below(size: int) -> int:
    return 1 << ((size - 1).bit_length() - 1)
