"""The whole way of a container at the simulated level: real owner, trust service, registry, image, agent, sandbox.

Each acceptance has its refusals beside it. The host is `HostDouble`, which may say anything.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import CloisterError, Refused, Unavailable
from cloister.podpolicy.model import ContainerPolicy, PodPolicy
from cloister.protocol import guestapi
from cloister.protocol.initdata import AGENT_ENTRY, build_initdata
from cloister.protocol.resourceuri import ResourcePath
from cloister.sdk.owner import SealedReference
from cloister.wire.limits import STREAM_FRAME_BYTES, STREAM_WINDOW_BYTES
from conformance.tools import skip_or_fail
from guest_world import STREAM_KEY, ProcessPod, World, make_world, secrets_port
from images import BuildFailed, busybox_image, layered_image

pytestmark = pytest.mark.tool
CANARY = "canary-5c2e77"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if not Path("/usr/bin/bwrap").exists():
        skip_or_fail("bwrap is not installed: run `tools/setup test-packages`")
    with make_world(tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.fixture(scope="module")
def busybox(world: World) -> SealedReference:
    return world.seal(f"oci:{_layout(busybox_image)}:v1")


@pytest.fixture(scope="module")
def layered(world: World) -> SealedReference:
    return world.seal(f"oci:{_layout(layered_image)}:v1")


def _layout(make: Any) -> Path:
    try:
        path: Path = make()
    except BuildFailed as err:
        skip_or_fail(str(err))
    return path


@contextlib.contextmanager
def running(world: World, policy: PodPolicy, image: SealedReference, *more: ResourcePath) -> Iterator[ProcessPod]:
    pod = world.pod(world.prepare(policy, image, *more))
    try:
        yield pod
    finally:
        pod.end()


def refusal(pod: ProcessPod, call: str, /, **params: Any) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        pod.host.call(call, **params)
    return caught.value


def shell(world: World, image: SealedReference, script: str, **changes: Any) -> PodPolicy:
    return world.policy(image, "sh", "-c", script, **changes)


# --- what runs -----------------------------------------------------------------------------------------------------


def test_runs_sealed_image_with_sealed_streams(world: World, busybox: SealedReference) -> None:
    status, out, err = world.run(busybox, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (status, out, err) == (7, b"out\n", b"err\n")


def test_several_layers_user_entrypoint_and_directory(world: World, layered: SealedReference) -> None:
    status, out, _ = world.run(layered)
    assert status == 0
    assert out == (b"uid=1000 gid=1000 cwd=/app/data mode=layered args=hello world\nchanged by the third layer\n")


def test_policy_overrides_image(world: World, layered: SealedReference) -> None:
    _, out, _ = world.run(layered, "one", env={"APP_MODE": "other"}, cwd="/app", user="0")
    assert out == b"uid=0 gid=0 cwd=/app mode=other args=one\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_status_of_a_signal(world: World, busybox: SealedReference, number: int) -> None:
    policy = shell(world, busybox, "trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done")
    with running(world, policy, busybox) as pod:
        streams = pod.create()
        pod.host.call("start", container="c1")
        pod.host.wait_output(streams.stdout)
        pod.host.call("kill", container="c1", signal=int(number))
        expected = 137 if number == signal.SIGKILL else 3
        assert pod.host.call("wait", container="c1").status == expected
        assert pod.host.event(guestapi.ExitEvent).status == expected


def test_missing_program_is_told_by_kind(world: World, busybox: SealedReference) -> None:
    policy = world.policy(busybox, "/no/such/program")
    with running(world, policy, busybox) as pod:
        streams = pod.create()
        pod.host.call("start", container="c1")
        assert pod.host.call("wait", container="c1").status != 0
        assert pod.host.read(streams.stdout) is not None


def test_name_files_and_environment(world: World, busybox: SealedReference) -> None:
    script = "hostname; cat /etc/hostname; grep test-pod /etc/hosts; echo $HOME; echo $HOSTNAME; ls -d /etc/resolv.conf"
    _, out, _ = world.run(busybox, "sh", "-c", script)
    assert out.decode().splitlines() == [
        "test-pod",
        "test-pod",
        "127.0.1.1 test-pod",
        "/root",
        "test-pod",
        "/etc/resolv.conf",
    ]


def test_terminal(world: World, busybox: SealedReference) -> None:
    policy = shell(world, busybox, "tty; read line; echo got $line", terminal=True, stdin=True)
    with running(world, policy, busybox) as pod:
        streams = pod.create()
        assert streams.stderr == 0
        pod.host.call("start", container="c1")
        sealer = pod.sealer(streams)
        pod.host.send_frame(streams.stdin, guestapi.StreamKind.DATA, sealer.seal(b"word\n"))
        assert pod.host.call("wait", container="c1").status == 0
        text = pod.text(streams, "stdout").decode()
        assert "/dev/" in text
        assert "got word" in text


def test_terminal_is_resized(world: World, busybox: SealedReference) -> None:
    script = "trap 'stty size; exit 0' WINCH; echo up; while :; do sleep 0.05; done"
    with running(world, shell(world, busybox, script, terminal=True), busybox) as pod:
        streams = pod.create()
        pod.host.call("start", container="c1")
        pod.host.wait_output(streams.stdout)
        pod.host.call("resize", container="c1", width=99, height=31)
        assert pod.host.call("wait", container="c1").status == 0
        assert "31 99" in pod.text(streams, "stdout").decode()
        assert refusal(pod, "resize", container="c1", width=0, height=31).code == "guest.process.resize"


def test_container_without_terminal_is_not_resized(world: World, busybox: SealedReference) -> None:
    with running(world, shell(world, busybox, "true"), busybox) as pod:
        pod.create()
        assert refusal(pod, "resize", container="c1", width=80, height=25).code == "podpolicy.resize"


# --- standard input ------------------------------------------------------------------------------------------------


def test_sealed_input(world: World, busybox: SealedReference) -> None:
    with running(world, world.policy(busybox, "wc", "-c", stdin=True), busybox) as pod:
        streams = pod.create()
        sealer = pod.sealer(streams)
        pod.host.send_frame(streams.stdin, guestapi.StreamKind.DATA, sealer.seal(b"x" * 1000))
        pod.host.call("start", container="c1")
        for piece in (sealer.seal(b"y" * 234), sealer.finish()):
            pod.host.send_frame(streams.stdin, guestapi.StreamKind.DATA, piece)
        pod.host.send_frame(streams.stdin, guestapi.StreamKind.EOF)
        assert pod.host.call("wait", container="c1").status == 0
        assert pod.text(streams, "stdout").strip() == b"1234"


@pytest.mark.parametrize("attack", ["truncate", "forge", "replay", "close_io"])
def test_broken_sealed_input_is_no_end_of_file(world: World, busybox: SealedReference, attack: str) -> None:
    """A script on standard input that is cut short must not run its first half as if it were whole."""
    with running(world, world.policy(busybox, "cat", stdin=True), busybox) as pod:
        streams = pod.create()
        pod.host.call("start", container="c1")
        record = pod.sealer(streams).seal(b"rm -rf /scratch")
        pod.host.send_frame(streams.stdin, guestapi.StreamKind.DATA, record)
        pod.host.wait_output(streams.stdout)
        if attack == "truncate":
            pod.host.send_frame(streams.stdin, guestapi.StreamKind.EOF)
        elif attack == "forge":
            pod.host.send_frame(streams.stdin, guestapi.StreamKind.DATA, bytes(64))
        elif attack == "replay":
            pod.host.send_frame(streams.stdin, guestapi.StreamKind.DATA, record)
        else:
            pod.host.call("close_io", container="c1")
            time.sleep(0.3)
            assert pod.host.call("state", container="c1").status == "running"
            return
        assert pod.host.call("wait", container="c1").status == 137


def test_plain_input_ends_with_close_io(world: World, busybox: SealedReference) -> None:
    policy = world.several(world.container(busybox, command=("cat",), stdin=True))
    with running(world, policy, busybox) as pod:
        streams = pod.create()
        pod.host.call("start", container="c1")
        pod.host.send_frame(streams.stdin, guestapi.StreamKind.DATA, b"plain")
        pod.host.wait_credit(streams.stdin, len(b"plain"))
        pod.host.call("close_io", container="c1")
        assert pod.host.call("wait", container="c1").status == 0
        assert pod.text(streams, "stdout") == b"plain"


# --- streams -------------------------------------------------------------------------------------------------------


def test_host_sees_no_plain_output(world: World, busybox: SealedReference) -> None:
    with running(world, world.policy(busybox, "sh", "-c", f"echo {CANARY}"), busybox) as pod:
        streams = pod.create()
        pod.host.call("start", container="c1")
        seen = b"".join(pod.host.read(streams.stdout))
        assert CANARY.encode() not in seen
        assert CANARY.encode() in pod.text(streams, "stdout")


def test_truncated_output_is_noticed(world: World, busybox: SealedReference) -> None:
    with running(world, shell(world, busybox, "echo one"), busybox) as pod:
        streams = pod.create()
        pod.host.call("start", container="c1")
        records = pod.host.read(streams.stdout)
        opener = pod.opener(streams, "stdout")
        for record in records[:-1]:
            opener.open(record)
        with pytest.raises(Refused, match="truncated"):
            opener.end()


@pytest.mark.parametrize("mode", ["none", "host"])
def test_hundred_megabytes_neither_block_nor_grow(world: World, busybox: SealedReference, mode: str) -> None:
    container = world.container(busybox, command=("sh", "-c", "dd if=/dev/zero bs=1M count=100 2>/dev/null"))
    with running(world, world.several(container, mode=mode), busybox) as pod:
        streams = pod.create()
        before = _resident_mib(pod)
        pod.host.call("start", container="c1")
        assert pod.host.call("wait", container="c1").status == 0
        if mode == "none":
            assert (streams.stdout, streams.stderr) == (0, 0)
        else:
            assert sum(map(len, pod.host.read(streams.stdout))) == 100 * 2**20
        assert _resident_mib(pod) - before < 16


def test_output_is_drained_once_the_streams_port_is_broken(world: World, busybox: SealedReference) -> None:
    policy = shell(world, busybox, "read x; dd if=/dev/zero bs=1M count=5 2>/dev/null; exit 4", terminal=False)
    with running(world, policy, busybox) as pod:
        streams = pod.create()
        pod.host.grant = False
        pod.host.send_raw(b"\xff" * 64)
        assert pod.host.streams_closed.wait(20)
        pod.host.call("start", container="c1")
        assert pod.host.call("wait", container="c1").status == 4
        assert streams.stdout


def test_a_stalled_stream_holds_up_nothing_else(world: World, busybox: SealedReference) -> None:
    loud = world.container(busybox, "loud", command=("sh", "-c", "dd if=/dev/zero bs=1M count=5 2>/dev/null"))
    quiet = world.container(busybox, "quiet", command=("sh", "-c", "echo quiet"))
    with running(world, world.several(loud, quiet), busybox) as pod:
        pod.host.grant = False
        first = pod.create("loud", "c1")
        second = pod.create("quiet", "c2")
        pod.host.call("start", container="c1")
        pod.host.call("start", container="c2")
        assert pod.host.call("wait", container="c2").status == 0
        assert pod.text(second, "stdout") == b"quiet\n"
        assert len(pod.host.wait_output(first.stdout, STREAM_WINDOW_BYTES)) == STREAM_WINDOW_BYTES
        assert pod.host.call("state", container="c1").status == "running"
        pod.host.grant = True
        pod.host.send_frame(first.stdout, guestapi.StreamKind.WINDOW, (2**20).to_bytes(4, "big"))
        assert pod.host.call("wait", container="c1").status == 0


@pytest.mark.parametrize(
    "frame",
    [
        guestapi.StreamFrame(77, guestapi.StreamKind.DATA, b"x"),
        guestapi.StreamFrame(0, guestapi.StreamKind.EOF),
        guestapi.StreamFrame(1, guestapi.StreamKind.DATA, b"to an output"),
    ],
)
def test_frames_outside_the_protocol_close_the_port(
    world: World, busybox: SealedReference, frame: guestapi.StreamFrame
) -> None:
    with running(world, world.several(world.container(busybox, command=("true",))), busybox) as pod:
        pod.create()
        pod.host.call("start", container="c1")
        pod.host.call("wait", container="c1")
        pod.host.send_raw(guestapi.pack_stream_frame(frame))
        closed = pod.host.streams_closed.wait(1 if frame.stream == 1 else 20)
        assert closed or frame.stream == 1  # late bytes for a stream that has ended are dropped


def test_flood_beyond_the_window_closes_the_port(world: World, busybox: SealedReference) -> None:
    policy = world.several(world.container(busybox, command=("sleep", "1000"), stdin=True))
    with running(world, policy, busybox) as pod:
        streams = pod.create()
        with contextlib.suppress(OSError):
            for _ in range(STREAM_WINDOW_BYTES // STREAM_FRAME_BYTES + 4):
                pod.host.send_frame(streams.stdin, guestapi.StreamKind.DATA, bytes(STREAM_FRAME_BYTES))
        assert pod.host.streams_closed.wait(20)
        assert pod.host.call("info").pod == "test-pod"


# --- the policy's state machine ------------------------------------------------------------------------------------


def test_extra_container_is_refused(world: World, busybox: SealedReference) -> None:
    with running(world, shell(world, busybox, "true"), busybox) as pod:
        error = refusal(pod, "create", container="c1", name="sidecar", registry=pod.registry)
        assert error.code == "podpolicy.create.undeclared"


def test_container_twice_is_refused(world: World, busybox: SealedReference) -> None:
    with running(world, shell(world, busybox, "true"), busybox) as pod:
        pod.create()
        again = refusal(pod, "create", container="c2", name="app", registry=pod.registry)
        same = refusal(pod, "create", container="c1", name="app", registry=pod.registry)
        assert again.code == "podpolicy.create.twice"
        assert same.code == "podpolicy.create.identifier"
        pod.host.call("start", container="c1")
        assert refusal(pod, "start", container="c1").code == "podpolicy.start.twice"
        pod.host.call("wait", container="c1")
        assert refusal(pod, "start", container="c1").code == "podpolicy.start.twice"


@pytest.mark.parametrize(
    ("field", "value"),
    [("args", ["sh", "-c", "evil"]), ("env", ["LD_PRELOAD=/x"]), ("cwd", "/tmp"), ("user", "1")],
)
def test_wrong_claim_is_refused(world: World, busybox: SealedReference, field: str, value: Any) -> None:
    with running(world, shell(world, busybox, "true"), busybox) as pod:
        claim = {"args": ["sh", "-c", "true"], "env": ["PATH=/bin"], "cwd": "/", "user": "0"}
        error = refusal(pod, "create", container="c1", name="app", registry=pod.registry, claim={**claim, field: value})
        assert error.code == f"podpolicy.claim.{field}"
        assert pod.create(claim=claim).stdout


def test_exec_is_refused_unless_listed(world: World, busybox: SealedReference) -> None:
    container = world.container(
        busybox, command=("sleep", "1000"), exec=(("sh", "-c", "echo from exec; exit 5"),), env={"KEY": "value"}
    )
    with running(world, world.several(container), busybox) as pod:
        pod.create()
        words = ["sh", "-c", "echo from exec; exit 5"]
        assert refusal(pod, "exec", container="c1", exec="e1", args=words).code == "podpolicy.exec.not_running"
        pod.host.call("start", container="c1")
        assert refusal(pod, "exec", container="c1", exec="e1", args=["sh"]).code == "podpolicy.exec"
        extra = refusal(pod, "exec", container="c1", exec="e1", args=words, env=["LD_PRELOAD=/x"])
        assert extra.code == "podpolicy.exec.process"
        streams = pod.host.call("exec", container="c1", exec="e1", args=words)
        assert refusal(pod, "exec", container="c1", exec="e1", args=words).code == "guest.pod.exec_identifier"
        assert pod.host.call("start", container="c1", exec="e1").pid > 0
        status = pod.host.call("wait", container="c1", exec="e1").status
        assert status == 5, (pod.text(streams, "stdout"), pod.text(streams, "stderr"))
        assert pod.text(streams, "stdout") == b"from exec\n"
        assert pod.host.call("delete", container="c1", exec="e1").status == 5
        assert pod.host.call("state", container="c1").status == "running"


def test_signal_outside_the_policy_is_refused(world: World, busybox: SealedReference) -> None:
    with running(world, world.policy(busybox, "sleep", "1000"), busybox) as pod:
        pod.create()
        assert refusal(pod, "kill", container="c1", signal=9).code == "guest.pod.not_running"
        pod.host.call("start", container="c1")
        assert refusal(pod, "kill", container="c1", signal=19).code == "podpolicy.signal"
        pod.host.call("kill", container="c1", signal=9, all=True)
        assert pod.host.call("wait", container="c1").status == 137


@pytest.mark.parametrize("call", ["start", "wait", "state", "pids", "stats", "close_io", "pause", "resume", "delete"])
def test_unknown_container_is_refused(world: World, busybox: SealedReference, call: str) -> None:
    with running(world, shell(world, busybox, "true"), busybox) as pod:
        assert refusal(pod, call, container="nobody").code == "podpolicy.unknown_container"


def test_init_containers_come_first_and_must_succeed(world: World, busybox: SealedReference) -> None:
    first = world.container(busybox, "first", kind="init", command=("sh", "-c", "exit 0"))
    second = world.container(busybox, "second", command=("sh", "-c", "echo second"))
    with running(world, world.several(first, second), busybox) as pod:
        early = refusal(pod, "create", container="c2", name="second", registry=pod.registry)
        assert early.code == "podpolicy.create.order"
        assert pod.run("first", "c1")[0] == 0
        assert pod.run("second", "c2")[:2] == (0, b"second\n")


def test_failed_init_container_stops_the_pod(world: World, busybox: SealedReference) -> None:
    first = world.container(busybox, "first", kind="init", command=("sh", "-c", "exit 1"))
    second = world.container(busybox, "second", command=("true",))
    with running(world, world.several(first, second), busybox) as pod:
        assert pod.run("first", "c1")[0] == 1
        error = refusal(pod, "create", container="c2", name="second", registry=pod.registry)
        assert error.code == "podpolicy.create.order"


def test_inspection_pause_and_delete(world: World, busybox: SealedReference) -> None:
    with running(world, world.policy(busybox, "sh", "-c", "sleep 1000 & wait"), busybox) as pod:
        pod.create()
        assert pod.host.call("state", container="c1").status == "created"
        pid = pod.host.call("start", container="c1").pid
        assert pid in pod.host.call("pids", container="c1").pids
        stats = pod.host.call("stats", container="c1")
        assert stats.memory_bytes > 0
        assert stats.pids >= 1
        pod.host.call("pause", container="c1")
        assert pod.host.call("state", container="c1").status == "paused"
        pod.host.call("resume", container="c1")
        assert refusal(pod, "delete", container="c1").code == "podpolicy.delete.running"
        pod.host.call("kill", container="c1", signal=9)
        assert pod.host.call("wait", container="c1").status == 137
        assert pod.host.call("delete", container="c1").status == 137
        assert refusal(pod, "state", container="c1").code == "podpolicy.unknown_container"
        assert not list(pod.state.glob("root-*"))


# --- the host's frames ---------------------------------------------------------------------------------------------


def test_calls_before_ready_wait_or_refuse_and_never_run(world: World, busybox: SealedReference) -> None:
    """With a broker that nobody answers for, nothing is created and the pod ends with the reason."""
    good = world.init_data(shell(world, busybox, "true"))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        entry = good.entries[AGENT_ENTRY].replace(f":{world.trust.port}", f":{silent.getsockname()[1]}")
        pod = world.pod(build_initdata({**good.entries, AGENT_ENTRY: entry}))
        create = pod.host.begin("create", container="c1", name="app", registry=pod.registry)
        assert pod.host.call("info").init_data == pod.init_data.digest_text
        for call in ("start", "state", "pids"):
            error = refusal(pod, call, container="c1")
            assert error.code == "podpolicy.unknown_container", error
        assert not pod.host.answered(create)
    failed = pod.host.event(guestapi.FailedEvent)
    assert failed.error["code"] == "client.unreachable"
    with pytest.raises((Unavailable, ConnectionResetError)) as caught:  # the agent may end before it says so
        guestapi.decode_result("create", pod.host.finish(create))
    assert isinstance(caught.value, OSError) or caught.value.code == "client.unreachable"
    assert pod.end() == 1
    assert pod.console == "cloister: client.unreachable\n"


def test_unknown_call_and_field_are_refused_by_name(world: World, busybox: SealedReference) -> None:
    with running(world, shell(world, busybox, "true"), busybox) as pod:
        for body in (
            {"v": 1, "id": 900, "call": "copy_file", "params": {}},
            {"v": 1, "id": 900, "call": "info", "params": {"hooks": []}},
            {"v": 2, "id": 900, "call": "info", "params": {}},
            {"v": 1, "id": 900, "call": "create", "params": {"container": "../x", "name": "app"}},
        ):
            pod.host.send(json.dumps(body).encode())
            reply = pod.host.finish(900)
            assert reply.error["code"].startswith("guestapi.")


@pytest.mark.parametrize("raw", [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\x03{}}", b"\0\0\0\x02[]"])
def test_bytes_that_cannot_be_followed_end_the_pod(world: World, busybox: SealedReference, raw: bytes) -> None:
    with running(world, world.policy(busybox, "sleep", "1000"), busybox) as pod:
        pod.create()
        pid = pod.host.call("start", container="c1").pid
        pod.host.control.sendall(raw)
        assert pod.host.event(guestapi.FailedEvent).error["code"] in ("guestapi.frame", "guestapi.schema")
        assert pod.process.wait(20) == 1
        assert not _alive(pid)


def test_shutdown_answers_and_leaves_nothing(world: World, busybox: SealedReference) -> None:
    with running(world, world.policy(busybox, "sleep", "1000"), busybox) as pod:
        pod.create()
        pid = pod.host.call("start", container="c1").pid
        pod.host.call("shutdown")
        assert pod.process.wait(20) == 0
        assert not _alive(pid)
        assert not list(pod.state.rglob("*"))


def test_host_that_leaves_ends_the_pod(world: World, busybox: SealedReference) -> None:
    with running(world, world.policy(busybox, "sleep", "1000"), busybox) as pod:
        pod.create()
        pid = pod.host.call("start", container="c1").pid
        pod.host.close()
        assert pod.process.wait(20) == 0
        assert not _alive(pid)


def test_killed_agent_leaves_no_process(world: World, busybox: SealedReference) -> None:
    with running(world, shell(world, busybox, "echo up; exec sleep 1000"), busybox) as pod:
        streams = pod.create()
        pid = pod.host.call("start", container="c1").pid
        pod.host.wait_output(streams.stdout)
        pod.process.kill()
        pod.process.wait()
        deadline = time.monotonic() + 10
        while _alive(pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not _alive(pid)


# --- images and keys -----------------------------------------------------------------------------------------------


def test_init_data_the_owner_did_not_approve_gets_no_key(world: World, busybox: SealedReference) -> None:
    policy = shell(world, busybox, f"echo {time.time()}")
    pod = world.pod(world.init_data(policy))
    failed = pod.host.event(guestapi.FailedEvent)
    assert failed.error["path"].startswith("d-"), failed
    assert pod.end() == 1


def test_key_of_another_pod_is_refused(world: World, busybox: SealedReference) -> None:
    """The stream key is this pod's, the image key is not: creation fails and nothing of the image remains."""
    policy = shell(world, busybox, "echo never")
    init_data = world.init_data(policy)
    world.approve(init_data, [STREAM_KEY])
    pod = world.pod(init_data)
    error = refusal(pod, "create", container="c1", name="app", registry=pod.registry)
    assert error.path.startswith("d-"), error
    assert not list(pod.state.glob("root-*"))
    pod.end()


def test_unencrypted_image_is_refused(world: World) -> None:
    digest, repository = world.publish_plain(f"oci:{_layout(busybox_image)}:v1")
    container = ContainerPolicy(
        name="app",
        kind="app",
        image_digest=digest,
        repository=repository,
        signature_keys=(world.signature_key,),
    )
    init_data = world.init_data(world.several(container))
    world.approve(init_data, [STREAM_KEY])
    pod = world.pod(init_data)
    error = refusal(pod, "create", container="c1", name="app", registry=pod.registry)
    assert error.code == "guest.images.not_encrypted"
    pod.end()


def test_signature_by_another_key_is_refused(world: World, busybox: SealedReference) -> None:
    from cloister.crypto.signer import ECDSAP256Signer

    other = ECDSAP256Signer.generate().public_key.pem().decode()
    container = world.container(busybox, signature_keys=(other,))
    with running(world, world.several(container), busybox) as pod:
        error = refusal(pod, "create", container="c1", name="app", registry=pod.registry)
        assert error.code == "oci.signing.no_valid_signature"


def test_image_of_another_digest_is_refused(world: World, busybox: SealedReference) -> None:
    container = world.container(busybox, image_digest="sha256:" + "0" * 64)
    with running(world, world.several(container), busybox) as pod:
        error = refusal(pod, "create", container="c1", name="app", registry=pod.registry)
        assert error.code == "oci.distribution.manifest_missing"


def test_create_is_tried_again_after_a_registry_failed(world: World, busybox: SealedReference) -> None:
    with running(world, world.several(world.container(busybox, command=("true",))), busybox) as pod:
        dead = f"http://127.0.0.1:{_closed_port()}"
        error = refusal(pod, "create", container="c1", name="app", registry=dead)
        assert error.code == "oci.transport.unreachable"
        assert isinstance(error, Unavailable)
        assert pod.run()[0] == 0


@pytest.mark.parametrize("registry", ["", "ftp://x", "http://u@h", "http://h/p", "file:///etc", "http://"])
def test_registry_address_is_checked(world: World, busybox: SealedReference, registry: str) -> None:
    with running(world, shell(world, busybox, "true"), busybox) as pod:
        error = refusal(pod, "create", container="c1", name="app", registry=registry)
        assert error.code == "guest.images.registry"


def test_init_data_without_policy_ends_the_pod(world: World) -> None:
    pod = world.pod(build_initdata({"other": "x"}))
    assert pod.host.event(guestapi.FailedEvent).error["code"] == "protocol.initdata.missing_entry"
    assert pod.end() == 1


# --- the workload's own secrets ------------------------------------------------------------------------------------


def test_container_reads_its_own_resource_only(world: World, busybox: SealedReference) -> None:
    with secrets_port():
        mine = ResourcePath("default", "model", "mine")
        with world.owner.admin() as admin:
            admin.put_resource(mine, b"secret-of-mine")
        script = (
            "wget -q -O - http://127.0.0.1:8006/cdh/resource/default/model/mine; echo;"
            "wget -q -O - 'http://127.0.0.1:8006/aa/token?token_type=kbs' | cut -c1-10; "
            "for p in default/stream-key/test default/model/../stream-key/test x default/model/mine/../..;"
            "do wget -q -O - http://127.0.0.1:8006/cdh/resource/$p || echo no; done"
        )
        owner_of_it = world.container(busybox, "one", command=("sh", "-c", script), resources=(mine,))
        other = world.container(
            busybox,
            "two",
            command=("sh", "-c", "wget -O - http://127.0.0.1:8006/cdh/resource/default/model/mine 2>&1"),
        )
        with running(world, world.several(owner_of_it, other), busybox, mine) as pod:
            status, out, _ = pod.run("one", "c1")
            assert out.decode().splitlines() == ["secret-of-mine", '{"token":"', "no", "no", "no", "no"], out
            status, out, _ = pod.run("two", "c2")
            assert status != 0
            assert b"403" in out
            assert b"secret" not in out
            with socket.create_connection(("127.0.0.1", 8006), 10) as outside:
                outside.sendall(b"GET /cdh/resource/default/model/mine HTTP/1.1\r\n\r\n")
                answer = outside.recv(4096)
            assert answer.startswith(b"HTTP/1.1 403 ")
            assert b"secret" not in answer


def _alive(pid: int) -> bool:
    """Whether the process runs; one that ended and waits for its new parent does not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _resident_mib(pod: ProcessPod) -> int:
    text = Path(f"/proc/{pod.process.pid}/status").read_text("ascii")
    (line,) = (line for line in text.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024
