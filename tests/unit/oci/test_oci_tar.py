"""The strict tar reader: what it reads as GNU tar and Go do, and what it refuses because they would differ."""

from __future__ import annotations

import io
import tarfile

import pytest

from cloister.errors import ImageRefused
from cloister.oci.tar import EntryKind, TarEntry, TarReader
from unit.oci.builders import (
    END,
    archive,
    directory,
    file,
    gnu,
    hard_link,
    header,
    padded,
    pax,
    symlink,
)


def read(data: bytes, chunk: int = 1000) -> list[tuple[TarEntry, bytes]]:
    reader = TarReader(data[start : start + chunk] for start in range(0, len(data), chunk))
    return [(entry, b"".join(reader.data())) for entry in reader.entries()]


@pytest.mark.parametrize("chunk", [1, 511, 512, 513, 10_000])
def test_kinds_and_content(chunk: int) -> None:
    data = archive(
        directory(b"d/"),
        file(b"d/f", b"content", uid=5, gid=6, mode=0o4755),
        symlink(b"d/s", b"../x"),
        hard_link(b"d/h", b"d/f"),
        header(b"c", kind=b"3", device=(1, 3)),
        header(b"b", kind=b"4", device=(8, 0)),
        header(b"p", kind=b"6"),
    )
    entries = read(data, chunk)
    assert [entry.kind for entry, _ in entries] == [
        EntryKind.DIRECTORY,
        EntryKind.FILE,
        EntryKind.SYMLINK,
        EntryKind.HARD_LINK,
        EntryKind.CHARACTER_DEVICE,
        EntryKind.BLOCK_DEVICE,
        EntryKind.FIFO,
    ]
    found, content = entries[1]
    assert (found.path, found.uid, found.gid, found.mode, content) == (b"d/f", 5, 6, 0o4755, b"content")
    assert entries[2][0].link == b"../x"
    assert entries[4][0].device == (1, 3)


def test_content_that_is_not_read_is_skipped() -> None:
    reader = TarReader([archive(file(b"a", b"x" * 5000), file(b"b", b"y"))])
    assert [entry.path for entry in reader.entries()] == [b"a", b"b"]


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_reads_what_other_tools_write(tar_format: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        long = "deep/" * 25 + "name"
        if tar_format != tarfile.USTAR_FORMAT:
            long = "d" * 90 + "/" + "deep/" * 30 + "n" * 150
        info = tarfile.TarInfo(long)
        info.size, info.mtime = 3, 1_700_000_000
        tar.addfile(info, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, long[:99] if tar_format == tarfile.USTAR_FORMAT else long
        tar.addfile(link)
    (first, content), (second, _) = read(buffer.getvalue())
    assert first.path == long.encode()
    assert content == b"abc"
    assert first.mtime_ns == 1_700_000_000 * 10**9
    assert second.link == link.linkname.encode()


def test_pax_overrides_the_header() -> None:
    records = [
        (b"path", b"real/\xc3\xa4"),
        (b"uid", b"3000000"),
        (b"gid", b"7"),
        (b"mtime", b"1700000000.123456789"),
        (b"size", b"5"),
        (b"SCHILY.xattr.user.x", b"v\0w\n"),
        (b"atime", b"1"),
        (b"comment", b"ignored"),
    ]
    ((entry, content),) = read(archive(pax(records) + header(b"short", size=0) + padded(b"12345")))
    assert (entry.path, entry.uid, entry.gid, content) == (b"real/\xc3\xa4", 3_000_000, 7, b"12345")
    assert entry.mtime_ns == 1_700_000_000_123_456_789
    assert entry.xattrs == {"user.x": b"v\0w\n"}


def test_extensions_are_for_one_entry_only() -> None:
    (_, _), (second, _) = read(archive(pax([(b"uid", b"9"), (b"path", b"x")]) + file(b"a"), file(b"b")))
    assert (second.path, second.uid) == (b"b", 0)


def test_global_comment_is_ignored() -> None:
    ((entry, _),) = read(archive(pax([(b"comment", b"commit id")], kind=b"g") + file(b"a")))
    assert entry.path == b"a"


def test_gnu_long_names_and_base_256_numbers() -> None:
    large = (2**33).to_bytes(12, "big")
    fields = {(136, 148): b"\x80" + large[1:], (108, 116): b"\x80" + (2**22).to_bytes(7, "big")}
    long = b"l" * 200
    data = archive(gnu(b"K", long) + gnu(b"L", b"p" * 300) + symlink(b"s", b"s", magic=b"ustar  \0", fields=fields))
    ((entry, _),) = read(data)
    assert (entry.path, entry.link, entry.uid) == (b"p" * 300, long, 2**22)
    assert entry.mtime_ns == 2**33 * 10**9


def test_time_before_1970() -> None:
    ((entry, _),) = read(archive(file(b"a", fields={(136, 148): b"\xff" * 11 + b"\xfe"})))
    assert entry.mtime_ns == -2 * 10**9
    ((entry, _),) = read(archive(pax([(b"mtime", b"-1.5")]) + file(b"a")))
    assert entry.mtime_ns == -1_500_000_000


def test_v7_directory_is_a_name_with_a_slash() -> None:
    ((entry, _),) = read(archive(header(b"old/", kind=b"\0", magic=bytes(8))))
    assert entry.kind is EntryKind.DIRECTORY


def test_posix_prefix_is_joined_and_v7_has_none() -> None:
    ((entry, _),) = read(archive(file(b"name", prefix=b"some/where")))
    assert entry.path == b"some/where/name"
    ((entry, _),) = read(archive(file(b"name", prefix=b"times", magic=bytes(8))))
    assert entry.path == b"name"


@pytest.mark.parametrize("end", [b"", bytes(512), END, bytes(10_240)])
def test_usual_ends(end: bytes) -> None:
    assert len(read(file(b"a", b"x") + end)) == 1


def test_an_empty_archive_is_its_end() -> None:
    assert read(END) == []
    assert read(bytes(512)) == []


def raw_pax(body: bytes) -> bytes:
    return header(b"x", kind=b"x", size=len(body)) + padded(body)


SPARSE = header(b"s", kind=b"S", magic=b"ustar  \0")


HOSTILE: list[tuple[str, str, bytes]] = [
    ("checksum", "malformed_header", archive(header(b"a", checksum=b"000000\0 "))),
    ("checksum text", "malformed_header", archive(header(b"a", checksum=b"zzzzzz\0 "))),
    ("magic", "malformed_header", archive(header(b"a", magic=b"rats!\0!!"))),
    ("not octal", "malformed_header", archive(file(b"a", fields={(124, 136): b"99999999999\0"}))),
    ("python octal", "malformed_header", archive(file(b"a", fields={(124, 136): b"0o000000001\0"}))),
    ("underscore", "malformed_header", archive(file(b"a", fields={(124, 136): b"1_000000000\0"}))),
    ("minus", "malformed_header", archive(file(b"a", fields={(124, 136): b"-0000000001\0"}))),
    ("inner NUL", "malformed_header", archive(file(b"a", fields={(124, 136): b"000\0001\0" + bytes(6)}))),
    ("negative size", "malformed_header", archive(file(b"a", fields={(124, 136): b"\xff" * 12}))),
    ("huge size", "malformed_header", archive(file(b"a", fields={(124, 136): b"\x80" + b"\xff" * 11}))),
    ("huge uid", "malformed_header", archive(file(b"a", fields={(108, 116): b"\x80" + b"\xff" * 7}))),
    ("huge time", "malformed_header", archive(file(b"a", fields={(136, 148): b"\x80" + b"\xff" * 11}))),
    ("no name", "malformed_header", archive(header(b""))),
    ("no link target", "malformed_header", archive(symlink(b"a", b""))),
    ("type Z", "unknown_entry_type", archive(header(b"a", kind=b"Z"))),
    ("GNU dump directory", "unknown_entry_type", archive(header(b"a", kind=b"D"))),
    ("GNU continuation", "unknown_entry_type", archive(header(b"a", kind=b"M"))),
    ("GNU volume label", "unknown_entry_type", archive(header(b"a", kind=b"V"))),
    ("GNU sparse", "sparse", archive(SPARSE)),
    ("pax sparse", "sparse", archive(pax([(b"GNU.sparse.major", b"1")]) + file(b"a"))),
    ("file with slash", "ambiguous_header", archive(file(b"dir/", b""))),
    ("directory with data", "ambiguous_header", archive(header(b"d", kind=b"5", size=512) + bytes(512))),
    ("link data", "ambiguous_header", archive(header(b"l", kind=b"2", link=b"x", size=512) + bytes(512))),
    ("hard link data", "ambiguous_header", archive(header(b"l", kind=b"1", link=b"x", size=1) + bytes(512))),
    ("pax size", "ambiguous_header", archive(pax([(b"size", b"512")]) + directory(b"d") + bytes(512))),
    ("two pax", "ambiguous_header", archive(pax([(b"uid", b"1")]) + pax([(b"gid", b"1")]) + file(b"a"))),
    ("pax and GNU", "ambiguous_header", archive(pax([(b"path", b"x")]) + gnu(b"L", b"y") + file(b"a"))),
    ("GNU and pax", "ambiguous_header", archive(gnu(b"L", b"y") + pax([(b"path", b"x")]) + file(b"a"))),
    ("two GNU", "ambiguous_header", archive(gnu(b"L", b"x") + gnu(b"L", b"y") + file(b"a"))),
    ("global path", "ambiguous_header", archive(pax([(b"path", b"x")], kind=b"g") + file(b"a"))),
    ("charset", "ambiguous_header", archive(pax([(b"hdrcharset", b"EBCDIC")]) + file(b"a"))),
    ("star", "ambiguous_header", archive(file(b"a", fields={(508, 512): b"tar\0"}))),
    (
        "global between",
        "ambiguous_header",
        archive(gnu(b"L", b"x") + pax([(b"comment", b"y")], kind=b"g") + file(b"a")),
    ),
    (
        "size of a global",
        "ambiguous_header",
        archive(pax([(b"size", b"9")]) + pax([(b"comment", b"y")], kind=b"g") + file(b"a")),
    ),
    ("many globals", "ambiguous_header", archive(pax([(b"comment", b"y")], kind=b"g") * 17 + file(b"a"))),
    ("empty path", "ambiguous_header", archive(pax([(b"path", b"")]) + file(b"a"))),
    ("record twice", "ambiguous_header", archive(pax([(b"path", b"x"), (b"path", b"y")]) + file(b"a"))),
    ("NUL in a long name", "ambiguous_header", archive(gnu(b"L", b"a\0b") + file(b"a"))),
    ("GNU and prefix", "ambiguous_header", archive(file(b"a", prefix=b"p", magic=b"ustar  \0"))),
    ("other dialects", "ambiguous_header", archive(pax([(b"SCHILY.filetype", b"dir")]) + file(b"a"))),
    ("encoded xattr", "ambiguous_header", archive(pax([(b"SCHILY.xattr.user.a%3Db", b"v")]) + file(b"a"))),
    ("star sparse", "sparse", archive(pax([(b"SCHILY.realsize", b"9")]) + file(b"a"))),
    ("rounded time", "malformed_header", archive(pax([(b"mtime", b"-1.0000000001")]) + file(b"a"))),
    ("NUL before a number", "malformed_header", archive(file(b"a", fields={(108, 116): b"\x001" + bytes(6)}))),
    ("spaces for a number", "malformed_header", archive(file(b"a", fields={(108, 116): b" " * 8}))),
    ("other binary number", "malformed_header", archive(file(b"a", fields={(100, 108): b"\x81" + bytes(7)}))),
    ("nothing", "truncated", b""),
    ("long filling", "trailing_bytes", archive(file(b"a")) + bytes(2 << 20)),
    ("pax length", "malformed_header", archive(raw_pax(b"99 path=xxx\n") + file(b"a"))),
    ("pax end", "malformed_header", archive(raw_pax(b"12 path=xxx\0") + file(b"a"))),
    ("pax no equals", "malformed_header", archive(raw_pax(b"9 nothing") + file(b"a"))),
    ("pax zero", "malformed_header", archive(raw_pax(b"0 =x\n") + file(b"a"))),
    ("NUL in path", "malformed_header", archive(pax([(b"path", b"a\0b")]) + file(b"a"))),
    ("pax uid", "malformed_header", archive(pax([(b"uid", b"-1")]) + file(b"a"))),
    ("pax time", "malformed_header", archive(pax([(b"mtime", b"now")]) + file(b"a"))),
    ("nameless xattr", "malformed_header", archive(pax([(b"SCHILY.xattr.", b"v")]) + file(b"a"))),
    ("binary xattr name", "malformed_header", archive(pax([(b"SCHILY.xattr.\xff", b"v")]) + file(b"a"))),
    ("large xattr", "xattr_too_large", archive(pax([(b"SCHILY.xattr.user.x", b"v" * 70_000)]) + file(b"a"))),
    ("long path", "path_too_long", archive(pax([(b"path", b"p" * 5000)]) + file(b"a"))),
    ("huge pax", "path_too_long", archive(pax([(b"path", b"p" * 300_000)]) + file(b"a"))),
    ("long target", "path_too_long", archive(gnu(b"K", b"p" * 5000) + symlink(b"a", b"b"))),
    ("ends in content", "truncated", file(b"a", b"xyz")[:515]),
    ("ends in header", "truncated", header(b"a")[:500]),
    ("ends after pax", "truncated", pax([(b"uid", b"1")])),
    ("GNU name for nothing", "truncated", archive(gnu(b"L", b"x"))),
    ("bytes after the end", "trailing_bytes", archive(file(b"a")) + b"\0\0x"),
    ("second archive", "trailing_bytes", archive(file(b"a")) + file(b"b")),
    ("lone zero block", "trailing_bytes", file(b"a") + bytes(512) + file(b"b") + END),
]


@pytest.mark.parametrize(("code", "data"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE])
def test_hostile_archives_are_refused(code: str, data: bytes) -> None:
    with pytest.raises(ImageRefused) as caught:
        read(data)
    assert caught.value.code == f"oci.layer.{code}"
