"""Pods under attack, and images in the registry that were altered by somebody who may write there."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from cloister.crypto.signer import ECDSAP256Signer
from cloister.imagetool.sign import sign_image
from cloister.oci.digest import Digest, parse_digest
from cloister.oci.distribution import RegistryClient
from cloister.oci.manifest import OCI_MANIFEST, Descriptor
from cloister.oci.reference import OCIReference
from cloister.oci.store import read_manifest
from cloister.oci.transport import HTTPTransport
from cloister.podpolicy.model import PodPolicy
from cloister.protocol.initdata import InitData
from cloister.protocol.resourceuri import ResourcePath
from cloister.sdk.owner import SealedReference
from guest_world import STREAM_KEY, ProcessPod, RunningPod, World


@contextlib.contextmanager
def running(world: World, policy: PodPolicy, image: SealedReference, *more: ResourcePath) -> Iterator[ProcessPod]:
    """Give a pod whose keys the owner approved."""
    with started(world, world.prepare(policy, image, *more)) as pod:
        yield pod


@contextlib.contextmanager
def started(world: World, init_data: InitData) -> Iterator[ProcessPod]:
    """Give a pod with this init data, approved or not."""
    pod = world.pod(init_data)
    try:
        yield pod
    finally:
        pod.end()


def nothing_unpacked(pod: ProcessPod) -> bool:
    """Whether no root file system, not even a part of one, is left."""
    return not list(pod.state.rglob("root-*"))


def create(pod: RunningPod, registry: str = "", **more: Any) -> Any:
    """Ask for the container `app`, from a registry of the host's choice."""
    return pod.host.call("create", container="c1", name="app", registry=registry or pod.registry, **more)


class Repository:
    """A repository of the owner's registry, as whoever may write there uses it.

    Args:
        world: whose registry.
        name: as signatures name it.
    """

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self._reference = OCIReference(
            registry=f"127.0.0.1:{world.registry.port}", repository=name.removeprefix("cloister.local/")
        )

    @contextlib.contextmanager
    def open(self) -> Iterator[RegistryClient]:
        with contextlib.closing(HTTPTransport()) as transport:
            yield RegistryClient(transport, self._reference, plain_http=True, other_origins=False)

    def manifest(self, selector: Digest | str) -> bytes:
        with self.open() as client:
            return read_manifest(client, selector).raw

    def document(self, digest: Digest) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.manifest(digest))
        return found

    def blob(self, descriptor: dict[str, Any]) -> bytes:
        wanted = Descriptor(
            media_type=descriptor["mediaType"], digest=parse_digest(descriptor["digest"]), size=descriptor["size"]
        )
        with self.open() as client:
            return b"".join(client.stream_blob(wanted))

    def put_blob(self, content: bytes) -> dict[str, Any]:
        with self.open() as client:
            digest, size = client.write_blob([content])
        return {"digest": str(digest), "size": size}

    def publish(
        self, document: dict[str, Any], *, signer: ECDSAP256Signer | None, repository: str | None = None
    ) -> Digest:
        """Store a manifest and, with a signer, its signature for `repository`."""
        with self.open() as client:
            digest = client.write_manifest(json.dumps(document).encode(), OCI_MANIFEST, "altered")
            if signer is not None:
                sign_image(client, digest, signer, repository=repository or self.name)
        return digest


def altered(
    world: World, image: SealedReference, change: Callable[[Repository, dict[str, Any]], None]
) -> tuple[str, Repository]:
    """Return the digest of a changed manifest under a good signature: what a stolen signing key could make."""
    repository = Repository(world, image.repository)
    document = repository.document(image.digest)
    change(repository, document)
    return str(repository.publish(document, signer=world.owner.signer())), repository


def policy_for(world: World, image: SealedReference, digest: str, **fields: Any) -> PodPolicy:
    """Return a policy that runs `echo ran` from the manifest `digest`."""
    container = world.container(image, image_digest=digest, command=("sh", "-c", "echo ran"), **fields)
    return world.several(container)


def approved(world: World, policy: PodPolicy, image: SealedReference, *more: ResourcePath) -> InitData:
    """Return init data that may have the keys of `image`."""
    init_data = world.init_data(policy)
    world.approve(init_data, (*image.kek, STREAM_KEY, *more))
    return init_data
