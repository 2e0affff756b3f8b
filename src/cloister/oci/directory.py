"""One image as plain files: `dir:PATH` as skopeo reads and writes it (containers-transports(5), "dir:path").

    version                 `Directory Transport Version: 1.1`
    manifest.json           manifest, or index of several platforms
    <hex>.manifest.json     manifests an index names
    <hex>                   blobs, named by their SHA-256

There are no tags and no place for signatures beside the image. Files are as untrusted as a registry: opened without
following links, and checked by `cloister.oci.store`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cloister.errors import ImageRefused
from cloister.oci.digest import Digest, parse_digest
from cloister.oci.layout import OCILayout, open_plain, read_plain
from cloister.oci.manifest import Descriptor, ImageIndex, parse_either
from cloister.oci.store import StoredManifest, read_manifest
from cloister.wire.limits import BLOB_PIECE_BYTES, KIB, MANIFEST_BYTES

VERSION: Final = "Directory Transport Version: 1.1\n"
_CODE: Final = "oci.directory"
_VERSION_PREFIX: Final = b"Directory Transport Version: 1."
_NESTED_INDEXES: Final = 4


class ImageDirectory:
    """The image in directory `path`, for reading.

    Raises:
        ImageRefused: `oci.directory.not_an_image`, `oci.directory.version`.
    """

    code = _CODE

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        if not (self._path / "manifest.json").exists():
            raise ImageRefused(f"{_CODE}.not_an_image", "directory holds no image", path=str(path))
        version = read_plain(self._path / "version", KIB, code=_CODE)
        if version is not None and not version.startswith(_VERSION_PREFIX):
            raise ImageRefused(
                f"{_CODE}.version",
                "version of the directory is not known",
                expected=VERSION.strip(),
                actual=repr(version[:40]),
            )

    def get_manifest(self, selector: str) -> StoredManifest | None:
        """Return the directory's own manifest for an empty selector, and any by its digest."""
        raw = read_plain(self._path / "manifest.json", MANIFEST_BYTES, code=_CODE)
        if raw is None or not selector or ":" not in selector:
            return StoredManifest(raw, "") if raw is not None and not selector else None
        digest = parse_digest(selector)
        if Digest.of(raw, digest.algorithm) != digest:
            raw = read_plain(self._path / f"{digest.hex}.manifest.json", MANIFEST_BYTES, code=_CODE)
        return None if raw is None else StoredManifest(raw, "")

    def stream_blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """Yield a blob's bytes, unchecked."""
        with open_plain(self._path / descriptor.digest.hex, code=_CODE) as file:
            while chunk := file.read(BLOB_PIECE_BYTES):
                yield chunk

    def referrers(self, _: Digest) -> tuple[Descriptor, ...]:
        """Return nothing: there is no place for it."""
        return ()


def require_replaceable(path: Path) -> None:
    """Refuse to write an image over anything but an empty directory or an older image, as skopeo does.

    Raises:
        ImageRefused: `oci.directory.not_an_image`.
    """
    if not path.is_dir() or (any(path.iterdir()) and not (path / "version").is_file()):
        raise ImageRefused(f"{_CODE}.not_an_image", "something else is there, and is not written over", path=str(path))
    if any(path.iterdir()):
        ImageDirectory(path)


def write_directory(layout: OCILayout, entry: Descriptor, path: Path) -> None:
    """Write the image `entry` of `layout` into the new directory `path`.

    Raises:
        ImageRefused: `oci.directory.algorithm`, `oci.directory.nested`, or what the layout refuses.
    """
    path.mkdir()
    (path / "version").write_text(VERSION, encoding="ascii")
    _write_manifest(layout, entry.digest, path, path / "manifest.json", _NESTED_INDEXES)


def _write_manifest(layout: OCILayout, digest: Digest, path: Path, place: Path, depth: int) -> None:
    stored = read_manifest(layout, digest)
    place.write_bytes(stored.raw)
    document = parse_either(stored.raw, media_type=stored.media_type)
    if isinstance(document, ImageIndex):
        if not depth:
            raise ImageRefused(
                f"{_CODE}.nested", "index in an index in an index", expected=f"at most {_NESTED_INDEXES}"
            )
        for child in document.manifests:
            if layout.get_manifest(str(child.digest)) is not None:  # an image may be copied for some platforms only
                _write_manifest(layout, child.digest, path, path / f"{child.digest.hex}.manifest.json", depth - 1)
        return
    for blob in (document.config, *document.layers):
        if blob.digest.algorithm != "sha256":
            raise ImageRefused(f"{_CODE}.algorithm", "blobs are named by SHA-256 only", actual=str(blob.digest)[:80])
        if not (path / blob.digest.hex).exists():
            layout.link_blob(blob.digest, path / blob.digest.hex)
