"""Killing any part at any step leaves no process, no key on disk, a clear error, and a clean retry.

The steps are those of a run: seal, plan, launch, attest, pull, start, workload; the parts: trust service, registry,
agent, its key process, and in a real machine QEMU and swtpm. A part dies in the middle of a step: while layers are
written, or while the agent waits for an answer of a service that was stopped (SIGSTOP) just before. Nothing here sleeps
to hit a moment.

At the simulated level, where a run takes two seconds, every part dies at every step, by the same code that drives real
machines; QEMU and swtpm die in real ones.
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import cloister
import images
from cloister.errors import CloisterError
from cloister.host.vmm.spec import Accelerator, Backend
from cloister.imagetool import podvm
from cloister.imagetool.podvm import Shape
from cloister.sdk.home import Home, home_from_environment
from cloister.sdk.plan import WorkloadRequest
from cloister.sdk.run import CONTAINER, Environment, Pod
from cloister.sdk.services import ServiceProcess
from cloister.sdk.session import Terminal

DEFINITION = Path(__file__).resolve().parents[2] / "images/podvm.toml"
STAY = ("sh", "-c", "echo up; sleep 600")
STEPS = ("seal", "plan", "launch", "attest", "pull", "start", "workload")
ENV_CANARY = "canary-of-the-environment-0925"
NO_REGISTRY = "oci.transport."
NO_BROKER = "client."
KEY_PROCESS = b"cloister-keys"  # its name, as `ps` shows it
UNHARMED = ""  # the part is not needed any more: the run goes on to its end
ESTABLISHED = b"01"
SECONDS = 60.0
SHAPE = Shape(vcpus=1, memory_mib=512)  # QEMU 7.2 crashes a guest kernel with several processors now and then

# What a run ends with when a part dies in the middle of a step, by the start of its code.
OUTCOMES = {
    ("registry", "seal"): NO_REGISTRY,
    ("registry", "plan"): NO_REGISTRY,
    ("registry", "launch"): NO_REGISTRY,
    ("registry", "attest"): NO_REGISTRY,
    ("registry", "pull"): NO_REGISTRY,
    ("registry", "start"): UNHARMED,
    ("registry", "workload"): UNHARMED,
    ("trust", "seal"): NO_BROKER,
    ("trust", "plan"): NO_BROKER,
    ("trust", "launch"): NO_BROKER,
    ("trust", "attest"): NO_BROKER,
    ("trust", "pull"): NO_BROKER,
    ("trust", "start"): UNHARMED,
    ("trust", "workload"): UNHARMED,
    ("agent", "launch"): "host.vm.sandbox_died",
    ("agent", "attest"): "host.vm.sandbox_died",
    ("agent", "pull"): "host.vm.sandbox_died",
    ("agent", "start"): "host.vm.sandbox_died",
    ("agent", "workload"): "host.vm.sandbox_died",
    ("keys", "launch"): "guest.keys.died",
    ("keys", "attest"): "guest.keys.died",
    ("keys", "pull"): "guest.keys.died",
    ("keys", "start"): "guest.keys.died",
    ("keys", "workload"): "guest.keys.died",
}
MACHINE_OUTCOMES = {
    (part, step): f"host.vm.{part}_died" for part in ("qemu", "swtpm") for step in ("launch", "attest", "workload")
} | {("qemu", "pull"): "host.vm.qemu_died"}


def location() -> str:
    return f"oci:{images.busybox_image()}:{images.TAG}"


def descendants(root: int) -> set[int]:
    """All living processes below `root`, zombies not counted."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
                if fields[0] != b"Z":
                    children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: set[int] = set()
    waiting = [root]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found.add(child)
            waiting.append(child)
    return found


def key_process_below(root: int) -> int:
    """Process id of the key process of the agent in a sandbox, once it is there."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        for pid in descendants(root):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_bytes().strip() == KEY_PROCESS:
                    return pid
        time.sleep(0.005)
    raise AssertionError("no key process")


def all_gone(processes: set[int], seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(_lives(pid) for pid in processes):
            return True
        time.sleep(0.05)
    return False


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


def connected(port: int) -> bool:
    """Whether somebody is connected to a local port; the kernel accepts for a stopped process, too."""
    for line in Path("/proc/net/tcp").read_bytes().splitlines()[1:]:
        _, local, _, state, *_ = line.split()
        if state == ESTABLISHED and int(local.rpartition(b":")[2], 16) == port:
            return True
    return False


def wait_connected(port: int) -> None:
    deadline = time.monotonic() + SECONDS
    while not connected(port):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def stopped(service: ServiceProcess) -> Iterator[None]:
    """Let a service not answer within the block."""
    os.kill(service.child.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(service.child.pid, signal.SIGCONT)


@dataclass
class Run:
    """One run in which `part` dies in the middle of `step`; nobody dies without a part.

    Attributes:
        keys: secrets of this run, none of which may be found in a file.
    """

    home: Home
    work: Path
    part: str = ""
    step: str = ""
    backend: Backend = Backend.PROCESS
    keys: list[bytes] = field(default_factory=lambda: [ENV_CANARY.encode()])
    struck: bool = False

    def strike(self, step: str) -> None:
        """Kill the victim, if this is the step."""
        if step == self.step and not self.struck:
            self.struck = True
            os.kill(self._victim(), signal.SIGKILL)

    def begin(self, total_bytes: int) -> None:
        """Take the size of a layer that is about to be sealed."""

    def advance(self, count: int) -> None:
        """Strike while a layer is sealed."""
        self.strike("seal")

    def _victim(self) -> int:
        if self.part in ("trust", "registry"):
            service: ServiceProcess = getattr(self.environment, self.part)
            return service.child.pid
        pids = self.session.machine.pids
        if self.part == "keys":
            return key_process_below(pids["sandbox"])
        return pids[self.part] if self.part in pids else pids["sandbox"]

    def play(self) -> CloisterError | None:
        """Run to the end; return the error it ended with."""
        self.work.mkdir(parents=True, exist_ok=True)
        try:
            with Environment(self.home, self.work, self.backend, SHAPE, lambda *_: None) as self.environment:
                self._steps()
        except CloisterError as error:
            return error
        finally:
            assert self.step == "" or self.struck, f"no {self.step}"
            assert keys_on_disk((self.home.root, self.work), self.keys) == []
        return None

    def _steps(self) -> None:
        environment = self.environment
        image = environment.owner.seal(location(), environment.registry.port, progress=self)
        workload = WorkloadRequest(args=STAY, env={"WORD": ENV_CANARY})
        pod = Pod.plan_for(environment, image, workload, name="victim")
        self.keys.append(pod.stream_key)
        with environment.owner.admin() as admin:
            self.keys += [admin.get_resource(path) for path in image.kek]
        self.strike("plan")
        pod.approve()
        try:
            with contextlib.ExitStack() as stack:
                if self.step == "attest":
                    stack.enter_context(stopped(environment.trust))
                with pod.launch(accelerator=Accelerator.TCG) as self.session:
                    self.strike("launch")
                    if self.step == "attest":
                        wait_connected(environment.trust.port)
                        self.strike("attest")
                        stack.close()
                    self._run(pod)
        finally:
            pod.forget()

    def _run(self, pod: Pod) -> None:
        session, registry = self.session, self.environment.registry
        session.wait_ready(SECONDS)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            with stopped(registry) if self.step == "pull" else contextlib.nullcontext():
                created = pool.submit(
                    session.create, CONTAINER, registry=self.environment.registry_url, stream_key=pod.stream_key
                )
                if self.step == "pull":
                    wait_connected(registry.port)
                    self.strike("pull")
            streams = created.result(SECONDS)
        self.strike("start")
        session.start(CONTAINER)
        session.attend(CONTAINER, streams, Terminal(stdout=Sink(self._up), stderr=io.BytesIO()))

    def _up(self) -> None:
        """The workload said its word: strike, and where that leaves it alone, end it from another thread."""
        self.strike("workload")
        if self.step == "workload" and OUTCOMES.get((self.part, self.step)) != UNHARMED:
            return
        threading.Thread(target=self._end_workload, daemon=True).start()

    def _end_workload(self) -> None:
        with contextlib.suppress(CloisterError):
            self.session.kill(CONTAINER, signal.SIGKILL)


class Sink(io.BytesIO):
    """Calls back at the first output."""

    def __init__(self, on_output: Callable[[], None]) -> None:
        super().__init__()
        self._on_output = on_output

    def write(self, data: bytes, /) -> int:  # type: ignore[override]  # bytes are what is written here
        written = super().write(data)
        if written == self.tell():
            self._on_output()
        return written


def keys_on_disk(places: tuple[Path, ...], keys: list[bytes]) -> list[str]:
    """Return the files that hold a key, plain, in hex or in base64."""
    wanted = [spelled for key in keys for spelled in (key, key.hex().encode(), base64.b64encode(key).rstrip(b"="))]
    files = [file for place in places for file in place.rglob("*") if file.is_file() and not file.is_symlink()]
    return [str(file) for file in files if any(spelled in data for data in [file.read_bytes()] for spelled in wanted)]


def check(run: Run, outcome: str) -> None:
    """Play `run`: its end, its words, its processes; then a retry in the same home."""
    before = descendants(os.getpid())
    error = run.play()
    assert all_gone(descendants(os.getpid()) - before)
    if outcome == UNHARMED:
        assert error is None
    else:
        assert error is not None
        assert error.code.startswith(outcome), error
        assert error.message and error.hint, error
    assert not list((run.home.root / "vtpm-pool").glob("used-*"))


@pytest.fixture(scope="module")
def sealed_home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """One home for all runs that do not die while sealing: each finds what the deaths before it left."""
    root = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLOISTER_HOME", str(root))
        return home_from_environment()


@pytest.mark.tool
@pytest.mark.parametrize(("part", "step"), OUTCOMES)
def test_one_part_dies(sealed_home: Home, tmp_path: Path, part: str, step: str) -> None:
    home = home_from_environment() if step == "seal" else sealed_home
    check(Run(home, tmp_path / "first", part, step), OUTCOMES[part, step])
    assert Run(home, tmp_path / "second").play() is None


def test_every_step_is_covered() -> None:
    """An agent and its key process live from launch on; every other part is there at every step."""
    for part in ("registry", "trust"):
        assert {step for name, step in OUTCOMES if name == part} == set(STEPS)
    for part in ("agent", "keys"):
        assert {step for name, step in OUTCOMES if name == part} == set(STEPS) - {"seal", "plan"}


def test_the_search_for_keys_finds_them(tmp_path: Path) -> None:
    key = bytes(range(32))
    assert keys_on_disk((tmp_path,), [key]) == []
    for name, data in (("raw", key), ("hex", key.hex().encode()), ("base64", base64.b64encode(key))):
        (tmp_path / name).write_bytes(b"x" + data + b"y")
    assert len(keys_on_disk((tmp_path,), [key])) == 3


@pytest.mark.tool
@pytest.mark.parametrize("level", ["simulated", pytest.param("measured", marks=pytest.mark.vm)])
def test_the_command_itself_is_killed(tmp_path: Path, level: str) -> None:
    """SIGKILL of `cloister run` takes services, launcher, swtpm, QEMU or sandbox with it."""
    command = [sys.executable, "-m", "cloister", "run", "-q", "--vcpus", "1", "--level", level, location(), *STAY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        family = descendants(process.pid)
        assert len(family) >= 3
        process.kill()
    assert all_gone(family)


@pytest.mark.vm
@pytest.mark.tool
@pytest.mark.parametrize(("part", "step"), MACHINE_OUTCOMES)
def test_a_real_machine_dies(sealed_home: Home, tmp_path: Path, part: str, step: str) -> None:
    check(Run(sealed_home, tmp_path, part, step, Backend.SEABIOS), MACHINE_OUTCOMES[part, step])


@pytest.mark.vm
@pytest.mark.tool
def test_a_real_machine_runs_after_one_died(sealed_home: Home, tmp_path: Path) -> None:
    check(Run(sealed_home, tmp_path / "first", "swtpm", "launch", Backend.SEABIOS), "host.vm.swtpm_died")
    assert Run(sealed_home, tmp_path / "second", backend=Backend.SEABIOS).play() is None


DEATHS = {  # in the key process' own code, because nobody outside a pod VM reaches it
    "launch": ("    _shut_in(agent)\n", "    os.kill(os.getpid(), 9)\n"),
    "attest": ("            client.attest()\n", "            os.kill(os.getpid(), 9)\n"),
    "pull": ("        return messages.Resource(", "        os.kill(os.getpid(), 9)\n        return messages.Resource("),
}


@pytest.mark.vm
@pytest.mark.tool
@pytest.mark.parametrize("step", DEATHS)
def test_the_key_process_of_a_real_machine_dies(
    sealed_home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A pod-VM image whose key process kills itself at a step: a clear error at the host, and the machine ends."""
    guest = tmp_path / "cloister"
    shutil.copytree(Path(cloister.__file__).parent, guest, ignore=shutil.ignore_patterns("__pycache__"))
    service = guest / "guest/keyservice.py"
    before, after = DEATHS[step]
    text = service.read_text("utf-8")
    assert text.count(before) == 1
    service.write_text(text.replace(before, after), "utf-8")
    bundle = podvm.build(podvm.BuildRequest(definition=DEFINITION, cache=sealed_home.cache, guest=guest))
    # The owner approves this image: what dies is what was measured.
    monkeypatch.setattr("cloister.sdk.run.build_bundle", lambda *_, **__: bundle)
    check(Run(sealed_home, tmp_path / "run", backend=Backend.SEABIOS), "guest.keys.died")
