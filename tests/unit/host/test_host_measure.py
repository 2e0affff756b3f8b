"""The launcher states what is in the files, as they are at launch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cloister.errors import Unavailable
from cloister.host.vmm.measure import measure_seabios, measure_uki
from cloister.host.vmm.spec import Bundle
from cloister.protocol.launch import LaunchProfile, digest_text, parse_launch_blob


def test_seabios(bundle: Bundle) -> None:
    launch = measure_seabios(bundle, vcpus=4, memory_mib=1024)
    assert launch.profile is LaunchProfile.SEABIOS
    assert (launch.vcpus, launch.memory_mib) == (4, 1024)
    assert launch.firmware == digest_text(b"bios-256k.bin")
    assert launch.kernel == digest_text(b"vmlinuz")
    assert launch.initrd == digest_text(b"initrd.img")
    assert launch.cmdline == digest_text(b"console=ttyS0 quiet")
    assert dict(launch.option_roms) == {"linuxboot_dma.bin": digest_text(b"linuxboot_dma.bin")}
    assert parse_launch_blob(launch.blob()) == launch


def test_uki(bundle: Bundle) -> None:
    launch = measure_uki(bundle, vcpus=1, memory_mib=512)
    assert launch.profile is LaunchProfile.UKI
    assert (launch.firmware, launch.kernel) == (digest_text(b"OVMF_CODE.fd"), digest_text(b"uki.efi"))
    assert launch.initrd is launch.cmdline is None


@pytest.mark.parametrize("name", ["bios", "kernel", "initrd"])
def test_another_file_gives_another_measurement(bundle: Bundle, name: str) -> None:
    before = measure_seabios(bundle, vcpus=2, memory_mib=512)
    file = getattr(bundle, name)
    file.write_bytes(b"x" * len(file.read_bytes()))  # same size: the memory of digests must not be fooled
    assert measure_seabios(bundle, vcpus=2, memory_mib=512).pcr0_seabios() != before.pcr0_seabios()


def test_another_shape_or_command_line_gives_another_measurement(bundle: Bundle) -> None:
    values = {
        measure_seabios(bundle, vcpus=2, memory_mib=512).pcr0_seabios(),
        measure_seabios(bundle, vcpus=1, memory_mib=512).pcr0_seabios(),
        measure_seabios(bundle, vcpus=2, memory_mib=513).pcr0_seabios(),
        measure_seabios(replace(bundle, cmdline="console=ttyS0 quiet "), vcpus=2, memory_mib=512).pcr0_seabios(),
        measure_seabios(replace(bundle, option_roms={}), vcpus=2, memory_mib=512).pcr0_seabios(),
    }
    assert len(values) == 5


def test_missing_file(bundle: Bundle) -> None:
    bundle.initrd.unlink()
    with pytest.raises(Unavailable, match=r"host\.bundle\.incomplete"):
        measure_seabios(bundle, vcpus=2, memory_mib=512)
