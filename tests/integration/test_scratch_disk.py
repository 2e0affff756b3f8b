"""The scratch disk of a real pod VM, read and written by its host while the pod pulls encrypted images.

The file behind it has no name, so it is reached as a hostile host would: through QEMU's own descriptor. An image whose
layers together do not fit into the memory of the VM, though its tree does, runs with the disk, and does not without.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cloister.errors import CloisterError, Unavailable
from cloister.guest.scratch import SLOT_BYTES
from cloister.imagetool.podvm import PodVMBundle
from cloister.oci.spool import CHUNK_BYTES
from cloister.protocol.initdata import InitData
from cloister.sdk.bundle import build_bundle, busybox_of
from cloister.sdk.home import Home
from cloister.sdk.owner import SealedReference
from cloister.wire.limits import MIB
from conformance.tools import cache_directory, skip_or_fail
from guest_world import VMPod, World, make_world
from unit.oci.builders import archive, build_layout, directory, file, symlink

pytestmark = pytest.mark.vm

MEMORY_MIB = 320  # a memory file system takes at most half of what the kernel leaves of it
SCRATCH_MIB = 192
LARGE_BYTES = 72 * MIB
CANARY = b"plain-text-of-the-owner-" * 40
NOISE = random.Random(1).randbytes(MIB)
COMMAND = ("sh", "-c", "wc -c < /large; head -c 24 /canary; ls /dev/vdc 2>&1")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with make_world(tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.fixture(scope="module")
def bundle(world: World) -> PodVMBundle:
    try:
        return build_bundle(Home(root=world.owner.home.root, cache=cache_directory()))
    except Unavailable as err:
        skip_or_fail(str(err))


def seal(world: World, bundle: PodVMBundle, place: Path, size: int) -> SealedReference:
    """Seal an image of busybox, a text that is searched for, and `size` bytes that do not compress, in a layer that
    replaces just as many of the one below."""
    shell = file(b"bin/busybox", busybox_of(bundle.path).read_bytes(), mode=0o755)
    links = [symlink(b"bin/" + name, b"busybox") for name in (b"sh", b"wc", b"head", b"ls")]
    replaced = archive(file(b"large", NOISE[::-1] * (size // MIB)))
    data = archive(file(b"canary", CANARY), file(b"large", NOISE * (size // MIB)))
    built = build_layout(place, archive(directory(b"bin"), shell, *links), replaced, data, compression="")
    return world.seal(f"oci:{built.path}:v1")


class HostDisk:
    """The file behind a pod's scratch disk, in the hands of whoever runs QEMU."""

    def __init__(self, pod: VMPod) -> None:
        self.pid = pod.vm.pids["qemu"]
        folder = Path(f"/proc/{self.pid}/fd")
        nameless = [one for one in folder.iterdir() if os.readlink(one).endswith("(deleted)")]
        self.fd = os.open(nameless[0], os.O_RDWR)  # QEMU has several descriptors of it

    def extents(self) -> Iterator[tuple[int, int]]:
        """Yield beginnings and ends of what was written, as far as the file system tells."""
        end = 0
        with contextlib.suppress(OSError):
            while True:
                begin = os.lseek(self.fd, end, os.SEEK_DATA)
                end = os.lseek(self.fd, begin, os.SEEK_HOLE)
                yield begin, end

    def content(self) -> bytes:
        return b"".join(os.pread(self.fd, end - begin, begin) for begin, end in self.extents())

    def slots(self) -> list[int]:
        """Return the numbers of slots that were written."""
        return [at // SLOT_BYTES for begin, end in self.extents() for at in range(begin, end, SLOT_BYTES)]

    def close(self) -> None:
        os.close(self.fd)


# What a host does again and again while the pod pulls; doing it twice is the same as doing it once.


def overwrite(disk: HostDisk, _: bytes) -> None:
    for slot in disk.slots():
        os.pwrite(disk.fd, b"\xa5" * 16, slot * SLOT_BYTES + 99)


def put_elsewhere(disk: HostDisk, _: bytes) -> None:
    """Every chunk is the first one's."""
    first = os.pread(disk.fd, SLOT_BYTES, 0)
    for slot in disk.slots():
        os.pwrite(disk.fd, first, slot * SLOT_BYTES)


def bring_back(disk: HostDisk, earlier: bytes) -> None:
    """The disk as it was after an earlier pull of the very same image."""
    os.pwrite(disk.fd, earlier, 0)


def cut(disk: HostDisk, _: bytes) -> None:
    os.ftruncate(disk.fd, 0)


ATTACKS = {"overwritten": overwrite, "elsewhere": put_elsewhere, "earlier": bring_back, "cut": cut}


@contextlib.contextmanager
def under(attack: Callable[[HostDisk, bytes], None], disk: HostDisk, earlier: bytes) -> Iterator[None]:
    over = threading.Event()

    def keep_on() -> None:
        while not over.wait(0.001):
            attack(disk, earlier)

    thread = threading.Thread(target=keep_on)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def booted(world: World, bundle: PodVMBundle, init_data: InitData, scratch_mib: int) -> Iterator[VMPod]:
    pod = world.vm_pod(
        init_data, bundle, memory_mib=MEMORY_MIB, change=lambda spec: replace(spec, scratch_mib=scratch_mib)
    )
    try:
        yield pod
    finally:
        pod.end()


@pytest.fixture(scope="module")
def large(world: World, bundle: PodVMBundle, tmp_path_factory: pytest.TempPathFactory) -> SealedReference:
    return seal(world, bundle, tmp_path_factory.mktemp("large"), LARGE_BYTES)


def test_image_that_memory_would_not_hold(
    world: World, bundle: PodVMBundle, large: SealedReference, tmp_path: Path
) -> None:
    """One machine: honest pulls, then a host at its disk, and an honest pull that needs all of the room again."""
    small = seal(world, bundle, tmp_path / "small", MIB)
    images = {"first": small, "victim": small, "large": large}
    containers = [world.container(image, name, command=COMMAND) for name, image in images.items()]
    init_data = world.prepare(world.several(*containers), small, *large.kek, host="10.0.2.2")
    with booted(world, bundle, init_data, SCRATCH_MIB) as pod:
        assert_runs(pod, "first", MIB)
        disk = HostDisk(pod)
        assert_only_sealed(world, small, disk)
        earlier = disk.content()
        for name, attack in ATTACKS.items():
            with under(attack, disk, earlier), pytest.raises(CloisterError) as caught:
                pod.create("victim", f"c-{name}")
            assert caught.value.code == "oci.spool.changed", name
        assert_runs(pod, "victim", MIB)
        assert_runs(pod, "large", LARGE_BYTES)
        content = disk.content()
        assert len(content) > LARGE_BYTES
        assert CANARY[:24] not in content
        assert NOISE[:32] not in content
        disk.close()
    assert not [path for path in pod.vm.console.parent.iterdir() if path.stat().st_size > SLOT_BYTES]


def test_the_same_without_a_disk(world: World, bundle: PodVMBundle, large: SealedReference) -> None:
    """Else the test above proves nothing."""
    policy = world.several(world.container(large, "large", command=COMMAND))
    with booted(world, bundle, world.prepare(policy, large, host="10.0.2.2"), 0) as pod:
        with pytest.raises(Unavailable) as caught:
            pod.create("large", "c-large")
        assert caught.value.code in ("oci.layer.no_space", "oci.spool.full")


def assert_runs(pod: VMPod, name: str, size: int) -> None:
    """The container runs, sees what the owner put into the image, and no disk."""
    status, out, _ = pod.run(name, f"c-{name}")
    assert out.startswith(f"{size}\n".encode() + CANARY[:24])
    assert b"/dev/vdc: No such file" in out
    assert status == 1  # of `ls`


def assert_only_sealed(world: World, image: SealedReference, disk: HostDisk) -> None:
    """The disk holds as many chunks as the layers have, and nothing that is in the image or in the registry."""
    content = disk.content()
    kept = [blob for blob in (world.owner.home.registry / "blobs").rglob("*") if blob.is_file()]
    layers = [blob.read_bytes() for blob in kept if MIB <= blob.stat().st_size < LARGE_BYTES]
    sizes = {len(layer) for layer in layers}  # both images begin with the same layer, each with a key of its own
    assert sum(sizes) == image.plain_bytes
    assert len(disk.slots()) == sum(-(-size // CHUNK_BYTES) for size in sizes)
    for known in (CANARY[:24], NOISE[:32], *(layer[at : at + 32] for layer in layers for at in (0, CHUNK_BYTES))):
        assert known not in content
