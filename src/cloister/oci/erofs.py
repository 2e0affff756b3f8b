"""Writes a tree as an EROFS image: no compression, one layout, the same bytes for the same tree, on any machine.

Format: Linux Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h (6.12), blocks of 4096 bytes. Block 0 holds
the superblock, then comes the content of directories, files and links, each from a block of its own, then the metadata:
inodes in the order of their paths, each with its extended attributes and, where it fits into the same block, the last
piece of its content behind it. All inodes are of the extended form (64 bytes), because owners and times have any
value. There is no checksum: a dm-verity tree covers the image. UUID, label and build time are zero.

Pure: what is written goes to a function, content of files comes from one. Lengths are known before the first byte, so
an image of any length is written once, from its beginning to its end. Trusts the tree it is given.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from struct import Struct
from typing import Final

from cloister.oci.attributes import Attributes
from cloister.oci.tar import EntryKind

BLOCK: Final = 4096
_SLOT: Final = 32  # inodes are named by their place in units of this
_FIRST_INODE: Final = 64  # number 0 is no inode to some programs
_SUPERBLOCK_OFFSET: Final = 1024
_MAGIC: Final = 0xE0F5E1E2
_BLOCK_BITS: Final = 12
_COMPAT_MTIME: Final = 2  # the time of an inode is its modification's
# magic, checksum, compatible features, block bits, slots, root inode, inodes, build time (seconds, nanoseconds),
# blocks, first block of metadata, of shared attributes; UUID, name, incompatible features and what belongs to them are
# zero
_SUPERBLOCK: Final = Struct("<IIIBBHQQIIII80x")
# format, attribute count, mode, reserved, size, first block or device, number, owner, group, time (seconds,
# nanoseconds), links
_INODE: Final = Struct("<HHHHQIIIIqII16x")
_DIRENT: Final = Struct("<QHBx")
_XATTR_HEADER: Final = Struct("<IB7x")
_XATTR: Final = Struct("<BBH")
_EXTENDED: Final = 1
_FLAT_PLAIN: Final = 0 << 1 | _EXTENDED
_FLAT_INLINE: Final = 2 << 1 | _EXTENDED
# The longer prefix first: the whole of an access list's name is its prefix.
_XATTR_PREFIXES: Final = (
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"user.", 1),
    (b"security.", 6),
)
_TYPES: Final = {  # file type in directories, bits of the mode
    EntryKind.FILE: (1, stat.S_IFREG),
    EntryKind.DIRECTORY: (2, stat.S_IFDIR),
    EntryKind.CHARACTER_DEVICE: (3, stat.S_IFCHR),
    EntryKind.BLOCK_DEVICE: (4, stat.S_IFBLK),
    EntryKind.FIFO: (5, stat.S_IFIFO),
    EntryKind.SYMLINK: (7, stat.S_IFLNK),
}
_DEVICES: Final = (EntryKind.CHARACTER_DEVICE, EntryKind.BLOCK_DEVICE)


class Inode:
    """Something in the tree; one with several names is one object in several directories.

    Attributes:
        attributes: what it is and has.
        path: one of its names, for whoever reads its content.
        size: bytes of a file's content.
        link: a symbolic link's target.
        children: of a directory, by name.
    """

    __slots__ = ("_block", "_links", "_nid", "_xattrs", "attributes", "children", "link", "path", "size")

    def __init__(self, attributes: Attributes, path: bytes, *, size: int = 0, link: bytes = b"") -> None:
        self.attributes = attributes
        self.path = path
        self.size = size if attributes.kind is EntryKind.FILE else len(link)
        self.link = link
        self.children: dict[bytes, Inode] = {}
        self._block = 0
        self._links = 0
        self._nid = 0
        self._xattrs = b""


Read = Callable[[Inode, int, int], Iterator[bytes]]


class ErofsImage:
    """An image of the tree below `root`, its layout settled.

    Args:
        root: a directory.
    """

    def __init__(self, root: Inode) -> None:
        self._root = root
        self._inodes = list(_walk(root))
        for inode, parent in self._inodes:
            inode._xattrs = _encode_xattrs(inode.attributes.xattrs)
            if inode.attributes.kind is EntryKind.DIRECTORY:
                inode.size = _directory_size(inode)
                inode._links += 2
                parent._links += parent is not inode
            for child in inode.children.values():
                child._links += child.attributes.kind is not EntryKind.DIRECTORY
        self._place()

    def _place(self) -> None:
        """Give each inode its number, and its content its blocks."""
        block = 1
        for inode, _ in self._inodes:
            inode._block = block
            block += _whole_blocks(inode)
        self._metadata_block = block
        offset = _FIRST_INODE
        for inode, _ in self._inodes:
            length = _metadata_size(inode)
            left = -offset % BLOCK
            if left < length and (length <= BLOCK or left < _INODE.size):
                offset += left
            inode._nid = offset // _SLOT
            offset += length + -length % _SLOT
        self.blocks = block + -(-offset // BLOCK)

    def write(self, out: Callable[[bytes], None], read: Read) -> None:
        """Give the image to `out`, in pieces of any length.

        Args:
            out: takes what comes next.
            read: gives the bytes of a file's content from an offset, exactly so many.
        """
        out(self._superblock())
        for inode, parent in self._inodes:
            count = inode.size - _inlined(inode)
            _copy(self._content(inode, parent, read, 0, count), count, out)
            out(bytes(-count % BLOCK))
        offset = 0
        for inode, parent in self._inodes:
            out(bytes(inode._nid * _SLOT - offset) + _encode_inode(inode) + inode._xattrs)
            count = _inlined(inode)
            _copy(self._content(inode, parent, read, inode.size - count, count), count, out)
            offset = inode._nid * _SLOT + _metadata_size(inode)
        out(bytes(-offset % BLOCK))

    def _superblock(self) -> bytes:
        block = _SUPERBLOCK.pack(
            *(_MAGIC, 0, _COMPAT_MTIME, _BLOCK_BITS, 0, self._root._nid, len(self._inodes)),
            *(0, 0, self.blocks, self._metadata_block, 0),
        )
        return (bytes(_SUPERBLOCK_OFFSET) + block).ljust(BLOCK, b"\0")

    @staticmethod
    def _content(inode: Inode, parent: Inode, read: Read, offset: int, count: int) -> Iterable[bytes]:
        if not count:
            return ()
        if inode.attributes.kind is EntryKind.DIRECTORY:
            return _directory_blocks(inode, parent, offset // BLOCK, -(-count // BLOCK))
        if inode.attributes.kind is EntryKind.FILE:
            return read(inode, offset, count)
        return (inode.link[offset : offset + count],)


def _walk(root: Inode) -> Iterator[tuple[Inode, Inode]]:
    """Yield every inode once, with a directory it is in, by path; without recursion, because trees are deep."""
    seen: set[int] = set()
    waiting = [(root, root)]
    while waiting:
        inode, parent = waiting.pop()
        if id(inode) not in seen:
            seen.add(id(inode))
            yield inode, parent
            waiting += [(child, inode) for _, child in sorted(inode.children.items(), reverse=True)]


def _inlined(inode: Inode) -> int:
    """Return how many bytes of the content lie behind the inode."""
    tail = inode.size % BLOCK
    return tail if _INODE.size + len(inode._xattrs) + tail <= BLOCK else 0


def _whole_blocks(inode: Inode) -> int:
    return -(-(inode.size - _inlined(inode)) // BLOCK)


def _metadata_size(inode: Inode) -> int:
    return _INODE.size + len(inode._xattrs) + _inlined(inode)


def _encode_inode(inode: Inode) -> bytes:
    attributes = inode.attributes
    mode = 0o777 if attributes.kind is EntryKind.SYMLINK else attributes.mode
    seconds, nanoseconds = divmod(attributes.mtime_ns, 1_000_000_000)
    place = inode._block if _whole_blocks(inode) else 0
    if attributes.kind in _DEVICES:
        major, minor = attributes.device
        place = (minor & 0xFF | major << 8 | (minor & ~0xFF) << 12) & 0xFFFFFFFF  # linux/kdev_t.h, new_encode_dev
    return _INODE.pack(
        *(_FLAT_INLINE if _inlined(inode) else _FLAT_PLAIN, _xattr_count(inode._xattrs)),
        *(_TYPES[attributes.kind][1] | mode, 0, inode.size, place, inode._nid & 0xFFFFFFFF),
        *(attributes.uid, attributes.gid, seconds, nanoseconds, inode._links),
    )


def _copy(content: Iterable[bytes], count: int, out: Callable[[bytes], None]) -> None:
    for piece in content:
        count -= len(piece)
        out(piece)
    if count:
        raise RuntimeError("content is not as long as was said")


# -- directories -----------------------------------------------------------------------------------------------------


def _names(inode: Inode) -> list[list[bytes]]:
    """Return the names of a directory in the order of their bytes, as they share blocks."""
    blocks: list[list[bytes]] = [[]]
    left = BLOCK
    for name in sorted([*inode.children, b".", b".."]):
        needed = _DIRENT.size + len(name)
        if needed > left:
            blocks.append([])
            left = BLOCK
        blocks[-1].append(name)
        left -= needed
    return blocks


def _directory_size(inode: Inode) -> int:
    blocks = _names(inode)
    return (len(blocks) - 1) * BLOCK + sum(_DIRENT.size + len(name) for name in blocks[-1])


def _directory_blocks(inode: Inode, parent: Inode, first: int, count: int) -> Iterator[bytes]:
    special = {b".": inode, b"..": parent}
    blocks = _names(inode)
    for names in blocks[first : first + count]:
        offset = _DIRENT.size * len(names)
        entries = bytearray()
        for name in names:
            target = special.get(name) or inode.children[name]
            entries += _DIRENT.pack(target._nid, offset, _TYPES[target.attributes.kind][0])
            offset += len(name)
        block = bytes(entries) + b"".join(names)
        yield block if names is blocks[-1] else block.ljust(BLOCK, b"\0")


# -- extended attributes ---------------------------------------------------------------------------------------------


def _encode_xattrs(xattrs: Mapping[str, bytes]) -> bytes:
    """Return header and entries, in the order of the names' bytes; empty where there are none."""
    if not xattrs:
        return b""
    body = bytearray(_XATTR_HEADER.pack(0, 0))
    for name, value in sorted((name.encode(), value) for name, value in xattrs.items()):
        prefix, index = next(item for item in _XATTR_PREFIXES if name.startswith(item[0]))
        suffix = name[len(prefix) :]
        entry = _XATTR.pack(len(suffix), index, len(value)) + suffix + value
        body += entry + bytes(-len(entry) % 4)
    return bytes(body)


def _xattr_count(encoded: bytes) -> int:
    return (len(encoded) - _XATTR_HEADER.size) // _XATTR.size + 1 if encoded else 0
