"""The pod VM's back end: crun, one control group per container, the container detached and then our own child.

crun is run twice per container, to start and to delete it; everything between (signals, statistics, pausing) goes
through process file descriptors and the control group's own files, because a program costs a tenth of a second under
emulation. crun's messages go to a file and are told to the host by kind only. Needs root and cgroup v2.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final

import msgspec

from cloister.errors import Unavailable
from cloister.guest import children
from cloister.guest.oci_spec import ContainerSetup, build_config, build_process, cgroup_path
from cloister.guest.runtime import Ended, ProcessIO, Started, Usage

if TYPE_CHECKING:
    import socket

    from cloister.guest.users import Identity
    from cloister.podpolicy.model import ProcessSpec

CRUN: Final = "/usr/bin/crun"
CGROUPS: Final = "/sys/fs/cgroup"
_ENVIRONMENT: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
_SECONDS: Final = 60.0
_LOG_BYTES: Final = 16 * 1024
_SIGKILL: Final = 9
# What crun says, and what the host may know of it: the reason's kind, never its text.
_KINDS: Final = (
    (b"executable file", "not_found", "the image has no such program"),
    (b"No such file or directory", "not_found", "the image has no such program or directory"),
    (b"ermission denied", "not_executable", "the program may not be executed"),
    (b"xec format error", "not_executable", "the program is not for this machine"),
)


class CrunRuntime:
    """Runs containers with crun.

    Args:
        work: directory in memory for bundles and crun's own state.
    """

    def __init__(self, work: str, *, crun: str = CRUN, cgroups: str = CGROUPS) -> None:
        self._crun = crun
        self._cgroups = cgroups
        self._state = f"{work}/crun"
        self._bundles = f"{work}/bundles"
        self._pidfds: dict[int, int] = {}
        self._pidfds_lock = threading.Lock()
        for directory in (work, self._state, self._bundles):
            os.makedirs(directory, mode=0o700, exist_ok=True)
        children.become_subreaper()

    def create(self, setup: ContainerSetup) -> None:
        """Write the bundle."""
        bundle = f"{self._bundles}/{setup.identifier}"
        os.mkdir(bundle, 0o700)
        with open(f"{bundle}/config.json", "xb") as file:
            file.write(msgspec.json.encode(build_config(setup)))

    def start(self, identifier: str, io: ProcessIO, ended: Ended) -> Started:
        """Run the container detached.

        Raises:
            Unavailable: `guest.runtime.not_found`, `guest.runtime.not_executable`, `guest.runtime.failed`.
        """
        bundle = f"{self._bundles}/{identifier}"
        with open(f"{bundle}/config.json", "rb") as file:
            terminal: bool = msgspec.json.decode(file.read())["process"]["terminal"]
        return self._launch(bundle, "run", ["--bundle", bundle], identifier, io, ended, terminal=terminal)

    def exec(
        self, identifier: str, exec_id: str, process: ProcessSpec, identity: Identity, io: ProcessIO, ended: Ended
    ) -> Started:
        """Run an additional process detached; errors as `start`."""
        place = f"{self._bundles}/{identifier}/exec-{exec_id}"
        os.mkdir(place, 0o700)
        with open(f"{place}/process.json", "xb") as file:
            file.write(msgspec.json.encode(build_process(process, identity, hostname="")))
        arguments = ["--process", f"{place}/process.json"]
        return self._launch(place, "exec", arguments, identifier, io, ended, terminal=process.terminal)

    def signal(self, identifier: str, pid: int, number: int) -> None:
        """Send a signal through the process' own descriptor, so that a reused number is never hit."""
        import signal

        with self._pidfds_lock:  # so that the descriptor is still this process', and open
            pidfd = self._pidfds.get(pid)
            if pidfd is None:
                return
            try:
                signal.pidfd_send_signal(pidfd, number)
            except ProcessLookupError:
                return

    def signal_all(self, identifier: str, number: int) -> None:
        """Signal every process; killing is one write that no fork escapes."""
        if number == _SIGKILL:
            self._write(identifier, "cgroup.kill", b"1")
            return
        for pid in self.pids(identifier):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def pids(self, identifier: str) -> list[int]:
        """Return the control group's processes."""
        return [int(line) for line in self._read(identifier, "cgroup.procs").split()]

    def usage(self, identifier: str) -> Usage:
        """Return the control group's counters; one whose controller is off is 0."""
        cpu = dict(line.split() for line in self._read(identifier, "cpu.stat").splitlines())
        return Usage(
            cpu_usec=int(cpu.get("usage_usec", 0)),
            memory_bytes=int(self._read(identifier, "memory.current") or 0),
            pids=len(self.pids(identifier)),
        )

    def pause(self, identifier: str) -> None:
        """Freeze the control group."""
        self._write(identifier, "cgroup.freeze", b"1")

    def resume(self, identifier: str) -> None:
        """Thaw the control group."""
        self._write(identifier, "cgroup.freeze", b"0")

    def owns(self, identifier: str, pid: int) -> bool:
        """Compare the process' control group."""
        try:
            with open(f"/proc/{pid}/cgroup", encoding="ascii", errors="replace") as file:
                lines = file.read().splitlines()
        except OSError:
            return False
        group = f"0::{cgroup_path(identifier)}"
        return any(line == group or line.startswith(f"{group}/") for line in lines)

    def delete(self, identifier: str) -> None:
        """Have crun remove its state and the control group, then the bundle."""
        import shutil

        log = f"{self._state}/delete-{identifier}.log"
        self._run(log, "delete", "--force", identifier)
        shutil.rmtree(f"{self._bundles}/{identifier}", ignore_errors=True)

    # -- crun ------------------------------------------------------------------------------------------------

    def _launch(
        self,
        place: str,
        verb: str,
        arguments: list[str],
        identifier: str,
        io: ProcessIO,
        ended: Ended,
        *,
        terminal: bool,
    ) -> Started:
        pid_file = f"{place}/pid"
        log = f"{place}/crun.log"
        words = ["--detach", "--pid-file", pid_file, *arguments]
        console = _ConsoleSocket(f"{place}/console") if terminal else None
        try:
            if console is not None:
                words += ["--console-socket", console.path]
            named = {} if terminal else io.descriptors()
            status = self._run(log, verb, *words, identifier, descriptors=named)
            if status:
                raise _start_failure(log)
            master = console.receive() if console is not None else -1
        finally:
            if console is not None:
                console.close()
        with open(pid_file, encoding="ascii") as file:
            pid = int(file.read())
        pidfd = os.pidfd_open(pid)  # it is nobody's who would wait for it but ours, now or when crun is gone
        with self._pidfds_lock:
            self._pidfds[pid] = pidfd
        children.watch(pidfd, lambda status: self._ended(pid, pidfd, status, ended))
        return Started(pid=pid, terminal=master)

    def _run(self, log: str, verb: str, *words: str, descriptors: dict[int, int] | None = None) -> int:
        common = ["crun", f"--root={self._state}", "--cgroup-manager=cgroupfs", f"--log=file:{log}"]
        names = {0: "stdin", 1: "stdout", 2: "stderr"}
        given = {names[number]: fd for number, fd in (descriptors or {}).items()}
        return children.run(self._crun, [*common, verb, *words], environment=_ENVIRONMENT, seconds=_SECONDS, **given)

    def _ended(self, pid: int, pidfd: int, status: int, ended: Ended) -> None:
        with self._pidfds_lock:
            if self._pidfds.get(pid) == pidfd:  # the number is free already, and may be another process' by now
                del self._pidfds[pid]
            os.close(pidfd)
        ended(status)

    # -- control group ---------------------------------------------------------------------------------------

    def _read(self, identifier: str, name: str) -> str:
        try:
            with open(f"{self._cgroups}{cgroup_path(identifier)}/{name}", encoding="ascii") as file:
                return file.read()
        except FileNotFoundError:
            return ""
        except OSError as err:
            raise Unavailable("guest.runtime.cgroup", "control group cannot be read", path=name) from err

    def _write(self, identifier: str, name: str, data: bytes) -> None:
        try:
            with open(f"{self._cgroups}{cgroup_path(identifier)}/{name}", "wb", buffering=0) as file:
                file.write(data)
        except FileNotFoundError:
            return  # the container is gone
        except OSError as err:
            raise Unavailable("guest.runtime.cgroup", "control group cannot be changed", path=name) from err


class _ConsoleSocket:
    """Where crun sends the master side of the terminal it made."""

    def __init__(self, path: str) -> None:
        import socket

        self.path = path
        self._listener: socket.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(1)
        self._listener.settimeout(_SECONDS)

    def receive(self) -> int:
        """Return the descriptor."""
        import socket

        try:
            connection, _ = self._listener.accept()
            with connection:
                _, descriptors, _, _ = socket.recv_fds(connection, 4096, 1)
        except OSError as err:
            raise Unavailable("guest.runtime.terminal", "the runtime sent no terminal") from err
        if not descriptors:
            raise Unavailable("guest.runtime.terminal", "the runtime sent no terminal")
        os.set_inheritable(descriptors[0], False)
        return descriptors[0]

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()
        os.unlink(self.path)


def _start_failure(log: str) -> Unavailable:
    try:
        with open(log, "rb") as file:
            text = file.read(_LOG_BYTES)
    except OSError:
        text = b""
    for pattern, reason, message in _KINDS:
        if pattern in text:
            return Unavailable(
                f"guest.runtime.{reason}", message, path="process.args[0]", hint="check command and image"
            )
    return Unavailable("guest.runtime.failed", "the container runtime refused to start it")
