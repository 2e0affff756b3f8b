"""Shared by the tests of the host side: a bundle of made-up files and specs for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloister.host.vmm.spec import Bundle, VMSpec
from cloister.protocol.initdata import build_initdata

SpecMaker = Callable[..., VMSpec]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Files that are there and mean nothing."""
    firmware = tmp_path / "bundle" / "firmware"
    firmware.mkdir(parents=True)
    names = ("vmlinuz", "initrd.img", "root.img", "uki.efi")
    kernel, initrd, root, uki = (firmware.parent / name for name in names)
    bios, code, variables, rom = (
        firmware / name for name in ("bios-256k.bin", "OVMF_CODE.fd", "OVMF_VARS.fd", "linuxboot_dma.bin")
    )
    for file in (kernel, initrd, root, uki, bios, code, variables, rom):
        file.write_bytes(file.name.encode())
    return Bundle(
        kernel=kernel,
        initrd=initrd,
        cmdline="console=ttyS0 quiet",
        root=root,
        uki=uki,
        bios=bios,
        ovmf_code=code,
        ovmf_vars=variables,
        option_roms={rom.name: rom},
    )


@pytest.fixture
def make_spec(tmp_path: Path, bundle: Bundle) -> SpecMaker:
    """Return a function that makes a spec, with changes."""

    def make(**changes: Any) -> VMSpec:
        fields: dict[str, Any] = {
            "name": "pod-1",
            "work": tmp_path / "work",
            "initdata": build_initdata({"aa.toml": "x"}).text,
            "bundle": bundle,
        }
        return VMSpec(**{**fields, **changes})

    return make
