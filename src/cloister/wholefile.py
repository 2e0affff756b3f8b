"""Files that are there whole or not at all, whatever dies meanwhile.

Content goes into a draft beside the file, to the disk, and then by one rename to its name (POSIX.1-2017, `rename`):
who reads meanwhile, or after a crash, sees the old file or the new one. The directory is synced too, since a rename is
no more durable than it. A killed process can leave its draft; nobody takes it for the file.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

OWNER_ONLY: Final = 0o600  # modes, before the umask
READABLE: Final = 0o644


@contextmanager
def whole_file(place: Path, *, mode: int, drafts: Path | None = None) -> Iterator[BinaryIO]:
    """Give a file to write into, that stands at `place` once the block has ended without an error.

    Args:
        place: where; what is there is replaced.
        mode: `OWNER_ONLY` or `READABLE`.
        drafts: directory of the draft, on the same file system; that of `place` by default.

    Raises:
        OSError: it cannot be written; then, as after an error of the block, `place` is as it was.
    """
    draft = (drafts or place.parent) / f".{place.name}.{os.getpid()}.{os.urandom(4).hex()}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(place)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_directory(place.parent)


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
