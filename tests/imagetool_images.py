"""Images of two layers in every compression, recipients, and the way back, for tests of encryption."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import Any

import zstandard

from cloister.errors import ImageRefused
from cloister.oci.digest import Digest
from cloister.oci.document import encode_document, parse_document
from cloister.oci.encryption.wrapping import PacketUnwrapper, PacketWrapper
from cloister.oci.layout import OCILayout
from cloister.oci.manifest import OCI_MANIFEST, ImageManifest, LayerType, parse_manifest
from cloister.oci.store import read_manifest
from cloister.protocol.resourceuri import ResourcePath
from unit.oci.builders import KEK, KEK_ID, Built, archive, build_layout, file

OTHER_KEK = bytes(range(1, 33))
OTHER_ID = "kbs:///default/image-kek/2"
CANARY = b"canary-3f9a77"
CONTENT = b"".join(CANARY * 4 + hashlib.sha256(b"%d" % number).digest() for number in range(3000))
ARCHIVES = (archive(file(b"secret", CONTENT)), archive(file(b"other", CANARY)))
KEKS = {KEK_ID: KEK, OTHER_ID: OTHER_KEK}
COMPRESSIONS = ("", "gzip", "zstd")


def recipient(kek_id: str = KEK_ID) -> PacketWrapper:
    return PacketWrapper(kek_id, KEKS[kek_id])


def key(*held: str) -> PacketUnwrapper:
    """Return the keys at these addresses of a broker, and no other."""

    def kek_at(path: ResourcePath) -> bytes:
        if path.uri not in held:
            raise ImageRefused("oci.encryption.unwrap_failed", "not held")
        return KEKS[path.uri]

    return PacketUnwrapper(kek_at)


def compress(data: bytes, compression: str) -> bytes:
    if compression == "gzip":
        return gzip.compress(data, mtime=0)
    return zstandard.ZstdCompressor().compress(data) if compression == "zstd" else data


def build(path: Path, compression: str) -> Built:
    """Build the image with its layers compressed so."""
    plain = build_layout(path, *ARCHIVES, compression="")
    blobs = tuple(compress(layer, compression) for layer in ARCHIVES)
    document = parse_document(read_manifest(plain.layout, plain.digest).raw, ceiling=1 << 20, code="test")
    for entry, blob in zip(document["layers"], blobs, strict=True):
        plain.layout.write_blob([blob])
        media_type = LayerType(compression, encrypted=False).media_type
        entry.update(
            mediaType=media_type, digest=str(Digest.of(blob)), size=len(blob), annotations={"org.test/kept": "y"}
        )
    digest = plain.layout.write_manifest(encode_document(document), OCI_MANIFEST, "v1")
    return Built(plain.layout, digest, blobs, path)


def rewrite(layout: OCILayout, change: Any, tag: str = "v1") -> Digest:
    """Change the manifest's JSON under `tag` and store it again."""
    document = parse_document(read_manifest(layout, tag).raw, ceiling=1 << 20, code="test")
    change(document)
    return layout.write_manifest(encode_document(document), OCI_MANIFEST, tag)


def manifest_of(store: Any, tag: str = "v1") -> ImageManifest:
    return parse_manifest(read_manifest(store, tag).raw)


def blob_path(layout: Path, digest: Digest) -> Path:
    return layout / "blobs" / "sha256" / digest.hex
