"""Compression of layers on the owner's side: what is inside never changes."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
import zstandard

from cloister.errors import CloisterError
from cloister.imagetool.compression import Compress, compressed
from cloister.imagetool.decrypt import decrypt_image
from cloister.imagetool.encrypt import SealedImage, encrypt_image
from cloister.oci.inflate import inflate
from cloister.oci.layout import OCILayout
from cloister.oci.manifest import ImageManifest, parse_config
from cloister.oci.store import checked_blob, read_blob
from imagetool_images import ARCHIVES, COMPRESSIONS, build, key, manifest_of, recipient, rewrite
from unit.oci.builders import KEK_ID

PLAIN = b"".join(ARCHIVES) * 40


def pieces(data: bytes, size: int = 4096) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_what_is_compressed_is_what_comes_out(compression: str) -> None:
    stored = b"".join(compressed(pieces(PLAIN), compression))
    assert (len(stored) < len(PLAIN) * 3 // 4) == bool(compression)
    assert b"".join(inflate(pieces(stored), compression, ceiling=1 << 30)) == PLAIN


def test_other_tools_read_it() -> None:
    assert gzip.decompress(b"".join(compressed(pieces(PLAIN), "gzip"))) == PLAIN
    frame = b"".join(compressed(pieces(PLAIN), "zstd"))
    assert zstandard.ZstdDecompressor().decompressobj().decompress(frame) == PLAIN


def refused(run: Any) -> str:
    with pytest.raises(CloisterError) as caught:
        run()
    return caught.value.code


# -- on the way through encryption


def sealed(tmp_path: Path, compression: str, compress_as: Compress) -> tuple[SealedImage, ImageManifest]:
    built = build(tmp_path / "plain", compression)
    sink = OCILayout(tmp_path / "sealed", create=True)
    result = encrypt_image(built.layout, "v1", sink, tag="v1", recipients=[recipient()], compress=compress_as)
    return result, manifest_of(sink)


@pytest.mark.parametrize(
    ("before", "choice", "after"),
    [
        ("", Compress.NONE, ""),
        ("zstd", Compress.NONE, "zstd"),
        ("", Compress.GZIP, "gzip"),
        ("gzip", Compress.GZIP, "gzip"),
        ("zstd", Compress.GZIP, "gzip"),
        ("", Compress.ZSTD, "zstd"),
        ("gzip", Compress.ZSTD, "gzip"),
        ("", Compress.GUEST, ""),
        ("zstd", Compress.GUEST, "gzip"),
    ],
)
def test_layers_change_compression_and_keep_their_content(
    tmp_path: Path, before: str, choice: Compress, after: str
) -> None:
    result, manifest = sealed(tmp_path, before, choice)
    suffix = f"tar+{after}+encrypted" if after else "tar+encrypted"
    assert all(layer.media_type.endswith(suffix) for layer in manifest.layers)
    assert result.recompressed == (2 if before != after else 0)
    assert result.zstd == (2 if after == "zstd" else 0)
    out = OCILayout(tmp_path / "out", create=True)
    decrypt_image(OCILayout(tmp_path / "sealed"), "v1", out, tag="v1", keys=[key(KEK_ID)])
    opened = manifest_of(out)
    config = parse_config(read_blob(out, opened.config, ceiling=1 << 20))
    assert opened.config.digest == manifest_of(OCILayout(tmp_path / "plain")).config.digest
    for layer, content in zip(opened.layers, ARCHIVES, strict=True):
        assert b"".join(inflate(checked_blob(out, layer), after, ceiling=1 << 30)) == content
    assert len(config.diff_ids) == len(opened.layers)
    if before == after:
        assert opened.digest == manifest_of(OCILayout(tmp_path / "plain")).digest


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_layer_that_is_not_the_configurations_is_not_compressed_anew(tmp_path: Path, compression: str) -> None:
    built = build(tmp_path / "plain", compression)
    rewrite(built.layout, lambda document: document["layers"].reverse())
    sink = OCILayout(tmp_path / "sealed", create=True)
    choice = Compress.GZIP if compression != "gzip" else Compress.NONE

    def run() -> SealedImage:
        return encrypt_image(built.layout, "v1", sink, tag="v1", recipients=[recipient()], compress=choice)

    if compression == "gzip":  # it is not opened, so nobody can tell here; whoever decrypts or unpacks it does
        assert run().recompressed == 0
        return
    assert refused(run) == "oci.layer.diff_id_mismatch"
    assert sink.get_manifest("v1") is None
