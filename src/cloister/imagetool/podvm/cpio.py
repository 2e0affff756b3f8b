"""Writer of the `newc` cpio archive that the Linux kernel unpacks as its initramfs.

Format: Linux Documentation/driver-api/early-userspace/buffer-format.rst, magic 070701. Written here rather than by
cpio(1) because every field that could carry a trace of the builder (inode, owner, time, link count) is then a
constant, and a device node needs no privilege.
"""

from __future__ import annotations

import stat
from typing import Final

from cloister.imagetool.podvm.tree import Kind, Node, Tree

_MAGIC: Final = b"070701"
_TRAILER: Final = "TRAILER!!!"
_ALIGN: Final = 4
_TYPES: Final = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.LINK: stat.S_IFLNK,
    Kind.CHARACTER_DEVICE: stat.S_IFCHR,
}


def write_cpio(tree: Tree, *, mtime: int) -> bytes:
    """Return `tree` as one newc archive: sorted, inode numbers counted from 1, owner 0:0, one link each."""
    entries = [_entry(path, node, inode, mtime) for inode, (path, node) in enumerate(tree, 1)]
    return b"".join([*entries, _record(_TRAILER, 0, 0, 0, b"", (0, 0))])


def _entry(path: str, node: Node, inode: int, mtime: int) -> bytes:
    data = node.target.encode() if node.kind is Kind.LINK else node.data
    return _record(path, inode, _TYPES[node.kind] | node.mode, mtime, data, node.device)


def _record(path: str, inode: int, mode: int, mtime: int, data: bytes, device: tuple[int, int]) -> bytes:
    name = path.encode() + b"\0"
    links, user, group, file_system, check = 1, 0, 0, (0, 0), 0
    fields = (inode, mode, user, group, links, mtime, len(data), *file_system, *device, len(name), check)
    header = _MAGIC + b"".join(b"%08X" % value for value in fields)
    return _padded(header + name) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGN)
