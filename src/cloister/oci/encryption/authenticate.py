"""The two passes between a layer's ciphertext and its files: authenticate everything, then open.

ocicrypt's MAC is known good only at the end of the ciphertext. So a layer first goes into a spool (`ArrivingBlob`,
digest checked), its MAC is computed over all of it (`authenticate_layer`), and only the `AuthenticatedLayer` that
comes out of that can be opened. While it is opened, the digest of the plain layer and the diff_id of the
configuration are checked as well; a mismatch raises at the end, and the tree made from it is thrown away by
`cloister.oci.unpack`.

The key may come before, while or after the bytes arrive: the MAC follows the spool from its beginning, on another
thread than the one that fetches and checks the digest, so nothing is hashed twice and neither waits for the other.

What was authenticated is what is opened: a spool is out of everybody else's reach, or seals its chunks
(`cloister.oci.spool`). Trusts the verified manifest, and the KEK that opened the private options.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Final

from cloister.crypto.aead import ctr_stream
from cloister.errors import ImageRefused, detached
from cloister.oci.ahead import pieces_ahead
from cloister.oci.digest import Digest, DigestVerifier
from cloister.oci.encryption.annotations import parse_layer_encryption
from cloister.oci.encryption.options import PrivateOptions, agreed_nonce
from cloister.oci.inflate import inflate
from cloister.oci.manifest import Descriptor, LayerType, parse_layer_type
from cloister.oci.signing.verify import VerifiedImage
from cloister.oci.spool import CHUNK_BYTES, Spool
from cloister.oci.store import ImageSource, checked_blob
from cloister.wire.limits import LAYER_UNPACKED_BYTES, MIB

_MADE_HERE: Final = object()


class SpooledBlob:
    """A blob in a spool whose digest was checked while it was written. Made by `ArrivingBlob` only."""

    __slots__ = ("_spool", "digest", "size")
    is_whole = True

    def __init__(self, made_here: object, spool: Spool, digest: Digest, size: int) -> None:
        if made_here is not _MADE_HERE:
            raise TypeError("a SpooledBlob is made by an ArrivingBlob")
        self._spool = spool
        self.digest = digest
        self.size = size

    def chunks(self, *, keep: bool = True) -> Iterator[bytes]:
        """Yield the content from the beginning; unless it is to be kept, the room of what was taken is given back."""
        for index in range(-(-self.size // CHUNK_BYTES)):
            yield self._spool.chunk(index)
            if not keep:
                self._spool.release(index + 1)

    def follow(self) -> Iterator[bytes]:
        """Yield the content from the beginning; see `ArrivingBlob.follow`."""
        return self.chunks()

    def wait(self) -> SpooledBlob:
        """Return it; see `ArrivingBlob.wait`."""
        return self

    def close(self) -> None:
        """Give the room back."""
        self._spool.close()


class ArrivingBlob:
    """A blob on its way into a spool: one thread fills it, another may follow it with a MAC and waits for the end.

    Args:
        descriptor: names the blob.
        open_spool: makes the spool, once the first byte is asked for.
    """

    def __init__(self, descriptor: Descriptor, open_spool: Callable[[], Spool]) -> None:
        self.digest = descriptor.digest
        self.size = descriptor.size
        self._descriptor = descriptor
        self._open_spool = open_spool
        self._changed = threading.Condition()
        self._spool: Spool | None = None
        self._arrived = 0
        self._whole: SpooledBlob | None = None
        self._error: BaseException | None = None

    def fill(self, source: ImageSource, *, advance: Callable[[int], None] | None = None) -> None:
        """Fetch the blob and check its digest on the way. What goes wrong is also raised where somebody waits.

        Raises:
            ImageRefused: `<source>.digest_mismatch`, `<source>.size_mismatch`, `<source>.blob_missing`.
            Unavailable: the source cannot be read now, or the spool has no room (`oci.spool.full`).
        """
        try:
            spool = self._begin()
            for chunk in _regrouped(checked_blob(source, self._descriptor)):
                spool.append(chunk)
                with self._changed:
                    self._arrived += 1
                    self._changed.notify_all()
                if advance is not None:
                    advance(len(chunk))
            with self._changed:
                self._whole = SpooledBlob(_MADE_HERE, spool, self.digest, self.size)
                self._changed.notify_all()
        except BaseException as err:
            self.give_up(err)
            raise

    @property
    def is_whole(self) -> bool:
        """Whether all of it arrived."""
        with self._changed:
            return self._whole is not None

    def follow(self) -> Iterator[bytes]:
        """Yield the chunks as they arrive; ends when all of them did and have the digest."""
        index = 0
        while (spool := self._next(index)) is not None:
            yield spool.chunk(index)
            index += 1

    def wait(self) -> SpooledBlob:
        """Return the blob once all of it arrived; raise what `fill` raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._whole or self._error)
            if self._error is not None:
                raise detached(self._error)
            if self._whole is None:
                raise RuntimeError("neither a blob nor an error")
            return self._whole

    def give_up(self, error: BaseException) -> None:
        """Give the room back; whoever waits now or later gets what equals `error`, or the one that was given first."""
        error = detached(error)  # the raised one holds the connection it came from, and this object
        with self._changed:
            self._error = self._error or error
            spool, self._spool = self._spool, None
            self._changed.notify_all()
        if spool is not None:
            spool.close(error)

    def _begin(self) -> Spool:
        spool = self._open_spool()
        with self._changed:
            if self._error is None:
                self._spool = spool
                return spool
        spool.close()
        raise detached(self._error)

    def _next(self, index: int) -> Spool | None:
        """Return the spool once chunk `index` is in it, or None when there is no such chunk."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or self._whole or self._arrived > index)
            if self._error is not None:
                raise detached(self._error)
            return self._spool if self._arrived > index else None


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

    def open(self, *, ceiling: int = LAYER_UNPACKED_BYTES, keep: bool = True) -> Iterator[bytes]:
        """Yield the bytes of the layer's plain archive; raises behind the last one unless all digests hold.

        Args:
            ceiling: most bytes.
            keep: whether it may be opened again; otherwise its room is given back on the way.

        Raises:
            ImageRefused: `oci.encryption.plain_digest_mismatch`, `oci.layer.diff_id_mismatch`, `oci.layer.*` of
            inflating.
        """
        place = f"layers[{self.index}]"
        beside = pieces_ahead if self._blob.size > CHUNK_BYTES else iter  # one chunk gains nothing from a thread
        chunks = self._blob.chunks(keep=keep)
        diff_id = self.image.config.diff_ids[self.index]
        if self._private is not None:
            plain = ctr_stream(self._private.key, self._nonce, chunks)
            # skopeo, when it compresses and encrypts at once, names the archive here. It is checked below.
            if self._private.digest != diff_id:
                named = self._private.digest
                reason = "plain_digest_mismatch"
                plain = DigestVerifier(named, None, code="oci.encryption", reason=reason, path=place).checked(plain)
            chunks = beside(plain)
        unpacked = DigestVerifier(diff_id, None, code="oci.layer", reason="diff_id_mismatch", path=place)
        return beside(unpacked.checked(beside(inflate(chunks, self._type.compression, ceiling=ceiling))))

    def close(self) -> None:
        """Give the room back; it cannot be opened any more."""
        self._blob.close()


def spool_blob(
    source: ImageSource, descriptor: Descriptor, file: BinaryIO, *, advance: Callable[[int], None] | None = None
) -> SpooledBlob:
    """Fetch a blob into `file`, an empty one that this process alone can reach, and check its digest on the way.

    Raises:
        ImageRefused: `<source>.digest_mismatch`, `<source>.size_mismatch`, `<source>.blob_missing`.
        Unavailable: the source cannot be read now.
    """
    blob = ArrivingBlob(descriptor, lambda: Spool(file))
    blob.fill(source, advance=advance)
    return blob.wait()


def authenticate_layer(
    image: VerifiedImage, index: int, blob: SpooledBlob | ArrivingBlob, private: PrivateOptions
) -> AuthenticatedLayer:
    """Check the MAC of encrypted layer `index` over all of `blob`; of one that arrives, while it does.

    Args:
        image: names the layer.
        index: position of the layer, lowest first.
        blob: its ciphertext.
        private: its unwrapped private options; kept for `AuthenticatedLayer.open`; wipe them after that.

    Raises:
        ImageRefused: `oci.encryption.other_blob`, `oci.encryption.not_encrypted`, `oci.encryption.missing_nonce`,
            `oci.encryption.two_nonces`, `oci.encryption.mac_mismatch`, `oci.encryption.*` of the annotations.
    """
    layer = _require_named(image, index, blob)
    place = f"layers[{index}]"
    layer_type = parse_layer_type(layer.media_type, path=place)
    if not layer_type.encrypted:
        raise ImageRefused(
            "oci.encryption.not_encrypted", "layer is not encrypted", path=place, actual=layer.media_type
        )
    public = parse_layer_encryption(layer, path=place).public
    nonce = agreed_nonce(public, private, path=place)
    mac = hmac.new(private.key, digestmod=hashlib.sha256)
    chunks = blob.follow()
    if blob.is_whole and blob.size > CHUNK_BYTES:  # else the MAC waits for what arrives, not for what is read
        chunks = pieces_ahead(chunks, size=MIB)
    for chunk in chunks:
        mac.update(chunk)
    spooled = blob.wait()
    if not hmac.compare_digest(mac.digest(), public.hmac):
        raise ImageRefused(
            "oci.encryption.mac_mismatch",
            "layer is not what was encrypted with its key",
            path=place,
            hint="the layer, its annotations or its key were changed or swapped; seal and push the image again",
        )
    return AuthenticatedLayer(_MADE_HERE, image, index, spooled, layer_type, private, nonce)


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


def _require_named(image: VerifiedImage, index: int, blob: SpooledBlob | ArrivingBlob) -> Descriptor:
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


def _regrouped(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in chunks of `CHUNK_BYTES`, the last one shorter."""
    pending = bytearray()
    for piece in pieces:
        if not pending and len(piece) == CHUNK_BYTES:
            yield piece
            continue
        pending += piece
        while len(pending) >= CHUNK_BYTES:
            yield bytes(memoryview(pending)[:CHUNK_BYTES])
            del pending[:CHUNK_BYTES]
    if pending:
        yield bytes(pending)
