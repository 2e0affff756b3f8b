"""What the RATS roles of the trust service say to one another; neither imports the other.

The key broker (Relying Party) hands a guest's evidence to an `AttestationService` (Verifier) and gets a signed token
back, which it then verifies like a stranger's. In one process these are plain calls; over a network they would be the
requests of CoCo's attestation service.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from cloister.crypto.jwe import Recipient
from cloister.errors import CloisterError, KeyReleaseDenied, Unavailable
from cloister.protocol.kbs import VERSION, RuntimeData
from cloister.rats.claims import Level
from cloister.rats.result import Finding, Tier
from cloister.trust.events import NO_EVENTS, Events, LogEvent
from cloister.trust.store.evidence import BindingRecord
from cloister.trust.store.records import AppraisalRecord

__all__ = [
    "NO_EVENTS",
    "AppraisalRequest",
    "Appraised",
    "AttestationService",
    "AttestedGuest",
    "Events",
    "IssuedChallenge",
    "LogEvent",
    "MeasuredText",
    "Plugin",
    "PluginDenied",
    "Undecided",
]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class IssuedChallenge:
    """What the verifier adds to a challenge.

    Attributes:
        extra_params: JSON for the guest.
        activated: whether the session's secret is what the guest must recover from it.
    """

    extra_params: Any  # Any: JSON of the technology's own shape
    activated: bool


class MeasuredText(Protocol):
    """Init data as far as evidence binds them: by digest. `cloister.protocol.initdata.InitData` is one.

    Attributes:
        digest: the digest alone.
        digest_text: the digest as `algorithm:hex`.
    """

    @property
    def digest(self) -> bytes: ...
    @property
    def digest_text(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class AppraisalRequest:
    """Evidence with everything it must be bound to.

    Attributes:
        tee: technology announced at `/auth`.
        evidence: primary evidence as received.
        additional_evidence: text of the map for further devices, as received.
        runtime_data: nonce and guest key as received.
        init_data: as sent; the evidence must bind its digest. None when the guest sent none: the result names none.
        session_secret: what credential activation must have recovered.
        at: time of the appraisal, aware UTC.
        version: of the protocol, which says what the evidence must be bound to.
        init_data_claims: entries of the init data as results show them; JSON. Empty where only its digest is known.
    """

    tee: str
    evidence: Any  # Any: untrusted JSON, typed by the technology's own parser
    additional_evidence: str
    runtime_data: RuntimeData
    init_data: MeasuredText | None
    session_secret: bytes
    at: datetime
    version: str = VERSION
    init_data_claims: Mapping[str, Any] = field(default_factory=dict)  # Any: JSON


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Appraised:
    """An Attestation Result: the token for the guest and what the owner keeps.

    Attributes:
        token: signed EAR.
        claims: what it says, JSON.
        record: the result with all findings, expected values included.
        body: the evidence as received, JSON.
        binding: what it was bound to.
    """

    token: str
    claims: dict[str, Any]  # Any: JSON
    record: AppraisalRecord
    body: bytes
    binding: BindingRecord


class Undecided(Unavailable):
    """The verdict on a guest's evidence stays open: what vendors publish about its platform is not had, or stale.

    Recorded like a denial, because the owner can change it; told to the guest as "not now".

    Args:
        error: the first question that stays open; its hint is shown to the guest.
        remedy: what the owner does, in full.
        findings: all checks that were made.
    """

    __slots__ = ("findings", "remedy")

    def __init__(self, error: CloisterError, *, remedy: str, findings: Sequence[Finding] = ()) -> None:
        super().__init__(
            error.code,
            error.message,
            path=error.path,
            expected=error.expected,
            actual=error.actual,
            hint=error.hint,
        )
        self.remedy = remedy
        self.findings = tuple(findings)


class AttestationService(Protocol):
    """The Verifier as the key broker sees it."""

    def challenge(self, tee: str, extra_params: Any, secret: bytes) -> IssuedChallenge:  # Any: JSON of the guest
        """Return what belongs into the challenge for this technology.

        Args:
            tee: as announced.
            extra_params: untrusted.
            secret: the session's own, 32 bytes; never sent.

        Raises:
            Refused: unknown technology, or enrolment data that do not parse.
        """
        ...

    def appraise(self, request: AppraisalRequest) -> Appraised:
        """Verify and appraise evidence. An unacceptable guest gets a token that says so.

        Raises:
            Refused: evidence that is not authentic or not bound; no policy to judge by.
            Undecided: what would decide it is not had.
            Unavailable: the store failed.
        """
        ...


class AttestedGuest(Protocol):
    """A verified Attestation Result as plugins of the key broker see it: its signature, issuer and time held.

    Attributes:
        attestation: id of the result.
        tee: technology.
        tier: the verdict.
        level: what the evidence proved.
        instance: identity of the chip or vTPM.
        init_data: digest of the init data, `sha256:` and digits.
        policy_id: appraisal policy.
        policy_digest: of the text applied.
        pcr00: launch measurement, empty when the technology has none.
        guest_key: what answers are sealed to.
        guest_key_id: SHA-256 of its canonical JWK, hex.
        issued_at: aware UTC.
        expires_at: aware UTC.
    """

    @property
    def attestation(self) -> str: ...
    @property
    def tee(self) -> str: ...
    @property
    def tier(self) -> Tier: ...
    @property
    def level(self) -> Level: ...
    @property
    def instance(self) -> str: ...
    @property
    def init_data(self) -> str: ...
    @property
    def policy_id(self) -> str: ...
    @property
    def policy_digest(self) -> str: ...
    @property
    def pcr00(self) -> str: ...
    @property
    def guest_key(self) -> Recipient: ...
    @property
    def guest_key_id(self) -> str: ...
    @property
    def issued_at(self) -> datetime: ...
    @property
    def expires_at(self) -> datetime: ...


class PluginDenied(KeyReleaseDenied):
    """A plugin's policy says no; recorded like any denial.

    Args:
        finding: the primary cause.
        path: what was asked for.
        findings: all checks that were made.
    """

    __slots__ = ("findings",)

    def __init__(self, finding: Finding, *, path: str, findings: Sequence[Finding]) -> None:
        super().__init__(
            finding.code,
            finding.message,
            path=path,
            expected=finding.expected,
            actual=finding.actual,
            hint=finding.hint,
        )
        self.findings = tuple(findings)


class Plugin(Protocol):
    """Answers `/kbs/v0/{name}/{path}?{query}` for attested guests; the broker seals what it returns to the guest."""

    def handle(self, path: str, query: str, body: bytes, token: AttestedGuest) -> bytes:
        """Return the plaintext of the answer; what the plugin gave out is then recorded, durably.

        Args:
            path: after the plugin's name, without a slash at either end.
            query: as in the address, percent-encoded, without `?`.
            body: of the request, may be empty.
            token: verified by the broker for its own tenant.

        Raises:
            Refused: malformed, missing or denied; `PluginDenied` carries the findings.
            Unavailable: the store failed: nothing was given out.
        """
        ...
