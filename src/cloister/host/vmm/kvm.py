"""Can this machine run guests under KVM? Only a guest that ran proves it.

`/dev/kvm` exists on machines whose KVM refuses, hangs or mis-executes (nested virtualisation, old microcode). So two
guests are booted: a boot sector that ends QEMU with a status of its own (through SeaBIOS, device isa-debug-exit), then
the kernel that is to be used, which has proved itself once it looks for a root file system and finds none. Each has a
time limit and is killed at it. The verdict is kept per kernel boot, QEMU and guest kernel, in the cache directory.

Nothing secret depends on it: the accelerator is not measured and changes no measurement.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from cloister.errors import Unavailable
from cloister.host.process import Child, find_program
from cloister.host.vmm.spec import Accelerator, Bundle

SECTOR_SECONDS: Final = 3.0  # takes 0.1 s where KVM works
KERNEL_SECONDS: Final = 5.0  # takes 0.7 s where KVM works
_OUTPUT_BYTES: Final = 256 * 1024
_REMEMBERED: Final = 64  # verdicts kept; older ones are dropped
_DISK_BYTES: Final = 1024 * 1024  # SeaBIOS cannot read a disk smaller than one cylinder
_EXIT_VALUE: Final = 0x21
_EXIT_STATUS: Final = _EXIT_VALUE << 1 | 1  # isa-debug-exit ends QEMU with (value << 1) | 1
# mov al, 0x21; out 0xf4, al; hlt; jmp -3
_BOOT_SECTOR: Final = bytes((0xB0, _EXIT_VALUE, 0xE6, 0xF4, 0xF4, 0xEB, 0xFD)).ljust(510, b"\0") + b"\x55\xaa"
_KERNEL_RAN: Final = b"Unable to mount root fs"
_BARE: Final = ("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-cpu", "max", "-m", "256")


@dataclass(frozen=True, slots=True, kw_only=True)
class KVMVerdict:
    """Whether KVM runs guests here.

    Attributes:
        works: whether both guests ran.
        why: what was seen, for a person.
    """

    works: bool
    why: str


class _Remembered(msgspec.Struct, forbid_unknown_fields=True):
    verdicts: dict[str, tuple[bool, str]]


def probe_kvm(bundle: Bundle, cache: Path, *, qemu: Path | None = None, device: Path = Path("/dev/kvm")) -> KVMVerdict:
    """Return whether guests of `bundle` run under KVM on this machine; boots them unless the verdict is known.

    Args:
        bundle: the pod-VM image; its SeaBIOS and kernel are used.
        cache: directory to keep the verdict in.
        qemu: QEMU's path; found when absent.
        device: the KVM device.

    Raises:
        Unavailable: QEMU or a file of the bundle is missing (`host.tool.missing`, `host.bundle.incomplete`).
    """
    qemu = qemu or find_program("qemu-system-x86_64")
    if not device.exists():
        return KVMVerdict(works=False, why=f"{device} does not exist")
    if not os.access(device, os.R_OK | os.W_OK):
        return KVMVerdict(works=False, why=f"{device} is not accessible to this user")
    bundle.require(bundle.bios, bundle.kernel)
    store = cache / "kvm-probe.json"
    key = " ".join((_boot_id(), _identity(qemu), _identity(bundle.kernel)))
    known = _recall(store).get(key)
    if known is not None:
        return KVMVerdict(works=known[0], why=known[1])
    verdict = _boot_sector(qemu, bundle)
    if verdict.works:
        verdict = _boot_kernel(qemu, bundle)
    _remember(store, key, verdict)
    return verdict


def choose_accelerator(wanted: Accelerator, bundle: Bundle, cache: Path) -> Accelerator:
    """Return the accelerator to use: `auto` becomes KVM where it works and TCG elsewhere.

    Raises:
        Unavailable: KVM was asked for by name and does not work (`host.kvm.unusable`).
    """
    if wanted is Accelerator.TCG:
        return wanted
    verdict = probe_kvm(bundle, cache)
    if verdict.works:
        return Accelerator.KVM
    if wanted is Accelerator.KVM:
        raise Unavailable("host.kvm.unusable", "KVM does not run guests here", actual=verdict.why, hint="use tcg")
    return Accelerator.TCG


def _boot_sector(qemu: Path, bundle: Bundle) -> KVMVerdict:
    with tempfile.NamedTemporaryFile(prefix="cloister-probe-") as disk:
        disk.write(_BOOT_SECTOR.ljust(_DISK_BYTES, b"\0"))
        disk.flush()
        drive = "driver=raw,node-name=disk,read-only=on,file.driver=file,file.filename=" + disk.name.replace(",", ",,")
        arguments = ["-machine", "q35,usb=off,sata=off", "-bios", str(bundle.bios), "-blockdev", drive]
        arguments += ["-device", "virtio-blk-pci,drive=disk,romfile=", "-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
        status, said = _boot(qemu, arguments, SECTOR_SECONDS)
    if status == _EXIT_STATUS:
        return KVMVerdict(works=True, why="a boot sector ran")
    return KVMVerdict(works=False, why=_failure("a boot sector", status, said))


def _boot_kernel(qemu: Path, bundle: Bundle) -> KVMVerdict:
    arguments = ["-machine", "q35,usb=off,sata=off", "-bios", str(bundle.bios), "-kernel", str(bundle.kernel)]
    arguments += ["-append", "console=ttyS0 quiet panic=-1", "-serial", "stdio"]
    status, said = _boot(qemu, arguments, KERNEL_SECONDS)
    if status == 0 and _KERNEL_RAN in said:
        return KVMVerdict(works=True, why="a boot sector and the kernel ran")
    return KVMVerdict(works=False, why=_failure("the guest kernel", status, said))


def _boot(qemu: Path, arguments: Sequence[str], seconds: float) -> tuple[int | None, bytes]:
    """Return QEMU's status (None when it had to be killed) and what it and the guest wrote."""
    with tempfile.TemporaryFile() as output:
        child = Child.start("qemu-probe", [str(qemu), "-accel", "kvm", *_BARE, *arguments], output=output.fileno())
        try:
            status = child.wait(seconds)
        finally:
            child.end(grace_seconds=0)
            child.close()
        output.seek(0)
        return status, output.read(_OUTPUT_BYTES)


def _failure(what: str, status: int | None, said: bytes) -> str:
    lines = [line.strip() for line in said.decode("ascii", errors="replace").splitlines() if line.strip()]
    clue = next((line for line in lines if "error" in line or "failure" in line), lines[-1] if lines else "")
    ended = "hangs" if status is None else f"ends with status {status}"
    return f"{what} {ended}" + (f": {clue[:120]}" if clue else "")


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return "unknown"


def _identity(file: Path) -> str:
    state = file.stat()
    return f"{file}:{state.st_size}:{state.st_mtime_ns}"


def _recall(store: Path) -> dict[str, tuple[bool, str]]:
    try:
        return msgspec.json.decode(store.read_bytes(), type=_Remembered).verdicts
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return {}  # no verdict known: probe


def _remember(store: Path, key: str, verdict: KVMVerdict) -> None:
    verdicts = {**_recall(store), key: (verdict.works, verdict.why)}
    kept = dict(list(verdicts.items())[-_REMEMBERED:])
    draft = store.with_name(f"{store.name}.{secrets.token_hex(4)}")
    with contextlib.suppress(OSError):  # a read-only cache costs a probe, not a launch
        store.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(msgspec.json.encode(_Remembered(verdicts=kept)))
        draft.replace(store)
