"""The guest's own files in an image: written inside its tree, whatever the image put in their place."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cloister.errors import CloisterError, ImageRefused
from cloister.guest.rootfiles import make_working_directory, place_files
from cloister.oci.rootfs import RootDirectory


def place(root: Path) -> None:
    with RootDirectory(root) as tree:
        place_files(tree, "pod-name", b"nameserver 10.0.2.3\n")


def test_files_are_written(tmp_path: Path) -> None:
    place(tmp_path)
    assert (tmp_path / "etc" / "hostname").read_text() == "pod-name\n"
    assert "127.0.1.1 pod-name\n" in (tmp_path / "etc" / "hosts").read_text()
    assert (tmp_path / "etc" / "resolv.conf").read_text() == "nameserver 10.0.2.3\n"
    assert stat.S_IMODE((tmp_path / "etc" / "hosts").stat().st_mode) == 0o644


@pytest.mark.parametrize("kind", ["file", "link", "dangling", "hard link"])
def test_what_the_image_has_there_is_replaced_not_followed(tmp_path: Path, kind: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "etc").mkdir(parents=True)
    outside.write_text("untouched")
    target = root / "etc" / "hosts"
    if kind == "file":
        target.write_text("evil 1.2.3.4\n")
    elif kind == "link":
        target.symlink_to(outside)
    elif kind == "dangling":
        target.symlink_to("/nowhere")
    else:
        (root / "other").write_text("untouched")
        os.link(root / "other", target)
    place(root)
    assert target.is_file()
    assert not target.is_symlink()
    assert "pod-name" in target.read_text()
    assert outside.read_text() == "untouched"
    if kind == "hard link":
        assert (root / "other").read_text() == "untouched"


def test_etc_that_is_a_link_out_of_the_image_stays_inside(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "etc").symlink_to(f"../{outside.name}")
    place(root)
    assert not list(outside.iterdir())
    assert (root / "outside" / "hosts").is_file()


def test_directory_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "etc" / "hosts").mkdir(parents=True)
    with pytest.raises(ImageRefused) as caught:
        place(tmp_path)
    assert caught.value.code == "guest.rootfiles.blocked"


def test_file_in_the_place_of_etc_is_refused(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("")
    with pytest.raises(ImageRefused):
        place(tmp_path)


@pytest.mark.parametrize(("path", "made"), [("/a/b/c", "a/b/c"), ("/", "."), ("/a/../b//c/", "b/c"), ("/a/..", ".")])
def test_working_directory_is_made(tmp_path: Path, path: str, made: str) -> None:
    with RootDirectory(tmp_path) as tree:
        make_working_directory(tree, path)
    assert (tmp_path / made).is_dir()


def test_working_directory_does_not_leave_the_image(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to("../../outside")
    with RootDirectory(root) as tree:
        make_working_directory(tree, "/link/work")
    assert not (tmp_path / "outside").exists()
    assert (root / "outside" / "work").is_dir()


def test_working_directory_through_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with RootDirectory(tmp_path) as tree, pytest.raises(CloisterError):
        make_working_directory(tree, "/file/work")
