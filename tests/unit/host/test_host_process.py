"""Children: they get what they were given, end when told, and do not outlive this process."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cloister.errors import Unavailable
from cloister.host.process import Child, find_program, replayable, run_tool

SLEEP = ["/bin/sleep", "1000"]


def start(command: list[str], **more: object) -> Child:
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        return Child.start("test", command, output=null, **more)  # type: ignore[arg-type]  # test passes keywords on
    finally:
        os.close(null)


def finish(child: Child) -> int:
    status = child.end(grace_seconds=0)
    child.close()
    return status


def test_tool_answers(tmp_path: Path) -> None:
    done = run_tool(["/bin/sh", "-c", "pwd; echo $EXTRA $HOME; echo no >&2"], seconds=20, cwd=tmp_path)
    assert done.stdout == f"{tmp_path}\n/nonexistent\n".encode()
    assert done.stderr == b"no\n"
    assert run_tool(["/bin/sh", "-c", "echo $A"], seconds=20, environment={"A": "b"}).stdout == b"b\n"


def test_tool_gets_no_environment_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "x")
    assert b"CANARY" not in run_tool(["/usr/bin/env"], seconds=20).stdout


def test_arguments_are_not_parsed_by_a_shell() -> None:
    words = ["a b", "$(echo evil)", "`id`", ";", "--", "*", "'\""]
    assert run_tool(["/usr/bin/printf", "%s\n", *words], seconds=20).stdout.decode().splitlines() == words


def test_tool_fails() -> None:
    with pytest.raises(Unavailable, match=r"host\.tool\.failed") as error:
        run_tool(["/bin/sh", "-c", "echo cause >&2; exit 3"], seconds=20)
    assert "gave 3: cause" in error.value.message
    assert error.value.hint == "/bin/sh -c 'echo cause >&2; exit 3'"


def test_tool_takes_too_long() -> None:
    with pytest.raises(Unavailable, match=r"host\.tool\.timeout"):
        run_tool(SLEEP, seconds=0.2)


def test_missing_tools() -> None:
    with pytest.raises(Unavailable, match=r"host\.tool\.missing") as error:
        find_program("no-such-program")
    assert error.value.hint == "apt-get install no-such-program"
    with pytest.raises(Unavailable, match=r"host\.tool\.failed"):
        run_tool(["/no/such/program"], seconds=20)


def test_replayable() -> None:
    assert replayable(["a", "b c"], cwd=Path("/d e")) == "cd '/d e' && a 'b c'"


def test_child_ends_when_told() -> None:
    child = start(SLEEP)
    assert child.status is None
    assert child.wait(0) is None
    assert child.end(grace_seconds=10) == -signal.SIGTERM
    assert child.end(grace_seconds=10) == -signal.SIGTERM
    child.send(signal.SIGKILL)
    child.close()
    child.close()


def test_child_that_ignores_a_polite_word(tmp_path: Path) -> None:
    ready, told = os.pipe()
    script = "trap '' TERM; echo >/dev/fd/$1; exec sleep 1000"
    child = start(["/bin/sh", "-c", script, "x", str(told)], pass_fds=(told,))
    os.close(told)
    os.read(ready, 1)
    os.close(ready)
    assert child.end(grace_seconds=0.2) == -signal.SIGKILL
    child.close()


def test_child_is_readable_once_it_ended() -> None:
    child = start(["/bin/sh", "-c", "exit 7"])
    assert select.select([child], [], [], 20)[0] == [child]
    assert child.wait(20) == 7
    child.close()


def test_child_inherits_what_it_was_given(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    kept, extra = os.pipe()
    child = Child.start(
        "test",
        ["/bin/sh", "-c", f"pwd; echo more >/dev/fd/{extra}; ls /proc/$$/fd"],
        output=writing,
        pass_fds=(extra,),
        cwd=tmp_path,
    )
    for end in (writing, extra):
        os.close(end)
    assert child.wait(20) == 0
    child.close()
    with os.fdopen(reading) as output, os.fdopen(kept) as second:
        words = output.read().split()
        assert words[0] == str(tmp_path)
        assert set(words[1:]) <= {"0", "1", "2", "10", str(extra)}  # dash opens its own 10
        assert second.read() == "more\n"


def test_child_outlives_the_thread_that_asked_for_it() -> None:
    started: list[Child] = []
    thread = threading.Thread(target=lambda: started.append(start(SLEEP)))
    thread.start()
    thread.join()
    assert started[0].wait(0.3) is None
    assert finish(started[0]) == -signal.SIGKILL


def test_child_cannot_be_started() -> None:
    with pytest.raises(Unavailable, match=r"host\.tool"):
        start(SLEEP, cwd=Path("/no/such/directory"))


ORPHANS = """
import os, sys
from cloister.host.process import Child
null = os.open(os.devnull, os.O_WRONLY)
children = [Child.start("x", ["/bin/sleep", "1000"], output=null) for _ in range(3)]
print(*(child.pid for child in children), flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["sys.stdin.read()", "os._exit(0)", "raise SystemExit(3)"])
def test_no_child_survives_this_process(end: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", ORPHANS.format(end=end)], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 3
    descriptors = [descriptor for pid in pids if (descriptor := opened(pid)) >= 0]
    parent.kill()
    parent.communicate()
    for descriptor in descriptors:
        assert select.select([descriptor], [], [], 20)[0], "a child is still there"
        os.close(descriptor)


def opened(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1  # gone already


def test_child_whose_parent_is_already_gone(tmp_path: Path) -> None:
    """The guard sees another parent than the one that asked: it must not become the program."""
    from cloister.host import process

    command = process._guarded(["/bin/sh", "-c", f"echo ran > {tmp_path}/mark"])
    wrong = [word if word != str(os.getpid()) else "1" for word in command]
    assert subprocess.run(wrong, check=False).returncode == 125
    assert not (tmp_path / "mark").exists()
    assert subprocess.run(command, check=False).returncode == 0
    assert (tmp_path / "mark").exists()
