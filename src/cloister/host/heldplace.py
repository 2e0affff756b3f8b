"""Private temporary directories that end with their maker, however it ends.

A maker holds the lock of its directory (flock(2)), and no child inherits it. What is found without a holder was left by
a process that was killed: it may hold a key, and whoever makes a directory of the same kind removes it first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

_KEPT: Final = "kept"  # a file of this name keeps its directory from being removed
_ATTEMPTS: Final = 5  # each lost to somebody who took the directory for a left one before it was locked


class HeldPlace:
    """A directory made now, mode 0700. Use as a context manager, or `remove` it at the end.

    Args:
        kind: beginning of the name; directories of one kind are removed in one way.
        parent: where; the place for temporary files by default.
        remove: removes a directory of this kind; by default its files are overwritten first.

    Attributes:
        path: the directory.
    """

    def __init__(self, kind: str, *, parent: Path | None = None, remove: Callable[[Path], None] | None = None) -> None:
        """Sweep, then make the directory.

        Raises:
            OSError: it cannot be made.
        """
        self._remove = remove or wipe_directory
        place = parent or Path(tempfile.gettempdir())
        _sweep(place, f"{kind}-", self._remove)
        for _ in range(_ATTEMPTS):
            self.path = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=place))
            self._lock = try_lock(self.path)
            if self._lock >= 0 and self.path.exists():
                return
        raise OSError("somebody removes every new directory")

    def remove(self) -> None:
        """Remove the directory; further calls do nothing."""
        if self._lock >= 0:
            if not (self.path / _KEPT).exists():
                self._remove(self.path)
            os.close(self._lock)
            self._lock = -1

    def keep(self) -> None:
        """Have the directory left for a person to look at."""
        (self.path / _KEPT).touch()

    def __enter__(self) -> HeldPlace:
        """Return self."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the directory."""
        self.remove()


def try_lock(directory: Path) -> int:
    """Return a descriptor that holds the lock of `directory`, or -1 when another process has it or it is gone."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return -1
    return descriptor


def wipe_directory(directory: Path) -> None:
    """Overwrite the files of a directory and remove it; a missing one is fine.

    Overwriting reaches the old blocks on most file systems, not on copy-on-write ones or flash translation layers.
    """
    for file in directory.rglob("*"):
        if file.is_file() and not file.is_symlink():
            with contextlib.suppress(OSError), file.open("r+b") as content:
                content.write(bytes(file.stat().st_size))
                content.flush()
                os.fsync(content.fileno())
    shutil.rmtree(directory, ignore_errors=True)


def _sweep(parent: Path, prefix: str, remove: Callable[[Path], None]) -> None:
    """Remove what nobody holds. Where others may write, only what is this user's: theirs could hold links to ours."""
    shared = bool(parent.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    for entry in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            found = entry.lstat()
            if not stat.S_ISDIR(found.st_mode) or (entry / _KEPT).exists() or (shared and found.st_uid != os.geteuid()):
                continue
            lock = try_lock(entry)
            if lock >= 0:
                try:
                    remove(entry)
                finally:
                    os.close(lock)
