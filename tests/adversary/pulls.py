"""The guest's own way from a registry to a root file system, without a pod around it: fast enough for thousands of
lies.

`Published` is an image of two layers, sealed, signed and pushed to a real registry; `pull` does what the pod does to
create a container, through any registry, with the key-encryption key at hand. After a refusal nothing may be left:
`pull` fails when it is.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from cloister.crypto.signer import ECDSAP256Signer
from cloister.guest import images
from cloister.guest.scratch import ScratchDisk, SlotFile
from cloister.imagetool.encrypt import encrypt_image
from cloister.imagetool.sign import sign_image
from cloister.oci.digest import Digest, parse_digest
from cloister.oci.distribution import RegistryClient
from cloister.oci.encryption.wrapping import PacketWrapper
from cloister.oci.manifest import OCI_MANIFEST, Descriptor
from cloister.oci.signing.simplesigning import (
    SignatureCandidate,
    Statement,
    encode_payload,
    encode_signatures,
    signature_tag,
)
from cloister.oci.spool import ScratchRoom, SealedSpool, Spool
from cloister.oci.store import read_manifest
from cloister.podpolicy.model import ContainerPolicy
from cloister.protocol.resourceuri import ResourcePath
from cloister.testing import evilregistry as evil
from conformance.registry_process import RegistryProcess
from unit.oci.builders import KEK, KEK_ID, archive, build_layout, directory, file, symlink
from unpacking import Node, tree_of

SIGNER: Final = ECDSAP256Signer.generate()
REPOSITORY: Final = "team/app"
NAME: Final = f"cloister.local/{REPOSITORY}"
LAYERS: Final = (
    archive(directory(b"app"), file(b"app/run", b"one" * 300, mode=0o755), file(b"app/old", b"1")),
    archive(file(b"app/run", b"two" * 300, mode=0o755), file(b"app/.wh.old"), symlink(b"start", b"app/run")),
)
SECONDS: Final = 20
_numbers = itertools.count()


class Keys:
    """The key broker's answer."""

    def wait_attested(self) -> None:
        """At once."""

    @contextlib.contextmanager
    def resource(self, path: ResourcePath) -> Iterator[bytearray]:
        """Give the image's key, whatever it is asked for: to open the wrong packet is the guest's mistake to make."""
        yield bytearray(KEK)


class Published:
    """A sealed and signed image in a registry.

    Args:
        registry: where to.
        place: a new directory for the layout it comes from.
        layers: plain archives.
    """

    def __init__(self, registry: RegistryProcess, place: Path, *, layers: Sequence[bytes] = LAYERS) -> None:
        self.registry = registry
        self.client: RegistryClient = registry.client(REPOSITORY)
        built = build_layout(place, *layers)
        recipients = [PacketWrapper(KEK_ID, KEK)]
        self.digest = encrypt_image(built.layout, built.digest, self.client, tag="v1", recipients=recipients).digest
        sign_image(self.client, self.digest, SIGNER, repository=NAME)
        self.plain = tuple(built.layers)

    def manifest(self, selector: Digest | str) -> bytes:
        return read_manifest(self.client, selector).raw

    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.manifest(self.digest))
        return found

    def blob(self, described: dict[str, Any]) -> bytes:
        wanted = Descriptor(
            media_type=described["mediaType"], digest=parse_digest(described["digest"]), size=described["size"]
        )
        return b"".join(self.client.stream_blob(wanted))

    def put(self, content: bytes) -> dict[str, Any]:
        digest, size = self.client.write_blob([content])
        return {"digest": str(digest), "size": size}

    def signed(self, raw: bytes, *, media_type: str = OCI_MANIFEST) -> tuple[Digest, list[evil.Lie]]:
        """Return the digest of any bytes, and the lies of a registry that has them with the owner's good signature."""
        digest = Digest.of(raw)
        payload = encode_payload(Statement(NAME, digest))
        self.client.write_blob([payload])
        signature, _ = encode_signatures([SignatureCandidate(payload, SIGNER.sign(payload))])
        return digest, [
            evil.answered(str(digest), raw, media_type),
            evil.answered(signature_tag(digest), signature, OCI_MANIFEST),
        ]

    def stored(self) -> dict[str, bytes]:
        """Everything the guest fetches, by what it is asked under."""
        document, tag = self.document(), signature_tag(self.digest)
        signature = json.loads(self.manifest(tag))
        blobs = [document["config"], *document["layers"], *signature["layers"]]
        return {
            str(self.digest): self.manifest(self.digest),
            tag: self.manifest(tag),
            **{blob["digest"]: self.blob(blob) for blob in blobs},
        }


def policy_of(digest: Digest | str, **changes: Any) -> ContainerPolicy:
    """Return the policy of a container of the image `digest`."""
    values: dict[str, Any] = {
        "name": "app",
        "kind": "app",
        "image_digest": str(digest),
        "repository": NAME,
        "signature_keys": (SIGNER.public_key.pem().decode(),),
    }
    return ContainerPolicy(**{**values, **changes})


def pull(url: str, policy: ContainerPolicy, place: Path) -> dict[bytes, Node]:
    """Pull, verify, decrypt and unpack as a pod does, and return the tree.

    Raises:
        CloisterError: as a pod would; then there is no tree and no spool.
    """
    root = place / f"root-{next(_numbers)}"
    with _watched() as (connect, spool):
        try:
            _create(lambda: connect(url, policy), policy, str(root), spool)
            return tree_of(root)
        except BaseException:
            assert not root.exists(), "a part of the tree is left"
            raise


@contextlib.contextmanager
def _watched() -> Iterator[tuple[Callable[[str, ContainerPolicy], Any], Callable[[], Spool]]]:
    """Give what connects and what makes spools; at the end close the one and see that the other is closed.

    A thread that fetches layers of an image refused meanwhile ends by itself, soon.
    """
    room = ScratchRoom(64 << 20)
    device = os.memfd_create("disk", os.MFD_CLOEXEC)
    os.ftruncate(device, 64 << 20)
    disk = ScratchDisk(device, 64 << 20)
    files: list[BinaryIO | SlotFile] = []
    sources: list[Any] = []

    def connect(url: str, policy: ContainerPolicy) -> Any:
        address = images.parse_registry(url, allow_loopback=True)
        sources.append(images.open_registry(address, policy.repository, allow_loopback=True))
        return sources[-1]

    def spool() -> Spool:
        """Every place that ciphertext may wait in, by turns."""
        turn = next(_numbers) % 3
        if turn == 2:
            files.append(SlotFile(disk))
            return SealedSpool(files[-1], None)
        files.append(os.fdopen(os.memfd_create("spool", os.MFD_CLOEXEC), "w+b", buffering=0))
        return SealedSpool(files[-1], room) if turn else Spool(files[-1])

    try:
        yield connect, spool
    finally:
        deadline = time.monotonic() + SECONDS
        while any(thread.name.startswith("layers") for thread in threading.enumerate()):
            assert time.monotonic() < deadline, "layers of a refused image are still fetched"
            time.sleep(0.001)
        for source in sources:
            source._session._transport.close()  # the guest leaves this to the end of its process
        assert [one for one in files if not one.closed] == [], "a spool is left"
        assert (disk.left, room.left) == (disk.slots, room.ceiling), "room of a spool is left"
        disk.close()


def _create(connect: Callable[[], Any], policy: ContainerPolicy, root: str, spool: Callable[[], Spool]) -> None:
    """The steps of `cloister.guest.pod`, in its order."""
    source = connect()
    stored = images.read_named_manifest(source, policy)
    fetch = images.LayerFetch(connect, stored, spool, lambda _: None)
    try:
        image = images.verify_image(source, policy, stored)
    except BaseException:
        fetch.abandon()
        raise
    pulled = fetch.finish(image)
    try:
        images.unpack(pulled, Keys(), root, ownership=False, decrypted=lambda _: None)
    finally:
        pulled.close()
