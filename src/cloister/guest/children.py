"""Starting programs and learning how they ended: `posix_spawn` and `waitpid`, without a shell and without inheriting.

The guest's one runner of other programs: an argument list, an explicit environment, and exactly the descriptors that
are named. A process that a program leaves behind (crun detaches the container) becomes this one's own child when that
program is gone, and is watched by its descriptor. Here is also what a process asks the kernel about itself (prctl(2)).
The standard library's `subprocess` is not used: it costs a tenth of a second of the guest's start and decides nothing
here.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from cloister.errors import Unavailable

_SIGPIPE: Final = 13
_SIGXFSZ: Final = 25
_SIGKILL: Final = 9
_SIGNALLED: Final = 128
_POLL_SECONDS: Final = 0.005
_ADOPTION_SECONDS: Final = 10.0  # how long a program that detached a process may outlive it
_PR_SET_PDEATHSIG: Final = 1  # include/uapi/linux/prctl.h
_PR_SET_DUMPABLE: Final = 4
_PR_SET_CHILD_SUBREAPER: Final = 36
_OUTPUT_BYTES: Final = 64 * 1024


def become_subreaper() -> None:
    """Make orphaned descendants this process' children, so that it can wait for a detached container."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the thread of `parent` that forked it ends.

    Raises:
        ProcessLookupError: it has ended already.
        OSError: the kernel does not do it.
    """
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() != parent:
        raise ProcessLookupError("the parent is gone")


def forbid_inspection() -> None:
    """Keep other processes from reading this one's memory, tracing it, and making a core file of it.

    Raises:
        OSError: the kernel does not do it.
    """
    _prctl(_PR_SET_DUMPABLE, 0)


def _prctl(option: int, value: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def spawn(
    program: str,
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str],
    descriptors: Mapping[int, int],
    terminal: str = "",
) -> int:
    """Start `program` and return its process id.

    Args:
        program: absolute path.
        arguments: with the name in front.
        environment: all of it.
        descriptors: child's number to ours; 0, 1 and 2 that are missing become `/dev/null`.
        terminal: path of a terminal that becomes the controlling terminal and 0, 1 and 2.

    Raises:
        Unavailable: the program cannot be started (`guest.children.spawn`).
    """
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = []
    for number in (0, 1, 2):
        if terminal:
            # A session leader without a terminal acquires the first one it opens.
            actions.append((os.POSIX_SPAWN_OPEN, number, terminal, os.O_RDWR, 0))
        elif number not in descriptors:
            actions.append((os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_RDWR, 0))
    actions += [(os.POSIX_SPAWN_DUP2, ours, theirs) for theirs, ours in descriptors.items()]
    try:
        return os.posix_spawn(
            program, list(arguments), environment, file_actions=actions, setsid=True, setsigdef=(_SIGPIPE, _SIGXFSZ)
        )
    except OSError as err:
        raise Unavailable(
            "guest.children.spawn", f"program does not start: {err.strerror}", path=os.path.basename(program)
        ) from err


def wait(pid: int) -> int:
    """Wait for child `pid` and return its status as a shell tells it: 0..255, 128+n after signal n."""
    while True:
        try:
            _, status = os.waitpid(pid, 0)
        except ChildProcessError:
            return _SIGNALLED + _SIGKILL  # somebody else took it: nothing is known but that it is gone
        if os.WIFEXITED(status):
            return os.WEXITSTATUS(status)
        if os.WIFSIGNALED(status):
            return _SIGNALLED + os.WTERMSIG(status)


def watch(pidfd: int, ended: Callable[[int], None]) -> None:
    """Call `ended(status)` on another thread once the process of descriptor `pidfd` has ended.

    The process is a child, or becomes one: `crun run --detach` says that it is done and then ends, and until then the
    container is the child of one of its processes, and not ours to wait for.

    Args:
        pidfd: stays open until `ended` is called.
        ended: as `wait` tells a status.
    """
    threading.Thread(target=lambda: ended(_wait_adopted(pidfd)), name=f"wait-{pidfd}", daemon=True).start()


def _wait_adopted(pidfd: int) -> int:
    import select
    import signal

    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    poller.poll()  # whose child it is does not matter here
    deadline = time.monotonic() + _ADOPTION_SECONDS
    while time.monotonic() < deadline:
        try:
            result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        except ChildProcessError:
            try:
                signal.pidfd_send_signal(pidfd, 0)  # reaches one that has ended and nobody has waited for
            except ProcessLookupError:
                break  # somebody else took it
            time.sleep(_POLL_SECONDS)
            continue
        if result is not None:
            return result.si_status + (0 if result.si_code == os.CLD_EXITED else _SIGNALLED)
    return _SIGNALLED + _SIGKILL


def run(
    program: str, arguments: Sequence[str], *, environment: Mapping[str, str], seconds: float, **descriptors: int
) -> int:
    """Run a short program to its end and return its status; after `seconds` it is killed.

    Args:
        program: absolute path.
        arguments: with the name in front.
        environment: all of it.
        seconds: time limit.
        descriptors: `stdin`, `stdout`, `stderr`; the missing are `/dev/null`.

    Raises:
        Unavailable: it does not start, or took too long (`guest.children.timeout`).
    """
    numbers = {"stdin": 0, "stdout": 1, "stderr": 2}
    pid = spawn(
        program,
        arguments,
        environment=environment,
        descriptors={numbers[name]: ours for name, ours in descriptors.items()},
    )
    timer = threading.Timer(seconds, os.kill, (pid, _SIGKILL))
    started = time.monotonic()
    timer.start()
    try:
        status = wait(pid)
    finally:
        timer.cancel()
    if status == _SIGNALLED + _SIGKILL and time.monotonic() - started >= seconds:
        raise Unavailable(
            "guest.children.timeout",
            "program does not end",
            path=os.path.basename(program),
            expected=f"within {seconds} s",
        )
    return status
