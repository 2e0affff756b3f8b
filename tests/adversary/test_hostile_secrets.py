"""Sealed secrets and secret files with a real agent and key broker: the container has all of them, or is not made."""

from __future__ import annotations

import json

import pytest

from adversary.expect import refusal_of
from adversary.pods import create, nothing_unpacked, running
from cloister.crypto.jwt import public_jwk
from cloister.crypto.sealedsecret import seal_envelope_secret, seal_vault_secret
from cloister.crypto.signer import ECDSAP256Signer
from cloister.protocol.resourceuri import ResourcePath
from cloister.sdk.owner import SealedReference
from guest_world import World

pytestmark = pytest.mark.tool

KEY = ResourcePath("default", "sealing-key", "app")
PASSWORD = ResourcePath("default", "password", "app")
KEK = ResourcePath("default", "secret-kek", "app")
CANARY = "canary-of-a-sealed-secret"


@pytest.fixture
def signer(world: World) -> ECDSAP256Signer:
    signer = ECDSAP256Signer.generate()
    with world.owner.admin() as admin:
        admin.put_resource(KEY, json.dumps(public_jwk(signer.public_key)).encode())
        admin.put_resource(PASSWORD, CANARY.encode())
        admin.put_resource(KEK, bytes(range(32)))
    return signer


def test_secrets_are_in_place_before_the_first_process(
    world: World, busybox: SealedReference, signer: ECDSAP256Signer
) -> None:
    vault = seal_vault_secret(PASSWORD, signer, kid=KEY.uri)
    carried = seal_envelope_secret(b"carried", signer, kid=KEY.uri, key_id=KEK, kek=bytes(range(32)))
    script = "echo $A $B; cat /run/secrets/db /run/secrets/own; stat -c %a /run/secrets/db"
    policy = world.policy(
        busybox,
        "sh",
        "-c",
        script,
        env={"A": vault, "B": carried},
        files={"/run/secrets/db": vault, "/run/secrets/own": PASSWORD.uri},
        sealing_keys={KEY.uri: ""},
        unseal=(PASSWORD, KEK),
    )
    with running(world, policy, busybox, KEY, PASSWORD, KEK) as pod:
        assert pod.run() == (0, f"{CANARY} carried\n{CANARY}{CANARY}400\n".encode(), b"")
        assert CANARY not in pod.console + repr(pod.host.events)


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("another signer", "crypto.sealed.bad_signature"),
        ("a key the policy does not name", "podpolicy.unseal.key"),
        ("a resource the policy does not name", "podpolicy.unseal.resource"),
        ("no sealed secret at all", "crypto.sealed.malformed"),
        ("what the broker does not release", "trust.release.init_data"),
    ],
)
@pytest.mark.parametrize("place", ["variable", "file"])
def test_a_secret_that_fails_leaves_no_container(
    world: World, busybox: SealedReference, signer: ECDSAP256Signer, place: str, what: str, code: str
) -> None:
    """In CoCo the workload would start with the sealed text where it expects its secret."""
    seals = signer if what != "another signer" else ECDSAP256Signer.generate()
    text = seal_vault_secret(PASSWORD, seals, kid=KEY.uri if "key" not in what else "kbs:///default/sealing-key/x")
    if what == "no sealed secret at all":
        text = "sealed.secret"
    policy = world.policy(
        busybox,
        "sh",
        "-c",
        "echo ran",
        env={"A": text} if place == "variable" else {},
        files={"/run/secrets/db": text} if place == "file" else {},
        sealing_keys={KEY.uri: ""},
        unseal=() if "resource" in what else (PASSWORD,),
    )
    released = (KEY,) if "broker" in what else (KEY, PASSWORD)
    if "broker" in what:  # it is another pod's
        other = world.policy(busybox, "true", sealing_keys={KEY.uri: ""}, unseal=(PASSWORD,))
        world.prepare(other, busybox, KEY, PASSWORD)
    with running(world, policy, busybox, *released) as pod:
        error = refusal_of(code, create, pod)
        assert CANARY not in repr(error.as_dict())
        assert nothing_unpacked(pod)
