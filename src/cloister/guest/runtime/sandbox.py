"""The simulated level's back end: bubblewrap, as any user, without control groups. It protects nothing.

The container gets its own user, mount, pid, ipc and uts namespaces and shares the network of the machine, because
that is where the caller reaches it. One user id exists inside. The environment goes to bubblewrap through a memory
file, so that it is not on its command line.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Final

import msgspec

from cloister.errors import Unavailable
from cloister.guest import children
from cloister.guest.oci_spec import ContainerSetup, process_environment
from cloister.guest.runtime import Ended, ProcessIO, Started, Usage

if TYPE_CHECKING:
    from cloister.guest.users import Identity
    from cloister.podpolicy.model import ProcessSpec

BUBBLEWRAP: Final = "/usr/bin/bwrap"
_ENVIRONMENT: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
_ARGUMENTS_FD: Final = 10
_INFO_FD: Final = 11
_SECONDS: Final = 20.0
_POLL_SECONDS: Final = 0.005
_INFO_BYTES: Final = 4096
_SIGSTOP: Final = 19
_SIGCONT: Final = 18
_ENTER: Final = "enter.py"


class _Running:
    """A started container; `namespace` names its pid namespace, which tells its processes from all others."""

    __slots__ = ("namespace", "pid", "setup")

    def __init__(self, setup: ContainerSetup) -> None:
        self.setup = setup
        self.pid = 0
        self.namespace = ""


class SandboxRuntime:
    """Runs containers with bubblewrap.

    Args:
        work: directory of the pod's files.
    """

    def __init__(self, work: str, *, bubblewrap: str = BUBBLEWRAP) -> None:
        self._bubblewrap = bubblewrap
        self._containers: dict[str, _Running] = {}
        os.makedirs(work, mode=0o700, exist_ok=True)

    def create(self, setup: ContainerSetup) -> None:
        """Remember the container."""
        self._containers[setup.identifier] = _Running(setup)

    def start(self, identifier: str, io: ProcessIO, ended: Ended) -> Started:
        """Run the first process.

        Raises:
            Unavailable: bubblewrap is missing or refuses (`guest.runtime.*`).
        """
        container = self._known(identifier)
        started = self._launch(
            self._bubblewrap,
            ["bwrap", "--args", str(_ARGUMENTS_FD), "--", *container.setup.process.args],
            _bubblewrap_arguments(container.setup),
            io,
            ended,
            terminal=container.setup.process.terminal,
        )
        container.pid = started.pid
        container.namespace = _pid_namespace(started.pid)
        return started

    def exec(
        self, identifier: str, exec_id: str, process: ProcessSpec, identity: Identity, io: ProcessIO, ended: Ended
    ) -> Started:
        """Run an additional process in the namespaces of the first; errors as `start`."""
        import sys

        container = self._known(identifier)
        here = os.path.dirname(os.path.abspath(__file__))
        body = msgspec.json.encode(
            {
                "pid": container.pid,
                "args": process.args,
                "env": process_environment(process, identity, container.setup.hostname),
                "cwd": process.cwd,
            }
        )
        python = sys.executable
        arguments = [python, "-ISB", f"{here}/{_ENTER}", str(_ARGUMENTS_FD), str(_INFO_FD)]
        return self._launch(python, arguments, body, io, ended, terminal=process.terminal)

    def signal(self, identifier: str, pid: int, number: int) -> None:
        """Send a signal to a process that is still of this container."""
        if self.owns(identifier, pid):
            _kill(pid, number)

    def signal_all(self, identifier: str, number: int) -> None:
        """Signal every process."""
        for pid in self.pids(identifier):
            _kill(pid, number)

    def pids(self, identifier: str) -> list[int]:
        """Return the processes in the container's pid namespace."""
        numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        return sorted(pid for pid in numbers if self.owns(identifier, pid))

    def usage(self, identifier: str) -> Usage:
        """Add up what the processes use."""
        pids = self.pids(identifier)
        ticks = pages = 0
        for pid in pids:
            fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
            if len(fields) > 21:
                ticks += int(fields[11]) + int(fields[12])  # utime, stime: proc(5) fields 14 and 15
                pages += int(fields[21])  # rss: field 24
        return Usage(
            cpu_usec=ticks * 1_000_000 // os.sysconf("SC_CLK_TCK"),
            memory_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
            pids=len(pids),
        )

    def pause(self, identifier: str) -> None:
        """Stop every process."""
        self.signal_all(identifier, _SIGSTOP)

    def resume(self, identifier: str) -> None:
        """Continue every process."""
        self.signal_all(identifier, _SIGCONT)

    def owns(self, identifier: str, pid: int) -> bool:
        """Compare pid namespaces."""
        container = self._containers.get(identifier)
        if container is None or not container.namespace:
            return False
        return _pid_namespace(pid) == container.namespace

    def delete(self, identifier: str) -> None:
        """Kill what runs and forget the container."""
        self.signal_all(identifier, 9)
        self._containers.pop(identifier, None)

    def _known(self, identifier: str) -> _Running:
        container = self._containers.get(identifier)
        if container is None:  # the pod ends meanwhile
            raise Unavailable("guest.runtime.failed", "the container was removed")
        return container

    def _launch(
        self, program: str, arguments: list[str], body: bytes, io: ProcessIO, ended: Ended, *, terminal: bool
    ) -> Started:
        """Run `program`, hand it `body` by descriptor, and learn the id of the process it starts from `_INFO_FD`.

        The thread that starts it waits for it too: bubblewrap dies with the *thread* that was its parent.
        """
        master, slave = os.openpty() if terminal else (-1, -1)
        info_read, info_write = os.pipe()
        memory = os.memfd_create("arguments", os.MFD_CLOEXEC)
        failure: list[BaseException] = []

        def live() -> None:
            try:
                pid = children.spawn(
                    program,
                    arguments,
                    environment=_ENVIRONMENT,
                    descriptors=(io.descriptors() if not terminal else {})
                    | {_ARGUMENTS_FD: memory, _INFO_FD: info_write},
                    terminal=os.ttyname(slave) if terminal else "",
                )
            except Unavailable as err:
                failure.append(err)
                return
            finally:
                spawned.set()
            status = children.wait(pid)
            settled.wait()
            if not failure:
                ended(status)

        spawned, settled = threading.Event(), threading.Event()
        try:
            os.write(memory, body)
            os.lseek(memory, 0, os.SEEK_SET)
            threading.Thread(target=live, name="container", daemon=True).start()
            spawned.wait()
            os.close(info_write)
            info_write = -1
            if failure:
                raise failure[0]
            return Started(pid=_read_child(info_read), terminal=master)
        except BaseException as err:
            failure.append(err)
            if master >= 0:
                os.close(master)
            raise
        finally:
            settled.set()
            for fd in (info_read, info_write, memory, slave):
                if fd >= 0:
                    os.close(fd)


def _bubblewrap_arguments(setup: ContainerSetup) -> bytes:
    """Return the NUL-terminated options that `--args` reads."""
    words = ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    words += ["--die-with-parent", "--as-pid-1", "--info-fd", str(_INFO_FD)]
    words += ["--uid", str(setup.identity.uid), "--gid", str(setup.identity.gid), "--hostname", setup.hostname]
    words += ["--bind", setup.root, "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/dev/shm"]  # noqa: S108
    words += ["--chdir", setup.process.cwd, "--clearenv"]
    for item in process_environment(setup.process, setup.identity, setup.hostname):
        name, _, value = item.partition("=")
        words += ["--setenv", name, value]
    return b"".join(word.encode("utf-8", "surrogateescape") + b"\0" for word in words)


def _read_child(fd: int) -> int:
    """Return `child-pid` of the JSON object on `fd`; an early end means that the program failed."""
    import select

    data = b""
    deadline = time.monotonic() + _SECONDS
    while len(data) < _INFO_BYTES and select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        chunk = os.read(fd, _INFO_BYTES)
        data += chunk
        if b"}" in data:
            return int(msgspec.json.decode(data)["child-pid"])
        if not chunk:
            break
    raise Unavailable(
        "guest.runtime.failed",
        "the sandbox did not start",
        hint="does this machine allow user namespaces? see `cloister doctor`",
    )


def _pid_namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
