"""Spools: what was kept comes back, a disk that others write to cannot change it, room is given back."""

from __future__ import annotations

import io
import os
from collections.abc import Callable

import pytest

from cloister.crypto.aead import GCM_TAG_BYTES
from cloister.errors import CloisterError, ImageRefused, Unavailable
from cloister.oci.spool import CHUNK_BYTES, MemorySpool, ScratchRoom, SealedSpool, Spool

CHUNKS = [bytes([number]) * CHUNK_BYTES for number in range(3)] + [b"the rest"]
STORED = CHUNK_BYTES + GCM_TAG_BYTES


class ShortFile(io.BytesIO):
    """A file that takes and gives a few bytes at a time, as a raw one may."""

    def write(self, data: memoryview) -> int:  # type: ignore[override]  # called with one only
        return super().write(data[:100_000])

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(size or 0, 70_000))


def filled(spool: Spool) -> Spool:
    for chunk in CHUNKS:
        spool.append(chunk)
    return spool


@pytest.mark.parametrize("make", [Spool, lambda file: SealedSpool(file, ScratchRoom(1 << 30))])
@pytest.mark.parametrize("file", [io.BytesIO, ShortFile])
def test_chunks_come_back_in_any_order(make: Callable[[io.BytesIO], Spool], file: type[io.BytesIO]) -> None:
    spool = filled(make(file()))
    for index in (3, 0, 2, 2, 1):
        assert spool.chunk(index) == CHUNKS[index]


@pytest.mark.parametrize("chunk", [b"", bytes(CHUNK_BYTES + 1)])
def test_only_whole_chunks_are_taken(chunk: bytes) -> None:
    with pytest.raises(RuntimeError):
        Spool(io.BytesIO()).append(chunk)
    with pytest.raises(RuntimeError):
        filled(Spool(io.BytesIO())).append(b"behind a shorter one")


def test_disk_sees_nothing_of_what_is_kept() -> None:
    file = io.BytesIO()
    filled(SealedSpool(file, ScratchRoom(1 << 30)))
    assert CHUNKS[3] not in file.getvalue()
    assert CHUNKS[0][:64] not in file.getvalue()


def flip(data: bytearray) -> None:
    data[STORED + 5] ^= 1


def swap(data: bytearray) -> None:
    data[STORED : 2 * STORED], data[2 * STORED : 3 * STORED] = data[2 * STORED : 3 * STORED], data[STORED : 2 * STORED]


def repeat(data: bytearray) -> None:
    data[STORED : 2 * STORED] = data[:STORED]


def cut(data: bytearray) -> None:
    del data[STORED + 100 :]


def tag(data: bytearray) -> None:
    data[2 * STORED - 1] ^= 0x80


@pytest.mark.parametrize("change", [flip, swap, repeat, cut, tag])
def test_a_disk_that_changes_is_caught(change: Callable[[bytearray], None]) -> None:
    file = io.BytesIO()
    spool = filled(SealedSpool(file, ScratchRoom(1 << 30)))
    data = bytearray(file.getvalue())
    change(data)
    file.seek(0)
    file.truncate()
    file.write(data)
    assert spool.chunk(0) == CHUNKS[0]
    with pytest.raises(ImageRefused) as caught:
        spool.chunk(1)
    assert caught.value.code == "oci.spool.changed"


def test_what_another_spool_kept_does_not_open() -> None:
    files = [io.BytesIO(), io.BytesIO()]
    room = ScratchRoom(1 << 30)
    first, second = (filled(SealedSpool(file, room)) for file in files)
    files[1].seek(0)
    files[1].write(files[0].getvalue())
    assert first.chunk(0) == CHUNKS[0]
    with pytest.raises(ImageRefused):
        second.chunk(0)


def test_room_has_a_ceiling_and_comes_back() -> None:
    room = ScratchRoom(2 * STORED)
    first, second = SealedSpool(io.BytesIO(), room), SealedSpool(io.BytesIO(), room)
    first.append(CHUNKS[0])
    second.append(CHUNKS[1])
    with pytest.raises(Unavailable) as caught:
        second.append(CHUNKS[2])
    assert caught.value.code == "oci.spool.full"
    first.close()
    first.close()
    assert room.left == STORED
    second.append(CHUNKS[2])
    second.close()
    assert room.left == room.ceiling


@pytest.mark.parametrize("use", [lambda spool: spool.append(b"x"), lambda spool: spool.chunk(0)])
def test_who_uses_a_closed_spool_is_told_why(use: Callable[[Spool], object]) -> None:
    room = ScratchRoom(1 << 30)
    for spool in (Spool(io.BytesIO()), SealedSpool(io.BytesIO(), room)):
        spool.append(bytes(CHUNK_BYTES))
        spool.close(Unavailable("test.given_up", "first reason"))
        spool.close(Unavailable("test.other", "second"))
        with pytest.raises(CloisterError) as caught:
            use(spool)
        assert caught.value.code == "test.given_up"
    assert room.left == room.ceiling


def test_no_room_on_the_disk_is_an_error() -> None:
    with open("/dev/full", "r+b", buffering=0) as file, pytest.raises(Unavailable) as caught:
        Spool(file).append(os.urandom(100))
    assert caught.value.code == "oci.spool.full"


def memory_file() -> io.FileIO:
    return open(os.memfd_create("spool"), "w+b", buffering=0)


def test_memory_is_given_back_while_a_spool_is_read_for_the_last_time() -> None:
    file = memory_file()
    spool = MemorySpool(file)
    count = 40
    for number in range(count):
        spool.append(bytes([number]) * CHUNK_BYTES)
    most = os.fstat(file.fileno()).st_blocks
    left = []
    for index in range(count):
        assert spool.chunk(index) == bytes([index]) * CHUNK_BYTES
        spool.release(index + 1)
        left.append(os.fstat(file.fileno()).st_blocks)
    assert left == sorted(left, reverse=True) and left[0] == most
    assert left[-1] < most / 4
    for index in (0, 31):
        with pytest.raises(RuntimeError):  # it would be read as zeros
            spool.chunk(index)
    assert spool.chunk(count - 1)[:1] == bytes([count - 1])
    spool.close(Unavailable("test.closed", "over"))
    with pytest.raises(Unavailable):
        spool.release(count + 100)


def test_where_the_file_system_makes_no_holes_memory_goes_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloister.oci.spool._FS_IOC_UNRESVSP64", 0)  # a request that the kernel refuses
    file = memory_file()
    spool = MemorySpool(file)
    for number in range(20):
        spool.append(bytes([number]) * CHUNK_BYTES)
    most = os.fstat(file.fileno()).st_blocks
    spool.release(20)
    assert os.fstat(file.fileno()).st_blocks == most
    with pytest.raises(RuntimeError):
        spool.chunk(0)
    spool.close()


def test_a_spool_on_a_disk_keeps_its_room_until_it_is_closed() -> None:
    room = ScratchRoom(1 << 30)
    spool = filled(SealedSpool(io.BytesIO(), room))
    taken = room.left
    spool.release(4)
    assert room.left == taken and spool.chunk(0) == CHUNKS[0]
