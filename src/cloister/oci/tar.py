"""A strict streaming reader of tar archives as layers use them (POSIX.1-2024 pax and ustar, GNU long names, v7).

Why not the standard library's: it ends quietly at a damaged header, accepts what other readers see differently, and
costs a guest several hundred milliseconds. Here, whatever two readers could understand in two ways is refused:
sparse files, global headers that change entries or stand between a header and its entry, a pax header together with
GNU long names, records that are empty or there twice, data behind links and directories, bytes after the end. Reads
only; writing to disk is `cloister.oci.layer`'s. Trusts nobody.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from functools import lru_cache
from struct import Struct
from typing import Final, NoReturn

import msgspec

from cloister.errors import ImageRefused
from cloister.wire.limits import TAR_FILLING_BYTES, TAR_GLOBALS, TAR_PATH_BYTES, TAR_PAX_BYTES, TAR_XATTR_BYTES

BLOCK: Final = 512
_CODE: Final = "oci.layer"
_ZERO_BLOCK: Final = bytes(BLOCK)
# name, mode, uid, gid, size, mtime, checksum, type, link, magic+version, user, group, major, minor, prefix (POSIX
# ustar)
_HEADER: Final = Struct("100s8s8s8s12s12s8sc100s8s64x8s8s155s12s")
_CHECKSUM: Final = slice(148, 156)
_CHECKSUM_BLANK: Final = 8 * 0x20
_POSIX_MAGIC: Final = b"ustar\x0000"
_GNU_MAGIC: Final = b"ustar  \x00"
_V7_MAGIC: Final = bytes(8)
_STAR_TRAILER: Final = b"tar\x00"
_MAX_SIZE: Final = 2**63 - 1
_MAX_SECONDS: Final = 10**12 - 1  # the year 33658; keeps nanoseconds within what the kernel takes
_MAX_ID: Final = 2**32 - 2  # the largest is "no change" to chown
_BASE_256: Final = (0x80, 0xFF)  # first byte of a binary number, positive or negative
_XATTR: Final = b"SCHILY.xattr."
_UTF8_CHARSETS: Final = (b"ISO-IR 10646 2000 UTF-8", b"BINARY")
# Records by which some readers see another entry, and others none of it: sparse content, multi-volume archives, dumps.
_SPARSE: Final = (b"GNU.sparse.", b"SCHILY.realsize", b"SUN.holesdata")
_OTHER_DIALECTS: Final = (b"GNU.", b"SCHILY.filetype")
_OVERRIDING: Final = (b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime")


class EntryKind(enum.Enum):
    """What an entry makes."""

    FILE = "file"
    HARD_LINK = "hard link"
    SYMLINK = "symbolic link"
    CHARACTER_DEVICE = "character device"
    BLOCK_DEVICE = "block device"
    DIRECTORY = "directory"
    FIFO = "fifo"


_KINDS: Final = {
    b"0": EntryKind.FILE,
    b"\0": EntryKind.FILE,
    b"7": EntryKind.FILE,  # contiguous file: a storage hint of the 1980s
    b"1": EntryKind.HARD_LINK,
    b"2": EntryKind.SYMLINK,
    b"3": EntryKind.CHARACTER_DEVICE,
    b"4": EntryKind.BLOCK_DEVICE,
    b"5": EntryKind.DIRECTORY,
    b"6": EntryKind.FIFO,
}


class TarEntry(msgspec.Struct, kw_only=True):
    """One entry as the archive says it; nothing in it is safe to use as a path."""

    kind: EntryKind
    path: bytes
    link: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    device: tuple[int, int]
    xattrs: dict[str, bytes]
    offset: int  # of the data in the archive, for readers with random access

    @property
    def place(self) -> str:
        """The path for an error message."""
        return self.path[:200].decode("utf-8", "backslashreplace")


class TarReader:
    """Reads entries from the chunks of one archive.

    Iterate over `entries()`; between two entries, `data()` yields the current one's content. What is not read is
    skipped.
    """

    __slots__ = ("_chunk", "_chunks", "_data_left", "_globals_left", "_offset", "_padding", "_position")

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._chunk = b""
        self._position = 0
        self._offset = 0
        self._globals_left = TAR_GLOBALS
        self._data_left = 0
        self._padding = 0

    def entries(self) -> Iterator[TarEntry]:
        """Yield every entry, then read to the very end of the chunks.

        Raises:
            ImageRefused: `oci.layer.malformed_header`, `oci.layer.truncated`, `oci.layer.sparse`,
                `oci.layer.unknown_entry_type`, `oci.layer.ambiguous_header`, `oci.layer.trailing_bytes`,
                `oci.layer.path_too_long`, `oci.layer.xattr_too_large`.
        """
        extensions = _Extensions()
        if not self._fill():
            _refuse("truncated", "archive is empty")
        while True:
            self._skip_data()
            block = self._take_block()
            if block is None or block == _ZERO_BLOCK:
                break
            entry = self._parse_header(block, extensions)
            if entry is not None:
                extensions = _Extensions()
                yield entry
        if extensions.pax is not None or extensions.gnu:
            _refuse("truncated", "archive ends after an extended header")
        self._finish(block is None)

    def data(self) -> Iterator[memoryview]:
        """Yield the content of the current entry."""
        while self._data_left:
            piece = self._some(self._data_left)
            self._data_left -= len(piece)
            yield piece

    # -- bytes -----------------------------------------------------------------------------------------------

    def _fill(self) -> bool:
        """Make sure a byte is at hand; false at the end of the chunks."""
        while self._position == len(self._chunk):
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            self._chunk = chunk
            self._position = 0
        return True

    def _some(self, count: int) -> memoryview:
        """Return between one and `count` of the next bytes."""
        if not self._fill():
            _refuse("truncated", "archive ends inside an entry", path=f"byte {self._offset}")
        piece = memoryview(self._chunk)[self._position : self._position + count]
        self._position += len(piece)
        self._offset += len(piece)
        return piece

    def _take(self, count: int) -> bytes:
        pieces = []
        while count:
            piece = self._some(count)
            count -= len(piece)
            pieces.append(bytes(piece))
        return b"".join(pieces)

    def _take_block(self) -> bytes | None:
        end = self._position + BLOCK
        if end <= len(self._chunk):  # nearly always
            block = self._chunk[self._position : end]
            self._position = end
            self._offset += BLOCK
            return block
        return self._take(BLOCK) if self._fill() else None

    def _skip_data(self) -> None:
        left = self._data_left + self._padding
        self._data_left = self._padding = 0
        while left:
            left -= len(self._some(left))

    def _finish(self, at_end: bool) -> None:
        """Behind the end marker only zeros may follow; GNU tar fills up its last record with them."""
        filling_left = TAR_FILLING_BYTES
        while not at_end and self._fill():
            rest = self._chunk[self._position :]
            filling_left -= len(rest)
            if rest.count(0) != len(rest) or filling_left < 0:
                _refuse("trailing_bytes", "archive goes on after its end marker", path=f"byte {self._offset}")
            self._offset += len(rest)
            self._position = len(self._chunk)

    # -- headers ---------------------------------------------------------------------------------------------

    def _parse_header(self, block: bytes, extensions: _Extensions) -> TarEntry | None:
        """Return the entry, or None for a header that only extends the next one."""
        (name, mode, uid, gid, size, mtime, checksum, kind, link, magic, major, minor, prefix, trailer) = (
            _HEADER.unpack(block)
        )
        if _number(checksum, "checksum") != sum(block) - sum(block[_CHECKSUM]) + _CHECKSUM_BLANK:
            _refuse("malformed_header", "header checksum does not match", path=f"byte {self._offset - BLOCK}")
        length = extensions.size(_number(size, "size"))
        if kind in b"xgLK":
            self._extend(kind, length, extensions)
            return None
        if kind == b"S":
            _refuse("sparse", "sparse files are not supported", hint="build the image without sparse files")
        known = _KINDS.get(kind)
        if known is None:
            _refuse("unknown_entry_type", "entry type is not known", actual=repr(kind))
        path = _text(name)
        if magic == _POSIX_MAGIC:
            if trailer.endswith(_STAR_TRAILER):
                _refuse("ambiguous_header", "header is of the star dialect, which readers see differently")
            path = _text(prefix) + b"/" + path if prefix[0] else path
        elif magic == _GNU_MAGIC:
            if prefix.count(0) != len(prefix):  # times and a sparse map to GNU, the begin of a path to Go
                _refuse("ambiguous_header", "header is of two dialects, which readers see differently")
        elif magic != _V7_MAGIC:
            _refuse("malformed_header", "header is of no known tar dialect", actual=repr(magic))
        entry = TarEntry(
            kind=known,
            path=path,
            link=_text(link),
            mode=_number(mode, "mode") & 0o7777,
            uid=_number(uid, "uid", ceiling=_MAX_ID),
            gid=_number(gid, "gid", ceiling=_MAX_ID),
            size=length,
            mtime_ns=_number(mtime, "mtime", ceiling=_MAX_SECONDS, signed=True) * 1_000_000_000,
            device=(0, 0),
            xattrs={},
            offset=self._offset,
        )
        if known in (EntryKind.CHARACTER_DEVICE, EntryKind.BLOCK_DEVICE):
            entry.device = (
                _number(major, "device major", ceiling=_MAX_ID),
                _number(minor, "device minor", ceiling=_MAX_ID),
            )
        extensions.apply(entry)
        self._settle_directory(entry, kind)
        if known is not EntryKind.FILE and length:
            _refuse("ambiguous_header", "an entry without content claims to have some", path=entry.place)
        _require_path(entry.path, "path", entry)
        if known in (EntryKind.HARD_LINK, EntryKind.SYMLINK):
            _require_path(entry.link, "link target", entry)
        self._data_left = length
        self._padding = -length % BLOCK
        return entry

    @staticmethod
    def _settle_directory(entry: TarEntry, kind: bytes) -> None:
        """Before 1988 a directory was a file whose name ends in a slash."""
        if entry.kind is EntryKind.FILE and entry.path.endswith(b"/"):
            if kind != b"\0" or entry.size:
                _refuse("ambiguous_header", "a file's name ends in a slash", path=entry.place)
            entry.kind = EntryKind.DIRECTORY

    def _extend(self, kind: bytes, length: int, extensions: _Extensions) -> None:
        if extensions.pax is not None or (extensions.gnu and kind in b"xg"):
            _refuse("ambiguous_header", "two extended headers for one entry")
        if length > TAR_PAX_BYTES:
            _refuse("path_too_long", "extended header is too long", expected=f"at most {TAR_PAX_BYTES} bytes")
        body = self._take(length)
        self._padding = -length % BLOCK
        if kind == b"g":
            records = _parse_pax(body)
            self._globals_left -= 1
            if set(records) - {b"comment"} or self._globals_left < 0:
                _refuse("ambiguous_header", "a global header changes the entries after it, or there are too many")
        elif kind == b"x":
            extensions.add_pax(_parse_pax(body))
        else:
            extensions.add_gnu(kind, body.rstrip(b"\0"))


class _Extensions:
    """What extended headers said about the next entry."""

    __slots__ = ("gnu", "pax")

    def __init__(self) -> None:
        self.pax: dict[bytes, bytes] | None = None
        self.gnu: dict[bytes, bytes] = {}

    def add_pax(self, records: dict[bytes, bytes]) -> None:
        for key, value in records.items():
            if key.startswith(_SPARSE):
                _refuse("sparse", "sparse files are not supported", hint="build the image without sparse files")
            if key.startswith(_OTHER_DIALECTS):
                _refuse("ambiguous_header", "extended header is of a dialect that readers see differently")
            if key == b"hdrcharset" and value not in _UTF8_CHARSETS:
                _refuse("ambiguous_header", "names are in an unknown character set")
            if not value and key in _OVERRIDING:  # "as if not given" to POSIX, empty to others
                _refuse("ambiguous_header", f"{key.decode()} in an extended header is empty")
        self.pax = records

    def add_gnu(self, kind: bytes, value: bytes) -> None:
        if kind in self.gnu or b"\0" in value:
            _refuse("ambiguous_header", "two extended headers for one entry, or a NUL byte inside a name")
        self.gnu[kind] = value

    def size(self, from_header: int) -> int:
        return self._number(b"size", from_header, _MAX_SIZE)

    def apply(self, entry: TarEntry) -> None:
        """Overlay what was said on `entry`."""
        entry.path = self.gnu.get(b"L", entry.path)
        entry.link = self.gnu.get(b"K", entry.link)
        if not self.pax:
            return
        entry.path = self.pax.get(b"path", entry.path)
        entry.link = self.pax.get(b"linkpath", entry.link)
        entry.uid = self._number(b"uid", entry.uid, _MAX_ID)
        entry.gid = self._number(b"gid", entry.gid, _MAX_ID)
        mtime = self.pax.get(b"mtime")
        if mtime:
            entry.mtime_ns = _parse_time(mtime)
        for key, value in self.pax.items():
            if key.startswith(_XATTR):
                entry.xattrs[_xattr_name(key[len(_XATTR) :])] = value
        if sum(len(name) + len(value) for name, value in entry.xattrs.items()) > TAR_XATTR_BYTES:
            _refuse("xattr_too_large", "extended attributes are too large", path=entry.place)

    def _number(self, key: bytes, default: int, ceiling: int) -> int:
        text = self.pax.get(key) if self.pax else None
        if not text:
            return default
        if len(text) > 20 or not text.isdigit() or int(text) > ceiling:
            _refuse("malformed_header", f"{key.decode()} in an extended header is not a number in range")
        return int(text)


def _parse_pax(body: bytes) -> dict[bytes, bytes]:
    """Parse `length key=value\\n` records (POSIX pax, "pax Extended Header")."""
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(body):
        space = body.find(b" ", position, position + 8)
        digits = body[position:space] if space > 0 else b""
        end = position + int(digits) if digits.isdigit() else 0
        key, equals, value = body[space + 1 : end - 1].partition(b"=")
        if not (space + 1 < end <= len(body)) or body[end - 1] != 0x0A or not equals or not key:
            _refuse("malformed_header", "extended header record is malformed")
        if b"\0" in key or (b"\0" in value and not key.startswith(_XATTR)):
            _refuse("malformed_header", "extended header record holds a NUL byte")
        if key in records:
            _refuse("ambiguous_header", "extended header holds a record twice")
        records[key] = value
        position = end
    return records


def _parse_time(text: bytes) -> int:
    """Parse decimal seconds into nanoseconds; more digits than nine are cut off, which is rounding down."""
    whole, _, fraction = text.partition(b".")
    digits = whole.removeprefix(b"-")
    rounded = len(fraction) > 9 and whole.startswith(b"-")  # some round down, others towards zero
    if not digits.isdigit() or len(digits) > 12 or (fraction and not fraction.isdigit()) or rounded:
        _refuse("malformed_header", "modification time in an extended header is not a number")
    nanoseconds = int(digits) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0"))
    return -nanoseconds if whole.startswith(b"-") else nanoseconds


def _number(field: bytes, what: str, *, ceiling: int = _MAX_SIZE, signed: bool = False) -> int:
    """Parse an octal field, or GNU's base-256 form marked by the top bit."""
    if field[0] in _BASE_256:
        value = int.from_bytes(field, "big", signed=False) & ((1 << (8 * len(field) - 1)) - 1)
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
    else:
        value = _octal(field)
        if value < 0:
            _refuse("malformed_header", f"{what} is not an octal number", actual=repr(field))
    if value > ceiling or value < (-ceiling if signed else 0):
        _refuse("malformed_header", f"{what} is out of range", actual=str(value))
    return value


@lru_cache(maxsize=512)  # owner, mode and time are the same in most headers of an archive
def _octal(field: bytes) -> int:
    """Return the number, or -1 where there is none; a field of NUL bytes is zero."""
    digits = field.rstrip(b" \0").lstrip(b" ")
    if digits and (not digits.isdigit() or b"8" in digits or b"9" in digits):
        return -1
    if not digits:
        return -1 if b" " in field else 0
    return int(digits, 8)


def _text(field: bytes) -> bytes:
    """Return the bytes up to the first NUL."""
    end = field.find(b"\0")
    return field if end < 0 else field[:end]


def _xattr_name(raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        _refuse("malformed_header", "name of an extended attribute is not text")
    if not name or len(raw) > 255:
        _refuse("malformed_header", "name of an extended attribute is empty or too long")
    if "%" in name:  # GNU tar writes `=` and `%` as `%3D` and `%25`, others do not read them so
        _refuse("ambiguous_header", "name of an extended attribute holds a percent sign")
    return name


def _require_path(value: bytes, what: str, entry: TarEntry) -> None:
    if not value:
        _refuse("malformed_header", f"{what} is empty", path=entry.place)
    if len(value) > TAR_PATH_BYTES:
        _refuse("path_too_long", f"{what} is too long", expected=f"at most {TAR_PATH_BYTES} bytes", path=entry.place)


def _refuse(reason: str, message: str, **details: str) -> NoReturn:
    raise ImageRefused(f"{_CODE}.{reason}", message, **details)
