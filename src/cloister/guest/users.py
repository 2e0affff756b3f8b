"""Who a container's process is: the image's own `/etc/passwd` and `/etc/group`, read inside the image's tree only.

Rules of the OCI runtime's reference implementation: `user`, `uid`, `user:group`, `uid:gid`, mixed; a number needs no
entry; without a group the entry's own group counts, and the user's supplementary groups with it. Names must exist.

The files belong to the image: links in their paths are followed inside its tree, as a process in it would see them,
and never out of it; anything but a regular file refuses. Trusts nobody.
"""

from __future__ import annotations

import os
import stat
from typing import Final

import msgspec

from cloister.errors import ImageRefused
from cloister.oci.rootfs import RootDirectory
from cloister.wire.limits import MIB, SYMLINK_HOPS

_FILE_BYTES: Final = 1 * MIB
_LINES: Final = 10_000
_GROUPS: Final = 1024
_HIGHEST_ID: Final = 2**31 - 1
_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers a process runs under, and its home directory."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"


def resolve_identity(root: RootDirectory, user: str) -> Identity:
    """Return what `user` (of the verified image or the policy) means in the image's tree.

    Raises:
        ImageRefused: `guest.users.unknown_user`, `guest.users.unknown_group`, `guest.users.malformed`.
    """
    name, colon, group = user.partition(":")
    if colon and not group:
        raise ImageRefused("guest.users.malformed", "user ends in a colon", path="user", actual=user[:80])
    entry = _find_user(_read_table(root, b"passwd", fields=7), name)
    uid = int(entry[2]) if entry else _number(name, "user")
    gid = int(entry[3]) if entry else 0
    groups: tuple[int, ...] = ()
    if group:
        gid = _find_group(_read_table(root, b"group", fields=4), group)
    elif entry:
        groups = _memberships(_read_table(root, b"group", fields=4), entry[0])
    return Identity(uid=uid, gid=gid, groups=groups, home=entry[5] or "/" if entry else "/")


def read_image_file(root: RootDirectory, path: bytes, *, ceiling: int) -> bytes | None:
    """Return the content of regular file `path` inside the tree, or None where there is nothing.

    Raises:
        ImageRefused: `guest.users.not_a_file`, `guest.users.too_long`, or a path the tree refuses.
    """
    *parents, name = path.split(b"/")
    for _ in range(SYMLINK_HOPS):
        directory = root.find([part for part in parents if part], create=False)
        if directory is None:
            return None
        try:
            fd = os.open(name, _OPEN, dir_fd=directory.fd)
        except FileNotFoundError:
            return None
        except OSError:
            target = _link_target(name, directory.fd, path)
            *parents, name = ([] if target.startswith(b"/") else directory.path.split(b"/")) + target.split(b"/")
            if name in (b"", b".", b".."):
                raise _not_a_file(path) from None
            continue
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise _not_a_file(path)
        with os.fdopen(fd, "rb") as file:
            content = file.read(ceiling + 1)
        if len(content) > ceiling:
            raise ImageRefused(
                "guest.users.too_long", "file is longer than any real one", path=_show(path), expected=str(ceiling)
            )
        return content
    raise _not_a_file(path)


def _link_target(name: bytes, directory: int, path: bytes) -> bytes:
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError as err:
        raise _not_a_file(path) from err


def _not_a_file(path: bytes) -> ImageRefused:
    return ImageRefused("guest.users.not_a_file", "not a regular file of the image", path=_show(path))


def _show(path: bytes) -> str:
    return "/" + path.decode("utf-8", "backslashreplace")


def _read_table(root: RootDirectory, name: bytes, *, fields: int) -> list[list[str]]:
    """Return the well-formed lines of a colon-separated file; like every reader of these files, skip the others."""
    content = read_image_file(root, b"etc/" + name, ceiling=_FILE_BYTES)
    lines = (content or b"").decode("utf-8", "surrogateescape").split("\n")
    if len(lines) > _LINES:
        raise ImageRefused("guest.users.too_long", "too many lines", path=f"/etc/{name.decode()}", expected=str(_LINES))
    rows = [line.split(":") for line in lines]
    ids = (2, 3) if fields == 7 else (2,)
    return [row for row in rows if len(row) >= fields and row[0] and all(_is_number(row[index]) for index in ids)]


def _find_user(table: list[list[str]], name: str) -> list[str] | None:
    if not name:
        name = "0"
    named = next((row for row in table if row[0] == name), None)
    if named or not _is_number(name):
        if named is None:
            raise ImageRefused(
                "guest.users.unknown_user",
                "the image has no such user",
                path="user",
                actual=name[:80],
                hint="name a user of the image's /etc/passwd, or a number",
            )
        return named
    return next((row for row in table if int(row[2]) == int(name)), None)


def _find_group(table: list[list[str]], name: str) -> int:
    named = next((row for row in table if row[0] == name), None)
    if named:
        return int(named[2])
    return _number(name, "group")


def _memberships(table: list[list[str]], user: str) -> tuple[int, ...]:
    found = sorted({int(row[2]) for row in table if user in row[3].split(",")})
    if len(found) > _GROUPS:
        raise ImageRefused("guest.users.too_long", "user is in too many groups", path="/etc/group")
    return tuple(found)


def _number(text: str, what: str) -> int:
    if not text:
        return 0
    if not _is_number(text):
        raise ImageRefused(
            f"guest.users.unknown_{what}", f"the image has no such {what}", path="user", actual=text[:80]
        )
    return int(text)


def _is_number(text: str) -> bool:
    return 0 < len(text) <= 10 and text.isascii() and text.isdigit() and int(text) <= _HIGHEST_ID
