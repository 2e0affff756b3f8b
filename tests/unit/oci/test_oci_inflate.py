"""Bounded decompression."""

from __future__ import annotations

import gzip
import random
import sys
import tracemalloc
import zlib
from collections.abc import Iterator

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ImageRefused
from cloister.oci import inflate as module
from cloister.oci.inflate import inflate
from cloister.wire.limits import ZSTD_WINDOW_BYTES

CONTENT = bytes(range(256)) * 400
GZIPPED = gzip.compress(CONTENT, mtime=0)  # the same each time: it names tests
ZSTD = zstandard.ZstdCompressor(write_checksum=True).compress(CONTENT)
NOISE = random.Random(1).randbytes(400_000)
SKIPPABLE = (0x184D2A53).to_bytes(4, "little") + (5).to_bytes(4, "little") + b"index"


@pytest.fixture(params=["isal", "zlib"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both decoders of gzip, whatever the length."""
    monkeypatch.setattr(module, "_ISAL_BYTES", 0 if request.param == "isal" else 1 << 60)
    return str(request.param)


def run(data: bytes, compression: str = "gzip", *, chunk: int = 997, ceiling: int = 1 << 30) -> bytes:
    return b"".join(inflate((data[i : i + chunk] for i in range(0, len(data), chunk)), compression, ceiling=ceiling))


@pytest.mark.parametrize("chunk", [1, 997, 1 << 20])
def test_gzip_with_several_members(chunk: int, library: str) -> None:
    data = gzip.compress(CONTENT) + gzip.compress(b"") + gzip.compress(b"tail")
    assert run(data, chunk=chunk) == CONTENT + b"tail"


def test_plain_passes_through() -> None:
    assert run(CONTENT, "") == CONTENT
    assert run(b"", "") == b""


@pytest.mark.usefixtures("library")
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
        (GZIPPED[:3], "gzip", "truncated"),
        (GZIPPED + GZIPPED[:2], "gzip", "truncated"),
        (GZIPPED[:3] + b"\x20" + GZIPPED[4:], "gzip", "bad_compression"),
        (b"", "zstd", "truncated"),
        (ZSTD[:3], "zstd", "truncated"),
        (ZSTD[:-1], "zstd", "truncated"),
        (ZSTD[:-4], "zstd", "truncated"),
        (ZSTD[:20], "zstd", "truncated"),
        (ZSTD + SKIPPABLE[:-1], "zstd", "truncated"),
        (ZSTD + ZSTD[:9], "zstd", "truncated"),
        (ZSTD + b"garbage", "zstd", "bad_compression"),
        (ZSTD + bytes(512), "zstd", "bad_compression"),
        (ZSTD[:-4] + bytes(4), "zstd", "bad_compression"),
        (GZIPPED, "zstd", "bad_compression"),
        (ZSTD, "gzip", "bad_compression"),
        (b"", "xz", "unsupported_compression"),
    ],
)
@pytest.mark.usefixtures("library")
def test_damaged_streams_are_refused(data: bytes, compression: str, code: str) -> None:
    with pytest.raises(ImageRefused) as caught:
        run(data, compression)
    assert caught.value.code == f"oci.layer.{code}"


@pytest.mark.parametrize("compression", ["", "gzip", "zstd"])
def test_ceiling_holds(compression: str) -> None:
    data = {"": CONTENT, "gzip": GZIPPED, "zstd": ZSTD}[compression]
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


def test_gzip_is_read_without_isal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ISAL_BYTES", 0)
    assert module._gzip_library(1)[0] is not zlib.decompressobj
    monkeypatch.setitem(sys.modules, "isal", None)  # what an import of a missing module finds
    assert module._gzip_library(1)[0] is zlib.decompressobj
    assert run(GZIPPED) == CONTENT


def outcome(data: bytes, chunk: int, least: int) -> bytes | str:
    before, module._ISAL_BYTES = module._ISAL_BYTES, least  # type: ignore[misc]  # chooses the decoder
    try:
        return run(data, chunk=chunk)
    except ImageRefused as err:
        return type(err).__name__
    finally:
        module._ISAL_BYTES = before  # type: ignore[misc]  # as it was


@given(st.binary(max_size=3000), st.integers(1, 4000), st.data())
def test_both_decoders_of_gzip_see_the_same(content: bytes, chunk: int, data: st.DataObject) -> None:
    packed = bytearray(gzip.compress(content * 3, mtime=0) + gzip.compress(content, mtime=0))
    if data.draw(st.booleans()):
        packed[data.draw(st.integers(0, len(packed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert outcome(bytes(packed), chunk, 0) == outcome(bytes(packed), chunk, 1 << 60)


# -- zstd --


@pytest.mark.parametrize("chunk", [1, 997, 1 << 20])
@pytest.mark.parametrize("level", [1, 3, 19])
def test_zstd_frames_and_skippable_ones(chunk: int, level: int) -> None:
    compressor = zstandard.ZstdCompressor(level=level, write_content_size=False)
    stream = compressor.compressobj()
    streamed = stream.compress(NOISE) + stream.flush()
    data = SKIPPABLE + streamed + SKIPPABLE + ZSTD + compressor.compress(b"") + SKIPPABLE
    assert run(data, "zstd", chunk=chunk) == NOISE + CONTENT


@given(st.integers(0, 400_000), st.integers(1, 100_000), st.integers(-5, 22))
def test_any_zstd_stream_is_read(size: int, chunk: int, level: int) -> None:
    content = random.Random(size).randbytes(size // 2) + bytes(size // 2)
    data = zstandard.ZstdCompressor(level=level, write_checksum=size % 2 == 0).compress(content)
    assert run(data, "zstd", chunk=chunk) == content


@given(st.integers(0, len(ZSTD) - 1), st.integers(0, 7))
def test_a_bit_in_a_zstd_frame_is_seen(place: int, bit: int) -> None:
    data = bytearray(ZSTD)
    data[place] ^= 1 << bit
    try:
        assert run(bytes(data), "zstd") in (CONTENT, b"")  # b"": the frame became a skippable one
    except ImageRefused as err:
        assert err.code.startswith("oci.layer.")  # both are right


def test_memory_of_a_zstd_bomb_is_bounded() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    assert len(bomb) < 16 << 10  # one piece of input holds all of it
    tracemalloc.start()
    with pytest.raises(ImageRefused) as caught:
        run(bomb, "zstd", chunk=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.code == "oci.layer.ratio"
    assert peak < 40 << 20


def frame_header(window_log: int) -> bytes:
    return b"\x28\xb5\x2f\xfd" + bytes([0, (window_log - 10) << 3])


def test_windows_have_a_ceiling() -> None:
    empty_block = (1).to_bytes(3, "little")
    assert ZSTD_WINDOW_BYTES == 1 << 25
    assert run(frame_header(25) + empty_block, "zstd") == b""
    for header in (frame_header(26), frame_header(41), b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little")):
        with pytest.raises(ImageRefused) as caught:
            run(header + empty_block, "zstd")
        assert caught.value.code == "oci.layer.zstd_window"


@pytest.mark.parametrize(
    ("header", "body"),
    [
        (frame_header(20), (7).to_bytes(3, "little")),  # the reserved kind of block
        (frame_header(20), ((200_000 << 3) | 5).to_bytes(3, "little") + bytes(200_000)),
        (b"\x28\xb5\x2f\xfd\x01\x50\x07", (1).to_bytes(3, "little")),  # a dictionary
        (b"\x28\xb5\x2f\xfd\x08\x50", (1).to_bytes(3, "little")),  # a reserved bit
    ],
)
def test_other_zstd_features_are_refused(header: bytes, body: bytes) -> None:
    with pytest.raises(ImageRefused) as caught:
        run(header + body, "zstd")
    assert caught.value.code == "oci.layer.bad_compression"
