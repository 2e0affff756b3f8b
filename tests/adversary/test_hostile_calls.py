"""A host that says anything on the control port: what it asks is decided by the measured policy, or refused by schema.

Each refusal leaves the pod as it was: behind it the allowed request of the same kind passes.
"""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from adversary.expect import refusal_of, require_fix
from adversary.pods import approved, create, nothing_unpacked, running, started
from cloister.podpolicy.model import PodPolicy
from cloister.protocol import guestapi
from cloister.protocol.resourceuri import ResourcePath
from cloister.sdk.owner import SealedReference
from cloister.testing.hostilehost import call_parameters, hostile_frames, unfollowable_bytes
from guest_world import World, secrets_port

pytestmark = pytest.mark.tool
FOREVER = ("sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done")


def shell(world: World, image: SealedReference, script: str = "echo ran", **changes: Any) -> PodPolicy:
    return world.policy(image, "sh", "-c", script, **changes)


# --- a closed schema -----------------------------------------------------------------------------------------------


def test_no_frame_outside_the_schema_does_anything(world: World, busybox: SealedReference) -> None:
    container = world.container(busybox, command=FOREVER)
    with running(world, world.several(container), busybox) as pod:
        create(pod)
        pod.host.call("start", container="c1")
        before = pod.host.call("pids", container="c1")
        frames = list(hostile_frames("c1", "app", pod.registry))
        assert len(frames) > 300
        wrong = []
        for frame in frames:
            pod.host.send(frame.body)
            code = pod.host.finish(frame.id).error.get("code")
            if code != frame.code:
                wrong.append((frame.what, frame.code, code))
        assert wrong == []
        for code in {frame.code for frame in frames}:
            require_fix(code)
        assert pod.host.call("state", container="c1").status == "running"
        assert len(pod.host.call("pids", container="c1").pids) >= len(before.pids) - 1
        assert pod.host.call("info").containers == ["app"]


def test_the_table_of_calls_is_whole() -> None:
    assert set(call_parameters("c1", "app", "http://h")) == set(guestapi.CALLS)


@pytest.mark.parametrize("what", unfollowable_bytes())
def test_bytes_that_cannot_be_followed_end_the_pod(world: World, busybox: SealedReference, what: str) -> None:
    raw, code = unfollowable_bytes()[what]
    with running(world, world.several(world.container(busybox, command=FOREVER)), busybox) as pod:
        create(pod)
        pid = pod.host.call("start", container="c1").pid
        assert pod.host.call("info").pod == "test-pod"
        pod.host.control.sendall(raw)
        assert pod.host.event(guestapi.FailedEvent).error["code"] == code
        require_fix(code)
        assert pod.process.wait(20) == 1
        assert not Path(f"/proc/{pid}").exists()


def test_the_longest_frame_is_read_and_refused_by_name(world: World, busybox: SealedReference) -> None:
    with running(world, shell(world, busybox), busybox) as pod:
        body = b'{"v":1,"id":77,"call":"info","params":{"x":"%s"}}'
        room = guestapi.GUESTAPI_FRAME_BYTES - len(body) + 2
        pod.host.send(body % (b"x" * room))
        assert pod.host.finish(77).error["code"] == "guestapi.schema"
        assert pod.run() == (0, b"ran\n", b"")


def test_a_flood_of_calls_is_shed(world: World, busybox: SealedReference) -> None:
    """More waiting calls than the agent keeps threads for: the rest is told to come back."""
    with running(world, world.several(world.container(busybox, command=FOREVER)), busybox) as pod:
        create(pod)
        pod.host.call("start", container="c1")
        waiting = [pod.host.begin("wait", container="c1") for _ in range(160)]
        time.sleep(0.2)
        refusal_of("guestapi.busy", pod.host.call, "info")
        assert len(waiting) == 160


# --- what runs is not the host's choice ----------------------------------------------------------------------------

TRUE_CLAIM: dict[str, Any] = {"args": ["sh", "-c", "echo ran"], "env": ["PATH=/bin"], "cwd": "/", "user": "0"}
FALSE_CLAIMS = [
    ("env", ["PATH=/bin", "LD_PRELOAD=/tmp/steal.so"]),
    ("env", ["PATH=/tmp"]),
    ("env", []),
    ("env", ["PATH=/bin", "HTTPS_PROXY=http://10.0.2.2:3128"]),
    ("args", ["sh", "-c", "echo ran; cat /proc/1/environ"]),
    ("args", ["sh"]),
    ("args", []),
    ("cwd", "/tmp"),
    ("user", "1000"),
    ("user", "root:shadow"),
]


@pytest.mark.parametrize(("field", "value"), FALSE_CLAIMS)
def test_a_claim_that_differs_is_refused(world: World, busybox: SealedReference, field: str, value: Any) -> None:
    with running(world, shell(world, busybox), busybox) as pod:
        error = refusal_of(f"podpolicy.claim.{field}", create, pod, claim={**TRUE_CLAIM, field: value})
        assert error.expected or error.actual
        assert nothing_unpacked(pod)
        streams = create(pod, claim=TRUE_CLAIM)
        pod.host.call("start", container="c1")
        assert pod.text(streams, "stdout") == b"ran\n"


def test_a_secret_environment_is_not_in_the_refusal_of_a_claim(world: World, busybox: SealedReference) -> None:
    """The host may guess at the environment as often as it likes: neither side of the comparison holds the secret."""
    place = ResourcePath("default", "env", "claimed")
    with world.owner.admin() as admin:
        admin.put_resource(place, b'{"PASSWORD":"canary-of-the-environment"}')
    policy = shell(world, busybox, "echo ${#PASSWORD}", env_resource=place)
    with running(world, policy, busybox, place) as pod:
        claim = {**TRUE_CLAIM, "args": ["sh", "-c", "echo ${#PASSWORD}"], "env": ["PATH=/bin", "PASSWORD=guess"]}
        error = refusal_of("podpolicy.claim.env", create, pod, claim=claim)
        assert "canary" not in repr(error.as_dict())
        assert pod.run() == (0, b"25\n", b"")


def test_exec_told_by_the_host_is_refused(world: World, busybox: SealedReference) -> None:
    listed = ["sh", "-c", "echo listed"]
    container = world.container(busybox, command=FOREVER, exec=(tuple(listed),))
    with running(world, world.several(container), busybox) as pod:
        create(pod)
        pod.host.call("start", container="c1")
        ask = {"container": "c1", "exec": "e1"}
        for words in (["sh"], [], ["sh", "-c", "echo listed", "more"], ["/bin/sh", "-c", "echo listed"]):
            refusal_of("podpolicy.exec", pod.host.call, "exec", **ask, args=words)
        for extra in ({"env": ["LD_PRELOAD=/x"]}, {"cwd": "/tmp"}, {"user": "1"}, {"terminal": True}):
            refusal_of("podpolicy.exec.process", pod.host.call, "exec", **ask, args=listed, **extra)
        streams = pod.host.call("exec", **ask, args=listed)
        pod.host.call("start", **ask)
        assert pod.text(streams, "stdout") == b"listed\n"


def test_exec_is_off_without_a_word_in_the_policy(world: World, busybox: SealedReference) -> None:
    with running(world, world.policy(busybox, *FOREVER), busybox) as pod:
        create(pod)
        pod.host.call("start", container="c1")
        error = refusal_of("podpolicy.exec", pod.host.call, "exec", container="c1", exec="e1", args=["id"])
        assert error.expected == "no exec at all"


def test_a_signal_outside_the_policy_is_refused(world: World, busybox: SealedReference) -> None:
    container = world.container(busybox, command=FOREVER, signals=frozenset({15}))
    with running(world, world.several(container), busybox) as pod:
        create(pod)
        pod.host.call("start", container="c1")
        for number in (1, 9, 10, 11, 19, 64):
            refusal_of("podpolicy.signal", pod.host.call, "kill", container="c1", signal=number)
            refusal_of("podpolicy.signal", pod.host.call, "kill", container="c1", signal=number, all=True)
        for number in (0, -1, 65, 1000):
            refusal_of("guestapi.schema", pod.host.call, "kill", container="c1", signal=number)
        time.sleep(0.1)
        pod.host.call("kill", container="c1", signal=15)
        assert pod.host.call("wait", container="c1").status == 3


# --- the state machine ---------------------------------------------------------------------------------------------


def test_an_extra_container_is_refused(world: World, busybox: SealedReference) -> None:
    with running(world, shell(world, busybox), busybox) as pod:
        for name in ("sidecar", "App", "app-2"):
            refusal_of("podpolicy.create.undeclared", pod.create, name, "c9")
        assert pod.run() == (0, b"ran\n", b"")
        refusal_of("podpolicy.create.undeclared", pod.create, "sidecar", "c9")


def test_a_container_is_created_and_started_once(world: World, busybox: SealedReference) -> None:
    with running(world, shell(world, busybox), busybox) as pod:
        create(pod)
        refusal_of("podpolicy.create.identifier", create, pod)
        refusal_of("podpolicy.create.twice", pod.create, "app", "c2")
        pod.host.call("start", container="c1")
        refusal_of("podpolicy.start.twice", pod.host.call, "start", container="c1")
        assert pod.host.call("wait", container="c1").status == 0
        refusal_of("podpolicy.start.twice", pod.host.call, "start", container="c1")
        pod.host.call("delete", container="c1")
        refusal_of("podpolicy.create.twice", pod.create, "app", "c3")
        refusal_of("podpolicy.unknown_container", pod.host.call, "start", container="c1")


def test_init_containers_are_neither_skipped_nor_reordered(world: World, busybox: SealedReference) -> None:
    first = world.container(busybox, "first", kind="init", command=("sh", "-c", "exit 0"))
    second = world.container(busybox, "second", kind="init", command=("sh", "-c", "exit 0"))
    third = world.container(busybox, "third", command=("sh", "-c", "echo ran"))
    with running(world, world.several(first, second, third), busybox) as pod:
        refusal_of("podpolicy.create.order", pod.create, "third", "c3")
        refusal_of("podpolicy.create.order", pod.create, "second", "c2")
        pod.create("first", "c1")
        refusal_of("podpolicy.create.order", pod.create, "second", "c2")
        pod.host.call("start", container="c1")
        assert pod.host.call("wait", container="c1").status == 0
        refusal_of("podpolicy.create.order", pod.create, "third", "c3")
        assert pod.run("second", "c2")[0] == 0
        assert pod.run("third", "c3")[:2] == (0, b"ran\n")


def test_an_init_container_killed_by_the_host_does_not_count(world: World, busybox: SealedReference) -> None:
    first = world.container(busybox, "first", kind="init", command=FOREVER, signals=frozenset({9}))
    second = world.container(busybox, "second", command=("true",))
    with running(world, world.several(first, second), busybox) as pod:
        pod.create("first", "c1")
        pod.host.call("start", container="c1")
        pod.host.call("kill", container="c1", signal=9)
        assert pod.host.call("wait", container="c1").status == 137
        error = refusal_of("podpolicy.create.order", pod.create, "second", "c2")
        assert error.actual == "exited with status 137"


def test_a_created_container_deleted_before_it_ran_does_not_count(world: World, busybox: SealedReference) -> None:
    first = world.container(busybox, "first", kind="init", command=("true",))
    second = world.container(busybox, "second", command=("true",))
    with running(world, world.several(first, second), busybox) as pod:
        pod.create("first", "c1")
        pod.host.call("delete", container="c1")
        refusal_of("podpolicy.create.order", pod.create, "second", "c2")


def test_concurrent_creates_and_starts_give_one_container(world: World, busybox: SealedReference) -> None:
    with running(world, shell(world, busybox), busybox) as pod:
        asked = [
            pod.host.begin("create", container=f"c{number}", name="app", registry=pod.registry) for number in range(8)
        ]
        replies = [pod.host.finish(number) for number in asked]
        winners = [index for index, reply in enumerate(replies) if not reply.error]
        assert len(winners) == 1
        assert {reply.error["code"] for reply in replies if reply.error} == {"podpolicy.create.twice"}
        starts = [pod.host.begin("start", container=f"c{winners[0]}") for _ in range(8)]
        codes = [pod.host.finish(number).error.get("code", "") for number in starts]
        assert sorted(codes) == ["", *["podpolicy.start.twice"] * 7]


# --- the workload's secrets ----------------------------------------------------------------------------------------


def ask_from_outside(request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", 8006), 10) as outside:
        outside.sendall(request)
        answer = b""
        with contextlib.suppress(OSError):
            while data := outside.recv(4096):
                answer += data
        return answer


def test_a_container_reads_its_own_resources_only(world: World, busybox: SealedReference) -> None:
    mine = ResourcePath("default", "model", "mine")
    with world.owner.admin() as admin:
        admin.put_resource(mine, b"secret-of-mine")
    base = "http://127.0.0.1:8006"
    paths = [
        "/cdh/resource/default/stream-key/test",
        "/cdh/resource/default/model/other",
        "/cdh/resource/default/model/../stream-key/test",
        "/cdh/resource/default/model/%2e%2e/mine",
        "/cdh/resource//default/model/mine",
        "/cdh/resource/default/model/mine/",
        "/cdh/../cdh/resource/default/model/mine",
        "/../../etc/passwd",
        "/aa/token?token_type=kbs&token_type=coco_as",
        "/aa/evidence",
    ]
    asks = "; ".join(f"wget -q -O - '{base}{path}' >/dev/null 2>&1 && echo GOT {path}" for path in paths)
    one = world.container(
        busybox,
        "one",
        command=("sh", "-c", f"wget -q -O - {base}/cdh/resource/default/model/mine; echo; {asks}; echo end"),
        resources=(mine,),
    )
    two = world.container(
        busybox, "two", command=("sh", "-c", f"wget -O - {base}/cdh/resource/default/model/mine 2>&1")
    )
    with secrets_port(), running(world, world.several(one, two), busybox, mine) as pod:
        streams = pod.create("one", "c1")
        pod.host.call("start", container="c1")
        status, out, _ = pod.run("two", "c2")
        assert status != 0
        assert b"403" in out
        assert b"secret" not in out
        for request in (
            b"GET /cdh/resource/default/model/mine HTTP/1.1\r\n\r\n",
            b"GET /aa/token?token_type=kbs HTTP/1.1\r\n\r\n",
        ):
            answer = ask_from_outside(request)
            assert answer.startswith(b"HTTP/1.1 403 "), answer
            assert b"secret" not in answer
        assert ask_from_outside(b"POST /cdh/resource/x HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 405 ")
        assert ask_from_outside(b"GET /" + b"x" * 20_000).startswith(b"HTTP/1.1 400 ")
        assert pod.host.call("wait", container="c1").status == 0
        assert pod.text(streams, "stdout") == b"secret-of-mine\nend\n"


# --- before the pod is ready ---------------------------------------------------------------------------------------


def test_init_data_the_owner_did_not_approve_gets_no_key(world: World, busybox: SealedReference) -> None:
    approved(world, shell(world, busybox), busybox)  # so that there are rules, for somebody else
    policy = shell(world, busybox, f"echo {time.time()}")
    with started(world, world.init_data(policy)) as pod:
        failed = pod.host.event(guestapi.FailedEvent).error
        assert failed["code"] == "trust.release.init_data"
        require_fix(failed["code"])
    with running(world, policy, busybox) as pod:
        assert pod.run()[0] == 0
