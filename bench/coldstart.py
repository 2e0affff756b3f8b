"""From launch to the first byte of output of a 5 MB encrypted image, beside a bare boot of the same kernel.

    python bench/coldstart.py [--rounds 3] [--json FILE]

The floor is the same firmware, kernel, machine and software TPM with an initrd that holds only busybox, prints a
line and powers off. Floor and pod alternate within each round, so that a noisy machine is noisy for both. Checked
equal first: the workload's output is what the image says. Rows: `bare` (launch to power-off), `pod` (launch to first
output, by the same launcher in the same process), `command` (start of the `cloister run` process to first output: with
interpreter, services and the owner's side), `two` (two commands at once, until both had output), and the guest's own
phases. Targets: pod <= 2.2 x bare, two <= 2.5 x command. The ratio of `command` to `bare` is printed without a target,
because a bare boot has no owner's side.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import hashlib
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

from cloister.host.vmm.backends import launcher_for
from cloister.host.vmm.spec import Backend, VMSpec
from cloister.imagetool.podvm import build_bare_initrd
from cloister.oci.layout import OCILayout
from cloister.oci.manifest import OCI_CONFIG, OCI_MANIFEST
from cloister.protocol.initdata import build_initdata
from cloister.sdk.bundle import build_bundle, busybox_of, launch_files
from cloister.sdk.home import home_from_environment
from cloister.sdk.plan import WorkloadRequest
from cloister.sdk.run import CONTAINER, DEFAULT_SHAPE, Environment, Pod
from cloister.sdk.session import Terminal

LINE = b"first output\n"
IMAGE_BYTES = 5_000_000
TARGETS = {"pod / bare": 2.2, "two / command": 2.5}


class FirstByte(io.RawIOBase):
    """A sink that notes when its first byte came."""

    def __init__(self) -> None:
        self.at = 0.0
        self.content = b""

    def write(self, data: bytes) -> int:  # type: ignore[override]  # bytes are all that is written
        self.at = self.at or time.monotonic()
        self.content += data
        return len(data)


def build_image(directory: Path, busybox: bytes) -> str:
    """Write an image of about 5 MB compressed; return its location."""
    filler = random.Random(5).randbytes(IMAGE_BYTES - len(gzip.compress(busybox)))  # noqa: S311  # no secret
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in (("bin/busybox", busybox), ("filler", filler)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    layer = buffer.getvalue()
    layout = OCILayout(directory, create=True)
    digest, size = layout.write_blob([gzip.compress(layer, mtime=0)])
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/bin/busybox", "echo", LINE.decode().strip()]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    config_digest, config_size = layout.write_blob([json.dumps(config).encode()])
    media_type = "application/vnd.oci.image.layer.v1.tar+gzip"
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": str(config_digest), "size": config_size},
        "layers": [{"mediaType": media_type, "digest": str(digest), "size": size}],
    }
    layout.write_manifest(json.dumps(manifest).encode(), OCI_MANIFEST, "1")
    return f"oci:{directory}:1"


def bare_seconds(environment: Environment, initrd: Path, work: Path) -> float:
    """Boot the bare initrd to power-off."""
    assert environment.bundle is not None
    files = dataclasses.replace(launch_files(environment.bundle), initrd=initrd)
    spec = VMSpec(name="bare", work=work, initdata=build_initdata({}).text, bundle=files)
    started = time.monotonic()
    with launcher_for(Backend.SEABIOS, environment.places).launch(spec) as machine:
        ended = machine.wait(120)
        took = time.monotonic() - started
        assert ended is not None and ended.clean, ended
        assert b"bare initrd up" in machine.console.read_bytes()
    return took


def pod_seconds(environment: Environment, location: str, name: str) -> tuple[float, dict[str, float]]:
    """Launch a pod; return the time to the first output and the guest's phases."""
    image = environment.owner.seal(location, environment.registry.port)
    pod = Pod.plan_for(environment, image, WorkloadRequest(), name=name)
    pod.approve()
    sink = FirstByte()
    started = time.monotonic()
    with pod.started() as (session, streams):
        session.attend(CONTAINER, streams, Terminal(stdout=sink, stderr=sink))
        phases = {phase.name: phase.took_ms / 1000 for phase in session.phases}
    pod.forget()
    assert sink.content == LINE, sink.content
    return sink.at - started, phases


def command_seconds(location: str, directory: Path) -> float:
    """Run `cloister run` as a process; return the time to its first output."""
    started = time.monotonic()
    command = [sys.executable, "-m", "cloister", "run", "-q", "--rm", location]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=directory, env=dict(os.environ)) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        took = time.monotonic() - started
        assert line == LINE, line
        assert process.wait() == 0
    return took


def two_seconds(location: str, directory: Path) -> float:
    """Run two commands at once; return the time until both had output."""
    times: list[float] = []
    threads = [threading.Thread(target=lambda: times.append(command_seconds(location, directory))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(times) == 2
    return max(times)


def main() -> int:
    """Measure, print a table and the ratios; 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    home = home_from_environment()
    bundle = build_bundle(home)
    rows: dict[str, list[float]] = {"bare": [], "pod": [], "command": [], "two": []}
    phases: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        busybox = busybox_of(bundle.path).read_bytes()
        location = build_image(work / "image", busybox)
        initrd = work / "bare.img"
        initrd.write_bytes(build_bare_initrd(busybox))
        with Environment(home, work, Backend.SEABIOS, DEFAULT_SHAPE, lambda *_: None) as environment:
            pod_seconds(environment, location, "warm-up")
            for number in range(arguments.rounds):
                rows["bare"].append(bare_seconds(environment, initrd, work / "bare"))
                took, seen = pod_seconds(environment, location, f"bench-{number}")
                rows["pod"].append(took)
                for name, seconds in seen.items():
                    phases.setdefault(name, []).append(seconds)
                rows["command"].append(command_seconds(location, work))
                rows["two"].append(two_seconds(location, work))
    medians = {name: statistics.median(times) for name, times in rows.items()}
    ratios = {
        "pod / bare": medians["pod"] / medians["bare"],
        "command / bare": medians["command"] / medians["bare"],
        "two / command": medians["two"] / medians["command"],
    }
    for name, times in rows.items():
        print(f"{name:<10} median {medians[name]:6.2f} s   min {min(times):6.2f}   max {max(times):6.2f}")
    for name, times in phases.items():
        print(f"  guest {name:<10} {statistics.median(times):6.2f} s")
    missed = False
    for name, ratio in ratios.items():
        target = TARGETS.get(name)
        verdict = "" if target is None else f"   target <= {target}: {'met' if ratio <= target else 'MISSED'}"
        missed = missed or (target is not None and ratio > target)
        print(f"{name:<16} {ratio:5.2f}{verdict}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"seconds": rows, "phases": phases, "ratios": ratios}, indent=2) + "\n")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
