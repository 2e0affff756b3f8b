"""Writes images into one file: `oci-archive` (a tar of a layout) and `docker-archive` (what `docker load` reads).

The same image makes the same file, byte by byte: members in the order of their names, no owners, no times. What is in
the file came through an `OCILayout`, so every blob has its digest; a docker archive holds layers unpacked and checked
against their diff_ids, and has no place for encryption, signatures or several platforms: those are refused.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from typing import BinaryIO, Final

from cloister.errors import ImageRefused
from cloister.oci.digest import DigestVerifier
from cloister.oci.document import encode_document
from cloister.oci.inflate import inflate
from cloister.oci.layout import OCILayout, open_plain
from cloister.oci.manifest import Descriptor, ImageManifest, parse_config, parse_layer_type, parse_manifest
from cloister.oci.store import checked_blob, read_blob, read_manifest
from cloister.wire.limits import IMAGE_CONFIG_BYTES, LAYER_UNPACKED_BYTES, MIB

_CODE: Final = "oci.archive"
_RECORD: Final = 20 * tarfile.BLOCKSIZE  # tars are filled up to this, as GNU tar and Go do


class _TarFile:
    """Writes members one after the other; their sizes need not be known before."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def add(self, name: str, chunks: Iterable[bytes]) -> None:
        """Write a member."""
        start = self._file.tell()
        self._file.write(_header(name, 0))
        content = self._file.tell()
        for chunk in chunks:
            self._file.write(chunk)
        size = self._file.tell() - content
        self._file.write(bytes(-size % tarfile.BLOCKSIZE))
        end = self._file.tell()
        self._file.seek(start)
        self._file.write(_header(name, size))
        self._file.seek(end)

    def finish(self) -> None:
        """Write the end of the archive."""
        self._file.write(bytes(2 * tarfile.BLOCKSIZE))
        self._file.write(bytes(-self._file.tell() % _RECORD))


def write_oci_archive(layout: OCILayout, file: BinaryIO) -> None:
    """Write all of `layout` into the empty, seekable `file`."""
    tar = _TarFile(file)
    for name, path in layout.files():
        with open_plain(path) as content:
            tar.add(name, iter(lambda content=content: content.read(MIB), b""))  # type: ignore[misc]  # a default is no argument
    tar.finish()


def write_docker_archive(layout: OCILayout, entry: Descriptor, file: BinaryIO, *, name: str) -> None:
    """Write the image `entry` of `layout` into the empty, seekable `file`, under `name` unless that is empty.

    Raises:
        ImageRefused: `oci.archive.encrypted`, `oci.archive.diff_id_mismatch`, `oci.archive.layer_count`,
            `oci.manifest.is_index`, or what a layer refuses (`oci.layer.*`).
    """
    stored = read_manifest(layout, entry.digest)
    manifest = parse_manifest(stored.raw, media_type=stored.media_type)
    require_plain(manifest)
    config = parse_config(read_blob(layout, manifest.config, ceiling=IMAGE_CONFIG_BYTES))
    if len(config.diff_ids) != len(manifest.layers):
        raise ImageRefused(
            f"{_CODE}.layer_count",
            "manifest and configuration disagree on the layers",
            expected=str(len(config.diff_ids)),
            actual=str(len(manifest.layers)),
        )
    tar = _TarFile(file)
    names = [f"{diff_id.hex}.tar" for diff_id in config.diff_ids]
    written: set[str] = set()
    for place, (layer, diff_id) in enumerate(zip(manifest.layers, config.diff_ids, strict=True)):
        if names[place] in written:
            continue
        written.add(names[place])
        compression = parse_layer_type(layer.media_type, path=f"layers[{place}]").compression
        plain = inflate(checked_blob(layout, layer), compression, ceiling=LAYER_UNPACKED_BYTES)
        verifier = DigestVerifier(diff_id, None, code=_CODE, path=f"layers[{place}]", reason="diff_id_mismatch")
        tar.add(names[place], verifier.checked(plain))
    config_name = f"{config.digest.hex}.json"
    tar.add(config_name, [config.raw])
    image = encode_document({"Config": config_name, "RepoTags": [name] if name else None, "Layers": names})
    tar.add("manifest.json", [b"[" + image + b"]"])
    tar.finish()


def require_plain(manifest: ImageManifest) -> None:
    """Refuse an image with an encrypted layer: a docker archive has no place for the annotations it needs.

    Raises:
        ImageRefused: `oci.archive.encrypted`, `oci.manifest.unknown_layer_type`, `oci.manifest.foreign_layer`.
    """
    for number, layer in enumerate(manifest.layers):
        if parse_layer_type(layer.media_type, path=f"layers[{number}]").encrypted:
            raise ImageRefused(
                f"{_CODE}.encrypted",
                "a docker archive cannot hold an encrypted layer",
                path=f"layers[{number}]",
                hint="write to oci-archive:PATH:TAG, or decrypt first",
            )


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)  # owner 0, time 0, mode 0644
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)
