"""The guest's side of TDX attestation: quotes by configfs-tsm, registers by sysfs, the boot log of firmware.

Runs inside the pod VM before any key is released: it imports nothing but byte codecs. The hardware proves everything;
this code is trusted only as part of the measured guest, and which device is there is no statement about trust.

Sources: Linux ABI documents `configfs-tsm-report` (6.7) and `sysfs-devices-virtual-misc-tdx_guest` (6.16), uapi header
`tdx-guest.h`; UEFI 2.10 section 38.4.1 for which register stands for which PCR.

Init data is bound by MRCONFIGID, which the host sets at launch and the guest compares. What the guest extends at run
time goes into RTMR 2 and 3, each extend as a record of the kind CoCo's attestation agent writes, so that the log that
is sent replays.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

from cloister.errors import Unavailable
from cloister.tee.eventlog import Event, append_events
from cloister.tee.tdx import abi
from cloister.tee.tsmreport import KernelFiles, TSMFiles, read_tsm_report
from cloister.wire.base64 import encode_b64
from cloister.wire.limits import EVENT_LOG_BYTES

DEVICE: Final = "dev/tdx_guest"
REGISTERS: Final = "sys/devices/virtual/misc/tdx_guest/measurements"
LOG_TABLE: Final = "sys/firmware/acpi/tables/CCEL"
LOG: Final = "sys/firmware/acpi/tables/data/CCEL"
PROVIDER: Final = "tdx_guest"
GET_REPORT0: Final = 0xC4405401  # _IOWR('T', 1, struct tdx_report_req): 64 bytes of report data, 1024 of TDREPORT
EV_EVENT_TAG: Final = 0x00000006
_AAEL: Final = 0x4141454C
_DOMAIN: Final = "cloister"
_CODE: Final = "tee.tdx.device"
_REGISTER_CODE: Final = "tee.tdx.register"
_LOG_CODE: Final = "tee.tdx.eventlog"

Ioctl = Callable[[int, int, bytearray], object]


def _kernel_ioctl(descriptor: int, request: int, argument: bytearray) -> object:
    import fcntl

    return fcntl.ioctl(descriptor, request, argument, True)


class TDXAttester:
    """Attests by the platform's quoting enclave. Use as a context manager; not for several threads at once.

    Args:
        root: where the device tree begins.
        files: stands for configfs and sysfs.
        ioctl: stands for the device's ioctl.
        sleep: waits between tries.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = "/",
        *,
        files: TSMFiles | None = None,
        ioctl: Ioctl = _kernel_ioctl,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._root = os.fspath(root)
        self._files: TSMFiles = files if files is not None else KernelFiles(EVENT_LOG_BYTES)
        self._ioctl = ioctl
        self._sleep = sleep
        self._events: list[Event] = []

    def __enter__(self) -> TDXAttester:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release nothing: no device stays open between two quotes."""

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extend the register that stands for `pcr`: RTMR 2 for 8 to 15, RTMR 3 for 16 to 23.

        What is extended is SHA-384 of a record that names `pcr` and holds `digest`.

        Raises:
            Unavailable: the kernel has no such file, or refuses (`tee.tdx.register`); the caller must not go on.
        """
        if not 8 <= pcr < 24 or not digest:
            raise RuntimeError("a guest extends registers 8 to 23, by a digest")
        index = 2 if pcr < 16 else 3
        text = f"{_DOMAIN} extend-pcr{pcr} {digest.hex()}".encode()
        data = struct.pack("<II", _AAEL, len(text)) + text
        value = hashlib.sha384(data).digest()
        path = self._register_path(index)
        try:
            self._files.write(path, value)
        except OSError as err:
            raise Unavailable(_REGISTER_CODE, f"register cannot be extended: {err.strerror or err}", path=path) from err
        self._events.append(
            Event(register=abi.log_register(index), kind=EV_EVENT_TAG, digests={abi.ALGORITHM: value}, data=data)
        )

    def init_data_field(self) -> tuple[str, bytes]:
        """Return MRCONFIGID, 48 bytes: from sysfs, else from a TDREPORT.

        Raises:
            Unavailable: neither is there (`tee.tdx.register`, `tee.tdx.device`).
        """
        path = os.path.join(self._root, REGISTERS, "mrconfigid")  # noqa: PTH118
        try:
            value = self._files.read(path)
        except FileNotFoundError:
            value = abi.tdreport_config_id(self.tdreport(bytes(abi.REPORT_DATA_BYTES)))
        except OSError as err:
            raise Unavailable(_REGISTER_CODE, f"register cannot be read: {err.strerror or err}", path=path) from err
        if len(value) != abi.CONFIG_ID_BYTES:
            raise Unavailable(
                _REGISTER_CODE, "register of another length", path=path, expected=f"{abi.CONFIG_ID_BYTES} bytes"
            )
        return "MRCONFIGID", value

    def read_pcrs(self) -> dict[int, bytes]:
        """Return the four run-time registers by their own index: from sysfs, else from a TDREPORT.

        Raises:
            Unavailable: neither is there (`tee.tdx.register`).
        """
        try:
            values = [self._files.read(self._register_path(index)) for index in range(abi.RTMRS)]
        except FileNotFoundError:
            values = list(abi.tdreport_rtmrs(self.tdreport(bytes(abi.REPORT_DATA_BYTES))))
        except OSError as err:
            raise Unavailable(
                _REGISTER_CODE, f"register cannot be read: {err.strerror or err}", path=str(err.filename or "")
            ) from err
        if any(len(value) != abi.RTMR_BYTES for value in values):
            raise Unavailable(_REGISTER_CODE, "register of another length", expected=f"{abi.RTMR_BYTES} bytes")
        return dict(enumerate(values))

    def enrol(self) -> None:
        """Return nothing: the key is certified by its maker."""

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """Refuse: a caller that has a credential has mistaken this for a TPM."""
        raise RuntimeError("TDX has no credential activation")

    def attest(self, report_data: bytes, secret: bytes = b"") -> dict[str, Any]:  # Any: JSON values
        """Return the evidence body that binds `report_data` (at most 64 bytes, zeros follow); `secret` is not used.

        Raises:
            Unavailable: no quote (`tee.tdx.device`), others write to our request (`tee.tdx.device.raced`), or the log
                cannot be read.
            FormatRefused: firmware's log does not parse (`tee.tdx.eventlog.*`, `tee.tdx.ccel.*`).
        """
        if not 0 < len(report_data) <= abi.REPORT_DATA_BYTES:
            raise RuntimeError("report data has 1 to 64 bytes")
        report = read_tsm_report(
            report_data.ljust(abi.REPORT_DATA_BYTES, b"\0"),
            provider=PROVIDER,
            code=_CODE,
            root=self._root,
            files=self._files,
            sleep=self._sleep,
        )
        log = self.read_log()
        return {"quote": encode_b64(report.outblob), "cc_eventlog": encode_b64(log) if log else None}

    def read_log(self) -> bytes:
        """Return firmware's log with what this attester extended; empty where firmware keeps none.

        Raises:
            Unavailable: it cannot be read (`tee.tdx.device`).
            FormatRefused: table or log do not parse (`tee.tdx.ccel.*`, `tee.tdx.eventlog.*`).
        """
        try:
            area = abi.parse_ccel_table(self._files.read(os.path.join(self._root, LOG_TABLE)))  # noqa: PTH118  # pathlib is not loaded yet
            log = self._files.read(os.path.join(self._root, LOG))[:area]  # noqa: PTH118
        except FileNotFoundError:
            return b""  # no log is evidence too; what it may be worth is the verifier's decision
        except OSError as err:
            raise Unavailable(
                _CODE, f"log cannot be read: {err.strerror or err}", path=str(err.filename or LOG)
            ) from err
        return append_events(log, self._events, code=_LOG_CODE) if self._events else log

    def tdreport(self, report_data: bytes) -> bytes:
        """Return the TDREPORT (1024 bytes) over `report_data` (64 bytes): signed for this platform only.

        Raises:
            Unavailable: no device, or it refuses (`tee.tdx.device`).
        """
        if len(report_data) != abi.REPORT_DATA_BYTES:
            raise RuntimeError("report data has 64 bytes")
        path = os.path.join(self._root, DEVICE)  # noqa: PTH118
        argument = bytearray(report_data + bytes(abi.TDREPORT_BYTES))
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                self._ioctl(descriptor, GET_REPORT0, argument)
            finally:
                os.close(descriptor)
        except OSError as err:
            raise Unavailable(_CODE, f"no TDREPORT: {err.strerror or err}", path=path) from err
        return bytes(argument[abi.REPORT_DATA_BYTES :])

    def _register_path(self, index: int) -> str:
        return os.path.join(self._root, REGISTERS, f"rtmr{index}:sha384")  # noqa: PTH118


ATTESTER: Final = TDXAttester
