"""Root images: what layers say is in them, to the byte and the same everywhere; what unpacking refuses is refused."""

from __future__ import annotations

import io
import os
import stat
import tempfile
from pathlib import Path

import pytest

from cloister.errors import ImageRefused, Refused, Unavailable
from cloister.imagetool.verity import compute_image_root
from cloister.oci.digest import Digest
from cloister.oci.dmverity import HashTree, build_verity_tree, verify_blocks
from cloister.oci.layout import OCILayout
from cloister.oci.rootimage import RootImage, build_root_image, root_image_salt
from unit.oci.builders import (
    archive,
    build_layout,
    directory,
    file,
    gnu,
    hard_link,
    header,
    pax,
    seal_and_sign,
    symlink,
)
from unit.oci.erofsreader import Found, read_erofs

LONG = b"n" * 255
ACL = b"\2\0\0\0" + b"\1\0\7\0\xff\xff\xff\xff" + b"\4\0\5\0\xff\xff\xff\xff" + b"\x20\0\5\0\xff\xff\xff\xff"
LOWER = archive(
    directory(b"etc", mode=0o1777, uid=5, gid=6, mtime=77),
    file(b"etc/passwd", b"root", mode=0o4711, uid=70000, gid=2_000_000),
    hard_link(b"etc/again", b"etc/passwd"),
    file(b"big", bytes(range(256)) * 64 + b"tail"),
    file(b"whole", b"w" * 8192),
    file(b"empty"),
    symlink(b"link", b"/etc/passwd", mtime=3),
    header(b"null", kind=b"3", mode=0o666, device=(1, 3)),
    header(b"disk", kind=b"4", mode=0o600, device=(259, 70_000)),
    header(b"pipe", kind=b"6", mode=0o622),
    file(b"gone/deep/x", b"1"),
    file(b"opaque/old", b"1"),
    pax([(b"SCHILY.xattr.user.a", b"\0\xff"), (b"SCHILY.xattr.security.capability", b"\1\0\0\2" + bytes(16))]),
    file(b"caps", b"c"),
    pax([(b"SCHILY.xattr.system.posix_acl_access", ACL), (b"SCHILY.xattr.user.long", b"v" * 5000)]),
    file(b"acl", b"a" * 100),
    gnu(b"L", b"dir/" + LONG),
    file(b"x", b"long"),
    file(b"dir/\xff\xfe\n odd", b"odd"),
    pax([(b"mtime", b"-1.25")]),
    file(b"old", b""),
)
UPPER = archive(
    file(b".wh.gone"),
    file(b"opaque/.wh..wh..opq"),
    file(b"opaque/new", b"2"),
    file(b"implied/by/a/path", b"3"),
    file(b"whole", b"replaced"),
)


def build(tmp_path: Path, *layers: bytes) -> tuple[RootImage, bytes]:
    out = io.BytesIO()
    diff_ids = [Digest.of(layer) for layer in layers]
    pieces = ([layer[i : i + 1000] for i in range(0, len(layer), 1000)] for layer in layers)
    root = build_root_image(pieces, diff_ids, out, str(tmp_path))
    assert not list(tmp_path.iterdir())
    return root, out.getvalue()


def tree_of(tmp_path: Path, *layers: bytes) -> dict[bytes, Found]:
    root, image = build(tmp_path, *layers)
    return read_erofs(image[: root.hash_offset])


def test_everything_is_in_it(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, LOWER, UPPER)
    assert set(tree) == {
        *(b"", b"etc", b"etc/passwd", b"etc/again", b"big", b"whole", b"empty", b"link", b"null", b"disk", b"pipe"),
        *(b"opaque", b"opaque/new", b"caps", b"acl", b"dir", b"dir/" + LONG, b"dir/\xff\xfe\n odd", b"old"),
        *(b"implied", b"implied/by", b"implied/by/a", b"implied/by/a/path"),
    }
    etc, passwd = tree[b"etc"], tree[b"etc/passwd"]
    assert (etc.mode, etc.uid, etc.gid, etc.mtime_ns, etc.links) == (stat.S_IFDIR | 0o1777, 5, 6, 77 * 10**9, 2)
    assert (passwd.mode, passwd.uid, passwd.gid) == (stat.S_IFREG | 0o4711, 70000, 2_000_000)
    assert passwd == tree[b"etc/again"]
    assert passwd.links == 2
    assert tree[b"big"].content == bytes(range(256)) * 64 + b"tail"
    assert tree[b"whole"].content == b"replaced"
    assert tree[b"empty"].content == b""
    assert (tree[b"link"].mode, tree[b"link"].content) == (stat.S_IFLNK | 0o777, b"/etc/passwd")
    assert (tree[b"null"].mode, tree[b"null"].device) == (stat.S_IFCHR | 0o666, (1, 3))
    assert (tree[b"disk"].mode, tree[b"disk"].device) == (stat.S_IFBLK | 0o600, (259, 70_000))
    assert tree[b"pipe"].mode == stat.S_IFIFO | 0o622
    assert tree[b"caps"].xattrs == {b"user.a": b"\0\xff", b"security.capability": b"\1\0\0\2" + bytes(16)}
    assert tree[b"acl"].xattrs == {b"system.posix_acl_access": ACL, b"user.long": b"v" * 5000}
    assert tree[b"acl"].content == b"a" * 100
    assert tree[b"dir/" + LONG].content == b"long"
    assert tree[b"old"].mtime_ns == -1_250_000_000
    implied = tree[b"implied/by"]
    assert (implied.mode, implied.uid, implied.gid, implied.mtime_ns) == (stat.S_IFDIR | 0o755, 0, 0, 0)
    assert tree[b""].links == 2 + 4
    assert tree[b""].mtime_ns == 0


def test_same_layers_have_the_same_root_hash(tmp_path: Path) -> None:
    first, image = build(tmp_path, LOWER, UPPER)
    assert build(tmp_path, LOWER, UPPER) == (first, image)
    assert first.root_hash.hex() == "171130be7f5de2235c384bbb2804b7e0eedc9de53afa61d1efe1d2d84b256c48"
    diff_ids = [Digest.of(LOWER), Digest.of(UPPER)]
    assert build_root_image([[LOWER], [UPPER]], diff_ids, None, str(tmp_path)) == first


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_root_hash_does_not_depend_on_who_computes_it(tmp_path: Path) -> None:
    expected, _ = build(tmp_path, LOWER, UPPER)
    place = tempfile.mkdtemp()  # all of its parents are open to others
    os.chown(place, 1234, 1234)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgid(1234)
            os.umask(0o077)
            os.setuid(1234)
            root = build_root_image([[LOWER], [UPPER]], [Digest.of(LOWER), Digest.of(UPPER)], None, place)
            os.write(writing, root.root_hash)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == expected.root_hash
    os.waitpid(child, 0)
    os.rmdir(place)


@pytest.mark.parametrize("count", [0, 1, 200, 600])
def test_directories_of_any_length(tmp_path: Path, count: int) -> None:
    names = [b"d/%03d-%s" % (number, b"x" * (number % 90)) for number in range(count)]
    tree = tree_of(tmp_path, archive(directory(b"d"), *(file(name, name) for name in names)))
    assert sorted(tree) == sorted([b"", b"d", *names])
    assert all(tree[name].content == name for name in names)


@pytest.mark.parametrize("size", [1, 4031, 4032, 4033, 4095, 4096, 4097, 8191, 12_288, 300_000])
def test_files_of_any_length(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    tree = tree_of(tmp_path, archive(file(b"f", content), file(b"g", content[::-1])))
    assert tree[b"f"].content == content
    assert tree[b"g"].content == content[::-1]


def test_a_removed_files_attributes_do_not_come_back(tmp_path: Path) -> None:
    """Inode numbers are used again: what is made without being described has none of the old owner."""
    lower = archive(*(directory(b"a%d" % n, mode=0o700, uid=9) for n in range(50)))
    upper = archive(*(file(b".wh.a%d" % n) for n in range(50)), *(file(b"b%d/f" % n) for n in range(50)))
    tree = tree_of(tmp_path, lower, upper)
    assert {tree[b"b%d" % n].uid for n in range(50)} == {0}
    assert {tree[b"b%d" % n].mode & 0o777 for n in range(50)} == {0o755}


def test_one_name_of_two_may_go(tmp_path: Path) -> None:
    lower = archive(file(b"a", b"x", uid=7), hard_link(b"b", b"a"))
    tree = tree_of(tmp_path, lower, archive(file(b".wh.a")))
    assert tree[b"b"].uid == 7
    assert tree[b"b"].links == 1


@pytest.mark.parametrize(
    ("layer", "code"),
    [
        (archive(file(b"../x")), "oci.layer.path_escape"),
        (archive(file(b"a"), file(b"a")), "oci.layer.duplicate_entry"),
        (archive(hard_link(b"a", b"b")), "oci.layer.link_target"),
        (archive(file(b"a", b"x"))[:-1024], None),
        (file(b"a", b"x" * 5000)[:-1000], "oci.layer.truncated"),
    ],
)
def test_what_unpacking_refuses_is_refused(tmp_path: Path, layer: bytes, code: str | None) -> None:
    if code is None:
        build(tmp_path, layer)
        return
    with pytest.raises(ImageRefused) as caught:
        build(tmp_path, layer)
    assert caught.value.code == code
    assert not list(tmp_path.iterdir())


def test_a_missing_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageRefused) as caught:
        build_root_image([[LOWER]], [Digest.of(LOWER), Digest.of(UPPER)], None, str(tmp_path))
    assert caught.value.code == "oci.unpack.missing_layer"


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with open("/dev/full", "r+b", buffering=0) as full, pytest.raises(Unavailable) as caught:
        build_root_image([[LOWER]], [Digest.of(LOWER)], full, str(tmp_path))
    assert caught.value.code == "oci.rootimage.io"


def test_salt_is_the_layers(tmp_path: Path) -> None:
    one, two = Digest.of(b"1"), Digest.of(b"2")
    salts = {root_image_salt(ids) for ids in ([one], [two], [one, two], [two, one])}
    assert len(salts) == 4


# -- images ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["gzip", ""])
def test_image_in_a_store(tmp_path: Path, compression: str) -> None:
    built = build_layout(tmp_path / "image", LOWER, UPPER, compression=compression)
    made = compute_image_root(built.layout, "v1", tmp_path / "root.erofs")
    assert made.digest == built.digest
    (tmp_path / "scratch").mkdir()
    assert made.root == build(tmp_path / "scratch", LOWER, UPPER)[0]
    image = (tmp_path / "root.erofs").read_bytes()
    assert len(image) == made.root.hash_offset + made.root.hash_blocks * 4096
    check(image, made.root)
    assert sorted(os.listdir(tmp_path)) == ["image", "root.erofs", "scratch"]


def check(image: bytes, root: RootImage) -> None:
    verify_blocks([image], root_hash=root.root_hash, salt=root.salt, data_blocks=root.data_blocks)


def test_refused_image_leaves_nothing(tmp_path: Path) -> None:
    built = build_layout(tmp_path / "image", LOWER, archive(file(b"../x")))
    (tmp_path / "root.erofs").write_bytes(b"the one before")
    with pytest.raises(ImageRefused):
        compute_image_root(built.layout, "v1", tmp_path / "root.erofs")
    assert sorted(os.listdir(tmp_path)) == ["image", "root.erofs"]
    assert (tmp_path / "root.erofs").read_bytes() == b"the one before"


def test_layer_of_another_image_is_refused(tmp_path: Path) -> None:
    """The configuration's diff_ids bind what is unpacked, not the manifest alone."""
    built = build_layout(tmp_path / "image", LOWER)
    other = build_layout(tmp_path / "other", UPPER)
    path = built.path / "blobs/sha256" / Digest.of(built.layers[0]).hex
    path.write_bytes(other.layers[0])
    with pytest.raises(ImageRefused) as caught:
        compute_image_root(built.layout, "v1", None)
    assert caught.value.code.endswith("_mismatch")


def test_encrypted_image_needs_its_key(tmp_path: Path) -> None:
    from cloister.crypto.signer import ECDSAP256Signer

    layout, digest = seal_and_sign(build_layout(tmp_path / "plain", LOWER), tmp_path / "s", ECDSAP256Signer.generate())
    assert isinstance(layout, OCILayout)
    with pytest.raises(ImageRefused) as caught:
        compute_image_root(layout, digest, None)
    assert caught.value.code == "imagetool.verity.encrypted"


# -- verification ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1024, 5000, -1, -4096])
def test_one_bit_is_seen(tmp_path: Path, place: int) -> None:
    root, image = build(tmp_path, LOWER)
    check(image, root)
    changed = bytearray(image)
    changed[place] ^= 1
    with pytest.raises(Refused) as caught:
        check(bytes(changed), root)
    assert caught.value.code == "oci.verity.mismatch"


@pytest.mark.parametrize("change", [lambda i: i[:-4096], lambda i: i + bytes(4096), lambda i: i[4096:], lambda i: b""])
def test_other_lengths_are_seen(tmp_path: Path, change: object) -> None:
    root, image = build(tmp_path, LOWER)
    with pytest.raises(Refused) as caught:
        check(change(image), root)  # type: ignore[operator]  # a function of bytes
    assert caught.value.code.startswith("oci.verity.")


@pytest.mark.parametrize("blocks", [1, 2, 127, 128, 129, 255, 256, 257, 128 * 128, 128 * 128 + 1])
def test_tree_of_a_stream_is_the_tree_of_the_whole(blocks: int) -> None:
    data = b"".join(number.to_bytes(8, "big") * 512 for number in range(blocks))
    whole = build_verity_tree(data, salt=b"salt")
    made: dict[int, bytes] = {}
    tree = HashTree(blocks, salt=b"salt", store=made.__setitem__)
    for start in range(0, len(data), 3 * 4096):
        tree.add(data[start : start + 3 * 4096])
    assert tree.finish() == whole.root_hash
    assert b"".join(made[number] for number in sorted(made)) == whole.hashes
    assert sorted(made) == list(range(tree.hash_blocks))
