"""The runtime configuration: exactly the verified values, exactly our confinement, nothing from anywhere else."""

from __future__ import annotations

import json

import msgspec
import pytest

from cloister.guest.oci_spec import (
    CAPABILITIES,
    ContainerSetup,
    build_config,
    build_process,
    cgroup_path,
    process_environment,
)
from cloister.guest.users import Identity
from cloister.podpolicy.model import ProcessSpec

SPEC = ProcessSpec(args=("/bin/app", "--x"), env=("A=b",), cwd="/w", user="app", terminal=False)
IDENTITY = Identity(uid=1000, gid=1001, groups=(4,), home="/app")
SETUP = ContainerSetup(identifier="app", process=SPEC, identity=IDENTITY, hostname="pod", root="/run/cloister/root-app")


def test_process_is_the_verified_one() -> None:
    process = build_config(SETUP)["process"]
    assert process["args"] == ["/bin/app", "--x"]
    assert process["cwd"] == "/w"
    assert process["user"] == {"uid": 1000, "gid": 1001, "additionalGids": [4]}
    assert process["env"] == ["A=b", "HOME=/app", "HOSTNAME=pod"]
    assert process["terminal"] is False


def test_given_variables_are_not_overridden() -> None:
    spec = ProcessSpec(args=("a",), env=("HOME=/mine", "TERM=vt100"), cwd="/", user="", terminal=True)
    assert process_environment(spec, IDENTITY, "pod") == ("HOME=/mine", "TERM=vt100", "HOSTNAME=pod")


def test_terminal_gets_a_type() -> None:
    spec = ProcessSpec(args=("a",), env=(), cwd="/", user="", terminal=True)
    assert "TERM=xterm" in process_environment(spec, IDENTITY, "pod")
    assert build_process(spec, IDENTITY, "pod")["terminal"] is True


@pytest.mark.parametrize(
    "capability", ["CAP_MKNOD", "CAP_NET_RAW", "CAP_AUDIT_WRITE", "CAP_SYS_ADMIN", "CAP_NET_ADMIN"]
)
def test_capabilities_that_lead_out_are_not_there(capability: str) -> None:
    assert capability not in CAPABILITIES
    assert capability not in json.dumps(build_config(SETUP))


def test_user_holds_no_capability_and_root_the_set() -> None:
    def sets(uid: int) -> dict[str, list[str]]:
        held: dict[str, list[str]] = build_process(SPEC, Identity(uid=uid, gid=0), "pod")["capabilities"]
        return held

    assert sets(1000)["effective"] == sets(1000)["permitted"] == []
    assert sets(0)["effective"] == list(CAPABILITIES)
    for uid in (0, 1000):
        assert sets(uid)["ambient"] == sets(uid)["inheritable"] == []
        assert sets(uid)["bounding"] == list(CAPABILITIES)


def test_nothing_of_the_host_is_in_it() -> None:
    config = build_config(SETUP)
    assert set(config) == {"ociVersion", "process", "root", "hostname", "mounts", "linux"}
    assert "hooks" not in json.dumps(config)
    assert "annotations" not in json.dumps(config)
    assert set(config["linux"]) == {
        "namespaces", "cgroupsPath", "resources", "maskedPaths", "readonlyPaths", "seccomp",
    }  # fmt: skip


def test_mounts_bring_no_directory_of_the_guest() -> None:
    for mount in build_config(SETUP)["mounts"]:
        assert mount["type"] in ("proc", "tmpfs", "devpts", "mqueue", "sysfs", "cgroup")
        assert not {"bind", "rbind"} & set(mount["options"])
        if mount["type"] in ("sysfs", "cgroup"):
            assert "ro" in mount["options"]


def test_devices_are_denied_first() -> None:
    assert build_config(SETUP)["linux"]["resources"]["devices"] == [{"allow": False, "access": "rwm"}]
    assert "devices" not in build_config(SETUP)["linux"]


def test_namespaces_are_own_but_the_network() -> None:
    kinds = {item["type"] for item in build_config(SETUP)["linux"]["namespaces"]}
    assert kinds == {"pid", "mount", "ipc", "uts", "cgroup"}
    assert all("path" not in item for item in build_config(SETUP)["linux"]["namespaces"])


def test_control_group_is_explicit() -> None:
    assert build_config(SETUP)["linux"]["cgroupsPath"] == cgroup_path("app") == "/c-app"


def test_namespace_flags_of_clone_are_refused_one_by_one() -> None:
    rules = [rule for rule in build_config(SETUP)["linux"]["seccomp"]["syscalls"] if rule["names"] == ["clone"]]
    flags = {rule["args"][0]["value"] for rule in rules}
    assert flags == {0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000}
    for rule in rules:
        assert rule["args"][0]["op"] == "SCMP_CMP_MASKED_EQ"
        assert rule["args"][0]["value"] == rule["args"][0]["valueTwo"]


@pytest.mark.parametrize("call", ["keyctl", "bpf", "mount", "unshare", "setns", "io_uring_setup", "kexec_load"])
def test_calls_that_widen_the_kernel_are_refused(call: str) -> None:
    first = build_config(SETUP)["linux"]["seccomp"]["syscalls"][0]
    assert call in first["names"]
    assert first["action"] == "SCMP_ACT_ERRNO"


def test_it_is_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode(build_config(SETUP))) == build_config(SETUP)
