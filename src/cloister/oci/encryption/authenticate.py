"""The two passes between a layer's ciphertext and its files: authenticate everything, then open.

ocicrypt's MAC is known good only at the end of the ciphertext. So a layer is first spooled to a file of the caller's
(`spool_blob`, digest checked), then its MAC is computed over all of it (`authenticate_layer`), and only the
`AuthenticatedLayer` that comes out of that can be opened. While it is opened, the digest of the plain layer and the
diff_id of the configuration are checked as well; a mismatch raises at the end, and the tree made from it is thrown
away by `cloister.oci.unpack`.

The spool file must be out of everybody else's reach between the passes: memory (`memfd_create`, tmpfs in the
guest) or a disk with integrity protection, never a disk the host can write.

Trusts the verified manifest, and the KEK that opened the private options.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final

from cloister.crypto.aead import ctr_stream
from cloister.errors import ImageRefused
from cloister.oci.ahead import made_ahead
from cloister.oci.digest import Digest, DigestVerifier
from cloister.oci.encryption.annotations import parse_layer_encryption
from cloister.oci.encryption.options import PrivateOptions
from cloister.oci.inflate import inflate
from cloister.oci.manifest import Descriptor, LayerType, parse_layer_type
from cloister.oci.signing.verify import VerifiedImage
from cloister.oci.store import ImageSource, checked_blob
from cloister.wire.limits import KIB, LAYER_UNPACKED_BYTES

CHUNK_BYTES: Final = 256 * KIB
_MADE_HERE: Final = object()


class SpooledBlob:
    """A file that holds a blob whose digest was checked while it was written. Made by `spool_blob` only."""

    __slots__ = ("digest", "file", "size")

    def __init__(self, made_here: object, file: BinaryIO, digest: Digest, size: int) -> None:
        if made_here is not _MADE_HERE:
            raise TypeError("a SpooledBlob is made by spool_blob")
        self.file = file
        self.digest = digest
        self.size = size

    def chunks(self) -> Iterator[bytes]:
        """Yield the content from the beginning."""
        self.file.seek(0)
        while chunk := self.file.read(CHUNK_BYTES):
            yield chunk


class AuthenticatedLayer:
    """A layer that is what the verified image names; only such a one is unpacked. Made in this module only."""

    __slots__ = ("_blob", "_nonce", "_private", "_type", "image", "index")

    def __init__(
        self,
        made_here: object,
        image: VerifiedImage,
        index: int,
        blob: SpooledBlob,
        layer_type: LayerType,
        private: PrivateOptions | None = None,
        nonce: bytes = b"",
    ) -> None:
        if made_here is not _MADE_HERE:
            raise TypeError("an AuthenticatedLayer is made by authenticate_layer or accept_unencrypted_layer")
        self.image = image
        self.index = index
        self._blob = blob
        self._private = private
        self._nonce = nonce
        self._type = layer_type

    def open(self, *, ceiling: int = LAYER_UNPACKED_BYTES) -> Iterator[bytes]:
        """Yield the bytes of the layer's plain archive; raises behind the last one unless all digests hold.

        Raises:
            ImageRefused: `oci.encryption.plain_digest_mismatch`, `oci.layer.diff_id_mismatch`, `oci.layer.*` of
            inflating.
        """
        place = f"layers[{self.index}]"
        chunks = self._blob.chunks()
        if self._private is not None:
            plain = DigestVerifier(
                self._private.digest, None, code="oci.encryption", reason="plain_digest_mismatch", path=place
            )
            chunks = made_ahead(plain.checked(ctr_stream(self._private.key, self._nonce, chunks)))
        unpacked = DigestVerifier(
            self.image.config.diff_ids[self.index], None, code="oci.layer", reason="diff_id_mismatch", path=place
        )
        return unpacked.checked(inflate(chunks, self._type.compression, ceiling=ceiling))


def spool_blob(
    source: ImageSource, descriptor: Descriptor, file: BinaryIO, *, advance: Callable[[int], None] | None = None
) -> SpooledBlob:
    """Fetch a blob into `file`, an empty one that this process alone can reach, and check its digest on the way.

    Raises:
        ImageRefused: `<source>.digest_mismatch`, `<source>.size_mismatch`, `<source>.blob_missing`.
        Unavailable: the source cannot be read now.
    """
    for chunk in checked_blob(source, descriptor):
        file.write(chunk)
        if advance is not None:
            advance(len(chunk))
    return SpooledBlob(_MADE_HERE, file, descriptor.digest, descriptor.size)


def authenticate_layer(
    image: VerifiedImage, index: int, blob: SpooledBlob, private: PrivateOptions
) -> AuthenticatedLayer:
    """Check the MAC of encrypted layer `index` over all of `blob`.

    Args:
        image: names the layer.
        index: position of the layer, lowest first.
        blob: its ciphertext.
        private: its unwrapped private options; kept for `AuthenticatedLayer.open`; wipe them after that.

    Raises:
        ImageRefused: `oci.encryption.other_blob`, `oci.encryption.not_encrypted`, `oci.encryption.missing_nonce`,
            `oci.encryption.mac_mismatch`, `oci.encryption.*` of the annotations.
    """
    layer = _require_named(image, index, blob)
    place = f"layers[{index}]"
    layer_type = parse_layer_type(layer.media_type, path=place)
    if not layer_type.encrypted:
        raise ImageRefused(
            "oci.encryption.not_encrypted", "layer is not encrypted", path=place, actual=layer.media_type
        )
    public = parse_layer_encryption(layer, path=place).public
    nonce = public.nonce or private.nonce
    if nonce is None:
        raise ImageRefused("oci.encryption.missing_nonce", "encrypted layer has no nonce", path=place)
    mac = hmac.new(private.key, digestmod=hashlib.sha256)
    for chunk in blob.chunks():
        mac.update(chunk)
    if not hmac.compare_digest(mac.digest(), public.hmac):
        raise ImageRefused(
            "oci.encryption.mac_mismatch",
            "layer is not what was encrypted with its key",
            path=place,
            hint="the layer, its annotations or its key were changed or swapped; seal and push the image again",
        )
    return AuthenticatedLayer(_MADE_HERE, image, index, blob, layer_type, private, nonce)


def accept_unencrypted_layer(image: VerifiedImage, index: int, blob: SpooledBlob) -> AuthenticatedLayer:
    """Return plain layer `index`, authentic by the digest in the signed manifest. The policy decides whether to call
    this.

    Raises:
        ImageRefused: `oci.encryption.other_blob`, `oci.encryption.encrypted`.
    """
    layer = _require_named(image, index, blob)
    layer_type = parse_layer_type(layer.media_type, path=f"layers[{index}]")
    if layer_type.encrypted:
        raise ImageRefused("oci.encryption.encrypted", "layer is encrypted", path=f"layers[{index}]")
    return AuthenticatedLayer(_MADE_HERE, image, index, blob, layer_type)


def _require_named(image: VerifiedImage, index: int, blob: SpooledBlob) -> Descriptor:
    layer = image.manifest.layers[index]
    if blob.digest != layer.digest:
        raise ImageRefused(
            "oci.encryption.other_blob",
            "blob is not the one the manifest names here",
            path=f"layers[{index}]",
            expected=str(layer.digest),
            actual=str(blob.digest),
        )
    return layer
