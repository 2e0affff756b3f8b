"""The enclave's side of SGX attestation, under Gramine: its attestation files.

Source: Gramine documentation, "Attestation and Secret Provisioning": write 64 bytes to `user_report_data`, read
`quote`. The files belong to the process, so nobody else's data can come between. The hardware proves everything; that
the files are there says nothing about trust.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Final

from cloister.errors import Unavailable
from cloister.tee.sgx import abi
from cloister.wire.base64 import encode_b64
from cloister.wire.limits import DCAP_QUOTE_BYTES

ATTESTATION: Final = "dev/attestation"
_DCAP: Final = b"dcap"
_CODE: Final = "tee.sgx.device"


class SGXAttester:
    """Attests by the platform's quoting enclave. Use as a context manager.

    Args:
        root: where the device tree begins.
    """

    def __init__(self, root: str | os.PathLike[str] = "/") -> None:
        self._directory = os.path.join(os.fspath(root), ATTESTATION)  # noqa: PTH118  # as the other attesters do

    def __enter__(self) -> SGXAttester:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release nothing: no file stays open between two quotes."""

    def extend(self, pcr: int, digest: bytes) -> None:
        """Refuse: what is not bound must not look as if it were.

        Raises:
            Unavailable: always (`tee.sgx.device`).
        """
        raise Unavailable(
            _CODE,
            "SGX has no register that could be extended",
            path=f"register {pcr}",
            hint="bind init data by CONFIGID when the enclave is started",
        )

    def init_data_field(self) -> None:
        """Return nothing: nothing here starts an enclave with init data."""

    def read_pcrs(self) -> dict[int, bytes]:
        """Return nothing: there are no registers."""
        return {}

    def enrol(self) -> None:
        """Return nothing: the key is certified by its maker."""

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """Refuse: a caller that has a credential has mistaken this for a TPM."""
        raise RuntimeError("SGX has no credential activation")

    def attest(self, report_data: bytes, secret: bytes = b"") -> dict[str, Any]:  # Any: JSON values
        """Return the evidence body that binds `report_data` (at most 64 bytes, zeros follow); `secret` is not used.

        Raises:
            Unavailable: no attestation files, none for DCAP, or no quote (`tee.sgx.device`).
        """
        if not 0 < len(report_data) <= abi.REPORT_DATA_BYTES:
            raise RuntimeError("report data has 1 to 64 bytes")
        try:
            kind = self._read("attestation_type").strip()
            if kind != _DCAP:
                raise Unavailable(
                    _CODE,
                    "Gramine attests another way",
                    path=self._directory,
                    expected=_DCAP.decode(),
                    actual=kind.decode("ascii", "replace")[:40],
                )
            with open(os.path.join(self._directory, "user_report_data"), "wb") as file:  # noqa: PTH118, PTH123
                file.write(report_data.ljust(abi.REPORT_DATA_BYTES, b"\0"))
            quote = self._read("quote")
        except OSError as err:
            raise Unavailable(
                _CODE,
                f"no quote from Gramine: {err.strerror or err}",
                path=str(err.filename or self._directory),
                hint="run under Gramine with remote attestation by DCAP",
            ) from err
        if not quote or len(quote) > DCAP_QUOTE_BYTES:
            raise Unavailable(_CODE, "no quote, or one longer than any real one", actual=f"{len(quote)} bytes")
        return {"quote": encode_b64(quote)}

    def _read(self, name: str) -> bytes:
        with open(os.path.join(self._directory, name), "rb") as file:  # noqa: PTH118, PTH123
            return file.read(DCAP_QUOTE_BYTES + 1)


ATTESTER: Final = SGXAttester
