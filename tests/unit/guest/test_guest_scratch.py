"""The scratch disk: its slots, and what a host gains that writes to it, cuts it, fails it, or brings another one."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloister.crypto.aead import GCM_TAG_BYTES
from cloister.errors import CloisterError, ImageRefused, Unavailable
from cloister.guest.platform import VirtualMachine
from cloister.guest.scratch import BLOCK_BYTES, SLOT_BYTES, ScratchDisk, open_scratch_disk
from cloister.oci.spool import CHUNK_BYTES, SEALED_CHUNK_BYTES, Spool
from cloister.protocol.guestapi import SCRATCH_SERIAL
from cloister.wire.limits import SCRATCH_BYTES

CHUNKS = [bytes([number]) * CHUNK_BYTES for number in (1, 2, 3)] + [b"the rest of it, which is shorter"]
SLOTS = 12


@pytest.fixture
def backing(tmp_path: Path) -> Path:
    """The file that the host has behind the disk."""
    path = tmp_path / "disk"
    path.touch()
    os.truncate(path, SLOTS * SLOT_BYTES + 1000)
    return path


@pytest.fixture
def disk(backing: Path) -> Iterator[ScratchDisk]:
    made = open_scratch_disk(str(backing))
    yield made
    made.close()


def filled(disk: ScratchDisk) -> Spool:
    spool = disk.spool()
    for chunk in CHUNKS:
        spool.append(chunk)
    return spool


def refusal(use: Callable[[], object]) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        use()
    return caught.value


# -- slots -------------------------------------------------------------------------------------------------------------


def test_slot_is_the_smallest_that_is_aligned() -> None:
    assert SLOT_BYTES % BLOCK_BYTES == 0
    assert 0 <= SLOT_BYTES - SEALED_CHUNK_BYTES < BLOCK_BYTES


def test_what_is_kept_comes_back_in_any_order(disk: ScratchDisk) -> None:
    spools = [filled(disk), filled(disk)]
    for spool in spools:
        for index in (3, 0, 2, 2, 1):
            assert spool.chunk(index) == CHUNKS[index]
    assert disk.left == SLOTS - 2 * len(CHUNKS)


def test_disk_holds_nothing_of_what_is_kept(disk: ScratchDisk, backing: Path) -> None:
    filled(disk)
    held = backing.read_bytes()
    assert not any(chunk[:32] in held for chunk in CHUNKS)
    assert held[4 * SLOT_BYTES :] == bytes(len(held) - 4 * SLOT_BYTES)
    assert held[SEALED_CHUNK_BYTES:SLOT_BYTES] == bytes(SLOT_BYTES - SEALED_CHUNK_BYTES)
    behind = 3 * SLOT_BYTES + len(CHUNKS[3]) + GCM_TAG_BYTES
    assert held[behind - 1]
    assert not any(held[behind : 4 * SLOT_BYTES])  # and not what the chunk before left in a buffer


def test_same_bytes_are_never_the_same_on_the_disk(disk: ScratchDisk, backing: Path) -> None:
    """A key for each spool: what one kept says nothing about what another keeps, in whichever slot."""
    filled(disk)
    filled(disk)
    held = backing.read_bytes()
    slots = [held[at * SLOT_BYTES : at * SLOT_BYTES + 64] for at in range(2 * len(CHUNKS))]
    assert len(set(slots)) == len(slots)


def test_slots_come_back_and_are_used_again(disk: ScratchDisk) -> None:
    for _ in range(5):
        first, second = filled(disk), filled(disk)
        first.close()
        third, fourth = filled(disk), filled(disk)
        for spool in (second, third, fourth):
            assert [spool.chunk(index) for index in range(4)] == CHUNKS
            spool.close()
            spool.close()
        assert disk.left == SLOTS


def test_disk_that_is_full(disk: ScratchDisk) -> None:
    spools = [filled(disk) for _ in range(SLOTS // len(CHUNKS))]
    assert disk.left == 0
    other = disk.spool()
    assert refusal(lambda: other.append(b"x")).code == "oci.spool.full"
    assert [spools[0].chunk(index) for index in range(4)] == CHUNKS
    spools[1].close()
    last = disk.spool()
    last.append(b"x")
    assert last.chunk(0) == b"x"


def test_many_threads_at_one_disk(disk: ScratchDisk) -> None:
    wrong: list[object] = []

    def work(number: int) -> None:
        for turn in range(10):
            spool = disk.spool()
            chunks = [bytes([number, turn]) * (CHUNK_BYTES // 2), b"end"]
            for chunk in chunks:
                spool.append(chunk)
            found = [spool.chunk(index) for index in range(2)]
            wrong.extend([number] if found != chunks else [])
            spool.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(SLOTS // 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert disk.left == SLOTS


def test_no_more_is_used_than_the_ceiling(backing: Path) -> None:
    os.truncate(backing, 4 * SCRATCH_BYTES)  # sparse
    large = open_scratch_disk(str(backing))
    assert large.slots == SCRATCH_BYTES // SLOT_BYTES
    large.close()


# -- a hostile disk ----------------------------------------------------------------------------------------------------


def flip(host: int) -> None:
    os.pwrite(host, bytes([os.pread(host, 1, SLOT_BYTES + 77)[0] ^ 1]), SLOT_BYTES + 77)


def flip_tag(host: int) -> None:
    at = SLOT_BYTES + SEALED_CHUNK_BYTES - 1
    os.pwrite(host, bytes([os.pread(host, 1, at)[0] ^ 0x80]), at)


def swap(host: int) -> None:
    one, two = (os.pread(host, SLOT_BYTES, at * SLOT_BYTES) for at in (1, 2))
    os.pwrite(host, two + one, SLOT_BYTES)


def repeat(host: int) -> None:
    os.pwrite(host, os.pread(host, SLOT_BYTES, 0), SLOT_BYTES)


def zero(host: int) -> None:
    os.pwrite(host, bytes(SLOT_BYTES), SLOT_BYTES)


def cut(host: int) -> None:
    os.truncate(host, SLOT_BYTES)


def cut_inside(host: int) -> None:
    os.truncate(host, SLOT_BYTES + BLOCK_BYTES)


def other_spool(host: int) -> None:
    """The same chunk of the same bytes, that another spool on the same disk kept."""
    os.pwrite(host, os.pread(host, SLOT_BYTES, 5 * SLOT_BYTES), SLOT_BYTES)


ATTACKS = [flip, flip_tag, swap, repeat, zero, cut, cut_inside, other_spool]


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_disk_is_caught(disk: ScratchDisk, backing: Path, attack: Callable[[int], None]) -> None:
    spool = filled(disk)
    filled(disk)
    with backing.open("r+b") as host:
        attack(host.fileno())
    assert spool.chunk(0) == CHUNKS[0]
    for _ in range(2):  # it does not get better
        error = refusal(lambda: spool.chunk(1))
        assert isinstance(error, ImageRefused)
        assert error.code == "oci.spool.changed"


def test_every_byte_of_a_chunk_counts(disk: ScratchDisk, backing: Path) -> None:
    spool = disk.spool()
    spool.append(b"short")
    stored = backing.read_bytes()[: 5 + SEALED_CHUNK_BYTES - CHUNK_BYTES]
    with backing.open("r+b", buffering=0) as host:
        for at, byte in enumerate(stored):
            os.pwrite(host.fileno(), bytes([byte ^ 0x10]), at)
            assert refusal(lambda: spool.chunk(0)).code == "oci.spool.changed"
            os.pwrite(host.fileno(), bytes([byte]), at)
    assert spool.chunk(0) == b"short"


def test_bytes_behind_a_chunk_are_not_looked_at(disk: ScratchDisk, backing: Path) -> None:
    spool = filled(disk)
    with backing.open("r+b") as host:
        os.pwrite(host.fileno(), b"x" * (SLOT_BYTES - SEALED_CHUNK_BYTES), SEALED_CHUNK_BYTES)
    assert spool.chunk(0) == CHUNKS[0]


def test_older_state_of_the_disk(disk: ScratchDisk, backing: Path) -> None:
    """All of it, with the same bytes in the same slots in the same order: what is brought back had another key."""
    first = filled(disk)
    snapshot = backing.read_bytes()
    first.close()
    spools = [filled(disk) for _ in range(SLOTS // 4)]
    backing.write_bytes(snapshot)
    caught = [refusal(lambda spool=spool, index=index: spool.chunk(index)) for spool in spools for index in range(4)]
    assert {error.code for error in caught} == {"oci.spool.changed"}


def test_disk_of_another_pod(tmp_path: Path, backing: Path) -> None:
    """Both filled alike, then exchanged behind their backs."""
    other = tmp_path / "other"
    other.write_bytes(bytes(SLOTS * SLOT_BYTES))
    disks = [open_scratch_disk(str(path)) for path in (backing, other)]
    spools = [filled(disk) for disk in disks]
    contents = [backing.read_bytes(), other.read_bytes()]
    backing.write_bytes(contents[1])
    other.write_bytes(contents[0])
    for spool in spools:
        assert refusal(lambda spool=spool: spool.chunk(0)).code == "oci.spool.changed"
    for disk in disks:
        disk.close()


def test_disk_that_fails() -> None:
    """A real file that gives EIO for what is not mapped, to readers and writers alike: the memory of this process."""
    fd = os.open("/proc/self/mem", os.O_RDWR)
    broken = ScratchDisk(fd, SLOT_BYTES)
    spool = broken.spool()
    error = refusal(lambda: spool.append(b"x"))
    assert (error.code, type(error)) == ("guest.scratch.unwritable", Unavailable)
    with pytest.raises(RuntimeError):  # a number is sealed under once, also when nothing of it was kept
        spool.append(b"y")
    spool.close()
    assert broken.left == 1
    broken.close()


def test_disk_that_fails_later(backing: Path) -> None:
    """The same when it is read."""
    fd = os.open(backing, os.O_RDWR)
    failing = ScratchDisk(fd, SLOTS * SLOT_BYTES)
    spool = filled(failing)
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    os.dup2(memory, fd)
    os.close(memory)
    error = refusal(lambda: spool.chunk(0))
    assert (error.code, type(error)) == ("oci.spool.unreadable", Unavailable)
    failing.close()


def test_disk_without_room_behind_it() -> None:
    """A host whose own disk is full."""
    full = ScratchDisk(os.open("/dev/full", os.O_RDWR), SLOT_BYTES)
    assert refusal(lambda: full.spool().append(b"x")).code == "guest.scratch.unwritable"
    full.close()


def test_disk_that_takes_half(disk: ScratchDisk) -> None:
    """What a file system does at its end, made by a limit on the size of files."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    spool = disk.spool()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK_BYTES * 8, before[1]))
        error = refusal(lambda: spool.append(CHUNKS[0]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.code == "guest.scratch.unwritable"


@pytest.mark.parametrize("size", [0, 1, SLOT_BYTES - 1])
def test_disk_that_is_too_small(backing: Path, size: int) -> None:
    os.truncate(backing, size)
    assert refusal(lambda: open_scratch_disk(str(backing))).code == "guest.scratch.too_small"


def test_disk_that_cannot_be_opened(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        assert refusal(lambda path=path: open_scratch_disk(str(path))).code == "guest.scratch.unusable"


# -- which disk it is --------------------------------------------------------------------------------------------------


def machine(root: Path, serial: bytes | None, *, disk: Path | None = None) -> VirtualMachine:
    (root / "dev").mkdir(parents=True)
    (root / "sys/block/vdc").mkdir(parents=True)
    if serial is not None:
        (root / "sys/block/vdc/serial").write_bytes(serial)
    if disk is not None:
        (root / "dev/vdc").symlink_to(disk)
    made = VirtualMachine(f"{root}/")
    made.work = str(root / "work")
    return made


@pytest.mark.parametrize("serial", [SCRATCH_SERIAL.encode(), SCRATCH_SERIAL.encode() + b"\n"])
def test_third_disk_of_that_name_is_used(tmp_path: Path, backing: Path, serial: bytes) -> None:
    platform = machine(tmp_path / "root", serial, disk=backing)
    first, second = platform.spool(), platform.spool()
    first.append(CHUNKS[0])
    second.append(CHUNKS[1])
    assert (first.chunk(0), second.chunk(0)) == (CHUNKS[0], CHUNKS[1])
    assert bytes(SLOT_BYTES) not in backing.read_bytes()[: 2 * SLOT_BYTES]


@pytest.mark.parametrize("serial", [None, b"", b"\n", b"another", SCRATCH_SERIAL.encode() + b"-2", b"x" * 100])
def test_any_other_disk_is_none(tmp_path: Path, backing: Path, serial: bytes | None) -> None:
    before = backing.read_bytes()
    platform = machine(tmp_path / "root", serial, disk=backing)
    assert platform.scratch == ""
    spool = platform.spool()
    spool.append(CHUNKS[0])
    assert spool.chunk(0) == CHUNKS[0]
    spool.close()
    assert backing.read_bytes() == before


def test_disk_that_cannot_be_used_is_not_replaced_by_memory(tmp_path: Path) -> None:
    platform = machine(tmp_path / "root", SCRATCH_SERIAL.encode())
    for _ in range(2):
        assert refusal(platform.spool).code == "guest.scratch.unusable"
