"""Which package serves which technology: a plain dict of wire name to module name.

Names, not modules: looking a technology up imports only that one, and inside the guest only its attester. Detection
of a device is never a statement about trust; the verifier alone decides.

Every technology has the same files: `abi` (layout), `evidence` (what is sent or found in a file), `attester`
(devices), `verifier` (who signed it), `appraisal` (the owner's rules for it), `endorsements` (vendor roots and where
collateral is had). A package that serves two technologies is told which by the evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol

from cloister.errors import EvidenceError, Refused

if TYPE_CHECKING:
    from datetime import datetime

    from cloister.rats.endorsement import Endorsements, PinnedRoot
    from cloister.rats.evidence import AuthenticDevice, AuthenticEvidence, Evidence, UnverifiedClaims
    from cloister.rats.result import Finding
    from cloister.rats.rules import PlatformRules

TECHNOLOGIES: Final[Mapping[str, str]] = {
    "tpm": "cloister.tee.tpm",
    "nitro": "cloister.tee.nitro",
    "cca": "cloister.tee.cca",
    "csv": "cloister.tee.hygon_csv",
    "se": "cloister.tee.ibm_se",
    "snp": "cloister.tee.sev_snp",
    "az-snp-vtpm": "cloister.tee.azure",
    "az-tdx-vtpm": "cloister.tee.azure",
    "nvidia": "cloister.tee.nvidia_gpu",
    "cloister-simulated": "cloister.tee.insecure",
    "sample": "cloister.tee.insecure.sample",
    "tdx": "cloister.tee.tdx",
    "sgx": "cloister.tee.sgx",
}

# No vendor service is asked about them: their roots are configured or pinned, and whole chains come with the evidence.
WITHOUT_COLLATERAL: Final = frozenset({"tpm", "nitro", "cca", "cloister-simulated", "sample", "csv", "se"})
# Evidence of these is of several devices at once, each of which is judged: `verifier.authenticate_devices`.
WITH_DEVICES: Final = frozenset({"nvidia"})

_ADDED: dict[str, str] = {}


class Authenticate(Protocol):
    """Every technology's `verifier.authenticate`: pure, raises on the first check that does not hold.

    It says who signed the evidence and what it says, and names the fields that bind it; whether they hold what this
    session expects is not its business (`cloister.rats.binding`), nor whether the owner likes it (`appraisal`).
    """

    def __call__(
        self, evidence: Evidence, endorsements: Endorsements, *, at: datetime, session_secret: bytes = b""
    ) -> AuthenticEvidence:
        """Verify the signature chain of `evidence` at time `at`.

        Args:
            evidence: as received.
            endorsements: who may have signed it, and the vendor's statements.
            at: aware time.
            session_secret: what credential activation must have recovered, for technologies that have it.

        Raises:
            FormatRefused: a part does not parse.
            EndorsementError: a certificate, CRL or other vendor statement does not hold.
            EvidenceError: a signature or another check does not hold.
            Unavailable: the technology cannot be verified by this build; never for a fault of the evidence.
        """
        ...


class AuthenticateDevices(Protocol):
    """`verifier.authenticate_devices` of the technologies in `WITH_DEVICES`: as `authenticate`, device by device."""

    def __call__(self, evidence: Evidence, endorsements: Endorsements, *, at: datetime) -> tuple[AuthenticDevice, ...]:
        """Return all devices of `evidence`, at least one.

        Raises:
            FormatRefused, EndorsementError, EvidenceError: one of them does not hold.
        """
        ...


class ReadClaims(Protocol):
    """Every technology's `verifier.read_claims`: what evidence says, whoever signed it. The level is the lowest."""

    def __call__(self, evidence: Evidence) -> UnverifiedClaims:
        """Return the claims of evidence that parses.

        Raises:
            FormatRefused, EvidenceError: it does not.
        """
        ...


class AppraisePlatform(Protocol):
    """Every technology's `appraisal.appraise_platform`: one finding for each of the owner's rules."""

    def __call__(self, facts: object, rules: PlatformRules, *, at: datetime) -> tuple[Finding, ...]:
        """Judge the `facts` of authentic evidence of this technology."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadEvidence:
    """Evidence found in a file.

    Attributes:
        body: the JSON shape the technology's attester sends.
        form: what the file was, in words (`raw report`, `JSON as CoCo's guest sends it`).
    """

    body: Mapping[str, Any]  # Any: untrusted JSON
    form: str


class ReadFile(Protocol):
    """Every technology's `evidence.read_evidence`: the body from any form the evidence is found in on disk."""

    def __call__(self, data: bytes, *, tee: str) -> ReadEvidence:
        """Return the body; verify nothing.

        Raises:
            FormatRefused: none of the forms.
        """
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

    def init_data_field(self) -> tuple[str, bytes] | None:
        """Return name and content of the field that was set to the init data's digest, zeros after it, at launch; None
        where the guest itself extends a register with it."""
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


def register_technology(tee: str, package: str, *, violations: Callable[[Authenticate], Sequence[str]]) -> None:
    """Add a technology of one's own for this process, once its verifier has kept the contract.

    Args:
        tee: wire name, not one of this build's.
        package: name of a package with the same files as those here.
        violations: `cloister.testing.verifiercontract.violations` with a case of the technology; what it returns must
            be empty. A verifier that does not bind its evidence cannot be registered.

    Raises:
        Refused: the name is taken, or the contract is broken (`tee.contract`).
    """
    if tee in TECHNOLOGIES:
        raise Refused("tee.contract", "the name is taken by a technology of this build", actual=tee[:40])
    broken = violations(import_module(f"{package}.verifier").authenticate)
    if broken:
        raise Refused(
            "tee.contract",
            f"verifier breaks the contract in {len(broken)} ways: {broken[0]}"[:200],
            path=package,
            expected="no violation",
            hint="run `cloister.testing.verifiercontract.violations` to see all of them",
        )
    _ADDED[tee] = package


def authenticator_for(tee: str) -> Authenticate:
    """Return how evidence of a technology is authenticated.

    Raises:
        EvidenceError: no such technology (`tee.unknown`).
    """
    authenticate: Authenticate = import_module(f"{_package(tee)}.verifier").authenticate
    return authenticate


def device_authenticator_for(tee: str) -> AuthenticateDevices:
    """Return how evidence of several devices is authenticated, device by device.

    Raises:
        EvidenceError: no such technology, or one of single devices (`tee.unknown`).
    """
    if tee not in WITH_DEVICES:
        raise EvidenceError(
            "tee.unknown",
            "not a technology of further devices",
            path="tee",
            expected=" or ".join(sorted(WITH_DEVICES)),
            actual=tee[:40],
        )
    authenticate: AuthenticateDevices = import_module(f"{_package(tee)}.verifier").authenticate_devices
    return authenticate


def claims_reader_for(tee: str) -> ReadClaims:
    """Return how the claims of a technology are read without verifying them.

    Raises:
        EvidenceError: no such technology (`tee.unknown`).
    """
    read: ReadClaims = import_module(f"{_package(tee)}.verifier").read_claims
    return read


def appraiser_for(tee: str) -> AppraisePlatform:
    """Return how the owner's rules for a technology are applied.

    Raises:
        EvidenceError: no such technology (`tee.unknown`).
    """
    appraise: AppraisePlatform = import_module(f"{_package(tee)}.appraisal").appraise_platform
    return appraise


def reader_for(tee: str) -> ReadFile:
    """Return how evidence of a technology is read from a file.

    Raises:
        EvidenceError: no such technology (`tee.unknown`).
    """
    read: ReadFile = import_module(f"{_package(tee)}.evidence").read_evidence
    return read


def pins_for(tee: str) -> tuple[PinnedRoot, ...]:
    """Return the vendor roots of a technology that this build pins.

    Raises:
        EvidenceError: no such technology (`tee.unknown`).
    """
    pins: tuple[PinnedRoot, ...] = import_module(f"{_package(tee)}.endorsements").PINS
    return tuple(pin for pin in pins if pin.tee == tee)


def attester_for(tee: str) -> Callable[..., Attester]:
    """Return the attester class of a technology; its arguments are the technology's own.

    Raises:
        EvidenceError: no such technology (`tee.unknown`).
    """
    attester: Callable[..., Attester] = import_module(f"{_package(tee)}.attester").ATTESTER
    return attester


def _package(tee: str) -> str:
    package = TECHNOLOGIES.get(tee) or _ADDED.get(tee)
    if package is None:
        raise EvidenceError(
            "tee.unknown",
            "unknown technology",
            path="tee",
            expected=" or ".join(TECHNOLOGIES),
            actual=tee[:40],
            hint="this build has no verifier for it",
        )
    return package
