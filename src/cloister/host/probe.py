"""What this machine can do, one line per fact, for `cloister doctor`.

Each line says what was found and, where something lacks, what to do. Programs and KVM are tried, not only looked for.
The root of the device tree is a parameter, so that the findings can be tested against a made-up one. A device being
there is no statement about trust: only verified evidence is.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cloister.errors import Unavailable
from cloister.host.process import find_program, run_tool
from cloister.host.vmm.kvm import probe_kvm
from cloister.host.vmm.spec import Bundle
from cloister.rats.claims import Level
from cloister.wire.limits import GIB, MIB

CACHE_BYTES: Final = 2 * GIB  # packages, unpacked trees and images of two builds
MEMORY_BYTES: Final = 1 * GIB  # a pod of 512 MiB, QEMU's translation cache, and room to work
EARLIEST: Final = datetime(2026, 1, 1, tzinfo=UTC)  # this program is younger: a clock before it is wrong
LATEST: Final = datetime(2100, 1, 1, tzinfo=UTC)
_SECONDS: Final = 20.0
_QEMU_LEAST: Final = (7, 2)
_SWTPM_LEAST: Final = (0, 7)
_BWRAP_LEAST: Final = (0, 8)
_VERSION: Final = re.compile(rb"(\d+)\.(\d+)[.\d]*")
_JSON_VERSION: Final = re.compile(rb'"version": "(\d+)\.(\d+)[.\d]*')
_PARAMETER_BYTES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeLine:
    """One fact.

    Attributes:
        name: stable, dotted.
        ok: whether it is as it should be for `level`.
        detail: what was found.
        fix: what to do when it is not ok; empty otherwise.
        level: the level that needs it; None when every level does.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""
    level: Level | None = None


@dataclass(frozen=True, slots=True)
class _Device:
    """A device that says that this machine has, or itself is inside, a TEE."""

    name: str
    path: str
    meaning: str
    fix: str
    parameter: bool = False  # a kernel parameter that must say yes, not a node that must exist


_DEVICES: Final = (
    _Device("tee.snp-host", "sys/module/kvm_amd/parameters/sev_snp", "can run SEV-SNP guests", "", True),
    _Device("tee.sev-host", "dev/sev", "has an AMD secure processor for guests", ""),
    _Device("tee.tdx-host", "sys/module/kvm_intel/parameters/tdx", "can run TDX guests", "", True),
    _Device("tee.sev-guest", "dev/sev-guest", "is a SEV-SNP guest", "inside such a guest: load the module sev-guest"),
    _Device("tee.tdx-guest", "dev/tdx_guest", "is a TDX guest", "inside such a guest: load the module tdx-guest"),
    _Device(
        "tee.tsm",
        "sys/kernel/config/tsm/report",
        "offers reports through configfs",
        "inside a TEE: mount configfs at /sys/kernel/config",
    ),
    _Device("tee.tpm", "dev/tpmrm0", "has a TPM 2.0", "enable the TPM in the firmware set-up"),
    _Device("tee.nsm", "dev/nsm", "is a Nitro enclave", ""),
    _Device("tee.sgx", "dev/sgx_enclave", "can run SGX enclaves", "enable SGX in the firmware set-up"),
    _Device("tee.sgx-provision", "dev/sgx_provision", "can make SGX quotes", "join the group sgx_prv"),
)
_NEEDS_PROCESSOR: Final = "needs a machine with this technology, enabled in its firmware set-up and kernel"


def probe_machine(
    *, cache: Path, now: datetime, bundle: Bundle | None = None, root: Path = Path("/")
) -> list[ProbeLine]:
    """Return all facts, in the order a person reads them.

    Args:
        cache: the cache directory.
        now: the time of the machine's clock, aware.
        bundle: a built pod-VM image; without one KVM and firmware cannot be judged.
        root: root of the tree with `dev`, `sys` and `proc`.
    """
    return [
        *_devices(root),
        _kvm(cache, bundle, root),
        _program("tool.qemu", ["qemu-system-x86_64", "--version"], _QEMU_LEAST, Level.MEASURED),
        _program("tool.swtpm", ["swtpm", "--version"], _SWTPM_LEAST, Level.MEASURED),
        _program(  # its --version ends with status 1
            "tool.swtpm-setup",
            ["swtpm_setup", "--tpm2", "--print-capabilities"],
            _SWTPM_LEAST,
            Level.MEASURED,
            _JSON_VERSION,
        ),
        _program("tool.bwrap", ["bwrap", "--version"], _BWRAP_LEAST, Level.SIMULATED),
        _user_namespaces(),
        _program("tool.setpriv", ["setpriv", "--version"], (2, 33), None),
        _firmware(bundle),
        _disk(cache),
        _memory(root),
        _clock(now),
    ]


def _devices(root: Path) -> Iterator[ProbeLine]:
    for device in _DEVICES:
        place = root / device.path
        found = _says_yes(place) if device.parameter else place.exists()
        if not found:
            fix = device.fix or _NEEDS_PROCESSOR
            yield ProbeLine(name=device.name, ok=False, detail=f"no /{device.path}", fix=fix, level=Level.HARDWARE)
        elif not device.parameter and not os.access(place, os.R_OK):
            fix = f"give this user access to /{device.path}"
            detail = f"/{device.path} is not accessible"
            yield ProbeLine(name=device.name, ok=False, detail=detail, fix=fix, level=Level.HARDWARE)
        else:
            yield ProbeLine(name=device.name, ok=True, detail=f"this machine {device.meaning}", level=Level.HARDWARE)


def _says_yes(parameter: Path) -> bool:
    try:
        with parameter.open("rb") as file:
            return file.read(_PARAMETER_BYTES).strip() in {b"Y", b"1"}
    except OSError:
        return False


def _kvm(cache: Path, bundle: Bundle | None, root: Path) -> ProbeLine:
    fix = "pods run under TCG, 5 to 10 times slower; use a machine with working KVM"
    if bundle is None:
        detail = "not tried: there is no pod-VM image to boot"
        return ProbeLine(name="kvm", ok=False, detail=detail, fix="run: cloister podvm build", level=Level.MEASURED)
    try:
        verdict = probe_kvm(bundle, cache, device=root / "dev/kvm")
    except Unavailable as err:
        return ProbeLine(name="kvm", ok=False, detail=err.message, fix=err.hint, level=Level.MEASURED)
    return ProbeLine(
        name="kvm", ok=verdict.works, detail=verdict.why, fix="" if verdict.works else fix, level=Level.MEASURED
    )


def _program(
    name: str, command: list[str], least: tuple[int, int], level: Level | None, pattern: re.Pattern[bytes] = _VERSION
) -> ProbeLine:
    wanted = f"{least[0]}.{least[1]}"
    try:
        path = find_program(command[0])
        said = run_tool([str(path), *command[1:]], seconds=_SECONDS).stdout
    except Unavailable as err:
        return ProbeLine(name=name, ok=False, detail=err.message, fix=err.hint, level=level)
    match = pattern.search(said)
    if match is None or (int(match.group(1)), int(match.group(2))) < least:
        found = f"version {int(match.group(1))}.{int(match.group(2))}" if match else "no version"
        return ProbeLine(name=name, ok=False, detail=f"{path}: {found}", fix=f"install {wanted} or newer", level=level)
    found = f"version {int(match.group(1))}.{int(match.group(2))}"
    return ProbeLine(name=name, ok=True, detail=f"{path}: {found}", level=level)


def _user_namespaces() -> ProbeLine:
    """Try the kind of sandbox the process back end makes."""
    name, level = "userns", Level.SIMULATED
    arguments = ["--unshare-user", "--unshare-pid", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"]
    try:
        run_tool([str(find_program("bwrap")), *arguments, "--", "/bin/true"], seconds=_SECONDS)
    except Unavailable as err:
        fix = "sysctl kernel.unprivileged_userns_clone=1 and user.max_user_namespaces=10000, or run as root"
        return ProbeLine(name=name, ok=False, detail=err.message, fix=fix, level=level)
    return ProbeLine(name=name, ok=True, detail="a sandbox with its own user, pid and mount namespace ran", level=level)


def _firmware(bundle: Bundle | None) -> ProbeLine:
    name, fix, level = "firmware", "run: cloister podvm build", Level.MEASURED
    if bundle is None:
        return ProbeLine(name=name, ok=False, detail="no pod-VM image is built", fix=fix, level=level)
    files = (bundle.bios, bundle.ovmf_code, bundle.ovmf_vars, *bundle.option_roms.values())
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        return ProbeLine(name=name, ok=False, detail=f"missing: {', '.join(missing)}", fix=fix, level=level)
    return ProbeLine(name=name, ok=True, detail=f"SeaBIOS and OVMF in {bundle.bios.parent}", level=level)


def _disk(cache: Path) -> ProbeLine:
    place = next(place for place in (cache.absolute(), *cache.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    return _enough("disk", free, CACHE_BYTES, f"free in {cache}", "free space there, or set CLOISTER_CACHE")


def _memory(root: Path) -> ProbeLine:
    try:
        text = (root / "proc/meminfo").read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return ProbeLine(name="memory", ok=False, detail="unknown", fix="mount /proc", level=Level.MEASURED)
    match = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    available = int(match.group(1)) * 1024 if match else 0
    return _enough("memory", available, MEMORY_BYTES, "available", "end other programs, or use a larger machine")


def _enough(name: str, found: int, wanted: int, what: str, fix: str) -> ProbeLine:
    ok = found >= wanted
    detail = f"{found // MIB} MiB {what}" + ("" if ok else f", {wanted // MIB} MiB wanted")
    return ProbeLine(name=name, ok=ok, detail=detail, fix="" if ok else fix)


def _clock(now: datetime) -> ProbeLine:
    """Judge the clock: certificates and leases are compared with it."""
    ok = EARLIEST <= now < LATEST
    text = now.astimezone(UTC).isoformat(timespec="seconds")
    return ProbeLine(name="clock", ok=ok, detail=text, fix="" if ok else "set the clock: certificates are judged by it")
