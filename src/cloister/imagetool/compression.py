"""Compresses and decompresses layers on the owner's side: gzip by ISA-L (RFC 1952), zstd (RFC 8878).

The owner's own layers, and faster than what the guest does with them: `cloister.oci.inflate` is what the guest has.
Streams, and memory does not grow with the layer: what a chunk inflates to comes in pieces. Bytes behind the last
gzip member or zstd frame are refused, as the guest refuses them. Whether the plain bytes are the right ones is for
the caller's check of the diff_id.

Level 1 of both: it compresses as well as gzip's usual level 6 within a few percent, an order of magnitude faster.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Final, cast

from cloister.errors import ImageRefused
from cloister.wire.limits import KIB, LAYER_UNPACKED_BYTES, MIB

_OUTPUT_BYTES: Final = 256 * KIB
_GZIP_WINDOW: Final = 31  # 15 bits, plus 16 for the gzip wrapper
_LEVEL: Final = 1
_ZSTD_WINDOW_BYTES: Final = 128 * MIB  # what `zstd --long=27` needs; more is refused by tools as well


class Compress(enum.StrEnum):
    """What happens to the compression of layers on their way through; compressed ones are never compressed again
    without need."""

    NONE = "none"  # every layer stays as it is
    GZIP = "gzip"  # plain and zstd layers become gzip
    ZSTD = "zstd"  # plain layers become zstd
    GUEST = "guest"  # zstd layers become gzip, for guests; the rest stays

    def target(self, compression: str) -> str:
        """Return what a layer with `compression` (as in `LayerType`) becomes."""
        return _TARGETS[self].get(compression, compression)


_TARGETS: Final = {
    Compress.NONE: dict[str, str](),
    Compress.GZIP: {"": "gzip", "zstd": "gzip"},
    Compress.ZSTD: {"": "zstd"},
    Compress.GUEST: {"zstd": "gzip"},
}


def compressed(chunks: Iterable[bytes], compression: str) -> Iterator[bytes]:
    """Yield `chunks` compressed as `compression` says."""
    return _ENCODERS[compression](chunks)


def decompressed(chunks: Iterable[bytes], compression: str, *, path: str) -> Iterator[bytes]:
    """Yield the plain bytes of `chunks`.

    Args:
        chunks: the bytes of the layer.
        compression: as in `LayerType`.
        path: names the layer in errors.

    Raises:
        ImageRefused: `oci.layer.bad_compression`, `oci.layer.truncated`, `oci.layer.too_large`.
    """
    total = 0
    for chunk in _DECODERS[compression](chunks, path):
        total += len(chunk)
        if total > LAYER_UNPACKED_BYTES:
            raise ImageRefused(
                "oci.layer.too_large",
                "layer unpacks to too many bytes",
                path=path,
                expected=f"at most {LAYER_UNPACKED_BYTES}",
            )
        yield chunk


def _pass(chunks: Iterable[bytes]) -> Iterator[bytes]:
    yield from chunks


def _gzip(chunks: Iterable[bytes]) -> Iterator[bytes]:
    from isal import isal_zlib

    encoder = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, _GZIP_WINDOW)
    for chunk in chunks:
        if data := encoder.compress(chunk):
            yield data
    yield encoder.flush()


def _zstd(chunks: Iterable[bytes]) -> Iterator[bytes]:
    import zstandard

    encoder = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj()
    for chunk in chunks:
        if data := encoder.compress(chunk):
            yield data
    yield encoder.flush()


def _as_is(chunks: Iterable[bytes], path: str) -> Iterator[bytes]:
    yield from chunks


def _gunzip(chunks: Iterable[bytes], path: str) -> Iterator[bytes]:
    from isal import isal_zlib

    member = isal_zlib.decompressobj(_GZIP_WINDOW)
    begun = False
    for chunk in chunks:
        data: bytes = chunk
        while data:
            if member.eof:
                member = isal_zlib.decompressobj(_GZIP_WINDOW)
            begun = True
            try:
                plain = member.decompress(data, _OUTPUT_BYTES)
            except isal_zlib.error as err:  # type: ignore[misc]  # its stub types the class as an instance
                raise _bad("gzip", path) from err
            if plain:
                yield plain
            data = member.unused_data if member.eof else member.unconsumed_tail
        # The decompressor may hold back output beyond `_OUTPUT_BYTES` though it took all input.
        while not member.eof and (plain := member.decompress(b"", _OUTPUT_BYTES)):
            yield plain
    if not begun or not member.eof:
        raise ImageRefused("oci.layer.truncated", "compressed layer ends early", path=path)


def _unzstd(chunks: Iterable[bytes], path: str) -> Iterator[bytes]:
    import zstandard

    # An object would give all that a chunk inflates to at once; a reader gives pieces. It takes a frame that ends early
    # for the end of the layer, which the diff_id tells.
    decoder = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
    file = cast("IO[bytes]", _Reader(chunks))  # reads only
    reader = decoder.stream_reader(file, read_across_frames=True)
    while True:
        try:
            plain = reader.read(_OUTPUT_BYTES)
        except zstandard.ZstdError as err:
            raise _bad("zstd", path) from err
        if not plain:
            return
        yield plain


class _Reader:
    """Chunks as a file to read from; a chunk is given whole, however little was asked for."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)

    def read(self, size: int = -1) -> bytes:
        return next(self._chunks, b"")


def _bad(name: str, path: str) -> ImageRefused:
    return ImageRefused("oci.layer.bad_compression", f"layer is not {name} as its media type says", path=path)


_ENCODERS: Final[dict[str, Callable[[Iterable[bytes]], Iterator[bytes]]]] = {
    "": _pass,
    "gzip": _gzip,
    "zstd": _zstd,
}
_DECODERS: Final[dict[str, Callable[[Iterable[bytes], str], Iterator[bytes]]]] = {
    "": _as_is,
    "gzip": _gunzip,
    "zstd": _unzstd,
}
