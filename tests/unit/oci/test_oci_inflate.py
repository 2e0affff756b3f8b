"""Bounded decompression."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Iterator

import pytest

from cloister.errors import ImageRefused
from cloister.oci.inflate import inflate

CONTENT = bytes(range(256)) * 400
GZIPPED = gzip.compress(CONTENT, mtime=0)  # the same each time: it names tests


def run(data: bytes, compression: str = "gzip", *, chunk: int = 997, ceiling: int = 1 << 30) -> bytes:
    return b"".join(inflate((data[i : i + chunk] for i in range(0, len(data), chunk)), compression, ceiling=ceiling))


@pytest.mark.parametrize("chunk", [1, 997, 1 << 20])
def test_gzip_with_several_members(chunk: int) -> None:
    data = gzip.compress(CONTENT) + gzip.compress(b"") + gzip.compress(b"tail")
    assert run(data, chunk=chunk) == CONTENT + b"tail"


def test_plain_passes_through() -> None:
    assert run(CONTENT, "") == CONTENT
    assert run(b"", "") == b""


def test_output_comes_in_bounded_pieces_from_a_bomb() -> None:
    bomb = gzip.compress(bytes(64 << 20))
    tracemalloc.start()
    assert sum(len(piece) for piece in inflate([bomb], "gzip", ceiling=1 << 30)) == 64 << 20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize(
    ("data", "compression", "code"),
    [
        (b"", "gzip", "truncated"),
        (GZIPPED[:-1], "gzip", "truncated"),
        (GZIPPED[:20], "gzip", "truncated"),
        (GZIPPED + GZIPPED[:9], "gzip", "truncated"),
        (GZIPPED + b"garbage", "gzip", "bad_compression"),
        (GZIPPED + bytes(512), "gzip", "bad_compression"),
        (b"plain text", "gzip", "bad_compression"),
        (zlib.compress(CONTENT), "gzip", "bad_compression"),
        (GZIPPED[:-8] + bytes(8), "gzip", "bad_compression"),
        (b"(\xb5/\xfd", "zstd", "unsupported_compression"),
        (b"", "xz", "unsupported_compression"),
    ],
)
def test_damaged_streams_are_refused(data: bytes, compression: str, code: str) -> None:
    with pytest.raises(ImageRefused) as caught:
        run(data, compression)
    assert caught.value.code == f"oci.layer.{code}"


@pytest.mark.parametrize("compression", ["", "gzip"])
def test_ceiling_holds(compression: str) -> None:
    data = CONTENT if not compression else gzip.compress(CONTENT)
    assert run(data, compression, ceiling=len(CONTENT)) == CONTENT
    with pytest.raises(ImageRefused) as caught:
        run(data, compression, ceiling=len(CONTENT) - 1)
    assert caught.value.code == "oci.layer.too_large"


def test_ratio_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    # Deflate cannot reach the ceiling, so a decoder that does stands in.
    def swell(chunks: Iterator[bytes]) -> Iterator[bytes]:
        for _ in chunks:
            yield bytes(1 << 20)

    monkeypatch.setitem(inflate.__globals__["_DECODERS"], "swell", swell)
    with pytest.raises(ImageRefused) as caught:
        list(inflate([b"xx"], "swell", ceiling=1 << 30))
    assert caught.value.code == "oci.layer.ratio"
