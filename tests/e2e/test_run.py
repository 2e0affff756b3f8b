"""`cloister run` as people use it: the process' streams, status and signals are those of the workload."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import images
from e2e.conftest import CLI

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
QUIET = ("run", "-q", "--level", "simulated")


def location(layout: Path) -> str:
    return f"oci:{layout}:{images.TAG}"


@pytest.mark.tool
def test_streams_and_status_pass(cli: Run) -> None:
    done = cli(*QUIET, location(images.busybox_image()), "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")


@pytest.mark.tool
def test_standard_input_passes(cli: Run) -> None:
    done = cli(*QUIET, "-i", location(images.busybox_image()), "wc", "-c", stdin=b"x" * 100_000)
    assert done.stdout.strip() == b"100000", done.stderr


@pytest.mark.tool
def test_image_config_decides_and_options_go_over_it(cli: Run) -> None:
    image = location(images.layered_image())
    plain = cli(*QUIET, image)
    assert plain.returncode == 0, plain.stderr
    assert b"hello world" in plain.stdout and b"layered" in plain.stdout
    changed = cli(*QUIET, "-e", "APP_MODE=other", image, "good", "bye")
    assert b"good bye" in changed.stdout and b"other" in changed.stdout


@pytest.mark.tool
def test_signals_pass(tmp_path: Path) -> None:
    script = "trap 'echo caught; exit 9' TERM; echo up; while :; do sleep 0.1; done"
    with subprocess.Popen(
        [*CLI, *QUIET, location(images.busybox_image()), "sh", "-c", script], stdout=subprocess.PIPE, cwd=tmp_path
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == b"caught\n"
        assert process.wait(30) == 9


@pytest.mark.tool
def test_every_run_leaves_its_record(cli: Run, tmp_path: Path) -> None:
    cli(*QUIET, location(images.busybox_image()), "true")
    (directory,) = tmp_path.glob("cloister-run-*")
    names = {file.name for file in directory.iterdir()}
    assert {"run.json", "findings.json", "audit.json", "report.html", "initdata.toml", "pod-policy.json"} <= names
    summary = json.loads((directory / "run.json").read_text())
    assert summary["exit_status"] == 0 and summary["level"] == "simulated"
    assert any("protects nothing" in item for item in summary["not_proved"])
    assert all(finding["ok"] for finding in json.loads((directory / "findings.json").read_text()))
    assert {row["decision"] for row in json.loads((directory / "audit.json").read_text())} == {"release"}


@pytest.mark.tool
def test_rm_leaves_nothing(cli: Run, tmp_path: Path) -> None:
    assert cli(*QUIET, "--rm", location(images.busybox_image()), "true").returncode == 0
    assert not list(tmp_path.glob("cloister-run-*"))


def test_a_refusal_says_cause_place_and_fix(cli: Run, tmp_path: Path) -> None:
    done = cli(*QUIET, f"oci:{tmp_path}/nothing:v1")
    assert done.returncode == 125
    assert b"cloister: error: CLS-" in done.stderr and b"oci.layout.not_a_layout" in done.stderr


def test_usage_errors(cli: Run) -> None:
    assert cli("run").returncode == 2
    refused = cli("run", "--level", "hardware", "oci:x:y")
    assert refused.returncode == 1 and b"measured, simulated" in refused.stderr


@pytest.mark.vm
@pytest.mark.tool
def test_debian_redis_serves_and_ends(tmp_path: Path, free_port: int) -> None:
    """The acceptance image: Debian's own redis-server, made by tools that know nothing of Cloister, unchanged."""
    client = shutil.which("redis-cli")
    assert client, "redis-tools is installed by `make test`"
    command = [*CLI, "run", "--memory", "1024", "-p", f"{free_port}:6379", location(images.redis_image())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:

        def redis(*words: str) -> bytes:
            done = subprocess.run([client, "-p", str(free_port), *words], capture_output=True, timeout=60, check=False)
            return done.stdout.strip()

        deadline = time.monotonic() + 300
        while redis("ping") != b"PONG":
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert redis("set", "answer", "forty-two") == b"OK"
        assert redis("get", "answer") == b"forty-two"
        bench = ["redis-benchmark", "-p", str(free_port), "-n", "500", "-c", "5", "-t", "set,get", "-q"]
        finished = subprocess.run(bench, capture_output=True, timeout=240, check=False)
        assert finished.returncode == 0 and b"GET" in finished.stdout
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert b"Redis is now ready to exit" in out
    assert b"MEASURED" in err and b"proved" in err
    assert "CLOISTER_HOME" in os.environ
