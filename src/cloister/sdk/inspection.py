"""Describe an image for people: what it is, what of it is encrypted and for whom, and what everybody can read.

Verifies digests; vouches for nothing else: recipients and signatures are what the image says of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cloister.oci.digest import Digest
from cloister.oci.document import parse_document
from cloister.oci.encryption.annotations import PACKET_SCHEME, PREFIX, parse_layer_encryption
from cloister.oci.encryption.recipients import describe_recipients
from cloister.oci.manifest import Descriptor, ImageManifest, parse_config, parse_index, parse_layer_type, parse_manifest
from cloister.oci.signing.evaluate import ImageBytes
from cloister.oci.store import ImageSource, StoredManifest, read_blob, read_manifest, resolve_platform
from cloister.sdk.imagesignature import describe_signatures
from cloister.wire.limits import IMAGE_CONFIG_BYTES

_DEFAULT_PLATFORM = "linux/amd64"
_SHOWN_VALUE = 200


def describe_image(source: ImageSource, selector: str, *, platform: str = "") -> dict[str, Any]:  # Any: JSON
    """Return a JSON description (schema 2) of one image.

    Args:
        source: where it is.
        selector: which one, by tag or digest.
        platform: of an index, which image to describe; the only one, or that for linux/amd64, when empty.

    Raises:
        ImageRefused, Unavailable: what the source's content refuses.
    """
    named = read_manifest(source, selector)
    platforms = _platforms(named)
    stored = named
    if named.is_index:
        stored = resolve_platform(
            source, selector, platform or (platforms[0] if len(platforms) == 1 else _DEFAULT_PLATFORM)
        )
    manifest = parse_manifest(stored.raw, media_type=stored.media_type)
    raw_config = read_blob(source, manifest.config, ceiling=IMAGE_CONFIG_BYTES)
    config = parse_config(raw_config)
    layers = [_describe_layer(layer, f"layers[{number}]") for number, layer in enumerate(manifest.layers)]
    return {
        "schema": 2,
        "digest": str(manifest.digest),
        "index": str(Digest.of(named.raw)) if named.is_index else "",
        "platforms": platforms,
        "platform": f"{config.os}/{config.architecture}",
        "entrypoint": list(config.entrypoint),
        "cmd": list(config.command),
        "env": list(config.environment),
        "user": config.user,
        "cwd": config.working_directory,
        "encryption": _encryption_word(layers),
        "layers": layers,
        "readable": _readable(manifest, raw_config),
        "signatures": describe_signatures(source, ImageBytes(stored, named if named.is_index else None)),
    }


def _platforms(stored: StoredManifest) -> list[str]:
    if not stored.is_index:
        return []
    entries = parse_index(stored.raw, media_type=stored.media_type).manifests
    return [entry.platform for entry in entries if entry.platform and entry.platform != "unknown/unknown"]


def _describe_layer(layer: Descriptor, path: str) -> dict[str, Any]:  # Any: JSON
    layer_type = parse_layer_type(layer.media_type, path=path, foreign=True)
    recipients = describe_recipients(parse_layer_encryption(layer, path=path)) if layer_type.encrypted else {}
    return {
        "digest": str(layer.digest),
        "size": layer.size,
        "compression": layer_type.compression or "none",
        "foreign": layer_type.foreign,
        "encrypted": layer_type.encrypted,
        "recipients": recipients,
        "for_guests": PACKET_SCHEME in recipients,
    }


def _encryption_word(layers: Sequence[dict[str, Any]]) -> str:  # Any: JSON
    encrypted = sum(layer["encrypted"] for layer in layers)
    return "all layers" if encrypted == len(layers) and layers else f"{encrypted} of {len(layers)} layers"


def _readable(manifest: ImageManifest, raw_config: bytes) -> list[dict[str, str]]:
    """Return what everybody who gets the image can read, as names and values."""
    document = parse_document(raw_config, ceiling=IMAGE_CONFIG_BYTES, code="oci.config")
    found = [{"what": f"config.{name}", "value": _shown(value)} for name, value in _filled(document.pop("config", {}))]
    history = document.pop("history", None) or []
    found += [
        {"what": f"history[{number}]", "value": _shown(entry.get("created_by") or entry.get("comment") or "")}
        for number, entry in enumerate(history)
        if isinstance(entry, dict)
    ]
    found += [{"what": name, "value": _shown(value)} for name, value in _filled(document) if name != "rootfs"]
    annotations = [*manifest.annotations.items()]
    annotations += [
        item for layer in manifest.layers for item in layer.annotations.items() if item[0][: len(PREFIX)] != PREFIX
    ]
    found += [{"what": f"annotation {name}", "value": _shown(value)} for name, value in annotations]
    sizes = ", ".join(f"{layer.size:,}" for layer in manifest.layers)
    return [
        *found,
        {"what": "number and size of layers", "value": f"{len(manifest.layers)}: {sizes} bytes"[:_SHOWN_VALUE]},
    ]


def _filled(value: object) -> list[tuple[str, Any]]:  # Any: JSON
    return [(name, item) for name, item in value.items() if item] if isinstance(value, dict) else []


def _shown(value: Any) -> str:  # Any: JSON
    if isinstance(value, dict):
        value = [f"{name}={item}" if item not in ({}, None, "") else name for name, item in value.items()]
    text = " ".join(str(item) for item in value) if isinstance(value, list) else str(value)
    return text if len(text) <= _SHOWN_VALUE else f"{text[:_SHOWN_VALUE]}.. ({len(text)} characters)"
