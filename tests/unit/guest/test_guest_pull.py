"""The guest's pull: overlapped, and all or nothing: whatever breaks, no tree, no spool and no thread stays behind."""

from __future__ import annotations

import errno
import gc
import io
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloister.crypto.signer import ECDSAP256Signer
from cloister.errors import CloisterError, ImageRefused, KeyReleaseDenied, Unavailable
from cloister.guest.images import LayerFetch, memory_spool, scratch_spool, unpack
from cloister.guest.scratch import SLOT_BYTES, ScratchDisk, open_scratch_disk
from cloister.oci.digest import Digest
from cloister.oci.encryption.authenticate import ArrivingBlob, authenticate_layer
from cloister.oci.layout import OCILayout
from cloister.oci.manifest import Descriptor
from cloister.oci.signing.verify import VerifiedImage
from cloister.oci.spool import CHUNK_BYTES, MemorySpool, ScratchRoom, SealedSpool, Spool
from cloister.oci.store import StoredManifest, read_manifest
from cloister.protocol.resourceuri import ResourcePath
from tampering import flipped
from unit.oci.builders import KEK, archive, build_layout, file, seal_and_sign, verify

NOISE = random.Random(5).randbytes(3 * CHUNK_BYTES)
LAYERS = [
    archive(file(b"lower", NOISE)),
    archive(file(b"middle", NOISE[::-1])),
    archive(file(b"upper", b"small")),
    archive(file(b".wh.lower"), file(b"top", NOISE[:1000])),
]


class Keys:
    """A key broker that gives the one KEK there is, or refuses, or waits."""

    def __init__(self, *, denied: bool = False) -> None:
        self.denied = denied
        self.go_on = threading.Event()
        self.go_on.set()

    def wait_attested(self) -> None:
        self.go_on.wait(20)

    @contextmanager
    def resource(self, path: ResourcePath) -> Iterator[bytearray]:
        self.wait_attested()
        if self.denied:
            raise KeyReleaseDenied("trust.release.denied", "not for this pod")
        yield bytearray(KEK)


class Registry:
    """A sealed image's layout whose blobs come as `send` lets them."""

    code = "test"

    def __init__(self, layout: OCILayout) -> None:
        self._layout = layout
        self.send: Callable[[int, Iterator[bytes]], Iterator[bytes]] = lambda _, chunks: chunks
        self.order: list[Digest] = []
        self.at_once = self.most_at_once = 0

    def get_manifest(self, selector: str) -> StoredManifest | None:
        return self._layout.get_manifest(selector)

    def stream_blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            yield from self.send(self.order.index(descriptor.digest), self._layout.stream_blob(descriptor))
        finally:
            self.at_once -= 1


class Pull:
    """One image on its way into a tree."""

    def __init__(self, tmp_path: Path, signer: ECDSAP256Signer, layers: list[bytes] = LAYERS) -> None:
        self.layout, self.digest = seal_and_sign(build_layout(tmp_path / "plain", *layers), tmp_path / "sealed", signer)
        self.image: VerifiedImage = verify(self.layout, self.digest, signer)
        self.registry = Registry(self.layout)
        self.registry.order = [layer.digest for layer in self.image.manifest.layers]
        self.keys = Keys()
        self.root = tmp_path / "root"
        self.files: list[io.BytesIO] = []
        self.room = ScratchRoom(1 << 30)
        self.took: list[int] = []
        self.make_file: Callable[[], io.BytesIO] = io.BytesIO
        self._threads = set(threading.enumerate())

    def spool(self) -> Spool:
        self.files.append(self.make_file())
        return SealedSpool(self.files[-1], self.room)

    def fetch(self) -> LayerFetch:
        stored = read_manifest(self.layout, self.digest)
        return LayerFetch(lambda: self.registry, stored, self.spool, self.took.append)

    def run(self) -> None:
        self.keys.wait_attested()
        unpack(self.fetch().finish(self.image), self.keys, str(self.root), ownership=False, decrypted=self.took.append)

    def refused(self) -> str:
        """Run, expect a refusal, and check that nothing of it remained."""
        with pytest.raises(CloisterError) as caught:
            self.run()
        self.nothing_left()
        assert not self.root.exists()
        return caught.value.code

    def nothing_left(self) -> None:
        eventually(lambda: not set(threading.enumerate()) - self._threads)  # at the next piece from the registry
        self.room_is_back()

    def room_is_back(self) -> None:
        """Check that it is, also while a registry stalls; a spool that was just being made is closed at once."""
        eventually(lambda: all(file.closed for file in self.files))
        assert self.room.left == self.room.ceiling


def eventually(holds: Callable[[], bool]) -> None:
    for _ in range(2000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("waited for nothing")


@pytest.fixture(scope="module")
def signer() -> ECDSAP256Signer:
    return ECDSAP256Signer.generate()


@pytest.fixture
def pull(tmp_path: Path, signer: ECDSAP256Signer) -> Pull:
    return Pull(tmp_path, signer)


def test_image_is_unpacked(pull: Pull) -> None:
    pull.run()
    assert sorted(os.listdir(pull.root)) == ["middle", "top", "upper"]
    assert (pull.root / "middle").read_bytes() == NOISE[::-1]
    assert len(pull.took) == 2
    pull.nothing_left()


def test_image_of_one_layer(tmp_path: Path, signer: ECDSAP256Signer) -> None:
    pull = Pull(tmp_path, signer, LAYERS[:1])
    pull.run()
    assert (pull.root / "lower").read_bytes() == NOISE


def test_layers_are_fetched_several_at_a_time_and_no_more(pull: Pull) -> None:
    arrived = threading.Barrier(3)

    def together(index: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
        if index < 3:
            arrived.wait(20)  # breaks unless three are fetched at once
        yield from chunks

    pull.registry.send = together
    pull.run()
    assert pull.registry.most_at_once == 3


def test_a_layer_is_unpacked_while_the_next_arrives(pull: Pull) -> None:
    def last_waits(index: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
        if index == 3:
            for _ in range(2000):
                if (pull.root / "upper").exists():
                    break
                time.sleep(0.01)
            else:
                raise Unavailable("test.waited", "layers below were not unpacked")
        yield from chunks

    pull.registry.send = last_waits
    pull.run()
    assert (pull.root / "top").exists()


@pytest.mark.parametrize("early", [True, False])
def test_key_may_come_before_or_after_the_bytes(pull: Pull, early: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either way each byte is hashed once by the MAC; with an early key that happens while bytes arrive."""
    hashed: list[int] = []
    begun = threading.Event()

    class Counting:
        def __init__(self, real: object) -> None:
            self._real = real

        def update(self, data: bytes) -> None:
            hashed.append(len(data))
            begun.set()
            self._real.update(data)  # type: ignore[attr-defined]  # the HMAC

        def digest(self) -> bytes:
            return self._real.digest()  # type: ignore[attr-defined,no-any-return]  # the HMAC

    import hmac

    real = hmac.new
    monkeypatch.setattr(  # a spy around the real one
        "cloister.oci.encryption.authenticate.hmac.new",
        lambda key, *, digestmod: Counting(real(key, digestmod=digestmod)),
    )

    def slow(index: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
        pieces = b"".join(chunks)
        for start in range(0, len(pieces), 100_000):
            if early and index == 0 and start > CHUNK_BYTES:
                assert begun.wait(20), "the MAC waits for the last byte"
            yield pieces[start : start + 100_000]

    pull.registry.send = slow
    if early:
        pull.run()
    else:
        pulled = pull.fetch().finish(pull.image)
        for blob in pulled.blobs:
            blob.wait()
        assert hashed == []
        unpack(pulled, pull.keys, str(pull.root), ownership=False, decrypted=pull.took.append)
    assert sum(hashed) == sum(layer.size for layer in pull.image.manifest.layers)


# -- faults ------------------------------------------------------------------------------------------------------------


def test_registry_that_dies_in_the_middle(pull: Pull) -> None:
    def dies(index: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
        yield next(chunks)
        if index == 1:
            raise Unavailable("oci.transport.interrupted", "registry broke off its answer")
        yield from chunks

    pull.registry.send = dies
    assert pull.refused() == "oci.transport.interrupted"


def test_registry_that_sends_other_bytes_at_the_end(pull: Pull) -> None:
    def changes(index: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
        data = b"".join(chunks)
        yield data if index != 3 else flipped(data)

    pull.registry.send = changes
    assert pull.refused() == "test.digest_mismatch"


@pytest.mark.parametrize("when", [0, 1, 3])
def test_disk_that_is_full(pull: Pull, when: int) -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    pull.make_file = lambda: (Full if len(pull.files) == when else io.BytesIO)()
    assert pull.refused() == "oci.spool.full"


def test_scratch_room_that_is_used_up(pull: Pull) -> None:
    pull.room = ScratchRoom(CHUNK_BYTES)
    assert pull.refused() == "oci.spool.full"


def test_key_that_is_denied_after_the_fetch(pull: Pull) -> None:
    pull.keys.denied = True
    assert pull.refused() == "trust.release.denied"


def test_key_that_is_denied_while_a_registry_stalls(pull: Pull) -> None:
    stalled = threading.Event()

    def stalls(index: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
        yield next(chunks)
        stalled.wait(20)
        yield from chunks

    pull.registry.send = stalls
    pull.keys.denied = True
    started = time.monotonic()
    with pytest.raises(KeyReleaseDenied):
        pull.run()
    assert time.monotonic() - started < 10
    pull.room_is_back()
    stalled.set()
    pull.nothing_left()


def test_mac_that_is_wrong_in_the_last_layer(
    tmp_path: Path, signer: ECDSAP256Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An owner's mistake, signed: the layers below are unpacked by then, and gone with the rest."""
    from cloister.oci.encryption import authenticate as module

    pull = Pull(tmp_path, signer)
    real = module.parse_layer_encryption

    def other_mac(layer: Descriptor, **details: str) -> object:
        found = real(layer, **details)
        if layer.digest != pull.registry.order[-1]:
            return found
        return msgspec.structs.replace(found, public=msgspec.structs.replace(found.public, hmac=bytes(32)))

    monkeypatch.setattr(module, "parse_layer_encryption", other_mac)  # instead of a registry of signed mistakes
    assert pull.refused() == "oci.encryption.mac_mismatch"


def test_archive_that_is_refused_ends_the_fetch(tmp_path: Path, signer: ECDSAP256Signer) -> None:
    pull = Pull(tmp_path, signer, [archive(file(b"../out", b"x")), *LAYERS])
    stalled = threading.Event()

    def stalls(index: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
        if index == 2:
            yield next(chunks)
            stalled.wait(20)
        yield from chunks

    pull.registry.send = stalls
    started = time.monotonic()
    with pytest.raises(ImageRefused) as caught:
        pull.run()
    assert caught.value.code == "oci.layer.path_escape"
    assert time.monotonic() - started < 10
    stalled.set()
    pull.nothing_left()
    assert not pull.root.exists()


class Lying:
    """A source whose blobs are not what they are named by."""

    code = "test.lying"

    def stream_blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        yield bytes(descriptor.size)


@pytest.mark.parametrize("use", ["nobody waits", "wait", "follow"])
def test_a_refusal_keeps_neither_blob_nor_connection_alive(pull: Pull, use: str) -> None:
    """Without a garbage collection: a host must not fill the guest with connections of pulls that it had refused."""

    def refused() -> list[weakref.ref[object]]:
        source, blob = Lying(), ArrivingBlob(pull.image.manifest.layers[0], pull.spool)
        codes = []
        for action in (
            lambda: blob.fill(source),
            *([lambda: blob.wait()] * 2 if use == "wait" else []),
            *([lambda: list(blob.follow())] * 2 if use == "follow" else []),
        ):
            try:
                action()
            except ImageRefused as err:
                codes.append(err.code)
        assert codes == ["test.lying.digest_mismatch"] * (1 if use == "nobody waits" else 3)
        return [weakref.ref(source), weakref.ref(blob)]

    gc.collect()
    gc.disable()
    try:
        assert [kept() for kept in refused()] == [None, None]
    finally:
        gc.enable()


# -- a host that writes to the scratch disk ----------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 3])
def test_scratch_that_changes_between_the_passes(pull: Pull, layer: int) -> None:
    """After the MAC was found right, before the layer is decrypted: not one byte of the change is unpacked."""
    blob = ArrivingBlob(pull.image.manifest.layers[layer], pull.spool)
    blob.fill(pull.registry)
    from cloister.oci.encryption.annotations import parse_layer_encryption
    from cloister.oci.encryption.packet import unwrap_private_options

    private = unwrap_private_options(parse_layer_encryption(pull.image.manifest.layers[layer]).packets()[0], KEK)
    authentic = authenticate_layer(pull.image, layer, blob, private)
    data = bytearray(pull.files[0].getvalue())
    data[-20] ^= 1
    pull.files[0].seek(0)
    pull.files[0].write(data)
    with pytest.raises(ImageRefused) as caught:
        list(authentic.open())
    assert caught.value.code == "oci.spool.changed"


def test_scratch_that_changes_while_the_image_is_unpacked(pull: Pull) -> None:
    """The same through the whole pull: the tree is gone, and so is every spool."""

    class Changing(io.BytesIO):
        reads = 0

        def read(self, size: int | None = -1) -> bytes:
            self.reads += 1
            data = super().read(size)
            if self.reads <= 4:  # the MAC's pass
                return data
            return flipped(data, 0)

    pull.make_file = lambda: (Changing if len(pull.files) == 1 else io.BytesIO)()
    assert pull.refused() == "oci.spool.changed"


def test_unsealed_spool_would_not_notice(pull: Pull) -> None:
    """What the seal is for: on a plain file the same change is seen by the digest behind it only, when bytes of it
    went through the decompressor. Should this fail, the test above proves nothing."""
    blob = ArrivingBlob(pull.image.manifest.layers[0], lambda: Spool(raw))
    raw = io.BytesIO()
    blob.fill(pull.registry)
    data = bytearray(raw.getvalue())
    data[-20] ^= 1
    raw.seek(0)
    raw.write(data)
    assert b"".join(blob.wait().chunks()) == bytes(data)


def test_scratch_on_a_real_disk(pull: Pull, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(pull, "spool", lambda: scratch_spool(str(tmp_path / "scratch"), pull.room))
    pull.run()
    assert (pull.root / "middle").read_bytes() == NOISE[::-1]
    assert not list((tmp_path / "scratch").iterdir())
    assert pull.room.left == pull.room.ceiling


def test_ciphertext_in_memory_goes_while_its_files_come(
    tmp_path: Path, signer: ECDSAP256Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a pod VM needs memory for both at once."""
    noise = random.Random(7).randbytes(12 << 20)  # content, no secret
    pull = Pull(tmp_path, signer, [archive(file(b"large", noise))])
    fds: list[int] = []
    blocks: list[int] = []
    made = MemorySpool.__init__
    closed = MemorySpool.close

    def make(spool: MemorySpool, file: Any) -> None:
        fds.append(file.fileno())
        made(spool, file)

    def close(spool: MemorySpool, because: BaseException | None = None) -> None:
        blocks.extend(os.fstat(fd).st_blocks for fd in fds)
        fds.clear()
        closed(spool, because)

    monkeypatch.setattr(MemorySpool, "__init__", make)
    monkeypatch.setattr(MemorySpool, "close", close)
    monkeypatch.setattr(pull, "spool", memory_spool)
    pull.run()
    assert (pull.root / "large").read_bytes() == noise
    assert len(blocks) == 1 and blocks[0] * 512 < 5 << 20


# -- the pod VM's scratch disk -----------------------------------------------------------------------------------------


@pytest.fixture
def disk(pull: Pull, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScratchDisk]:
    """A disk with room for the image and no more."""
    (tmp_path / "disk").touch()
    os.truncate(tmp_path / "disk", 10 * SLOT_BYTES)
    made = open_scratch_disk(str(tmp_path / "disk"))
    monkeypatch.setattr(pull, "spool", made.spool)
    yield made
    pull.nothing_left()
    eventually(lambda: made.left == made.slots)
    made.close()


def test_pull_by_way_of_a_disk(pull: Pull, disk: ScratchDisk, tmp_path: Path) -> None:
    for number in range(3):  # each pull has the room of the one before
        pull.root = tmp_path / f"root-{number}"
        pull.run()
        assert (pull.root / "middle").read_bytes() == NOISE[::-1]
        assert disk.left == disk.slots
    held = (tmp_path / "disk").read_bytes()
    sealed = [b"".join(pull.layout.stream_blob(layer)) for layer in pull.image.manifest.layers]
    for known in (NOISE, NOISE[::-1], *sealed):
        assert known[:32] not in held
    assert len(held) - held.count(0) > sum(map(len, sealed)) * 0.99


def test_disk_with_too_little_room(pull: Pull, disk: ScratchDisk) -> None:
    held = [disk.take() for _ in range(5)]
    assert pull.refused() == "oci.spool.full"
    disk.give(held)


@pytest.mark.parametrize("slot", range(8))
def test_disk_that_changes_between_the_passes(pull: Pull, disk: ScratchDisk, tmp_path: Path, slot: int) -> None:
    """Everything has arrived; then the host writes, and only then are there keys."""
    pull.keys.go_on.clear()
    fetch = pull.fetch()
    eventually(lambda: bool(pull.took))
    with (tmp_path / "disk").open("r+b", buffering=0) as host:
        host.seek(slot * SLOT_BYTES + 33)
        before = host.read(1)
        host.seek(slot * SLOT_BYTES + 33)
        host.write(bytes([before[0] ^ 4]))
    pull.keys.go_on.set()
    with pytest.raises(ImageRefused) as caught:
        unpack(fetch.finish(pull.image), pull.keys, str(pull.root), ownership=False, decrypted=pull.took.append)
    assert caught.value.code == "oci.spool.changed"
    assert not pull.root.exists()


def test_disk_that_fails_between_the_passes(pull: Pull, disk: ScratchDisk) -> None:
    """The host takes the disk away: what is there instead gives EIO."""
    pull.keys.go_on.clear()
    fetch = pull.fetch()
    eventually(lambda: bool(pull.took))
    memory = os.open("/proc/self/mem", os.O_RDONLY)  # nothing is mapped at its beginning
    os.dup2(memory, disk._fd)
    os.close(memory)
    pull.keys.go_on.set()
    with pytest.raises(Unavailable) as caught:
        unpack(fetch.finish(pull.image), pull.keys, str(pull.root), ownership=False, decrypted=pull.took.append)
    assert caught.value.code == "oci.spool.unreadable"
    assert not pull.root.exists()


def test_disk_that_takes_nothing(pull: Pull, disk: ScratchDisk) -> None:
    full = os.open("/dev/full", os.O_RDWR)
    os.dup2(full, disk._fd)
    os.close(full)
    assert pull.refused() == "guest.scratch.unwritable"
