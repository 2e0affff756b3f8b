"""The demo, scene by scene: the owner's side first, then what the cluster admin tries, then the owner's last word."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cloister.cli.demo import hostile
from cloister.cli.demo.appimage import APP_CANARY, build_app_image, find_busybox, model, plain_files
from cloister.cli.output import StepPrinter, short_digest
from cloister.cli.podvm import prepare_bundle
from cloister.cli.refusals import refusal_number
from cloister.errors import CloisterError, Unavailable
from cloister.host.vmm.spec import Accelerator, Backend
from cloister.protocol.launch import LaunchMeasurement
from cloister.protocol.resourceuri import ResourcePath
from cloister.rats.claims import Level
from cloister.sdk.home import Home
from cloister.sdk.owner import SealedReference
from cloister.sdk.plan import WorkloadRequest
from cloister.sdk.record import new_run_id
from cloister.sdk.run import CONTAINER, DEFAULT_SHAPE, Environment, Pod, explain_denial
from cloister.sdk.session import Terminal

LEASE_SECONDS: Final = 5
MODEL_PATH: Final = ResourcePath("default", "model", "digits")


class Scenes:
    """Plays the demo.

    Args:
        home: where state is kept.
        work: private directory, removed by the caller.
        step: prints steps.
        backend: where pods run.
        accelerator: how QEMU executes the guest.
    """

    def __init__(self, home: Home, work: Path, step: StepPrinter, backend: Backend, accelerator: Accelerator) -> None:
        self.home = home
        self.work = work
        self.step = step
        self.backend = backend
        self.accelerator = accelerator
        self.plain = plain_files()

    def play(self) -> None:
        """Play all scenes.

        Raises:
            AttackSucceeded: an attack was not refused.
            CloisterError: a scene could not be played.
        """
        bundle = prepare_bundle(self.home) if self.backend is not Backend.PROCESS else None
        app = build_app_image(self.work / "app-image", find_busybox(bundle.path if bundle else None))
        with Environment(self.home, self.work, self.backend, DEFAULT_SHAPE, _tell_nobody) as environment:
            with environment.owner.admin() as admin:
                before = admin.last_audit()
                admin.put_resource(MODEL_PATH, model())
            image = environment.owner.seal(app, environment.registry.port)
            self.step("ok", "app image encrypted and signed", f"{short_digest(str(image.digest))}  app unchanged")
            self.step("ok", "trust service, registry", f"127.0.0.1:{environment.trust.port}")
            first = self._honest(environment, image)
            self.step.note("now the cluster admin turns hostile")
            self._against_a_running_pod(environment, image)
            self._other_kernel_line(environment, image)
            self._replay(environment, first)
            self._at_rest(environment)
            self._revoke(environment, image)
            self._audit(environment, before)
        if environment.level is Level.MEASURED:
            self.step.note("not shown: real hardware (this machine's root is not kept out). next: cloister doctor")
        else:
            self.step.note("simulated: this protects nothing. next: cloister demo --level measured")

    # -- the owner ---------------------------------------------------------------------------------------------

    def _honest(self, environment: Environment, image: SealedReference) -> Pod:
        pod = self._pod(environment, image)
        output = io.BytesIO()
        with pod.launch(accelerator=self.accelerator) as session:
            streams = session.create(CONTAINER, registry=environment.registry_url, stream_key=pod.stream_key)
            plan = pod.plan
            self.step(
                "ok",
                "pod booted and attested" if self.backend is not Backend.PROCESS else "pod started and attested",
                f"policy {short_digest(plan.policy.digest, 8)}  init data {short_digest(plan.init_data.digest_text, 8)}"
                "  nonce fresh",
            )
            session.start(CONTAINER)
            status = session.attend(CONTAINER, streams, Terminal(stdout=output, stderr=output))
        answer = output.getvalue().decode(errors="replace").strip()
        if status != 0:
            raise Unavailable("cli.demo.app_failed", "the demo's application failed", actual=answer[-200:])
        with environment.owner.admin() as admin:
            rows = admin.list_audit(init_data=plan.init_data.digest_text)
        row = next(row for row in rows if row.resource == str(MODEL_PATH))
        self.step("ok", "model key released", f"audit row {row.sequence}, written before the key left")
        self.step("ok", f"app says: {answer}", "the model is plain only inside the pod")
        return pod

    def _pod(self, environment: Environment, image: SealedReference, *, stay: bool = False) -> Pod:
        workload = WorkloadRequest(args=("stay",) if stay else (), resources=(MODEL_PATH,))
        pod = Pod.plan_for(
            environment,
            image,
            workload,
            name=f"demo-{new_run_id()}",
            lease_seconds=LEASE_SECONDS if stay else 0,
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
        with environment.owner.admin() as admin:
            rows = admin.list_audit(init_data=first.plan.init_data.digest_text)
            attestation = next(row.attestation for row in rows if row.attestation)
            tee = next(row.tee for row in rows if row.attestation == attestation)
            recorded = admin.get_evidence(attestation)
        if recorded is None:
            raise Unavailable("cli.demo.no_evidence", "the first pod's evidence was not kept")
        broker = environment.broker_at("127.0.0.1")
        text = first.plan.init_data.text.decode()
        self._refused("replay recorded evidence", environment, lambda: hostile.replay(broker, tee, text, recorded))

    def _at_rest(self, environment: Environment) -> None:
        """Look for lines of the application and the model; the same search does find them in the clear."""
        places = (self.home.registry, environment.owner.state)
        searched = 0
        for canary in (APP_CANARY, model().splitlines()[7]):
            searched, found = hostile.search_at_rest(places, canary)
            if found or not hostile.is_found(self.plain, canary):
                raise hostile.AttackSucceeded
        self.step("no", "read the image at rest", f"ciphertext only ({searched} files searched)")

    # -- the owner's last word ---------------------------------------------------------------------------------

    def _revoke(self, environment: Environment, image: SealedReference) -> None:
        pod = self._pod(environment, image, stay=True)
        sink = io.BytesIO()
        with pod.launch(accelerator=self.accelerator) as session:
            streams = session.create(CONTAINER, registry=environment.registry_url, stream_key=pod.stream_key)
            session.start(CONTAINER)
            pod.revoke()
            revoked = time.monotonic()
            terminal = Terminal(stdout=sink, stderr=sink)
            error = hostile.met(lambda: session.attend(CONTAINER, streams, terminal))
            took = time.monotonic() - revoked
        self.step("ok", "owner revoked", f"pod stopped after {took:.1f} s (lease {LEASE_SECONDS} s)  {_number(error)}")

    def _audit(self, environment: Environment, before: int) -> None:
        with environment.owner.admin() as admin:
            rows = admin.list_audit(after=before)
        released = sum(1 for row in rows if row.decision == "released")
        self.step.note(f"audit: {released} releases, {len(rows) - released} denials, all recorded before the answer")

    def _refused(
        self, what: str, environment: Environment, attack: Callable[[], object], note: Callable[[], str] = str
    ) -> None:
        refusal = explain_denial(environment.owner, hostile.met(attack))
        values = f": expected {_shown(refusal.expected)}, got {_shown(refusal.actual)}" if refusal.expected else ""
        self.step("no", what, f"{_number(refusal)} {refusal.message}{values}{note()}")


def _tell_nobody(mark: str, text: str, detail: str) -> None:
    """The demo prints its own lines."""


def _shown(value: str) -> str:
    return short_digest(value) if value.startswith("sha256:") else value


def _number(error: CloisterError) -> str:
    return refusal_number(error.code)
