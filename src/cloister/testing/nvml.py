"""NVIDIA's management library without a driver: the functions that the attester calls, over fake GPUs."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from cloister.tee.nvidia_gpu import attester
from cloister.testing.nvidia import FakeDevice


class FakeNVML:
    """The functions of NVML that the attester calls, for a list of fake GPUs.

    Args:
        devices: GPUs of the machine.
        cc: whether confidential computing is on.
        failing: names of functions that return an error.
        sizes: length that the driver states for a chain, when not the true one.
    """

    def __init__(
        self,
        devices: Sequence[FakeDevice],
        *,
        cc: bool = True,
        failing: frozenset[str] = frozenset(),
        size: int | None = None,
    ) -> None:
        self._devices = devices
        self._cc = cc
        self._failing = failing
        self._size = size
        self.open = 0
        self.ready: int | None = None

    def nvmlInit_v2(self) -> int:  # noqa: N802  # NVML's own names, here and below
        """Count an initialisation."""
        self.open += 1
        return self._status("nvmlInit_v2")

    def nvmlShutdown(self) -> int:  # noqa: N802
        """Count it back."""
        self.open -= 1
        return attester.SUCCESS

    def nvmlSystemGetConfComputeState(self, state: Any) -> int:  # noqa: N802  # Any: result of `ctypes.byref`, as below
        """Write whether confidential computing is on."""
        state._obj.ccFeature = int(self._cc)
        return self._status("nvmlSystemGetConfComputeState")

    def nvmlSystemSetConfComputeGpusReadyState(self, ready: ctypes.c_uint) -> int:  # noqa: N802
        """Remember the state."""
        self.ready = ready.value
        return self._status("nvmlSystemSetConfComputeGpusReadyState")

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        """Write how many GPUs there are."""
        count._obj.value = len(self._devices)
        return self._status("nvmlDeviceGetCount_v2")

    def nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, handle: Any) -> int:  # noqa: N802
        """Write a handle: one more than the index, because a null handle is none."""
        handle._obj.value = index.value + 1
        return self._status("nvmlDeviceGetHandleByIndex_v2")

    def nvmlDeviceGetArchitecture(self, handle: ctypes.c_void_p, arch: Any) -> int:  # noqa: N802
        """Write the architecture's number."""
        numbers = {name: number for number, name in attester.ARCHITECTURES.items()}
        arch._obj.value = numbers.get(self._device(handle).arch, 8)
        return self._status("nvmlDeviceGetArchitecture")

    def nvmlDeviceGetUUID(self, handle: ctypes.c_void_p, uuid: Any, size: ctypes.c_uint) -> int:  # noqa: N802
        """Write the UUID."""
        uuid.value = f"GPU-{self._device(handle).profile.pdi.hex()}".encode()[: size.value - 1]
        return self._status("nvmlDeviceGetUUID")

    def nvmlDeviceGetConfComputeGpuCertificate(self, handle: ctypes.c_void_p, certificate: Any) -> int:  # noqa: N802
        """Write the chain."""
        pem, target = self._device(handle).certificates(), certificate._obj
        ctypes.memmove(target.attestationCertChain, pem, len(pem))
        target.attestationCertChainSize = len(pem) if self._size is None else self._size
        return self._status("nvmlDeviceGetConfComputeGpuCertificate")

    def nvmlDeviceGetConfComputeGpuAttestationReport(self, handle: ctypes.c_void_p, report: Any) -> int:  # noqa: N802
        """Sign a report over the nonce that is in the structure."""
        target = report._obj
        data = self._device(handle).report(bytes(target.nonce))
        ctypes.memmove(target.attestationReport, data, len(data))
        target.attestationReportSize = len(data)
        return self._status("nvmlDeviceGetConfComputeGpuAttestationReport")

    def _device(self, handle: ctypes.c_void_p) -> FakeDevice:
        return self._devices[(handle.value or 0) - 1]

    def _status(self, name: str) -> int:
        return 3 if name in self._failing else attester.SUCCESS
