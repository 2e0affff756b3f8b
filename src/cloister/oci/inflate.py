"""Decompression of layers with a ceiling on size and ratio (RFC 1952 gzip with several members).

Streams: memory does not grow with the layer. zstd is refused: the guest has no decoder for it. Bytes after the last
gzip member are refused, so that nothing hides behind the end of what was unpacked. The compressed bytes are
authentic when they come here; the ceilings hold against an owner's mistake, and against an unencrypted image's
author.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from cloister.errors import ImageRefused
from cloister.wire.limits import KIB, LAYER_RATIO

_OUTPUT_BYTES: Final = 256 * KIB  # stays in the processor's cache between inflating, hashing and writing
_RATIO_SLACK_BYTES: Final = 64 * KIB  # small archives are mostly padding
_GZIP_WINDOW: Final = 31  # 15 bits, plus 16 for the gzip wrapper


def inflate(chunks: Iterable[bytes], compression: str, *, ceiling: int) -> Iterator[bytes]:
    """Yield the plain bytes of `chunks`.

    Args:
        chunks: the compressed bytes.
        compression: as in `LayerType`.
        ceiling: most plain bytes.

    Raises:
        ImageRefused: `oci.layer.too_large`, `oci.layer.ratio`, `oci.layer.bad_compression`,
            `oci.layer.truncated`, `oci.layer.unsupported_compression`.
    """
    decoder = _DECODERS.get(compression)
    if decoder is None:
        raise ImageRefused(
            "oci.layer.unsupported_compression",
            "layer compression is not supported in the guest",
            expected="gzip or none",
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


def _gunzip(chunks: Iterable[bytes]) -> Iterator[bytes]:
    member = zlib.decompressobj(_GZIP_WINDOW)
    begun = False
    for chunk in chunks:
        data = chunk
        while data:
            if member.eof:
                member = zlib.decompressobj(_GZIP_WINDOW)
            begun = True
            try:
                plain = member.decompress(data, _OUTPUT_BYTES)
            except zlib.error as err:
                raise ImageRefused("oci.layer.bad_compression", "layer is not gzip as its media type says") from err
            if plain:
                yield plain
            data = member.unused_data if member.eof else member.unconsumed_tail
        # The decompressor may hold back output beyond `_OUTPUT_BYTES` though it took all input.
        while not member.eof:
            plain = member.decompress(b"", _OUTPUT_BYTES)
            if not plain:
                break
            yield plain
    if not begun or not member.eof:
        raise ImageRefused("oci.layer.truncated", "compressed layer ends early")


_DECODERS: Final[dict[str, Callable[[Iterable[bytes]], Iterator[bytes]]]] = {"": _plain, "gzip": _gunzip}
