"""The root file system of an image as one EROFS image with a dm-verity tree behind it, and its root hash.

The same layers give the same root hash: to whoever computes it, root or not, on whatever machine and file system. The
layers are applied by the unpacker of containers, with its rules and refusals, to a scratch directory; what needs root
is kept beside it. Device nodes are part of the image. The salt comes from the diff_ids, so that it needs no agreement.

Trusts the archives: whoever calls checks each to its end, against its diff_id.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, Final

import msgspec

from cloister.errors import ImageRefused, Unavailable
from cloister.oci.attributes import AttributeRecord
from cloister.oci.digest import Digest
from cloister.oci.dmverity import HashTree
from cloister.oci.erofs import BLOCK, ErofsImage, Inode
from cloister.oci.layer import DeviceNodes, LayerUnpacker, UnpackOptions
from cloister.oci.rootfs import RootDirectory
from cloister.oci.tar import EntryKind
from cloister.wire.limits import MIB

OPTIONS: Final = UnpackOptions(ownership=False, devices=DeviceNodes.CREATE)
_SALT_LABEL: Final = b"cloister root image 1\n"
_READ_BYTES: Final = MIB
_READ_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class RootImage(msgspec.Struct, frozen=True, kw_only=True):
    """What a root image is mounted by.

    Attributes:
        root_hash: of the dm-verity tree.
        salt: of the tree.
        data_blocks: blocks of 4096 bytes before the tree.
        hash_blocks: blocks of the tree.
    """

    root_hash: bytes
    salt: bytes
    data_blocks: int
    hash_blocks: int

    @property
    def hash_offset(self) -> int:
        """Where the tree begins, in bytes."""
        return self.data_blocks * BLOCK


def root_image_salt(diff_ids: Sequence[Digest]) -> bytes:
    """Return the salt for an image of these layers."""
    return hashlib.sha256(_SALT_LABEL + "".join(f"{item}\n" for item in diff_ids).encode()).digest()


def build_root_image(
    archives: Iterable[Iterable[bytes]], diff_ids: Sequence[Digest], out: BinaryIO | None, scratch: str
) -> RootImage:
    """Write the root image of an image's layers.

    Args:
        archives: the plain archives, lowest first.
        diff_ids: as the image's configuration lists them.
        out: an empty file that can be positioned; None where only the root hash is wanted.
        scratch: a directory with room for the unpacked tree; nothing is left in it.

    Raises:
        ImageRefused: `oci.layer.*`, `oci.unpack.missing_layer`, and what reading the archives refuses.
        Unavailable: `oci.layer.no_space`, `oci.rootimage.io`.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="cloister-root-", dir=scratch) as top:
            record = AttributeRecord()
            with RootDirectory(top) as tree:
                unpacker = LayerUnpacker(tree, OPTIONS, record)
                count = 0
                for archive in archives:
                    unpacker.apply(archive)
                    count += 1
                if count != len(diff_ids):
                    raise ImageRefused("oci.unpack.missing_layer", "image has more layers", path=f"layers[{count}]")
                image = ErofsImage(_read_tree(tree, record))
                return _write(image, tree, root_image_salt(diff_ids), out)
    except OSError as err:
        raise Unavailable(
            "oci.rootimage.io", "root image cannot be written", path=str(err.filename or ""), actual=str(err.strerror)
        ) from err


class _Output:
    """Writes data and hash tree, each to its place."""

    def __init__(self, image: ErofsImage, salt: bytes, out: BinaryIO | None) -> None:
        self._out = out
        self._end = image.blocks * BLOCK
        self._pending = bytearray()
        self._position = 0
        self.tree = HashTree(image.blocks, salt=salt, store=self._store)

    def write(self, data: bytes) -> None:
        self._pending += data
        if len(self._pending) >= _READ_BYTES:
            self._flush()

    def finish(self) -> bytes:
        self._flush()
        return self.tree.finish()

    def _flush(self) -> None:
        whole = len(self._pending) - len(self._pending) % BLOCK
        blocks = bytes(memoryview(self._pending)[:whole])
        del self._pending[:whole]
        self._put(self._position, blocks)
        self._position += whole
        self.tree.add(blocks)

    def _store(self, number: int, block: bytes) -> None:
        self._put(self._end + number * BLOCK, block)

    def _put(self, offset: int, data: bytes) -> None:
        if self._out is not None:
            self._out.seek(offset)
            self._out.write(data)


def _write(image: ErofsImage, tree: RootDirectory, salt: bytes, out: BinaryIO | None) -> RootImage:
    def read(inode: Inode, offset: int, count: int) -> Iterator[bytes]:
        parent, _, name = inode.path.rpartition(b"/")
        directory = tree.find(parent.split(b"/") if parent else [], create=False)
        if directory is None:
            raise RuntimeError("a directory of the scratch tree is gone")
        fd = os.open(name, _READ_FILE, dir_fd=directory.fd)
        try:
            while count and (piece := os.pread(fd, min(count, _READ_BYTES), offset)):
                yield piece
                offset += len(piece)
                count -= len(piece)
        finally:
            os.close(fd)

    output = _Output(image, salt, out)
    image.write(output.write, read)
    return RootImage(
        root_hash=output.finish(), salt=salt, data_blocks=image.blocks, hash_blocks=output.tree.hash_blocks
    )


def _read_tree(tree: RootDirectory, record: AttributeRecord) -> Inode:
    """Return the inodes of the scratch tree with the attributes that were kept for them."""
    root = Inode(record.of(os.fstat(tree.top.fd).st_ino), b"")
    known: dict[int, Inode] = {}
    waiting = [root]
    while waiting:
        directory = waiting.pop()
        opened = tree.find(directory.path.split(b"/") if directory.path else [], create=False)
        if opened is None:
            raise RuntimeError("a directory of the scratch tree is gone")
        for name in _list(opened.fd):
            status = os.lstat(name, dir_fd=opened.fd)
            inode = known.get(status.st_ino)
            if inode is None:
                inode = known[status.st_ino] = _inode(opened.fd, name, opened.join(name), status, record)
            directory.children[name] = inode
            if stat.S_ISDIR(status.st_mode):
                waiting.append(inode)
    return root


def _list(fd: int) -> list[bytes]:
    with os.scandir(fd) as content:
        return [os.fsencode(item.name) for item in content]


def _inode(fd: int, name: bytes, path: bytes, status: os.stat_result, record: AttributeRecord) -> Inode:
    attributes = record.of(status.st_ino)
    if (attributes.kind is EntryKind.DIRECTORY) != stat.S_ISDIR(status.st_mode):
        raise RuntimeError("attributes were kept for something else")
    link = os.readlink(name, dir_fd=fd) if attributes.kind is EntryKind.SYMLINK else b""
    return Inode(attributes, path, size=status.st_size, link=link)
