"""The pod VM's scratch disk: a block device of the host, divided into slots of one sealed chunk each.

The host can read, change, replay, cut, exchange and fail it at any time, so that nothing reaches it but what
`cloister.oci.spool.SealedSpool` sealed, nothing is believed that it gives back before that opened it, and nothing on it
is parsed: there is no file system, no header and no table. Which slot holds which chunk is in the agent's memory only,
and ends with it. What a disk can do is to make the pod fail.

It is the third disk when that calls itself `SCRATCH_SERIAL` (`cloister.protocol.guestapi`); its size is read from the
device. Both are the host's word and decide where sealed ciphertext waits, never whether anything is trusted. Reads and
writes go past the kernel's page cache (open(2), O_DIRECT): the memory that this disk saves is not given to a copy.
"""

from __future__ import annotations

import mmap
import os
import threading
from typing import Final

from cloister.errors import Unavailable
from cloister.oci.spool import SEALED_CHUNK_BYTES, SealedSpool
from cloister.wire.limits import SCRATCH_BYTES

BLOCK_BYTES: Final = 4096  # what O_DIRECT is aligned to; no less than a device's logical block
SLOT_BYTES: Final = -(-SEALED_CHUNK_BYTES // BLOCK_BYTES) * BLOCK_BYTES


class ScratchDisk:
    """Slots of a disk; used from several threads.

    Args:
        fd: readable and writable; closed by `close`.
        size: bytes of it that are there; what is beyond `SCRATCH_BYTES` is not used.

    Raises:
        Unavailable: not one slot fits (`guest.scratch.too_small`).
    """

    def __init__(self, fd: int, size: int) -> None:
        self.slots = min(size, SCRATCH_BYTES) // SLOT_BYTES
        if not self.slots:
            raise Unavailable(
                "guest.scratch.too_small",
                "scratch disk is too small",
                expected=f"at least {SLOT_BYTES} bytes",
                actual=str(size),
            )
        self._fd = fd
        self._unused = 0  # the first slot that never was used
        self._free: list[int] = []
        self._buffers: list[mmap.mmap] = []  # aligned; as many as threads were at it at once
        self._lock = threading.Lock()

    @property
    def left(self) -> int:
        """How many slots are free."""
        with self._lock:
            return self.slots - self._unused + len(self._free)

    def spool(self) -> SealedSpool:
        """Return an empty spool on this disk."""
        return SealedSpool(SlotFile(self), None)

    def take(self) -> int:
        """Return the number of a free slot, which is the caller's until it is given back.

        Raises:
            Unavailable: there is none (`oci.spool.full`).
        """
        with self._lock:
            if self._free:
                return self._free.pop()
            if self._unused == self.slots:
                raise Unavailable(
                    "oci.spool.full",
                    "layers take more scratch space than there is",
                    expected=f"at most {self.slots} chunks",
                    hint="give the pod a larger scratch disk",
                )
            self._unused += 1
            return self._unused - 1

    def give(self, slots: list[int]) -> None:
        """Give slots back."""
        with self._lock:
            self._free += slots

    def write(self, slot: int, stored: memoryview) -> None:
        """Write one sealed chunk.

        Raises:
            Unavailable: the disk does not take it (`guest.scratch.unwritable`).
        """
        buffer = self._buffer()
        try:
            end = _whole_blocks(len(stored))
            buffer[: len(stored)] = stored
            buffer[len(stored) : end] = bytes(end - len(stored))
            with memoryview(buffer) as view:
                written = os.pwritev(self._fd, [view[:end]], slot * SLOT_BYTES)
        except OSError as err:
            raise _unwritable(slot) from err
        finally:
            self._keep(buffer)
        if written != end:
            raise _unwritable(slot)

    def read(self, slot: int, size: int) -> bytes:
        """Return what the disk gives for a chunk of `size` bytes, which may be anything, and shorter.

        Raises:
            OSError: it gives an error.
        """
        buffer = self._buffer()
        try:
            with memoryview(buffer) as view:
                count = os.preadv(self._fd, [view[: _whole_blocks(size)]], slot * SLOT_BYTES)
            return buffer[: min(count, size)]
        finally:
            self._keep(buffer)

    def close(self) -> None:
        """Close the device."""
        os.close(self._fd)

    def _buffer(self) -> mmap.mmap:
        with self._lock:
            return self._buffers.pop() if self._buffers else mmap.mmap(-1, SLOT_BYTES)

    def _keep(self, buffer: mmap.mmap) -> None:
        with self._lock:
            self._buffers.append(buffer)


class SlotFile:
    """A spool's file on a scratch disk: one slot for each chunk, taken when it is written. Used under its spool's lock.

    Args:
        disk: where the slots are.
    """

    def __init__(self, disk: ScratchDisk) -> None:
        self._disk = disk
        self._slots: list[int] = []
        self._at = 0
        self.closed = False

    def seek(self, offset: int, /) -> int:
        """Go to the beginning of a chunk."""
        self._at = offset
        return offset

    def write(self, data: memoryview, /) -> int:
        """Write the next chunk, whole.

        Raises:
            Unavailable: `oci.spool.full`, `guest.scratch.unwritable`.
        """
        if self._at != len(self._slots) * SEALED_CHUNK_BYTES:
            raise RuntimeError("a spool is written once, one chunk behind the other")
        self._slots.append(self._disk.take())
        self._disk.write(self._slots[-1], data)
        return len(data)

    def read(self, size: int, /) -> bytes:
        """Return what the disk gives for the chunk, and nothing more of it.

        Raises:
            OSError: the disk gives an error.
        """
        chunk, inside = divmod(self._at, SEALED_CHUNK_BYTES)
        if inside:
            return b""
        data = self._disk.read(self._slots[chunk], size)
        self._at += len(data)
        return data

    def close(self) -> None:
        """Give the slots back."""
        if not self.closed:
            self.closed = True
            self._disk.give(self._slots)


def open_scratch_disk(device: str) -> ScratchDisk:
    """Return the scratch disk behind `device`.

    Claimed for this process alone (O_EXCL): a disk that something is mounted or mapped from is none.

    Raises:
        Unavailable: it cannot be used (`guest.scratch.unusable`, `guest.scratch.too_small`).
    """
    try:
        fd = os.open(device, os.O_RDWR | os.O_DIRECT | os.O_EXCL | os.O_CLOEXEC)
    except OSError as err:
        raise _unusable(device) from err
    try:
        return ScratchDisk(fd, os.lseek(fd, 0, os.SEEK_END))
    except BaseException:
        os.close(fd)
        raise


def _whole_blocks(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def _unusable(device: str) -> Unavailable:
    return Unavailable(
        "guest.scratch.unusable",
        "scratch disk cannot be used",
        path=device,
        hint="attach one that the pod may write to, or none",
    )


def _unwritable(slot: int) -> Unavailable:
    return Unavailable(
        "guest.scratch.unwritable",
        "scratch disk takes no data",
        path=f"slot {slot}",
        hint="see whether the host's disk is full or failing",
    )
