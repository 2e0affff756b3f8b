"""The guest's side of NVIDIA attestation: reports and certificates of all GPUs, through NVIDIA's management library.

NVML by `ctypes`, as `nvml.h` declares it (r550 and later); nothing is needed but the driver's own shared library,
which is a constructor argument so that a fake one tests all of it. The switches' library (NSCQ) is not used: their
evidence is verified when another collector brings it. Nothing here is trusted: the devices sign for themselves.
"""

from __future__ import annotations

import ctypes
from types import TracebackType
from typing import Any, Final

from cloister.errors import Unavailable
from cloister.wire.base64 import encode_b64
from cloister.wire.limits import GPU_DEVICES

LIBRARY: Final = "libnvidia-ml.so.1"
DIRECTORY: Final = "/usr/lib/x86_64-linux-gnu/"  # Debian's; the loader's own search where the root is the system's
NONCE_BYTES: Final = 32
CERTIFICATE_CHAIN_BYTES: Final = 0x1000  # NVML_GPU_CERT_CHAIN_SIZE
ATTESTATION_CHAIN_BYTES: Final = 0x1400  # NVML_GPU_ATTESTATION_CERT_CHAIN_SIZE
REPORT_BYTES: Final = 0x2000  # NVML_CC_GPU_ATTESTATION_REPORT_SIZE
CEC_REPORT_BYTES: Final = 0x1000  # NVML_CC_GPU_CEC_ATTESTATION_REPORT_SIZE
UUID_BYTES: Final = 96  # NVML_DEVICE_UUID_V2_BUFFER_SIZE
SUCCESS: Final = 0
FEATURE_ENABLED: Final = 1  # NVML_CC_SYSTEM_FEATURE_ENABLED
# nvmlDeviceArchitecture_t; the names are those CoCo's attester sends.
ARCHITECTURES: Final = {9: "Hopper", 10: "Blackwell"}
_CODE: Final = "tee.nvidia_gpu.nvml"


class SystemState(ctypes.Structure):
    """nvmlConfComputeSystemState_t."""

    _fields_ = (
        ("environment", ctypes.c_uint),
        ("ccFeature", ctypes.c_uint),
        ("devToolsMode", ctypes.c_uint),
    )


class GPUCertificate(ctypes.Structure):
    """nvmlConfComputeGpuCertificate_t: two chains in PEM; the second is that of the attestation key."""

    _fields_ = (
        ("certChainSize", ctypes.c_uint),
        ("attestationCertChainSize", ctypes.c_uint),
        ("certChain", ctypes.c_ubyte * CERTIFICATE_CHAIN_BYTES),
        ("attestationCertChain", ctypes.c_ubyte * ATTESTATION_CHAIN_BYTES),
    )


class GPUReport(ctypes.Structure):
    """nvmlConfComputeGpuAttestationReport_t: the nonce goes in, the report comes out."""

    _fields_ = (
        ("isCecAttestationReportPresent", ctypes.c_uint),
        ("attestationReportSize", ctypes.c_uint),
        ("cecAttestationReportSize", ctypes.c_uint),
        ("nonce", ctypes.c_ubyte * NONCE_BYTES),
        ("attestationReport", ctypes.c_ubyte * REPORT_BYTES),
        ("cecAttestationReport", ctypes.c_ubyte * CEC_REPORT_BYTES),
    )


class NVMLAttester:
    """Attests all GPUs of the machine. Use as a context manager.

    Args:
        root: of the tree in which the driver is installed.
        library: an object with NVML's functions; the driver's library when absent.
    """

    def __init__(self, root: object = "/", *, library: Any = None) -> None:  # Any: `ctypes.CDLL`, or a fake like it
        self._path = LIBRARY if str(root) == "/" else f"{root}{DIRECTORY}{LIBRARY}"
        self._given = library
        self._library: Any = None  # Any: as above

    def __enter__(self) -> NVMLAttester:
        """Load and initialise the library.

        Raises:
            Unavailable: no driver here (`tee.nvidia_gpu.nvml.absent`), or it refuses (`tee.nvidia_gpu.nvml.failed`).
        """
        library = self._given
        if library is None:
            try:
                library = ctypes.CDLL(self._path)
            except OSError as err:
                raise Unavailable(
                    f"{_CODE}.absent",
                    "NVIDIA's management library cannot be loaded",
                    path=self._path,
                    hint="the pod VM needs NVIDIA's driver",
                ) from err
        _call(library, "nvmlInit_v2")
        self._library = library
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        library, self._library = self._library, None
        if library is not None:
            library.nvmlShutdown()

    def extend(self, pcr: int, digest: bytes) -> None:
        """Refuse: a GPU has no registers; the CPU's evidence binds the init data."""
        raise RuntimeError("a GPU has no registers")

    def init_data_field(self) -> None:
        """Return nothing: the CPU's evidence binds the init data."""

    def read_pcrs(self) -> dict[int, bytes]:
        """Return nothing: a GPU has no registers."""
        return {}

    def enrol(self) -> None:
        """Return nothing: there is no second key whose place would have to be proved."""

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """Refuse: a caller that has a credential has mistaken this for a TPM."""
        raise RuntimeError("a GPU has no credential activation")

    def attest(self, report_data: bytes, secret: bytes = b"") -> dict[str, Any]:  # Any: JSON values
        """Return the evidence of all GPUs, each bound to the first 32 bytes of `report_data`; `secret` is not used.

        Raises:
            Unavailable: confidential computing is off (`tee.nvidia_gpu.nvml.off`), there is no GPU, or one of another
                architecture (`tee.nvidia_gpu.nvml.devices`), or the driver fails (`tee.nvidia_gpu.nvml.failed`).
        """
        nonce = report_data[:NONCE_BYTES].ljust(NONCE_BYTES, b"\0")
        state = SystemState()
        self._call("nvmlSystemGetConfComputeState", ctypes.byref(state))
        if state.ccFeature != FEATURE_ENABLED:
            raise Unavailable(f"{_CODE}.off", "confidential computing is off on the GPUs", hint="switch CC mode on")
        count = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        if not 0 < count.value <= GPU_DEVICES:
            raise Unavailable(
                f"{_CODE}.devices",
                "number of GPUs out of range",
                expected=f"1 to {GPU_DEVICES}",
                actual=str(count.value),
            )
        return {"device_evidence_list": [self._device(index, nonce) for index in range(count.value)]}

    def set_ready(self, ready: bool) -> None:
        """Let the GPUs accept work, or not: done once the verifier has said yes.

        Raises:
            Unavailable: the driver refuses (`tee.nvidia_gpu.nvml.failed`).
        """
        self._call("nvmlSystemSetConfComputeGpusReadyState", ctypes.c_uint(1 if ready else 0))

    def _device(self, index: int, nonce: bytes) -> dict[str, str]:
        handle = ctypes.c_void_p()
        self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
        arch = ctypes.c_uint()
        self._call("nvmlDeviceGetArchitecture", handle, ctypes.byref(arch))
        if arch.value not in ARCHITECTURES:
            raise Unavailable(
                f"{_CODE}.devices",
                "GPU is of an architecture that cannot attest",
                path=f"GPU {index}",
                expected=" or ".join(ARCHITECTURES.values()),
                actual=str(arch.value),
            )
        uuid = ctypes.create_string_buffer(UUID_BYTES)
        self._call("nvmlDeviceGetUUID", handle, uuid, ctypes.c_uint(UUID_BYTES))
        certificate, report = GPUCertificate(), GPUReport()
        ctypes.memmove(report.nonce, nonce, NONCE_BYTES)
        self._call("nvmlDeviceGetConfComputeGpuCertificate", handle, ctypes.byref(certificate))
        self._call("nvmlDeviceGetConfComputeGpuAttestationReport", handle, ctypes.byref(report))
        return {
            "arch": ARCHITECTURES[arch.value],
            "uuid": uuid.value.decode("ascii", "replace"),
            "evidence": encode_b64(_sized(report.attestationReport, report.attestationReportSize)),
            "certificate": encode_b64(_sized(certificate.attestationCertChain, certificate.attestationCertChainSize)),
        }

    def _call(self, name: str, *arguments: object) -> None:
        if self._library is None:
            raise RuntimeError("the attester is used as a context manager")
        _call(self._library, name, *arguments)


def _call(library: Any, name: str, *arguments: object) -> None:  # Any: as in `NVMLAttester`
    """Call one function; all of NVML return a status."""
    try:
        function = getattr(library, name)
    except AttributeError as err:
        raise Unavailable(
            f"{_CODE}.failed", "driver is too old for attestation", path=name, hint="update NVIDIA's driver"
        ) from err
    status = function(*arguments)
    if status != SUCCESS:
        raise Unavailable(f"{_CODE}.failed", "NVIDIA's driver refuses", path=name, actual=f"status {status}")


def _sized(buffer: Any, size: int) -> bytes:  # Any: a ctypes array of bytes
    """Return the first `size` bytes; a size beyond the buffer is the driver's fault, not a reason to read on."""
    if not 0 < size <= len(buffer):
        raise Unavailable(f"{_CODE}.failed", "driver states a size beyond its buffer", actual=str(size))
    return bytes(buffer[:size])


ATTESTER: Final = NVMLAttester
