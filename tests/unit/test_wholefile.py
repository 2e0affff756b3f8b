"""A file is there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from cloister import wholefile
from cloister.wholefile import OWNER_ONLY, READABLE, whole_file, write_whole


@pytest.fixture(params=["nameless", "named", "refused"])
def drafts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How drafts are: without a name; with one, as the system has no others, or the file system."""
    real = os.open

    def refusing(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, *rest, **more)

    if request.param == "named":
        monkeypatch.setattr(wholefile, "_NAMELESS", None)
    if request.param == "refused":
        monkeypatch.setattr(os, "open", refusing)
    return str(request.param)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.mark.usefixtures("drafts")
@pytest.mark.parametrize("mode", [OWNER_ONLY, READABLE])
def test_a_file_is_replaced_and_has_its_mode(tmp_path: Path, mode: int) -> None:
    place = tmp_path / "file"
    place.write_bytes(b"old")
    place.chmod(0o777)
    write_whole(place, b"new", mode=mode)
    assert place.read_bytes() == b"new" and stat.S_IMODE(place.stat().st_mode) == mode & ~_umask()
    assert names(tmp_path) == {"file"}


def test_nobody_sees_half_a_file(tmp_path: Path, drafts: str) -> None:
    place = tmp_path / "file"
    place.write_bytes(b"old")
    with whole_file(place, mode=OWNER_ONLY) as file:
        file.write(b"half")
        file.flush()
        assert place.read_bytes() == b"old"
        assert len(names(tmp_path)) == (1 if drafts == "nameless" else 2)
    assert place.read_bytes() == b"half" and names(tmp_path) == {"file"}


@pytest.mark.usefixtures("drafts")
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_all_is_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    place = tmp_path / "file"
    place.write_bytes(b"old")
    with pytest.raises(error), whole_file(place, mode=OWNER_ONLY) as file:
        file.write(b"half")
        raise error
    assert place.read_bytes() == b"old" and names(tmp_path) == {"file"}


@pytest.mark.usefixtures("drafts")
def test_what_cannot_take_its_name_is_removed(tmp_path: Path) -> None:
    place = tmp_path / "file"
    (place / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        write_whole(place, b"new", mode=OWNER_ONLY)
    assert names(tmp_path) == {"file"}


def test_the_content_is_on_the_disk_before_it_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, synced = tmp_path / "file", []
    sync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), os.fstat(descriptor).st_size, place.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    write_whole(place, b"new", mode=OWNER_ONLY)
    (directory, size, named), (after, _, stands) = synced
    assert (directory, size, named) == (False, 3, False)
    assert after and stands


@pytest.mark.parametrize(("number", "raised"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_directories_that_cannot_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, raised: bool
) -> None:
    """Some file systems have no such thing; a disk that fails is an error."""
    sync = os.fsync

    def failing(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="error") if raised else contextlib.nullcontext():
        write_whole(tmp_path / "file", b"new", mode=OWNER_ONLY)
    assert names(tmp_path) == {"file"}


def test_a_draft_is_made_where_it_is_wanted(tmp_path: Path, drafts: str) -> None:
    place = tmp_path / "drafts"
    place.mkdir()
    with whole_file(tmp_path / "file", mode=OWNER_ONLY, drafts=place) as file:
        file.write(b"new")
        assert len(names(place)) == (0 if drafts == "nameless" else 1) and names(tmp_path) == {"drafts"}
    assert names(place) == set() and (tmp_path / "file").read_bytes() == b"new"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
