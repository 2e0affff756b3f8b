"""Describe an image for people: what it is and how it is protected. Verifies digests; vouches for nothing else."""

from __future__ import annotations

from typing import Any

from cloister.oci.digest import Digest
from cloister.oci.encryption.annotations import parse_layer_encryption
from cloister.oci.manifest import Descriptor, parse_config, parse_layer_type, parse_manifest
from cloister.oci.signing.simplesigning import parse_payload, read_candidates
from cloister.oci.store import ImageSource, read_blob, resolve_platform
from cloister.sdk.owner import PLATFORM
from cloister.wire.limits import IMAGE_CONFIG_BYTES


def describe_image(source: ImageSource, selector: str) -> dict[str, Any]:  # Any: JSON
    """Return a JSON description (schema 1) of one image.

    Raises:
        ImageRefused, Unavailable: what the source's content refuses.
    """
    stored = resolve_platform(source, selector, PLATFORM)
    manifest = parse_manifest(stored.raw, media_type=stored.media_type)
    config = parse_config(read_blob(source, manifest.config, ceiling=IMAGE_CONFIG_BYTES))
    digest = Digest.of(stored.raw)
    statements = [parse_payload(candidate.payload) for candidate in read_candidates(source, digest)]
    return {
        "schema": 1,
        "digest": str(digest),
        "platform": f"{config.os}/{config.architecture}",
        "entrypoint": list(config.entrypoint),
        "cmd": list(config.command),
        "env": list(config.environment),
        "user": config.user,
        "cwd": config.working_directory,
        "layers": [_describe_layer(layer, f"layers[{number}]") for number, layer in enumerate(manifest.layers)],
        "signatures": [{"repository": item.repository, "digest": str(item.digest)} for item in statements],
    }


def _describe_layer(layer: Descriptor, path: str) -> dict[str, Any]:  # Any: JSON
    encrypted = parse_layer_type(layer.media_type, path=path).encrypted
    packets = parse_layer_encryption(layer, path=path).packets() if encrypted else ()
    return {
        "digest": str(layer.digest),
        "size": layer.size,
        "encrypted": encrypted,
        "key": ", ".join(packet.kek_id for packet in packets),
    }
