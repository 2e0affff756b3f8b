"""What a caller asks of a launcher: which files, which shape, which ports.

Pure values. Everything a launcher will write into another program's command line is checked here or where it is
written, once. The host chooses all of it; whether the owner accepts the result is decided from measurements.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.errors import Refused, Unavailable
from cloister.protocol.launch import MEMORY_MIB, VCPUS
from cloister.wire.limits import MIB, SCRATCH_BYTES

MEMORY_LEAST_MIB: Final = 192  # below, the kernel and the decompressed initrd do not fit
SCRATCH_MIB: Final = SCRATCH_BYTES // MIB  # the guest uses no more
PORTS: Final = 64
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,47}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class Backend(enum.StrEnum):
    """The places a pod can run in."""

    PROCESS = "process"
    SEABIOS = "qemu-seabios"
    OVMF = "qemu-ovmf"
    SNP = "hardware-snp"
    TDX = "hardware-tdx"


class Accelerator(enum.StrEnum):
    """How QEMU executes the guest. `auto` is KVM where a probe boot succeeds, else TCG."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True, slots=True, kw_only=True)
class PortForward:
    """Connections to `host_ip:host_port` on this machine reach `guest_port` in the pod."""

    host_ip: str
    host_port: int
    guest_port: int

    def __post_init__(self) -> None:
        """Check the address and the ports.

        Raises:
            Refused: not an IPv4 address or not a port (`host.spec.port_forward`).
        """
        try:
            ipaddress.IPv4Address(self.host_ip)
        except ValueError as err:
            raise _refused("port_forward", "not an IPv4 address", actual=self.host_ip[:45]) from err
        for port in (self.host_port, self.guest_port):
            if not 1 <= port <= 65535:
                raise _refused("port_forward", "not a port", expected="1..65535", actual=str(port)[:20])


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """The files of a pod-VM image that a launcher boots.

    Attributes:
        kernel: bzImage, for SeaBIOS.
        initrd: its initrd.
        cmdline: its command line; holds the root hash of `root`.
        root: root file system with its verity tree.
        uki: unified kernel image, for OVMF and hardware.
        bios: SeaBIOS.
        ovmf_code: OVMF's code volume.
        ovmf_vars: OVMF's empty variable store; copied for each launch.
        option_roms: file name to file of the ROMs that SeaBIOS runs.
        ovmf_stateless: OVMF in one file that keeps no variables, for SEV-SNP and TDX.
    """

    kernel: Path
    initrd: Path
    cmdline: str
    root: Path
    uki: Path
    bios: Path
    ovmf_code: Path
    ovmf_vars: Path
    option_roms: Mapping[str, Path]
    ovmf_stateless: Path | None = None

    def require(self, *files: Path) -> None:
        """Check that `files` of this bundle exist.

        Raises:
            Unavailable: one is missing (`host.bundle.incomplete`).
        """
        for file in files:
            if not file.is_file():
                raise Unavailable(
                    "host.bundle.incomplete",
                    "the pod-VM image lacks a file",
                    path=str(file),
                    hint="run: cloister podvm build",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class VMSpec:
    """One pod to launch.

    Attributes:
        name: short name, appears in process listings.
        work: directory of this run, for the console log and files that live as long as the pod; made when absent.
        initdata: init data text (TOML), as it will be measured; None: `RunningVM.deliver_initdata` brings it while
            the machine boots.
        bundle: the pod-VM image; not used by the process back end.
        vcpus: virtual processors.
        memory_mib: main memory.
        scratch_mib: size of the scratch disk; 0 is none.
        ports: forwarded ports.
        accelerator: how QEMU executes the guest.
    """

    name: str
    work: Path
    initdata: bytes | None
    bundle: Bundle | None = None
    vcpus: int = 2
    memory_mib: int = 512
    scratch_mib: int = 0
    ports: tuple[PortForward, ...] = ()
    accelerator: Accelerator = Accelerator.AUTO

    def __post_init__(self) -> None:
        """Check name and shape.

        Raises:
            Refused: a value out of range, or a path with control characters (`host.spec.*`).
        """
        if not _NAME.fullmatch(self.name):
            raise _refused("name", "not a pod name", expected="lower-case letters, digits, -", actual=self.name[:48])
        if _CONTROL.search(str(self.work)):
            raise _refused("path", "path with a control character", actual=repr(str(self.work))[:100])
        if not 1 <= self.vcpus <= VCPUS:
            raise _refused(
                "vcpus", "number of processors is out of range", expected=f"1..{VCPUS}", actual=str(self.vcpus)[:20]
            )
        if not MEMORY_LEAST_MIB <= self.memory_mib <= MEMORY_MIB:
            raise _refused(
                "memory",
                "memory is out of range",
                expected=f"{MEMORY_LEAST_MIB}..{MEMORY_MIB} MiB",
                actual=str(self.memory_mib)[:20],
            )
        if not 0 <= self.scratch_mib <= SCRATCH_MIB:
            raise _refused(
                "scratch",
                "scratch disk is out of range",
                expected=f"0..{SCRATCH_MIB} MiB",
                actual=str(self.scratch_mib)[:20],
            )
        if len(self.ports) > PORTS:
            raise _refused("ports", "too many forwarded ports", expected=f"at most {PORTS}")

    def require_bundle(self) -> Bundle:
        """Return the pod-VM image.

        Raises:
            Refused: the caller gave none (`host.spec.bundle`).
        """
        if self.bundle is None:
            raise _refused("bundle", "this back end boots a pod-VM image and was given none")
        return self.bundle


def _refused(code: str, message: str, *, expected: str = "", actual: str = "") -> Refused:
    return Refused(f"host.spec.{code}", message, expected=expected, actual=actual)
