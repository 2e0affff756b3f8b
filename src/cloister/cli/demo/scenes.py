"""The demo, scene by scene: the owner's side first, then what the cluster admin tries, then the owner's last word."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloister.cli.demo import hostile
from cloister.cli.demo.appimage import APP_CANARY, build_app_image, find_busybox, model, plain_files
from cloister.cli.output import StepPrinter, short_digest
from cloister.cli.podvm import prepare_bundle
from cloister.cli.refusals import refusal_number
from cloister.errors import CloisterError, Refused, Unavailable
from cloister.host.vmm.spec import Accelerator, Backend
from cloister.imagetool.podvm import Shape
from cloister.protocol.initdata import ReleaseLogPins
from cloister.protocol.launch import LaunchMeasurement
from cloister.protocol.resourceuri import ResourcePath
from cloister.rats.claims import Level
from cloister.sdk.denial import explain_denial
from cloister.sdk.home import Home, separate_home
from cloister.sdk.owner import APPRAISAL_POLICY, SealedReference
from cloister.sdk.plan import WorkloadRequest
from cloister.sdk.record import new_run_id
from cloister.sdk.run import CONTAINER, Environment, Pod
from cloister.sdk.session import PodSession, Terminal
from cloister.tlog.receipt import LogPins, parse_pins, verify_receipt
from cloister.trust.admin import TrustAdmin
from cloister.trust.keybroker.policy import ReleaseRule

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

SHAPE: Final = Shape(vcpus=1, memory_mib=512)  # QEMU 7.2 crashes some emulated kernels with more processors
LEASES: Final = (5, 20)  # seconds; the second on a machine too busy to renew the first in time
_LEASE_OVER: Final = "guest.lease.expired"
_ANSWER_SECONDS: Final = 60.0  # the app reads 35 pixels; an emulated processor starts busybox a few times for that
WITNESSES: Final = ("w1", "w2")
BEFORE: Final = "before"  # a copy of the trust service's state from before the first release
MODEL_PATH: Final = ResourcePath("default", "model", "digits")


class Scenes:
    """Plays the demo, with an owner of its own who has nothing yet, so that no other pod or key is in the way.

    Args:
        machine: where this machine's pod-VM image and software TPMs are kept.
        work: private directory for everything else, removed by the caller.
        step: prints steps.
        backend: where pods run.
        accelerator: how QEMU executes the guest.
    """

    def __init__(
        self, machine: Home, work: Path, step: StepPrinter, backend: Backend, accelerator: Accelerator
    ) -> None:
        self.home = separate_home(machine, work / "owner")
        self.work = work
        self.step = step
        self.backend = backend
        self.accelerator = accelerator
        self.plain = plain_files()

    def play(self) -> None:
        """Play all scenes.

        Raises:
            Refused: an attack was not refused (`cli.demo.attack_succeeded`).
            CloisterError: a scene could not be played; its name was printed.
        """
        began = time.monotonic()
        with self._scene("pod-VM image"):
            bundle = prepare_bundle(self.home) if self.backend is not Backend.PROCESS else None
        if bundle is not None and not bundle.cached:
            self.step(
                "ok",
                "pod-VM image built",
                f"root hash {short_digest(bundle.reference.verity.root_hash)}  locked packages",
            )
        environment = Environment(self.home, self.work, self.backend, SHAPE, _tell_nobody, witnesses=WITNESSES)
        with environment:
            with self._scene("app image encrypted and signed"):
                app = build_app_image(self.work / "app-image", find_busybox(self.home, bundle))
                with environment.owner.admin() as admin:
                    admin.put_resource(MODEL_PATH, model())
                    admin.add_release_rule(self._witnessed_rule(environment))
                image = environment.owner.seal(app, environment.registry.port)
                digest = short_digest(str(image.digest))
                self.step("ok", "app image encrypted and signed", f"{digest}  nothing in the app changed")
                self.step(
                    "ok",
                    f"trust service, log, {len(WITNESSES)} witnesses",
                    f"127.0.0.1:{environment.trust.port}, embedded storage",
                )
            first = self._honest(environment, image)
            self.step.note("now the cluster admin turns hostile")
            self._against_a_running_pod(environment, image)
            self._other_kernel_line(environment, image)
            self._replay(environment, first)
            self._at_rest(environment)
            self._roll_back(environment)
            self._revoke(environment, image)
            self._audit(environment)
        self._conclude(environment, time.monotonic() - began)

    @contextlib.contextmanager
    def _scene(self, what: str) -> Iterator[None]:
        """Name the scene that an error ends."""
        try:
            yield
        except hostile.AttackSucceeded as success:
            self.step("!!", what, f"NOT REFUSED: {success}")
            raise Refused(
                "cli.demo.attack_succeeded",
                f"the attack '{what}' was not refused",
                path=str(self.work),
                expected="a refusal",
                actual=str(success),
            ) from success
        except CloisterError:
            self.step("!!", what, "could not be played, because:")
            raise

    # -- the owner ---------------------------------------------------------------------------------------------

    def _honest(self, environment: Environment, image: SealedReference) -> Pod:
        pod = self._pod(environment, image)
        output = io.BytesIO()
        booted = "pod started and attested" if self.backend is Backend.PROCESS else "pod VM booted and attested"
        hostile.keep_copy(environment.owner.state, self.work / BEFORE)
        policy, init_data = pod.plan.policy.digest, pod.plan.init_data.digest_text
        detail = f"policy {short_digest(policy, 8)}  init data {short_digest(init_data, 8)}  nonce fresh"

        def created(_: PodSession) -> None:
            self.step("ok", booted, detail)

        with (
            self._scene(booted),
            pod.started(accelerator=self.accelerator, created=created) as (session, streams),
        ):
            status = session.attend(CONTAINER, streams, Terminal(stdout=output, stderr=output))
        answer = output.getvalue().decode(errors="replace").strip()
        with self._scene("app answers"):
            if status != 0:
                raise Unavailable("cli.demo.app_failed", "the demo's application failed", actual=answer[-200:])
        with environment.owner.admin() as admin:
            rows = admin.list_audit(init_data=init_data)
            row = next(row for row in rows if row.resource == str(MODEL_PATH))
            receipt = admin.release_receipt(row)
            if receipt is None:
                raise Refused("cli.demo.no_entry", "the release is not in the release log", path=str(MODEL_PATH))
            entry = verify_receipt(receipt, _pins(admin.release_log_pins()))
        self.step("ok", "model key released", f"log entry {entry.index}, witnessed by {' '.join(entry.cosigned_by)}")
        self.step("ok", f"app says: {answer}", "(the model is in the clear only inside the pod)")
        return pod

    @staticmethod
    def _witnessed_rule(environment: Environment) -> ReleaseRule:
        """Return the rule of the model: this level, once all witnesses cosigned; who gets it is approved later."""
        return ReleaseRule(
            prefix=str(MODEL_PATH),
            insecure_allow_levels=(environment.level,),
            appraisal_policy=APPRAISAL_POLICY,
            witnesses=len(WITNESSES),
        )

    def _pod(self, environment: Environment, image: SealedReference, *, lease: int = 0) -> Pod:
        workload = WorkloadRequest(args=("stay",) if lease else (), resources=(MODEL_PATH,))
        pod = Pod.plan_for(
            environment,
            image,
            workload,
            name=f"demo-{new_run_id()}",
            lease_seconds=lease,
        )
        pod.approve()
        return pod

    # -- the admin ---------------------------------------------------------------------------------------------

    def _against_a_running_pod(self, environment: Environment, image: SealedReference) -> None:
        pod = self._pod(environment, image)
        url = environment.registry_url
        with pod.launch(accelerator=self.accelerator) as session:
            with hostile.swapped_image(self.home.registry, image.digest):
                self._refused("swap the image", environment, lambda: hostile.create_by_host(session, url))
            claim = hostile.preload_claim(pod, image.config.environment, image.config.entrypoint)
            self._refused("add env LD_PRELOAD", environment, lambda: hostile.create_by_host(session, url, claim))

    def _other_kernel_line(self, environment: Environment, image: SealedReference) -> None:
        if self.backend is Backend.PROCESS:
            self.step("--", "change the kernel line", "a process sandbox boots no kernel: see --level measured")
            return
        pod = self._pod(environment, image)

        launched: list[LaunchMeasurement] = []

        def attack() -> None:
            with pod.launch(accelerator=self.accelerator, change=hostile.other_kernel_line) as session:
                launched.extend(filter(None, [session.machine.launch]))
                session.wait_ready()

        def note() -> str:
            changed = [name for item in launched for name in environment.launch_changes(item)]
            return f"; the launcher's own statement differs in: {', '.join(changed)}"

        self._refused("change the kernel line", environment, attack, note)

    def _replay(self, environment: Environment, first: Pod) -> None:
        what = "replay recorded evidence"
        with self._scene(what), environment.owner.admin() as admin:
            rows = admin.list_audit(init_data=first.plan.init_data.digest_text)
            attestation = next(row.attestation for row in rows if row.attestation)
            tee = next(row.tee for row in rows if row.attestation == attestation)
            recorded = admin.get_evidence(attestation)
            if recorded is None:
                raise Unavailable("cli.demo.no_evidence", "the first pod's evidence was not kept")
        broker = environment.broker_at("127.0.0.1")
        text = first.plan.init_data.text.decode()
        self._refused(
            what,
            environment,
            lambda: hostile.replay(broker, tee, text, recorded),
            lambda: "; each session asks for a new answer, and a recording has an old one",
        )

    def _at_rest(self, environment: Environment) -> None:
        """Look for lines of the application and the model; the same search does find them in the clear."""
        what = "read image and model at rest"
        places = (self.home.registry, environment.owner.state)
        searched = 0
        with self._scene(what):
            for canary in (APP_CANARY, model().splitlines()[7]):
                searched, found = hostile.search_at_rest(places, canary)
                if found:
                    raise hostile.AttackSucceeded(f"{found} of {searched} files hold it in the clear")
                if not hostile.is_found(self.plain, canary):
                    raise Unavailable("cli.demo.search_blind", "the search does not find what is in the clear")
        self.step("no", what, f"ciphertext only ({searched} files searched)")

    def _roll_back(self, environment: Environment) -> None:
        """Put the trust service back to where nothing was released yet, mark of the log included."""
        old = self.work / "rolled-back"

        def attack() -> None:
            hostile.roll_back(self.work / BEFORE, old)
            with TrustAdmin(old) as admin:
                admin.put_resource(MODEL_PATH, model())

        self._refused("roll the release log back", environment, attack, instead="trust.releaselog.rolled_back")

    # -- the owner's last word ---------------------------------------------------------------------------------

    def _revoke(self, environment: Environment, image: SealedReference) -> None:
        """Revoke while the workload runs: before its answer it would fail for want of the model, and prove nothing."""
        with self._scene("owner revoked"):
            for lease in LEASES:
                try:
                    self._revoke_within(environment, image, lease)
                except CloisterError as error:
                    if error.code != _LEASE_OVER or lease == LEASES[-1]:
                        raise
                else:
                    break

    def _revoke_within(self, environment: Environment, image: SealedReference, lease: int) -> None:
        pod = self._pod(environment, image, lease=lease)
        heard = _Heard()
        terminal = Terminal(stdout=heard, stderr=heard)
        with (
            ThreadPoolExecutor(1) as pool,
            pod.started(accelerator=self.accelerator) as (session, streams),
        ):
            running = pool.submit(session.attend, CONTAINER, streams, terminal)
            _wait_for_answer(heard, running)
            pod.revoke()
            revoked = time.monotonic()
            error = explain_denial(environment.owner, hostile.met(running.result))
            took = time.monotonic() - revoked
            if error.code == _LEASE_OVER:  # it stopped, and heard no refusal
                raise error
        why = f"{_number(error)} {error.message}"
        self.step("ok", "owner revoked", f"pod stopped after {took:.1f} s (lease {lease} s)  {why}")

    def _audit(self, environment: Environment) -> None:
        with environment.owner.admin() as admin:
            rows = admin.list_audit()
        released = sum(1 for row in rows if row.decision == "released")
        denied = len(rows) - released
        self.step.note(f"audit: {released} releases, {denied} denials, 1 revoke; each recorded before it was answered")

    def _conclude(self, environment: Environment, seconds: float) -> None:
        self.step.note(f"played in {seconds:.0f} s; nothing is left running, and nothing of it is kept")
        if environment.level is Level.MEASURED:
            self.step.note("proved: boot and code integrity, key release only to the measured pod")
            self.step.note("not shown: real hardware (this machine's root is not kept out). next: cloister doctor")
        else:
            self.step.note("proved: nothing; simulated evidence teaches the flow and protects nothing")
            self.step.note("not shown: measured boot, real hardware. next: cloister demo --level measured")

    def _refused(
        self,
        what: str,
        environment: Environment,
        attack: Callable[[], object],
        note: Callable[[], str] = str,
        *,
        instead: str = "",
    ) -> None:
        with self._scene(what):
            refusal = explain_denial(environment.owner, hostile.met(attack, instead=instead))
        values = f": expected {_shown(refusal.expected)}, got {_shown(refusal.actual)}" if refusal.expected else ""
        self.step("no", what, f"{_number(refusal)} {refusal.message}{values}{note()}")


class _Heard(io.BytesIO):
    """Output, and whether a line of it came."""

    def __init__(self) -> None:
        super().__init__()
        self.line = threading.Event()

    def write(self, data: ReadableBuffer, /) -> int:
        """Keep `data`."""
        count = super().write(data)
        if b"\n" in self.getvalue():
            self.line.set()
        return count


def _wait_for_answer(heard: _Heard, running: Future[int]) -> None:
    deadline = time.monotonic() + _ANSWER_SECONDS
    while not heard.line.wait(0.1):
        if running.done():
            raise Unavailable("cli.demo.app_failed", "the demo's application failed", actual=str(running.result()))
        if time.monotonic() > deadline:
            raise Unavailable("cli.demo.app_failed", "the demo's application gave no answer in time")


def _tell_nobody(mark: str, text: str, detail: str) -> None:
    """The demo prints its own lines."""


def _pins(pins: ReleaseLogPins) -> LogPins:
    return parse_pins(pins.key, pins.witnesses, pins.cosignatures)


def _shown(value: str) -> str:
    return short_digest(value) if value.startswith("sha256:") else value


def _number(error: CloisterError) -> str:
    return refusal_number(error.code)
