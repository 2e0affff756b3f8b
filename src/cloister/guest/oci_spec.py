"""The runtime configuration of one container (OCI runtime specification 1.0), built from nothing but verified values.

Input is the process that `podpolicy.resolve_process` gave, the identity found in the verified image, and names the
guest chose. There is no merge with anything the host sent, and no image field but those reaches it: no hook, no mount,
no device, no sysctl, no annotation can come from outside.

Confinement: own pid, mount, ipc, uts and cgroup namespaces (the network is the pod's); docker's default capabilities
less MKNOD (a block device node would be a way to the guest's root), NET_RAW (loopback carries other containers'
secrets) and AUDIT_WRITE; no device but the harmless ones; kernel interfaces masked or read-only; a list of system
calls that no container needs and that widen the kernel's surface. Pure: no input or output.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from cloister.guest.users import Identity
from cloister.podpolicy.model import ProcessSpec

JSONObject = dict[str, Any]  # Any: JSON values of the runtime specification

OCI_VERSION: Final = "1.0.2"
CAPABILITIES: Final = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)
MASKED_PATHS: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/kernel/security",
    "/sys/devices/virtual/powercap",
)
READONLY_PATHS: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
# Not gated by a capability, or gated by one and still a needless surface. Namespace creation is refused by flag.
DENIED_CALLS: Final = (
    "add_key",
    "bpf",
    "delete_module",
    "fanotify_init",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "quotactl",
    "reboot",
    "request_key",
    "setns",
    "swapoff",
    "swapon",
    "umount2",
    "unshare",
    "userfaultfd",
    "vhangup",
)
_CLONE_NEW: Final = 0x7E020000  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}
_EPERM: Final = 1
_ENOSYS: Final = 38


class ContainerSetup(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a runtime back end needs to run one container.

    Attributes:
        identifier: the guest's own name for it, safe as a file name.
        process: argv, environment, working directory, terminal.
        identity: resolved user.
        hostname: name of the pod.
        root: directory of the unpacked image.
    """

    identifier: str
    process: ProcessSpec
    identity: Identity
    hostname: str
    root: str


def cgroup_path(identifier: str) -> str:
    """Return the container's control group below the mount point; crun needs an explicit one."""
    return f"/c-{identifier}"


def process_environment(process: ProcessSpec, identity: Identity, hostname: str) -> tuple[str, ...]:
    """Return the environment with what every runtime adds where it is missing: HOME, HOSTNAME, and TERM."""
    names = {item.partition("=")[0] for item in process.env}
    extra = [("HOME", identity.home), ("HOSTNAME", hostname)] + ([("TERM", "xterm")] if process.terminal else [])
    return process.env + tuple(f"{name}={value}" for name, value in extra if name not in names)


def build_process(
    process: ProcessSpec, identity: Identity, hostname: str, *, terminal: bool | None = None
) -> JSONObject:
    """Return the `process` object."""
    return {
        "terminal": process.terminal if terminal is None else terminal,
        "user": {"uid": identity.uid, "gid": identity.gid, "additionalGids": list(identity.groups)},
        "args": list(process.args),
        "env": list(process_environment(process, identity, hostname)),
        "cwd": process.cwd,
        "capabilities": _capabilities(identity),
        "noNewPrivileges": False,  # images with set-id programs run unchanged; the capabilities bound them
        "oomScoreAdj": 0,
    }


def build_config(setup: ContainerSetup) -> JSONObject:
    """Return the whole configuration."""
    return {
        "ociVersion": OCI_VERSION,
        "process": build_process(setup.process, setup.identity, setup.hostname),
        "root": {"path": setup.root, "readonly": False},
        "hostname": setup.hostname,
        "mounts": _mounts(),
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "cgroup")],
            "cgroupsPath": cgroup_path(setup.identifier),
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READONLY_PATHS),
            "seccomp": _seccomp(),
        },
    }


def _capabilities(identity: Identity) -> JSONObject:
    """Root has the set; another user has none but may reach it through a set-id program, as under docker."""
    held = list(CAPABILITIES) if identity.uid == 0 else []
    return {"bounding": list(CAPABILITIES), "effective": held, "permitted": held, "inheritable": [], "ambient": []}


def _mounts() -> list[JSONObject]:
    return [
        _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount(
            "/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"
        ),
        _mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),  # noqa: S108
        _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", "ro"),
    ]


def _mount(destination: str, kind: str, source: str, *options: str) -> JSONObject:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def _seccomp() -> JSONObject:
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],  # 32-bit calls, of which nothing is filtered, end the process
        "syscalls": [
            {"names": list(DENIED_CALLS), "action": "SCMP_ACT_ERRNO", "errnoRet": _EPERM},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS},  # its flags are behind a pointer
            *(
                {
                    "names": ["clone"],
                    "action": "SCMP_ACT_ERRNO",
                    "errnoRet": _EPERM,
                    "args": [{"index": 0, "value": flag, "valueTwo": flag, "op": "SCMP_CMP_MASKED_EQ"}],
                }
                for flag in (1 << bit for bit in range(32))
                if flag & _CLONE_NEW
            ),
        ],
    }
