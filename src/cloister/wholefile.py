"""Files that are there whole or not at all, whatever dies meanwhile.

A draft is written, brought to the disk, and gets its name by a rename (POSIX.1-2017, `rename`): who reads meanwhile, or
after a crash, sees the old file or the new one. The directory is synced too, since a rename is no more durable than it.

Where the system and its file system have files without a name (Linux, `O_TMPFILE`), a draft is one of those: a process
that is killed leaves no content behind that nobody has checked, or that was to be read by nobody else. Elsewhere it
leaves an `.incomplete-*` file, which nobody takes for anything and anybody may remove.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, Self

OWNER_ONLY: Final = 0o600  # modes, before the umask
READABLE: Final = 0o644
_NAMELESS: Final[int | None] = getattr(os, "O_TMPFILE", None)
_HAS_NO_NAMELESS: Final = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT}  # open(2): file systems, old kernels
_DESCRIPTORS: Final = "/proc/self/fd"


class Draft:
    """A new file, gone at the end of the block unless it is placed. All of it raises OSError.

    Args:
        directory: on the file system of the later place.
        mode: before the umask.

    Attributes:
        file: to write into.
    """

    file: BinaryIO

    def __init__(self, directory: Path, *, mode: int) -> None:
        self._directory = directory
        self._mode = mode
        self._name = directory / f".incomplete-{os.getpid()}-{os.urandom(8).hex()}"

    def __enter__(self) -> Self:
        descriptor = self._open_nameless()
        if descriptor is None:
            descriptor = os.open(self._name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, self._mode)
        self.file = os.fdopen(descriptor, "wb")
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.file.close()
        finally:
            self._name.unlink(missing_ok=True)

    def place(self, target: Path, *, durable: bool = True) -> None:
        """Name the file `target`, in place of what has that name; `durable`: so that no crash undoes it."""
        self.file.flush()
        if durable:
            os.fsync(self.file.fileno())
        if not self._name.exists():  # no call gives a file a name that another has
            descriptor = self.file.fileno()
            source = f"{_DESCRIPTORS}/{descriptor}"  # absolute: what `src_dir_fd` is does not matter, but without it
            os.link(source, self._name, src_dir_fd=descriptor, follow_symlinks=True)  # no link is followed
        self._name.replace(target)
        if durable:
            sync_directory(target.parent)

    def _open_nameless(self) -> int | None:
        if _NAMELESS is None or not Path(_DESCRIPTORS).is_dir():
            return None
        try:
            return os.open(self._directory, _NAMELESS | os.O_WRONLY | os.O_CLOEXEC, self._mode)
        except OSError as err:
            if err.errno in _HAS_NO_NAMELESS:
                return None
            raise


@contextmanager
def whole_file(place: Path, *, mode: int, drafts: Path | None = None) -> Iterator[BinaryIO]:
    """Give a file to write into, that stands at `place` once the block has ended without an error.

    Args:
        place: where; what is there is replaced.
        mode: `OWNER_ONLY` or `READABLE`.
        drafts: directory of the draft, on the same file system; that of `place` by default.

    Raises:
        OSError: it cannot be written; then, as after an error of the block, `place` is as it was. Where nothing but the
            directory could not be synced, the new file stands, and a crash may undo it.
    """
    with Draft(drafts or place.parent, mode=mode) as draft:
        yield draft.file
        draft.place(place)


def write_whole(place: Path, data: bytes, *, mode: int, drafts: Path | None = None) -> None:
    """Replace the file at `place` by `data`; arguments and errors are those of `whole_file`."""
    with whole_file(place, mode=mode, drafts=drafts) as file:
        file.write(data)


def sync_directory(directory: Path) -> None:
    """Bring renames and removals in a directory to the disk, where its file system can. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as err:
        if err.errno != errno.EINVAL:  # fsync(2): no such thing there
            raise
    finally:
        os.close(descriptor)
