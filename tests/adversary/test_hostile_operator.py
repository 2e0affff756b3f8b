"""Whoever operates the machine, while a pod runs: reads what lies and passes there, keeps a revoked pod alive.

Memory of the agent is not searched: at the simulated level it is the machine's own.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from adversary.expect import require_fix
from adversary.pods import Repository, create, running, started
from cloister.cli.demo.hostile import search_at_rest
from cloister.oci.digest import parse_digest
from cloister.podpolicy.model import PodPolicy
from cloister.protocol import guestapi
from cloister.protocol.resourceuri import ResourcePath
from cloister.rats.claims import Level
from cloister.sdk.owner import SealedReference
from cloister.trust.keybroker.policy import ReleaseRule, encode_release_rule
from guest_world import STREAM_KEY, ProcessPod, World

pytestmark = pytest.mark.tool

LEASE_SECONDS = 6
CANARY = b"canary-of-the-operator-90d1"
IN_THE_IMAGE = b"mode=$APP_MODE"  # of the script that `layered_image` holds


@pytest.fixture
def secret(world: World) -> Iterator[ResourcePath]:
    place = ResourcePath("default", "env", "operator")
    with world.owner.admin() as admin:
        admin.put_resource(place, json.dumps({"SECRET": CANARY.decode()}).encode())
    yield place


def test_nothing_that_lies_or_passes_on_the_machine_is_plain(
    world: World, layered: SealedReference, secret: ResourcePath
) -> None:
    """The same search does find the secret in the output once it is opened."""
    container = world.container(layered, command=("sh", "-c", "echo $SECRET"), env_resource=secret)
    policy = replace(world.policy(layered), containers=(container,))
    with running(world, policy, layered, secret) as pod:
        streams = create(pod)
        pod.host.call("start", container="c1")
        assert pod.host.call("wait", container="c1").status == 0
        assert pod.text(streams, "stdout") == CANARY + b"\n"
        passed = [payload for stream in pod.host.output.values() for payload in stream]
        assert passed
        assert not any(CANARY in payload for payload in passed)
        assert CANARY.decode() not in pod.console
        assert CANARY.decode() not in repr(pod.host.events)
        searched, found = search_at_rest((world.owner.home.root,), CANARY)
        assert searched > 10
        assert found == 0
        assert not any(CANARY in log.read_bytes() for log in world.directory.glob("*.log"))


def test_the_image_at_rest_is_ciphertext(world: World, layered: SealedReference, layered_layout: str) -> None:
    """Decompressed where that is possible, as whoever copies the registry would; the plain image is found so."""
    sealed = Repository(world, layered.repository)
    plain = Repository(world, "plain")
    contents = {
        name: [unpacked(repository.blob(layer)) for layer in repository.document(digest)["layers"]]
        for name, repository, digest in (
            ("sealed", sealed, layered.digest),
            ("plain", plain, parse_digest(world.publish_plain(layered_layout)[0])),
        )
    }
    assert len(contents["sealed"]) == len(contents["plain"]) == 4
    assert any(IN_THE_IMAGE in content for content in contents["plain"])
    assert not any(IN_THE_IMAGE in content for content in contents["sealed"])


def unpacked(content: bytes) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error):
        return content


def leased(world: World, image: SealedReference, script: str) -> PodPolicy:
    return replace(world.policy(image, "sh", "-c", script), lease_seconds=LEASE_SECONDS)


def stays(pod: ProcessPod) -> int:
    """Start its container; return the number of its process."""
    streams = create(pod)
    pid = pod.host.call("start", container="c1").pid
    pod.host.wait_output(streams.stdout)
    return int(pid)


def wait_for_renewal(world: World, pod: ProcessPod) -> None:
    """Wait until the stream key was released a second time to this pod."""
    deadline = time.monotonic() + LEASE_SECONDS
    while True:
        with world.owner.admin() as admin:
            rows = admin.list_audit(init_data=pod.init_data.digest_text)
        if [row.resource for row in rows].count(str(STREAM_KEY)) >= 2:
            return
        assert time.monotonic() < deadline, rows
        time.sleep(0.1)


def test_a_revoked_pod_stops_within_its_lease(world: World, busybox: SealedReference) -> None:
    with running(world, leased(world, busybox, "echo revoked; sleep 1000"), busybox) as pod:
        pid = stays(pod)
        wait_for_renewal(world, pod)
        assert pod.host.call("state", container="c1").status == "running", pod.host.events
        with world.owner.admin() as admin:
            admin.revoke(pod.init_data.digest_text)
        revoked = time.monotonic()
        failed = pod.host.event(guestapi.FailedEvent).error
        assert time.monotonic() - revoked < LEASE_SECONDS + 1
        assert failed["code"] == "trust.release.revoked"
        require_fix(failed["code"])
        assert pod.process.wait(20) == 1
        assert not Path(f"/proc/{pid}").exists()


def test_a_pod_whose_key_is_leased_by_the_broker_stops_within_that_lease(
    world: World, busybox: SealedReference, secret: ResourcePath
) -> None:
    """The pod policy has no lease; the owner's rule for one of its keys has."""
    container = world.container(busybox, command=("sh", "-c", "echo leased; sleep 1000"), env_resource=secret)
    policy = replace(world.policy(busybox), containers=(container,))
    init_data = world.prepare(policy, busybox)
    with world.owner.admin() as admin:
        rule = ReleaseRule(
            prefix=str(secret),
            init_data=(init_data.digest_text,),
            appraisal_policy="default",
            insecure_allow_levels=(Level.SIMULATED,),
            lease_seconds=LEASE_SECONDS,
        )
        admin.put_release_rule(str(secret), encode_release_rule(rule))
    with started(world, init_data) as pod:
        pid = stays(pod)
        time.sleep(LEASE_SECONDS + 1)  # longer than one lease: it was renewed
        assert pod.host.call("state", container="c1").status == "running", pod.host.events
        with world.owner.admin() as admin:
            admin.revoke(init_data.digest_text)
        revoked = time.monotonic()
        failed = pod.host.event(guestapi.FailedEvent).error
        assert time.monotonic() - revoked < LEASE_SECONDS + 1
        assert failed["code"] == "trust.release.revoked"
        assert pod.process.wait(20) == 1
        assert not Path(f"/proc/{pid}").exists()


def test_a_pod_cut_off_from_the_trust_service_stops_with_its_lease(world: World, busybox: SealedReference) -> None:
    """The host keeps the revocation from the pod by keeping everything from it: that ends the pod as well."""
    policy = leased(world, busybox, "echo cut off; sleep 1000")
    with running(world, policy, busybox) as pod:
        pid = stays(pod)
        os.kill(world.trust.child.pid, signal.SIGSTOP)
        stopped = time.monotonic()
        try:
            failed = pod.host.event(guestapi.FailedEvent).error
            assert time.monotonic() - stopped < LEASE_SECONDS + 1
            assert failed["code"] == "guest.lease.expired"
            require_fix(failed["code"])
            assert pod.process.wait(20) == 1
        finally:
            os.kill(world.trust.child.pid, signal.SIGCONT)
        assert not Path(f"/proc/{pid}").exists()
