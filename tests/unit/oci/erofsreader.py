"""A reader of EROFS images for tests, written from the format's documentation and not from the writer: every field it
does not understand must be zero."""

from __future__ import annotations

import stat
import struct
from typing import NamedTuple

BLOCK = 4096
PREFIXES = {1: b"user.", 2: b"system.posix_acl_access", 3: b"system.posix_acl_default", 6: b"security."}


class Found(NamedTuple):
    """What stands at a path; `number` is the same for two names of one file."""

    number: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    links: int
    device: tuple[int, int]
    content: bytes
    xattrs: dict[bytes, bytes]


def read_erofs(image: bytes) -> dict[bytes, Found]:
    """Return everything in an image by path; the root's is empty."""
    assert image[:1024] == bytes(1024)
    magic, checksum, compat, bits, slots, root, inodes, time, nano, blocks, meta, shared = struct.unpack_from(
        "<IIIBBHQQIIII", image, 1024
    )
    assert (magic, checksum, compat, bits, slots) == (0xE0F5E1E2, 0, 2, 12, 0)
    assert (time, nano, shared) == (0, 0, 0)
    assert image[1072:BLOCK] == bytes(BLOCK - 1072)
    assert blocks * BLOCK == len(image)
    found: dict[bytes, Found] = {}
    waiting = [(b"", root, root)]
    while waiting:
        path, number, parent = waiting.pop()
        found[path] = inode = read_inode(image, meta, number)
        if stat.S_ISDIR(inode.mode):
            entries = list(read_directory(inode.content))
            names = [name for name, _, _ in entries]
            assert names == sorted(set(names))
            special = {name: target for name, target, _ in entries if name in (b".", b"..")}
            assert special == {b".": number, b"..": parent}
            for name, target, kind in entries:
                if name not in special:
                    child = path + b"/" + name if path else name
                    assert kind == file_type(read_inode(image, meta, target).mode)
                    waiting.append((child, target, number))
    assert len({item.number for item in found.values()}) == inodes
    return found


def file_type(mode: int) -> int:
    order = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFLNK)
    return order.index(stat.S_IFMT(mode)) + 1


def read_inode(image: bytes, meta: int, number: int) -> Found:
    offset = meta * BLOCK + number * 32
    layout, xattrs, mode, zero, size, place, ino, uid, gid, seconds, nano, links = struct.unpack_from(
        "<HHHHQIIIIqII", image, offset
    )
    assert layout in (1, 5)
    assert zero == 0
    assert ino == number
    assert image[offset + 48 : offset + 64] == bytes(16)
    xattr_bytes = 12 + 4 * (xattrs - 1) if xattrs else 0
    device = (0, 0)
    content = b""
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        device = ((place >> 8) & 0xFFF, (place & 0xFF) | (place >> 12) & 0xFFF00)
        assert size == 0
    elif layout == 1:
        content = image[place * BLOCK : place * BLOCK + size]
        assert not any(image[place * BLOCK + size : (place + -(-size // BLOCK)) * BLOCK])
    else:
        tail = offset + 64 + xattr_bytes
        whole = size - size % BLOCK
        assert tail // BLOCK == (tail + size % BLOCK - 1) // BLOCK, "the piece behind an inode crosses a block"
        content = image[place * BLOCK : place * BLOCK + whole] + image[tail : tail + size % BLOCK]
    assert len(content) == size
    encoded = image[offset + 64 : offset + 64 + xattr_bytes]
    return Found(number, mode, uid, gid, seconds * 10**9 + nano, links, device, content, dict(read_xattrs(encoded)))


def read_directory(content: bytes):  # type: ignore[no-untyped-def]  # yields name, number, type
    for start in range(0, len(content), BLOCK):
        block = content[start : start + BLOCK]
        first = struct.unpack_from("<H", block, 8)[0]
        assert first % 12 == 0
        entries = [struct.unpack_from("<QHBB", block, at) for at in range(0, first, 12)]
        ends = [entry[1] for entry in entries[1:]] + [len(block)]
        for (number, at, kind, zero), end in zip(entries, ends, strict=True):
            assert zero == 0
            name = block[at:end]
            if end == len(block):
                name = name.rstrip(b"\0")
            assert b"\0" not in name
            yield name, number, kind


def read_xattrs(encoded: bytes):  # type: ignore[no-untyped-def]  # yields name, value
    assert not any(encoded[:12])
    at = 12
    while at < len(encoded):
        length, index, size = struct.unpack_from("<BBH", encoded, at)
        at += 4
        yield PREFIXES[index] + encoded[at : at + length], encoded[at + length : at + length + size]
        at += -(-(4 + length + size) // 4) * 4 - 4
