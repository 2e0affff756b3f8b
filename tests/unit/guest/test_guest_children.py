"""Programs get exactly what is named, and how they ended is known."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from cloister.errors import Unavailable
from cloister.guest import children

SH = "/bin/sh"


def spawn(script: str, **descriptors: int) -> int:
    numbers = {"stdin": 0, "stdout": 1, "stderr": 2}
    return children.spawn(
        SH,
        ["sh", "-c", script],
        environment={"A": "b"},
        descriptors={numbers[name]: fd for name, fd in descriptors.items()},
    )


def output_of(script: str) -> str:
    reader, writer = os.pipe()
    pid = spawn(script, stdout=writer)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    assert children.wait(pid) == 0
    return text


@pytest.mark.parametrize("status", [0, 1, 7, 255])
def test_status_is_the_shells(status: int) -> None:
    assert children.wait(spawn(f"exit {status}")) == status


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_signal_is_128_and_its_number(number: int) -> None:
    assert children.wait(spawn(f"ulimit -c 0; kill -{int(number)} $$; sleep 10")) == 128 + number


def test_environment_is_what_is_given() -> None:
    lines = set(output_of("env").split())
    assert "A=b" in lines
    assert not any(line.startswith(("HOME=", "CLOISTER", "PYTHON")) for line in lines)


def test_only_named_descriptors_are_inherited() -> None:
    """Python opens everything close-on-exec; what is named arrives under the child's number."""
    extra, writer = os.pipe()
    leaks = {str(os.readlink(f"/proc/self/fd/{fd}")) for fd in (extra, writer)}
    assert not leaks & set(output_of("for f in /proc/self/fd/*; do readlink $f; done; true").split())
    os.close(extra)
    os.close(writer)


def test_missing_streams_are_the_null_device() -> None:
    assert output_of("readlink /proc/self/fd/0 /proc/self/fd/2; cat").split() == ["/dev/null"] * 2


def test_ignored_signals_of_the_interpreter_are_not_inherited() -> None:
    """Python ignores SIGPIPE; a program must not."""
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN
    line = next(line for line in output_of("cat /proc/self/status").splitlines() if line.startswith("SigIgn"))
    assert int(line.split()[1], 16) & (1 << (signal.SIGPIPE - 1)) == 0


def test_terminal_becomes_the_controlling_one() -> None:
    master, slave = os.openpty()
    pid = children.spawn(
        SH, ["sh", "-c", "exec 3<>/dev/tty && echo yes >&3"], environment={}, descriptors={}, terminal=os.ttyname(slave)
    )
    assert children.wait(pid) == 0
    assert os.read(master, 100).strip() == b"yes"
    os.close(master)
    os.close(slave)


def test_program_that_is_missing_is_told() -> None:
    with pytest.raises(Unavailable) as caught:
        children.spawn("/no/such/program", ["x"], environment={}, descriptors={})
    assert caught.value.code == "guest.children.spawn"
    assert caught.value.path == "program"


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3), ("kill -9 $$", 137), ("kill -15 $$", 143)])
def test_watch_tells_once(script: str, status: int) -> None:
    told: list[int] = []
    done = threading.Event()
    pidfd = os.pidfd_open(spawn(script))
    children.watch(pidfd, lambda status: (told.append(status), done.set()))
    assert done.wait(20)
    time.sleep(0.05)
    os.close(pidfd)
    assert told == [status]


def test_watched_process_that_somebody_else_waits_for_is_gone() -> None:
    pid = spawn("read line", stdin=(pipe := os.pipe())[0])
    pidfd = os.pidfd_open(pid)
    os.close(pipe[0])
    os.close(pipe[1])
    assert children.wait(pid) == 1
    told: list[int] = []
    children.watch(pidfd, told.append)
    deadline = time.monotonic() + 20
    while not told:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.close(pidfd)
    assert told == [137]


def test_run_returns_the_status() -> None:
    assert children.run(SH, ["sh", "-c", "exit 9"], environment={}, seconds=20) == 9


def test_run_has_a_time_limit() -> None:
    started = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        children.run("/bin/sleep", ["sleep", "60"], environment={}, seconds=0.2)
    assert caught.value.code == "guest.children.timeout"
    assert time.monotonic() - started < 20


def test_waiting_for_somebody_elses_child_does_not_hang() -> None:
    assert children.wait(1) == 137


@pytest.mark.tool
@pytest.mark.parametrize("ends_first", ["detached", "detacher"])
def test_subreaper_learns_how_the_detached_process_ended(ends_first: str) -> None:
    """Also when what detached it is still there, as a process of `crun run --detach` is for a moment.

    In a process of its own: the test runner must not become a subreaper.
    """
    script = """
import os, sys, threading
sys.path.insert(0, sys.argv[1])
from cloister.guest import children
children.become_subreaper()
(a, detacher), (b, detached), (words, says) = os.pipe(), os.pipe(), os.pipe()
for fd in (a, b, says): os.set_inheritable(fd, True)
pid = children.spawn('/bin/sh', ['sh', '-c', f'''
    ( (read x <&{b}; exit 5) & echo $! >&{says}; exec head -n1 <&{a} ) &
'''], environment={'PATH': '/bin:/usr/bin'}, descriptors={a: a, b: b, says: says})
assert children.wait(pid) == 0
pidfd = os.pidfd_open(int(os.read(words, 100)))
told, done = [], threading.Event()
children.watch(pidfd, lambda status: (told.append(status), done.set()))
first, last = (detached, detacher) if sys.argv[2] == 'detached' else (detacher, detached)
assert not done.wait(0.05), told
os.write(first, b'\\n')
assert not done.wait(0.05), told
os.write(last, b'\\n')
assert done.wait(20)
sys.exit(told[0])
"""
    source = str(Path(__file__).resolve().parents[3] / "src")
    pid = children.spawn(
        sys.executable, [sys.executable, "-c", script, source, ends_first], environment={}, descriptors={2: 2}
    )
    assert children.wait(pid) == 5
