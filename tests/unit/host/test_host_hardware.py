"""Command lines for SEV-SNP and TDX, as text: these back ends have not been run."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import FormatRefused, Refused, Unavailable
from cloister.host.vmm.hardware import (
    HOST_DATA_BYTES,
    MRCONFIGID_BYTES,
    SNPLauncher,
    TDXLauncher,
    initdata_field,
    snp_platform,
    tdx_platform,
)
from cloister.host.vmm.qemuargs import Channels, Platform, qemu_arguments
from cloister.host.vmm.spec import Accelerator, Backend, Bundle
from cloister.protocol.initdata import build_initdata
from cloister.rats.claims import Level

CHANNELS = Channels(control=10, streams=11, console=12, monitor=13)


@pytest.fixture
def confidential(bundle: Bundle) -> Bundle:
    firmware = bundle.bios.with_name("OVMF.fd")
    firmware.write_bytes(b"firmware")
    return replace(bundle, ovmf_stateless=firmware)


def value_after(arguments: list[str], name: str, start: str = "") -> str:
    return next(value for option, value in itertools.pairwise(arguments) if option == name and value.startswith(start))


def command(spec: Any, platform: Platform) -> list[str]:
    return qemu_arguments(spec, platform, CHANNELS, spec.work / "initdata.img", spec.bundle.root)


def test_snp(make_spec: Any, confidential: Bundle) -> None:
    spec = make_spec(bundle=confidential, memory_mib=2048)
    platform = snp_platform(spec)
    arguments = command(spec, platform)
    digest = hashlib.sha256(spec.initdata).digest()
    properties = value_after(arguments, "-object", "sev-snp-guest").split(",")
    assert properties[1:6] == [
        "id=tee0",
        "cbitpos=51",
        "reduced-phys-bits=1",
        "policy=196608",  # 0x30000
        "kernel-hashes=on",
    ]
    assert properties[6] == f"host-data={base64.b64encode(digest).decode()}"
    assert value_after(arguments, "-accel") == "kvm"
    assert value_after(arguments, "-cpu") == "EPYC-v4"
    assert value_after(arguments, "-bios") == str(confidential.ovmf_stateless)
    assert value_after(arguments, "-kernel") == str(confidential.kernel)
    assert value_after(arguments, "-initrd") == str(confidential.initrd)
    assert value_after(arguments, "-append") == confidential.cmdline
    assert value_after(arguments, "-object", "memory-backend-memfd") == (
        "memory-backend-memfd,id=ram0,size=2048M,share=on,prealloc=off"
    )
    machine = value_after(arguments, "-machine").split(",")
    assert {"confidential-guest-support=tee0", "memory-backend=ram0", "kernel-irqchip=split", "smm=off"} <= set(machine)
    assert "-tpmdev" not in arguments


def test_snp_policy_forbids_debugging() -> None:
    from cloister.host.vmm.hardware import SNP_POLICY

    assert SNP_POLICY & 1 << 17  # reserved, must be one
    assert not SNP_POLICY & 1 << 19  # debugging
    assert not SNP_POLICY & 1 << 18  # migration agent


def test_snp_with_igvm(make_spec: Any, confidential: Bundle) -> None:
    arguments = command(make_spec(bundle=confidential), snp_platform(make_spec(bundle=confidential), igvm=Path("/i,x")))
    assert value_after(arguments, "-object", "igvm-cfg") == "igvm-cfg,id=igvm0,file=/i,,x"
    assert "igvm-cfg=igvm0" in value_after(arguments, "-machine").split(",")
    assert "-bios" not in arguments


def test_tdx(make_spec: Any, confidential: Bundle) -> None:
    spec = make_spec(bundle=confidential)
    arguments = command(spec, tdx_platform(spec, quote_socket=Path("/run/qgs")))
    tee = json.loads(value_after(arguments, "-object", "{"))
    digest = hashlib.sha256(spec.initdata).digest() + bytes(16)
    assert tee == {
        "qom-type": "tdx-guest",
        "id": "tee0",
        "mrconfigid": base64.b64encode(digest).decode(),
        "quote-generation-socket": {"type": "unix", "path": "/run/qgs"},
    }
    assert value_after(arguments, "-cpu") == "host"
    assert value_after(arguments, "-bios") == str(confidential.ovmf_stateless)
    assert value_after(arguments, "-kernel") == str(confidential.uki)
    assert "-initrd" not in arguments
    assert "confidential-guest-support=tee0" in value_after(arguments, "-machine")


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("size", [HOST_DATA_BYTES, MRCONFIGID_BYTES])
def test_init_data_fills_the_field(algorithm: str, size: int) -> None:
    init_data = build_initdata({"a": "b"}, algorithm=algorithm)
    field = base64.b64decode(initdata_field(init_data.text, size), validate=True)
    assert len(field) == size
    assert field == init_data.digest[:size] + bytes(max(0, size - len(init_data.digest)))


def test_init_data_that_is_none(make_spec: Any, confidential: Bundle) -> None:
    with pytest.raises(FormatRefused):
        snp_platform(make_spec(bundle=confidential, initdata=b"not toml"))


@pytest.mark.parametrize("make", [snp_platform, tdx_platform])
def test_no_firmware_in_the_bundle(make_spec: Any, make: Any) -> None:
    with pytest.raises(Unavailable, match=r"host\.bundle\.incomplete"):
        make(make_spec())


def test_machines_without_the_hardware(make_spec: Any, tmp_path: Path) -> None:
    for launcher in (SNPLauncher(device=tmp_path / "sev"), TDXLauncher(parameter=tmp_path / "tdx")):
        assert launcher.level is Level.HARDWARE
        with pytest.raises(Unavailable, match=r"host\.hardware\.absent"):
            launcher.launch(make_spec())
    assert (SNPLauncher().backend, TDXLauncher().backend) == (Backend.SNP, Backend.TDX)


def test_accelerator_is_always_kvm(make_spec: Any, confidential: Bundle) -> None:
    spec = make_spec(bundle=confidential, accelerator=Accelerator.TCG)
    assert {snp_platform(spec).accelerator, tdx_platform(spec).accelerator} == {Accelerator.KVM}


@pytest.mark.parametrize("platform", [snp_platform, lambda spec: tdx_platform(spec, quote_socket=Path("/run/qgs"))])
def test_init_data_cannot_be_late(make_spec: Any, confidential: Bundle, platform: Any) -> None:
    with pytest.raises(Refused, match=r"host\.spec\.initdata"):
        platform(make_spec(bundle=confidential, initdata=None))
