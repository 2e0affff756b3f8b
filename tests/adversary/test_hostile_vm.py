"""The same attacks against a real pod VM: QEMU, a software TPM, the measured image, the real trust service.

What is booted otherwise than the owner expects attests truthfully and gets nothing; the owner's explanation names the
part that differs. One honest machine takes all attacks on a running pod, and at the end still does what it may.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from adversary.expect import refusal_of, require_fix
from adversary.pods import create
from cloister.cli.demo import hostile
from cloister.host.vmm.spec import Backend, Bundle, VMSpec
from cloister.host.vtpm import VTPMAuthority, VTPMPool
from cloister.imagetool.podvm import PodVMBundle
from cloister.oci.dmverity import BLOCK_BYTES, build_verity_tree
from cloister.protocol import guestapi
from cloister.protocol.initdata import InitData
from cloister.sdk.bundle import build_bundle
from cloister.sdk.home import Home
from cloister.sdk.owner import SealedReference
from cloister.sdk.run import DEFAULT_SHAPE, Environment
from cloister.testing import evilregistry as evil
from cloister.testing.hostilehost import hostile_frames
from cloister.trust.store.records import DenialRecord
from guest_world import STREAM_KEY, VMPod, World

pytestmark = pytest.mark.vm

FOREVER = ("sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done")
LEASE_SECONDS = 9


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> PodVMBundle:
    """The pod-VM image of these sources, from the shared cache."""
    cache = Path(os.environ.get("CLOISTER_CACHE") or Path.home() / ".cache/cloister")
    return build_bundle(Home(root=tmp_path_factory.mktemp("no-state"), cache=cache))


@contextmanager
def booted(
    world: World,
    bundle: PodVMBundle,
    init_data: InitData,
    change: Callable[[VMSpec], VMSpec] | None = None,
    vtpms: VTPMPool | None = None,
) -> Iterator[VMPod]:
    pod = world.vm_pod(init_data, bundle, change=change, vtpms=vtpms)
    try:
        yield pod
    finally:
        pod.end()


def denial(world: World, pod: VMPod, code: str) -> DenialRecord:
    """Fail unless the pod ended because the trust service refused with `code`; return what the owner reads."""
    failed = pod.host.event(guestapi.FailedEvent).error
    assert failed["code"] == code, failed
    require_fix(code)
    with world.owner.admin() as admin:
        return admin.get_denial(failed["path"])


# --- another machine -----------------------------------------------------------------------------------------------


def write(place: Path, content: bytes) -> Path:
    place.write_bytes(content)
    return place


def kernel_line(files: Bundle, place: Path) -> Bundle:
    return replace(files, cmdline=f"{files.cmdline} init=/bin/sh")


def kernel(files: Bundle, place: Path) -> Bundle:
    """Bytes behind the end, which no boot loader looks at."""
    return replace(files, kernel=write(place / "kernel", files.kernel.read_bytes() + b"other"))


def initrd(files: Bundle, place: Path) -> Bundle:
    """Padding, which the kernel skips: the smallest change there is."""
    return replace(files, initrd=write(place / "initrd", files.initrd.read_bytes() + bytes(4)))


def firmware(files: Bundle, place: Path) -> Bundle:
    """A letter in the text that the firmware greets with."""
    content = files.bios.read_bytes()
    assert b"SeaBIOS (version" in content
    return replace(files, bios=write(place / "bios", content.replace(b"SeaBIOS (version", b"EvilBIO (version", 1)))


def root(files: Bundle, place: Path) -> Bundle:
    """Another root file system under a root hash of its own, which the kernel line then names."""
    word = next(word for word in files.cmdline.split() if word.startswith("cloister.verity="))
    blocks, _, salt = word.partition("=")[2].split(":")
    data = bytearray(files.root.read_bytes()[: int(blocks) * BLOCK_BYTES])
    data[0] ^= 0x01  # before the superblock, where nobody looks
    tree = build_verity_tree(bytes(data), salt=bytes.fromhex(salt))
    return replace(
        files,
        root=write(place / "root", bytes(data) + tree.hashes),
        cmdline=files.cmdline.replace(word, f"cloister.verity={tree.kernel_argument()}"),
    )


MACHINES: dict[str, tuple[Callable[[Bundle, Path], Bundle], str]] = {
    "kernel line": (kernel_line, "cmdline"),
    "kernel": (kernel, "kernel"),
    "initrd": (initrd, "initrd"),
    "firmware": (firmware, "firmware"),
    "root hash": (root, "cmdline"),
}


def changed(tmp_path: Path, how: Callable[[Bundle, Path], Bundle]) -> Callable[[VMSpec], VMSpec]:
    return lambda spec: replace(spec, bundle=how(spec.require_bundle(), tmp_path))


@pytest.mark.parametrize("what", MACHINES)
def test_another_machine_gets_no_key(
    world: World, busybox: SealedReference, bundle: PodVMBundle, tmp_path: Path, what: str
) -> None:
    how, part = MACHINES[what]
    init_data = world.prepare(world.policy(busybox, "sh", "-c", "echo never"), busybox, host="10.0.2.2")
    with booted(world, bundle, init_data, changed(tmp_path, how)) as pod:
        record = denial(world, pod, "appraisal.reference_values.pcr00")
        assert record.init_data == init_data.digest_text
        failed = next(finding for finding in record.findings if finding.code == record.code)
        assert pod.vm.launch is not None
        assert pod.vm.launch.pcr0_seabios().hex().startswith(failed.actual.rstrip("."))
        owner = Environment(world.owner.home, tmp_path, Backend.SEABIOS, DEFAULT_SHAPE, lambda *_: None)
        owner.bundle = bundle
        assert owner.launch_changes(pod.vm.launch) == [part]


def other_disk(files: Bundle, place: Path) -> Bundle:
    return replace(files, root=root(files, place).root)


def flipped_disk(files: Bundle, place: Path) -> Bundle:
    content = bytearray(files.root.read_bytes())
    content[0] ^= 0x01
    return replace(files, root=write(place / "root", bytes(content)))


@pytest.mark.parametrize("how", [other_disk, flipped_disk], ids=["whole tree", "one bit"])
def test_another_root_disk_under_the_same_root_hash_runs_nothing(
    world: World,
    busybox: SealedReference,
    bundle: PodVMBundle,
    tmp_path: Path,
    how: Callable[[Bundle, Path], Bundle],
) -> None:
    init_data = world.prepare(world.policy(busybox, "sh", "-c", "echo never"), busybox, host="10.0.2.2")
    pod = world.boot(init_data, bundle, change=changed(tmp_path, how))
    try:
        ended = pod.vm.wait(90)
        assert ended is not None
        refusal_of("host.vm.verity_panic", ended.require_clean)
        assert not pod.host.arrived(guestapi.HelloEvent)
    finally:
        pod.end()


def test_other_init_data_gets_no_key(world: World, busybox: SealedReference, bundle: PodVMBundle) -> None:
    """The policy of an approved pod with one word more, in genuine init data that nobody approved."""
    world.prepare(world.policy(busybox, "sh", "-c", "echo approved"), busybox, host="10.0.2.2")
    other = world.init_data(world.policy(busybox, "sh", "-c", "echo approved; env"), host="10.0.2.2")
    with booted(world, bundle, other) as pod:
        record = denial(world, pod, "trust.release.init_data")
        assert (record.init_data, record.resource) == (other.digest_text, str(STREAM_KEY))


def test_a_tpm_with_a_foreign_ek_is_refused(
    world: World, busybox: SealedReference, bundle: PodVMBundle, tmp_path: Path
) -> None:
    """Genuine files, genuine init data; the TPM was made by somebody else's CA of the same name."""
    foreign = VTPMPool(VTPMAuthority(tmp_path / "ca"), tmp_path / "pool", ahead=0)
    init_data = world.prepare(world.policy(busybox, "sh", "-c", "echo never"), busybox, host="10.0.2.2")
    with booted(world, bundle, init_data, vtpms=foreign) as pod:
        record = denial(world, pod, "tee.tpm.ek_certificate.untrusted")
        assert record.stage == "attest"


def test_a_revoked_pod_stops_within_its_lease(world: World, busybox: SealedReference, bundle: PodVMBundle) -> None:
    policy = structs.replace(world.policy(busybox, "sh", "-c", "echo up; sleep 1000"), lease_seconds=LEASE_SECONDS)
    with booted(world, bundle, world.prepare(policy, busybox, host="10.0.2.2")) as pod:
        streams = create(pod)
        pod.host.call("start", container="c1")
        pod.host.wait_output(streams.stdout)
        with world.owner.admin() as admin:
            admin.revoke(pod.init_data.digest_text)
        revoked = time.monotonic()
        denial(world, pod, "trust.release.revoked")
        assert time.monotonic() - revoked < LEASE_SECONDS + 1
        ended = pod.vm.wait(30)
        assert ended is not None


# --- a running pod -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pod(world: World, busybox: SealedReference, layered: SealedReference, bundle: PodVMBundle) -> Iterator[VMPod]:
    """A machine with one running container, `stay`, and one, `app`, whose image key is approved for another pod only.

    Once the key is approved for this pod as well, `app` runs: what refused it before was that, and nothing was broken.
    """
    script = ("sh", "-c", "echo ran")
    policy = world.several(
        world.container(busybox, "stay", command=FOREVER),
        world.container(layered, "app", command=script, cwd="/", user="0"),
    )
    init_data = world.init_data(policy, host="10.0.2.2")
    world.approve(init_data, (*busybox.kek, STREAM_KEY))
    world.prepare(world.policy(layered), layered, host="10.0.2.2")  # the other pod
    with booted(world, bundle, init_data) as made:
        made.create("stay", "c0")
        made.host.call("start", container="c0")
        yield made
        assert made.host.call("state", container="c0").status == "running"
        world.approve(init_data, layered.kek)
        assert made.run("app", "c1") == (0, b"ran\n", b"")


def test_no_frame_outside_the_schema_does_anything(pod: VMPod) -> None:
    frames = list(hostile_frames("c0", "app", pod.registry))
    for frame in frames:
        pod.host.send(frame.body)
    wrong = [frame.what for frame in frames if pod.host.finish(frame.id).error.get("code") != frame.code]
    assert len(frames) > 300
    assert wrong == []
    assert pod.host.call("state", container="c0").status == "running"


def test_an_extra_container_is_refused(pod: VMPod) -> None:
    refusal_of("podpolicy.create.undeclared", pod.create, "sidecar", "c9")


def test_a_container_is_created_and_started_once(pod: VMPod) -> None:
    refusal_of("podpolicy.create.twice", pod.create, "stay", "c9")
    refusal_of("podpolicy.create.identifier", pod.create, "app", "c0")
    refusal_of("podpolicy.start.twice", pod.host.call, "start", container="c0")


def test_exec_told_by_the_host_is_refused(pod: VMPod) -> None:
    refusal_of("podpolicy.exec", pod.host.call, "exec", container="c0", exec="e1", args=["cat", "/proc/1/environ"])


def test_injected_environment_is_refused(pod: VMPod) -> None:
    claim = {
        "args": ["sh", "-c", "echo ran"],
        "env": ["PATH=/bin", "APP_MODE=layered", "LD_PRELOAD=/tmp/steal.so"],
        "cwd": "/",
        "user": "0",
    }
    refusal_of("podpolicy.claim.env", create, pod, claim=claim)


def test_the_key_of_another_pod_is_refused(world: World, pod: VMPod, layered: SealedReference) -> None:
    error = refusal_of("trust.release.init_data", create, pod)
    with world.owner.admin() as admin:
        assert admin.get_denial(error.path).resource == str(layered.kek[0])


def test_other_bytes_from_the_registry_are_refused(world: World, pod: VMPod, layered: SealedReference) -> None:
    digest = str(layered.digest)
    with evil.EvilRegistry(world.registry.port, [evil.flipped(digest)]) as registry:
        refusal_of("oci.distribution.digest_mismatch", create, pod, f"http://10.0.2.2:{registry.port}")
        assert registry.asked[digest] > 0
    refusal_of("guest.images.registry", create, pod, "http://127.0.0.1:8006")


def test_recorded_evidence_is_refused(world: World, pod: VMPod) -> None:
    """The genuine evidence of this machine, presented by its host as if it were a guest."""
    pod.host.event(guestapi.ReadyEvent)
    with world.owner.admin() as admin:
        rows = admin.list_audit(init_data=pod.init_data.digest_text)
        recorded = next(found for row in rows if row.attestation and (found := admin.get_evidence(row.attestation)))
    assert json.loads(recorded)["tpm_quote"]
    text = pod.init_data.text.decode()
    refusal_of("tee.tpm.activation_mismatch", hostile.replay, world.broker("127.0.0.1"), "tpm", text, recorded)
