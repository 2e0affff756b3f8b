"""The crun back end against a stand-in program that obeys the same command line.

crun itself needs cgroup v2 and root; it runs in `tests/integration/test_guest_vm.py`. What is held here: what is asked
of it, what is made of its answers, and that no word of its messages reaches the host.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloister.errors import Unavailable
from cloister.guest import children
from cloister.guest.oci_spec import ContainerSetup
from cloister.guest.runtime import ProcessIO
from cloister.guest.runtime.crun import CrunRuntime
from cloister.guest.users import Identity
from cloister.podpolicy.model import ProcessSpec

STAND_IN = f"""#!{sys.executable} -IS
# Arguments as crun's; runs `script` as a shell script. As in crun a process makes the container, says that it did, and
# then ends, here when it has read from `stays`; it waits for nobody.
import os, sys
here = os.path.dirname(sys.argv[0])
with open(here + "/calls", "a") as file: print(*sys.argv[1:], file=file)
if "delete" in sys.argv: sys.exit()
with open(here + "/script") as file: script = file.read()
log = next(word[len("--log=file:"):] for word in sys.argv if word.startswith("--log=file:"))
if script.startswith("FAIL"):
    with open(log, "w") as file: file.write(script[len("FAIL"):])
    sys.exit(1)
done, say = os.pipe()
if not os.fork():
    container = os.fork()
    if not container: os.execv("/bin/sh", ["sh", "-c", script])
    with open(sys.argv[sys.argv.index("--pid-file") + 1], "w") as file: file.write(str(container))
    os.write(say, b"0")
    if os.path.exists(here + "/stays"): open(here + "/stays").readline()
    os._exit(0)
os.read(done, 1)
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    program = tmp_path / "crun"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    before = children_of_this()
    yield tmp_path
    children._prctl(children._PR_SET_CHILD_SUBREAPER, 0)  # this process runs other tests too
    for pid in children_of_this() - before:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def children_of_this() -> set[int]:
    """Processes whose parent is this one, also the ones that ended and were not waited for."""
    found: set[int] = set()
    for file in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended has none
            found.update(int(pid) for pid in file.read_text().split())
    return found


def runtime(place: Path, script: str) -> CrunRuntime:
    (place / "script").write_text(script)
    made = CrunRuntime(str(place / "work"), crun=str(place / "crun"), cgroups=str(place / "cgroup"))
    spec = ProcessSpec(args=("app",), env=(), cwd="/", user="", terminal=False)
    made.create(
        ContainerSetup(identifier="app", process=spec, identity=Identity(uid=0, gid=0), hostname="h", root="/none")
    )
    return made


def calls(place: Path) -> list[list[str]]:
    return [line.split() for line in (place / "calls").read_text().splitlines()]


class Ended:
    def __init__(self) -> None:
        self.status = -1
        self.event = threading.Event()

    def __call__(self, status: int) -> None:
        self.status = status
        self.event.set()


def test_command_line(place: Path) -> None:
    ended = Ended()
    made = runtime(place, "true")
    made.start("app", ProcessIO(), ended)
    assert ended.event.wait(20)
    made.delete("app")
    work = f"{place}/work"
    common = [f"--root={work}/crun", "--cgroup-manager=cgroupfs"]
    run, delete = calls(place)
    bundle = f"{work}/bundles/app"
    assert run == [*common, f"--log=file:{bundle}/crun.log", "run", "--detach", "--pid-file", f"{bundle}/pid",
                   "--bundle", bundle, "app"]  # fmt: skip
    assert delete[:2] == common
    assert delete[3:] == ["delete", "--force", "app"]
    assert not os.path.exists(bundle)


def test_bundle_is_private_and_written_once(place: Path) -> None:
    made = runtime(place, "true")
    config = place / "work" / "bundles" / "app" / "config.json"
    assert json.loads(config.read_text())["hostname"] == "h"
    assert (place / "work").stat().st_mode & 0o77 == 0
    with pytest.raises(FileExistsError):
        made.create(
            ContainerSetup(
                identifier="app",
                process=ProcessSpec(args=("x",), env=(), cwd="/", user="", terminal=False),
                identity=Identity(uid=0, gid=0),
                hostname="h",
                root="/",
            )
        )


def test_streams_reach_the_process(place: Path) -> None:
    reader, writer = os.pipe()
    ended = Ended()
    runtime(place, "echo out; echo err >&2").start("app", ProcessIO(stdout=writer, stderr=writer), ended)
    os.close(writer)
    with os.fdopen(reader) as file:
        assert file.read() == "out\nerr\n"
    assert ended.event.wait(20)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("executable file `app` not found in $PATH", "guest.runtime.not_found"),
        ("open executable: No such file or directory", "guest.runtime.not_found"),
        ("open executable: Permission denied", "guest.runtime.not_executable"),
        ("exec format error", "guest.runtime.not_executable"),
        ("something about secret-canary", "guest.runtime.failed"),
    ],
)
def test_failures_are_told_by_kind(place: Path, said: str, code: str) -> None:
    with pytest.raises(Unavailable) as caught:
        runtime(place, f"FAIL{said}").start("app", ProcessIO(), Ended())
    assert caught.value.code == code
    assert "canary" not in str(caught.value.as_dict())
    assert "app" not in caught.value.message.split()


def test_process_that_ended_takes_no_signal(place: Path) -> None:
    ended = Ended()
    made = runtime(place, "true")
    started = made.start("app", ProcessIO(), ended)
    assert ended.event.wait(20)
    made.signal("app", started.pid, signal.SIGKILL)
    made.signal("app", 1, signal.SIGKILL)  # never started by us: nothing is sent


def test_exec_has_its_own_place(place: Path) -> None:
    made = runtime(place, "true")
    spec = ProcessSpec(args=("id",), env=("A=b",), cwd="/", user="", terminal=False)
    ended = Ended()
    made.exec("app", "e1", spec, Identity(uid=5, gid=6), ProcessIO(), ended)
    assert ended.event.wait(20)
    (call,) = calls(place)
    where = f"{place}/work/bundles/app/exec-e1"
    assert call[3:] == ["exec", "--detach", "--pid-file", f"{where}/pid", "--process", f"{where}/process.json", "app"]
    process = json.loads(Path(f"{where}/process.json").read_text())
    assert process["args"] == ["id"]
    assert process["user"]["uid"] == 5


@pytest.fixture
def group(place: Path) -> Path:
    directory = place / "cgroup" / "c-app"
    directory.mkdir(parents=True)
    (directory / "cgroup.procs").write_text(f"{os.getpid()}\n")
    (directory / "cpu.stat").write_text("usage_usec 123\nuser_usec 100\n")
    (directory / "memory.current").write_text("4096\n")
    return directory


def test_control_group_is_read_and_written(place: Path, group: Path) -> None:
    made = runtime(place, "true")
    usage = made.usage("app")
    assert (usage.cpu_usec, usage.memory_bytes, usage.pids) == (123, 4096, 1)
    assert made.pids("app") == [os.getpid()]
    made.pause("app")
    assert (group / "cgroup.freeze").read_text() == "1"
    made.resume("app")
    assert (group / "cgroup.freeze").read_text() == "0"
    made.signal_all("app", signal.SIGKILL)
    assert (group / "cgroup.kill").read_text() == "1"


def test_missing_control_group_is_an_empty_container(place: Path) -> None:
    made = runtime(place, "true")
    assert made.pids("app") == []
    assert made.usage("app").pids == 0
    made.pause("app")
    made.signal_all("app", signal.SIGKILL)


def test_signal_to_all_reaches_each_process(place: Path, group: Path) -> None:
    pid = children.spawn("/bin/sleep", ["sleep", "60"], environment={}, descriptors={})
    (group / "cgroup.procs").write_text(f"{pid}\n4194303\n")
    runtime(place, "true").signal_all("app", signal.SIGTERM)
    assert children.wait(pid) == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("line", "owned"),
    [
        ("0::/c-app", True),
        ("0::/c-app/sub", True),
        ("0::/c-apple", False),
        ("0::/c-other", False),
        ("0::/", False),
        ("0::/x/c-app", False),
        ("1:cpu:/c-app", False),
    ],
)
def test_ownership_is_the_exact_group(place: Path, monkeypatch: pytest.MonkeyPatch, line: str, owned: bool) -> None:
    import builtins

    made = runtime(place, "true")
    (place / "cgroup-file").write_text(line + "\n")
    real = builtins.open
    monkeypatch.setattr(
        builtins,
        "open",
        lambda path, *a, **k: real(place / "cgroup-file" if str(path).startswith("/proc/77/") else path, *a, **k),
    )
    assert made.owns("app", 77) is owned


def test_process_that_is_gone_is_nobodys(place: Path) -> None:
    assert not runtime(place, "true").owns("app", 4194303)


def test_exit_status_arrives_once(place: Path) -> None:
    told: list[int] = []
    runtime(place, "exit 3").start("app", ProcessIO(), told.append)
    eventually(lambda: told)
    time.sleep(0.02)
    assert told == [3]


@pytest.mark.parametrize("ends_first", ["container", "crun"])
def test_container_is_watched_though_a_process_of_crun_is_still_its_parent(place: Path, ends_first: str) -> None:
    """crun reports success before the process that made the container ends: until then nobody else may wait for it."""
    told: list[int] = []
    with gate(place / "stays") as let_crun_end, gate(place / "runs") as let_container_end:
        made = runtime(place, f"read line < {place}/runs; exit 3")
        started = made.start("app", ProcessIO(), told.append)
        order = [let_container_end, let_crun_end]
        for let_end in order if ends_first == "container" else reversed(order):
            time.sleep(0.02)
            assert not told
            assert started.pid in made._pidfds
            let_end()
        eventually(lambda: told)
    assert told == [3]
    assert not made._pidfds


@contextlib.contextmanager
def gate(path: Path) -> Iterator[Callable[[], None]]:
    """Make a pipe at `path` from which nothing can be read before the given function is called."""
    os.mkfifo(path)
    with path.open("r+b", buffering=0) as pipe:
        yield lambda: pipe.write(b"\n") and None


def eventually(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)
