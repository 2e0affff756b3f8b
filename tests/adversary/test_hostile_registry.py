"""A registry that serves other bytes than were asked for. Each lie is refused; the same pod then runs from an honest
answer, so that the refusal was the lie's."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest

from adversary.expect import refusal_of
from adversary.pods import Repository, create, nothing_unpacked, running
from cloister.guest.images import parse_registry
from cloister.oci.digest import parse_digest
from cloister.oci.signing.simplesigning import signature_tag
from cloister.oci.transport import HTTPTransport
from cloister.sdk.owner import SealedReference
from cloister.testing import evilregistry as evil
from guest_world import ProcessPod, World

pytestmark = pytest.mark.tool

Lying = Callable[[dict[str, Any], str, str], evil.Lie]  # manifest of the image, its digest, manifest of another image


def finishes(pod: ProcessPod) -> None:
    """The baseline: from the honest registry the container runs."""
    assert pod.run() == (0, b"ran\n", b"")


def of_layer(make: Callable[[str], evil.Lie]) -> Lying:
    return lambda document, digest, other: make(document["layers"][-1]["digest"])


def of_config(make: Callable[[str], evil.Lie]) -> Lying:
    return lambda document, digest, other: make(document["config"]["digest"])


def of_manifest(make: Callable[[str], evil.Lie]) -> Lying:
    return lambda document, digest, other: make(digest)


SWAPS: dict[str, tuple[Lying, str]] = {
    "another image's manifest": (
        lambda document, digest, other: evil.other_bytes(digest, other.encode()),
        "oci.distribution.digest_mismatch",
    ),
    "manifest with one bit flipped": (of_manifest(evil.flipped), "oci.distribution.digest_mismatch"),
    "endless manifest": (of_manifest(evil.endless), "oci.distribution.manifest_too_long"),
    "no manifest": (of_manifest(evil.absent), "oci.distribution.manifest_missing"),
    "configuration with one bit flipped": (of_config(evil.flipped), "oci.distribution.digest_mismatch"),
    "endless configuration": (of_config(evil.endless), "oci.distribution.size_mismatch"),
    "layer with its last byte flipped": (of_layer(evil.flipped), "oci.distribution.digest_mismatch"),
    "layer cut short": (
        of_layer(lambda digest: evil.truncated(digest, 7, declared=False)),
        "oci.distribution.size_mismatch",
    ),
    "layer broken off": (
        of_layer(lambda digest: evil.truncated(digest, 7, declared=True)),
        "oci.transport.interrupted",
    ),
    "endless layer": (of_layer(evil.endless), "oci.distribution.size_mismatch"),
    "no layer": (of_layer(evil.absent), "oci.distribution.blob_missing"),
    "redirect to the pod's own secrets": (
        of_layer(lambda digest: evil.redirected(digest, "http://127.0.0.1:8006/cdh/resource/default/model/one")),
        "oci.distribution.other_origin",
    ),
    "redirect to a metadata service": (
        of_manifest(lambda digest: evil.redirected(digest, "http://169.254.169.254/latest/")),
        "oci.distribution.other_origin",
    ),
}


@pytest.mark.parametrize("lie", SWAPS)
def test_other_bytes_for_a_digest_are_refused(
    world: World, busybox: SealedReference, layered: SealedReference, lie: str
) -> None:
    repository = Repository(world, busybox.repository)
    other = Repository(world, layered.repository).manifest(layered.digest)
    make, code = SWAPS[lie]
    policy = world.policy(busybox, "sh", "-c", "echo ran")
    told = make(repository.document(busybox.digest), str(busybox.digest), other.decode())
    with evil.EvilRegistry(world.registry.port, [told]) as registry, running(world, policy, busybox) as pod:
        refusal_of(code, create, pod, registry.url)
        assert nothing_unpacked(pod)
        registry.lies.clear()
        pod.registry = registry.url
        finishes(pod)


@pytest.mark.parametrize("lie", ["another image's signature", "no signature"])
def test_other_content_under_the_signature_tag_is_refused(
    world: World, busybox: SealedReference, layered: SealedReference, lie: str
) -> None:
    tag = signature_tag(busybox.digest)
    foreign = Repository(world, layered.repository).manifest(signature_tag(layered.digest))
    told, code = {
        "another image's signature": (evil.other_bytes(tag, foreign), "oci.signing.no_valid_signature"),
        "no signature": (evil.absent(tag), "oci.signing.unsigned"),
    }[lie]
    policy = world.policy(busybox, "sh", "-c", "echo ran")
    with evil.EvilRegistry(world.registry.port, [told]) as registry, running(world, policy, busybox) as pod:
        refusal_of(code, create, pod, registry.url)
        assert nothing_unpacked(pod)
        finishes(pod)


def test_the_second_answer_differs_from_the_first(world: World, busybox: SealedReference) -> None:
    """Honest when the first container is made, lying for the second, which is of the same image."""
    first = world.container(busybox, "app", command=("sh", "-c", "echo ran"))
    second = world.container(busybox, "second", command=("sh", "-c", "echo ran"))
    lie = evil.later(evil.flipped(str(busybox.digest)))
    with (
        evil.EvilRegistry(world.registry.port, [lie]) as registry,
        running(world, world.several(first, second), busybox) as pod,
    ):
        pod.registry = registry.url
        finishes(pod)
        assert registry.asked[str(busybox.digest)] == 1, "verified bytes are used, never fetched again"
        refusal_of("oci.distribution.digest_mismatch", pod.create, "second", "c2")


def test_a_silent_registry_holds_up_nothing_else(world: World, busybox: SealedReference) -> None:
    layer = Repository(world, busybox.repository).document(busybox.digest)["layers"][0]["digest"]
    policy = world.policy(busybox, "sh", "-c", "echo ran")
    with (
        evil.EvilRegistry(world.registry.port, [evil.silent(layer, 120)]) as registry,
        running(world, policy, busybox) as pod,
    ):
        pod.host.begin("create", container="c1", name="app", registry=registry.url)
        deadline = time.monotonic() + 20
        while not registry.asked[layer]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        begun = time.monotonic()
        assert pod.host.call("info").pod == "test-pod"
        refusal_of("podpolicy.unknown_container", pod.host.call, "state", container="c1")
        assert time.monotonic() - begun < 5
        pod.host.call("shutdown")
        assert pod.process.wait(20) == 0


# --- the registry's address ----------------------------------------------------------------------------------------

NO_REGISTRY = [
    "",
    "http://",
    "ftp://10.0.2.2",
    "file:///etc/passwd",
    "gopher://10.0.2.2:70",
    "unix:///run/x",
    "http://user:password@10.0.2.2:5000",
    "http://10.0.2.2:5000/path",
    "http://10.0.2.2:5000?x",
    "http://10.0.2.2:5000#x",
    "http://10.0.2.2 GET",
    "http://10.0.2.2\r\nHost: x",
    "http://169.254.169.254",
    "http://169.254.169.254:80",
    "http://0xa9fea9fe",
    "http://2852039166",
    "http://169.254.43518",
    "http://224.0.0.1",
]
INSIDE = [
    "http://localhost:8006",
    "http://LOCALHOST:8006",
    "http://localhost.:8006",
    "http://127.0.0.1:8006",
    "http://127.1:8006",
    "http://127.0.0.2:8006",
    "http://0.0.0.0:8006",
    "http://0:8006",
    "http://2130706433:8006",
    "http://0x7f000001:8006",
    "http://0x7f.1:8006",
    "http://017700000001:8006",
    "http://0177.0.0.1:8006",
    "http://[::1]:8006",
    "http://[::ffff:127.0.0.1]:8006",
    "http://[::]:8006",
]


@pytest.mark.parametrize("address", NO_REGISTRY)
@pytest.mark.parametrize("in_vm", [True, False])
def test_an_address_that_is_no_registry_is_refused(address: str, in_vm: bool) -> None:
    refusal_of("guest.images.registry", parse_registry, address, allow_loopback=not in_vm)
    assert parse_registry("http://10.0.2.2:5000", allow_loopback=not in_vm).host == "10.0.2.2:5000"
    assert parse_registry("https://registry.example:5000", allow_loopback=not in_vm).plain_http is False


@pytest.mark.parametrize("address", INSIDE)
def test_an_address_inside_the_pod_is_refused_in_a_vm(address: str) -> None:
    refusal_of("guest.images.registry", parse_registry, address, allow_loopback=False)


def test_a_pod_refuses_an_address_and_runs_from_another(world: World, busybox: SealedReference) -> None:
    with running(world, world.policy(busybox, "sh", "-c", "echo ran"), busybox) as pod:
        for address in ("http://u:p@127.0.0.1:1", "file:///etc/passwd", "http://169.254.169.254"):
            refusal_of("guest.images.registry", create, pod, address)
        finishes(pod)


def test_no_name_leads_back_into_the_pod(world: World) -> None:
    """What no spelling can be checked for is checked once connected."""
    for name in ("localhost", "127.0.0.1"):
        url = f"http://{name}:{world.registry.port}/v2/"
        with contextlib.closing(HTTPTransport(forbid_self=True)) as inside:
            refusal_of("oci.transport.own_address", inside.open, "GET", url, {})
        with contextlib.closing(HTTPTransport()) as outside:
            answer = outside.open("GET", url, {})
            assert answer.status == 200
            answer.close()


# --- the owner's side, which may ask by tag ------------------------------------------------------------------------


def test_a_tag_that_moves_between_two_requests_is_asked_once(
    world: World, busybox: SealedReference, busybox_layout: str
) -> None:
    digest, _ = world.publish_plain(busybox_layout)
    other = Repository(world, busybox.repository).manifest(busybox.digest)
    lie = evil.later(evil.other_bytes("v1", other))
    with evil.EvilRegistry(world.registry.port, [lie]) as registry:
        sealed = world.seal(f"docker://127.0.0.1:{registry.port}/plain:v1")
        assert str(sealed.source_digest) == digest
        assert registry.asked["v1"] == 1


@pytest.mark.parametrize("what", ["manifest", "config", "layer"])
def test_other_bytes_are_not_sealed(world: World, layered_layout: str, what: str) -> None:
    plain = Repository(world, "plain")
    document = plain.document(parse_digest(world.publish_plain(layered_layout)[0]))
    document["annotations"] = {"test": what}  # else it was sealed before, and nothing would be fetched
    digest = str(plain.publish(document, signer=None))
    victim = {"manifest": digest, "config": document["config"]["digest"], "layer": document["layers"][-1]["digest"]}
    location = "docker://127.0.0.1:{}/plain@" + digest
    with evil.EvilRegistry(world.registry.port, [evil.flipped(victim[what])]) as registry:
        refusal_of("oci.distribution.digest_mismatch", world.seal, location.format(registry.port))
        registry.lies.clear()
        assert str(world.seal(location.format(registry.port)).source_digest) == digest
