"""The agent in a real pod VM: TPM attestation, crun, control groups, terminals, and what a container cannot reach.

One machine boots for the whole file, with a pod of several containers, because a boot is what costs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import CloisterError, Unavailable
from cloister.protocol import guestapi
from cloister.protocol.resourceuri import ResourcePath
from cloister.sdk.bundle import build_bundle
from cloister.sdk.home import Home
from conformance.tools import cache_directory, skip_or_fail
from guest_world import VMPod, World, make_world
from images import BuildFailed, busybox_image

pytestmark = pytest.mark.vm

MINE = ResourcePath("default", "model", "mine")
LOUD = "dd if=/dev/zero bs=1M count=20 2>/dev/null; echo end >&2"
EXEC = ("sh", "-c", "echo in the container: $(hostname) $SETTING; exit 4")
FETCH = "wget -q -O - http://127.0.0.1:8006/cdh/resource/default/model/mine"
# Each line is a way out that must be closed; what is printed is what was reachable.
PROBES = """
mknod /tmp/disk b 253 0 2>/dev/null && echo mknod
unshare -m true 2>/dev/null && echo unshare
mount -t tmpfs none /mnt 2>/dev/null && echo mount
echo x 2>/dev/null > /proc/sys/kernel/hostname && echo sysctl
[ -n "$(ls /sys/kernel/security 2>/dev/null)" ] && echo securityfs
[ -n "$(ls /sys/firmware 2>/dev/null)" ] && echo firmware
echo 1 2>/dev/null > /sys/fs/cgroup/cgroup.freeze && echo cgroup
for device in vda vdb tpm0 tpmrm0 vport0p1 vport1p1 dm-0 mem kmsg; do [ -e /dev/$device ] && echo /dev/$device; done
[ "$(ls /proc | grep -c '^[0-9]')" -gt 4 ] && echo processes
ls /run/cloister 2>/dev/null && echo guest
grep -q 'CapEff:.0000000000000000' /proc/self/status && echo no-capabilities-at-all
grep -q 'NoNewPrivs' /proc/self/status || echo status
echo done
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with make_world(tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.fixture(scope="module")
def pod(world: World) -> Iterator[VMPod]:
    """A pod with one container for each question."""
    try:
        image = world.seal(f"oci:{busybox_image()}:v1")
        bundle = build_bundle(Home(root=world.owner.home.root, cache=cache_directory()))
    except (BuildFailed, Unavailable) as err:
        skip_or_fail(str(err))
    with world.owner.admin() as admin:
        admin.put_resource(MINE, b"secret-of-mine")
    policy = world.several(
        world.container(image, "first", kind="init", command=("sh", "-c", "exit 0")),
        world.container(image, "probe", command=("sh", "-c", PROBES)),
        world.container(image, "mine", command=("sh", "-c", FETCH), resources=(MINE,)),
        world.container(image, "other", command=("sh", "-c", f"{FETCH} 2>&1; id; cat /etc/resolv.conf"), user="12:34"),
        world.container(image, "terminal", command=("sh", "-c", "tty; read l; echo got $l; stty size"),
                        terminal=True, stdin=True),
        world.container(image, "missing", command=("/no/such/program",)),
        world.container(image, "long", command=("sh", "-c", "trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done"),
                        exec=(EXEC,), env={"SETTING": "value"}),
        world.container(image, "loud", command=("sh", "-c", LOUD)),
    )  # fmt: skip
    made = world.vm_pod(world.prepare(policy, image, MINE, host="10.0.2.2"), bundle)
    try:
        made.run("first", "c-first")
        yield made
    finally:
        made.end()


def refusal(pod: VMPod, call: str, /, **params: Any) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        pod.host.call(call, **params)
    return caught.value


def test_whole_life_in_order_of_the_policy(pod: VMPod) -> None:
    """The containers come in the order of the policy, so this is one test: what each may, and what it may not."""
    _confined(pod)
    _secrets(pod)
    _terminal(pod)
    _missing_program(pod)
    _long_running(pod)
    _loud(pod)
    _registry_inside_the_pod(pod)
    _phases(pod)
    _end(pod)


def _confined(pod: VMPod) -> None:
    status, out, err = pod.run("probe", "c-probe")
    assert (status, out, err) == (0, b"done\n", b"")


def _secrets(pod: VMPod) -> None:
    status, out, _ = pod.run("mine", "c-mine")
    assert (status, out) == (0, b"secret-of-mine")
    _, out, _ = pod.run("other", "c-other")
    assert b"403" in out
    assert b"secret" not in out
    assert b"uid=12 gid=34" in out
    assert b"nameserver 10.0.2.3" in out


def _terminal(pod: VMPod) -> None:
    streams = pod.create("terminal", "c-tty")
    assert streams.stderr == 0
    pod.host.call("start", container="c-tty")
    pod.host.call("resize", container="c-tty", width=77, height=22)
    pod.host.send_frame(streams.stdin, guestapi.StreamKind.DATA, b"word\n")
    assert pod.host.call("wait", container="c-tty").status == 0
    text = pod.text(streams, "stdout").decode()
    assert "/dev/pts/0" in text or "/dev/console" in text
    assert "got word" in text
    assert "22 77" in text


def _missing_program(pod: VMPod) -> None:
    streams = pod.create("missing", "c-missing")
    error = refusal(pod, "start", container="c-missing")
    assert error.code == "guest.runtime.not_found"
    assert pod.host.call("wait", container="c-missing").status == 127
    assert pod.text(streams, "stdout") == b""


def _long_running(pod: VMPod) -> None:
    pod.create("long", "c-long")
    pid = pod.host.call("start", container="c-long").pid
    assert pid in pod.host.call("pids", container="c-long").pids
    stats = pod.host.call("stats", container="c-long")
    assert stats.cpu_usec > 0
    assert stats.memory_bytes > 0
    assert refusal(pod, "exec", container="c-long", exec="e1", args=["sh"]).code == "podpolicy.exec"
    streams = pod.host.call("exec", container="c-long", exec="e1", args=list(EXEC))
    pod.host.call("start", container="c-long", exec="e1")
    assert pod.host.call("wait", container="c-long", exec="e1").status == 4
    assert pod.text(streams, "stdout") == b"in the container: test-pod value\n"
    pod.host.call("pause", container="c-long")
    assert pod.host.call("state", container="c-long").status == "paused"
    pod.host.call("resume", container="c-long")
    assert refusal(pod, "kill", container="c-long", signal=19).code == "podpolicy.signal"
    pod.host.call("kill", container="c-long", signal=15)
    assert pod.host.call("wait", container="c-long").status == 9
    assert pod.host.call("delete", container="c-long").status == 9
    assert refusal(pod, "start", container="c-long").code == "podpolicy.unknown_container"


def _loud(pod: VMPod) -> None:
    status, out, err = pod.run("loud", "c-loud")
    assert (status, len(out), err) == (0, 20 * 2**20, b"end\n")


def _registry_inside_the_pod(pod: VMPod) -> None:
    for registry in ("http://127.0.0.1:8006", "http://localhost:8006", "http://10.0.2.15:8006"):
        error = refusal(pod, "create", container="c-x", name="first", registry=registry)
        assert error.code.startswith(("guest.images.", "podpolicy.")), error


def _phases(pod: VMPod) -> None:
    assert set(pod.host.phases()) == set(guestapi.PHASES)


def _end(pod: VMPod) -> None:
    pod.host.call("shutdown")
    ended = pod.vm.wait(30)
    assert ended is not None
    console = Path(pod.vm.console).read_text("utf-8", "replace")
    with contextlib.suppress(ValueError):
        console = console[console.index("cloister:") :]
    assert "secret" not in console
    assert "Traceback" not in console
