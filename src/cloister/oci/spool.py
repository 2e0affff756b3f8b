"""Where a layer's ciphertext waits between its arrival and its use: in memory, or sealed on a disk that nobody trusts.

A spool takes whole chunks of `CHUNK_BYTES`, only the last one may be shorter, and gives them back by number, also
while more arrive. It is written once and has no name. `MemorySpool` gives room back while it is read for the last time,
so that a layer's ciphertext goes as its files come.

`SealedSpool` is for a disk that others can read and write (docs/decisions/0025-spools-and-root-images.md): every
chunk is AES-256-GCM under a key that exists in this process only and seals one spool, the chunk's number is the
nonce. So a chunk that was changed, moved, or put back from another spool does not open, and no number can be used
twice: the check is made before a byte of the chunk is used, and again each time it is read. What is sealed is
ciphertext of the image already; sealing it again is cheaper than hashing it. Trusts nobody.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from cloister.crypto.aead import AES256_KEY_BYTES, GCM_NONCE_BYTES, GCM_TAG_BYTES, open_aes256gcm, seal_aes256gcm
from cloister.errors import ImageRefused, Refused, Unavailable, detached
from cloister.wire.limits import KIB, MIB

CHUNK_BYTES: Final = 256 * KIB
SEALED_CHUNK_BYTES: Final = CHUNK_BYTES + GCM_TAG_BYTES
_RELEASED_CHUNKS: Final = 4 * MIB // CHUNK_BYTES  # at once

if TYPE_CHECKING:  # making a protocol is a visible part of a guest's cold start
    from io import FileIO
    from typing import Protocol

    class SpoolFile(Protocol):
        """What a spool needs of a file: it seeks to the beginning of a chunk before it writes or reads one."""

        @property
        def closed(self) -> bool:
            """Whether it is."""
            ...

        def seek(self, offset: int, /) -> int:
            """Go to `offset`."""
            ...

        def write(self, data: memoryview, /) -> int:
            """Write and return how many bytes were."""
            ...

        def read(self, size: int, /) -> bytes:
            """Return at most `size` bytes; nothing is the end."""
            ...

        def close(self) -> None:
            """Give the room back."""
            ...


class Spool:
    """Chunks in an empty file that this process alone reaches. Used from several threads.

    Args:
        file: where they lie; closed by `close`.
    """

    _overhead = 0

    def __init__(self, file: SpoolFile) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._size = 0
        self._chunks = 0
        self._because: BaseException | None = None

    def append(self, chunk: bytes) -> None:
        """Keep the next chunk.

        Raises:
            Unavailable: `oci.spool.full`, or what `close` was told.
        """
        if not chunk or len(chunk) > CHUNK_BYTES or self._size != self._chunks * CHUNK_BYTES:
            raise RuntimeError("a spool takes whole chunks, and one shorter one at the end")
        with self._lock:
            self._require_open()
            stored = memoryview(self._to_store(self._chunks, chunk))
            try:
                self._file.seek(self._chunks * (CHUNK_BYTES + self._overhead))
                while stored:
                    stored = stored[self._file.write(stored) :]
            except OSError as err:
                raise Unavailable(
                    "oci.spool.full",
                    "no space left for the image's layers",
                    hint="give the pod VM more memory or a scratch disk",
                ) from err
        self._size += len(chunk)
        self._chunks += 1

    def chunk(self, index: int) -> bytes:
        """Return chunk `index`, one that was appended.

        Raises:
            ImageRefused: `oci.spool.changed`.
            Unavailable: `oci.spool.unreadable`, or what `close` was told.
        """
        size = min(CHUNK_BYTES, self._size - index * CHUNK_BYTES) + self._overhead
        pieces = []
        with self._lock:
            self._require_open()
            try:
                self._file.seek(index * (CHUNK_BYTES + self._overhead))
                while size and (piece := self._file.read(size)):
                    pieces.append(piece)
                    size -= len(piece)
            except OSError as err:
                raise Unavailable("oci.spool.unreadable", "scratch disk cannot be read", path=f"chunk {index}") from err
            return self._from_store(index, pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def release(self, end: int) -> None:
        """Take notice that no chunk below `end` is asked for any more."""

    def close(self, because: BaseException | None = None) -> None:
        """Give the room back; a thread that still wants something of it gets `because`."""
        with self._lock:
            self._because = self._because or because
            self._file.close()

    def _require_open(self) -> None:
        if self._file.closed:
            raise detached(self._because or RuntimeError("a closed spool is used"))

    def _to_store(self, index: int, chunk: bytes) -> bytes:
        return chunk

    def _from_store(self, index: int, stored: bytes) -> bytes:
        return stored


class MemorySpool(Spool):
    """Chunks in an empty file of a memory file system; `release` gives their memory back.

    Args:
        file: where they lie; closed by `close`.
    """

    def __init__(self, file: FileIO) -> None:
        super().__init__(file)
        self._fd = file.fileno()
        self._released = 0

    def chunk(self, index: int) -> bytes:
        """Return chunk `index`; see `Spool.chunk`."""
        if index < self._released:
            raise RuntimeError("a chunk is read after its memory was given back")
        return super().chunk(index)

    def release(self, end: int) -> None:
        """Give back the memory of the chunks below `end`, once they are several; they cannot be read any more."""
        count = end - self._released
        if count < _RELEASED_CHUNKS:
            return
        from fcntl import ioctl  # not before a guest needs it
        from struct import pack

        hole = pack(_SPACE_RESV, 0, os.SEEK_SET, self._released * CHUNK_BYTES, count * CHUNK_BYTES, 0, 0)
        self._released = end
        with self._lock:
            self._require_open()
            with suppress(OSError):  # where a file system cannot do it, `close` does
                ioctl(self._fd, _FS_IOC_UNRESVSP64, hole)


# Python has no fallocate(2) that makes holes; this does the same (Linux, fs/ioctl.c and include/linux/falloc.h).
_FS_IOC_UNRESVSP64: Final = 0x4030582B
_SPACE_RESV: Final = "=hh4xqqiI16x"


class ScratchRoom:
    """How many bytes the spools on one disk may take together.

    Args:
        ceiling: most bytes.
    """

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.left = ceiling
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Claim so many bytes.

        Raises:
            Unavailable: there are not so many (`oci.spool.full`).
        """
        with self._lock:
            if count > self.left:
                raise Unavailable(
                    "oci.spool.full",
                    "layers take more scratch space than there is",
                    expected=f"at most {self.ceiling} bytes",
                    hint="give the pod more scratch space",
                )
            self.left -= count

    def give(self, count: int) -> None:
        """Give claimed bytes back."""
        with self._lock:
            self.left += count


class SealedSpool(Spool):
    """Chunks in an empty file on a disk that others may read and change.

    Args:
        file: where they lie; closed by `close`.
        room: the disk's; None where the file itself says when the disk is full.
    """

    _overhead = GCM_TAG_BYTES

    def __init__(self, file: SpoolFile, room: ScratchRoom | None) -> None:
        super().__init__(file)
        self._room = room
        self._taken = 0
        self._sealed = 0
        self._key = bytearray(os.urandom(AES256_KEY_BYTES))  # seals this spool only: a number is used once under it

    def close(self, because: BaseException | None = None) -> None:
        """Give the room back and forget the key; see `Spool.close`."""
        super().close(because)
        with self._lock:
            self._key[:] = bytes(len(self._key))
            taken, self._taken = self._taken, 0
        if self._room is not None:
            self._room.give(taken)

    def _to_store(self, index: int, chunk: bytes) -> bytes:
        if self._room is not None:
            self._room.take(len(chunk) + self._overhead)
            self._taken += len(chunk) + self._overhead
        if index != self._sealed:
            raise RuntimeError("a chunk's number would be sealed under twice, after the disk did not take the first")
        self._sealed += 1
        return seal_aes256gcm(self._key, _nonce(index), chunk)

    def _from_store(self, index: int, stored: bytes) -> bytes:
        try:
            return open_aes256gcm(self._key, _nonce(index), stored)
        except Refused as err:
            raise ImageRefused(
                "oci.spool.changed",
                "scratch disk does not hold what was written to it",
                path=f"chunk {index}",
                hint="somebody changes the pod's scratch disk, or it is failing",
            ) from err


def _nonce(index: int) -> bytes:
    return index.to_bytes(GCM_NONCE_BYTES, "big")
