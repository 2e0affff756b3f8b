"""No byte the host can see holds what the owner keeps secret; the same scan finds it where it is in the clear.

The host's view, looked at while the pod runs and again after it ended: the registry's blobs, the trust service's
state, the owner's other state, software TPMs, the pod's work directory (console, logs, init data), disk images, every
regular file that a process of the run holds open, deleted ones too, command line and environment of every process of
the machine, and every byte that crosses the two ports. Canaries are looked for in plain, hex and base64, and inside
gzip.

Excepted, and said so in LIMITATIONS: the memory of QEMU, which this machine's root can read at the levels there are;
and what an application itself says in clear over a published port (`-p`), which nothing of ours encrypts. Data that
came over such a port is looked for like the rest: it must stay in the pod.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import images
from cloister.host.vmm.backends import launcher_for
from cloister.host.vmm.machine import RunningVM
from cloister.host.vmm.spec import Accelerator, Backend, PortForward, VMSpec
from cloister.imagetool.podvm import Shape
from cloister.protocol.resourceuri import ResourcePath
from cloister.sdk.bundle import launch_files
from cloister.sdk.home import Home, home_from_environment
from cloister.sdk.plan import WorkloadRequest
from cloister.sdk.run import CONTAINER, Environment, Pod
from cloister.sdk.session import PodSession, Terminal
from conformance.tools import require_tool

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
Finding = tuple[str, str]  # name of the canary, where it was

CANARIES = {
    "image": b"changed by the third layer",  # a file of the image
    "env": b"canary-of-the-environment-6153",
    "secret": b"canary-of-the-resource-8810",
    "data": b"canary-of-the-data-2274",
}
REDIS_CANARIES = {**CANARIES, "image": b"Server can't set maximum open files to"}  # inside /usr/bin/redis-server
SECRET = ResourcePath("default", "secret", "canary")
SCRIPT = (
    'read line; echo "got $line and $WORD"; '
    "busybox wget -q -O - http://127.0.0.1:8006/cdh/resource/default/secret/canary; cat /app/data/greeting.txt"
)
# Debian's essential packages fetch with what they have; then the image's own program, as its config starts it.
REDIS_SCRIPT = (
    "exec 3<>/dev/tcp/127.0.0.1/8006; "
    "printf 'GET /cdh/resource/default/secret/canary HTTP/1.0\\r\\nHost: 127.0.0.1:8006\\r\\n\\r\\n' >&3; cat <&3; "
    'echo "$WORD"; exec redis-server --bind 0.0.0.0 --protected-mode no --save "" --dir /var/lib/redis'
)


def spellings(canary: bytes) -> list[bytes]:
    """Return the ways a canary is looked for: plain, hex, and base64 at each of the three alignments."""
    hexed = canary.hex().encode()
    found = [canary, hexed, hexed.upper()]
    for shift in range(3):
        text = base64.b64encode(b"\0" * shift + canary)
        found.append(text[(0, 2, 3)[shift] :].rstrip(b"=")[:-1])  # what a neighbour's bits do not touch
    return found


@dataclass
class HostView:
    """Everything a host can look at, and what was found there."""

    canaries: dict[str, bytes]
    seen: int = 0
    found: list[Finding] = field(default_factory=list)

    def __post_init__(self) -> None:
        every = [(name, spelling) for name, canary in self.canaries.items() for spelling in spellings(canary)]
        self._names = {spelling: name for name, spelling in every}
        self._pattern = re.compile(b"|".join(re.escape(spelling) for _, spelling in every))

    def look(self, where: str, data: bytes) -> None:
        """Look for every canary in `data`, and in what it is when it is gzip."""
        self.seen += 1
        self.found += [(self._names[hit], where) for hit in set(self._pattern.findall(data))]
        if data.startswith(b"\x1f\x8b"):
            with contextlib.suppress(zlib.error):
                plain = zlib.decompressobj(wbits=31).decompress(data)
                self.found += [(self._names[hit], f"{where} (gzip)") for hit in set(self._pattern.findall(plain))]

    def files(self, *places: Path) -> None:
        """Look into every regular file below `places`."""
        for place in places:
            for file in place.rglob("*"):
                with contextlib.suppress(FileNotFoundError):  # the run goes on meanwhile
                    if file.is_file() and not file.is_symlink():
                        self.look(str(file), file.read_bytes())

    def processes(self) -> None:
        """Look at command line and environment of every process of the machine."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                for name in ("cmdline", "environ"):
                    with contextlib.suppress(OSError):
                        self.look(f"{name} of {entry.name}", (entry / name).read_bytes())

    def open_files(self, processes: list[int]) -> None:
        """Look into every regular file that these processes hold open, also when no name leads to it any more."""
        for pid in processes:
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if descriptor.is_file():
                        self.look(f"{descriptor} ({os.readlink(descriptor)})", descriptor.read_bytes())

    @property
    def names(self) -> set[str]:
        """The canaries that were found."""
        return {name for name, _ in self.found}


class Wiretap:
    """Stands between the host's end of a port and the pod, and keeps every byte of both directions."""

    def __init__(self, pod: socket.socket) -> None:
        self.host_end, inner = socket.socketpair()
        self.heard = bytearray()
        self._ends = (pod, inner)
        for source, sink in ((pod, inner), (inner, pod)):
            threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.heard += data
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close all ends."""
        for end in (*self._ends, self.host_end):
            end.close()


@dataclass
class Stage:
    """A pod on its machine, as the host sees it."""

    environment: Environment
    machine: RunningVM
    session: PodSession
    taps: list[Wiretap]
    pod: Pod

    def look(self, view: HostView, home: Home, work: Path) -> None:
        """Let `view` see everything there is now."""
        view.files(home.root, work)
        view.processes()
        services = [self.environment.registry.child.pid, self.environment.trust.child.pid]
        view.open_files([*services, *self.machine.pids.values()])
        for tap in self.taps:
            view.look("port", bytes(tap.heard))
        view.look("init data", self.pod.plan.init_data.text)


@contextlib.contextmanager
def stage(
    work: Path,
    backend: Backend,
    layout: Path,
    workload: WorkloadRequest,
    *,
    memory_mib: int = 512,
    scratch_mib: int = 0,
    ports: tuple[PortForward, ...] = (),
) -> Iterator[Stage]:
    """Seal, plan, approve and launch with a wiretap on both ports."""
    home = home_from_environment()
    shape = Shape(vcpus=1, memory_mib=memory_mib)
    with Environment(home, work, backend, shape, lambda *_: None) as environment:
        with environment.owner.admin() as admin:
            admin.put_resource(SECRET, CANARIES["secret"] + b"\n")
        image = environment.owner.seal(f"oci:{layout}:{images.TAG}", environment.registry.port)
        pod = Pod.plan_for(environment, image, workload, name="canary")
        pod.approve()
        spec = VMSpec(
            name="canary",
            work=work / "pod",
            initdata=pod.plan.init_data.text,
            bundle=launch_files(environment.bundle) if environment.bundle else None,
            vcpus=shape.vcpus,
            memory_mib=shape.memory_mib,
            scratch_mib=scratch_mib,
            ports=ports,
            accelerator=Accelerator.TCG,
        )
        with launcher_for(backend, environment.places).launch(spec) as machine:
            taps = [Wiretap(machine.control), Wiretap(machine.streams)]
            machine.control, machine.streams = (tap.host_end for tap in taps)
            with PodSession(machine) as session:
                yield Stage(environment, machine, session, taps, pod)
            for tap in taps:
                tap.close()


@pytest.mark.tool
@pytest.mark.parametrize(
    "backend", [Backend.PROCESS, pytest.param(Backend.SEABIOS, marks=pytest.mark.vm)], ids=lambda item: item.value
)
def test_no_canary_on_the_host_side(tmp_path: Path, backend: Backend) -> None:
    """Image, environment, secret and standard input of a program that prints all four; layers wait on a disk."""
    home = home_from_environment()
    output = io.BytesIO()
    reading, writing = socket.socketpair()
    workload = WorkloadRequest(
        entrypoint=("sh", "-c", SCRIPT), env={"WORD": CANARIES["env"].decode()}, stdin=True, resources=(SECRET,)
    )
    view = HostView(CANARIES)
    with reading, writing, stage(tmp_path, backend, images.layered_image(), workload, scratch_mib=16) as run:
        writing.sendall(CANARIES["data"] + b"\n")
        key = run.pod.stream_key
        streams = run.session.create(CONTAINER, registry=run.environment.registry_url, stream_key=key)
        run.session.start(CONTAINER)
        terminal = Terminal(stdout=output, stderr=output, stdin=reading.fileno())
        assert run.session.attend(CONTAINER, streams, terminal) == 0
        run.look(view, home, tmp_path)
        assert sum(len(tap.heard) for tap in run.taps) > 500
    view.files(home.root, tmp_path)
    text = output.getvalue()
    assert all(canary in text for canary in CANARIES.values()), text  # the workload had them all
    assert view.seen > 50
    assert view.found == []


@pytest.mark.vm
@pytest.mark.tool
def test_no_canary_of_a_serving_redis_on_the_host_side(tmp_path: Path, free_port: int) -> None:
    """Debian's redis, with data that `redis-cli` wrote through the published port and that redis wrote to its disk."""
    client = require_tool("redis-cli")
    home = home_from_environment()
    output = io.BytesIO()
    workload = WorkloadRequest(
        entrypoint=("bash", "-c", REDIS_SCRIPT), env={"WORD": CANARIES["env"].decode()}, resources=(SECRET,)
    )
    port = PortForward(host_ip="127.0.0.1", host_port=free_port, guest_port=6379)
    view = HostView(REDIS_CANARIES)
    layout = images.redis_image()
    assert "image" in in_layers(layout, REDIS_CANARIES)  # the canary is one
    with stage(tmp_path, Backend.SEABIOS, layout, workload, memory_mib=1024, ports=(port,)) as run:
        key = run.pod.stream_key
        streams = run.session.create(CONTAINER, registry=run.environment.registry_url, stream_key=key)
        run.session.start(CONTAINER)
        attending = threading.Thread(
            target=run.session.attend, args=(CONTAINER, streams, Terminal(stdout=output, stderr=output))
        )
        attending.start()

        def redis(*words: str, stdin: bytes = b"") -> bytes:
            command = [client, "-p", str(free_port), *words]
            return subprocess.run(command, input=stdin, capture_output=True, timeout=60, check=False).stdout.strip()

        deadline = time.monotonic() + 120
        while redis("ping") != b"PONG":
            assert time.monotonic() < deadline and attending.is_alive(), output.getvalue()
            time.sleep(0.2)
        assert redis("-x", "set", "key", stdin=CANARIES["data"]) == b"OK"
        assert redis("get", "key") == CANARIES["data"]
        assert redis("save") == b"OK"
        run.look(view, home, tmp_path)
        run.session.kill(CONTAINER, signal.SIGTERM)
        attending.join(60)
        run.look(view, home, tmp_path)
    view.files(home.root, tmp_path)
    assert all(CANARIES[name] in output.getvalue() for name in ("env", "secret")), output.getvalue()
    assert b"Ready to accept connections" in output.getvalue()
    assert view.found == []


@pytest.mark.tool
def test_no_canary_in_the_record_of_a_run(cli: Run, tmp_path: Path) -> None:
    """What `cloister run` leaves behind is meant to be shown to others."""
    image = f"oci:{images.layered_image()}:{images.TAG}"
    word = f"WORD={CANARIES['env'].decode()}"
    options = ["-i", "-e", word, "--level", "simulated", "--entrypoint", "/bin/sh"]
    script = 'read line; echo "$line and $WORD"; cat greeting.txt'
    done = cli("run", *options, image, "-c", script, stdin=CANARIES["data"] + b"\n")
    assert all(CANARIES[name] in done.stdout for name in ("image", "env", "data")), done.stderr
    view = HostView(CANARIES)
    view.files(*tmp_path.glob("cloister-run-*"), home_from_environment().root)
    view.look("standard error", done.stderr)
    assert view.seen > 20
    assert view.found == []


def in_layers(layout: Path, canaries: dict[str, bytes]) -> set[str]:
    view = HostView(canaries)
    view.files(layout / "blobs")
    return view.names


# -- the scan finds what is there -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CANARIES)
def test_the_scan_finds_a_canary_in_a_file(tmp_path: Path, name: str) -> None:
    canary = CANARIES[name]
    leaks = {
        "plain": b"before " + canary + b" after",
        "hex": canary.hex().encode(),
        "base64": base64.b64encode(b"before " + canary + b" after"),
        "base64-2": base64.b64encode(b"before. " + canary + b" after"),
        "base64-3": base64.b64encode(b"before.. " + canary + b" after"),
        "gzip": zlib.compress(b"before " + canary, wbits=31),
    }
    for leak, data in leaks.items():
        (tmp_path / leak).write_bytes(data)
    view = HostView(CANARIES)
    view.files(tmp_path)
    assert {Path(where.removesuffix(" (gzip)")).name for _, where in view.found} == set(leaks)
    assert view.names == {name}


def test_the_scan_finds_a_canary_in_a_layer(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "layer.tar.gz", "w:gz") as layer:
        info = tarfile.TarInfo("etc/secret")
        info.size = len(CANARIES["data"])
        layer.addfile(info, io.BytesIO(CANARIES["data"]))
    view = HostView(CANARIES)
    view.files(tmp_path)
    assert view.names == {"data"}


def test_the_scan_finds_a_canary_of_a_process(tmp_path: Path) -> None:
    """In its arguments, its environment, and a file it holds open after the name is gone."""
    file = tmp_path / "gone"
    file.write_bytes(CANARIES["data"])
    program = "import sys; file = open(sys.argv[1]); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(file), CANARIES["secret"].decode()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"WORD": CANARIES["env"].decode()},
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        file.unlink()
        view = HostView(CANARIES)
        view.processes()
        assert view.names == {"secret", "env"}
        view.open_files([process.pid])
        assert view.names == {"secret", "env", "data"}
        process.communicate()


@pytest.mark.tool
def test_the_scan_finds_what_a_plain_registry_and_plain_streams_show(tmp_path: Path) -> None:
    """The same pod as above with its image unsealed and its streams in clear is seen through at once."""
    assert in_layers(images.layered_image(), CANARIES) == {"image"}
    ours, theirs = socket.socketpair()
    tap = Wiretap(ours)
    theirs.sendall(CANARIES["env"])
    assert tap.host_end.recv(100) == CANARIES["env"]
    tap.host_end.sendall(CANARIES["data"])
    assert theirs.recv(100) == CANARIES["data"]
    view = HostView(CANARIES)
    view.look("port", bytes(tap.heard))
    assert view.names == {"env", "data"}
    tap.close()
    theirs.close()
