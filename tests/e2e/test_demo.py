"""`cloister demo` as a newcomer runs it: every line, the exit code, and nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.conftest import CLI

TIMING = r"(  \d+\.\d s)?"
DIGEST = r"[0-9a-f]+\.\."
OPENING = [
    rf" ok  app image encrypted and signed +{DIGEST}  nothing in the app changed{TIMING}",
    rf" ok  trust service, log, 2 witnesses +127\.0\.0\.1:\d+, embedded storage{TIMING}",
    rf" ok  pod (VM booted|started) and attested +policy {DIGEST}  init data {DIGEST}  nonce fresh{TIMING}",
    rf" ok  model key released +log entry \d+, witnessed by w1 w2{TIMING}",
    rf" ok  app says: digit = 7 +\(the model is in the clear only inside the pod\){TIMING}",
    r" now the cluster admin turns hostile",
    rf" no  swap the image +CLS-I-0022 content .*: expected {DIGEST}, got {DIGEST}{TIMING}",
    rf" no  add env LD_PRELOAD +CLS-P-0117 env .* is not .*: expected PATH=/bin, got LD_PRELOAD=/tmp/steal\.so{TIMING}",
]
CLOSING = [
    rf" no  read image and model at rest +ciphertext only \(\d+ files searched\){TIMING}",
    r" no  roll the release log back +CLS-K-0118 a witness has cosigned another state of the release log than the "
    rf"database holds: expected the log that had \d+ entries, got \d+ entries{TIMING}",
    r" ok  owner revoked +pod stopped after ([0-5]\.\d s \(lease 5 s\)|1?\d\.\d s \(lease 20 s\))  CLS-K-0016 "
    rf"the owner revoked this pod{TIMING}",
    r" audit: \d+ releases, \d denials, 1 revoke; each recorded before it was answered",
    r" played in \d+ s; nothing is left running, and nothing of it is kept",
]
SIMULATED = [
    r"cloister \S+   platform: process sandbox -> level SIMULATED \(teaches the flow, protects nothing\)",
    *OPENING,
    rf" --  change the kernel line +a process sandbox boots no kernel: see --level measured{TIMING}",
    rf" no  replay recorded evidence +CLS-A-0100 report_data binds another nonce or key: .*{TIMING}",
    *CLOSING,
    r" proved: nothing; simulated evidence teaches the flow and protects nothing",
    r" not shown: measured boot, real hardware\. next: cloister demo --level measured",
]
MEASURED = [
    r"cloister \S+   platform: QEMU \+ software TPM -> level MEASURED \(this machine's root is not kept out\)",
    *OPENING,
    rf" no  change the kernel line +CLS-A-0042 register .*: expected {DIGEST}, got {DIGEST}.*cmdline.*{TIMING}",
    rf" no  replay recorded evidence +CLS-A-0108 .*{TIMING}",
    *CLOSING,
    r" proved: boot and code integrity, key release only to the measured pod",
    r" not shown: real hardware \(this machine's root is not kept out\)\. next: cloister doctor",
]


def processes_with(marker: str) -> Iterator[str]:
    """Command lines of processes that were started with `marker` in their environment."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (directory / "environ").read_bytes() and int(directory.name) != os.getpid():
                yield (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # ended meanwhile


def play(tmp_path: Path, home: Path, level: str, seconds: float) -> subprocess.CompletedProcess[bytes]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch)}
    done = subprocess.run(
        [*CLI, "demo", "--level", level], capture_output=True, timeout=seconds, cwd=tmp_path, env=environment
    )
    assert list(scratch.iterdir()) == []  # no temporary directory
    assert list(tmp_path.iterdir()) == [scratch]  # nothing where the user stands
    assert list(processes_with(f"CLOISTER_HOME={home}")) == []
    assert not (home / "trust").exists() and not (home / "registry").exists()  # the owner's own state is untouched
    return done


def require_lines(done: subprocess.CompletedProcess[bytes], patterns: list[str]) -> None:
    built = " ok  pod-VM image built "  # only where no test built it before
    lines = [line for line in done.stderr.decode().splitlines() if not line.startswith(built)]
    assert done.returncode == 0 and done.stdout == b"", done.stderr.decode()
    assert len(lines) == len(patterns), done.stderr.decode()
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), f"{line!r} is not {pattern!r}"


@pytest.mark.tool
def test_simulated(tmp_path: Path, private_home: Path) -> None:
    require_lines(play(tmp_path, private_home, "simulated", 120), SIMULATED)


@pytest.mark.vm
@pytest.mark.tool
def test_measured(tmp_path: Path, private_home: Path) -> None:
    require_lines(play(tmp_path, private_home, "measured", 540), MEASURED)


@pytest.mark.tool
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda item: item.name)
def test_stopped_in_the_middle_it_leaves_nothing(tmp_path: Path, private_home: Path, number: signal.Signals) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen(
        [*CLI, "demo", "--level", "simulated"], stderr=subprocess.PIPE, cwd=tmp_path, env=environment
    ) as process:
        assert process.stderr is not None
        while b"trust service" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(number)
        process.stderr.read()
        assert process.wait(30) == 128 + number
    deadline = time.monotonic() + 5
    while left := list(processes_with(f"CLOISTER_HOME={private_home}")):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert list(scratch.iterdir()) == []


def test_a_failed_scene_is_named(tmp_path: Path, private_home: Path) -> None:
    """Without a pod-VM image and busybox the app cannot be built; the line says which scene and why."""
    environment = {**os.environ, "PATH": "/nonexistent", "CLOISTER_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [*CLI, "demo", "--level", "simulated"], capture_output=True, timeout=60, cwd=tmp_path, env=environment
    )
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 3
    assert lines[1].startswith(" !!  app image encrypted and signed") and "could not be played" in lines[1]
    assert lines[2].startswith("cloister: error: CLS-H-0031") and lines[3].startswith("cloister: hint: ")
