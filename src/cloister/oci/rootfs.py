"""A directory tree that no name leads out of: the only way layers reach the file system.

Every step opens one name relative to an open directory, never following a link (`O_NOFOLLOW`). A symbolic link in
the middle of a path is followed by us, inside the tree: an absolute target starts at the tree's root, `..` stops
there, as `chroot` would have it. So what an archive calls `lib/x` lands where a process in the container sees
`/lib/x`, also when `lib` is a link, and never elsewhere. Does not defend against another process changing the tree
at the same time: the caller owns the tree until it is complete.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from cloister.errors import ImageRefused
from cloister.wire.limits import SYMLINK_HOPS, TAR_PATH_DEPTH

OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
CREATE_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIRECTORIES: Final = 64
_PARENT_MODE: Final = 0o755


class Directory(NamedTuple):
    """An open directory inside the tree and its path there without links (empty for the root)."""

    fd: int
    path: bytes

    def join(self, name: bytes) -> bytes:
        """Return the tree path of `name` in this directory."""
        return self.path + b"/" + name if self.path else name


class RootDirectory:
    """The tree under `path`, which must be an existing directory; use it in a `with` statement."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._fd = os.open(path, OPEN_DIRECTORY)
        self._open: OrderedDict[bytes, Directory] = OrderedDict()
        self._retired: set[int] = set()

    def __enter__(self) -> RootDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.forget()
        os.close(self._fd)

    @property
    def top(self) -> Directory:
        """The root itself."""
        return Directory(self._fd, b"")

    def forget(self, *, keep: Directory | None = None) -> None:
        """Close remembered directories; call after removing or replacing anything that a path may lead through.

        Args:
            keep: a directory still in use; it stays open until the next call.
        """
        fds = self._retired | {directory.fd for directory in self._open.values()}
        self._retired = fds & ({keep.fd} if keep else set())
        for fd in fds - self._retired:
            os.close(fd)
        self._open.clear()

    def find(self, components: Sequence[bytes], *, create: bool) -> Directory | None:
        """Open the directory that `components` lead to.

        Args:
            components: names, none of them empty, `.` or `..`.
            create: make missing directories, or else return None for them.

        Raises:
            ImageRefused: `oci.layer.symlink_loop`, `oci.layer.parent_not_directory`, `oci.layer.path_too_long`.
            OSError: the file system refused. The returned directory stays open until 64 others were found.
        """
        if not components:
            return self.top
        wanted = b"/".join(components)
        known = self._open.get(wanted)
        if known is None:
            known = self._walk(components, create)
            if known is None:
                return None
            self._remember(wanted, known)
        self._open.move_to_end(wanted)
        return known

    def _remember(self, wanted: bytes, directory: Directory) -> None:
        self._open[wanted] = directory
        if len(self._open) > _OPEN_DIRECTORIES:
            _, oldest = self._open.popitem(last=False)
            os.close(oldest.fd)

    def _walk(self, components: Sequence[bytes], create: bool) -> Directory | None:
        trail: list[bytes] = []
        fds = [os.dup(self._fd)]
        pending = deque(components)
        hops = 0
        try:
            while pending:
                name = pending.popleft()
                if name in (b"", b"."):
                    continue
                if name == b"..":  # only from a link's target; above the root there is the root
                    if trail:
                        trail.pop()
                        os.close(fds.pop())
                    continue
                fd = _open_child(fds[-1], name, create)
                if fd is None:
                    return None
                if fd >= 0:
                    trail.append(name)
                    fds.append(fd)
                    if len(trail) > TAR_PATH_DEPTH:
                        raise ImageRefused(
                            "oci.layer.path_too_long", "directories nest too deep", path=_show(components)
                        )
                    continue
                hops += 1
                if hops > SYMLINK_HOPS:
                    raise ImageRefused(
                        "oci.layer.symlink_loop", "too many symbolic links in a path", path=_show(components)
                    )
                target = os.readlink(name, dir_fd=fds[-1])
                if target.startswith(b"/"):
                    while trail:
                        trail.pop()
                        os.close(fds.pop())
                pending.extendleft(reversed(target.split(b"/")))
            return Directory(fds.pop(), b"/".join(trail))
        finally:
            for fd in fds:
                os.close(fd)


def split_path(path: bytes) -> list[bytes]:
    """Return the names in an archive's path; a leading slash means the root of the tree, as all unpackers read it.

    Raises:
        ImageRefused: `oci.layer.path_escape` for any `..`, `oci.layer.path_too_long`.
    """
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    if b".." in names:
        raise ImageRefused("oci.layer.path_escape", "path goes upwards", path=_show([path]))
    if len(names) > TAR_PATH_DEPTH:
        raise ImageRefused("oci.layer.path_too_long", "directories nest too deep", path=_show([path]))
    return names


def _open_child(fd: int, name: bytes, create: bool) -> int | None:
    """Return an open directory, None where there is nothing and none shall be made, or -1 for a symbolic link."""
    try:
        return os.open(name, OPEN_DIRECTORY, dir_fd=fd)
    except FileNotFoundError:
        if not create:
            return None
        return _make_child(fd, name)
    except OSError as err:
        if err.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        if stat.S_ISLNK(os.lstat(name, dir_fd=fd).st_mode):
            return -1
        raise ImageRefused(
            "oci.layer.parent_not_directory", "path leads through something that is no directory", path=_show([name])
        ) from err


def _make_child(fd: int, name: bytes) -> int:
    """Make a directory that no archive describes, in a way that depends on nothing but its name."""
    before = os.fstat(fd)
    os.mkdir(name, _PARENT_MODE, dir_fd=fd)
    os.utime(fd, ns=(before.st_mtime_ns, before.st_mtime_ns))
    made = os.open(name, OPEN_DIRECTORY, dir_fd=fd)
    if before.st_mode & stat.S_ISGID:  # the kernel would hand down the group
        os.fchown(made, os.geteuid(), os.getegid())
    os.fchmod(made, _PARENT_MODE)
    os.utime(made, ns=(0, 0))
    return made


def _show(names: Sequence[bytes]) -> str:
    return b"/".join(names)[:200].decode("utf-8", "backslashreplace")
