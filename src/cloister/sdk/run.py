"""Run one pod from image to exit status: what `cloister run` does, as a library.

The order: pod-VM image; launch; services, seal, plan, and the owner's approval while the machine boots; its init data;
attestation; create and start; the streams, opened by the owner's key; exit status; withdrawal of the approval. Each
part is another module's; here is only who comes after whom, and the record.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final

import msgspec

from cloister.errors import CloisterError, Refused, Unavailable
from cloister.host.heldplace import HeldPlace
from cloister.host.vmm.backends import Places, launcher_for
from cloister.host.vmm.machine import RunningVM
from cloister.host.vmm.spec import Accelerator, Backend, PortForward, VMSpec
from cloister.host.vtpm import VTPMAuthority
from cloister.imagetool.podvm import PodVMBundle, Shape, reference_values
from cloister.podpolicy.model import encode_pod_policy
from cloister.protocol.initdata import BrokerAddress
from cloister.protocol.launch import LaunchMeasurement
from cloister.protocol.resourceuri import ResourcePath
from cloister.rats.claims import Level
from cloister.rats.endorsement import TrustedRoot
from cloister.rats.reference import ReferenceEntry
from cloister.sdk.abandoned import ApprovalClaim, withdraw_abandoned
from cloister.sdk.bundle import build_bundle, launch_files
from cloister.sdk.denial import explain_denial
from cloister.sdk.home import Home
from cloister.sdk.owner import APPRAISAL_POLICY, Owner, SealedReference, podvm_references
from cloister.sdk.plan import PodPlan, WorkloadRequest, plan_pod
from cloister.sdk.record import PhaseClock, RunRecord, new_run_id
from cloister.sdk.services import ServiceProcess, start_registry
from cloister.sdk.session import PodSession, ProcessStreams, Terminal
from cloister.sdk.simulation import simulation_references, simulation_roots
from cloister.sdk.trustservice import start_owners_service
from cloister.tee.tpm.endorsements import read_swtpm_roots

CONTAINER: Final = "app"
DEFAULT_SHAPE: Final = Shape(vcpus=2, memory_mib=512)
_BOOTS: Final = 3
_KERNEL_PANIC: Final = "host.vm.kernel_panic"

Step = Callable[[str, str, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What the user asked for.

    Attributes:
        image: `docker://REF`, `oci:PATH:TAG`, `oci-archive:`, `docker-archive:`, or a reference.
        workload: the process.
        ports: forwarded ports.
        backend: where to run; never changed silently.
        accelerator: how QEMU executes the guest.
        shape: virtual processors and memory.
        scratch_mib: size of the disk on which ciphertext of layers waits; 0 is none, and it waits in memory.
        name: pod name; derived from the run id when empty.
        lease_seconds: how long the pod may run on one attestation; 0 is no lease.
        keep_approval: leave the pod's approval in force after its end.
    """

    image: str
    workload: WorkloadRequest = field(default_factory=WorkloadRequest)
    ports: tuple[PortForward, ...] = ()
    backend: Backend = Backend.SEABIOS
    accelerator: Accelerator = Accelerator.AUTO
    shape: Shape = DEFAULT_SHAPE
    scratch_mib: int = 0
    name: str = ""
    lease_seconds: int = 0
    keep_approval: bool = False


class Environment:
    """The owner, the two services and the pod-VM image that runs on one machine share. Use in a `with` statement.

    Args:
        home: where state is kept.
        work: private directory for logs; the caller removes it.
        backend: decides which platform the owner believes.
        shape: of the pods that will be launched.
        step: told about progress: mark, text, detail.
        witnesses: names of witnesses to start, which must all cosign each release; without, those that the owner's
            trust service was last started with are asked again.
        scratch_mib: size of the pods' scratch disks; 0 is none.
    """

    def __init__(
        self,
        home: Home,
        work: Path,
        backend: Backend,
        shape: Shape,
        step: Step,
        *,
        witnesses: Sequence[str] = (),
        scratch_mib: int = 0,
    ) -> None:
        self.home = home
        self.work = work
        self.backend = backend
        self.shape = shape
        self.owner = Owner(home)
        self.step = step
        self._witnesses = tuple(witnesses)
        self._scratch_mib = scratch_mib
        self.bundle: PodVMBundle | None = None
        self._preparing = threading.Lock()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Environment:
        with self._stack:
            self._start()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def booting(
        self, name: str, *, ports: tuple[PortForward, ...] = (), accelerator: Accelerator = Accelerator.AUTO
    ) -> Iterator[concurrent.futures.Future[RunningVM]]:
        """Boot a pod that waits for its init data, in the background; it ends with the block.

        Needs no service, so it may begin before the environment does: booting takes longer than anything else.
        """
        with concurrent.futures.ThreadPoolExecutor(1, "boot") as pool:
            future = pool.submit(self._boot, name, None, ports, accelerator)
            try:
                yield future
            finally:
                if future.exception() is None:
                    future.result().terminate()

    def boot(
        self,
        name: str,
        init_data: bytes,
        *,
        ports: tuple[PortForward, ...] = (),
        accelerator: Accelerator = Accelerator.AUTO,
        change: Callable[[VMSpec], VMSpec] | None = None,
    ) -> RunningVM:
        """Boot a pod.

        Args:
            name: of the pod.
            init_data: what it will measure.
            ports: forwarded ports.
            accelerator: how QEMU executes the guest.
            change: alters what is launched: what a hostile host would do.
        """
        return self._boot(name, init_data, ports, accelerator, change)

    def _boot(
        self,
        name: str,
        init_data: bytes | None,
        ports: tuple[PortForward, ...],
        accelerator: Accelerator,
        change: Callable[[VMSpec], VMSpec] | None = None,
    ) -> RunningVM:
        bundle = self._prepared()
        spec = VMSpec(
            name=name,
            work=self.work / name,
            initdata=init_data,
            bundle=launch_files(bundle) if bundle else None,
            vcpus=self.shape.vcpus,
            memory_mib=self.shape.memory_mib,
            scratch_mib=self._scratch_mib,
            ports=ports,
            accelerator=accelerator,
        )
        return launcher_for(self.backend, self.places).launch(change(spec) if change else spec)

    @property
    def level(self) -> Level:
        """The level pods of this environment can prove."""
        return Level.SIMULATED if self.backend is Backend.PROCESS else Level.MEASURED

    @property
    def host_address(self) -> str:
        """How a pod addresses this machine."""
        return "127.0.0.1" if self.backend is Backend.PROCESS else "10.0.2.2"

    @property
    def broker(self) -> BrokerAddress:
        """The owner's key broker, as a pod of this environment reaches it."""
        return self.broker_at(self.host_address)

    def broker_at(self, host: str) -> BrokerAddress:
        """The owner's key broker under another of its addresses."""
        with self.owner.admin() as admin:
            ca_pem, log = admin.ca_pem(), admin.release_log_pins()
            return BrokerAddress(url=f"https://{host}:{self.trust.port}", ca_pem=ca_pem, release_log=log)

    @property
    def registry_url(self) -> str:
        """The embedded registry, as a pod reaches it."""
        return f"http://{self.host_address}:{self.registry.port}"

    @property
    def places(self) -> Places:
        """Where launchers keep things."""
        return Places(
            vtpm_ca=self.home.vtpm_ca,
            vtpm_pool=self.home.vtpm_pool,
            simulation_key=self.home.simulation / "key",
            cache=self.home.cache,
        )

    def launch_changes(self, launched: LaunchMeasurement) -> list[str]:
        """Return which parts of a launcher's statement differ from what the pod-VM image should be launched as.

        The statement is the host's word; it explains a refusal only when PCR 0 is the one that follows from it.
        """
        if self.bundle is None:
            return []
        for prediction in reference_values(self.bundle, (self.shape,)):
            if prediction.launch.profile is launched.profile:
                return [field.name for field in fields(launched) if _differs(prediction.launch, launched, field.name)]
        return []

    def _start(self) -> None:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            registry = pool.submit(start_registry, self.home.registry, self.work / "registry.log")
            trust = pool.submit(
                start_owners_service,
                self.owner,
                self.work,
                collateral=self.home.cache,
                witnesses=self._witnesses,
                keep=self._keep,
            )
            platform = pool.submit(self._platform)
            self.registry: ServiceProcess = self._keep(registry)
            self.trust: ServiceProcess = self._keep(trust)
            roots, references = platform.result()
        withdraw_abandoned(self.owner, self.home.root)
        self.owner.trust_platform(roots, references)
        self.step("ok", "trust service", f"127.0.0.1:{self.trust.port}")

    def _keep(self, future: concurrent.futures.Future[ServiceProcess]) -> ServiceProcess:
        service = future.result()
        self._stack.callback(service.stop)
        return service

    def _platform(self) -> tuple[tuple[TrustedRoot, ...], Sequence[ReferenceEntry]]:
        """Make or find what pods will boot and be endorsed by; return what the owner has to believe."""
        if self.backend is Backend.PROCESS:
            self.places.simulation_key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return simulation_roots(self.places.simulation_key), simulation_references()
        bundle = self._prepared()
        if bundle is None:
            raise RuntimeError("this back end boots no pod-VM image")
        return read_swtpm_roots(self.home.vtpm_ca), podvm_references(bundle, self.shape)

    def _prepared(self) -> PodVMBundle | None:
        """Make or find, once, what a launch needs: pod-VM image and CA of the software TPMs."""
        if self.backend is Backend.PROCESS:
            return None
        with self._preparing:
            if self.bundle is None:
                VTPMAuthority(self.home.vtpm_ca).create()
                self.bundle = build_bundle(self.home)
            return self.bundle


def _differs(expected: LaunchMeasurement, launched: LaunchMeasurement, name: str) -> bool:
    return bool(getattr(expected, name) != getattr(launched, name))


class Pod:
    """One planned pod of an environment: approve it, launch it, end it."""

    def __init__(self, environment: Environment, plan: PodPlan, stream_key: bytes, name: str) -> None:
        self.environment = environment
        self.plan = plan
        self.stream_key = stream_key
        self.name = name
        self._claim: ApprovalClaim | None = None

    @classmethod
    def plan_for(
        cls,
        environment: Environment,
        image: SealedReference,
        workload: WorkloadRequest,
        *,
        name: str,
        run_id: str = "",
        lease_seconds: int = 0,
    ) -> Pod:
        """Derive policy and init data and make the key of its streams.

        Pods of one name may run at a time when each has a `run_id`: their own keys go by name and id.
        """
        owner = environment.owner
        own = f"{name}-{run_id}" if run_id else name
        path, stream_key = owner.new_stream_key(own)
        plan = plan_pod(
            name=name,
            image=image,
            signature_key=owner.signer().public_key.pem().decode(),
            workload=workload,
            broker=environment.broker,
            stream_key=path,
            env_resource=owner.new_environment(own, workload.env),
            files=owner.new_files(own, workload.secret_files),
            lease_seconds=lease_seconds,
        )
        return cls(environment, plan, stream_key, name)

    def approve(self) -> None:
        """Let this init data, and no other, have the pod's keys, as long as this process lives and does not keep it."""
        self._claim = ApprovalClaim(self.environment.home.root, self.plan.init_data.digest_text, self._own_keys())
        with self.environment.owner.admin() as admin:
            admin.approve(
                self.plan.init_data.digest_text,
                self.plan.released,
                appraisal_policy=APPRAISAL_POLICY,
                insecure_accept_levels=(self.environment.level,),
            )

    def revoke(self) -> None:
        """Withdraw the approval; a pod under a lease stops within it."""
        with self.environment.owner.admin() as admin:
            admin.revoke(self.plan.init_data.digest_text)

    def forget(self) -> None:
        """Remove the approval and the own keys of a pod that ended."""
        with self.environment.owner.admin() as admin:
            admin.forget(self.plan.init_data.digest_text)
            for path in self._own_keys():
                with contextlib.suppress(Refused):
                    admin.delete_resource(path)
        self.keep()

    def keep(self) -> None:
        """Leave the approval in force, also when this process is gone."""
        if self._claim is not None:
            self._claim.release()

    def _own_keys(self) -> tuple[ResourcePath, ...]:
        policy = self.plan.policy
        own = [policy.streams.key, *(container.env_resource for container in policy.containers), *self.plan.own_files]
        return tuple(path for path in own if path)

    @contextlib.contextmanager
    def launch(
        self,
        *,
        ports: tuple[PortForward, ...] = (),
        accelerator: Accelerator = Accelerator.AUTO,
        change: Callable[[VMSpec], VMSpec] | None = None,
        booting: concurrent.futures.Future[RunningVM] | None = None,
    ) -> Iterator[PodSession]:
        """Launch the pod; it ends with the block.

        Args:
            ports: forwarded ports.
            accelerator: how QEMU executes the guest.
            change: alters what is launched: what a hostile host would do.
            booting: a machine that `Environment.booting` launched already.
        """
        init_data = self.plan.init_data.text
        if booting is not None:
            machine = booting.result()
            machine.deliver_initdata(init_data)
        else:
            machine = self.environment.boot(self.name, init_data, ports=ports, accelerator=accelerator, change=change)
        with machine, PodSession(machine) as session:
            yield session

    @contextlib.contextmanager
    def started(
        self,
        *,
        ports: tuple[PortForward, ...] = (),
        accelerator: Accelerator = Accelerator.AUTO,
        booting: concurrent.futures.Future[RunningVM] | None = None,
        created: Callable[[PodSession], None] = lambda _: None,
    ) -> Iterator[tuple[PodSession, ProcessStreams]]:
        """Launch the pod, create its container and start it; the pod ends with the block.

        A guest kernel that panics before the container runs is booted again, twice at most: emulation by QEMU
        7.2 crashes one boot in some dozens while several processors patch the kernel's code. Each boot attests anew.

        Args:
            ports: forwarded ports.
            accelerator: how QEMU executes the guest.
            booting: a machine that `Environment.booting` launched already.
            created: called between creation and start.
        """
        for left in reversed(range(_BOOTS)):
            with self.launch(ports=ports, accelerator=accelerator, booting=booting) as session:
                booting = None
                try:
                    streams = session.create(
                        CONTAINER, registry=self.environment.registry_url, stream_key=self.stream_key
                    )
                    created(session)
                    session.start(CONTAINER)
                except Unavailable as error:
                    if error.code != _KERNEL_PANIC or not left:
                        raise
                    self.environment.step("--", "guest kernel crashed", "booted again")
                    continue
                yield session, streams
                return


def run_pod(
    home: Home, request: RunRequest, *, directory: Path, terminal: Terminal, step: Step, run_id: str = ""
) -> RunRecord:
    """Run `request` to its end; write the record into `directory`, also when it is refused.

    Raises:
        CloisterError: nothing could be recorded because nothing began.
    """
    record = RunRecord(id=run_id or new_run_id(), image=request.image, level=Level.MEASURED)
    place = HeldPlace("cloister-work")
    work = place.path
    clock = PhaseClock(record)
    try:
        environment = Environment(home, work, request.backend, request.shape, step, scratch_mib=request.scratch_mib)
        name = request.name or f"run-{record.id}"
        booting = environment.booting(name, ports=request.ports, accelerator=request.accelerator)
        with booting as machine, environment:
            record.level = environment.level
            clock.lap("prepare")
            _run_in(environment, request, name, machine, record, terminal, clock)
    except CloisterError as error:
        record.refusal = explain_denial(Owner(home), error)
    finally:
        _collect_logs(work, record)
        place.remove()
        record.write(directory)
    return record


def _run_in(
    environment: Environment,
    request: RunRequest,
    name: str,
    machine: concurrent.futures.Future[RunningVM],
    record: RunRecord,
    terminal: Terminal,
    clock: PhaseClock,
) -> None:
    owner, step = environment.owner, environment.step
    image = owner.seal(request.image, environment.registry.port)
    step("ok", "image sealed and signed" if image.fresh else "image was sealed before", str(image.digest)[:19] + "..")
    clock.lap("seal")
    pod = Pod.plan_for(
        environment,
        image,
        request.workload,
        name=name,
        run_id=record.id if request.name else "",
        lease_seconds=request.lease_seconds,
    )
    _record_plan(record, image, pod)
    pod.approve()
    clock.lap("plan")
    try:
        started = pod.started(
            ports=request.ports,
            accelerator=request.accelerator,
            booting=machine,
            created=lambda _: _announce(environment, pod, step),
        )
        with started as (session, process):
            clock.lap("boot to start")
            record.identity.append(("launched", " ".join(session.machine.command)))
            if session.machine.launch is not None:
                record.documents["launch.json"] = session.machine.launch.blob()
            record.exit_status = session.attend(CONTAINER, process, terminal)
            record.phases += session.phase_seconds()
            clock.lap("workload")
    finally:
        _record_decisions(owner, record, pod.plan.init_data.digest_text)
        if request.keep_approval:
            pod.keep()
        else:
            pod.forget()
    _conclude(record, environment)


def _announce(environment: Environment, pod: Pod, step: Step) -> None:
    init_data = pod.plan.init_data.digest_text.partition(":")[2]
    policy = pod.plan.policy.digest.partition(":")[2]
    booted = "pod started and attested" if environment.backend is Backend.PROCESS else "pod VM booted and attested"
    step("ok", booted, f"policy {policy[:8]}..  init data {init_data[:8]}..  nonce fresh")
    asked_later = pod.plan.policy.containers[0].resources
    count = len(pod.plan.released) - len(asked_later)
    step("ok", "keys released, image verified", f"{count} keys, recorded before they left")


def _record_plan(record: RunRecord, image: SealedReference, pod: Pod) -> None:
    plan = pod.plan
    record.identity += [
        ("image", image.repository),
        ("sealed manifest", str(image.digest)),
        ("source manifest", str(image.source_digest)),
        ("pod policy", plan.policy.digest),
        ("init data", plan.init_data.digest_text),
        ("keys", ", ".join(path.uri for path in plan.released)),
    ]
    record.documents["initdata.toml"] = plan.init_data.text
    record.documents["pod-policy.json"] = encode_pod_policy(plan.policy)


def _record_decisions(owner: Owner, record: RunRecord, init_data: str) -> None:
    """Copy what the trust service decided about this pod: audit rows, findings, evidence."""
    with owner.admin() as admin:
        rows = admin.list_audit(init_data=init_data)
        appraisals = dict.fromkeys(row.attestation for row in rows if row.attestation)  # in the order of the audit
        results = [found for found in map(admin.get_appraisal, appraisals) if found is not None]
        evidence = [found for found in map(admin.get_evidence, appraisals) if found is not None]
        denials = [admin.get_denial(row.denial) for row in rows if row.denial]
    record.audit = [
        {
            "id": row.sequence,
            "at": row.at.isoformat(timespec="milliseconds"),
            "path": row.resource,
            "decision": "release" if row.decision == "released" else "deny",
            "denial_id": row.denial,
            "instance": row.instance,
            "init_data": row.init_data,
            "code": row.code,
            "level": row.level,
            "pcr00": row.pcr00,
        }
        for row in rows
    ]
    findings = [finding for result in results[-1:] for finding in result.findings]
    findings = findings or [finding for denial in denials[-1:] for finding in denial.findings]
    record.findings = [msgspec.to_builtins(finding) for finding in findings]
    if results:
        record.documents["result.json"] = msgspec.json.format(msgspec.json.encode(results[-1]))
    if evidence:
        record.documents["evidence.json"] = evidence[-1]


def _conclude(record: RunRecord, environment: Environment) -> None:
    passed = sum(1 for finding in record.findings if finding["ok"])
    if environment.level is Level.MEASURED:
        record.proved += [
            f"the pod VM booted the measured firmware, kernel and root ({passed} checks passed)",
            "the image that ran is the one that was signed; its layers were decrypted only after they authenticated",
            "arguments, environment, user and directory came from the signed image and the measured policy",
        ]
        record.not_proved += [
            "that this machine's root is kept out: it can read the memory of QEMU, and runs the software TPM",
            "anything about real hardware: run `cloister doctor` to see what this machine has",
        ]
    else:
        record.proved.append(
            "the flow: this image can be sealed, released to an agent that attests, verified, decrypted and run"
        )
        record.not_proved += ["anything else: simulated evidence teaches the flow and protects nothing"]
    record.not_proved.append("that the host delivered the exit status unchanged: only streams are sealed")


def _collect_logs(work: Path, record: RunRecord) -> None:
    for path in sorted(work.rglob("*.log")):
        record.documents[path.name] = path.read_bytes()
