"""Back ends `hardware-snp` and `hardware-tdx`: the same image under AMD SEV-SNP or Intel TDX. Level `hardware`.

Written to what QEMU 10 documents (docs/system/i386/amd-memory-encryption.rst, tdx.rst, igvm.rst and the object
properties in qapi/qom.json; tdx-guest and igvm-cfg are there since QEMU 10.1). The command lines are tested as text.
**They have not been run**: no machine with these processors was at hand.

The processor measures the launch, so there is neither a TPM nor a measuring proxy. Init data is bound by its digest in
HOST_DATA (SNP) or MRCONFIGID (TDX), cut or padded with zeros to the field's length.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cloister.errors import Refused, Unavailable
from cloister.host.vmm.machine import RunningVM
from cloister.host.vmm.qemu import start_qemu
from cloister.host.vmm.qemuargs import Platform, Value, option, plain
from cloister.host.vmm.spec import Accelerator, Backend, Bundle, VMSpec
from cloister.host.vmm.staging import Staging
from cloister.protocol.initdata import parse_initdata
from cloister.rats.claims import Level
from cloister.wire.base64 import encode_b64

HOST_DATA_BYTES: Final = 32  # SEV-SNP Firmware ABI 1.58 table 67, SNP_LAUNCH_FINISH
MRCONFIGID_BYTES: Final = 48  # TDX Module ABI, TD_PARAMS
SNP_POLICY: Final = 0x30000  # SMT allowed, the bit that must be one; no debugging, no migration agent
SNP_CPU: Final = "EPYC-v4"  # part of the launch digest through the initial register state
QUOTE_SOCKET: Final = Path("/var/run/tdx-qgs/qgs.socket")
_OBJECT: Final = "tee0"
_C_BIT: Final = 51  # on every processor with SEV-SNP
_REDUCED_BITS: Final = 1


class SNPLauncher:
    """Boots kernel, initrd and command line of a bundle under SEV-SNP, their digests in the launch measurement.

    Args:
        device: the host's SEV device.
        igvm: an IGVM file that takes the firmware's place.
    """

    backend = Backend.SNP
    level = Level.HARDWARE

    def __init__(self, *, device: Path = Path("/dev/sev"), igvm: Path | None = None) -> None:
        self._device = device
        self._igvm = igvm

    def launch(self, spec: VMSpec) -> RunningVM:
        """Start a pod, see `Launcher`."""
        _require_device(self._device, "SEV-SNP")
        return _launch(self, spec, snp_platform(spec, igvm=self._igvm))


class TDXLauncher:
    """Boots the unified kernel image of a bundle under TDX.

    Args:
        parameter: the kernel's statement whether KVM can run TDX guests.
        quote_socket: Unix socket of the quote generation service.
    """

    backend = Backend.TDX
    level = Level.HARDWARE

    def __init__(
        self, *, parameter: Path = Path("/sys/module/kvm_intel/parameters/tdx"), quote_socket: Path = QUOTE_SOCKET
    ) -> None:
        self._parameter = parameter
        self._quote_socket = quote_socket

    def launch(self, spec: VMSpec) -> RunningVM:
        """Start a pod, see `Launcher`."""
        _require_device(self._parameter, "TDX")
        return _launch(self, spec, tdx_platform(spec, quote_socket=self._quote_socket))


def snp_platform(spec: VMSpec, *, igvm: Path | None = None) -> Platform:
    """Return what SEV-SNP needs. With `kernel-hashes` QEMU puts the digests of kernel, initrd and command line into
    a page of the firmware that is measured; the firmware refuses other files.

    Raises:
        Refused: init data or a path cannot be used (`protocol.initdata.*`, `host.qemu.option`).
        Unavailable: the bundle has no firmware for it (`host.bundle.incomplete`).
    """
    bundle = spec.require_bundle()
    tee = option(
        "sev-snp-guest",
        {
            "id": _OBJECT,
            "cbitpos": _C_BIT,
            "reduced-phys-bits": _REDUCED_BITS,
            "policy": SNP_POLICY,
            "kernel-hashes": True,
            "host-data": initdata_field(spec.initdata, HOST_DATA_BYTES),
        },
    )
    firmware = ("-bios", plain(_firmware(bundle)))
    machine = _machine()
    if igvm is not None:
        firmware = ("-object", option("igvm-cfg", {"id": "igvm0", "file": igvm}))
        machine = {**machine, "igvm-cfg": "igvm0"}
    kernel = ("-kernel", plain(bundle.kernel), "-initrd", plain(bundle.initrd), "-append", plain(bundle.cmdline))
    return Platform(
        accelerator=Accelerator.KVM,
        cpu=SNP_CPU,
        machine=machine,
        boot=(*_memory(spec), "-object", tee, *firmware, *kernel),
    )


def tdx_platform(spec: VMSpec, *, quote_socket: Path = QUOTE_SOCKET) -> Platform:
    """Return what TDX needs.

    Raises:
        Refused: init data or a path cannot be used (`protocol.initdata.*`, `host.qemu.option`).
        Unavailable: the bundle has no firmware for it (`host.bundle.incomplete`).
    """
    bundle = spec.require_bundle()
    tee = json.dumps(
        {
            "qom-type": "tdx-guest",
            "id": _OBJECT,
            "mrconfigid": initdata_field(spec.initdata, MRCONFIGID_BYTES),
            "quote-generation-socket": {"type": "unix", "path": str(quote_socket)},
        }
    )
    return Platform(
        accelerator=Accelerator.KVM,
        cpu="host",
        machine=_machine(),
        boot=(*_memory(spec), "-object", tee, "-bios", plain(_firmware(bundle)), "-kernel", plain(bundle.uki)),
    )


def initdata_field(text: bytes | None, size: int) -> str:
    """Return the digest of init data in a field of `size` bytes, in standard base64 as QEMU takes it.

    Raises:
        FormatRefused: not init data (`protocol.initdata.*`).
        Refused: there is none yet (`host.spec.initdata`).
    """
    if text is None:
        raise Refused("host.spec.initdata", "the processor fixes the init data at launch, and there is none yet")
    return encode_b64(parse_initdata(text).digest[:size].ljust(size, b"\0"))


def _launch(launcher: SNPLauncher | TDXLauncher, spec: VMSpec, platform: Platform) -> RunningVM:
    bundle = spec.require_bundle()
    bundle.require(bundle.root)
    with Staging() as staging:
        return start_qemu(staging, spec, platform, backend=launcher.backend, level=launcher.level, measured=None)


def _machine() -> Mapping[str, Value]:
    """Return the machine's properties: confidential guests have neither SMM nor a full interrupt chip in the kernel."""
    return {
        "confidential-guest-support": _OBJECT,
        "memory-backend": "ram0",
        "kernel-irqchip": "split",
        "smm": False,
    }


def _memory(spec: VMSpec) -> tuple[str, str]:
    size: dict[str, Value] = {"id": "ram0", "size": f"{spec.memory_mib}M", "share": True, "prealloc": False}
    return "-object", option("memory-backend-memfd", size)


def _firmware(bundle: Bundle) -> Path:
    if bundle.ovmf_stateless is None:
        raise Unavailable(
            "host.bundle.incomplete",
            "the pod-VM image has no firmware for confidential guests",
            expected="one file without a variable store",
            hint="edk2 builds it as OvmfPkg/AmdSev for SEV-SNP and OvmfPkg/IntelTdx for TDX; Debian does not ship it",
        )
    return bundle.ovmf_stateless


def _require_device(path: Path, technology: str) -> None:
    if not path.exists():
        raise Unavailable(
            "host.hardware.absent",
            f"this machine does not offer {technology}",
            expected=str(path),
            hint="enable it in the firmware set-up and the host kernel; see: cloister doctor",
        )
