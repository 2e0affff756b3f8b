"""Back end `process`: the agent as a process of this machine, in namespaces of its own. Level `simulated`.

It protects nothing: it is for tests, and for machines without QEMU. The agent and its containers share the machine's
network; evidence is signed by a key file of this machine.

bubblewrap makes the sandbox, as any user. Root's sandbox runs under a user id nobody has, because bubblewrap covers
parts of /proc in a sandbox of root, and the kernel then refuses /proc to the containers nested in it. That user may
not enter root's directories; so root's command has a step before it, which binds what Python needs where it may.

Channels: the launcher listens on two Unix sockets, the agent connects to both (`docs/reference/launchers.md`).
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import cloister
from cloister.errors import Unavailable
from cloister.host.heldplace import HeldPlace
from cloister.host.process import Child, find_program
from cloister.host.vmm.initdatafile import InitDataFile
from cloister.host.vmm.machine import Pipes, RunningVM
from cloister.host.vmm.ports import Forwarder, copy_both_ways, require_free
from cloister.host.vmm.qemu import CONSOLE_FILE, prepare_work
from cloister.host.vmm.spec import Backend, VMSpec
from cloister.host.vmm.staging import Staging
from cloister.rats.claims import Level

AGENT: Final = "cloister.guest.agent"  # by name: host and guest code never import one another
ROOTS_STAND_IN: Final = 65533  # user and group of root's sandboxes; no account has it on Debian
CONNECT_SECONDS: Final = 20.0  # Python's start and the agent's first imports: 0.2 s on an idle machine
SOCKET_PATH_BYTES: Final = 100  # sun_path holds 108
_INSIDE: Final = "/run/cloister"
_OPEN_TO_ALL: Final = "/run"
_STATE: Final = f"{_INSIDE}/state"
_FILES: Final = ("control", "streams", "initdata", "simulation-key")
_SYSTEM: Final = ("/bin", "/sbin", "/lib", "/lib64")
_ETC: Final = ("/etc/ld.so.cache", "/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/alternatives")
_PLACE: Final = "python-"
# The paths arrive as positional parameters: the shell parses none of them.
_BIND_STEP: Final = 'while [ "$1" != -- ]; do mount --bind "$1" "$2" || exit 126; shift 2; done; shift; exec "$@"'
_SHARED: Final = frozenset({"127.0.0.1", "0.0.0.0"})  # noqa: S104  # compared with, not listened on


class ProcessLauncher:
    """Runs the agent in a sandbox.

    Args:
        simulation_key: the machine's simulation key, made when absent.
        agent: what Python runs.
    """

    backend = Backend.PROCESS
    level = Level.SIMULATED

    def __init__(self, simulation_key: Path, *, agent: Sequence[str] = ("-m", AGENT)) -> None:
        self._simulation_key = simulation_key
        self._agent = agent

    def launch(self, spec: VMSpec) -> RunningVM:
        """Start a pod, see `Launcher`. `bundle`, `vcpus`, `memory_mib` and `accelerator` mean nothing here."""
        require_free(spec.ports)
        with Staging() as staging:
            prepare_work(staging, spec)
            runtime = _runtime_directory(staging)
            listeners = [_listen(staging, runtime / name) for name in _FILES[:2]]
            initdata = InitDataFile(runtime / "initdata", spec.initdata)
            _copy_key(self._simulation_key, runtime / "simulation-key")
            _give_away(runtime)
            for port in spec.ports:
                if port.host_port != port.guest_port or port.host_ip not in _SHARED:
                    staging.leftover(Forwarder(port).close)
            command = sandbox_command(spec.name, runtime, self._agent, as_root=os.geteuid() == 0)
            child, output = staging.start("sandbox", command)
            control = _accept(staging, listeners[0], child, output)
            streams = _relay_when_connected(staging, listeners[1])
            return RunningVM(
                name=spec.name,
                backend=self.backend,
                level=self.level,
                pipes=Pipes(control=control, streams=streams),
                console=spec.work / CONSOLE_FILE,
                launch=None,
                initdata=initdata,
                main=child,
                main_output=output,
                aside={},
                clean_up=staging.hand_over(),
            )


def sandbox_command(name: str, runtime: Path, agent: Sequence[str], *, as_root: bool) -> list[str]:
    """Return the command that runs the agent in a sandbox.

    Args:
        name: host name inside.
        runtime: directory with `control`, `streams`, `initdata` and `simulation-key`; for root also `python-N`.
        agent: what Python runs.
        as_root: whether root starts it.

    Raises:
        Unavailable: bubblewrap is missing (`host.tool.missing`).
    """
    bubblewrap = str(find_program("bwrap"))
    binds = {f"{_INSIDE}/{file}": runtime / file for file in _FILES}
    places = _python_places()
    if not as_root:
        return [bubblewrap, *_inner(name, binds | {str(place): place for place in places}, agent)]
    reachable = {place: runtime / f"{_PLACE}{number}" for number, place in enumerate(places)}
    mounts = [str(path) for pair in reachable.items() for path in pair]
    step = [str(find_program("unshare")), "--mount", "--propagation", "private", "--"]
    step += ["/bin/sh", "-c", _BIND_STEP, "bind", *mounts, "--"]
    identity = ["--reuid", str(ROOTS_STAND_IN), "--regid", str(ROOTS_STAND_IN), "--clear-groups"]
    step += [str(find_program("setpriv")), *identity, "--pdeathsig", "KILL", "--"]
    binds |= {str(place): reached for place, reached in reachable.items()}
    return [*step, bubblewrap, *_inner(name, binds, agent)]


def _inner(name: str, binds: Mapping[str, Path], agent: Sequence[str]) -> list[str]:
    arguments = ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    arguments += ["--die-with-parent", "--new-session", "--uid", "0", "--gid", "0", "--cap-add", "ALL"]
    arguments += ["--hostname", name, "--chdir", "/", "--clearenv", "--setenv", "PATH", "/usr/sbin:/usr/bin:/sbin:/bin"]
    arguments += ["--ro-bind", "/usr", "/usr"]
    for directory in map(Path, _SYSTEM):
        if directory.is_symlink():
            arguments += ["--symlink", str(directory.readlink()), str(directory)]
        elif directory.is_dir():
            arguments += ["--ro-bind", str(directory), str(directory)]
    for file in _ETC:
        arguments += ["--ro-bind-try", file, file]
    arguments += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/run", "--dir", _STATE]  # noqa: S108
    for inside, source in binds.items():
        arguments += ["--ro-bind", str(source), inside]
    arguments += ["--", sys.executable, "-I", "-B", *agent, "--platform", "simulated"]
    arguments += ["--control-socket", f"{_INSIDE}/control", "--streams-socket", f"{_INSIDE}/streams"]
    arguments += ["--initdata", f"{_INSIDE}/initdata", "--simulation-key", f"{_INSIDE}/simulation-key"]
    return [*arguments, "--state", _STATE]


def _python_places() -> Sequence[Path]:
    """Return what this interpreter needs outside /usr: its installation, its environment, this package."""
    wanted = {Path(sys.base_prefix), Path(sys.prefix), Path(cloister.__file__).parent}
    outside = sorted(place.resolve() for place in wanted if not place.resolve().is_relative_to("/usr"))
    return [place for place in outside if not any(place != other and place.is_relative_to(other) for other in outside)]


def _runtime_directory(staging: Staging) -> Path:
    """Make a private directory whose path leaves room for a socket's name.

    Raises:
        Unavailable: the place the environment names has too long a path (`host.sandbox.path`).
    """
    place = Path(_OPEN_TO_ALL if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR", ""))
    usable = place.is_absolute() and place.is_dir()  # root's own is closed to its stand-in
    held = HeldPlace("cloister-sandbox", parent=place if usable else None, remove=_remove_flat)
    staging.leftover(held.remove)
    directory = held.path
    if len(os.fsencode(directory / "control")) > SOCKET_PATH_BYTES:
        raise Unavailable(
            "host.sandbox.path",
            "the path of a socket would be too long",
            path=str(directory),
            expected=f"at most {SOCKET_PATH_BYTES} bytes",
            hint="set XDG_RUNTIME_DIR or TMPDIR to a short path",
        )
    return directory


def _remove_flat(directory: Path) -> None:
    """Remove a directory of files and empty directories; never descends, whatever may be mounted there."""
    with contextlib.suppress(OSError):
        for entry in directory.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                entry.rmdir()
            else:
                entry.unlink()
        directory.rmdir()


def _listen(staging: Staging, path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    staging.leftover(listener.close)
    listener.bind(str(path))
    listener.listen(1)
    return listener


def _copy_key(source: Path, target: Path) -> None:
    """Copy the simulation key, made now when there is none.

    Raises:
        Unavailable: it cannot be read or made (`tee.insecure.machine_key`).
    """
    from cloister.tee.insecure.machinekey import load_machine_key  # loads cryptography

    source.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    load_machine_key(str(source))
    target.touch(mode=0o600, exist_ok=False)
    target.write_bytes(source.read_bytes())


def _give_away(runtime: Path) -> None:
    """As root, let the stand-in use the files, and make the places for what Python needs."""
    if os.geteuid() == 0:
        for number in range(len(_python_places())):
            (runtime / f"{_PLACE}{number}").mkdir()
        for path in (runtime, *runtime.iterdir()):
            os.chown(path, ROOTS_STAND_IN, ROOTS_STAND_IN)


def _accept(staging: Staging, listener: socket.socket, child: Child, output: int) -> socket.socket:
    """Wait for the agent to connect.

    Raises:
        Unavailable: the sandbox ended or nothing connected (`host.sandbox.*`).
    """
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    poller.register(child, select.POLLIN)
    ready = {descriptor for descriptor, _ in poller.poll(CONNECT_SECONDS * 1000)}
    if listener.fileno() in ready:
        connection, _ = listener.accept()
        staging.own(connection.close)
        return connection
    os.set_blocking(output, False)
    said = b""
    with contextlib.suppress(OSError):
        said = os.read(output, 4096)
    words = said.decode("ascii", errors="replace").strip()[-200:]
    raise Unavailable(
        "host.sandbox.failed",
        f"the agent did not connect: {words or 'it said nothing'}",
        actual="still starting" if child.status is None else f"status {child.status}",
        hint="does this machine allow user namespaces? see: cloister doctor",
    )


def _relay_when_connected(staging: Staging, listener: socket.socket) -> socket.socket:
    """Return a socket that is joined to the agent's connection once the agent makes it."""
    ours, theirs = socket.socketpair()
    staging.own(ours.close)

    def relay() -> None:
        with theirs, contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                copy_both_ways(connection, theirs)

    def wake() -> None:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)

    staging.leftover(wake)
    threading.Thread(target=relay, name="streams-relay", daemon=True).start()
    return ours
