"""From a digest in the measured policy to an unpacked root file system, through a registry nobody trusts.

 1 manifest and signatures   by the policy's digest, from where the host suggests
 2 signature                 one of the policy's keys, the policy's repository
 3 configuration             by the digest in the signed manifest
 4 layers                    ciphertext, by digest, into spools; several at a time
   -- all of that may run before attestation: it is public bytes --
 5 key-encryption keys       from the key broker, under the names in the layers' packets
 6 authentication            of a layer's ciphertext, as it arrives; none of it is opened before all of it is authentic
 7 decryption, unpacking     lowest layer first, while the ones above arrive and are authenticated; plain digest and
                             diff_id are checked; on any error the tree is removed and nobody has seen it

Every layer must be encrypted: a policy field that would allow plain ones does not exist. The registry address is the
host's word and decides nothing but availability; in a VM it may not lead back into the pod.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from cloister.errors import CloisterError, ImageRefused, RequestRefused, Unavailable
from cloister.guest.background import Background
from cloister.guest.report import Stopwatch

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from io import FileIO
    from ssl import SSLContext

    from cloister.oci.encryption.annotations import LayerEncryption
    from cloister.oci.encryption.authenticate import ArrivingBlob, AuthenticatedLayer
    from cloister.oci.encryption.options import PrivateOptions
    from cloister.oci.signing.verify import VerifiedImage
    from cloister.oci.spool import ScratchRoom, Spool
    from cloister.oci.store import ImageSource, StoredManifest
    from cloister.podpolicy.model import ContainerPolicy
    from cloister.protocol.resourceuri import ResourcePath

_DIGITS: Final = frozenset("0123456789")


class KeyAccess(Protocol):
    """Hands out key-encryption keys; `cloister.guest.attest.KeySource`."""

    def wait_attested(self) -> None:
        """Return once the handshake succeeded."""
        ...

    def resource(self, path: ResourcePath) -> AbstractContextManager[bytearray]:
        """Give a resource for the time of a `with` block."""
        ...


class RegistryAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where the host suggests to pull from: `host[:port]`, and whether without TLS."""

    host: str
    plain_http: bool


class PulledImage:
    """A verified image whose layers' ciphertext is in spools or on its way there; not yet decrypted."""

    __slots__ = ("blobs", "image")

    def __init__(self, image: VerifiedImage, blobs: Sequence[ArrivingBlob]) -> None:
        self.image = image
        self.blobs = blobs

    def close(self) -> None:
        """Give the room back; what still arrives is dropped, and whoever waits for it is told."""
        for blob in self.blobs:
            blob.give_up(_abandoned())


def parse_registry(text: str, *, allow_loopback: bool) -> RegistryAddress:
    """Parse the host's suggestion, `http://host[:port]` or `https://..`.

    Raises:
        RequestRefused: something else, or an address inside the pod (`guest.images.registry`).
    """
    scheme, mark, host = text.rstrip("/").partition("://")
    host = host.lower()
    name, colon, port = host.partition(":")
    well_formed = mark and scheme in ("http", "https") and host.isascii() and host.isprintable()
    well_formed = well_formed and not set(host) & set("/?#@ \\[]") and not (colon and not _is_number(port))
    if not well_formed or not _is_outside(name, allow_loopback=allow_loopback):
        raise RequestRefused(
            "guest.images.registry",
            "not the address of a registry outside the pod",
            path="params.registry",
            expected="http://host:port",
            actual=text[:80],
        )
    return RegistryAddress(host=host, plain_http=scheme == "http")


def _is_number(text: str) -> bool:
    return bool(text) and set(text) <= _DIGITS


def _is_outside(name: str, *, allow_loopback: bool) -> bool:
    """Whether `name` may be a registry outside the pod.

    A name whose last label begins with a digit is an address, and then only four plain numbers are taken: resolvers
    also read `127.1`, `0x7f000001` and `2130706433` as one. Where any other name leads is checked once connected.
    """
    labels = name.rstrip(".").split(".")
    if labels[-1][:1] not in _DIGITS:
        return bool(labels[-1]) and (allow_loopback or labels[-1] != "localhost")
    numbers = [int(label) for label in labels if _is_number(label) and len(label) <= 3 and str(int(label)) == label]
    if len(numbers) != 4 or len(labels) != 4 or max(numbers) > 255 or name.endswith("."):
        return False
    link_local = numbers[:2] == [169, 254]  # where machines find the metadata service of their cloud
    return (numbers[0] != 127 or allow_loopback) and 0 < numbers[0] < 224 and not link_local


def open_registry(address: RegistryAddress, repository: str, *, allow_loopback: bool) -> ImageSource:
    """Return a client for the path of `repository` (`registry/name`) at `address`.

    Raises:
        ImageRefused: not a repository (`oci.reference.malformed`).
    """
    from cloister.oci.distribution import RegistryClient
    from cloister.oci.reference import OCIReference, parse_reference
    from cloister.oci.transport import HTTPTransport

    reference = OCIReference(registry=address.host, repository=parse_reference(repository).repository)
    transport = HTTPTransport(tls=_tls_without_names, forbid_self=not allow_loopback)
    return RegistryClient(transport, reference, plain_http=address.plain_http, other_origins=False)


def _tls_without_names() -> SSLContext:
    """Return TLS without a check of certificates: whoever answers is untrusted, digest and signature bind its words."""
    import ssl

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    return tls


def read_named_manifest(source: ImageSource, container: ContainerPolicy) -> StoredManifest:
    """Fetch the manifest that the policy names by its digest: step 1.

    Raises:
        ImageRefused: other bytes than the policy names.
        Unavailable: the registry cannot be read now.
    """
    from cloister.oci.digest import parse_digest
    from cloister.oci.store import read_manifest

    return read_manifest(source, parse_digest(container.image_digest))


def verify_image(source: ImageSource, container: ContainerPolicy, stored: StoredManifest) -> VerifiedImage:
    """Fetch signatures and configuration and verify them and the manifest: steps 2 and 3.

    Raises:
        ImageRefused: `oci.*`: any step says no.
        Unavailable: the registry cannot be read now.
    """
    from cloister.crypto.signer import ECDSAP256PublicKey
    from cloister.oci.digest import parse_digest
    from cloister.oci.signing.simplesigning import read_candidates
    from cloister.oci.signing.verify import ExactRepository, verify_manifest
    from cloister.oci.store import read_blob
    from cloister.wire.limits import IMAGE_CONFIG_BYTES

    digest = parse_digest(container.image_digest)
    keys = [ECDSAP256PublicKey.from_pem(key.encode()) for key in container.signature_keys]
    # cosign 3 writes bundles without a repository; that the measured policy pins the digest is what makes up for it.
    rule = ExactRepository(container.repository, allow_unnamed=True)
    classic = read_candidates(source, digest)
    try:
        verified = verify_manifest(stored.raw, expected=digest, candidates=classic, keys=keys, repository=rule)
    except ImageRefused:
        from cloister.oci.signing.referred import read_bundles

        bundles = read_bundles(source, digest)  # only now: most images need no second look
        if not bundles:
            raise
        verified = verify_manifest(
            stored.raw, expected=digest, candidates=[*classic, *bundles], keys=keys, repository=rule
        )
    image = verified.bind_config(read_blob(source, verified.manifest.config, ceiling=IMAGE_CONFIG_BYTES))
    _require_encrypted(image)
    return image


class LayerFetch:
    """Fetches the ciphertext of all layers on threads of its own, beside the verification of the signature: step 4.

    It may begin as soon as the manifest is the one whose digest the measured policy names, because that names every
    layer's digest too. Nothing is opened of what it fetches before the image is verified.

    Args:
        open_source: connects to the registry; each thread has a connection of its own.
        stored: the manifest, as `read_named_manifest` returned it.
        spool: makes spools for ciphertext.
        fetched: told the milliseconds until the last layer was there.
    """

    def __init__(
        self,
        open_source: Callable[[], ImageSource],
        stored: StoredManifest,
        spool: Callable[[], Spool],
        fetched: Callable[[int], None],
    ) -> None:
        self._open_source = open_source
        self._stored = stored
        self._spool = spool
        self._fetched = fetched
        self._watch = Stopwatch()
        self._blobs: list[ArrivingBlob] = []
        self._lock = threading.Lock()
        self._next = self._done = 0
        self._abandoned = False
        self._listed = threading.Event()
        self._work = Background(self._begin, "layers")

    def finish(self, image: VerifiedImage) -> PulledImage:
        """Return the image with its layers, which may still be on their way: what goes wrong with one of them is
        raised to whoever waits for it."""
        self._listed.wait()
        try:
            self._work.raise_early()
        except BaseException:
            self.abandon()
            raise
        return PulledImage(image, self._blobs)

    def abandon(self) -> None:
        """Give the memory back, and have the threads end soon; waits for no registry."""
        with self._lock:
            self._abandoned = True
        for blob in self._blobs:
            blob.give_up(_abandoned())

    def _begin(self) -> None:
        """List the layers, start the other threads, and be one of them."""
        try:
            from cloister.oci.encryption.authenticate import ArrivingBlob
            from cloister.oci.manifest import parse_manifest
            from cloister.wire.limits import LAYER_FETCHES

            layers = parse_manifest(self._stored.raw, media_type=self._stored.media_type).layers
            with self._lock:
                if self._abandoned:
                    raise _abandoned()
                self._blobs = [ArrivingBlob(layer, self._spool) for layer in layers]
        finally:
            self._listed.set()
        for number in range(1, min(LAYER_FETCHES, len(layers))):
            Background(self._fetch, f"layers-{number}")
        self._fetch()

    def _fetch(self) -> None:
        """Fetch layers, lowest first, until none is left that no other thread fetches."""
        try:
            source = self._open_source()
            while (blob := self._take()) is not None:
                blob.fill(source)
                self._count()
        except CloisterError as err:
            self._fail(err)
        except BaseException:
            self._fail(Unavailable("guest.internal", "a layer's fetch ended early"))
            raise

    def _take(self) -> ArrivingBlob | None:
        with self._lock:
            index, self._next = self._next, self._next + 1
        return self._blobs[index] if index < len(self._blobs) else None

    def _count(self) -> None:
        with self._lock:
            self._done += 1
            last = self._done == len(self._blobs)
        if last:
            self._fetched(self._watch.ms())

    def _fail(self, error: CloisterError) -> None:
        """One layer less is an image less: nobody shall wait for the others."""
        for blob in self._blobs:
            blob.give_up(error)


def unpack(
    pulled: PulledImage, keys: KeyAccess, root: str, *, ownership: bool, decrypted: Callable[[int], None]
) -> None:
    """Decrypt and unpack into the new directory `root`: steps 5 to 7. Closes `pulled`.

    Args:
        pulled: verified image and ciphertext.
        keys: gives key-encryption keys.
        root: must not exist.
        ownership: whether files get the owners the image says; needs root.
        decrypted: told the milliseconds that unpacking waited for keys, arrival and authentication, in all.

    Raises:
        ImageRefused: `oci.encryption.*`, `oci.layer.*`, `oci.unpack.*`.
        KeyReleaseDenied, Unavailable: the broker does not give a key.
    """
    from cloister.oci.layer import DeviceNodes, UnpackOptions
    from cloister.oci.unpack import unpack_image

    opened = _OpenedLayers(pulled, keys)
    try:
        options = UnpackOptions(ownership=ownership, devices=DeviceNodes.SKIP_BELOW_DEV)
        unpack_image(pulled.image, opened.layers(), root, options)
        decrypted(opened.waited_ms)
    finally:
        pulled.close()  # first: the thread that authenticates may wait for a layer
        opened.close()


def memory_spool() -> Spool:
    """Return an empty spool that exists in memory only."""
    from cloister.oci.spool import MemorySpool

    return MemorySpool(open(os.memfd_create("spool", os.MFD_CLOEXEC), "w+b", buffering=0))


def directory_spool(directory: str) -> Spool:
    """Return an empty nameless spool in `directory` (a memory file system with a size limit).

    Raises:
        Unavailable: it cannot be made (`guest.images.no_space`).
    """
    from cloister.oci.spool import MemorySpool

    return MemorySpool(_nameless_file(directory))


def scratch_spool(directory: str, room: ScratchRoom) -> Spool:
    """Return an empty nameless spool in `directory`, on a disk that others may read and change.

    Raises:
        Unavailable: it cannot be made (`guest.images.no_space`).
    """
    from cloister.oci.spool import SealedSpool

    return SealedSpool(_nameless_file(directory), room)


def _nameless_file(directory: str) -> FileIO:
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as err:
        raise _no_space() from err
    return open(fd, "w+b", buffering=0)


class _OpenedLayers:
    """Gets all keys, then authenticates layer after layer on a thread beside the unpacking, and forgets the keys."""

    def __init__(self, pulled: PulledImage, keys: KeyAccess) -> None:
        self._pulled = pulled
        self._keys = keys
        self._private: list[PrivateOptions] = []
        self._ahead: Generator[AuthenticatedLayer, None, None] | None = None
        self.waited_ms = 0

    def layers(self) -> Iterator[AuthenticatedLayer]:
        """Yield the layers; `waited_ms` adds up what the user waited for them."""
        from cloister.oci.ahead import made_ahead
        from cloister.oci.encryption.annotations import parse_layer_encryption

        watch = Stopwatch()
        for index, descriptor in enumerate(self._pulled.image.manifest.layers):
            self._private.append(self._unwrap(parse_layer_encryption(descriptor, path=f"layers[{index}]")))
        self._ahead = made_ahead(self._authenticate(), waits=True)  # a layer may still be on its way
        for layer in self._ahead:
            self.waited_ms += watch.ms()
            yield layer
            layer.close()
            watch = Stopwatch()

    def close(self) -> None:
        """End the thread and overwrite the keys."""
        if self._ahead is not None:
            self._ahead.close()
        for private in self._private:
            private.wipe()

    def _authenticate(self) -> Iterator[AuthenticatedLayer]:
        from cloister.oci.encryption.authenticate import authenticate_layer

        for index, (blob, private) in enumerate(zip(self._pulled.blobs, self._private, strict=True)):
            yield authenticate_layer(self._pulled.image, index, blob, private)

    def _unwrap(self, encryption: LayerEncryption) -> PrivateOptions:
        """Open the first packet that opens; when none does, the first refusal is the one to tell."""
        from cloister.oci.encryption.packet import unwrap_private_options

        first: CloisterError | None = None
        for packet in encryption.packets():
            try:
                with self._keys.resource(packet.kek_path) as kek:
                    return unwrap_private_options(packet, kek)
            except Unavailable:
                raise
            except CloisterError as err:
                first = first or err
        raise first or ImageRefused("oci.encryption.no_recipient", "layer key is not wrapped for a key broker")


def _require_encrypted(image: VerifiedImage) -> None:
    from cloister.oci.manifest import parse_layer_type

    for index, layer in enumerate(image.manifest.layers):
        place = f"layers[{index}]"
        if not parse_layer_type(layer.media_type, path=place).encrypted:
            raise ImageRefused(
                "guest.images.not_encrypted",
                "image has a layer that is not encrypted",
                path=place,
                expected="every layer encrypted",
                actual=layer.media_type[:80],
                hint="seal it with `cloister image encrypt`",
            )


def _abandoned() -> Unavailable:
    return Unavailable("guest.images.abandoned", "the image was refused meanwhile")


def _no_space() -> Unavailable:
    return Unavailable(
        "guest.images.no_space", "no memory left for the image's layers", hint="give the pod VM more memory"
    )
