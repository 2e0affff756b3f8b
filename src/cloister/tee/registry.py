"""Which package serves which technology: a plain dict of wire name to module name.

Names, not modules: looking a technology up imports only that one, and inside the guest only its attester. Detection
of a device is never a statement about trust; the verifier alone decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol

from cloister.errors import EvidenceError

if TYPE_CHECKING:
    from datetime import datetime

    from cloister.rats.endorsement import Endorsements
    from cloister.rats.evidence import Evidence, ExpectedBinding
    from cloister.rats.result import VerifiedEvidence

TECHNOLOGIES: Final[Mapping[str, str]] = {
    "tpm": "cloister.tee.tpm",
    "cloister-simulated": "cloister.tee.insecure",
}


class Verifier(Protocol):
    """Every technology's `verifier.verify_evidence`: pure, raises on the first check that does not hold."""

    def __call__(
        self, evidence: Evidence, binding: ExpectedBinding, endorsements: Endorsements, *, at: datetime
    ) -> VerifiedEvidence:
        """Verify `evidence` against what it must be bound to and who may have signed it, at time `at`."""
        ...


class Attester(Protocol):
    """What the guest needs of a technology's attester. Used as a context manager."""

    def __enter__(self) -> Attester:
        """Return self."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the device."""
        ...

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extend register `pcr` with a 32-byte digest."""
        ...

    def read_pcrs(self) -> Mapping[int, bytes]:
        """Return the registers by index."""
        ...

    def enrol(self) -> tuple[bytes, bytes] | None:
        """Return (EK certificate DER, AK TPM2B_PUBLIC) for credential activation; None where there is none."""
        ...

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """Return the credential that the verifier encrypted to this device."""
        ...

    def attest(self, report_data: bytes, secret: bytes) -> dict[str, Any]:  # Any: JSON of the technology's own shape
        """Return the evidence body that binds `report_data` (48 bytes) and carries the activated `secret`."""
        ...


def verifier_for(tee: str) -> Verifier:
    """Return the verifier of a technology.

    Raises:
        EvidenceError: no such technology (`tee.unknown`).
    """
    verifier: Verifier = import_module(f"{_package(tee)}.verifier").verify_evidence
    return verifier


def attester_for(tee: str) -> Callable[..., Attester]:
    """Return the attester class of a technology; its arguments are the technology's own.

    Raises:
        EvidenceError: no such technology (`tee.unknown`).
    """
    attester: Callable[..., Attester] = import_module(f"{_package(tee)}.attester").ATTESTER
    return attester


def _package(tee: str) -> str:
    if tee not in TECHNOLOGIES:
        raise EvidenceError(
            "tee.unknown",
            "unknown technology",
            path="tee",
            expected=" or ".join(TECHNOLOGIES),
            actual=tee[:40],
            hint="this build has no verifier for it",
        )
    return TECHNOLOGIES[tee]
