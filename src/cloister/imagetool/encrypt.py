"""Encrypts an image: every layer under a fresh key, the keys wrapped for each recipient (ocicrypt).

The application is not changed: a layer keeps its bytes below the cipher, or where its compression is changed its
plain archive, and the configuration keeps its digest. The configuration also stays readable, as the format has it:
entrypoint, environment and history are visible to whoever holds the image. Docker layer types become OCI types.

What is read is checked against its digest before anything made from it is named in a manifest. What is written is
ciphertext, the configuration and the new manifest: plaintext never reaches the destination, but for foreign layers
where the caller allows them.

Each layer is read and checked | encrypted and authenticated | digested and written on three threads, because SHA-256
over plain bytes, ciphertext and once more ciphertext is nearly all of the work.
Runs on the owner's side and trusts nothing of the source but what the caller meant by naming it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import msgspec

from cloister.crypto.aead import AES256_KEY_BYTES, CTR_NONCE_BYTES, ctr_stream
from cloister.errors import ImageRefused
from cloister.imagetool.compression import Compress, compressed
from cloister.imagetool.layers import (
    Progress,
    Work,
    finish_manifest,
    layer_bytes,
    layer_types,
    require_diff_ids,
)
from cloister.imagetool.platforms import RewrittenImage, read_image, write_image
from cloister.oci.ahead import made_ahead, pieces_ahead
from cloister.oci.digest import Digest, DigestVerifier
from cloister.oci.document import encode_document, parse_document
from cloister.oci.encryption.annotations import encryption_annotations, without_encryption
from cloister.oci.encryption.options import PrivateOptions, PublicOptions, encode_private_options
from cloister.oci.encryption.wrapping import KeyWrapper, wrap_layer_key
from cloister.oci.inflate import inflate
from cloister.oci.manifest import Descriptor, ImageManifest, LayerType, parse_config, parse_layer_type
from cloister.oci.store import ImageSink, ImageSource, checked_blob, read_blob
from cloister.wire.limits import IMAGE_CONFIG_BYTES, LAYER_UNPACKED_BYTES, MANIFEST_BYTES


class SealedImage(msgspec.Struct, frozen=True, kw_only=True):
    """What encryption made.

    Attributes:
        image: manifests before and after, of every platform.
        plain_bytes: of all encrypted layers as they were.
        zstd: layers that are zstd and encrypted, which CoCo's guests cannot read.
        recompressed: layers whose compression was changed.
        foreign: layers that are fetched from elsewhere and were left as they are.
    """

    image: RewrittenImage
    plain_bytes: int
    zstd: int = 0
    recompressed: int = 0
    foreign: int = 0

    @property
    def digest(self) -> Digest:
        """Of the manifest or index that was written."""
        return self.image.digest

    @property
    def source_digest(self) -> Digest:
        """Of the manifest or index it was made from."""
        return self.image.source_digest

    @property
    def layers(self) -> tuple[Digest, ...]:
        """Of all platforms, in order."""
        return tuple(layer.digest for item in self.image.manifests for layer in item.manifest.layers)


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
    recipients: Sequence[KeyWrapper],
    platform: str = "",
    compress: Compress = Compress.NONE,
    leave_foreign: bool = False,
    progress: Progress | None = None,
) -> SealedImage:
    """Encrypt an image into `sink`.

    Args:
        source: where the image is.
        selector: which one, by tag or digest.
        sink: where the encrypted image goes.
        tag: its name there.
        recipients: for whom layer keys are wrapped.
        platform: `os/architecture`, to take one image out of an index; empty for all of them and a new index.
        compress: what to do with the compression of layers.
        leave_foreign: leave layers that are fetched from elsewhere as they are, readable, instead of refusing them.
        progress: told about the work.

    Raises:
        ImageRefused: `oci.encryption.already_encrypted`, `oci.encryption.no_layers`, `oci.encryption.no_recipient`,
            `oci.layer.diff_id_mismatch`, `oci.manifest.foreign_layer`, what the source's content refuses.
        Unavailable: source, sink or a recipient's provider cannot be used now.
    """
    if not recipients:
        raise ImageRefused("oci.encryption.no_recipient", "nobody to encrypt the image for")
    image = read_image(source, selector, platform)
    work = Work(progress)
    encryptions = {
        manifest.digest: _ManifestEncryption(
            source, sink, manifest, recipients=recipients, compress=compress, leave_foreign=leave_foreign, work=work
        )
        for manifest in image.manifests
    }
    try:
        for encryption in encryptions.values():
            encryption.wrap_known()
        rewritten = write_image(image, sink, tag, lambda manifest: encryptions[manifest.digest].run())
    finally:
        for encryption in encryptions.values():
            encryption.wipe()
    layers = [layer for encryption in encryptions.values() for layer in encryption.layers]
    return SealedImage(
        image=rewritten,
        plain_bytes=layer_bytes(layer.descriptor for layer in layers if not layer.type.foreign),
        zstd=sum(layer.target.compression == "zstd" and not layer.type.foreign for layer in layers),
        recompressed=sum(layer.is_recompressed for layer in layers),
        foreign=sum(layer.type.foreign for layer in layers),
    )


class _Layer:
    """One layer's key, used once, and what becomes of it."""

    def __init__(self, descriptor: Descriptor, layer_type: LayerType, diff_id: Digest, compress: Compress) -> None:
        self.descriptor = descriptor
        self.type = layer_type
        self.target = LayerType(compress.target(layer_type.compression), encrypted=True)
        self._diff_id = diff_id
        nonce = os.urandom(CTR_NONCE_BYTES)
        self._options = PrivateOptions(key=os.urandom(AES256_KEY_BYTES), digest=descriptor.digest, nonce=nonce)
        self._mac = hmac.new(self._options.key, digestmod=hashlib.sha256)
        self._wrapped: dict[str, tuple[bytes, ...]] = {}

    @property
    def is_recompressed(self) -> bool:
        """Whether its compression changes, and with it the digest of its plain bytes, known only at the end."""
        return not self.type.foreign and self.target.compression != self.type.compression

    def wrap(self, recipients: Sequence[KeyWrapper]) -> None:
        """Wrap the key, unless that was done."""
        if not self._wrapped:
            self._wrapped = wrap_layer_key(encode_private_options(self._options), recipients)

    def encrypt(self, source: ImageSource, sink: ImageSink, work: Work, path: str) -> tuple[Digest, int]:
        """Store the ciphertext and return its digest and size."""
        plain = work.counted(checked_blob(source, self.descriptor, read_ahead=True))
        if self.is_recompressed:
            plain = self._recompressed(plain, path)
        ciphertext = self._ciphertext(made_ahead(plain))
        return sink.write_blob(made_ahead(ciphertext))

    def annotations(self) -> dict[str, str]:
        """Return what the descriptor says, once all ciphertext was taken."""
        return encryption_annotations(PublicOptions(self._mac.digest()), self._wrapped)

    def wipe(self) -> None:
        """Forget the key."""
        self._options.wipe()

    def _ciphertext(self, plain: Iterable[bytes]) -> Iterator[bytes]:
        nonce = self._options.nonce
        if nonce is None:
            raise RuntimeError("a layer without its nonce")
        for chunk in ctr_stream(self._options.key, nonce, plain):
            self._mac.update(chunk)
            yield chunk

    def _recompressed(self, stored: Iterable[bytes], path: str) -> Iterator[bytes]:
        """Yield the layer with its new compression, and take the digest of that."""
        verifier = DigestVerifier(self._diff_id, None, code="oci.layer", reason="diff_id_mismatch", path=path)
        archive = verifier.checked(inflate(made_ahead(stored), self.type.compression, ceiling=LAYER_UNPACKED_BYTES))
        hasher = hashlib.sha256()
        for chunk in compressed(pieces_ahead(archive), self.target.compression):
            hasher.update(chunk)
            yield chunk
        self._options.digest = Digest("sha256", hasher.hexdigest())


class _ManifestEncryption:
    """The layers of one manifest on their way."""

    def __init__(
        self,
        source: ImageSource,
        sink: ImageSink,
        manifest: ImageManifest,
        *,
        recipients: Sequence[KeyWrapper],
        compress: Compress,
        leave_foreign: bool,
        work: Work,
    ) -> None:
        self._source = source
        self._sink = sink
        self._manifest = manifest
        self._recipients = recipients
        self._work = work
        types = layer_types(manifest, foreign=leave_foreign)
        _require_plain(types)
        self._config = read_blob(source, manifest.config, ceiling=IMAGE_CONFIG_BYTES)
        diff_ids = require_diff_ids(manifest, parse_config(self._config), types)
        self.layers = [
            _Layer(layer, layer_type, diff_id, compress)
            for layer, layer_type, diff_id in zip(manifest.layers, types, diff_ids, strict=True)
        ]
        work.expect(layer_bytes(layer.descriptor for layer in self.layers if not layer.type.foreign))

    def wrap_known(self) -> None:
        """Wrap the keys whose layers' digests are known, so that a recipient that cannot be used leaves nothing."""
        for layer in self.layers:
            if not (layer.type.foreign or layer.is_recompressed):
                layer.wrap(self._recipients)

    def run(self) -> bytes:
        """Store the ciphertext of all layers and the configuration; return the new manifest."""
        document = parse_document(self._manifest.raw, ceiling=MANIFEST_BYTES, code="oci.manifest")
        encrypted = [
            (layer, entry, f"layers[{number}]")
            for number, (layer, entry) in enumerate(zip(self.layers, document["layers"], strict=True))
            if not layer.type.foreign
        ]
        stored = self._work.run(
            [partial(layer.encrypt, self._source, self._sink, self._work, path) for layer, _, path in encrypted]
        )
        for (layer, entry, _), (digest, size) in zip(encrypted, stored, strict=True):
            layer.wrap(self._recipients)
            entry["mediaType"] = layer.target.media_type
            entry["digest"] = str(digest)
            entry["size"] = size
            entry["annotations"] = without_encryption(layer.descriptor.annotations) | layer.annotations()
        if not self._sink.has_blob(self._manifest.config.digest):
            self._sink.write_blob([self._config])
        finish_manifest(document)
        return encode_document(document)

    def wipe(self) -> None:
        """Forget all keys."""
        for layer in self.layers:
            layer.wipe()


def _require_plain(types: Sequence[LayerType]) -> None:
    if all(layer_type.foreign for layer_type in types):
        raise ImageRefused("oci.encryption.no_layers", "image has no layers, so there is nothing to encrypt")
    for number, layer_type in enumerate(types):
        if layer_type.encrypted:
            raise ImageRefused(
                "oci.encryption.already_encrypted",
                "image is encrypted already",
                path=f"layers[{number}]",
                hint="change its recipients with `cloister image rewrap`, which needs one of its keys, or encrypt the "
                "original",
            )
