"""Decompression of layers with a ceiling on size and ratio (RFC 1952 gzip with several members, RFC 8878 zstd).

Streams: memory does not grow with the layer. Bytes after the last member or frame are refused, so that nothing hides
behind the end of what was unpacked; zstd's skippable frames are skipped, wherever they stand, as every decoder does
(tools that pull lazily put their index there). The compressed bytes are authentic when they come here; the ceilings
hold against an owner's mistake, and against an unencrypted image's author.

gzip is read by ISA-L where the module `isal` is there, else by zlib: the same bytes, and the same refusals.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

from cloister.errors import ImageRefused
from cloister.wire.limits import KIB, LAYER_RATIO, ZSTD_WINDOW_BYTES

if TYPE_CHECKING:
    from zstandard import ZstdDecompressor

_OUTPUT_BYTES: Final = 128 * KIB  # stays in the processor's cache between inflating, hashing and writing
_INPUT_BYTES: Final = 64 * KIB  # given to the decompressor, which copies what is left over when there is output enough
_ISAL_BYTES: Final = 128 * KIB
_RATIO_SLACK_BYTES: Final = 64 * KIB  # small archives are mostly padding
_GZIP_MAGIC: Final = b"\x1f\x8b\x08"  # with the one method there is
_GZIP_RESERVED: Final = 0xE0  # bits of the flags
_GZIP_WINDOW: Final = 31  # 15 bits, plus 16 for the gzip wrapper


def inflate(chunks: Iterable[bytes], compression: str, *, ceiling: int) -> Iterator[bytes]:
    """Yield the plain bytes of `chunks`.

    Args:
        chunks: the compressed bytes.
        compression: as in `LayerType`.
        ceiling: most plain bytes.

    Raises:
        ImageRefused: `oci.layer.too_large`, `oci.layer.ratio`, `oci.layer.bad_compression`,
            `oci.layer.truncated`, `oci.layer.zstd_window`, `oci.layer.unsupported_compression`.
    """
    decoder = _DECODERS.get(compression)
    if decoder is None:
        raise ImageRefused(
            "oci.layer.unsupported_compression",
            "layer compression is not supported in the guest",
            expected="gzip, zstd or none",
            actual=compression,
            hint="push the image with gzip layers",
        )
    counted = _Counted(chunks)
    total = 0
    for chunk in decoder(counted):
        total += len(chunk)
        if total > ceiling:
            raise ImageRefused("oci.layer.too_large", "layer unpacks to too many bytes", expected=f"at most {ceiling}")
        if total > _RATIO_SLACK_BYTES + LAYER_RATIO * counted.total:
            raise ImageRefused(
                "oci.layer.ratio", "layer unpacks to too many bytes for its size", expected=f"at most {LAYER_RATIO}:1"
            )
        yield chunk


class _Counted:
    """Chunks that count the bytes which went through."""

    __slots__ = ("_chunks", "total")

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks
        self.total = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.total += len(chunk)
            yield chunk


def _plain(chunks: Iterable[bytes]) -> Iterator[bytes]:
    yield from chunks


# -- gzip ------------------------------------------------------------------------------------------------------------


class _Member(Protocol):
    """What `zlib.decompressobj` and `isal_zlib.decompressobj` return."""

    @property
    def eof(self) -> bool:
        """Whether the member ended."""
        ...

    @property
    def unused_data(self) -> bytes:
        """What came behind its end."""
        ...

    @property
    def unconsumed_tail(self) -> bytes:
        """What was not looked at, because there was plain data enough."""
        ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        """Return up to so many plain bytes."""
        ...


def _gzip_library(first_bytes: int) -> tuple[Callable[[int], _Member], type[Exception]]:
    """Return what decompresses, and its error; loading ISA-L would take longer than a short layer does."""
    if first_bytes < _ISAL_BYTES:
        return zlib.decompressobj, zlib.error
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib.decompressobj, zlib.error
    error: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # its type information says an instance
    return isal_zlib.decompressobj, error


def _pieces(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in pieces of at most `_INPUT_BYTES`."""
    for chunk in chunks:
        if len(chunk) <= _INPUT_BYTES:
            yield chunk
            continue
        for start in range(0, len(chunk), _INPUT_BYTES):
            yield chunk[start : start + _INPUT_BYTES]


def _gunzip(chunks: Iterable[bytes]) -> Iterator[bytes]:
    source = iter(chunks)
    first = next(source, b"")
    begin, error = _gzip_library(len(first))
    member = begin(_GZIP_WINDOW)
    begun, fresh = False, True
    held = b""
    for chunk in _pieces(chain((first,), source)):
        data = held + chunk
        held = b""
        while data:
            if member.eof:
                member = begin(_GZIP_WINDOW)
                fresh = True
            if fresh:  # ISA-L would wait for a whole header, and takes flags that mean nothing
                if not _GZIP_MAGIC.startswith(data[:3]) or (data[3:4] and data[3] & _GZIP_RESERVED):
                    raise ImageRefused("oci.layer.bad_compression", "layer is not gzip as its media type says")
                if len(data) <= len(_GZIP_MAGIC):
                    held = data
                    break
            begun, fresh = True, False
            try:
                plain = member.decompress(data, _OUTPUT_BYTES)
            except error as err:
                raise ImageRefused("oci.layer.bad_compression", "layer is not gzip as its media type says") from err
            if plain:
                yield plain
            data = member.unused_data if member.eof else member.unconsumed_tail
        # The decompressor may hold back output beyond `_OUTPUT_BYTES` though it took all input.
        while not member.eof:
            try:
                plain = member.decompress(b"", _OUTPUT_BYTES)
            except error as err:
                raise ImageRefused("oci.layer.bad_compression", "layer is not gzip as its media type says") from err
            if not plain:
                break
            yield plain
    if held or not begun or not member.eof:
        _refuse_truncated()


# -- zstd ------------------------------------------------------------------------------------------------------------

_ZSTD_MAGIC: Final = 0xFD2FB528
_ZSTD_SKIPPABLE: Final = 0x184D2A50  # and the fifteen after it
_ZSTD_BLOCK_BYTES: Final = 128 * KIB  # most plain bytes of one block (RFC 8878, section 3.1.1.2.4)
_ZSTD_DICTIONARY_BYTES: Final = (0, 1, 2, 4)
_RAW, _RLE, _COMPRESSED, _ = range(4)


def _unzstd(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Walk frames and blocks by their headers and give the decoder one block at a time.

    So no call of it makes more than a block's bytes, and the end of each frame is known without asking it.
    """
    from zstandard import ZstdDecompressor

    decoder = ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
    source = _Take(chunks)
    if source.at_end():
        _refuse_truncated()
    while not source.at_end():
        magic = source.number(4)
        if magic & ~0xF == _ZSTD_SKIPPABLE:
            source.skip(source.number(4))
        elif magic == _ZSTD_MAGIC:
            yield from _zstd_frame(source, decoder)
        else:
            _refuse_zstd("layer is not zstd as its media type says")


def _zstd_frame(source: _Take, decoder: ZstdDecompressor) -> Iterator[bytes]:
    """Yield what one frame holds, its magic number taken already (RFC 8878, section 3.1.1)."""
    from zstandard import ZstdError

    header, checksum = _zstd_header(source)
    frame = decoder.decompressobj()
    try:
        plain = frame.decompress(header)
        last = False
        while not last:
            block = source.take(3)
            word = int.from_bytes(block, "little")
            last, kind, size = bool(word & 1), word >> 1 & 3, word >> 3
            if kind > _COMPRESSED or size > _ZSTD_BLOCK_BYTES:
                _refuse_zstd("a zstd block is of no known kind or too long")
            plain += frame.decompress(block + source.take(1 if kind == _RLE else size))
            if last and checksum:
                plain += frame.decompress(source.take(4))
            if plain:
                yield plain
            plain = b""
    except ZstdError as err:
        raise ImageRefused("oci.layer.bad_compression", "layer is not zstd as its media type says") from err
    if not frame.eof or frame.unused_data:
        _refuse_zstd("a zstd frame ends elsewhere than its blocks say")


def _zstd_header(source: _Take) -> tuple[bytes, bool]:
    """Return a frame's header with its magic number, and whether a checksum follows the last block."""
    descriptor = source.take(1)
    flags = descriptor[0]
    single = bool(flags & 0x20)
    window = b"" if single else source.take(1)
    size_bytes = (int(single), 2, 4, 8)[flags >> 6]
    dictionary = source.take(_ZSTD_DICTIONARY_BYTES[flags & 3])
    size = source.take(size_bytes)
    if any(dictionary):
        _refuse_zstd("a zstd frame needs a dictionary")
    if single:
        needed = int.from_bytes(size, "little") + (256 if size_bytes == 2 else 0)
    else:
        base = 1 << (10 + (window[0] >> 3))
        needed = base + (base >> 3) * (window[0] & 7)
    if needed > ZSTD_WINDOW_BYTES:
        raise ImageRefused(
            "oci.layer.zstd_window",
            "zstd frame needs too much memory to read",
            expected=f"a window of at most {ZSTD_WINDOW_BYTES} bytes",
            actual=str(needed),
            hint="compress the layer without --ultra or --long, or with gzip",
        )
    return _ZSTD_MAGIC.to_bytes(4, "little") + descriptor + window + dictionary + size, bool(flags & 4)


class _Take:
    """Takes exact numbers of bytes from chunks."""

    __slots__ = ("_chunk", "_chunks", "_position")

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._chunk = b""
        self._position = 0

    def at_end(self) -> bool:
        while self._position == len(self._chunk):
            chunk = next(self._chunks, None)
            if chunk is None:
                return True
            self._chunk, self._position = chunk, 0
        return False

    def take(self, count: int) -> bytes:
        end = self._position + count
        if end <= len(self._chunk):  # nearly always
            taken = self._chunk[self._position : end]
            self._position = end
            return taken
        pieces = []
        while count:
            pieces.append(self._some(count))
            count -= len(pieces[-1])
        return b"".join(pieces)

    def skip(self, count: int) -> None:
        while count:
            count -= len(self._some(count))

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def _some(self, count: int) -> bytes:
        if self.at_end():
            _refuse_truncated()
        piece = self._chunk[self._position : self._position + count]
        self._position += len(piece)
        return piece


def _refuse_truncated() -> NoReturn:
    raise ImageRefused("oci.layer.truncated", "compressed layer ends early")


def _refuse_zstd(message: str) -> NoReturn:
    raise ImageRefused("oci.layer.bad_compression", message)


_DECODERS: Final[dict[str, Callable[[Iterable[bytes]], Iterator[bytes]]]] = {
    "": _plain,
    "gzip": _gunzip,
    "zstd": _unzstd,
}
