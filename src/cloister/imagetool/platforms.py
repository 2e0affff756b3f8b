"""Rewrites the manifests of an image: the one manifest there is, one platform's of an index, or all with a new index.

What makes a new manifest out of one (encryption, decryption, other recipients) is given by the caller, and has stored
all that the manifest names before it returns. The index is written last, and every manifest before what names it, so
an interrupted run leaves blobs but no image.

Attestations that build tools put into an index describe the image that was there: its packages, its plain layers. They
are left out of the new one, and the caller is told, because they would say what encryption hides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from cloister.errors import ImageRefused
from cloister.oci.digest import Digest
from cloister.oci.document import encode_document, parse_document
from cloister.oci.manifest import (
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    ImageManifest,
    parse_index,
    parse_manifest,
)
from cloister.oci.store import ImageSink, ImageSource, StoredManifest, manifest_for, read_manifest
from cloister.wire.limits import MANIFEST_BYTES

_ATTESTATION: Final = "vnd.docker.reference.type"
_UNKNOWN: Final = "unknown/unknown"


class RewrittenManifest(msgspec.Struct, frozen=True, kw_only=True):
    """One platform's manifest before and after."""

    platform: str
    source: ImageManifest
    manifest: ImageManifest


class RewrittenImage(msgspec.Struct, frozen=True, kw_only=True):
    """What was written.

    Attributes:
        digest: of the manifest or index that has the tag.
        source_digest: of what it was made from.
        is_index: whether that is an index.
        manifests: one for each platform.
        left_out: attestations of the index that are not in the new one, by digest.
    """

    digest: Digest
    source_digest: Digest
    is_index: bool
    manifests: tuple[RewrittenManifest, ...]
    left_out: tuple[Digest, ...] = ()


class SourceImage(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be rewritten: one manifest, or an index with the manifests of its platforms.

    Attributes:
        stored: the manifest or index.
        manifests: those of the platforms.
        platforms: of each manifest.
        index: what named the manifests, also where only one of them was taken out of it; None where nothing did.
        left_out: attestations that are in the index and not among the manifests.
    """

    stored: StoredManifest
    manifests: tuple[ImageManifest, ...]
    platforms: tuple[str, ...]
    index: StoredManifest | None = None
    left_out: tuple[Digest, ...] = ()

    @property
    def digest(self) -> Digest:
        """Of manifest or index."""
        return Digest.of(self.stored.raw)


def read_image(source: ImageSource, selector: str | Digest, platform: str) -> SourceImage:
    """Read all manifests that are to be rewritten.

    Args:
        source: where the image is.
        selector: which one, by tag or digest.
        platform: `os/architecture[/variant]` to take one manifest out of an index; empty for all there are.

    Raises:
        ImageRefused: `oci.manifest.*`, `imagetool.platforms.empty_index`, `imagetool.platforms.nested_index`.
    """
    named = read_manifest(source, selector)
    index = named if named.is_index else None
    stored = manifest_for(source, named, platform) if platform else named
    if not stored.is_index:
        manifest = parse_manifest(stored.raw, media_type=stored.media_type)
        return SourceImage(stored=stored, manifests=(manifest,), platforms=(platform,), index=index)
    entries = parse_index(stored.raw, media_type=stored.media_type).manifests
    images = [entry for entry in entries if not _is_attestation(entry)]
    if not images:
        raise ImageRefused("imagetool.platforms.empty_index", "index names no image", path=str(selector))
    return SourceImage(
        stored=stored,
        manifests=tuple(_read_entry(source, entry) for entry in images),
        platforms=tuple(entry.platform for entry in images),
        index=index,
        left_out=tuple(entry.digest for entry in entries if _is_attestation(entry)),
    )


def write_image(
    image: SourceImage, sink: ImageSink, tag: str, rewrite: Callable[[ImageManifest], bytes]
) -> RewrittenImage:
    """Rewrite the manifests of `image` and store what comes out under `tag`.

    Args:
        image: from `read_image`.
        sink: where it goes.
        tag: its name there.
        rewrite: returns the new manifest's bytes, of OCI's type, after its blobs are stored.

    Raises:
        ImageRefused, Unavailable: what `rewrite` and `sink` raise.
    """
    written: list[RewrittenManifest] = []
    for platform, manifest in zip(image.platforms, image.manifests, strict=True):
        raw = rewrite(manifest)
        sink.write_manifest(raw, OCI_MANIFEST, "" if image.stored.is_index else tag)
        written.append(RewrittenManifest(platform=platform, source=manifest, manifest=parse_manifest(raw)))
    digest = written[0].manifest.digest
    if image.stored.is_index:
        digest = sink.write_manifest(_new_index(image.stored, written), OCI_INDEX, tag)
    return RewrittenImage(
        digest=digest,
        source_digest=image.digest,
        is_index=image.stored.is_index,
        manifests=tuple(written),
        left_out=image.left_out,
    )


def _read_entry(source: ImageSource, entry: Descriptor) -> ImageManifest:
    stored = read_manifest(source, entry.digest)
    if stored.is_index:
        raise ImageRefused(
            "imagetool.platforms.nested_index",
            "index holds another index",
            path=str(entry.digest),
            hint="name one platform with --platform, or push the image without nested indexes",
        )
    return parse_manifest(stored.raw, media_type=entry.media_type)


def _is_attestation(entry: Descriptor) -> bool:
    return _ATTESTATION in entry.annotations and entry.platform in ("", _UNKNOWN)


def _new_index(stored: StoredManifest, written: Sequence[RewrittenManifest]) -> bytes:
    """Return the index with the new manifests' digests; members this program does not know stay as they are."""
    document = parse_document(stored.raw, ceiling=MANIFEST_BYTES, code="oci.manifest")
    new = {str(item.source.digest): item.manifest for item in written}
    entries: list[dict[str, Any]] = [  # Any: JSON
        {**entry, "mediaType": OCI_MANIFEST, "digest": str(manifest.digest), "size": len(manifest.raw)}
        for entry in document["manifests"]
        if (manifest := new.get(entry["digest"])) is not None
    ]
    document["mediaType"] = OCI_INDEX
    document["manifests"] = entries
    return encode_document(document)
