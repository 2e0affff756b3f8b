"""The one place where the host side starts and ends other programs.

Argument list, explicit environment, output captured or sent where the caller says. Two kinds: `run_tool` for a
program that answers and ends within a time limit, and `Child` for one that lives as long as a pod VM.

No child outlives this process, however it ends: each is started with a parent-death signal (prctl(2),
PR_SET_PDEATHSIG). The kernel ties that signal to the *thread* that forked, so all children are started by one thread
that lives as long as the process; and because the parent may already be gone when the child asks for the signal, the
child then compares its parent with the expected one before it becomes the program. Trusts the programs it starts.
"""

from __future__ import annotations

import os
import queue
import select
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cloister.errors import Unavailable

SEARCH_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT: Final[Mapping[str, str]] = {"PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}
KILL_SECONDS: Final = 10.0  # a killed process that is not gone by then hangs in the kernel
_SHOWN_OUTPUT: Final = 400
_PARENT_GONE_STATUS: Final = 125

# The arguments arrive as positional parameters: no text of a caller is ever parsed by the shell.
_GUARD: Final = f'[ "$PPID" = "$1" ] || exit {_PARENT_GONE_STATUS}; shift; exec "$@"'

_PACKAGES: Final[Mapping[str, str]] = {
    "qemu-system-x86_64": "qemu-system-x86",
    "swtpm": "swtpm",
    "swtpm_setup": "swtpm-tools",
    "swtpm_localca": "swtpm-tools",
    "bwrap": "bubblewrap",
    "setpriv": "util-linux",
}


def find_program(name: str) -> Path:
    """Return the absolute path of an installed program.

    Raises:
        Unavailable: not installed (`host.tool.missing`).
    """
    found = shutil.which(name, path=SEARCH_PATH)
    if found is None:
        package = _PACKAGES.get(name, name)
        raise Unavailable(
            "host.tool.missing", f"{name} is not installed", expected=name, hint=f"apt-get install {package}"
        )
    return Path(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOutput:
    """What a program that ended with status 0 wrote."""

    stdout: bytes
    stderr: bytes


def run_tool(
    command: Sequence[str],
    *,
    seconds: float,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> ToolOutput:
    """Run a program to its end.

    Raises:
        Unavailable: it is missing (`host.tool.missing`), took too long and was killed (`host.tool.timeout`), or
            failed (`host.tool.failed`, with the tail of its error output and the command to run by hand).
    """
    program = Path(command[0]).name
    child_environment = {**ENVIRONMENT, **(environment or {})}
    try:
        done = subprocess.run(
            _guarded(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
            cwd=cwd,
            env=child_environment,
        )
    except FileNotFoundError as err:
        raise Unavailable("host.tool.missing", "a program is missing", expected=program) from err
    except subprocess.TimeoutExpired as err:
        raise Unavailable(
            "host.tool.timeout", f"{program} did not end", expected=f"within {seconds:g} s", hint=replayable(command)
        ) from err
    if done.returncode != 0:
        tail = (done.stderr or done.stdout).decode(errors="replace").strip()[-_SHOWN_OUTPUT:]
        raise Unavailable(
            "host.tool.failed", f"{program} gave {done.returncode}: {tail}", hint=replayable(command, cwd=cwd)
        )
    return ToolOutput(stdout=done.stdout, stderr=done.stderr)


class Child:
    """A program that runs until it ends or is ended; usable where a file descriptor is (readable once it ended).

    Attributes:
        name: what it is to the caller (`qemu`, `swtpm`).
        command: its argument list.
        pid: its process id, valid until `wait` or `end` returned.
    """

    def __init__(self, name: str, command: Sequence[str], popen: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.command = tuple(command)
        self.pid = popen.pid
        self._popen = popen
        self._lock = threading.Lock()  # Popen.poll answers None while another thread is in it
        self._pidfd = os.pidfd_open(popen.pid)  # not yet reaped, so the number still means this process

    @classmethod
    def start(
        cls,
        name: str,
        command: Sequence[str],
        *,
        output: int,
        pass_fds: Sequence[int] = (),
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Child:
        """Start a program.

        Args:
            name: what it is to the caller.
            command: argument list; the first element is an absolute path.
            output: descriptor that gets its standard output and error.
            pass_fds: descriptors it inherits under the same numbers.
            cwd: its working directory.
            environment: variables beside `ENVIRONMENT`.

        Raises:
            Unavailable: it cannot be started (`host.tool.missing`, `host.tool.failed`).
        """
        child_environment = {**ENVIRONMENT, **(environment or {})}

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                _guarded(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=tuple(pass_fds),
                cwd=cwd,
                env=child_environment,
                start_new_session=True,  # a terminal's ^C is for the owner's command, which then ends the VM in order
            )

        try:
            return cls(name, command, _SPAWNER.run(start))
        except FileNotFoundError as err:
            raise Unavailable("host.tool.missing", "a program is missing", expected=command[0]) from err
        except OSError as err:
            raise Unavailable(
                "host.tool.failed", f"{name} cannot be started: {err.strerror}", hint=replayable(command, cwd=cwd)
            ) from err

    def fileno(self) -> int:
        """Return the pidfd."""
        return self._pidfd

    @property
    def status(self) -> int | None:
        """Exit status, negative signal number, or None while it runs."""
        with self._lock:
            return self._popen.poll()

    def wait(self, seconds: float | None = None) -> int | None:
        """Wait until it ended; return its status, or None when the time is over."""
        with self._lock:
            if self._popen.poll() is not None:
                return self._popen.returncode
            pidfd = os.dup(self._pidfd)  # our own, so that `close` in another thread does no harm
        try:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            poller.poll(None if seconds is None else seconds * 1000)
        finally:
            os.close(pidfd)
        return self.status

    def send(self, number: signal.Signals) -> None:
        """Send a signal; does nothing once it ended."""
        with self._lock:
            if self._popen.poll() is None:
                signal.pidfd_send_signal(self._pidfd, number)

    def end(self, *, grace_seconds: float) -> int:
        """End it, politely first; return its status. Does nothing once it ended.

        Raises:
            Unavailable: it is still there after SIGKILL (`host.process.unkillable`).
        """
        if grace_seconds > 0:
            self.send(signal.SIGTERM)
            self.wait(grace_seconds)
        self.send(signal.SIGKILL)
        status = self.wait(KILL_SECONDS)
        if status is None:
            raise Unavailable("host.process.unkillable", f"{self.name} does not end", actual=f"pid {self.pid}")
        return status

    def close(self) -> None:
        """Give the pidfd back; the process must have ended."""
        with self._lock:
            if self._pidfd >= 0:
                os.close(self._pidfd)
                self._pidfd = -1

    def replayable(self) -> str:
        """Return the command as a line for a shell."""
        return replayable(self.command)


def replayable(command: Sequence[str], *, cwd: Path | None = None) -> str:
    """Return a line for a shell that runs `command` again."""
    line = shlex.join(command)
    return f"cd {shlex.quote(str(cwd))} && {line}" if cwd else line


def _guarded(command: Sequence[str]) -> list[str]:
    """Return `command` behind the two programs that tie its life to this process."""
    setpriv = [str(find_program("setpriv")), "--pdeathsig", "KILL", "--"]
    return [*setpriv, "/bin/sh", "-c", _GUARD, "guard", str(os.getpid()), *command]


class _Spawner:
    """The thread that starts all long-running children. It never ends: its end would be theirs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = 0
        self._requests: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()  # Any: generic

    def run(self, start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        """Call `start` in the thread and return its result or raise its error."""
        with self._lock:
            if self._owner != os.getpid():  # a fork copies this object but not the thread
                self._owner = os.getpid()
                self._requests = queue.SimpleQueue()
                threading.Thread(target=self._serve, args=(self._requests,), name="spawner", daemon=True).start()
        answer: Future[subprocess.Popen[bytes]] = Future()
        self._requests.put((start, answer))
        return answer.result()

    @staticmethod
    def _serve(requests: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]]) -> None:
        while True:
            start, answer = requests.get()
            try:
                answer.set_result(start())
            except BaseException as err:  # noqa: BLE001  # handed to the caller, who raises it
                answer.set_exception(err)


_SPAWNER: Final = _Spawner()
