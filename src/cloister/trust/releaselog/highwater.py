"""The high-water mark: the largest size of the log that was ever committed here, with its root, in a file of its own.

A database restored from an old backup is shorter than the mark beside it. The mark is written after each commit, in
place and without a sync: what it protects against is somebody's restore, not a power cut, after which an older mark is
merely weaker. Two slots are written in turn, so that a torn write leaves the other. A state directory restored whole
takes its mark along; against that there are witnesses.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.errors import Unavailable
from cloister.tlog.merkle import EMPTY_ROOT, HASH_BYTES

NAME: Final = "log.highwater"
_SLOT: Final = struct.Struct(f">Q{HASH_BYTES}s{HASH_BYTES}s")  # size, root, SHA-256 of both
_SLOT_PLACES: Final = (0, 4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Size and root of the log at some time."""

    size: int = 0
    root: bytes = EMPTY_ROOT


class HighWater:
    """The file of one state directory.

    Args:
        directory: the private state directory.

    Raises:
        Unavailable: it cannot be made (`trust.releaselog.highwater`).
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / NAME
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as err:
            raise self._failed(err) from err

    def read(self) -> Mark:
        """Return the mark; of size 0 before the first.

        Raises:
            Unavailable: it cannot be read.
        """
        return max((mark for mark, _ in self._slots()), key=lambda mark: mark.size)

    def raise_to(self, mark: Mark) -> None:
        """Store `mark` unless a higher one is there.

        Raises:
            Unavailable: it cannot be written.
        """
        self._store(mark, lower=False)

    def reset(self, mark: Mark) -> None:
        """Store `mark` in place of a higher one: a witness has said that nothing was lost.

        Raises:
            Unavailable: it cannot be written.
        """
        self._store(mark, lower=True)

    def close(self) -> None:
        """Close the file; harmless twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _store(self, mark: Mark, *, lower: bool) -> None:
        head = mark.size.to_bytes(8, "big") + mark.root
        data = _SLOT.pack(mark.size, mark.root, hashlib.sha256(head).digest())
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            try:
                slots = sorted(self._slots(), key=lambda slot: slot[0].size)
                if lower:
                    for place in _SLOT_PLACES:
                        os.pwrite(self._descriptor, data, place)
                elif mark.size > slots[-1][0].size:
                    os.pwrite(self._descriptor, data, slots[0][1])
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        except OSError as err:
            raise self._failed(err) from err

    def _slots(self) -> list[tuple[Mark, int]]:
        try:
            whole = os.pread(self._descriptor, _SLOT_PLACES[-1] + _SLOT.size, 0)
        except OSError as err:
            raise self._failed(err) from err
        found = []
        for place in _SLOT_PLACES:
            data, mark = whole[place : place + _SLOT.size], Mark()
            if len(data) == _SLOT.size:
                size, root, check = _SLOT.unpack(data)
                if hashlib.sha256(data[: 8 + HASH_BYTES]).digest() == check:
                    mark = Mark(size=size, root=root)
            found.append((mark, place))
        return found

    def _failed(self, err: OSError) -> Unavailable:
        return Unavailable(
            "trust.releaselog.highwater",
            f"the log's high-water mark cannot be used: {err.strerror}",
            path=str(self._path),
        )
