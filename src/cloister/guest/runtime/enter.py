"""A small program: join the namespaces of a running sandbox and execute one more process there.

Run by `sandbox.SandboxRuntime.exec` as a script, never imported. Arguments: descriptor of a JSON object with `pid`,
`args`, `env`, `cwd`; descriptor to report `{"child-pid": n}` on. Its exit status is the process'. bubblewrap may nest
two user namespaces, of which the outer one owns the others: the outer is joined first, the inner last.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import sys

_NS_GET_PARENT = 0xB702  # ioctl_ns(2)
_PR_CAPBSET_DROP = 24
_CAPABILITIES = 64
_SIGNALLED = 128

_libc = ctypes.CDLL(None, use_errno=True)


def _join(fd: int) -> None:
    if _libc.setns(fd, 0):
        raise OSError(ctypes.get_errno(), "setns")


def _enter(pid: int) -> None:
    """Join all namespaces of `pid`; the pid namespace counts for children only."""
    spaces = {kind: os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for kind in ("user", "mnt", "ipc", "uts", "pid")}
    own = os.readlink("/proc/self/ns/user")
    try:
        outer = fcntl.ioctl(spaces["user"], _NS_GET_PARENT)
        nested = os.readlink(f"/proc/self/fd/{outer}") != own
    except OSError:
        nested = False
    if nested:
        _join(outer)
    else:
        _join(spaces["user"])
    for kind in ("mnt", "ipc", "uts", "pid"):
        _join(spaces[kind])
    if nested:
        _join(spaces["user"])


def _execute(arguments: list[str], environment: dict[str, str]) -> None:
    """Become the program, found as a shell finds it. `os.execvpe` would import, from a root that is no longer ours."""
    name = arguments[0]
    places = [""] if "/" in name else [f"{place}/" for place in environment.get("PATH", "/bin:/usr/bin").split(":")]
    last: OSError = FileNotFoundError(name)
    for place in places:
        try:
            os.execve(place + name, arguments, environment)  # noqa: S606  # no shell is the point
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as err:
            last = err
    raise last


def main() -> int:
    """Return the exit status of the process."""
    given, report = int(sys.argv[1]), int(sys.argv[2])
    with os.fdopen(given, "rb") as file:
        request = json.load(file)
    _enter(request["pid"])
    environment = dict(item.partition("=")[::2] for item in request["env"])
    child = os.fork()
    if child == 0:
        os.close(report)
        for number in range(_CAPABILITIES):
            _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
        try:
            os.chdir(request["cwd"])
            _execute(request["args"], environment)
        except OSError as err:
            os._exit(127 if isinstance(err, FileNotFoundError) else 126)
    os.write(report, json.dumps({"child-pid": child}).encode())
    os.close(report)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _, status = os.waitpid(child, 0)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else _SIGNALLED + os.WTERMSIG(status)


if __name__ == "__main__":
    sys.exit(main())
