"""Computes an image's root file system as EROFS with dm-verity, for whoever wants to name it by one hash.

What is read is checked: layers against the manifest's digests, archives against the configuration's diff_ids. That the
image is the one somebody meant is for its signature. Runs on the owner's side and needs no root.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec

from cloister.errors import ImageRefused, Unavailable
from cloister.imagetool.layers import NoProgress, Progress
from cloister.oci.ahead import made_ahead, pieces_ahead
from cloister.oci.digest import Digest, DigestVerifier
from cloister.oci.inflate import inflate
from cloister.oci.manifest import Descriptor, parse_config, parse_layer_type, parse_manifest
from cloister.oci.rootimage import OPTIONS, RootImage, build_root_image
from cloister.oci.store import ImageSource, checked_blob, read_blob, resolve_platform
from cloister.wholefile import READABLE, whole_file
from cloister.wire.limits import IMAGE_CONFIG_BYTES


class ImageRoot(msgspec.Struct, frozen=True, kw_only=True):
    """The root image of the image with manifest `digest`."""

    digest: Digest
    root: RootImage


def compute_image_root(
    source: ImageSource,
    selector: str | Digest,
    destination: Path | None,
    *,
    platform: str = "linux/amd64",
    progress: Progress | None = None,
) -> ImageRoot:
    """Compute the root image of a plain image, and write it to file `destination` unless that is None.

    Raises:
        ImageRefused: `imagetool.verity.encrypted`, `oci.layer.*`, what the source's content refuses.
        Unavailable: the source cannot be read, or there is no room (`oci.layer.no_space`, `oci.rootimage.io`).
    """
    progress = progress or NoProgress()
    stored = resolve_platform(source, selector, platform)
    manifest = parse_manifest(stored.raw, media_type=stored.media_type)
    config = parse_config(read_blob(source, manifest.config, ceiling=IMAGE_CONFIG_BYTES))
    if len(config.diff_ids) != len(manifest.layers):
        raise ImageRefused(
            "imagetool.verity.layers",
            "configuration and manifest do not have the same number of layers",
            expected=str(len(manifest.layers)),
            actual=str(len(config.diff_ids)),
        )
    progress.begin(sum(layer.size for layer in manifest.layers))
    layers = enumerate(zip(manifest.layers, config.diff_ids, strict=True))
    archives = (_archive(source, index, layer, diff_id, progress) for index, (layer, diff_id) in layers)
    with tempfile.TemporaryDirectory(prefix="cloister-verity-") as scratch, _new_file(destination) as out:
        root = build_root_image(archives, config.diff_ids, out, scratch)
    return ImageRoot(digest=manifest.digest, root=root)


@contextmanager
def _new_file(path: Path | None) -> Iterator[BinaryIO | None]:
    """Give a file that stands at `path`, whole, when the block ended without an error."""
    if path is None:
        yield None
        return
    try:
        with whole_file(path, mode=READABLE) as file:
            yield file
    except OSError as err:
        raise Unavailable(
            "oci.rootimage.io", "root image cannot be written", path=str(path), actual=str(err.strerror)
        ) from err


def _archive(
    source: ImageSource, index: int, layer: Descriptor, diff_id: Digest, progress: Progress
) -> Iterator[bytes]:
    place = f"layers[{index}]"
    layer_type = parse_layer_type(layer.media_type, path=place)
    if layer_type.encrypted:
        raise ImageRefused(
            "imagetool.verity.encrypted",
            "layer is encrypted",
            path=place,
            hint="give its key with --key, or take the image as it was before",
        )

    def counted() -> Iterator[bytes]:
        for chunk in checked_blob(source, layer):
            progress.advance(len(chunk))
            yield chunk

    verifier = DigestVerifier(diff_id, None, code="oci.layer", reason="diff_id_mismatch", path=place)
    plain = inflate(made_ahead(counted()), layer_type.compression, ceiling=OPTIONS.archive_ceiling)
    return verifier.checked(pieces_ahead(plain))
