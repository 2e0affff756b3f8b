"""Seals an image: every layer under a fresh key, the keys wrapped for the owner's key broker (ocicrypt, CoCo packet
v1).

The application is not changed: layers keep their bytes below the cipher, the configuration keeps its digest. It also
stays readable, as the format has it: entrypoint, environment and history are visible to whoever holds the image.
Docker layer types become OCI types; zstd layers are refused, because guests of this format cannot read them.

What is read is checked against its digest before anything made from it is named in a manifest. What is written is
ciphertext, the configuration and the new manifest: plaintext never reaches the destination.
Runs on the owner's side and trusts nothing of the source but what the caller meant by naming it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import msgspec

from cloister.crypto.aead import AES256_KEY_BYTES, CTR_NONCE_BYTES, ctr_stream
from cloister.errors import ImageRefused
from cloister.oci.digest import Digest
from cloister.oci.document import encode_document, parse_document
from cloister.oci.encryption.annotations import encryption_annotations, without_encryption
from cloister.oci.encryption.options import PrivateOptions, PublicOptions, encode_private_options
from cloister.oci.encryption.wrapping import KeyWrapper, PacketWrapper, wrap_layer_key
from cloister.oci.manifest import (
    OCI_CONFIG,
    OCI_MANIFEST,
    Descriptor,
    ImageManifest,
    LayerType,
    parse_config,
    parse_layer_type,
    parse_manifest,
)
from cloister.oci.store import ImageSink, ImageSource, checked_blob, read_blob, resolve_platform
from cloister.wire.limits import IMAGE_CONFIG_BYTES, MANIFEST_BYTES


class SealedImage(msgspec.Struct, frozen=True, kw_only=True):
    """What sealing made."""

    digest: Digest
    source_digest: Digest
    layers: tuple[Digest, ...]
    plain_bytes: int


class Progress(Protocol):
    """Told about the work: first the total, then every step, in bytes of layers."""

    def begin(self, total_bytes: int) -> None:
        """The layers are this long together."""
        ...

    def advance(self, count: int) -> None:
        """So many more bytes are done."""
        ...


class NoProgress:
    """A `Progress` that tells nobody."""

    def begin(self, total_bytes: int) -> None:
        """Take notice."""

    def advance(self, count: int) -> None:
        """Take notice."""


def is_sealed(manifest: ImageManifest) -> bool:
    """Whether all layers are encrypted.

    Raises:
        ImageRefused: `oci.encryption.partly_encrypted` when only some are, `oci.manifest.*` for unknown layer types.
    """
    encrypted = [
        parse_layer_type(layer.media_type, path=f"layers[{n}]").encrypted for n, layer in enumerate(manifest.layers)
    ]
    if any(encrypted) and not all(encrypted):
        plain = encrypted.index(False)
        raise ImageRefused("oci.encryption.partly_encrypted", "only some layers are encrypted", path=f"layers[{plain}]")
    return bool(encrypted) and all(encrypted)


def encrypt_image(
    source: ImageSource,
    selector: str | Digest,
    sink: ImageSink,
    *,
    tag: str,
    kek_id: str,
    kek: bytes,
    platform: str = "linux/amd64",
    progress: Progress | None = None,
) -> SealedImage:
    """Seal an image into `sink`.

    Args:
        source: where the image is.
        selector: which one, by tag or digest; of an index, the image for `platform`.
        sink: where the sealed image goes.
        tag: its name there.
        kek_id: `kbs:///repository/type/tag`, where the guest will ask for the key-encryption key.
        kek: the 32 bytes stored there.
        platform: `os/architecture`.
        progress: told about the work.

    Raises:
        ImageRefused: `oci.encryption.already_encrypted`, `oci.encryption.zstd_layer`, `oci.encryption.no_layers`,
            `oci.encryption.sample_kek`, what the source's content refuses.
        FormatRefused: `kek_id` is no resource address.
        Unavailable: source or sink cannot be used now.
    """
    progress = progress or NoProgress()
    recipients = [PacketWrapper(kek_id, kek)]
    stored = resolve_platform(source, selector, platform)
    manifest = parse_manifest(stored.raw, media_type=stored.media_type)
    layer_types = _require_sealable(manifest)
    config = read_blob(source, manifest.config, ceiling=IMAGE_CONFIG_BYTES)
    parse_config(config)
    progress.begin(sum(layer.size for layer in manifest.layers))
    document = parse_document(stored.raw, ceiling=MANIFEST_BYTES, code="oci.manifest")
    digests = []
    for layer, layer_type, entry in zip(manifest.layers, layer_types, document["layers"], strict=True):
        sealing = _LayerSealing(layer, recipients)
        digest, size = sink.write_blob(sealing.ciphertext(checked_blob(source, layer), progress.advance))
        entry["mediaType"] = LayerType(layer_type.compression, encrypted=True).media_type
        entry["digest"] = str(digest)
        entry["size"] = size
        entry["annotations"] = without_encryption(layer.annotations) | sealing.annotations()
        digests.append(digest)
    if not sink.has_blob(manifest.config.digest):
        sink.write_blob([config])
    sealed = sink.write_manifest(_finish_manifest(document), OCI_MANIFEST, tag)
    return SealedImage(
        digest=sealed,
        source_digest=manifest.digest,
        layers=tuple(digests),
        plain_bytes=sum(layer.size for layer in manifest.layers),
    )


class _LayerSealing:
    """One layer's key, used once. It is wrapped first, so that a KEK that is refused leaves nothing behind."""

    def __init__(self, layer: Descriptor, recipients: Sequence[KeyWrapper]) -> None:
        self._nonce = os.urandom(CTR_NONCE_BYTES)
        self._options = PrivateOptions(key=os.urandom(AES256_KEY_BYTES), digest=layer.digest, nonce=self._nonce)
        self._wrapped = wrap_layer_key(encode_private_options(self._options), recipients)
        self._mac = hmac.new(self._options.key, digestmod=hashlib.sha256)

    def ciphertext(self, plain: Iterable[bytes], advance: Callable[[int], None]) -> Iterator[bytes]:
        """Encrypt and authenticate."""
        for chunk in ctr_stream(self._options.key, self._nonce, plain):
            self._mac.update(chunk)
            advance(len(chunk))
            yield chunk

    def annotations(self) -> dict[str, str]:
        """Return what the descriptor says, once all ciphertext was taken, and forget the key."""
        self._options.wipe()
        return encryption_annotations(PublicOptions(self._mac.digest()), self._wrapped)


def _require_sealable(manifest: ImageManifest) -> list[LayerType]:
    if not manifest.layers:
        raise ImageRefused("oci.encryption.no_layers", "image has no layers, so there is nothing to seal")
    layer_types = [parse_layer_type(layer.media_type, path=f"layers[{n}]") for n, layer in enumerate(manifest.layers)]
    for number, layer_type in enumerate(layer_types):
        if layer_type.encrypted:
            raise ImageRefused(
                "oci.encryption.already_encrypted",
                "image is encrypted already",
                path=f"layers[{number}]",
                hint="run it as it is, or seal the original",
            )
        if layer_type.compression == "zstd":
            raise ImageRefused(
                "oci.encryption.zstd_layer",
                "guests cannot read encrypted zstd layers",
                path=f"layers[{number}]",
                hint="push the image with gzip layers",
            )
    return layer_types


def _finish_manifest(document: dict[str, Any]) -> bytes:  # Any: JSON
    """Return the manifest with OCI names; members this program does not know stay as they are."""
    document["mediaType"] = OCI_MANIFEST
    document["config"]["mediaType"] = OCI_CONFIG
    return encode_document(document)
