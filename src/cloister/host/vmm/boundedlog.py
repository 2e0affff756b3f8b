"""What a guest or a child process writes, kept in bounds: they decide what and how much, the host keeps little.

The first megabytes go to a file as they come; of the rest only the newest part is kept and appended at the end.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from cloister.wire.limits import KIB, MIB

HEAD_BYTES: Final = 4 * MIB
TAIL_BYTES: Final = 64 * KIB
_SHOWN_CHARS: Final = 200


class BoundedLog:
    """A log file of at most `HEAD_BYTES + TAIL_BYTES` and one line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb", buffering=0)
        self._written = 0
        self._dropped = 0
        self._tail = bytearray()

    def write(self, data: bytes) -> None:
        """Take bytes. A full disk loses them; it does not end a pod."""
        self._tail += data
        del self._tail[: max(0, len(self._tail) - TAIL_BYTES)]
        head = data[: HEAD_BYTES - self._written]
        with contextlib.suppress(OSError):
            self._file.write(head)
        self._written += len(head)
        self._dropped += len(data) - len(head)

    def tail(self) -> bytes:
        """Return the newest bytes, at most `TAIL_BYTES`."""
        return bytes(self._tail)

    def last_line(self) -> str:
        """Return the last line with text, printable and short; empty when there is none."""
        lines = self._tail.decode("ascii", errors="replace").splitlines()
        text = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return "".join(char if char.isprintable() else "?" for char in text)[:_SHOWN_CHARS]

    def close(self) -> None:
        """Append what was kept of the rest and close the file; further calls do nothing."""
        if self._file.closed:
            return
        kept = self._tail[-min(self._dropped, TAIL_BYTES) :] if self._dropped else b""
        with contextlib.suppress(OSError):
            if kept:
                self._file.write(b"\n[cloister: %d bytes left out]\n" % (self._dropped - len(kept)) + kept)
        self._file.close()
