"""The guest's side of SNP attestation: a report from the kernel, by configfs-tsm or by /dev/sev-guest.

Runs inside the pod VM before any key is released: it imports nothing but byte codecs. The hardware proves everything;
this code is trusted only as part of the measured guest, and which device is there is no statement about trust.

Sources: Linux ABI documents `configfs-tsm-report` (6.7) and `sev-guest` (uapi/linux/sev-guest.h). SNP has no registers
that a guest could extend: init data is bound by HOST_DATA, which the host sets at launch and the firmware reports.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

from cloister.errors import FormatRefused, Unavailable
from cloister.tee.sev_snp.abi import REPORT_DATA_BYTES, parse_report
from cloister.tee.sev_snp.certtable import parse_certificate_table
from cloister.tee.sev_snp.cocoshape import encode_body
from cloister.tee.tsmreport import TSM, TSMFiles, read_tsm_report
from cloister.wire.limits import SNP_CERTIFICATE_TABLE_BYTES, SNP_REPORT_BYTES

DEVICE: Final = "dev/sev-guest"
PROVIDER: Final = "sev_guest"
_CODE: Final = "tee.sev_snp.device"
_TRIES: Final = 8
_FIRST_WAIT_SECONDS: Final = 0.02  # doubled each time, about five seconds in all: hosts throttle guests
_BUSY: Final = frozenset({errno.EBUSY, errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR})

# uapi/linux/sev-guest.h: _IOWR('S', nr, struct snp_guest_request_ioctl), 32 bytes.
SNP_GET_REPORT: Final = 0xC0205300
SNP_GET_EXT_REPORT: Final = 0xC0205302
REQUEST: Final = struct.Struct("<B7xQQQ")  # msg_version, req_data, resp_data, fw_error and vmm_error
REPORT_REQUEST: Final = struct.Struct("<64sI28x")  # user_data, vmpl, reserved
EXT_REQUEST: Final = struct.Struct("<96sQI4x")  # the former, certs_address, certs_len
RESPONSE_BYTES: Final = 4000
RESPONSE_HEAD: Final = struct.Struct("<II24x")  # status, report_size, reserved
_MESSAGE_VERSION: Final = 1
_VMM_INVALID_LENGTH: Final = 1  # SNP_GUEST_VMM_ERR_INVALID_LEN, in the upper half of exitinfo2

Ioctl = Callable[[int, int, bytearray], object]


def _kernel_ioctl(descriptor: int, request: int, argument: bytearray) -> object:
    import fcntl

    return fcntl.ioctl(descriptor, request, argument, True)


class SNPAttester:
    """Attests by the AMD secure processor. Use as a context manager.

    Args:
        root: where the device tree begins.
        vmpl: privilege level to ask a report for; the kernel's own when absent.
        files: stands for configfs.
        ioctl: stands for the device's ioctl.
        sleep: waits between tries.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = "/",
        *,
        vmpl: int | None = None,
        files: TSMFiles | None = None,
        ioctl: Ioctl = _kernel_ioctl,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._root = root
        self._device = os.path.join(root, DEVICE)
        self._vmpl = vmpl
        self._files = files
        self._ioctl = ioctl
        self._sleep = sleep

    def __enter__(self) -> SNPAttester:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release nothing: no device stays open between two reports."""

    def extend(self, pcr: int, digest: bytes) -> None:
        """Refuse: what is not bound must not look as if it were.

        Raises:
            Unavailable: always (`tee.sev_snp.no_registers`).
        """
        raise Unavailable(
            "tee.sev_snp.no_registers",
            "SEV-SNP has no register that could be extended",
            path=f"register {pcr}",
            hint="bind init data by HOST_DATA when the guest is started, or use a vTPM beside",
        )

    def init_data_field(self) -> tuple[str, bytes]:
        """Return HOST_DATA, 32 bytes, from a report of the firmware.

        Raises:
            Unavailable: no device, or it does not answer (`tee.sev_snp.device`).
        """
        report, _ = self.extended_report(b"init data")
        return "HOST_DATA", parse_report(report).host_data

    def read_pcrs(self) -> dict[int, bytes]:
        """Return nothing: there are no registers."""
        return {}

    def enrol(self) -> None:
        """Return nothing: the key is certified by its maker."""

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """Refuse: a caller that has a credential has mistaken this for a TPM."""
        raise RuntimeError("SEV-SNP has no credential activation")

    def attest(self, report_data: bytes, secret: bytes = b"") -> dict[str, Any]:  # Any: JSON values
        """Return the evidence body that binds `report_data` (at most 64 bytes, zeros follow); `secret` is not used.

        Raises:
            Unavailable: no device, or it does not answer (`tee.sev_snp.device`), or others write to our request
                (`tee.sev_snp.device.raced`).
            FormatRefused: what the device gave is no report (`tee.sev_snp.report.*`).
        """
        report, table = self.extended_report(report_data)
        return encode_body(parse_report(report), parse_certificate_table(table))

    def extended_report(self, report_data: bytes) -> tuple[bytes, bytes]:
        """Return the raw report and the host's table of certificates, which may be empty.

        Raises:
            Unavailable: no device, or it does not answer (`tee.sev_snp.device`), or others write to our request
                (`tee.sev_snp.device.raced`).
        """
        if not 0 < len(report_data) <= REPORT_DATA_BYTES:
            raise RuntimeError("report data has 1 to 64 bytes")
        data = report_data.ljust(REPORT_DATA_BYTES, b"\0")
        try:
            by_tsm = os.path.isdir(os.path.join(self._root, TSM))
            report, table = self._by_tsm(data) if by_tsm else self._by_device(data)
        except OSError as err:
            raise Unavailable(
                _CODE,
                f"no report from the kernel: {err.strerror or err}",
                path=str(err.filename or ""),
                hint="the guest needs the driver sev-guest, and root",
            ) from err
        if parse_report(report).report_data != data:
            raise FormatRefused("tee.sev_snp.report.malformed", "the device reports other data", path="REPORT_DATA")
        return report, table

    def _by_tsm(self, data: bytes) -> tuple[bytes, bytes]:
        report = read_tsm_report(
            data,
            provider=PROVIDER,
            code=_CODE,
            root=self._root,
            privlevel=self._vmpl,
            files=self._files,
            sleep=self._sleep,
        )
        return report.outblob, report.auxblob

    def _by_device(self, data: bytes) -> tuple[bytes, bytes]:
        """Ask /dev/sev-guest for an extended report, for a plain one where the host provides no certificates."""
        descriptor = os.open(self._device, os.O_RDWR | os.O_CLOEXEC)
        try:
            question = REPORT_REQUEST.pack(data, self._vmpl or 0)
            space = 4 * 4096  # what the kernel hands out at most; a host with a longer table says so
            for _ in range(2):
                table = ctypes.create_string_buffer(space)
                request = ctypes.create_string_buffer(
                    EXT_REQUEST.pack(question, ctypes.addressof(table), space), EXT_REQUEST.size
                )
                try:
                    report = self._ask(descriptor, SNP_GET_EXT_REPORT, request)
                except _WrongLength:
                    space = EXT_REQUEST.unpack(request.raw)[2]
                    if not 0 < space <= SNP_CERTIFICATE_TABLE_BYTES:
                        break
                    continue
                return report, table.raw
            plain = ctypes.create_string_buffer(question, REPORT_REQUEST.size)
            return self._ask(descriptor, SNP_GET_REPORT, plain), b""
        finally:
            os.close(descriptor)

    def _ask(self, descriptor: int, number: int, request: ctypes.Array[ctypes.c_char]) -> bytes:
        wait = _FIRST_WAIT_SECONDS
        for _ in range(_TRIES):
            response = ctypes.create_string_buffer(RESPONSE_BYTES)
            argument = bytearray(
                REQUEST.pack(_MESSAGE_VERSION, ctypes.addressof(request), ctypes.addressof(response), 0)
            )
            try:
                self._ioctl(descriptor, number, argument)
            except OSError as err:
                exit_information = REQUEST.unpack(argument)[3]
                if exit_information >> 32 == _VMM_INVALID_LENGTH and number == SNP_GET_EXT_REPORT:
                    raise _WrongLength from err
                if err.errno not in _BUSY:
                    raise Unavailable(
                        _CODE,
                        f"secure processor refuses: {err.strerror}",
                        path=self._device,
                        actual=f"exitinfo2 {exit_information:#x}",
                    ) from err
                self._sleep(wait)
                wait *= 2
                continue
            status, size = RESPONSE_HEAD.unpack_from(response.raw)
            if status or size != SNP_REPORT_BYTES:
                raise Unavailable(
                    _CODE, "secure processor gives no report", path=self._device, expected="status 0",
                    actual=f"status {status}, {size} bytes",
                )  # fmt: skip
            return response.raw[RESPONSE_HEAD.size : RESPONSE_HEAD.size + size]
        raise Unavailable(_CODE, "the host throttles reports", path=self._device, hint="try again later")


class _WrongLength(Exception):
    """The host's table needs another length; the request says which."""


ATTESTER: Final = SNPAttester
