"""What the RATS roles of the trust service say to one another; neither imports the other.

The key broker (Relying Party) hands a guest's evidence to an `AttestationService` (Verifier) and gets a signed token
back, which it then verifies like a stranger's. In one process these are plain calls; over a network they would be the
requests of CoCo's attestation service.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from cloister.errors import CloisterError, Unavailable
from cloister.protocol.initdata import InitData
from cloister.protocol.kbs import RuntimeData
from cloister.rats.result import Finding
from cloister.trust.events import NO_EVENTS, Events, LogEvent
from cloister.trust.store.records import AppraisalRecord

__all__ = [
    "NO_EVENTS",
    "AppraisalRequest",
    "Appraised",
    "AttestationService",
    "Events",
    "IssuedChallenge",
    "LogEvent",
    "Undecided",
]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class IssuedChallenge:
    """What the verifier adds to a challenge.

    Attributes:
        extra_params: JSON for the guest.
        secret: what the guest must recover from it; kept by the session, never sent.
    """

    extra_params: Any  # Any: JSON of the technology's own shape
    secret: bytes


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
    """

    tee: str
    evidence: Any  # Any: untrusted JSON, typed by the technology's own parser
    additional_evidence: str
    runtime_data: RuntimeData
    init_data: InitData | None
    session_secret: bytes
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Appraised:
    """An Attestation Result: the token for the guest and what the owner keeps.

    Attributes:
        token: signed EAR.
        record: the result with all findings, expected values included.
        body: the evidence as received, JSON.
    """

    token: str
    record: AppraisalRecord
    body: bytes


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

    def challenge(self, tee: str, extra_params: Any) -> IssuedChallenge:  # Any: untrusted JSON of the guest
        """Return what belongs into the challenge for this technology.

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
