"""Root images of any layers: the tree that unpacking makes, with the attributes that the archives say, wherever and by
whomever it is computed; the format's own checker agrees."""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import ImageRefused
from cloister.oci.digest import Digest
from cloister.oci.layer import DeviceNodes, LayerUnpacker, UnpackOptions
from cloister.oci.rootfs import RootDirectory
from cloister.oci.rootimage import RootImage, build_root_image
from conformance.tools import require_tool
from unit.oci.builders import archive, directory, file, hard_link, header, pax, symlink
from unit.oci.erofsreader import Found, read_erofs

NAMES = st.sampled_from([b"a", b"b", b"c", b"\xff\xfe odd\n", b"n" * 255, b"sub", "ü".encode()])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
NUMBERS = st.integers(0, 100_000)
DETAILS = st.fixed_dictionaries(
    {"mode": st.integers(0, 0o7777), "uid": NUMBERS, "gid": NUMBERS, "mtime": st.integers(0, 2**33 - 1)}
)
SIZES = st.sampled_from([0, 1, 100, 4000, 4031, 4032, 4096, 5000, 20_000])


def with_xattrs(member: bytes, xattrs: dict[bytes, bytes]) -> bytes:
    return pax([(b"SCHILY.xattr." + key, value) for key, value in xattrs.items()]) + member if xattrs else member


def content(size: int) -> bytes:
    return bytes(number * size % 251 for number in range(size))


DEVICES = st.sampled_from([b"3", b"4"])
DEVICE_NUMBERS = st.tuples(st.integers(1, 4095), st.integers(1, 1 << 19))
XATTRS = st.dictionaries(
    st.sampled_from([b"user.a", b"user.b.c", b"user.\xc3\xbc"]), st.binary(min_size=1, max_size=300), max_size=2
)
MEMBERS = st.one_of(
    st.builds(lambda p, s, x, d: with_xattrs(file(p[:99], content(s), **d), x), PATHS, SIZES, XATTRS, DETAILS),
    st.builds(lambda p, x, d: with_xattrs(directory(p[:99], **d), x), PATHS, XATTRS, DETAILS),
    st.builds(lambda p, t, d: symlink(p[:99], t[:99], **d), PATHS, PATHS, DETAILS),
    st.builds(lambda p, t: hard_link(p[:99], t[:99]), PATHS, PATHS),
    st.builds(lambda p, k, n, d: header(p[:99], kind=k, device=n, **d), PATHS, DEVICES, DEVICE_NUMBERS, DETAILS),
    st.builds(lambda p, d: header(p[:99], kind=b"6", **d), PATHS, DETAILS),
    st.builds(lambda p: file((b"/".join([*p.split(b"/")[:-1], b".wh." + p.split(b"/")[-1]]))[:99]), PATHS),
    st.builds(lambda p: file(b"/".join([p[:80], b".wh..wh..opq"])), NAMES),
)
LAYERS = st.lists(st.lists(MEMBERS, max_size=8).map(lambda members: archive(*members)), min_size=1, max_size=3)


def build(layers: list[bytes], scratch: str, chunk: int = 1 << 20) -> tuple[RootImage, bytes]:
    with tempfile.TemporaryFile() as out:
        pieces = ([layer[i : i + chunk] for i in range(0, len(layer), chunk)] for layer in layers)
        root = build_root_image(pieces, [Digest.of(layer) for layer in layers], out, scratch)
        out.seek(0)
        return root, out.read()


def unpacked(layers: list[bytes], place: Path) -> dict[bytes, os.stat_result]:
    """Unpack as a container's directory and return what is where."""
    options = UnpackOptions(ownership=os.geteuid() == 0, devices=DeviceNodes.CREATE)
    with RootDirectory(place) as tree:
        unpacker = LayerUnpacker(tree, options)
        for layer in layers:
            unpacker.apply([layer])
    top = os.fsencode(place)
    found = {}
    for parent, directories, files in os.walk(top):
        for name in [*directories, *files]:
            path = os.path.join(parent, name)
            found[path[len(top) + 1 :]] = os.lstat(path)
    return found


def compare(path: Path, inode: Found, status: os.stat_result) -> None:
    assert stat.S_IFMT(inode.mode) == stat.S_IFMT(status.st_mode)
    assert inode.links == status.st_nlink or stat.S_ISDIR(inode.mode)
    assert inode.mtime_ns == status.st_mtime_ns
    if stat.S_ISREG(inode.mode):
        assert inode.content == path.read_bytes()
    if stat.S_ISLNK(inode.mode):
        assert inode.content == os.fsencode(os.readlink(path))
    if os.geteuid() == 0:
        assert (inode.mode, inode.uid, inode.gid) == (status.st_mode, status.st_uid, status.st_gid)
        assert inode.device == (os.major(status.st_rdev), os.minor(status.st_rdev))
        if not stat.S_ISLNK(inode.mode):
            try:
                names = os.listxattr(path, follow_symlinks=False)
            except OSError:
                return  # a file system without attributes: nothing to compare with
            assert inode.xattrs == {name.encode(): os.getxattr(path, name) for name in names}


@settings(deadline=None, max_examples=150)
@given(LAYERS, st.integers(1, 5000))
def test_root_image_is_the_unpacked_tree(layers: list[bytes], chunk: int) -> None:
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory(dir="/dev/shm") as two:
        place = Path(one, "tree")
        place.mkdir()
        try:
            expected = unpacked(layers, place)
        except ImageRefused as refusal:
            try:
                build(layers, two)
            except ImageRefused as err:
                assert err.code == refusal.code
                return
            raise AssertionError(f"unpacking refuses {refusal.code}, the root image does not") from None
        root, image = build(layers, two)
        tree = read_erofs(image[: root.hash_offset])
        assert sorted(tree) == sorted([b"", *expected])
        for name, status in expected.items():
            compare(Path(os.fsdecode(os.fsencode(place) + b"/" + name)), tree[name], status)
        assert build(layers, one, chunk) == (root, image)


@settings(deadline=None, max_examples=25)
@given(LAYERS)
def test_the_formats_own_checker_agrees(layers: list[bytes]) -> None:
    checker = require_tool("fsck.erofs")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            root, image = build(layers, scratch)
        except ImageRefused:
            return
        path = Path(scratch, "image")
        path.write_bytes(image[: root.hash_offset])
        done = subprocess.run([checker, str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
