"""Images that somebody altered who may write to the registry, in the worst case with a stolen signing key."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from adversary.expect import refusal_of, require_fix
from adversary.pods import Repository, altered, approved, create, nothing_unpacked, policy_for, running, started
from cloister.crypto.aead import seal_aes256gcm
from cloister.crypto.signer import ECDSAP256Signer
from cloister.oci.encryption.annotations import PROVIDER_KEYS, PUBLIC_OPTIONS
from cloister.oci.encryption.packet import parse_packet
from cloister.oci.manifest import OCI_CONFIG
from cloister.protocol.resourceuri import ResourcePath
from cloister.sdk.owner import SealedReference
from cloister.wire.base64 import decode_b64, encode_b64
from guest_world import World

pytestmark = pytest.mark.tool

Change = Callable[[Repository, dict[str, Any]], None]
# Published as the sample of the reference encryptor of this format, so everybody has it.
SAMPLE_KEK = bytes.fromhex("d99b7705b0ba7a168295b3a3367270b0dd9b371bf514ca8b9ba7f0a33711daea")


def annotated(repository: Repository, document: dict[str, Any]) -> None:
    document["annotations"] = {"org.example.note": "changes the digest and nothing else"}


def last_byte_flipped(repository: Repository, document: dict[str, Any]) -> None:
    layer = document["layers"][-1]
    content = bytearray(repository.blob(layer))
    content[-1] ^= 0x01
    layer.update(repository.put_blob(bytes(content)))


def packets_of_two_layers_exchanged(repository: Repository, document: dict[str, Any]) -> None:
    one, two = (layer["annotations"] for layer in document["layers"][:2])
    one[PROVIDER_KEYS], two[PROVIDER_KEYS] = two[PROVIDER_KEYS], one[PROVIDER_KEYS]


def layers_reordered(repository: Repository, document: dict[str, Any]) -> None:
    layers = document["layers"]
    layers[0], layers[1] = layers[1], layers[0]


def layer_left_out(repository: Repository, document: dict[str, Any]) -> None:
    document["layers"].pop()


def layer_repeated(repository: Repository, document: dict[str, Any]) -> None:
    document["layers"][1] = document["layers"][0]


def mac_of_another_layer(repository: Repository, document: dict[str, Any]) -> None:
    one, two = (layer["annotations"] for layer in document["layers"][:2])
    one[PUBLIC_OPTIONS] = two[PUBLIC_OPTIONS]


def layer_declared_plain(repository: Repository, document: dict[str, Any]) -> None:
    document["layers"][0]["mediaType"] = document["layers"][0]["mediaType"].removesuffix("+encrypted")


def packet_removed(repository: Repository, document: dict[str, Any]) -> None:
    del document["layers"][0]["annotations"][PROVIDER_KEYS]


def config_of_a_root_user(repository: Repository, document: dict[str, Any]) -> None:
    """A configuration that the signed manifest does not name is found by digest; here it names no layers."""
    raw = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}).encode()
    document["config"] = {"mediaType": OCI_CONFIG, **repository.put_blob(raw)}


CHANGES: dict[str, tuple[Change, str]] = {
    "last byte of a layer": (last_byte_flipped, "oci.encryption.mac_mismatch"),
    "packets of two layers exchanged": (packets_of_two_layers_exchanged, "oci.encryption.mac_mismatch"),
    "authentication tag of another layer": (mac_of_another_layer, "oci.encryption.mac_mismatch"),
    "layers reordered": (layers_reordered, "oci.layer.diff_id_mismatch"),
    "layer repeated": (layer_repeated, "oci.layer.diff_id_mismatch"),
    "layer left out": (layer_left_out, "oci.signing.layer_count"),
    "layer declared plain": (layer_declared_plain, "guest.images.not_encrypted"),
    "layer key removed": (packet_removed, "oci.encryption.no_recipient"),
    "configuration without layers": (config_of_a_root_user, "oci.signing.layer_count"),
}


def test_the_way_of_altering_images_is_none_itself(world: World, layered: SealedReference) -> None:
    """The baseline of all tests here: a manifest with another digest under a good signature runs."""
    digest, _ = altered(world, layered, annotated)
    with started(world, approved(world, policy_for(world, layered, digest), layered)) as pod:
        assert pod.run() == (0, b"ran\n", b"")


@pytest.mark.parametrize("change", CHANGES)
def test_altered_images_are_refused_even_when_signed(world: World, layered: SealedReference, change: str) -> None:
    alter, code = CHANGES[change]
    digest, _ = altered(world, layered, alter)
    with started(world, approved(world, policy_for(world, layered, digest), layered)) as pod:
        refusal_of(code, create, pod)
        assert nothing_unpacked(pod)


def test_a_layer_key_of_another_image_does_not_open_this_one(
    world: World, layered: SealedReference, busybox: SealedReference
) -> None:
    def graft(repository: Repository, document: dict[str, Any]) -> None:
        donor = Repository(world, busybox.repository).document(busybox.digest)
        document["layers"][0]["annotations"][PROVIDER_KEYS] = donor["layers"][0]["annotations"][PROVIDER_KEYS]

    digest, _ = altered(world, layered, graft)
    policy = policy_for(world, layered, digest)
    with started(world, approved(world, policy, layered, *busybox.kek)) as pod:
        refusal_of("oci.encryption.mac_mismatch", create, pod)
        assert nothing_unpacked(pod)


def test_a_layer_key_of_another_image_is_not_even_released(
    world: World, layered: SealedReference, busybox: SealedReference
) -> None:
    def graft(repository: Repository, document: dict[str, Any]) -> None:
        donor = Repository(world, busybox.repository).document(busybox.digest)
        document["layers"][0]["annotations"][PROVIDER_KEYS] = donor["layers"][0]["annotations"][PROVIDER_KEYS]
        document["annotations"] = {"test": "not the pod of the test before, which may have both keys"}

    approved(world, policy_for(world, busybox, str(busybox.digest)), busybox)  # the key has a rule, for another pod
    digest, _ = altered(world, layered, graft)
    with started(world, approved(world, policy_for(world, layered, digest), layered)) as pod:
        error = refusal_of("trust.release.init_data", create, pod)
        with world.owner.admin() as admin:
            record = admin.get_denial(error.path)
        assert record.resource == str(busybox.kek[0])
        assert nothing_unpacked(pod)


def test_the_published_sample_key_is_refused(world: World, layered: SealedReference) -> None:
    """Wrapped under the sample key, which the owner's broker even holds: everybody could open such an image."""
    sample = ResourcePath("default", "image-kek", "sample")
    with world.owner.admin() as admin:
        admin.put_resource(sample, SAMPLE_KEK)

    def rewrap(repository: Repository, document: dict[str, Any]) -> None:
        annotations = document["layers"][0]["annotations"]
        packet = json.loads(decode_b64(annotations[PROVIDER_KEYS], ceiling=8192))
        nonce = bytes(12)
        packet |= {
            "kid": sample.uri,
            "iv": encode_b64(nonce),
            "wrapped_data": encode_b64(seal_aes256gcm(SAMPLE_KEK, nonce, b'{"any":"options"}')),
        }
        assert parse_packet(json.dumps(packet).encode()).kek_path == sample
        annotations[PROVIDER_KEYS] = encode_b64(json.dumps(packet).encode())

    digest, _ = altered(world, layered, rewrap)
    with started(world, approved(world, policy_for(world, layered, digest), layered, sample)) as pod:
        refusal_of("oci.encryption.sample_kek", create, pod)
        assert nothing_unpacked(pod)


@pytest.mark.parametrize("signature", ["none", "foreign key", "other repository"])
def test_an_image_without_the_owners_signature_for_it_is_refused(
    world: World, layered: SealedReference, signature: str
) -> None:
    repository = Repository(world, layered.repository)
    document = repository.document(layered.digest)
    document["annotations"] = {"org.example.note": signature}
    signer = {"none": None, "foreign key": ECDSAP256Signer.generate(), "other repository": world.owner.signer()}
    name = "cloister.local/other" if signature == "other repository" else None
    digest = str(repository.publish(document, signer=signer[signature], repository=name))
    policy = policy_for(world, layered, digest)
    with started(world, approved(world, policy, layered)) as pod:
        code = "oci.signing.unsigned" if signature == "none" else "oci.signing.no_valid_signature"
        refusal_of(code, create, pod)
        assert nothing_unpacked(pod)
        repository.publish(document, signer=world.owner.signer())
        assert pod.run() == (0, b"ran\n", b"")


def test_a_signature_by_a_key_the_policy_does_not_name_is_refused(world: World, busybox: SealedReference) -> None:
    other = ECDSAP256Signer.generate().public_key.pem().decode()
    policy = policy_for(world, busybox, str(busybox.digest), signature_keys=(other,))
    with running(world, policy, busybox) as pod:
        refusal_of("oci.signing.no_valid_signature", create, pod)
    with running(world, policy_for(world, busybox, str(busybox.digest)), busybox) as pod:
        assert pod.run() == (0, b"ran\n", b"")


def test_an_image_that_is_not_encrypted_is_refused(world: World, busybox: SealedReference, busybox_layout: str) -> None:
    digest, repository = world.publish_plain(busybox_layout)
    policy = policy_for(world, busybox, digest, repository=repository)
    with started(world, approved(world, policy, busybox)) as pod:
        refusal_of("guest.images.not_encrypted", create, pod)
        assert nothing_unpacked(pod)


def test_an_older_image_of_the_same_owner_is_refused(world: World, layered: SealedReference) -> None:
    """Rollback: both are signed and their keys are the same; the policy names one digest."""
    older, repository = altered(world, layered, annotated)
    raw = repository.manifest(older)
    place = world.owner.home.registry / "blobs" / "sha256" / layered.digest.hex
    honest = place.read_bytes()
    policy = policy_for(world, layered, str(layered.digest))
    try:
        with started(world, approved(world, policy, layered)) as pod:
            place.write_bytes(raw)
            refusal_of("oci.distribution.digest_mismatch", create, pod)
            place.write_bytes(honest)
            assert pod.run() == (0, b"ran\n", b"")
    finally:
        place.write_bytes(honest)


def test_every_code_of_this_file_has_a_fix() -> None:
    for _, code in CHANGES.values():
        require_fix(code)
