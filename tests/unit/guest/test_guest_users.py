"""Users come from the image's own tables, read inside its tree; what names mean, and what they may not reach."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import CloisterError, ImageRefused
from cloister.guest.users import Identity, read_image_file, resolve_identity
from cloister.oci.rootfs import RootDirectory

PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/app:\n5000:x:7:8::/numeric:\nbroken:line\nbad:x:x:0:::\n"
GROUP = "root:x:0:\nstaff:x:50:app,other\nlog:x:4:app\napp:x:1001:\nbroken\n"


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[RootDirectory]:
    etc = tmp_path / "root" / "etc"
    etc.mkdir(parents=True)
    (etc / "passwd").write_text(PASSWD)
    (etc / "group").write_text(GROUP)
    with RootDirectory(tmp_path / "root") as root:
        yield root


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[RootDirectory]:
    (tmp_path / "root").mkdir()
    with RootDirectory(tmp_path / "root") as root:
        yield root


@pytest.mark.parametrize(
    ("user", "identity"),
    [
        ("", Identity(uid=0, gid=0, groups=(), home="/root")),
        ("0", Identity(uid=0, gid=0, groups=(), home="/root")),
        ("root", Identity(uid=0, gid=0, groups=(), home="/root")),
        ("app", Identity(uid=1000, gid=1001, groups=(4, 50), home="/app")),
        ("1000", Identity(uid=1000, gid=1001, groups=(4, 50), home="/app")),
        ("app:staff", Identity(uid=1000, gid=50, groups=(), home="/app")),
        ("app:12", Identity(uid=1000, gid=12, groups=(), home="/app")),
        ("1234", Identity(uid=1234, gid=0, groups=(), home="/")),
        ("1234:staff", Identity(uid=1234, gid=50, groups=(), home="/")),
        ("1234:5678", Identity(uid=1234, gid=5678, groups=(), home="/")),
        ("5000", Identity(uid=7, gid=8, groups=(), home="/numeric")),  # a name that looks like a number is a name
    ],
)
def test_meaning_of_a_user(tree: RootDirectory, user: str, identity: Identity) -> None:
    assert resolve_identity(tree, user) == identity


@pytest.mark.parametrize(
    ("user", "code"),
    [
        ("nobody", "guest.users.unknown_user"),
        ("broken", "guest.users.unknown_user"),
        ("bad", "guest.users.unknown_user"),
        ("app:nogroup", "guest.users.unknown_group"),
        ("app:", "guest.users.malformed"),
        ("-1", "guest.users.unknown_user"),
        ("4294967295", "guest.users.unknown_user"),
        ("1000 ", "guest.users.unknown_user"),
        ("٣", "guest.users.unknown_user"),
    ],
)
def test_what_is_not_there_is_refused(tree: RootDirectory, user: str, code: str) -> None:
    with pytest.raises(ImageRefused) as caught:
        resolve_identity(tree, user)
    assert caught.value.code == code


def test_numbers_need_no_tables(bare: RootDirectory) -> None:
    assert resolve_identity(bare, "12:34") == Identity(uid=12, gid=34)
    with pytest.raises(ImageRefused):
        resolve_identity(bare, "app")


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../../../etc/passwd", "/../../outside", "../outside"])
def test_link_out_of_the_image_stays_inside(bare: RootDirectory, tmp_path: Path, target: str) -> None:
    """The machine's own /etc/passwd has root; the image's link to it must not find it."""
    (tmp_path / "outside").write_text("evil:x:0:0::/:\n")
    (tmp_path / "root" / "etc").mkdir()
    (tmp_path / "root" / "etc" / "passwd").symlink_to(target)
    for user in ("evil", "root", "daemon"):
        with pytest.raises(ImageRefused):
            resolve_identity(bare, user)


def test_directory_link_out_of_the_image_stays_inside(bare: RootDirectory, tmp_path: Path) -> None:
    (tmp_path / "root" / "etc").symlink_to("/etc")
    with pytest.raises(ImageRefused):
        resolve_identity(bare, "daemon")


@pytest.mark.parametrize("target", ["/store/passwd", "../store/passwd", "hop"])
def test_link_inside_the_image_is_followed(bare: RootDirectory, tmp_path: Path, target: str) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir()
    (root / "store").mkdir()
    (root / "store" / "passwd").write_text(PASSWD)
    (root / "etc" / "hop").symlink_to("/store/passwd")
    (root / "etc" / "passwd").symlink_to(target)
    assert resolve_identity(bare, "app").uid == 1000


@pytest.mark.parametrize("kind", ["directory", "fifo", "loop", "dots", "socket"])
def test_anything_but_a_file_is_refused(bare: RootDirectory, tmp_path: Path, kind: str) -> None:
    etc = tmp_path / "root" / "etc"
    etc.mkdir()
    path = etc / "passwd"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to("passwd")
    elif kind == "dots":
        path.symlink_to("..")
    else:
        os.mknod(path, 0o140644)
    with pytest.raises(ImageRefused) as caught:
        resolve_identity(bare, "app")
    assert caught.value.code == "guest.users.not_a_file"


def test_huge_tables_are_refused(bare: RootDirectory, tmp_path: Path) -> None:
    etc = tmp_path / "root" / "etc"
    etc.mkdir()
    (etc / "passwd").write_text("x" * (1024 * 1024 + 1))
    with pytest.raises(ImageRefused) as caught:
        resolve_identity(bare, "app")
    assert caught.value.code == "guest.users.too_long"
    (etc / "passwd").write_text("\n" * 10_001)
    with pytest.raises(ImageRefused):
        resolve_identity(bare, "app")


def test_missing_file_is_nothing(bare: RootDirectory) -> None:
    assert read_image_file(bare, b"etc/passwd", ceiling=10) is None


@given(passwd=st.binary(max_size=200), group=st.binary(max_size=200), user=st.text(max_size=12))
def test_any_table_gives_numbers_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, passwd: bytes, group: bytes, user: str
) -> None:
    root = tmp_path_factory.mktemp("root")
    (root / "etc").mkdir()
    (root / "etc" / "passwd").write_bytes(passwd)
    (root / "etc" / "group").write_bytes(group)
    with RootDirectory(root) as tree:
        try:
            identity = resolve_identity(tree, user)
        except CloisterError:
            return
    assert 0 <= identity.uid < 2**31
    assert 0 <= identity.gid < 2**31
