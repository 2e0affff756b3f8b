"""Layers that somebody made to do harm: a corpus, each with the refusal it must end in, or none where it is harmless.

The archives are made byte by byte, because no tool writes most of them. `tests/unpacking.py` has the place where they
are let loose, and other readers of the same bytes.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from unit.oci.builders import BLOCK, END, archive, directory, file, gnu, hard_link, header, padded, pax, symlink

GNU_MAGIC: Final = b"ustar  \0"
V7_MAGIC: Final = bytes(8)
DANGLING: Final = "makes no directory behind a link to nothing"
MODE, UID, GID, SIZE, MTIME = (100, 108), (108, 116), (116, 124), (124, 136), (136, 148)
CHECKSUM, KIND, MAGIC, PREFIX = (148, 156), (156, 157), (257, 265), (345, 500)


class Case(NamedTuple):
    """Layers and what becomes of them.

    Attributes:
        layers: plain archives, lowest first.
        code: the refusal without `oci.layer.`; empty where the layers are unpacked.
        gnu: why GNU tar, where we unpack, fails or makes another tree; empty where it makes the same.
        umoci: the same of umoci.
    """

    layers: tuple[bytes, ...]
    code: str = ""
    gnu: str = ""
    umoci: str = ""


def one(*members: bytes, code: str = "", gnu: str = "", umoci: str = "") -> Case:
    """Return a case of one layer."""
    return Case((archive(*members),), code, gnu, umoci)


def layers(*archives: bytes, code: str = "", gnu: str = "", umoci: str = "") -> Case:
    """Return a case of several layers."""
    return Case(archives, code, gnu, umoci)


def attribute(name: bytes, value: bytes = b"v") -> bytes:
    """Return the extended header that gives the next entry an attribute."""
    return pax([(b"SCHILY.xattr." + name, value)])


def raw_pax(body: bytes, kind: bytes = b"x") -> bytes:
    """Return an extended header with any body."""
    return header(b"pax", kind=kind, size=len(body)) + padded(body)


def signed_checksum(block: bytes) -> bytes:
    """Return a header with the checksum that old Suns wrote: of signed bytes."""
    total = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + b" " * 8 + block[156:])
    return block[:148] + b"%06o\0 " % total + block[156:BLOCK]


def base256(value: int, size: int) -> bytes:
    """Return GNU's binary number."""
    first = 0xFF if value < 0 else 0x80
    return bytes([first]) + (value % (1 << (8 * (size - 1)))).to_bytes(size - 1, "big")


def escapes() -> Iterator[tuple[str, Case]]:
    """Yield ways out of the tree: by name, through links, by tricks over several layers."""
    for name in (b"../secret", b"/../secret", b"a/../../secret", b"..", b"./..", b"a/..", b"a/./../b", b"//../x"):
        yield f"name {name!r}", one(directory(b"a"), file(name, b"x"), code="path_escape")
        yield f"long name {name!r}", one(gnu(b"L", name) + file(b"x"), code="path_escape")
        yield f"pax name {name!r}", one(pax([(b"path", name)]) + file(b"x"), code="path_escape")
        yield f"hard link to {name!r}", one(hard_link(b"h", name), code="path_escape")
        yield f"pax link to {name!r}", one(pax([(b"linkpath", name)]) + hard_link(b"h", b"x"), code="path_escape")
    yield "prefix of dots", one(file(b"secret", b"x", prefix=b".."), code="path_escape")
    yield "whiteout upwards", one(file(b"../.wh.secret"), code="path_escape")
    yield "opaque upwards", one(file(b"../.wh..wh..opq"), code="path_escape")
    for target in (b"..", b"../folder", b"/folder", b"/", b"../../../..", b"/proc/self/root", b"/proc/self/cwd", b"."):
        link, far = symlink(b"out", target), DANGLING if target.startswith(b"/proc") else ""
        dangling = DANGLING if target in (b"../folder", b"/folder") else far
        yield (
            f"file through a link to {target!r}",
            layers(archive(link), archive(file(b"out/file", b"x")), gnu=dangling),
        )
        yield f"in one layer through {target!r}", one(link, directory(b"folder"), file(b"out/planted", b"x"), gnu=far)
        yield f"whiteout through {target!r}", layers(archive(link), archive(file(b"out/.wh.file")))
        yield f"opaque through {target!r}", layers(archive(link, file(b"keep")), archive(file(b"out/.wh..wh..opq")))
        yield f"hard link through {target!r}", one(link, hard_link(b"h", b"out/file"), code="link_target")
    for target in (b"/secret", b"../secret", b"/etc/passwd"):
        name = target.decode()
        yield f"file onto a link to {name}", layers(archive(symlink(b"l", target)), archive(file(b"l", b"x")))
        yield (
            f"hard link to a link to {name}",
            layers(archive(symlink(b"l", target), hard_link(b"h", b"l")), archive(file(b"h", b"x"))),
        )
        yield (
            f"hard link to {name}",
            one(hard_link(b"h", target), code="path_escape" if b".." in target else "link_target"),
        )
        yield (
            f"directory onto a link to {name}",
            layers(archive(symlink(b"l", target)), archive(directory(b"l", mode=0o777), file(b"l/x", b"x"))),
        )
        yield (
            f"mode through a link to {name}",
            layers(
                archive(symlink(b"l", target), hard_link(b"h", b"l")),
                archive(pax([(b"mtime", b"1")]) + symlink(b"h", target, uid=7, gid=7)),
            ),
        )
    yield (
        "link chain",
        one(symlink(b"a", b"b"), symlink(b"b", b"/c"), symlink(b"c", b"../d"), directory(b"d"), file(b"a/x", b"1")),
    )
    yield "link loop", one(symlink(b"a", b"b"), symlink(b"b", b"a"), file(b"a/x"), code="symlink_loop")
    yield "loop to itself", one(symlink(b"a", b"./a"), file(b"a/x"), code="symlink_loop")
    chain = [symlink(b"l%d" % n, b"l%d" % (n + 1)) for n in range(60)]
    yield "long chain", one(*chain, directory(b"l60"), file(b"l0/x"), code="symlink_loop")
    grow = [symlink(b"g%d" % n, b"g%d/g%d" % (n + 1, n + 1)) for n in range(50)]
    yield "chain that doubles", one(*grow, directory(b"g50"), file(b"g0/x"), code="symlink_loop")
    yield (
        "directory becomes a link to outside",
        layers(
            archive(directory(b"d"), file(b"d/file", b"1")),
            archive(symlink(b"d", b"../folder")),
            archive(file(b"d/.wh.file"), file(b"d/other", b"2")),
        ),
    )
    yield (
        "link becomes a directory between two uses",
        layers(
            archive(directory(b"a"), symlink(b"w", b"/a")),
            archive(file(b"w/1", b"1"), directory(b"w"), file(b"w/2", b"2")),
        ),
    )
    yield (
        "link turned in one layer",
        one(
            symlink(b"l", b"a"),
            file(b"l/x"),
            symlink(b"l", b"../folder"),
            file(b"l/file", b"x"),
            code="duplicate_entry",
        ),
    )
    yield (
        "whiteout then link",
        layers(
            archive(directory(b"d"), file(b"d/file")),
            archive(file(b".wh.d"), symlink(b"d", b"/folder")),
            archive(file(b"d/file", b"x")),
        ),
    )
    yield "root as a link", one(symlink(b"./", b"/folder"), code="path_escape")
    yield "root as a file", one(file(b".", b"x"), code="path_escape")
    yield "root as a hard link", one(hard_link(b"/", b"x"), code="path_escape")
    yield "root removed by a whiteout", one(file(b".wh.."), code="bad_whiteout")
    yield (
        "hard link over its target's directory",
        layers(archive(directory(b"d"), file(b"d/f", b"1")), archive(hard_link(b"d", b"d/f")), code="link_target"),
    )


def whiteouts() -> Iterator[tuple[str, Case]]:
    """Yield whiteouts that hide more, or other things, than they may."""
    base = archive(directory(b"d"), file(b"d/f", b"1"), directory(b"d/sub"), file(b"d/sub/g", b"1"), file(b"top", b"1"))
    for name in (b".wh.", b".wh..", b".wh...", b".wh..wh.", b".wh..wh.plnk", b".wh..wh..opq.x", b".wh..wh..wh.x"):
        yield f"whiteout {name!r}", layers(base, archive(file(b"d/" + name)), code="bad_whiteout")
    for kind, made in {
        "directory": directory(b"d/.wh.f"),
        "symbolic link": symlink(b"d/.wh.f", b"f"),
        "hard link": hard_link(b"d/.wh.f", b"d/f"),
        "fifo": header(b"d/.wh.f", kind=b"6"),
        "device": header(b"d/.wh.f", kind=b"3"),
        "file with content": file(b"d/.wh.f", b"x"),
        "opaque directory": directory(b"d/.wh..wh..opq"),
        "opaque link": symlink(b"d/.wh..wh..opq", b"f"),
        "opaque with content": file(b"d/.wh..wh..opq", b"x"),
        "parent": file(b"d/.wh.f/x", b"x"),
        "opaque parent": file(b"d/.wh..wh..opq/x"),
    }.items():
        yield f"whiteout as {kind}", layers(base, archive(made), code="bad_whiteout")
    yield "hard link to a whiteout", layers(base, archive(hard_link(b"x", b"d/.wh.f")), code="link_target")
    yield "whiteout of its own file", layers(base, archive(file(b"n"), file(b".wh.n")), code="bad_whiteout")
    yield "whiteout of its own directory", layers(base, archive(file(b"n/x"), file(b".wh.n")), code="bad_whiteout")
    yield (
        "whiteout of its own replacement",
        layers(base, archive(file(b"top", b"2"), file(b".wh.top")), code="bad_whiteout"),
    )
    yield "whiteout before its replacement", layers(base, archive(file(b".wh.top"), file(b"top", b"2")))
    yield "whiteout before a new directory", layers(base, archive(file(b".wh.d"), directory(b"d"), file(b"d/n", b"2")))
    yield (
        "opaque after its own files",
        layers(base, archive(directory(b"d"), file(b"d/n", b"2"), file(b"d/sub/n", b"2"), file(b"d/.wh..wh..opq"))),
    )
    yield "opaque first", layers(base, archive(directory(b"d"), file(b"d/.wh..wh..opq"), file(b"d/n", b"2")))
    yield "opaque root", layers(base, archive(file(b".wh..wh..opq"), file(b"n", b"2")))
    yield "whiteout of nothing", layers(base, archive(file(b".wh.never"), file(b"no/.wh.where")))
    yield "whiteout twice", layers(base, archive(file(b".wh.top"), file(b"./.wh.top")))
    yield "whiteout of a full directory", layers(base, archive(file(b".wh.d")))
    yield "whiteout below a file", layers(base, archive(file(b"top/.wh.x")), code="parent_not_directory")
    yield "opaque below a file", layers(base, archive(file(b"top/.wh..wh..opq")), code="parent_not_directory")
    yield "overlay's own whiteout", layers(base, archive(header(b"top", kind=b"3")), code="device")
    yield "overlay's own whiteout below dev", layers(base, archive(header(b"dev/x", kind=b"3")), code="device")
    for name in (
        b"trusted.overlay.opaque",
        b"trusted.overlay.redirect",
        b"trusted.overlay.metacopy",
        b"user.overlay.opaque",
        b"user.overlay.whiteout",
        b"user.fuseoverlayfs.opaque",
        b"trusted.x",
    ):
        yield f"attribute {name!r}", layers(base, archive(attribute(name, b"y") + directory(b"d")), code="xattr")
        yield (
            f"attribute {name!r} of a link",
            layers(base, archive(attribute(name, b"y") + symlink(b"l", b"d")), code="xattr"),
        )


def special_files() -> Iterator[tuple[str, Case]]:
    """Yield devices, pipes, set-id bits and attributes."""
    yield "character device", one(header(b"etc/mem", kind=b"3", device=(1, 1)), code="device")
    yield "block device", one(header(b"etc/sda", kind=b"4", device=(8, 0)), code="device")
    yield (
        "link to a device left out",
        one(header(b"dev/null", kind=b"3", device=(1, 3)), hard_link(b"null", b"dev/null"), code="link_target"),
    )
    yield "fifo", one(header(b"p", kind=b"6", mode=0o666, uid=3, gid=4))
    yield "fifo over a file", layers(archive(file(b"p", b"1")), archive(header(b"p", kind=b"6")))
    yield "set-id", one(file(b"s", b"x", mode=0o6755, uid=5, gid=6), directory(b"d", mode=0o3777, uid=5, gid=6))
    yield (
        "directory that nobody wrote in a set-gid one",
        one(directory(b"d", mode=0o2755, gid=6), file(b"d/e/f", b"1"), umoci="lets the kernel hand down the group"),
    )
    yield "set-id by hard link", one(file(b"s", b"x", mode=0o644), hard_link(b"h", b"s", mode=0o4755, uid=9))
    yield "type bits in the mode", one(file(b"f", fields={MODE: b"0100644\0"}), directory(b"d", mode=0o40755))
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    yield "capability", one(attribute(b"security.capability", capability) + file(b"ping", b"x", mode=0o755))
    yield "capability that is none", one(attribute(b"security.capability", b"x") + file(b"ping"), code="xattr")
    yield "capability of a directory", one(attribute(b"security.capability", b"") + directory(b"d"), code="xattr")
    yield (
        "label",
        one(
            attribute(b"security.selinux", b"x") + file(b"f"),
            gnu="sets labels of another machine",
        ),
    )
    yield "attribute of a link", one(attribute(b"user.x") + symlink(b"l", b"f"), code="xattr")
    yield "attribute of a fifo", one(attribute(b"user.x") + header(b"p", kind=b"6"), code="xattr")
    yield (
        "attribute of a hard link",
        one(file(b"f"), attribute(b"trusted.overlay.opaque", b"y") + hard_link(b"h", b"f"), code="xattr"),
    )
    yield "attribute of no namespace", one(attribute(b"x") + file(b"f"), code="xattr")
    yield "attribute without a rest", one(attribute(b"user.") + file(b"f"), code="xattr")
    yield "system attribute", one(attribute(b"system.nfs4_acl") + file(b"f"), code="xattr")
    yield "list that is none", one(attribute(b"system.posix_acl_access", b"x" * 40) + file(b"f"), code="xattr")
    yield "huge attribute", one(attribute(b"user.x", b"v" * 70_000) + file(b"f"), code="xattr_too_large")
    yield (
        "many attributes",
        one(pax([(b"SCHILY.xattr.user.%d" % n, b"v" * 1000) for n in range(100)]) + file(b"f"), code="xattr_too_large"),
    )
    yield "encoded name of an attribute", one(attribute(b"trusted%2Eoverlay") + file(b"f"), code="ambiguous_header")
    yield (
        "attribute of a lower layer's directory goes",
        layers(
            archive(attribute(b"user.old") + directory(b"d")),
            archive(directory(b"d", mode=0o700)),
            gnu="keeps attributes that are there",
        ),
    )
    yield "unix socket's type", one(header(b"s", kind=b"s"), code="unknown_entry_type")


def names() -> Iterator[tuple[str, Case]]:
    """Yield one path under several names, and names that readers see differently."""
    for other in (b"./f", b"f", b"/f", b"//f", b".//./f"):
        yield f"f and {other!r}", one(file(b"f", b"1"), file(other, b"2"), code="duplicate_entry")
    yield (
        "twice through a link",
        one(directory(b"d"), file(b"d/f"), symlink(b"l", b"d"), file(b"l/f"), code="duplicate_entry"),
    )
    yield "directory twice", one(directory(b"d", mode=0o700), directory(b"./d/", mode=0o755), file(b"d/f"))
    yield "directory twice with two times", one(directory(b"d"), directory(b"d", mtime=5), code="duplicate_entry")
    yield "directory after its content", one(file(b"d/f"), directory(b"d", mode=0o700, mtime=5))
    yield "file over a directory with content", one(directory(b"d"), file(b"d/f"), file(b"d"), code="duplicate_entry")
    yield "directory over a file", one(file(b"d"), directory(b"d"), code="duplicate_entry")
    yield "file that ends in a slash", one(file(b"d/", b"x"), code="ambiguous_header")
    yield "empty file that ends in a slash", one(file(b"d/"), code="ambiguous_header")
    yield "old directory", one(header(b"d/", kind=b"\0", magic=V7_MAGIC, mode=0o755), file(b"d/f", b"1"))
    yield "old directory with content", one(header(b"d/", kind=b"\0", size=3) + padded(b"abc"), code="ambiguous_header")
    for made in (
        symlink(b"n/", b"x"),
        header(b"n/", kind=b"6"),
        hard_link(b"n/", b"f"),
        symlink(b"n/.", b"x"),
        file(b"n/.", b"x"),
        hard_link(b"h", b"f/"),
        hard_link(b"h", b"f/."),
    ):
        yield (
            f"{made[156:157]!r} {made[:4].rstrip(bytes(1))!r} to {made[157:160].rstrip(bytes(1))!r}",
            one(file(b"f"), made, code="ambiguous_header"),
        )
    yield "unicode forms", one(file(b"\xc3\xa9", b"1"), file(b"e\xcc\x81", b"2"))
    yield "invalid text", one(file(b"\xff\xfe", b"1"), file(b"\xed\xa0\x80", b"2"), file(b"\xc3", b"3"))
    yield "invalid text in pax", one(pax([(b"path", b"\xff\xfe")]) + file(b"f", b"1"))
    yield "control bytes", one(file(b"a\nb\x1b[31m\x7f", b"1"), symlink(b"l\r", b"\x01\x02"))
    yield "backslashes", one(file(b"a\\b", b"1"), file(b"C:\\x", b"2"), file(b"..\\x", b"3"))
    yield "NUL in pax", one(pax([(b"path", b"a\0b")]) + file(b"f"), code="malformed_header")
    yield "NUL in a long name", one(gnu(b"L", b"a\0b") + file(b"f"), code="ambiguous_header")
    yield "NUL in a header", one(file(b"a\0b", b"1"))
    yield "no name", one(file(b""), code="malformed_header")
    yield "no target", one(symlink(b"l", b""), code="malformed_header")
    yield "only slashes", one(file(b"///"), code="ambiguous_header")
    yield "long component", one(pax([(b"path", b"n" * 256)]) + file(b"f"), code="bad_name")
    yield "longest component", one(pax([(b"path", b"n" * 255)]) + file(b"f", b"1"))
    yield "long path", one(pax([(b"path", b"n/" * 3000 + b"n")]) + file(b"f"), code="path_too_long")
    yield "deep path", one(pax([(b"path", b"n/" * 257 + b"n")]) + file(b"f"), code="path_too_long")
    yield "long target", one(pax([(b"linkpath", b"n" * 4096)]) + symlink(b"f", b"x"), code="bad_name")
    yield "longest target", one(pax([(b"linkpath", b"n" * 4095)]) + symlink(b"f", b"x"))
    yield "below a file", one(file(b"a"), file(b"a/b"), code="parent_not_directory")
    yield "below a lower layer's file", layers(archive(file(b"a")), archive(file(b"a/b")), code="parent_not_directory")
    yield "below a fifo", one(header(b"a", kind=b"6"), file(b"a/b"), code="parent_not_directory")
    yield "full name without a NUL", one(file(b"n" * 100, b"1"), symlink(b"l", b"t" * 100))
    yield "prefix", one(file(b"f", b"1", prefix=b"a/b"), file(b"g" * 100, b"2", prefix=b"p" * 155))
    yield (
        "prefix of GNU is something else",
        one(file(b"f", b"1", prefix=b"a/b", magic=GNU_MAGIC), code="ambiguous_header"),
    )
    yield "prefix of V7 is something else", one(file(b"f", b"1", prefix=b"a/b", magic=V7_MAGIC))


def extensions() -> Iterator[tuple[str, Case]]:
    """Yield abuse of pax and GNU headers."""
    yield (
        "size that hides an entry",
        one(pax([(b"size", b"1024")]) + file(b"f"), file(b"hidden", b"x" * 512), file(b"after")),
    )
    yield "size beyond the archive", Case((pax([(b"size", b"99999999")]) + file(b"f") + END,), "truncated")
    yield "size of a directory", one(pax([(b"size", b"512")]) + directory(b"d") + bytes(512), code="ambiguous_header")
    for key in (b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"):
        value = {b"mtime": b"1.5"}.get(key, b"7")
        yield f"empty {key.decode()}", one(pax([(key, b"")]) + symlink(b"f", b"x"), code="ambiguous_header")
        yield f"{key.decode()} twice", one(pax([(key, value), (key, b"0")]) + file(b"f"), code="ambiguous_header")
        yield f"global {key.decode()}", one(pax([(key, value)], kind=b"g"), file(b"f"), code="ambiguous_header")
    for value in (b"-1", b"+1", b"0x10", b"1 ", b" 1", b"1e3", b"\xd9\xa1", b"99999999999999999999", b"1.0"):
        yield f"size {value!r}", one(pax([(b"size", value)]) + file(b"f"), code="malformed_header")
        yield f"uid {value!r}", one(pax([(b"uid", value)]) + file(b"f"), code="malformed_header")
    yield "largest uid", one(pax([(b"uid", b"4294967295")]) + file(b"f"), code="malformed_header")
    yield "large ids", one(pax([(b"uid", b"4294967294"), (b"gid", b"2147483648")]) + file(b"f", b"1"))
    for value in (b"1.", b"-5", b"-5.25", b"1700000000.123456789", b"1.0000000009", b"4102444800.5"):
        yield f"time {value!r}", one(pax([(b"mtime", value)]) + file(b"f", b"1"))
    for value in (b".5", b"--5", b"1.5.5", b"1,5", b"now", b"1e9", b"9" * 13, b"-.5", b"0x1", b"-1.00000000001"):
        yield f"no time {value!r}", one(pax([(b"mtime", value)]) + file(b"f"), code="malformed_header")
    yield "character set", one(pax([(b"hdrcharset", b"ISO-IR 8859 1 1998")]) + file(b"f"), code="ambiguous_header")
    yield "binary", one(pax([(b"hdrcharset", b"BINARY"), (b"path", b"\xff")]) + file(b"f", b"1"))
    yield "pax after pax", one(pax([(b"uid", b"1")]) + pax([(b"gid", b"1")]) + file(b"f"), code="ambiguous_header")
    yield "GNU after pax", one(pax([(b"path", b"a")]) + gnu(b"L", b"b") + file(b"f"), code="ambiguous_header")
    yield "pax after GNU", one(gnu(b"L", b"b") + pax([(b"path", b"a")]) + file(b"f"), code="ambiguous_header")
    yield "GNU twice", one(gnu(b"L", b"a") + gnu(b"L", b"b") + file(b"f"), code="ambiguous_header")
    yield (
        "global after GNU",
        one(gnu(b"L", b"long") + pax([(b"comment", b"x")], kind=b"g") + file(b"f"), code="ambiguous_header"),
    )
    yield (
        "global after pax",
        one(pax([(b"path", b"long")]) + pax([(b"comment", b"x")], kind=b"g") + file(b"f"), code="ambiguous_header"),
    )
    yield (
        "size of another header",
        one(
            pax([(b"size", b"1024")]) + pax([(b"comment", b"x" * 500)], kind=b"g") + file(b"f"), code="ambiguous_header"
        ),
    )
    yield (
        "global comment",
        one(pax([(b"comment", b"0" * 40)], kind=b"g"), file(b"f", b"1"), umoci="takes no global header"),
    )
    yield "many global comments", one(pax([(b"comment", b"x")], kind=b"g") * 200, file(b"f"), code="ambiguous_header")
    yield "long name over a prefix", one(gnu(b"L", b"real") + file(b"f", b"1", prefix=b"a"))
    yield "long names", one(gnu(b"K", b"t" * 300) + gnu(b"L", b"d/" * 80 + b"l") + symlink(b"f", b"x", magic=GNU_MAGIC))
    yield "long target of a file", one(gnu(b"K", b"x" * 200) + file(b"f", b"1", magic=GNU_MAGIC))
    yield "empty long name", one(gnu(b"L", b"") + file(b"f"), code="malformed_header")
    for body in (
        b"",
        b"\n",
        b"5 a=\n",
        b"6 a=b",
        b"99 a=b\n",
        b"0 a=b\n",
        b"-6 a=b\n",
        b"6 a=b\0",
        b"6 =ab\n",
        b"5 ab\n",
        b"6 a=b\n\0\0\0",
        b"+6 a=b\n",
        b" 6 a=b\n",
        b"6\ta=b\n",
        b"6 a=b\n7 a=b\n",
    ):
        wrong = body not in (b"", b"5 a=\n")
        yield f"record {body!r}", one(raw_pax(body) + file(b"f", b"1"), code="malformed_header" if wrong else "")
    yield "leading zeros of a record", one(raw_pax(b"0016 uid=123456\n") + file(b"f", b"1"))
    for key in (
        b"GNU.sparse.major",
        b"GNU.sparse.map",
        b"GNU.sparse.size",
        b"GNU.sparse.name",
        b"SCHILY.realsize",
        b"SUN.holesdata",
        b"GNU.sparse.numblocks",
    ):
        yield f"{key.decode()}", one(pax([(key, b"1")]) + file(b"f"), code="sparse")
    for key in (b"GNU.volume.filename", b"GNU.dumpdir", b"SCHILY.filetype"):
        yield f"{key.decode()}", one(pax([(key, b"1")]) + file(b"f"), code="ambiguous_header")
    yield (
        "keys nobody reads",
        one(
            pax(
                [
                    (b"LIBARCHIVE.creationtime", b"1"),
                    (b"ORG.x", b"y"),
                    (b"atime", b"1"),
                    (b"ctime", b"2"),
                    (b"uname", b"root"),
                    (b"gname", b"x"),
                    (b"comment", b"c"),
                    (b"SCHILY.ino", b"1"),
                ]
            )
            + file(b"f", b"1")
        ),
    )
    yield "huge extended header", one(raw_pax(b"x" * 300_000) + file(b"f"), code="path_too_long")
    yield "ends after pax", Case((pax([(b"uid", b"1")]) + END,), "truncated")
    yield "ends after a long name", Case((gnu(b"L", b"x") + END,), "truncated")


def sparse() -> Iterator[tuple[str, Case]]:
    """Yield sparse files in all their forms."""
    yield "old GNU", one(file(b"f", b"x" * 512, kind=b"S", magic=GNU_MAGIC), code="sparse")
    for keys in (
        [(b"GNU.sparse.size", b"1000"), (b"GNU.sparse.numblocks", b"0")],
        [(b"GNU.sparse.map", b"0,1"), (b"GNU.sparse.size", b"9")],
        [
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.name", b"real"),
            (b"GNU.sparse.realsize", b"1099511627776"),
        ],
    ):
        yield f"pax {keys[-1][0].decode()}", one(pax(keys) + file(b"f", b"x" * 512), code="sparse")
    yield "star", one(file(b"f", b"x", fields={(508, 512): b"tar\0"}), code="ambiguous_header")


def numbers() -> Iterator[tuple[str, Case]]:
    """Yield number fields in every form."""
    good = {
        "base-256 id": {UID: base256(70_000, 8), GID: base256(2**31, 8)},
        "base-256 time": {MTIME: base256(2**33, 12)},
        "base-256 size": {SIZE: base256(1, 12)},
        "time before 1970": {MTIME: base256(-5, 12)},
        "without an end": {MODE: b"00000644", SIZE: b"000000000001", MTIME: b"000000000005"},
        "spaces": {MODE: b"   644 \0", SIZE: b"         1 \0", UID: b"     1 \0"},
        "one space": {MODE: b"644 \0\0\0\0", SIZE: b"1 " + bytes(10)},
    }
    for name, fields in good.items():
        yield name, one(file(b"f", b"x", fields=fields))
    for field, name in ((MODE, "mode"), (UID, "uid"), (GID, "gid"), (SIZE, "size"), (MTIME, "mtime")):
        width = field[1] - field[0]
        for value in (
            b"8",
            b"-1",
            b"+1",
            b"0x1",
            b"1.",
            b"1 1",
            b"1\x001",
            b"a",
            b"\t1",
            b"1\n",
            b"\x001",
            b"\xc0",
            b"\xfe",
            b"\x81",
        ):
            fields = {field: value.ljust(width, b"\0")}
            yield f"{name} {value!r}", one(file(b"f", b"x", fields=fields), code="malformed_header")
        if field is not MTIME:
            fields = {field: base256(-1, width)}
            yield f"negative {name}", one(file(b"f", b"x", fields=fields), code="malformed_header")
        fields = {field: b"\x80" + b"\xff" * (width - 1)}
        yield (
            f"overflowing {name}",
            one(file(b"f", b"x", fields=fields), code="" if name == "mode" else "malformed_header"),
        )
    yield "no owner written", one(file(b"f", b"x", fields={UID: bytes(8), GID: bytes(8)}))
    yield "only spaces", one(file(b"f", b"x", fields={UID: b" " * 8}), code="malformed_header")
    block = file(b"f\xff\xff", b"x")
    yield "signed checksum", one(signed_checksum(block[:BLOCK]) + block[BLOCK:], code="malformed_header")
    for checksum in (b"0000000\0", b"        ", bytes(8), b"99999999", b"\x80" + bytes(7)):
        yield f"checksum {checksum!r}", one(header(b"f", checksum=checksum), code="malformed_header")
    total = sum(header(b"f", checksum=b" " * 8))
    for form in (b"%07o\0", b"%07o ", b"%06o \0", b" %06o\0", b"%o\0\0\0\0"):
        text = (form % total).ljust(8, b"\0")[:8]
        yield f"checksum as {form!r}", one(header(b"f", checksum=text))


def structure() -> Iterator[tuple[str, Case]]:
    """Yield archives whose ends and dialects readers see differently."""
    inner = archive(file(b"inner", b"1"))
    yield "empty", one()
    yield "nothing at all", Case((b"",), "truncated")
    yield "no end", Case((file(b"f", b"1"),))
    yield "one zero block", Case((file(b"f", b"1") + bytes(BLOCK),))
    yield "lone zero block", Case((file(b"f", b"1") + bytes(BLOCK) + file(b"g", b"1") + END,), "trailing_bytes")
    yield "two archives", Case((archive(file(b"f", b"1")) + inner,), "trailing_bytes")
    yield "bytes behind the end", Case((archive(file(b"f", b"1")) + b"x",), "trailing_bytes")
    yield "long filling", Case((archive(file(b"f", b"1")) + bytes(20 * BLOCK),))
    yield "endless filling", Case((archive(file(b"f", b"1")) + bytes(2 << 20),), "trailing_bytes")
    yield "archive in a file", one(file(b"f.tar", inner), file(b"g", b"1"))
    yield (
        "archive behind a directory",
        one(header(b"d", kind=b"5", size=len(inner)) + inner, file(b"g"), code="ambiguous_header"),
    )
    for kind, name in ((b"1", "hard link"), (b"2", "symbolic link"), (b"6", "fifo"), (b"3", "device")):
        yield (
            f"content behind a {name}",
            one(file(b"f"), header(b"l", kind=kind, link=b"f", size=512) + file(b"inner"), code="ambiguous_header"),
        )
    for cut in (1, 511, 513, 515, 1023):
        yield f"cut at {cut}", Case((file(b"f", b"x" * 600)[:cut],), "truncated")
    yield (
        "mixed dialects",
        one(
            file(b"a", b"1"),
            file(b"b", b"2", magic=GNU_MAGIC),
            file(b"c", b"3", magic=V7_MAGIC),
            gnu(b"L", b"d") + file(b"x", b"4"),
            pax([(b"path", b"e")]) + file(b"x", b"5", magic=GNU_MAGIC),
            file(b"h", b"7", kind=b"\0"),
        ),
    )
    yield "contiguous file", one(file(b"g", b"6", kind=b"7"), umoci="takes no such file")
    for magic in (b"ustar\0\0\0", b"ustar\x0001"[:8], b"USTAR\x0000", b"ustar   ", b"\0" * 7 + b"x", b"ustar\x00 0"):
        yield f"magic {magic!r}", one(file(b"f", magic=magic), code="malformed_header")
    for kind in b"89ADEIMNVXZ!\xff @":
        yield f"type {bytes([kind])!r}", one(header(b"f", kind=bytes([kind])), code="unknown_entry_type")
    yield "zip", Case((b"PK\x03\x04" + bytes(1020),), "malformed_header")
    yield "gzip in a plain layer", Case((b"\x1f\x8b\x08" + bytes(1021),), "malformed_header")
    yield "what Python writes", Case((_python(tarfile.PAX_FORMAT), _python(tarfile.GNU_FORMAT)))


def _python(form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name in ("a", "b" * 120, "c/" * 60 + "d"):
            info = tarfile.TarInfo(name)
            info.size, info.uid, info.mtime = 3, 3_000_000, 1_700_000_000
            tar.addfile(info, io.BytesIO(b"abc"))
    return buffer.getvalue()


FAMILIES: Final[dict[str, Callable[[], Iterator[tuple[str, Case]]]]] = {
    function.__name__: function
    for function in (escapes, whiteouts, special_files, names, extensions, sparse, numbers, structure)
}
CASES: Final = {f"{family}: {name}": case for family, make in FAMILIES.items() for name, case in make()}
