"""What an image says of its files, kept beside a tree whose files do not have it.

Owners, set-id bits, devices and attributes need root on a file system. Whoever only wants to know them (a root image is
made by anybody) unpacks without, and keeps them here by inode number. Trusts the tree to be changed by nobody else.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cloister.oci.tar import EntryKind


class Attributes(msgspec.Struct, frozen=True, kw_only=True):
    """Of one inode; the defaults are those of a directory that no archive describes."""

    kind: EntryKind = EntryKind.DIRECTORY
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = {}


class AttributeRecord:
    """Attributes by inode number."""

    def __init__(self) -> None:
        self._of: dict[int, Attributes] = {}

    def made(self, inode: int, attributes: Attributes) -> None:
        """Keep what a new or changed inode has."""
        self._of[inode] = attributes

    def removed(self, inode: int) -> None:
        """Forget an inode, whose number may come again."""
        self._of.pop(inode, None)

    def of(self, inode: int) -> Attributes:
        """Return what was kept."""
        return self._of.get(inode, _IMPLIED)


_IMPLIED = Attributes()
