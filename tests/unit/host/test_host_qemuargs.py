"""QEMU command lines: what is in them, what never is, and that no value can add an option."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import Refused
from cloister.host.vmm.qemuargs import (
    OVMF_MACHINE,
    Channels,
    Platform,
    option,
    ovmf_boot,
    plain,
    qemu_arguments,
    seabios_boot,
)
from cloister.host.vmm.spec import Accelerator, Bundle, PortForward
from cloister.protocol.guestapi import SCRATCH_SERIAL

CHANNELS = Channels(control=10, streams=11, console=12, monitor=13, tpm=14)


def parsed(text: str) -> list[str]:
    """Split as QEMU's option parser does: one comma separates, two are one in a value."""
    return [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]


def pairs(arguments: list[str]) -> list[tuple[str, str]]:
    """Return options with their values; a flag has an empty one."""
    found: list[tuple[str, str]] = []
    for word in arguments:
        if word.startswith("-"):
            found.append((word, ""))
        else:
            assert found[-1][1] == ""
            found[-1] = (found[-1][0], word)
    return found


def seabios(spec: Any, *, accelerator: Accelerator = Accelerator.TCG) -> list[str]:
    platform = Platform(accelerator=accelerator, boot=seabios_boot(spec.bundle), machine={})
    return qemu_arguments(spec, platform, CHANNELS, spec.work / "initdata.img", spec.bundle.root)


def test_seabios_profile(make_spec: Any, bundle: Bundle) -> None:
    found = pairs(seabios(make_spec(vcpus=4, memory_mib=1024)))
    options = dict(found)
    assert options["-bios"] == str(bundle.bios)
    assert options["-kernel"] == str(bundle.kernel)
    assert options["-initrd"] == str(bundle.initrd)
    assert options["-append"] == bundle.cmdline
    assert options["-L"] == str(bundle.bios.parent)
    assert options["-smp"] == "4,sockets=1,cores=4,threads=1"
    assert options["-m"] == "1024"
    assert options["-cpu"] == "max,la57=off"
    assert options["-accel"] == "tcg,thread=multi,tb-size=256"
    assert options["-name"] == "cloister-pod-1,debug-threads=on"
    assert options["-global"] == "apic-common.vapic=off"
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= options.keys()
    assert parsed(options["-machine"])[0] == "q35"
    for off in ("usb", "sata", "smbus", "vmport", "hpet", "graphics"):
        assert f"{off}=off" in parsed(options["-machine"])


def test_devices_of_the_guest(make_spec: Any) -> None:
    devices = [parsed(value) for name, value in pairs(seabios(make_spec())) if name == "-device"]
    assert [device[0] for device in devices] == [
        "virtio-blk-pci",
        "virtio-blk-pci",
        "virtio-serial-pci",
        "virtserialport",
        "virtserialport",
        "virtio-net-pci",
        "tpm-crb",
    ]
    assert ["drive=root" in device for device in devices[:2]] == [True, False]
    assert ["name=cloister.control" in devices[3], "name=cloister.streams" in devices[4]] == [True, True]
    for device in devices:
        if device[0].endswith("-pci"):
            assert {"disable-legacy=on", "romfile="} <= set(device)
    addresses = [word for device in devices for word in device if word.startswith("addr=")]
    assert len(addresses) == len(set(addresses)) == 4


def test_disks_are_read_only(make_spec: Any, bundle: Bundle) -> None:
    spec = make_spec()
    drives = [parsed(value) for name, value in pairs(seabios(spec)) if name == "-blockdev"]
    assert [drive[-1] for drive in drives] == [
        f"file.filename={bundle.root}",
        f"file.filename={spec.work / 'initdata.img'}",
    ]
    assert all("read-only=on" in drive for drive in drives)


def test_scratch_disk(make_spec: Any, bundle: Bundle) -> None:
    """The only writable one, behind the others, its file an inherited descriptor; its size is in no argument."""
    spec = make_spec(scratch_mib=100)
    platform = Platform(accelerator=Accelerator.TCG, boot=seabios_boot(bundle), machine={})
    channels = replace(CHANNELS, scratch=15)
    arguments = qemu_arguments(spec, platform, channels, spec.work / "initdata.img", bundle.root)
    without = seabios(make_spec())
    assert arguments[: len(without)] == without
    options = dict(pairs(arguments[len(without) :]))
    assert options.keys() == {"-add-fd", "-blockdev", "-device"}
    assert options["-add-fd"] == "set=1,fd=15"
    assert {"read-only=off", "file.filename=/dev/fdset/1", "node-name=scratch"} <= set(parsed(options["-blockdev"]))
    device = parsed(options["-device"])
    assert device[0] == "virtio-blk-pci"
    assert {"drive=scratch", f"serial={SCRATCH_SERIAL}", "disable-legacy=on", "romfile="} <= set(device)
    assert {"rerror=report", "werror=report"} <= set(device)  # else a full host stops the machine for good
    addresses = [word for name, value in pairs(arguments) for word in parsed(value) if word.startswith("addr=")]
    assert len(addresses) == len(set(addresses)) == 5
    other = qemu_arguments(make_spec(scratch_mib=7), platform, channels, spec.work / "initdata.img", bundle.root)
    assert other == arguments


def test_serial_of_the_scratch_disk_fits() -> None:
    assert len(SCRATCH_SERIAL) <= 20  # VIRTIO 1.2, section 5.2.6


@pytest.mark.parametrize(
    "forbidden", ["-fw_cfg", "-smbios", "-virtfs", "-fsdev", "-acpitable", "-monitor", "-vnc", "-drive", "-hda"]
)
def test_nothing_else_reaches_the_guest(make_spec: Any, forbidden: str) -> None:
    arguments = seabios(make_spec())
    assert forbidden not in arguments
    assert not any(word in " ".join(arguments) for word in ("9p", "virtiofs", "cidata", "vhost", "smb="))


def test_channels_are_inherited_descriptors(make_spec: Any) -> None:
    arguments = seabios(make_spec())
    sockets = [parsed(value) for name, value in pairs(arguments) if name == "-chardev"]
    assert {socket[1].removeprefix("id="): socket[2] for socket in sockets} == {
        "control": "fd=10",
        "streams": "fd=11",
        "console": "fd=12",
        "monitor": "fd=13",
        "tpm": "fd=14",
    }
    assert "path=" not in " ".join(arguments)


def test_ports_become_hostfwd(make_spec: Any) -> None:
    ports = (
        PortForward(host_ip="127.0.0.1", host_port=8080, guest_port=80),
        PortForward(host_ip="192.0.2.1", host_port=6379, guest_port=6379),
    )
    network = dict(pairs(seabios(make_spec(ports=ports))))["-netdev"]
    assert network == "user,id=net,ipv6=off,hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=tcp:192.0.2.1:6379-:6379"


def test_kvm(make_spec: Any) -> None:
    assert dict(pairs(seabios(make_spec(), accelerator=Accelerator.KVM)))["-accel"] == "kvm"


def test_ovmf_profile(make_spec: Any, bundle: Bundle, tmp_path: Path) -> None:
    spec = make_spec()
    variables = tmp_path / "vars.fd"
    platform = Platform(accelerator=Accelerator.TCG, boot=ovmf_boot(bundle, variables), machine=OVMF_MACHINE)
    found = pairs(qemu_arguments(spec, platform, CHANNELS, spec.work / "initdata.img", bundle.root))
    drives = {drive[1]: drive for drive in (parsed(value) for name, value in found if name == "-blockdev")}
    assert {"read-only=on", f"file.filename={bundle.ovmf_code}"} <= set(drives["node-name=code"])
    assert {"read-only=off", f"file.filename={variables}"} <= set(drives["node-name=vars"])
    options = dict(found)
    assert options["-kernel"] == str(bundle.uki)
    assert {"pflash0=code", "pflash1=vars"} <= set(parsed(options["-machine"]))
    assert not {"-bios", "-initrd", "-append", "-L"} & options.keys()


def test_without_a_tpm(make_spec: Any) -> None:
    spec = make_spec()
    platform = Platform(accelerator=Accelerator.TCG, boot=seabios_boot(spec.bundle), machine={})
    arguments = qemu_arguments(spec, platform, replace(CHANNELS, tpm=None), spec.work / "i", spec.bundle.root)
    assert "-tpmdev" not in arguments
    assert "tpm-crb,tpmdev=tpm0" not in arguments


def test_comma_in_a_path_adds_no_property(make_spec: Any, bundle: Bundle, tmp_path: Path) -> None:
    evil = tmp_path / "a,read-only=off,file.filename=" / "etc"
    spec = make_spec(work=evil, bundle=replace(bundle, root=evil / "root.img"))
    drives = [parsed(value) for name, value in pairs(seabios(spec)) if name == "-blockdev"]
    assert [len(drive) for drive in drives] == [6, 6]
    assert drives[0][-1] == f"file.filename={evil / 'root.img'}"
    assert all("read-only=off" not in drive for drive in drives)


@pytest.mark.parametrize("text", ["a\nb", "a\0b", "a\x7fb"])
def test_control_characters_are_refused(text: str) -> None:
    with pytest.raises(Refused, match=r"host\.qemu\.option"):
        option("x", {"key": text})
    with pytest.raises(Refused, match=r"host\.qemu\.option"):
        plain(text)


def test_leading_dash_is_refused() -> None:
    with pytest.raises(Refused, match=r"host\.qemu\.option"):
        plain("-fw_cfg")


def test_newline_in_the_command_line_of_the_kernel(make_spec: Any, bundle: Bundle) -> None:
    with pytest.raises(Refused, match=r"host\.qemu\.option"):
        seabios(make_spec(bundle=replace(bundle, cmdline="quiet\ninit=/bin/sh")))


def test_property_names_are_ours() -> None:
    with pytest.raises(RuntimeError):
        option("x", {"a=b": "c"})


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True), st.text(max_size=30), max_size=5))
def test_values_survive_and_stay_values(values: dict[str, str]) -> None:
    try:
        text = option("first", values)
    except Refused:
        assert any(ord(char) < 32 or ord(char) == 127 for value in values.values() for char in value)
        return
    # QEMU reads left to right: a pair of commas is one comma, so a value may end with one only before the end
    words: list[str] = []
    current, index = "", 0
    while index < len(text):
        if text.startswith(",,", index):
            current += ","
            index += 2
        elif text[index] == ",":
            words.append(current)
            current = ""
            index += 1
        else:
            current += text[index]
            index += 1
    words.append(current)
    assert words == ["first", *(f"{key}={value}" for key, value in values.items())]
