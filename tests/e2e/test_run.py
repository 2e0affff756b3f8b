"""`cloister run` as people use it: the process' streams, status and signals are those of the workload."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import images
from cloister.crypto.signer import ECDSAP256Signer
from cloister.sdk.home import home_from_environment
from cloister.trust.admin import TrustAdmin
from conformance.registry_process import RegistryProcess
from conformance.tools import require_tool
from e2e.conftest import CLI
from tampering import flipped

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
QUIET = ("run", "-q", "--level", "simulated")
ONE_CPU = ("--vcpus", "1")  # QEMU 7.2 crashes a guest kernel with several processors now and then
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
def test_secret_files_come_from_here_from_the_broker_and_sealed(cli: Run, tmp_path: Path) -> None:
    """Each in its place before the first process; the trust service keeps nothing of the run afterwards."""
    key, other, local = tmp_path / "sealing.pem", tmp_path / "broker", tmp_path / "local"
    signer = ECDSAP256Signer.generate()
    key.write_bytes(signer.private_pem())
    (tmp_path / "sealing.pub").write_bytes(signer.public_key.pem())
    other.write_bytes(b"kept by the broker")
    local.write_bytes(b"from here")
    assert cli("secret", "put", "kbs:///default/files/kept", "--file", str(other)).returncode == 0
    sealing = ("secret", "seal", "kbs:///default/files/kept", "--signing-key", str(key), "--kid", "own")
    sealed = cli(*sealing).stdout.decode().strip()
    files = {"/a/local": str(local), "/run/kept": "kbs:///default/files/kept", "/run/sealed": sealed}
    options = [word for path, source in files.items() for word in ("--secret-file", f"{path}={source}")]
    options += ["--sealing-key", f"own={tmp_path / 'sealing.pub'}", "--unseal", "kbs:///default/files/kept"]
    command = ("sh", "-c", "cat /a/local /run/kept /run/sealed; echo $A")
    done = cli(*QUIET, *options, "-e", f"A={sealed}", location(images.busybox_image()), *command)
    assert (done.returncode, done.stdout) == (0, b"from here" + 3 * b"kept by the broker" + b"\n"), done.stderr
    stored = json.loads(cli("secret", "list", "--output", "json").stdout)["resources"]
    assert not [item["path"] for item in stored if item["path"].startswith("default/file/")]
    refused = cli(*QUIET, "-e", f"A={sealed}", location(images.busybox_image()), "true")
    assert refused.returncode == 125
    assert b"podpolicy.unseal.key" in refused.stderr


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
        (["--name", "Not a Name"], b"cli.run.name"),
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
            return {digest for rule in admin.release_rules().rules.values() for digest in rule.init_data}

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
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda item: item.name)
def test_a_signal_before_the_workload_ends_the_run(tmp_path: Path, private_home: Path, number: signal.Signals) -> None:
    command = [*CLI, "run", "--level", "simulated", location(images.busybox_image()), "sleep", "60"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stderr is not None
        while b"trust service" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(30) == 128 + number
    assert b" !!  stopped by a signal" in rest and b"Traceback" not in rest
    assert not list(tmp_path.iterdir())
    with TrustAdmin(private_home / "trust") as admin:
        assert admin.release_rules().rules == {}


@pytest.mark.tool
def test_the_next_run_withdraws_what_a_killed_one_approved(cli: Run, tmp_path: Path, private_home: Path) -> None:
    image = location(images.busybox_image())
    command = [*CLI, "run", "--level", "simulated", "-e", "A=1", image, "sleep", "60"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stderr is not None
        while b"keys released" not in process.stderr.readline():
            assert process.poll() is None
        assert cli(*QUIET, image, "true").returncode == 0  # another run takes nothing from a living one
        assert approved(private_home) == ["env", "image-kek", "stream-key"]
        process.kill()
    assert approved(private_home) == ["env", "image-kek", "stream-key"]
    assert cli(*QUIET, "--keep", image, "true").returncode == 0
    assert approved(private_home) == ["image-kek", "stream-key"]
    assert cli(*QUIET, image, "true").returncode == 0
    assert approved(private_home) == ["image-kek", "stream-key"]  # kept on purpose, so still there


def approved(home: Path) -> list[str]:
    """The types of the resources that some pod may have; all of them are stored, and nothing else is."""
    with TrustAdmin(home / "trust") as admin:
        prefixes = admin.release_rules().rules
        stored = sorted(entry.path.type for entry in admin.list_resources())
    rules = sorted(prefix.split("/")[1] for prefix in prefixes)
    assert stored == sorted({*rules, "image-kek"})
    return rules


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


@pytest.mark.tool
def test_what_follows_the_image_is_the_workloads(cli: Run) -> None:
    """Words that begin with a dash too, also those that are options of ours."""
    image = location(images.busybox_image())
    words = ("-la", "--port", "7000", "--level", "hardware", "-e", "--", "--help")
    done = cli(*QUIET, image, "sh", "-c", 'echo "$0 $*"', *words)
    assert (done.returncode, done.stdout) == (0, " ".join(words).encode() + b"\n"), done.stderr
    assert cli(*QUIET, "--entrypoint", "echo", image, "-n", "x").stdout == b"x"


@pytest.mark.tool
def test_user_and_directory(cli: Run) -> None:
    image = location(images.layered_image())
    done = cli(*QUIET, "-u", "0:0", "-w", "/tmp", "--entrypoint", "/bin/sh", image, "-c", "id -u; pwd")
    assert done.stdout == b"0\n/tmp\n", done.stderr


@pytest.mark.tool
def test_options_combine_as_in_docker(cli: Run) -> None:
    image = location(images.busybox_image())
    done = cli(
        "run",
        "-qit",
        "--level=simulated",
        "--rm",
        "--name=web",
        image,
        "sh",
        "-c",
        "read x; echo got $x",
        stdin=b"hi\n",
    )
    assert b"got hi" in done.stdout and done.returncode == 0, done.stderr


@pytest.mark.tool
def test_a_name_is_no_key(tmp_path: Path) -> None:
    """Two pods of one name at a time have keys of their own."""
    image = location(images.busybox_image())
    command = [*CLI, *QUIET, "--name", "twin", "-i", image, "cat"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        subprocess.Popen(command, cwd=tmp_path, **pipes) as one,
        subprocess.Popen(command, cwd=tmp_path, **pipes) as other,
    ):
        assert one.communicate(b"first", timeout=60)[0] == b"first"
        assert other.communicate(b"second", timeout=60)[0] == b"second"
    assert (one.returncode, other.returncode) == (0, 0)


@pytest.mark.tool
def test_success_says_what_was_proved_what_not_and_what_next(cli: Run) -> None:
    done = cli("run", "--level", "simulated", location(images.busybox_image()), "true")
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 0 and done.stdout == b""
    assert "SIMULATED (teaches the flow, protects nothing)" in lines[0]
    assert any(line.startswith(" ok  proved ") for line in lines)
    assert any(line.startswith(" --  not proved ") and "protects nothing" in line for line in lines)
    assert any("pod started and attested" in line for line in lines)
    report, following = lines[-2:]
    assert report.startswith(" report: ") and Path(report.removeprefix(" report: ")).is_file()
    assert following.startswith(" next: cloister ")


def blocks(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    """The lines of the error block, without their mark; every refusal has cause, fix and more."""
    lines = [line for line in done.stderr.decode().splitlines() if line.startswith("cloister: ")]
    assert lines[0].startswith("cloister: error: CLS-"), done.stderr
    assert any(line.startswith("cloister: hint: ") for line in lines), lines
    assert lines[-1].startswith("cloister: more: cloister explain CLS-"), lines
    return [line.removeprefix("cloister: ").strip() for line in lines]


def test_a_refusal_says_cause_place_and_fix(cli: Run, tmp_path: Path) -> None:
    done = cli(*QUIET, f"oci:{tmp_path}/nothing:v1")
    assert done.returncode == 125
    assert blocks(done)[1] == f"place:    {tmp_path}/nothing"
    assert "oci.layout.not_a_layout" in blocks(done)[-1]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--level", "hardware"), "cli.run.option"),
        (("-p", "80"), "cli.run.publish"),
        (("-p", "80:80/udp"), "cli.run.publish"),
        (("-e", "NAME"), "cli.run.env"),
        (("--name", "Not A Name"), "cli.run.name"),
        (("--resource", "model"), "protocol.resource.malformed"),
    ],
    ids=lambda item: item if isinstance(item, str) else None,
)
def test_options_are_refused_before_anything_starts(
    cli: Run, tmp_path: Path, options: tuple[str, ...], code: str
) -> None:
    done = cli("run", *options, "oci:x:y")
    assert done.returncode == 125 and done.stdout == b""
    assert code in blocks(done)[-1]
    assert not list(tmp_path.iterdir())


def test_usage_errors(cli: Run) -> None:
    """Of `run` they are 125, as with docker: 2 may be the workload's own status."""
    for words in ("run", "run --no-such x", "run --memory 1 x"):
        assert cli(*words.split()).returncode == 125, words
    for words in ("nothing", "doctor --output xml", "explain"):
        assert cli(*words.split()).returncode == 2, words
    assert cli("run", "--help").returncode == 0


@pytest.mark.tool
def test_a_taken_port_is_refused(cli: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = cli(*QUIET, "-p", f"{port}:80", location(images.busybox_image()), "true")
    assert done.returncode == 125 and f"127.0.0.1:{port}" in blocks(done)[1]


@pytest.mark.tool
def test_bytes_changed_in_the_registry_are_refused_and_the_fix_works(cli: Run, private_home: Path) -> None:
    image = location(images.busybox_image())
    assert cli(*QUIET, image, "true").returncode == 0
    blob = max((private_home / "registry").rglob("*"), key=lambda item: item.stat().st_size if item.is_file() else 0)
    blob.write_bytes(flipped(blob.read_bytes()))
    done = cli(*QUIET, image, "true")
    assert done.returncode == 125 and "CLS-I-0022" in blocks(done)[0]
    assert any("CLOISTER_HOME/registry" in line for line in blocks(done))
    shutil.rmtree(private_home / "registry")
    assert cli(*QUIET, image, "true").returncode == 0


@pytest.mark.tool
def test_a_lost_layer_is_sealed_again(cli: Run, private_home: Path) -> None:
    image = location(images.busybox_image())
    assert cli(*QUIET, image, "true").returncode == 0
    max((private_home / "registry").rglob("*"), key=lambda item: item.stat().st_size if item.is_file() else 0).unlink()
    assert cli(*QUIET, image, "true").returncode == 0


@pytest.mark.tool
def test_a_denied_resource_is_named_and_explained(cli: Run) -> None:
    fetch = ("wget", "-q", "-O", "-", "http://127.0.0.1:8006/cdh/resource/default/model/none")
    options = ("--level", "simulated", "--resource", "default/model/none")
    done = cli("run", *options, location(images.busybox_image()), *fetch)
    assert done.returncode != 0
    (line,) = (line for line in done.stderr.decode().splitlines() if line.startswith(" no "))
    assert "CLS-K-0010 default/model/none" in line and line.split()[-1].startswith("d-")
    explained = cli("explain", line.split()[-1])
    assert explained.returncode == 0
    for words in (b"CLS-K-0010", b"default/model/none", b"authentic", b"bound", b"acceptable", b"fix"):
        assert words in explained.stdout


def test_explain(cli: Run) -> None:
    by_number, by_code = cli("explain", "cls-p-0117"), cli("explain", "podpolicy.claim.env")
    assert by_number.returncode == 0 and by_number.stdout == by_code.stdout
    entry = json.loads(cli("explain", "CLS-P-0117", "--output", "json").stdout)
    assert entry["schema"] == 1 and entry["title"] and entry["why"] and entry["fix"]
    for unknown in ("CLS-X-0001", "no.such.code", "d-aaaaaaaaaa"):
        refused = cli("explain", unknown)
        assert refused.returncode == 1 and unknown in "".join(blocks(refused))


@pytest.mark.tool
def test_doctor(cli: Run) -> None:
    done = cli("doctor", "--output", "json")
    found = json.loads(done.stdout)
    assert found["schema"] == 1 and done.returncode == (0 if found["levels"]["measured"]["ready"] else 3)
    names = {line["name"] for line in found["lines"]}
    assert {"kvm", "tool.qemu", "tool.swtpm", "firmware", "disk", "clock", "tee.snp-host", "tee.tdx-host"} <= names
    assert all(line["fix"] for line in found["lines"] if not line["ok"])
    text = cli("doctor").stdout.decode()
    assert "level HARDWARE" in text and "level MEASURED" in text and text.splitlines()[-1].startswith(" next: ")


def test_doctor_on_a_bare_machine_says_what_lacks(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": "/nonexistent", "CLOISTER_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([*CLI, "doctor"], capture_output=True, cwd=tmp_path, env=environment, timeout=60)
    assert done.returncode == 3
    assert b"level MEASURED: needs " in done.stdout and b"fix: " in done.stdout


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
    options += ["--scratch", "64"]
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
    assert "serial=cloister-scratch" in json.dumps(summary)


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
