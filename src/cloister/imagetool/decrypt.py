"""Decrypts an image with one of its recipients' keys, and writes it as it was before (ocicrypt).

Digest and MAC of a layer's ciphertext are known at its end. Until then what it decrypts to is looked at by nothing but
a digest, and goes nowhere but into a draft that this machine holds back: when they do not hold, the draft is removed.
So one pass does where the plain layer is only stored, and on this machine. Where the plain layer goes to a registry, or
is decompressed to compare the archive inside with the diff_id of the configuration, there are two passes, and nothing
is decrypted before digest and MAC of everything hold. What comes out has the digest in the private options, always. The
manifest, without which layers are no image, is written last.

For two passes a local store is read twice, and the second pass rests on the checks of what comes out. From a registry
the ciphertext is kept in a nameless temporary file in between, as it may answer otherwise the second time.

What this proves: each layer is one that was encrypted under its key, and where diff_ids are checked, as they are of
plain archives always, the one that this configuration lists in its place. That the image is the one somebody meant is
for its signature, before it is decrypted: `check` verifies it on the bytes that are decrypted then. Layers that are
not encrypted are copied; without a signature anybody may have put them there.
"""

from __future__ import annotations

import hashlib
import hmac
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import msgspec

from cloister.crypto.aead import ctr_stream
from cloister.errors import ImageRefused
from cloister.imagetool.layers import (
    Progress,
    Work,
    finish_manifest,
    layer_bytes,
    layer_types,
    require_diff_id,
    require_diff_ids,
)
from cloister.imagetool.platforms import RewrittenImage, SourceImage, read_image, write_image
from cloister.oci.ahead import made_ahead
from cloister.oci.digest import Digest, DigestVerifier
from cloister.oci.distribution import RegistryClient
from cloister.oci.document import encode_document, parse_document
from cloister.oci.encryption.annotations import LayerEncryption, parse_layer_encryption, without_encryption
from cloister.oci.encryption.options import PrivateOptions, agreed_nonce
from cloister.oci.encryption.wrapping import KeyUnwrapper, unwrap_layer_key
from cloister.oci.inflate import inflate
from cloister.oci.manifest import Descriptor, ImageManifest, LayerType, parse_config
from cloister.oci.store import ImageSink, ImageSource, checked_blob, copy_blob, read_blob
from cloister.wire.limits import BLOB_PIECE_BYTES, IMAGE_CONFIG_BYTES, LAYER_UNPACKED_BYTES, MANIFEST_BYTES

Stream = Callable[[], Iterable[bytes]]
"""Begins a layer's ciphertext anew."""


class DecryptedImage(msgspec.Struct, frozen=True, kw_only=True):
    """What decryption made.

    Attributes:
        image: manifests before and after, of every platform.
        decrypted: layers that were.
        plain: layers that were not encrypted and were copied.
    """

    image: RewrittenImage
    decrypted: int
    plain: int

    @property
    def digest(self) -> Digest:
        """Of the manifest or index that was written."""
        return self.image.digest


def decrypt_image(
    source: ImageSource,
    selector: str | Digest,
    sink: ImageSink,
    *,
    tag: str,
    keys: Sequence[KeyUnwrapper],
    platform: str = "",
    check_diff_ids: bool = False,
    check: Callable[[ImageSource, SourceImage], None] | None = None,
    progress: Progress | None = None,
) -> DecryptedImage:
    """Decrypt an image into `sink`.

    Args:
        source: where the image is.
        selector: which one, by tag or digest.
        sink: where the plain image goes.
        tag: its name there.
        keys: one of them has to open each layer.
        platform: `os/architecture`, to take one image out of an index; empty for all of them and a new index.
        check_diff_ids: decompress layers to compare them with the configuration, as whoever unpacks them does; digests
            and MAC are checked anyway, and layers that are plain archives are compared.
        check: raises unless the manifests are those of whom they must be; these very bytes are decrypted then.
        progress: told about the work.

    Raises:
        ImageRefused: what `check` raises, `oci.encryption.not_encrypted`, `oci.encryption.no_key`,
            `oci.encryption.mac_mismatch`, `oci.encryption.plain_digest_mismatch`, `oci.layer.diff_id_mismatch`, what
            the source's content refuses.
        Unavailable: source, sink or a key's provider cannot be used now.
    """
    image = read_image(source, selector, platform)
    if check is not None:
        check(source, image)
    work = Work(progress)
    decryptions = {
        manifest.digest: _ManifestDecryption(source, sink, manifest, work, check_diff_ids=check_diff_ids)
        for manifest in image.manifests
    }
    if not any(decryption.encrypted for decryption in decryptions.values()):
        raise ImageRefused(
            "oci.encryption.not_encrypted", "image is not encrypted", hint="copy it as it is, for example with skopeo"
        )
    try:
        for decryption in decryptions.values():
            decryption.unwrap(keys)
        rewritten = write_image(image, sink, tag, lambda manifest: decryptions[manifest.digest].run())
    finally:
        for decryption in decryptions.values():
            decryption.wipe()
    return DecryptedImage(
        image=rewritten,
        decrypted=sum(len(decryption.encrypted) for decryption in decryptions.values()),
        plain=sum(len(decryption.plain) for decryption in decryptions.values()),
    )


class _Layer:
    """One encrypted layer, its key, and the checks on its way."""

    def __init__(self, number: int, descriptor: Descriptor, layer_type: LayerType, diff_id: Digest) -> None:
        self.number = number
        self.descriptor = descriptor
        self.target = LayerType(layer_type.compression, encrypted=False, foreign=layer_type.foreign)
        self._path = f"layers[{number}]"
        self._diff_id = diff_id
        self._encryption: LayerEncryption = parse_layer_encryption(descriptor, path=self._path)
        self._private: PrivateOptions | None = None
        self.digest = descriptor.digest  # of the plain layer, once it is decrypted

    def unwrap(self, keys: Sequence[KeyUnwrapper]) -> None:
        """Open the layer's key."""
        self._private = unwrap_layer_key(self._encryption, keys, path=self._path)

    def wipe(self) -> None:
        """Forget the key."""
        if self._private is not None:
            self._private.wipe()

    @property
    def _opened(self) -> PrivateOptions:
        if self._private is None:
            raise RuntimeError("a layer is decrypted after its key was unwrapped")
        return self._private

    def decrypt(self, source: ImageSource, sink: ImageSink, work: Work, *, check_diff_id: bool) -> None:
        """Check the ciphertext and store the plain layer, at once or one after the other, then check that."""
        inflates = self.target.compression != "" and (check_diff_id or self._names_archive)
        if sink.holds_back and not inflates:
            ciphertext = work.counted(checked_blob(source, self.descriptor, read_ahead=True))
            plain = self._decrypted(self._authenticated(made_ahead(ciphertext)))
            self.digest, _ = sink.write_blob(made_ahead(plain))
        else:
            with _read_twice(source, self.descriptor) as (first, again):
                for _ in self._authenticated(made_ahead(work.counted(first()))):
                    pass
                plain = self._decrypted(again())
                self.digest, _ = sink.write_blob(made_ahead(self._with_archive_checked(plain) if inflates else plain))
        self._require(self.digest)

    @property
    def _names_archive(self) -> bool:
        """Whether the private options name the plain archive where they should name the compressed layer.

        skopeo writes that when it compresses and encrypts a layer at once. The archive is checked then.
        """
        return self.target.compression != "" and self._opened.digest == self._diff_id

    def _authenticated(self, ciphertext: Iterable[bytes]) -> Iterator[bytes]:
        """Pass `ciphertext` through and raise behind the last chunk unless it has the layer's MAC."""
        mac = hmac.new(self._opened.key, digestmod=hashlib.sha256)
        for chunk in ciphertext:
            mac.update(chunk)
            yield chunk
        if not hmac.compare_digest(mac.digest(), self._encryption.public.hmac):
            raise ImageRefused(
                "oci.encryption.mac_mismatch",
                "layer is not what was encrypted with its key",
                path=self._path,
                hint="the layer, its annotations or its key were changed or swapped; encrypt and push the image again",
            )

    def _decrypted(self, ciphertext: Iterable[bytes]) -> Iterator[bytes]:
        nonce = agreed_nonce(self._encryption.public, self._opened, path=self._path)
        return ctr_stream(self._opened.key, nonce, ciphertext)

    def _with_archive_checked(self, plain: Iterable[bytes]) -> Iterator[bytes]:
        """Pass `plain` through and compare the archive inside with the configuration behind the last chunk."""
        taken: list[bytes] = []

        def noted() -> Iterator[bytes]:
            for chunk in made_ahead(plain):
                taken.append(chunk)
                yield chunk

        def inflated() -> Iterator[tuple[bytes, list[bytes]]]:
            for piece in inflate(noted(), self.target.compression, ceiling=LAYER_UNPACKED_BYTES):
                yield piece, taken.copy()
                taken.clear()
            yield b"", taken

        archive = DigestVerifier(self._diff_id, None, code="oci.layer", reason="diff_id_mismatch", path=self._path)
        for piece, chunks in made_ahead(inflated()):
            archive.update(piece)
            yield from chunks
        archive.finish()

    def _require(self, digest: Digest) -> None:
        """Return if what was stored is what the private options, and for a plain archive the configuration, name."""
        if digest != self._opened.digest and not self._names_archive:
            raise ImageRefused(
                "oci.encryption.plain_digest_mismatch",
                "content does not have the digest it is named by",
                path=self._path,
                expected=str(self._opened.digest),
                actual=str(digest),
            )
        if not self.target.compression:
            require_diff_id(digest, self._diff_id, self._path)


class _ManifestDecryption:
    """The layers of one manifest on their way."""

    def __init__(
        self, source: ImageSource, sink: ImageSink, manifest: ImageManifest, work: Work, *, check_diff_ids: bool
    ) -> None:
        self._source = source
        self._sink = sink
        self._manifest = manifest
        self._work = work
        self._check_diff_ids = check_diff_ids
        types = layer_types(manifest, foreign=True)
        self._config = read_blob(source, manifest.config, ceiling=IMAGE_CONFIG_BYTES)
        diff_ids = require_diff_ids(manifest, parse_config(self._config), types)
        layers = enumerate(zip(manifest.layers, types, diff_ids, strict=True))
        self.encrypted = [_Layer(number, *layer) for number, layer in layers if layer[1].encrypted]
        self.plain = [
            layer
            for layer, layer_type in zip(manifest.layers, types, strict=True)
            if not (layer_type.encrypted or layer_type.foreign)
        ]
        work.expect(layer_bytes([*(layer.descriptor for layer in self.encrypted), *self.plain]))

    def unwrap(self, keys: Sequence[KeyUnwrapper]) -> None:
        """Open the keys of all layers, so that a key that does not fit leaves nothing behind."""
        for layer in self.encrypted:
            layer.unwrap(keys)

    def run(self) -> bytes:
        """Store all layers and the configuration; return the new manifest."""
        jobs = [partial(self._decrypt, layer) for layer in self.encrypted]
        copies = [
            partial(copy_blob, self._source, self._sink, layer, advance=self._work.advance) for layer in self.plain
        ]
        self._work.run([*jobs, *copies])
        document = parse_document(self._manifest.raw, ceiling=MANIFEST_BYTES, code="oci.manifest")
        for layer in self.encrypted:
            entry = document["layers"][layer.number]
            entry["mediaType"] = layer.target.media_type
            entry["digest"] = str(layer.digest)
            entry["annotations"] = without_encryption(layer.descriptor.annotations)
            if not entry["annotations"]:
                del entry["annotations"]
        if not self._sink.has_blob(self._manifest.config.digest):
            self._sink.write_blob([self._config])
        finish_manifest(document)
        return encode_document(document)

    def wipe(self) -> None:
        """Forget all keys."""
        for layer in self.encrypted:
            layer.wipe()

    def _decrypt(self, layer: _Layer) -> None:
        layer.decrypt(self._source, self._sink, self._work, check_diff_id=self._check_diff_ids)


@contextmanager
def _read_twice(source: ImageSource, descriptor: Descriptor) -> Iterator[tuple[Stream, Stream]]:
    """Give a blob twice, the first time checked against its digest."""
    if not isinstance(source, RegistryClient):
        yield partial(checked_blob, source, descriptor, read_ahead=True), partial(source.stream_blob, descriptor)
        return
    with tempfile.TemporaryFile() as file:

        def first() -> Iterator[bytes]:
            for chunk in checked_blob(source, descriptor, read_ahead=True):
                file.write(chunk)
                yield chunk

        def again() -> Iterator[bytes]:
            file.seek(0)
            while chunk := file.read(BLOB_PIECE_BYTES):
                yield chunk

        yield first, again
