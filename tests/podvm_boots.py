"""Boot a pod VM up to its attestation and return the evidence that the trust service stored of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cloister.errors import CloisterError, Unavailable
from cloister.host.vmm.backends import Places, launcher_for
from cloister.host.vmm.spec import Accelerator, Backend, Bundle, VMSpec
from cloister.imagetool.podvm import Shape
from cloister.podpolicy.model import ContainerPolicy, PodPolicy, StreamsPolicy
from cloister.sdk.session import PodSession
from guest_world import STREAM_KEY, World

BOOTS = 3  # QEMU 7.2 crashes a guest kernel with several processors in one of 25 boots
NO_WORD = ("host.", "sdk.session.")  # the machine crashed, or hangs: nothing that the guest or the broker said
CONSOLE_CHARS = 4000


@dataclass(frozen=True)
class Booted:
    """What came of a boot: the evidence, or why there is none; and the launch statement that was measured."""

    evidence: bytes | CloisterError
    launch: bytes = b""


def boot_once(
    world: World, name: str, backend: Backend, files: Bundle, shape: Shape, *, scratch_mib: int = 0
) -> Booted:
    """Boot `files` on a machine of `shape`; a machine that crashed or hangs is booted again.

    Whether the trust service accepts the evidence does not matter here: it stores what it judges.
    """
    container = ContainerPolicy(
        name="app",
        kind="app",
        image_digest=f"sha256:{'0' * 64}",
        repository="none",
        signature_keys=(world.signature_key,),
    )
    policy = PodPolicy(pod=name, containers=(container,), streams=StreamsPolicy(mode="sealed", key=STREAM_KEY))
    init_data = world.init_data(policy, host="10.0.2.2")
    world.approve(init_data, [STREAM_KEY])
    home = world.owner.home
    places = Places(vtpm_ca=home.vtpm_ca, vtpm_pool=home.vtpm_pool, simulation_key=world.key_file, cache=home.cache)
    error: CloisterError = Unavailable("test.no_boot", "no boot")
    launch = b""
    for attempt in range(BOOTS):
        spec = VMSpec(
            name=name,
            work=Path(world.directory) / f"{name}-{attempt}",
            initdata=init_data.text,
            bundle=files,
            vcpus=shape.vcpus,
            memory_mib=shape.memory_mib,
            scratch_mib=scratch_mib,
            accelerator=Accelerator.TCG,
        )
        try:
            with launcher_for(backend, places).launch(spec) as machine, PodSession(machine) as session:
                launch = machine.launch.blob() if machine.launch else b""
                session.wait_ready()
        except CloisterError as err:
            error = err
            if not err.code.startswith(NO_WORD):
                break
            print(f"{name}: boot {attempt + 1} of {BOOTS}: {err}\n{_console(spec.work)}")  # pytest shows it on failure
        else:
            break
    with world.owner.admin() as admin:
        rows = [row for row in admin.list_audit(init_data=init_data.digest_text) if row.attestation]
        evidence = admin.get_evidence(rows[-1].attestation) if rows else None
    return Booted(evidence=evidence or error, launch=launch)


def _console(work: Path) -> str:
    logs = sorted(work.glob("*.log"))
    return "\n".join(f"{log.name}: {log.read_text('utf-8', 'replace')[-CONSOLE_CHARS:]}" for log in logs)
