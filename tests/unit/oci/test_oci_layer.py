"""Layers applied to a directory: the specification's rules, and archives that try to get out or to confuse."""

from __future__ import annotations

import contextlib
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.errors import CloisterError, ImageRefused, Unavailable
from cloister.oci.layer import DeviceNodes, LayerUnpacker, UnpackOptions
from cloister.oci.rootfs import RootDirectory
from unit.oci.builders import OPTIONS, archive, directory, file, hard_link, header, pax, symlink

NULL_DEVICE = header(b"dev/null", kind=b"3", device=(1, 3))


class Tree:
    """A directory to unpack into, inside another whose content must never change."""

    def __init__(self, outside: Path) -> None:
        self.outside = outside
        self.root = outside / "root"
        self.root.mkdir()
        (outside / "secret").write_text("outside", encoding="ascii")
        (outside / "folder").mkdir()
        (outside / "folder" / "file").write_text("outside", encoding="ascii")
        self._before = self._look_outside()

    def unpack(self, *layers: bytes, options: UnpackOptions = OPTIONS) -> None:
        try:
            with RootDirectory(self.root) as root:
                unpacker = LayerUnpacker(root, options)
                for layer in layers:
                    unpacker.apply([layer[i : i + 700] for i in range(0, len(layer), 700)])
        finally:
            assert self._look_outside() == self._before

    def refused(self, *layers: bytes, options: UnpackOptions = OPTIONS) -> str:
        with pytest.raises(CloisterError) as caught:
            self.unpack(*layers, options=options)
        assert caught.value.code.startswith("oci.layer.")
        return caught.value.code.removeprefix("oci.layer.")

    def content(self) -> dict[str, str]:
        """Return path to content, link target or `/`."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            name = str(path.relative_to(self.root))
            if path.is_symlink():
                found[name] = f"-> {path.readlink()}"
            elif path.is_dir():
                found[name] = "/"
            else:
                found[name] = path.read_text(encoding="ascii")
        return found

    def _look_outside(self) -> list[tuple[str, int, int, bytes]]:
        seen = []
        for path in sorted([self.outside, *self.outside.rglob("*")]):
            if path == self.root or self.root in path.parents:
                continue
            status = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            seen.append((str(path), status.st_mode, status.st_nlink - (path == self.outside), content))
        return seen


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


# -- what layers do ---------------------------------------------------------------------------------------------


def test_entries_get_content_mode_and_time(tree: Tree) -> None:
    tree.unpack(
        archive(
            directory(b"./", mode=0o755),
            directory(b"d/", mode=0o750),
            file(b"d/f", b"text", mode=0o640),
            symlink(b"s", b"d/f"),
            hard_link(b"h", b"./d/f"),
            header(b"p", kind=b"6", mode=0o600),
        )
    )
    assert (tree.root / "d" / "f").read_text() == "text"
    assert (tree.root / "s").readlink() == Path("d/f")
    assert (tree.root / "h").samefile(tree.root / "d" / "f")
    assert stat.S_ISFIFO((tree.root / "p").lstat().st_mode)
    assert stat.S_IMODE((tree.root / "d" / "f").stat().st_mode) == 0o640
    assert stat.S_IMODE((tree.root / "d").stat().st_mode) == 0o750
    for name in (".", "d", "d/f", "s", "p"):
        assert (tree.root / name).lstat().st_mtime == 1_700_000_000


def test_missing_parents_are_made(tree: Tree) -> None:
    tree.unpack(archive(file(b"a/b/c", b"x")))
    assert tree.content() == {"a": "/", "a/b": "/", "a/b/c": "x"}
    assert stat.S_IMODE((tree.root / "a" / "b").stat().st_mode) == 0o755


def test_absolute_names_are_inside_the_root(tree: Tree) -> None:
    tree.unpack(archive(file(b"/app/run", b"x"), file(b"//top", b"y"), hard_link(b"/again", b"/app/run")))
    assert tree.content() == {"again": "x", "app": "/", "app/run": "x", "top": "y"}


def test_upper_layer_replaces(tree: Tree) -> None:
    lower = archive(
        file(b"file", b"1"),
        file(b"to-dir", b"1"),
        directory(b"to-file"),
        file(b"to-file/deep/er", b"1"),
        symlink(b"to-plain", b"file"),
        hard_link(b"hard", b"file"),
        directory(b"kept", mode=0o700),
        file(b"kept/f", b"1"),
    )
    upper = archive(
        file(b"file", b"2"),
        directory(b"to-dir"),
        file(b"to-file", b"2"),
        file(b"to-plain", b"2"),
        directory(b"kept", mode=0o755),
        symlink(b"new", b"kept"),
    )
    tree.unpack(lower, upper)
    assert tree.content() == {
        "file": "2",
        "hard": "1",  # the replaced file's other name keeps the old content
        "kept": "/",
        "kept/f": "1",
        "new": "-> kept",
        "to-dir": "/",
        "to-file": "2",
        "to-plain": "2",
    }
    assert stat.S_IMODE((tree.root / "kept").stat().st_mode) == 0o755


def test_whiteouts_hide_lower_layers(tree: Tree) -> None:
    lower = archive(file(b"a/gone", b"1"), file(b"a/dir/x", b"1"), file(b"a/stays", b"1"), symlink(b"a/link", b"stays"))
    upper = archive(file(b"a/.wh.gone"), file(b"a/.wh.dir"), file(b"a/.wh.link"), file(b"b/.wh.never-was"))
    tree.unpack(lower, upper)
    assert tree.content() == {"a": "/", "a/stays": "1"}


def test_a_whiteout_before_what_its_own_layer_makes_there(tree: Tree) -> None:
    lower = archive(file(b"d/old", b"1"), file(b"f", b"1"))
    tree.unpack(lower, archive(file(b".wh.d"), file(b".wh.f"), file(b"d/new", b"2"), file(b"f", b"2")))
    assert tree.content() == {"d": "/", "d/new": "2", "f": "2"}


@pytest.mark.parametrize("made", [file(b"d/new", b"3"), directory(b"d"), symlink(b"d", b"f")])
def test_a_whiteout_after_what_its_own_layer_made_is_refused(tree: Tree, made: bytes) -> None:
    """The specification spares it, containerd removes it."""
    assert tree.refused(archive(file(b"d/old", b"1")), archive(made, file(b".wh.d"))) == "bad_whiteout"


@pytest.mark.parametrize("opaque_first", [True, False])
def test_opaque_directories_hide_what_was_below(tree: Tree, opaque_first: bool) -> None:
    lower = archive(file(b"d/old", b"1"), file(b"d/sub/old", b"1"), file(b"other", b"1"))
    opaque, entries = file(b"d/.wh..wh..opq"), file(b"d/sub/new", b"2")
    tree.unpack(lower, archive(*((opaque, entries) if opaque_first else (entries, opaque))))
    assert tree.content() == {"d": "/", "d/sub": "/", "d/sub/new": "2", "other": "1"}


def test_an_opaque_root_hides_everything(tree: Tree) -> None:
    tree.unpack(archive(file(b"a/b", b"1"), file(b"c", b"1")), archive(file(b".wh..wh..opq"), file(b"d", b"2")))
    assert tree.content() == {"d": "2"}


def test_names_lead_through_links_inside_the_root(tree: Tree) -> None:
    tree.unpack(
        archive(
            directory(b"usr/lib"), symlink(b"lib", b"usr/lib"), symlink(b"abs", b"/usr"), symlink(b"up", b"../../usr")
        ),
        archive(file(b"lib/one", b"1"), file(b"abs/lib/two", b"2"), file(b"up/three", b"3"), file(b"lib/.wh.none")),
        archive(file(b"abs/lib/.wh.one"), hard_link(b"four", b"lib/two")),
    )
    assert tree.content() == {
        "abs": "-> /usr",
        "four": "2",
        "lib": "-> usr/lib",
        "up": "-> ../../usr",
        "usr": "/",
        "usr/lib": "/",
        "usr/lib/two": "2",
        "usr/three": "3",
    }


def test_a_remembered_path_is_forgotten_when_a_link_is_replaced(tree: Tree) -> None:
    tree.unpack(
        archive(directory(b"a"), directory(b"b"), symlink(b"way", b"a")),
        archive(file(b"way/x", b"1"), file(b"b/y", b"1")),
        archive(
            file(b"way/z", b"2"), file(b"b/.wh.y"), directory(b"c"), symlink(b"c/way", b"../b"), file(b"c/way/q", b"2")
        ),
        archive(directory(b"way"), file(b"way/here", b"3")),
    )
    content = tree.content()
    assert content["way"] == "/"
    assert content["way/here"] == "3"
    assert content["b/q"] == "2"
    assert "a/here" not in content


@pytest.mark.parametrize("removal", [(file(b".wh.way"),), (directory(b"way"),)], ids=["whiteout", "replacement"])
def test_a_path_used_before_is_looked_up_again_after_a_link_in_it_went(tree: Tree, removal: tuple[bytes, ...]) -> None:
    tree.unpack(
        archive(directory(b"a/sub"), symlink(b"way", b"a")),
        archive(file(b"way/sub/before", b"1"), *removal, file(b"way/sub/after", b"2")),
    )
    content = tree.content()
    assert content["a/sub/before"] == "1"
    assert content["way/sub/after"] == "2"
    assert "a/sub/after" not in content


def times_of(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.lstat().st_mtime_ns for path in [root, *root.rglob("*")]}


LAYERS_THAT_CHANGE_DIRECTORIES = (
    archive(
        directory(b"./"),
        directory(b"a"),
        file(b"a/x"),
        file(b"a/y"),
        file(b"implied/b/c"),
        directory(b"e"),
        file(b"e/1"),
    ),
    archive(file(b"a/new"), file(b"a/.wh.x"), file(b"implied/more"), file(b".wh.e"), file(b"e/own/f"), file(b"top")),
    archive(
        file(b"a/.wh.y"), file(b".wh.a"), symlink(b"a", b"implied"), file(b"implied/.wh..wh..opq"), file(b"implied/z/q")
    ),
)


def test_the_tree_does_not_depend_on_when_it_is_unpacked(tmp_path: Path) -> None:
    found = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        tree = Tree(tmp_path / str(number))
        os.utime(tree.root, ns=(0, 0))
        tree.unpack(*LAYERS_THAT_CHANGE_DIRECTORIES)
        found.append(times_of(tree.root))
    assert found[0] == found[1]
    assert set(found[0].values()) == {0, 1_700_000_000 * 10**9}
    assert found[0]["implied"] == found[0]["implied/z"] == 0
    assert found[0]["."] == 1_700_000_000 * 10**9


def test_many_directories_stay_within_the_descriptor_limit(tree: Tree) -> None:
    names = [b"d%d/e/f" % number for number in range(300)]
    before = {int(number) for number in os.listdir("/proc/self/fd")}  # a whole run of tests has many open
    with descriptor_limit(max(before) + 100):
        tree.unpack(archive(*(file(name, b"x") for name in names)), archive(*(file(name, b"y") for name in names)))
    assert (tree.root / "d299" / "e" / "f").read_text() == "y"
    assert len(os.listdir("/proc/self/fd")) <= len(before)


@contextlib.contextmanager
def descriptor_limit(count: int) -> Iterator[None]:
    """Let this process have no descriptor numbered `count` or higher."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, soft), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_names_that_are_not_text(tree: Tree) -> None:
    tree.unpack(archive(file(b"\xff\xfe\n", b"x")))
    assert os.listdir(os.fsencode(tree.root)) == [b"\xff\xfe\n"]


def test_without_ownership_set_id_bits_are_dropped_and_directories_stay_writable(tree: Tree) -> None:
    tree.unpack(archive(file(b"f", mode=0o6755), directory(b"d", mode=0o2555), file(b"d/x")), archive(file(b"d/y")))
    assert stat.S_IMODE((tree.root / "f").stat().st_mode) == 0o755
    assert stat.S_IMODE((tree.root / "d").stat().st_mode) == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="owners are set by root only")
def test_ownership(tree: Tree) -> None:
    options = UnpackOptions(ownership=True, devices=DeviceNodes.CREATE)
    tree.unpack(
        archive(
            file(b"f", mode=0o6755, uid=1000, gid=1001),
            directory(b"d", mode=0o2555, uid=5, gid=6),
            symlink(b"s", b"f", uid=7, gid=8),
            header(b"dev/null", kind=b"3", device=(1, 3), mode=0o666, uid=9),
        ),
        options=options,
    )
    found = (tree.root / "f").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1000, 1001, 0o6755)
    assert stat.S_IMODE((tree.root / "d").stat().st_mode) == 0o2555
    assert (tree.root / "s").lstat().st_uid == 7
    node = (tree.root / "dev" / "null").lstat()
    assert stat.S_ISCHR(node.st_mode)
    assert (node.st_rdev, node.st_uid) == (os.makedev(1, 3), 9)


def test_attributes(tree: Tree) -> None:
    tree.unpack(
        archive(pax([(b"SCHILY.xattr.user.note", b"v"), (b"SCHILY.xattr.security.selinux", b"x")]) + file(b"f"))
    )
    try:
        assert os.getxattr(tree.root / "f", "user.note") == b"v"
    except OSError:
        pytest.skip("this file system has no user attributes")
    assert "security.selinux" not in os.listxattr(tree.root / "f")


def test_attributes_of_a_lower_layers_directory_go_with_it(tree: Tree) -> None:
    lower = archive(pax([(b"SCHILY.xattr.user.note", b"v")]) + directory(b"d"), file(b"d/f", b"1"))
    tree.unpack(lower)
    if "user.note" not in os.listxattr(tree.root / "d"):
        pytest.skip("this file system has no user attributes")
    tree.unpack(archive(directory(b"d")))
    assert os.listxattr(tree.root / "d") == []
    assert (tree.root / "d" / "f").read_text() == "1"


def test_names_of_a_layer_have_a_ceiling_together(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are kept while the layer is unpacked: those of directories that no entry describes, too."""
    monkeypatch.setattr("cloister.oci.layer.LAYER_NAME_BYTES", 100)  # fewer than 128 MiB
    tree.unpack(archive(file(b"n" * 99)), archive(file(b"m" * 99)))
    assert tree.refused(archive(file(b"n" * 50), file(b"m" * 51))) == "too_many_entries"
    assert tree.refused(archive(file(b"/".join([b"d"] * 14)))) == "too_many_entries"  # 1 + 3 + .. + 27


def test_too_many_names_of_one_file_are_the_images_fault(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(31, "Too many links")

    monkeypatch.setattr("cloister.oci.layer.os.link", refuse)  # ext4 takes 65000, others take more
    assert tree.refused(archive(file(b"f"), hard_link(b"h", b"f"))) == "too_many_links"


def test_device_nodes_below_dev_may_be_left_out(tree: Tree) -> None:
    options = UnpackOptions(ownership=False, devices=DeviceNodes.SKIP_BELOW_DEV)
    tree.unpack(archive(NULL_DEVICE, file(b"a")), options=options)
    assert tree.content() == {"a": ""}
    assert tree.refused(archive(header(b"etc/null", kind=b"3", device=(1, 3))), options=options) == "device"


# -- what is refused --------------------------------------------------------------------------------------------

ESCAPES: list[tuple[str, str, bytes]] = [
    ("dot dot", "path_escape", archive(file(b"../secret", b"x"))),
    ("inner dot dot", "path_escape", archive(directory(b"a"), file(b"a/../../secret", b"x"))),
    ("harmless dot dot", "path_escape", archive(file(b"a/../b", b"x"))),
    ("last dot dot", "path_escape", archive(directory(b"a/.."))),
    ("absolute dot dot", "path_escape", archive(file(b"/../secret", b"x"))),
    ("hard link dot dot", "path_escape", archive(hard_link(b"h", b"../secret"))),
    ("hard link absolute", "link_target", archive(hard_link(b"h", b"/etc/hostname"))),
    ("hard link missing", "link_target", archive(hard_link(b"h", b"nothing"))),
    ("hard link to directory", "link_target", archive(directory(b"d"), hard_link(b"h", b"d"))),
    ("hard link to itself", "link_target", archive(hard_link(b"h", b"h"))),
    ("hard link to root", "ambiguous_header", archive(hard_link(b"h", b"/"))),
    ("link that ends in a slash", "ambiguous_header", archive(symlink(b"l/", b"x"))),
    ("file that ends in a dot", "ambiguous_header", archive(file(b"f/."))),
    ("hard link to a name that ends in a slash", "ambiguous_header", archive(file(b"f"), hard_link(b"h", b"f/"))),
    ("directory twice, two times", "duplicate_entry", archive(directory(b"d"), directory(b"d", mtime=5))),
    ("whiteout of an overlay", "device", archive(header(b"dev/x", kind=b"3"))),
    (
        "overlay attribute of users",
        "xattr",
        archive(pax([(b"SCHILY.xattr.user.overlay.opaque", b"y")]) + directory(b"d")),
    ),
    (
        "overlay attribute of a link",
        "xattr",
        archive(pax([(b"SCHILY.xattr.trusted.overlay.opaque", b"y")]) + symlink(b"d", b"x")),
    ),
    (
        "overlay attribute of the root",
        "xattr",
        archive(pax([(b"SCHILY.xattr.trusted.overlay.opaque", b"y")]) + directory(b"./")),
    ),
    ("capability without a value", "xattr", archive(pax([(b"SCHILY.xattr.security.capability", b"")]) + file(b"f"))),
    ("list that is none", "xattr", archive(pax([(b"SCHILY.xattr.system.posix_acl_access", b"x" * 12)]) + file(b"f"))),
    ("file as root", "path_escape", archive(file(b"./", fields={(156, 157): b"2"}, link=b"x"))),
    ("link loop", "symlink_loop", archive(symlink(b"a", b"b"), symlink(b"b", b"a"), file(b"a/x"))),
    ("self loop", "symlink_loop", archive(symlink(b"a", b"a/a"), file(b"a/x"))),
    ("parent is file", "parent_not_directory", archive(file(b"a"), file(b"a/x"))),
    ("parent is fifo", "parent_not_directory", archive(header(b"a", kind=b"6"), file(b"a/x"))),
    ("twice", "duplicate_entry", archive(file(b"a", b"1"), file(b"a", b"2"))),
    ("twice by other name", "duplicate_entry", archive(file(b"a", b"1"), file(b"./a", b"2"))),
    ("twice by link", "duplicate_entry", archive(file(b"d/a"), symlink(b"l", b"d"), file(b"l/a"))),
    ("file over own directory", "duplicate_entry", archive(file(b"d/a"), file(b"d"))),
    ("directory over own link", "duplicate_entry", archive(symlink(b"d", b"x"), directory(b"d"))),
    ("link over own file", "duplicate_entry", archive(file(b"a"), symlink(b"a", b"x"))),
    ("whiteout of nothing", "bad_whiteout", archive(file(b".wh."))),
    ("whiteout of dot", "bad_whiteout", archive(file(b"d/.wh.."))),
    ("whiteout of dot dot", "bad_whiteout", archive(file(b"d/.wh..."))),
    ("whiteout of whiteout", "bad_whiteout", archive(file(b".wh..wh.x"))),
    ("whiteout with content", "bad_whiteout", archive(file(b".wh.x", b"content"))),
    ("whiteout directory", "bad_whiteout", archive(directory(b".wh.x"))),
    ("whiteout link", "bad_whiteout", archive(symlink(b".wh.x", b"y"))),
    ("below whiteout", "bad_whiteout", archive(file(b".wh.x/y"))),
    ("device", "device", archive(NULL_DEVICE)),
    ("block device", "device", archive(header(b"sda", kind=b"4", device=(8, 0)))),
    ("overlay attribute", "xattr", archive(pax([(b"SCHILY.xattr.trusted.overlay.opaque", b"y")]) + directory(b"d"))),
    ("overlay redirect", "xattr", archive(pax([(b"SCHILY.xattr.trusted.overlay.redirect", b"/")]) + directory(b"d"))),
    ("deep", "path_too_long", archive(pax([(b"path", b"d/" * 300 + b"f")]) + file(b"f"))),
    ("long name", "bad_name", archive(pax([(b"path", b"n" * 300)]) + file(b"f"))),
]


@pytest.mark.parametrize(("code", "layer"), [row[1:] for row in ESCAPES], ids=[row[0] for row in ESCAPES])
def test_hostile_layers_are_refused(tree: Tree, code: str, layer: bytes) -> None:
    assert tree.refused(layer) == code


@pytest.mark.parametrize(
    "target", [b"..", b"../folder", b"/", b"/../../..", b"../../../../../../tmp", b"/proc/self/cwd"]
)
def test_links_never_lead_outside(tree: Tree, target: bytes) -> None:
    tree.unpack(
        archive(symlink(b"out", target)),
        archive(file(b"out/planted", b"x"), directory(b"out/folder"), file(b"out/folder/file", b"x")),
        archive(file(b"out/.wh.secret"), file(b"out/.wh.folder"), file(b"out/.wh..wh..opq")),
    )


def test_a_link_as_the_last_part_is_replaced_not_followed(tree: Tree) -> None:
    tree.unpack(
        archive(symlink(b"l", b"../secret"), symlink(b"m", b"../folder")), archive(file(b"l", b"x"), directory(b"m"))
    )
    assert tree.content() == {"l": "x", "m": "/"}


def test_a_hard_link_to_a_link_links_the_link(tree: Tree) -> None:
    tree.unpack(archive(symlink(b"l", b"../secret"), hard_link(b"h", b"l")), archive(file(b"h", b"x")))
    assert tree.content() == {"h": "x", "l": "-> ../secret"}


def test_deep_nesting_by_way_of_links_is_refused(tree: Tree) -> None:
    layers = [
        archive(
            pax([(b"path", b"d/" * 200 + b"f")]) + file(b"f"), pax([(b"linkpath", b"d/" * 200)]) + symlink(b"l", b"x")
        )
    ]
    layers.append(archive(pax([(b"path", b"l/" + b"e/" * 200 + b"f")]) + file(b"f")))
    assert tree.refused(*layers) == "path_too_long"


def test_ceilings_count_over_all_layers(tree: Tree) -> None:
    options = UnpackOptions(ownership=False, devices=DeviceNodes.REFUSE, bytes_ceiling=10, entries_ceiling=3)
    tree.unpack(archive(file(b"a", b"12345")), archive(file(b"b", b"12345"), directory(b"c")), options=options)
    assert tree.refused(archive(file(b"a", b"12345")), archive(file(b"b", b"123456")), options=options) == "too_large"
    four = archive(file(b"a"), file(b"b"), file(b"c"), file(b"d"))
    assert tree.refused(four, options=options) == "too_many_entries"


def test_a_file_larger_than_the_ceiling_is_refused_before_it_is_written(tree: Tree) -> None:
    options = UnpackOptions(ownership=False, devices=DeviceNodes.REFUSE, bytes_ceiling=10)
    assert tree.refused(header(b"big", size=1 << 30), options=options) == "too_large"
    assert tree.content() == {}


def test_a_full_disk_is_unavailable(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(fd: int, data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cloister.oci.layer.os.write", no_space)  # a full disk without filling one
    with pytest.raises(Unavailable) as caught:
        tree.unpack(archive(file(b"a", b"x")))
    assert caught.value.code == "oci.layer.no_space"


def test_another_failing_write_is_unavailable(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(fd: int, data: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("cloister.oci.layer.os.write", broken)  # a failing disk without breaking one
    with pytest.raises(Unavailable) as caught:
        tree.unpack(archive(file(b"a", b"x")))
    assert (caught.value.code, caught.value.actual) == ("oci.layer.write_failed", "EIO")


def test_refusals_name_the_entry(tree: Tree) -> None:
    with pytest.raises(ImageRefused) as caught:
        tree.unpack(archive(file(b"ok"), file(b"../x")))
    assert caught.value.path == "../x"
