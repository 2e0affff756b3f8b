"""The attester of NVIDIA GPUs over a fake management library, and what it does when the driver does not cooperate."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

from cloister.errors import Unavailable
from cloister.rats.evidence import Evidence
from cloister.tee.nvidia_gpu.attester import GPUCertificate, GPUReport, NVMLAttester, SystemState
from cloister.tee.nvidia_gpu.verifier import authenticate
from cloister.testing import nvidia
from cloister.testing.nvidia import NOW, DevicePKI
from cloister.testing.nvml import FakeNVML
from cloister.wire.limits import GPU_DEVICES


@pytest.fixture(scope="module")
def pki() -> DevicePKI:
    return DevicePKI()


def code_of(library: object, report_data: bytes = nvidia.REPORT_DATA) -> str:
    with pytest.raises(Unavailable) as caught, NVMLAttester(library=library) as attester:
        attester.attest(report_data)
    return caught.value.code.removeprefix("tee.nvidia_gpu.nvml.")


def test_structures_have_the_sizes_of_nvml_h() -> None:
    assert ctypes.sizeof(SystemState) == 12
    assert ctypes.sizeof(GPUCertificate) == 8 + 0x1000 + 0x1400
    assert ctypes.sizeof(GPUReport) == 12 + 32 + 0x2000 + 0x1000


def test_evidence_of_all_gpus_verifies(pki: DevicePKI) -> None:
    devices = [pki.device(), pki.device(nvidia.BLACKWELL)]
    library = FakeNVML(devices)
    with NVMLAttester(library=library) as attester:
        assert library.open == 1
        body = attester.attest(nvidia.REPORT_DATA)
        assert (attester.read_pcrs(), attester.enrol()) == ({}, None)  # type: ignore[func-returns-value]  # is None
        attester.set_ready(True)
    assert (library.open, library.ready) == (0, 1)
    assert [item["arch"] for item in body["device_evidence_list"]] == ["Hopper", "Blackwell"]
    found = authenticate(Evidence(tee="nvidia", body=body), nvidia.endorse(pki, devices), at=NOW)
    assert found.freshness.fit(nvidia.REPORT_DATA) == found.freshness.value


def test_a_short_digest_is_padded(pki: DevicePKI) -> None:
    device = pki.device()
    with NVMLAttester(library=FakeNVML([device])) as attester:
        body = attester.attest(b"short")
    found = authenticate(Evidence(tee="nvidia", body=body), nvidia.endorse(pki, [device]), at=NOW)
    assert found.freshness.value == b"short".ljust(32, b"\0") == found.freshness.fit(b"short")


@pytest.mark.parametrize(
    "name",
    [
        "nvmlInit_v2",
        "nvmlSystemGetConfComputeState",
        "nvmlDeviceGetCount_v2",
        "nvmlDeviceGetHandleByIndex_v2",
        "nvmlDeviceGetArchitecture",
        "nvmlDeviceGetUUID",
        "nvmlDeviceGetConfComputeGpuCertificate",
        "nvmlDeviceGetConfComputeGpuAttestationReport",
    ],
)
def test_every_error_of_the_driver_is_told(pki: DevicePKI, name: str) -> None:
    library = FakeNVML([pki.device()], failing=frozenset({name}))
    with pytest.raises(Unavailable) as caught, NVMLAttester(library=library) as attester:
        attester.attest(nvidia.REPORT_DATA)
    assert (caught.value.code, caught.value.path) == ("tee.nvidia_gpu.nvml.failed", name)
    assert caught.value.actual == "status 3"


def test_machines_that_cannot_attest(pki: DevicePKI) -> None:
    device = pki.device()
    assert code_of(FakeNVML([device], cc=False)) == "off"
    assert code_of(FakeNVML([])) == "devices"
    assert code_of(FakeNVML([device] * (GPU_DEVICES + 1))) == "devices"
    assert code_of(FakeNVML([pki.device(nvidia.SWITCH)])) == "devices"
    for size in (0, 0x1401, 0xFFFFFFFF):
        assert code_of(FakeNVML([device], size=size)) == "failed"


def test_a_driver_without_the_functions_is_too_old() -> None:
    assert code_of(SimpleNamespace()) == "failed"
    assert code_of(SimpleNamespace(nvmlInit_v2=lambda: 0, nvmlShutdown=lambda: 0)) == "failed"


def test_ready_state_that_the_driver_refuses(pki: DevicePKI) -> None:
    library = FakeNVML([pki.device()], failing=frozenset({"nvmlSystemSetConfComputeGpusReadyState"}))
    with NVMLAttester(library=library) as attester, pytest.raises(Unavailable):
        attester.set_ready(False)


def test_no_driver_at_all() -> None:
    with pytest.raises(Unavailable) as caught, NVMLAttester("/nowhere"):
        pass
    assert caught.value.code == "tee.nvidia_gpu.nvml.absent"
    assert caught.value.path.startswith("/nowhere/usr/lib/")


def test_misuse() -> None:
    attester = NVMLAttester(library=FakeNVML([]))
    with pytest.raises(RuntimeError):
        attester.attest(b"")  # not entered
    with pytest.raises(RuntimeError):
        attester.extend(8, bytes(32))
    with pytest.raises(RuntimeError):
        attester.activate(b"", b"")
