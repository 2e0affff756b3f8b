"""The realm's side of CCA attestation: a token from the kernel, by configfs-tsm.

The driver `arm-cca-guest` (drivers/virt/coco/arm-cca-guest, Linux 6.13) gives the token for a challenge of 64 bytes.
The realm management monitor proves everything; this code is trusted only as part of the measured realm. Linux lets no
process extend a realm's registers: init data is bound by the personalization value, which whoever starts the realm
sets at launch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

from cloister.errors import Unavailable
from cloister.tee.tsmreport import TSMFiles, read_tsm_report

PROVIDER: Final = "arm_cca_guest"
CHALLENGE_BYTES: Final = 64
_CODE: Final = "tee.cca.device"


class CCAAttester:
    """Attests by the realm management monitor. Use as a context manager.

    Args:
        root: where the device tree begins.
        files: stands for configfs.
        sleep: waits between tries.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = "/",
        *,
        files: TSMFiles | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._root = root
        self._files = files
        self._sleep = sleep

    def __enter__(self) -> CCAAttester:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release nothing: no device stays open between two tokens."""

    def extend(self, pcr: int, digest: bytes) -> None:
        """Refuse: what is not bound must not look as if it were.

        Raises:
            Unavailable: always (`tee.cca.no_registers`).
        """
        raise Unavailable(
            "tee.cca.no_registers",
            "Linux has no way to extend a realm's registers",
            path=f"register {pcr}",
            hint="bind init data by the realm personalization value when the realm is started",
        )

    def init_data_field(self) -> None:
        """Return nothing: the personalization value is in the token only, which is not parsed in the realm."""

    def read_pcrs(self) -> dict[int, bytes]:
        """Return nothing: the registers are in the token only."""
        return {}

    def enrol(self) -> None:
        """Return nothing: the platform vouches for the realm's key in the token itself."""

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """Refuse: a caller that has a credential has mistaken this for a TPM."""
        raise RuntimeError("CCA has no credential activation")

    def attest(self, report_data: bytes, secret: bytes = b"") -> dict[str, Any]:  # Any: JSON values
        """Return the evidence body that binds `report_data` (at most 64 bytes, zeros follow); `secret` is not used.

        Raises:
            Unavailable: no device, or it does not answer (`tee.cca.device`), or others write to our request
                (`tee.cca.device.raced`).
        """
        if not 0 < len(report_data) <= CHALLENGE_BYTES:
            raise RuntimeError("report data has 1 to 64 bytes")
        report = read_tsm_report(
            report_data.ljust(CHALLENGE_BYTES, b"\0"),
            provider=PROVIDER,
            code=_CODE,
            root=self._root,
            files=self._files,
            sleep=self._sleep,
        )
        return {"token": list(report.outblob)}


ATTESTER: Final = CCAAttester
