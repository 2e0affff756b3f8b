"""Where the sockets of a sandbox lie."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from cloister.errors import Unavailable
from cloister.host.vmm.sandbox import _runtime_directory
from cloister.host.vmm.staging import Staging


def place(monkeypatch: pytest.MonkeyPatch, runtime: str | None, user: int = 1000) -> Path:
    """Return the directory that a user with this XDG_RUNTIME_DIR gets, gone again by now."""
    monkeypatch.setattr(os, "geteuid", lambda: user)
    if runtime is None:
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    else:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    with Staging() as staging:
        directory = _runtime_directory(staging)
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert not directory.exists()
    return directory.parent


def test_a_users_runtime_directory_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as runtime:  # pytest's own paths are too long
        assert place(monkeypatch, runtime) == Path(runtime)
        assert place(monkeypatch, runtime, user=0) == Path("/run")  # root's stand-in must reach it


@pytest.mark.parametrize("runtime", [None, "", ".", "relative", "/no/such/place"])
def test_without_one_it_is_the_place_for_temporary_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runtime: str | None
) -> None:
    """Never the current directory, which may be read-only, or shared with others."""
    (tmp_path / "relative").mkdir()
    monkeypatch.chdir(tmp_path)
    assert place(monkeypatch, runtime) == Path(tempfile.gettempdir())


def test_a_path_too_long_for_a_socket_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    with pytest.raises(Unavailable, match=r"host\.sandbox\.path") as caught:
        place(monkeypatch, str(long))
    assert caught.value.hint
    assert not list(long.iterdir())
