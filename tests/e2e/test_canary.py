"""No byte the host can see holds what the owner keeps secret; the same scan finds it where it is in the clear.

The host's view: registry files, trust service database, the pod's work directory (console, logs, sockets), disk images,
command lines, and every byte that crosses the two ports. Memory of QEMU is excepted at this level, and said so.
"""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import images
from cloister.host.vmm.backends import launcher_for
from cloister.host.vmm.spec import Backend, VMSpec
from cloister.protocol.resourceuri import ResourcePath
from cloister.sdk.bundle import launch_files
from cloister.sdk.home import home_from_environment
from cloister.sdk.plan import WorkloadRequest
from cloister.sdk.run import CONTAINER, DEFAULT_SHAPE, Environment, Pod
from cloister.sdk.session import PodSession, Terminal

CANARIES = {
    "image": b"BusyBox v1.",  # a text inside the image's only program
    "env": b"canary-of-the-environment-6153",
    "secret": b"canary-of-the-resource-8810",
    "data": b"canary-of-the-data-2274",
}
SECRET = ResourcePath("default", "secret", "canary")
SCRIPT = (
    'read line; echo "got $line and $WORD"; '
    "busybox wget -q -O - http://127.0.0.1:8006/cdh/resource/default/secret/canary; busybox | head -1"
)


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


def host_files(*places: Path) -> Iterator[tuple[str, bytes]]:
    for place in places:
        for file in place.rglob("*"):
            if file.is_file() and not file.is_symlink():
                yield str(file), file.read_bytes()


def findings(view: list[tuple[str, bytes]]) -> list[str]:
    return [f"{name} in {where}" for where, data in view for name, canary in CANARIES.items() if canary in data]


@pytest.mark.tool
@pytest.mark.parametrize(
    "backend", [Backend.PROCESS, pytest.param(Backend.SEABIOS, marks=pytest.mark.vm)], ids=lambda item: item.value
)
def test_no_canary_on_the_host_side(tmp_path: Path, backend: Backend) -> None:
    home = home_from_environment()
    output = io.BytesIO()
    reading, writing = socket.socketpair()
    writing.sendall(CANARIES["data"] + b"\n")
    layout = images.busybox_image()
    with Environment(home, tmp_path, backend, DEFAULT_SHAPE, lambda *_: None) as environment:
        with environment.owner.admin() as admin:
            admin.put_resource(SECRET, CANARIES["secret"] + b"\n")
        image = environment.owner.seal(f"oci:{layout}:{images.TAG}", environment.registry.port)
        workload = WorkloadRequest(
            args=("sh", "-c", SCRIPT), env={"WORD": CANARIES["env"].decode()}, stdin=True, resources=(SECRET,)
        )
        pod = Pod.plan_for(environment, image, workload, name="canary")
        pod.approve()
        spec = VMSpec(
            name="canary",
            work=tmp_path / "pod",
            initdata=pod.plan.init_data.text,
            bundle=launch_files(environment.bundle) if environment.bundle else None,
        )
        with launcher_for(backend, environment.places).launch(spec) as machine:
            taps = [Wiretap(machine.control), Wiretap(machine.streams)]
            machine.control, machine.streams = (tap.host_end for tap in taps)
            with PodSession(machine) as session:
                streams = session.create(CONTAINER, registry=environment.registry_url, stream_key=pod.stream_key)
                session.start(CONTAINER)
                terminal = Terminal(stdout=output, stderr=output, stdin=reading.fileno())
                assert session.attend(CONTAINER, streams, terminal) == 0
                commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in machine.pids.values()]
        view = list(host_files(home.root / "registry", home.root / "trust", tmp_path))
        view += [("command line", command) for command in commands]
        view += [("ports", bytes(tap.heard)) for tap in taps]
        view.append(("init data", pod.plan.init_data.text))
    for tap in taps:
        tap.close()
    reading.close()
    writing.close()
    text = output.getvalue()
    assert all(canary in text for canary in CANARIES.values()), text  # the workload had them all
    assert len(view) > 15 and sum(len(tap.heard) for tap in taps) > 500
    assert findings(view) == []


@pytest.mark.tool
def test_the_scan_finds_what_is_planted(tmp_path: Path) -> None:
    layout = images.busybox_image()
    for number, canary in enumerate(CANARIES.values()):
        (tmp_path / f"leak-{number}").write_bytes(b"before " + canary + b" after")
    assert {item.split()[0] for item in findings(list(host_files(tmp_path)))} == set(CANARIES)
    assert layout.exists()
