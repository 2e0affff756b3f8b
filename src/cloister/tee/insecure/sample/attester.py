"""Attester of the sample TEE: writes what CoCo's does. No key, no device, no registers; it proves nothing."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Final

from cloister.wire.base64 import encode_b64


class SampleAttester:
    """Attests by its word alone. Use as a context manager.

    Args:
        svn: the security version it claims.
    """

    def __init__(self, svn: str = "1") -> None:
        self._svn = svn

    def __enter__(self) -> SampleAttester:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def extend(self, pcr: int, digest: bytes) -> None:
        """Do nothing: there are no registers."""

    def init_data_field(self) -> None:
        """Return nothing: there is no field."""

    def read_pcrs(self) -> dict[int, bytes]:
        """Return no registers."""
        return {}

    def enrol(self) -> None:
        """Return nothing: there is no second key whose place would have to be proved."""

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """Refuse: a caller that has a credential has mistaken this for a TPM."""
        raise RuntimeError("the sample TEE has no credential activation")

    def attest(self, report_data: bytes, secret: bytes = b"") -> dict[str, Any]:  # Any: JSON values
        """Return the evidence body that names `report_data`."""
        return {"svn": self._svn, "report_data": encode_b64(report_data)}


ATTESTER: Final = SampleAttester
