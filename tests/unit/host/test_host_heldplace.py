"""Private directories end with their maker: removed by it, or by whoever makes the next one after it was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cloister.host.heldplace import HeldPlace

MAKER = """
import sys
from pathlib import Path
from cloister.host.heldplace import HeldPlace
place = HeldPlace("work", parent=Path(sys.argv[1]))
(place.path / "key").write_bytes(b"secret")
print(place.path, flush=True)
sys.stdin.read()
"""


def left_by_a_killed_process(parent: Path) -> Path:
    with subprocess.Popen(
        [sys.executable, "-c", MAKER, str(parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as maker:
        assert maker.stdout is not None
        path = Path(maker.stdout.readline().decode().strip())
        with HeldPlace("work", parent=parent):
            assert (path / "key").exists()  # its maker lives
        maker.send_signal(signal.SIGKILL)
    assert (path / "key").exists()
    return path


def test_it_is_private_and_ends_with_the_block(tmp_path: Path) -> None:
    with HeldPlace("work", parent=tmp_path) as place:
        assert place.path.stat().st_mode & 0o777 == 0o700
        (place.path / "file").write_text("x")
    assert not list(tmp_path.iterdir())
    place.remove()


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    path = left_by_a_killed_process(tmp_path)
    with HeldPlace("other", parent=tmp_path):
        assert path.exists()  # another kind
    with HeldPlace("work", parent=tmp_path):
        assert not path.exists()


def test_what_is_kept_stays(tmp_path: Path) -> None:
    with HeldPlace("work", parent=tmp_path) as place:
        place.keep()
    with HeldPlace("work", parent=tmp_path):
        assert place.path.exists()


def test_links_and_files_are_left_alone(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("x")
    place = tmp_path / "place"
    place.mkdir()
    (place / "work-link").symlink_to(outside)
    (place / "work-file").write_text("x")
    with HeldPlace("work", parent=place):
        assert (outside / "file").read_text() == "x"
        assert (place / "work-file").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's directory")
def test_another_user_s_directory_is_left_alone_where_others_may_write(tmp_path: Path) -> None:
    theirs = tmp_path / "work-theirs"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    tmp_path.chmod(0o1777)
    with HeldPlace("work", parent=tmp_path):
        assert theirs.exists()
    tmp_path.chmod(0o755)
    with HeldPlace("work", parent=tmp_path):
        assert not theirs.exists()
