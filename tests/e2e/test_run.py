"""`cloister run` as people use it: the process' streams, status and signals are those of the workload."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import images
from cloister.sdk.home import home_from_environment
from cloister.trust.admin import TrustAdmin
from conformance.registry_process import RegistryProcess
from conformance.tools import require_tool
from e2e.conftest import CLI

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
QUIET = ("run", "-q", "--level", "simulated")
ONE_CPU = ("--vcpus", "1")  # QEMU before 8.1 crashes a guest kernel with several processors now and then
SKOPEO = (1, 18)
AS_THE_CONFIG_SAYS = b"uid=1000 gid=1000 cwd=/app/data mode=layered args=hello world\nchanged by the third layer\n"


def location(layout: Path) -> str:
    return f"oci:{layout}:{images.TAG}"


@contextlib.contextmanager
def running(*words: str, cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `cloister` beside the test; it does not outlive a failed one."""
    with subprocess.Popen(
        [*CLI, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


@pytest.mark.tool
def test_streams_and_status_pass(cli: Run) -> None:
    done = cli(*QUIET, location(images.busybox_image()), "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")


@pytest.mark.tool
def test_standard_input_passes(cli: Run) -> None:
    done = cli(*QUIET, "-i", location(images.busybox_image()), "wc", "-c", stdin=b"x" * 100_000)
    assert done.stdout.strip() == b"100000", done.stderr


@pytest.mark.tool
def test_standard_input_is_closed_without_the_option(cli: Run) -> None:
    done = cli(*QUIET, location(images.busybox_image()), "wc", "-c", stdin=b"x" * 100_000)
    assert (done.returncode, done.stdout.strip()) == (0, b"0"), done.stderr


@pytest.mark.tool
def test_image_config_decides_and_options_go_over_it(cli: Run) -> None:
    """Four layers, a user, entrypoint, command, environment, working directory: as the image says it."""
    image = location(images.layered_image())
    plain = cli(*QUIET, image)
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout == AS_THE_CONFIG_SAYS
    changed = cli(*QUIET, "-e", "APP_MODE=other", image, "good", "bye")
    assert b"args=good bye" in changed.stdout and b"mode=other" in changed.stdout


@pytest.mark.tool
@pytest.mark.parametrize(
    ("options", "args", "expected"),
    [
        (["-w", "/tmp"], ["pwd"], b"/tmp\n"),
        (["--workdir", "/var"], ["pwd"], b"/var\n"),
        (["-e", "A=1", "-e", "B=x=y z"], ["sh", "-c", 'echo "$A $B"'], b"1 x=y z\n"),
        (["--entrypoint", "/bin/echo"], ["-n", "to", "the", "point"], b"to the point"),
        (["-u", "0:0"], ["sh", "-c", "echo $(id -u) $(id -g)"], b"0 0\n"),
    ],
    ids=["w", "workdir", "e", "entrypoint", "u"],
)
def test_options(cli: Run, options: list[str], args: list[str], expected: bytes) -> None:
    done = cli(*QUIET, *options, location(images.busybox_image()), *args)
    assert (done.returncode, done.stdout) == (0, expected), done.stderr


def test_options_that_mean_nothing_are_refused(cli: Run) -> None:
    for options, code in (
        (["-e", "NAME"], b"cli.run.env"),
        (["-p", "80"], b"cli.run.publish"),
        (["-p", "1:70000"], b"host.spec.port_forward"),
        (["--name", "Not a Name"], b"protocol.resource.malformed"),
        (["--profile", "bios", "--level", "measured"], b"cli.run.option"),
    ):
        done = cli("run", "--level", "simulated", *options, location(images.busybox_image()), "true")
        assert done.returncode not in (0, 2) and code in done.stderr, done.stderr


@pytest.mark.tool
def test_a_name_is_the_pods(cli: Run, tmp_path: Path) -> None:
    done = cli(*QUIET, "--name", "my-pod", location(images.busybox_image()), "true")
    assert done.returncode == 0, done.stderr
    (directory,) = tmp_path.glob("cloister-run-*")
    assert json.loads((directory / "pod-policy.json").read_bytes())["pod"] == "my-pod"


@pytest.mark.tool
def test_keep_leaves_the_approval_in_force(cli: Run) -> None:
    """Without it nothing of a pod that ended may be had any more."""

    def approved() -> set[str]:
        with TrustAdmin(home_from_environment().trust) as admin:
            policy = admin.release_policy()
            return {digest for rule in policy.rules for digest in rule.init_data} if policy else set()

    image = location(images.busybox_image())
    assert cli(*QUIET, image, "true").returncode == 0
    assert approved() == set()
    assert cli(*QUIET, "--keep", image, "true").returncode == 0
    assert len(approved()) == 1


@pytest.mark.tool
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_pass(tmp_path: Path, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo caught {name}; exit 9' {name}; echo up; while :; do sleep 0.1; done"
    with running(*QUIET, location(images.busybox_image()), "sh", "-c", script, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(number)
        assert process.stdout.read() == f"caught {name}\n".encode()
        assert process.wait(30) == 9


@pytest.mark.tool
@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive", "docker", "reference"])
def test_every_place_an_image_can_come_from(cli: Run, tmp_path: Path, kind: str) -> None:
    """Copied there by skopeo; what runs is the same image."""
    skopeo = require_tool("skopeo", minimum=SKOPEO)
    source = location(images.layered_image())
    with contextlib.ExitStack() as stack:
        if kind in ("docker", "reference"):
            registry = stack.enter_context(RegistryProcess(tmp_path / "registry"))
            target = f"docker://{registry.address}/team/app:v2"
            image = target if kind == "docker" else target.removeprefix("docker://")
        else:
            target = image = f"{kind}:{tmp_path}/image.tar:" + ("team/app:v2" if kind == "docker-archive" else "v2")
        copy = [skopeo, "--insecure-policy", "copy", "-q", "--dest-tls-verify=false", source, target]
        subprocess.run(copy, check=True, capture_output=True, timeout=120)
        done = cli(*QUIET, image)
    assert (done.returncode, done.stdout) == (0, AS_THE_CONFIG_SAYS), done.stderr


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
def test_a_measured_pod_runs_as_the_image_config_says(cli: Run) -> None:
    done = cli("run", "-q", *ONE_CPU, location(images.layered_image()))
    assert (done.returncode, done.stdout) == (0, AS_THE_CONFIG_SAYS), done.stderr


@pytest.mark.vm
@pytest.mark.tool
def test_options_streams_signals_and_status_of_a_measured_pod(tmp_path: Path) -> None:
    script = (
        'echo "$(id -u):$(id -g) $(pwd) $WORD"; trap "echo caught; exit 7" INT; read line; echo "got $line" >&2; '
        "while :; do sleep 0.1; done"
    )
    options = ["-i", "-e", "WORD=of the broker", "-w", "/tmp", "-u", "12:34", "--name", "mine", "--level", "measured"]
    words = ["run", "-q", *ONE_CPU, *options, "--entrypoint", "/bin/sh", location(images.busybox_image()), "-c", script]
    with running(*words, cwd=tmp_path) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"12:34 /tmp of the broker\n"
        process.stdin.write(b"a line\n")
        process.stdin.flush()
        assert process.stderr.readline() == b"got a line\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == b"caught\n"
        assert process.wait(60) == 7
    (directory,) = tmp_path.glob("cloister-run-*")
    summary = json.loads((directory / "run.json").read_bytes())
    assert (summary["level"], summary["exit_status"]) == ("measured", 7)


@pytest.mark.vm
@pytest.mark.tool
def test_debian_redis_serves_and_ends(tmp_path: Path, free_port: int) -> None:
    """The acceptance image: Debian's own redis-server, made by tools that know nothing of Cloister, unchanged."""
    client, benchmark = require_tool("redis-cli"), require_tool("redis-benchmark")
    words = ["run", *ONE_CPU, "--memory", "1024", "-p", f"{free_port}:6379", location(images.redis_image())]
    with running(*words, cwd=tmp_path) as process:

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
        bench = [benchmark, "-p", str(free_port), "-n", "500", "-c", "5", "-t", "set,get", "-q"]
        finished = subprocess.run(bench, capture_output=True, timeout=240, check=False)
        assert finished.returncode == 0 and b"GET" in finished.stdout
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert b"Redis is now ready to exit" in out
    assert b"MEASURED" in err and b"proved" in err
