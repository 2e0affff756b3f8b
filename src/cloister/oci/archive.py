"""Images in one file, for reading: `oci-archive` (a tar of a layout) and `docker-archive` (what `docker save` writes).
`cloister.oci.archivefile` writes them.

The archive is never unpacked: its members are indexed once and read in place, by name, so nothing in it can name a
file of this machine. Both are `ImageSource`s; `docker save` stores no OCI manifest, so one is made from its
`manifest.json`, with the digest of every layer computed here. Trusts nobody.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from cloister.errors import ImageRefused, Unavailable
from cloister.oci.digest import Digest, parse_digest
from cloister.oci.document import Members, encode_document, parse_document
from cloister.oci.layout import OCILayout, check_layout_marker, layout_referrers, listed_manifest, select_entry
from cloister.oci.manifest import OCI_CONFIG, OCI_MANIFEST, Descriptor, LayerType, parse_config, parse_index
from cloister.oci.reference import parse_reference
from cloister.oci.store import StoredManifest, checked_blob
from cloister.oci.tar import EntryKind, TarReader
from cloister.wire.limits import BLOB_PIECE_BYTES, IMAGE_CONFIG_BYTES, INDEX_ENTRIES, KIB, LAYERS, MANIFEST_BYTES, MIB

_CODE: Final = "oci.archive"
_MEMBERS: Final = 10_000
_BLOB_NAME: Final = r"blobs/(sha256|sha512)/([0-9a-f]{64,128})"
_GZIP_MAGIC: Final = b"\x1f\x8b"


class ArchiveFile:
    """Random access to the members of an uncompressed tar file.

    Raises:
        Unavailable: `oci.archive.read_failed`.
        ImageRefused: `oci.archive.too_many_members`, `oci.archive.duplicate_member`, `oci.layer.*` for the tar
        itself.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            self._file: BinaryIO = Path(path).open("rb", buffering=0)  # noqa: SIM115  # closed by close()
        except OSError as err:
            raise Unavailable(
                f"{_CODE}.read_failed", "cannot read the archive", path=str(path), actual=str(err.strerror)
            ) from err
        self._members: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        try:
            self._read_names()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __contains__(self, name: str) -> bool:
        return self._resolve(name) in self._members

    def names(self) -> list[str]:
        """Return the names of all members, in order."""
        return sorted(self._members)

    def size(self, name: str) -> int:
        """Return the size of a member in bytes."""
        return self._find(name)[1]

    def stream(self, name: str) -> Iterator[bytes]:
        """Yield a member's content."""
        offset, left = self._find(name)
        while left:
            chunk = os.pread(self._file.fileno(), min(left, BLOB_PIECE_BYTES), offset)  # other threads read here, too
            if not chunk:
                raise ImageRefused(f"{_CODE}.truncated", "archive ends inside a member", path=name)
            offset += len(chunk)
            left -= len(chunk)
            yield chunk

    def read(self, name: str, ceiling: int) -> bytes:
        """Return a small member's content."""
        if self.size(name) > ceiling:
            raise ImageRefused(
                f"{_CODE}.member_too_long", "member is too long", path=name, expected=f"at most {ceiling} bytes"
            )
        return b"".join(self.stream(name))

    def _read_names(self) -> None:
        for entry in TarReader(iter(lambda: self._file.read(MIB), b"")).entries():
            name = posixpath.normpath(entry.path.decode("utf-8", "surrogateescape").lstrip("/"))
            if entry.kind is EntryKind.DIRECTORY:
                continue
            if name in self._members or name in self._links:
                raise ImageRefused(f"{_CODE}.duplicate_member", "archive has a member twice", path=entry.place)
            if entry.kind is EntryKind.SYMLINK:  # older `docker save` links equal layers
                target = entry.link.decode("utf-8", "surrogateescape")
                self._links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
            elif entry.kind is EntryKind.FILE:
                self._members[name] = (entry.offset, entry.size)
            if len(self._members) + len(self._links) > _MEMBERS:
                raise ImageRefused(f"{_CODE}.too_many_members", "archive has too many members", expected=str(_MEMBERS))

    def _resolve(self, name: str) -> str:
        return self._links.get(name, name)  # one hop: links to links do not occur

    def _find(self, name: str) -> tuple[int, int]:
        found = self._members.get(self._resolve(name))
        if found is None:
            raise ImageRefused(f"{_CODE}.blob_missing", "archive lacks a member", path=name[:200])
        return found


class OCIArchive:
    """A layout in a tar file."""

    code = _CODE

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._archive = ArchiveFile(path)
        try:
            check_layout_marker(self._archive.read("oci-layout", 4 * KIB))
            self._index = parse_index(self._archive.read("index.json", MANIFEST_BYTES))
        except BaseException:
            self._archive.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._archive.close()

    def get_manifest(self, selector: str) -> StoredManifest | None:
        """Return what the archive holds under a digest or reference name; an empty name means the only image."""
        entry = select_entry(self._index, selector)
        digest = entry.digest if entry else parse_digest(selector) if ":" in selector else None
        if digest is None or _blob_name(digest) not in self._archive:
            return None
        raw = self._archive.read(_blob_name(digest), MANIFEST_BYTES)
        return StoredManifest(raw, "") if entry is None else listed_manifest(raw, entry, code=_CODE)

    def stream_blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """Yield a blob's bytes, unchecked."""
        return self._archive.stream(_blob_name(descriptor.digest))

    def referrers(self, digest: Digest) -> Iterator[Descriptor]:
        """Return what the index lists; see `OCILayout.referrers`."""
        return layout_referrers(self, self._index, digest)

    def copy_into(self, layout: OCILayout) -> None:
        """Copy every blob, checked, and the index into an empty layout.

        Raises:
            ImageRefused: `oci.archive.digest_mismatch`, `oci.archive.*`.
        """
        for name in self._archive.names():
            match = re.fullmatch(_BLOB_NAME, name)
            if match:
                blob = Descriptor(media_type="", digest=Digest(match[1], match[2]), size=self._archive.size(name))
                layout.write_blob(checked_blob(self, blob), algorithm=match[1])
        layout.write_index(self._index.raw)


class DockerArchive:
    """What `docker save` wrote, seen as a store of OCI images with plain or gzip layers."""

    code = _CODE

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._archive = ArchiveFile(path)
        try:
            self._images = self._read_images()
        except BaseException:
            self._archive.close()
            raise
        self._blobs: dict[Digest, str] = {}
        self._made: dict[str, StoredManifest] = {}

    def close(self) -> None:
        """Close the file."""
        self._archive.close()

    def get_manifest(self, selector: str) -> StoredManifest | None:
        """Return a manifest for the image with that `repository:tag`; an empty selector means the only image.

        The digest of a manifest that was returned before is a selector, too: the archive itself holds none.

        Names are compared as references: `docker save` writes `app:1` where skopeo writes `docker.io/library/app:1`.

        Raises:
            ImageRefused: `oci.archive.ambiguous`, `oci.archive.layer_count`, `oci.archive.*`, `oci.config.*`.
        """
        if selector in self._made:
            return self._made[selector]
        found = [
            image
            for image in self._images
            if not selector or any(_same(selector, name) for name in image.texts("RepoTags", ceiling=INDEX_ENTRIES))
        ]
        if len(found) > 1:
            raise ImageRefused(
                f"{_CODE}.ambiguous", "archive holds several such images", expected="one", actual=str(len(found))
            )
        if not found:
            return None
        made = StoredManifest(self._make_manifest(found[0]), OCI_MANIFEST)
        self._made[str(Digest.of(made.raw))] = made
        return made

    def stream_blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """Yield a blob of a manifest that `get_manifest` returned, unchecked."""
        return self._archive.stream(self._blobs.get(descriptor.digest, str(descriptor.digest)))

    def referrers(self, _: Digest) -> tuple[Descriptor, ...]:
        """Return nothing: `docker save` has no place for it."""
        return ()

    def _read_images(self) -> list[Members]:
        # The file is an array; an object around it lets the one strict parser read it.
        raw = b'{"images":' + self._archive.read("manifest.json", MANIFEST_BYTES) + b"}"
        top = Members(parse_document(raw, ceiling=MANIFEST_BYTES + 16, code=_CODE), path="", code=_CODE)
        top.only("images")
        return [
            Members(image, path=f"images[{number}]", code=_CODE)
            for number, image in enumerate(top.array("images", ceiling=INDEX_ENTRIES, required=True))
        ]

    def _make_manifest(self, image: Members) -> bytes:
        config_name = image.text("Config")
        config = parse_config(self._archive.read(config_name, IMAGE_CONFIG_BYTES))
        names = image.texts("Layers", ceiling=LAYERS)
        if len(names) != len(config.diff_ids):
            raise ImageRefused(
                f"{_CODE}.layer_count",
                "archive and configuration disagree on the layers",
                expected=str(len(config.diff_ids)),
                actual=str(len(names)),
            )
        self._blobs[config.digest] = config_name
        layers = [self._describe_layer(name, diff_id) for name, diff_id in zip(names, config.diff_ids, strict=True)]
        return encode_document(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": {"mediaType": OCI_CONFIG, "digest": str(config.digest), "size": len(config.raw)},
                "layers": layers,
            }
        )

    def _describe_layer(self, name: str, diff_id: Digest) -> dict[str, Any]:  # Any: JSON
        """Return the descriptor; a plain layer's digest is its diff_id, which is checked when the layer is read."""
        compression = "gzip" if next(self._archive.stream(name), b"").startswith(_GZIP_MAGIC) else ""
        digest = diff_id
        if compression:
            hasher = hashlib.sha256()
            for chunk in self._archive.stream(name):
                hasher.update(chunk)
            digest = Digest("sha256", hasher.hexdigest())
        self._blobs[digest] = name
        media_type = LayerType(compression, encrypted=False).media_type
        return {"mediaType": media_type, "digest": str(digest), "size": self._archive.size(name)}


def _blob_name(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _same(asked: str, name: str) -> bool:
    """Tell whether two texts name the same image; what is no reference names only itself."""
    if asked == name:
        return True
    try:
        first, second = parse_reference(asked), parse_reference(name)
    except ImageRefused:
        return False
    return (first.name, first.selector) == (second.name, second.selector)
