"""QEMU command lines: pure functions from a spec to an argument list, valid for QEMU 7.2 to 10.

What the guest can see is kept small and is all named here: a q35 machine without USB, SATA, HPET, SMBus or VMware port,
no option ROMs on devices, two virtio disks (both read-only), a third for scratch where one is asked for (writable), one
virtio network card with user networking, two virtio-serial ports, a serial console, and the TPM. No shared file system,
no fw_cfg file, no SMBIOS string.

Channels to the outside are descriptors made by the launcher, not paths: nobody else can connect first, and no length
of a path matters. A value of an option is escaped in one place (`option`), so that no path can add an option.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.errors import Refused
from cloister.host.vmm.spec import Accelerator, Bundle, PortForward, VMSpec
from cloister.protocol.guestapi import CONTROL_PORT, SCRATCH_SERIAL, STREAMS_PORT

Value = str | int | bool | Path

TRANSLATION_CACHE_MIB: Final = 256  # bounds what TCG keeps of translated code; smaller gets flushed during boot
_KEY: Final = re.compile(r"[a-z0-9][a-z0-9._-]*")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_SECCOMP: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_SCRATCH_SET: Final = 1
_VIRTIO: Final[Mapping[str, Value]] = {"disable-legacy": True, "romfile": ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Channels:
    """Descriptor numbers, as QEMU inherits them. `tpm` is the control channel towards swtpm, `scratch` a file."""

    control: int
    streams: int
    console: int
    monitor: int
    tpm: int | None = None
    scratch: int | None = None


# Under emulation every miss of the translation cache walks the page tables: four levels are a tenth faster than five.
_CPU: Final[Mapping[Accelerator, str]] = {Accelerator.KVM: "max", Accelerator.TCG: "max,la57=off"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What differs between the profiles.

    Attributes:
        machine: properties of the machine beside the common ones.
        accelerator: `kvm` or `tcg`, never `auto`.
        cpu: CPU model; empty for the common one.
        boot: firmware, kernel, and what they need.
    """

    accelerator: Accelerator
    boot: tuple[str, ...]
    machine: Mapping[str, Value]
    cpu: str = ""


def option(first: str, properties: Mapping[str, Value]) -> str:
    """Return `first,key=value,...` with commas in values doubled, which is how QEMU's parser reads one comma.

    Raises:
        Refused: a control character in a value (`host.qemu.option`).
    """
    parts = [_escaped(first)]
    for key, value in properties.items():
        if not _KEY.fullmatch(key):
            raise RuntimeError(f"not a property name: {key}")
        parts.append(f"{key}={_text(value)}")
    return ",".join(parts)


def plain(value: Path | str) -> str:
    """Return an argument that QEMU takes whole.

    Raises:
        Refused: a control character, or a leading dash (`host.qemu.option`).
    """
    text = str(value)
    if _CONTROL.search(text) or text.startswith("-"):
        raise Refused("host.qemu.option", "an argument of QEMU would be misread", actual=repr(text)[:100])
    return text


def qemu_arguments(spec: VMSpec, platform: Platform, channels: Channels, initdata: Path, root: Path) -> list[str]:
    """Return all arguments after the program's name.

    Args:
        spec: what to launch.
        platform: what differs between the profiles.
        channels: inherited descriptors.
        initdata: device image with the init data.
        root: root disk.
    """
    machine: dict[str, Value] = {
        "usb": False,
        "sata": False,
        "smbus": False,
        "vmport": False,
        "hpet": False,
        "graphics": False,
        "dump-guest-core": False,
        **platform.machine,
    }
    smp = option(str(spec.vcpus), {"sockets": 1, "cores": spec.vcpus, "threads": 1})
    return [
        *("-name", option(f"cloister-{spec.name}", {"debug-threads": True})),
        *("-nodefaults", "-no-user-config", "-no-reboot"),
        *("-display", "none"),
        *("-sandbox", _SECCOMP),
        *("-machine", option("q35", machine)),
        *("-accel", _accelerator(platform.accelerator)),
        *("-cpu", platform.cpu or _CPU[platform.accelerator]),
        *("-smp", smp),
        *("-m", str(spec.memory_mib)),
        *("-global", "apic-common.vapic=off"),  # else QEMU adds kvmvapic.bin, an option ROM, also under TCG
        *platform.boot,
        *_disk("root", root, "0x2"),
        *_disk("initdata", initdata, "0x3"),
        *("-device", option("virtio-serial-pci", {"id": "ports", "addr": "0x4", **_VIRTIO})),
        *_port(1, CONTROL_PORT, "control", channels.control),
        *_port(2, STREAMS_PORT, "streams", channels.streams),
        *_network(spec.ports),
        *("-chardev", option("socket", {"id": "console", "fd": channels.console})),
        *("-serial", "chardev:console"),
        *("-chardev", option("socket", {"id": "monitor", "fd": channels.monitor})),
        *("-mon", option("chardev=monitor", {"mode": "control"})),
        *_tpm(channels.tpm),
        *_scratch(channels.scratch),
    ]


def seabios_boot(bundle: Bundle) -> tuple[str, ...]:
    """Return firmware and kernel of the profile `seabios`. QEMU takes the bundle's option ROMs before its own."""
    directories = sorted({rom.parent for rom in bundle.option_roms.values()})
    return (
        *(argument for directory in directories for argument in ("-L", plain(directory))),
        *("-bios", plain(bundle.bios)),
        *("-kernel", plain(bundle.kernel)),
        *("-initrd", plain(bundle.initrd)),
        *("-append", plain(bundle.cmdline)),
    )


def ovmf_boot(bundle: Bundle, variables: Path) -> tuple[str, ...]:
    """Return firmware and unified kernel image of the profile `uki`.

    Args:
        bundle: the image.
        variables: this launch's own copy of the empty variable store.
    """
    return (
        *("-blockdev", _file("code", bundle.ovmf_code, writable=False)),
        *("-blockdev", _file("vars", variables, writable=True)),
        *("-kernel", plain(bundle.uki)),
    )


OVMF_MACHINE: Final[Mapping[str, Value]] = {"pflash0": "code", "pflash1": "vars"}


def _accelerator(accelerator: Accelerator) -> str:
    if accelerator is Accelerator.KVM:
        return "kvm"
    return option("tcg", {"thread": "multi", "tb-size": TRANSLATION_CACHE_MIB})


def _file(name: str, path: Path, *, writable: bool) -> str:
    properties: dict[str, Value] = {"node-name": name, "read-only": not writable, "file.driver": "file"}
    if not writable:
        properties["file.locking"] = "off"  # several pods read one image
    return option("driver=raw", {**properties, "file.filename": path})


def _disk(name: str, path: Path, address: str) -> Iterable[str]:
    device: dict[str, Value] = {"drive": name, "addr": address, **_VIRTIO}
    return "-blockdev", _file(name, path, writable=False), "-device", option("virtio-blk-pci", device)


def _scratch(descriptor: int | None) -> Iterable[str]:
    """Return the scratch disk, the only one that the guest may write to.

    Errors are the guest's to see: by default QEMU stops a machine whose host has no space left, and nobody resumes it.
    """
    if descriptor is None:
        return ()
    device: dict[str, Value] = {"drive": "scratch", "addr": "0x6", "serial": SCRATCH_SERIAL, **_VIRTIO}
    return (
        *("-add-fd", f"set={_SCRATCH_SET},fd={descriptor}"),
        *("-blockdev", _file("scratch", Path(f"/dev/fdset/{_SCRATCH_SET}"), writable=True)),
        *("-device", option("virtio-blk-pci", {**device, "rerror": "report", "werror": "report"})),
    )


def _port(number: int, name: str, identifier: str, descriptor: int) -> Iterable[str]:
    channel = option("socket", {"id": identifier, "fd": descriptor})
    port = option("virtserialport", {"bus": "ports.0", "nr": number, "name": name, "chardev": identifier})
    return "-chardev", channel, "-device", port


def _network(ports: tuple[PortForward, ...]) -> Iterable[str]:
    user = option("user", {"id": "net", "ipv6": False})
    forwards = [f"hostfwd=tcp:{port.host_ip}:{port.host_port}-:{port.guest_port}" for port in ports]
    card = option("virtio-net-pci", {"netdev": "net", "addr": "0x5", **_VIRTIO})
    return "-netdev", ",".join([user, *forwards]), "-device", card


def _tpm(descriptor: int | None) -> Iterable[str]:
    if descriptor is None:
        return ()
    return (
        *("-chardev", option("socket", {"id": "tpm", "fd": descriptor})),
        *("-tpmdev", option("emulator", {"id": "tpm0", "chardev": "tpm"})),
        *("-device", option("tpm-crb", {"tpmdev": "tpm0"})),
    )


def _text(value: Value) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return _escaped(str(value))


def _escaped(text: str) -> str:
    if _CONTROL.search(text):
        raise Refused("host.qemu.option", "a control character in an option of QEMU", actual=repr(text)[:100])
    return text.replace(",", ",,")
