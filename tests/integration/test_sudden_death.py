"""Killing any part at any step leaves no process, no key on disk, a clear error, and a clean retry.

Run at the simulated level, where a run takes two seconds, against the same code that drives real VMs; one case kills
QEMU and swtpm under a real VM. Steps are found by what a run shows from outside, not by sleeping.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import images
from cloister.errors import CloisterError
from cloister.host.vmm.spec import Backend
from cloister.sdk.home import Home, home_from_environment
from cloister.sdk.plan import WorkloadRequest
from cloister.sdk.run import CONTAINER, DEFAULT_SHAPE, Environment, Pod
from cloister.sdk.session import PodSession, Terminal

STAY = ("sh", "-c", "echo up; sleep 600")


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


def all_gone(processes: set[int], seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        living = {pid for pid in processes if Path(f"/proc/{pid}/exe").exists() and os.path.lexists(f"/proc/{pid}/exe")}
        living = {pid for pid in living if b"Z" not in _state(pid)}
        if not living:
            return True
        time.sleep(0.05)
    return False


def _state(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return b"Z"


def no_key_on_disk(places: tuple[Path, ...], keys: list[bytes]) -> bool:
    return not any(
        key in file.read_bytes() or key.hex().encode() in file.read_bytes()
        for place in places
        for file in place.rglob("*")
        if file.is_file() and not file.is_symlink()
        for key in keys
    )


def attempt(
    home: Home, work: Path, kill: Callable[[Environment, PodSession | None, str], None]
) -> CloisterError | None:
    """Run a pod, calling `kill` at each step with the step's name; return the error it ended with."""
    work.mkdir(parents=True, exist_ok=True)
    sink = io.BytesIO()
    keys: list[bytes] = []
    try:
        with Environment(home, work, Backend.PROCESS, DEFAULT_SHAPE, lambda *_: None) as environment:
            kill(environment, None, "services")
            image = environment.owner.seal(location(), environment.registry.port)
            pod = Pod.plan_for(environment, image, WorkloadRequest(args=STAY), name="victim")
            keys.append(pod.stream_key)
            pod.approve()
            with environment.owner.admin() as admin:
                keys += [admin.get_resource(path) for path in image.kek]
            kill(environment, None, "approved")
            with pod.launch() as session:
                kill(environment, session, "launched")
                session.wait_ready(30)
                kill(environment, session, "ready")
                streams = session.create(CONTAINER, registry=environment.registry_url, stream_key=pod.stream_key)
                kill(environment, session, "created")
                session.start(CONTAINER)
                killer = threading.Timer(0.3, kill, (environment, session, "running"))
                killer.start()
                session.attend(CONTAINER, streams, Terminal(stdout=sink, stderr=sink))
                killer.join()
    except CloisterError as error:
        return error
    finally:
        assert no_key_on_disk((home.root / "registry", home.root / "trust", work), keys)
    return None


def victim(environment: Environment, session: PodSession | None, part: str) -> int:
    if part == "trust":
        return environment.trust.child.pid
    if part == "registry":
        return environment.registry.child.pid
    assert session is not None
    return next(iter(session.machine.pids.values()))


CASES = [
    ("trust", "services"),
    ("trust", "approved"),
    ("trust", "launched"),
    ("registry", "services"),
    ("registry", "approved"),
    ("registry", "ready"),
    ("agent", "launched"),
    ("agent", "ready"),
    ("agent", "created"),
    ("agent", "running"),
]


@pytest.mark.tool
@pytest.mark.parametrize(("part", "step"), CASES)
def test_one_part_dies(tmp_path: Path, part: str, step: str) -> None:
    home = home_from_environment()
    before = descendants(os.getpid())

    def kill(environment: Environment, session: PodSession | None, now: str) -> None:
        if now == step:
            os.kill(victim(environment, session, part), signal.SIGKILL)

    error = attempt(home, tmp_path / "first", kill)
    assert error is not None and error.code and error.message
    assert all_gone(descendants(os.getpid()) - before)

    def stop_when_up(_: Environment, session: PodSession | None, now: str) -> None:
        if now == "running" and session is not None:
            session.kill(CONTAINER, signal.SIGKILL)

    assert attempt(home, tmp_path / "second", stop_when_up) is None


@pytest.mark.tool
@pytest.mark.parametrize("level", ["simulated", pytest.param("measured", marks=pytest.mark.vm)])
def test_the_command_itself_is_killed(tmp_path: Path, level: str) -> None:
    """SIGKILL of `cloister run` takes services, launcher, swtpm, QEMU or sandbox with it."""
    command = [sys.executable, "-m", "cloister", "run", "-q", "--level", level, location(), *STAY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        family = descendants(process.pid)
        assert len(family) >= 3
        process.kill()
    assert all_gone(family)


@pytest.mark.vm
@pytest.mark.tool
@pytest.mark.parametrize("part", ["qemu", "swtpm"])
def test_a_real_machine_dies(tmp_path: Path, part: str) -> None:
    home = home_from_environment()
    before = descendants(os.getpid())
    with Environment(home, tmp_path, Backend.SEABIOS, DEFAULT_SHAPE, lambda *_: None) as environment:
        image = environment.owner.seal(location(), environment.registry.port)
        pod = Pod.plan_for(environment, image, WorkloadRequest(args=STAY), name=f"victim-{part}")
        pod.approve()
        with pod.launch() as session:
            session.hello()
            os.kill(session.machine.pids[part], signal.SIGKILL)
            with pytest.raises(CloisterError) as caught:
                session.wait_ready()
            assert caught.value.code == f"host.vm.{part}_died", caught.value
            assert caught.value.hint
        assert not list((home.root / "vtpm-pool").glob("used-*"))
    assert all_gone(descendants(os.getpid()) - before)
