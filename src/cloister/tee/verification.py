"""From evidence to a verdict, the same way for every technology: authentic, bound, acceptable.

Three questions in that order, each with its own place: the technology's `verifier` says who signed it,
`cloister.rats.binding` compares it with the session, the technology's `appraisal` and `cloister.rats.policy` judge it
by the owner's policy. `verify_evidence` raises and is what a service uses before it appraises; `examine_evidence`
answers all three and is what people and scripts use. Both walk the same checks. Pure: no clock, no device, no network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from cloister.errors import CloisterError, Refused, Unavailable
from cloister.rats.advisory import Advisory
from cloister.rats.binding import FRESHNESS, judge_binding, verify_binding
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import AuthenticEvidence, Evidence, ExpectedBinding
from cloister.rats.policy import AppraisalPolicy, appraise
from cloister.rats.reference import ReferenceEntry
from cloister.rats.result import (
    AttestationResult,
    Bound,
    Examination,
    Finding,
    Question,
    Severity,
    Unchecked,
    Verdict,
    VerifiedEvidence,
)
from cloister.tee.checklist import shorten
from cloister.tee.registry import (
    Authenticate,
    appraiser_for,
    authenticator_for,
    claims_reader_for,
    device_authenticator_for,
)


def verify_evidence(
    evidence: Evidence, binding: ExpectedBinding, endorsements: Endorsements, *, at: datetime
) -> VerifiedEvidence:
    """Return evidence that is authentic and bound.

    Args:
        evidence: as received.
        binding: what it must be bound to.
        endorsements: who may have signed it.
        at: aware time.

    Raises:
        FormatRefused: a part does not parse.
        EndorsementError: a vendor statement does not hold.
        EvidenceError: a signature, another check, or the binding does not hold; or no such technology.
        Unavailable: this build cannot verify the technology's evidence.
    """
    return verify_with(authenticator_for(evidence.tee), evidence, binding, endorsements, at=at)


def verify_with(
    authenticate: Authenticate,
    evidence: Evidence,
    binding: ExpectedBinding,
    endorsements: Endorsements,
    *,
    at: datetime,
) -> VerifiedEvidence:
    """Do what `verify_evidence` does, with a verifier given by hand."""
    authentic = authenticate(evidence, endorsements, at=at, session_secret=binding.session_secret)
    return _bound(authentic, verify_binding(authentic, binding))


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedDevice:
    """One device of evidence that holds several: authentic and bound; what its vendor says it may run."""

    kind: str
    verified: VerifiedEvidence
    references: tuple[ReferenceEntry, ...]


def verify_devices(
    evidence: Evidence, binding: ExpectedBinding, endorsements: Endorsements, *, at: datetime
) -> tuple[VerifiedDevice, ...]:
    """Return the devices of `evidence`, each authentic and bound to the same; at least one.

    Raises:
        FormatRefused, EndorsementError, EvidenceError: as `verify_evidence`, for any of them; also a technology of
            single devices.
    """
    found = device_authenticator_for(evidence.tee)(evidence, endorsements, at=at)
    return tuple(
        VerifiedDevice(
            kind=device.kind,
            verified=_bound(device.evidence, verify_binding(device.evidence, binding)),
            references=device.references,
        )
        for device in found
    )


def appraise_evidence(
    verified: VerifiedEvidence,
    policy: AppraisalPolicy,
    references: Sequence[ReferenceEntry] | Unchecked,
    *,
    init_data_digest: str,
    at: datetime,
    advisories: Sequence[Advisory] = (),
) -> AttestationResult:
    """Judge verified evidence by the owner's policy, the technology's own rules among it.

    Raises:
        Unavailable: the policy is in Rego (`rats.rego.unasked`): `cloister.tee.regopolicy` judges by such ones.
    """
    platform = appraiser_for(verified.claims.tee)(verified.facts, policy.rules, at=at)
    return appraise(
        verified,
        policy,
        references,
        init_data_digest=init_data_digest,
        at=at,
        platform=platform,
        advisories=advisories,
    )


def examine_evidence(
    evidence: Evidence,
    binding: ExpectedBinding,
    endorsements: Endorsements,
    policy: AppraisalPolicy,
    references: Sequence[ReferenceEntry] | Unchecked,
    *,
    at: datetime,
    advisories: Sequence[Advisory] = (),
) -> Examination:
    """Answer all three questions; a failure is a finding here, not an exception.

    Raises:
        EvidenceError: no such technology (`tee.unknown`).
    """
    return examine_with(
        authenticator_for(evidence.tee),
        evidence,
        binding,
        replace(endorsements, grace=policy.grace),
        lambda verified: appraise_evidence(
            verified, policy, references, init_data_digest="", at=at, advisories=advisories
        ),
        at=at,
    )


def examine_with(
    authenticate: Authenticate,
    evidence: Evidence,
    binding: ExpectedBinding,
    endorsements: Endorsements,
    judge: Callable[[VerifiedEvidence], AttestationResult],
    *,
    at: datetime,
) -> Examination:
    """Do what `examine_evidence` does, with verifier and judge given by hand."""
    try:
        authentic = authenticate(evidence, endorsements, at=at, session_secret=binding.session_secret)
    except (Refused, Unavailable) as err:
        return examination_of(err, binding, (*_unverified_binding(evidence, binding),))
    judged = judge_binding(authentic, binding)
    result = judge(_bound(authentic, judged))
    authenticity = [finding for finding in result.findings if finding.question is Question.AUTHENTIC]
    acceptability = [finding for finding in result.findings if finding.question is Question.ACCEPTABLE]
    return Examination(
        authentic=not (result.unsigned or any(finding.refuses or finding.unknown for finding in authenticity)),
        bound=_bound_word(judged),
        acceptable=not (
            result.unsigned or any(finding.refuses or finding.unknown or finding.lowers for finding in acceptability)
        ),
        verdict=result.verdict,
        findings=result.findings,
        claims=result.claims,
        unchecked=result.unchecked,
    )


def examination_of(err: CloisterError, binding: ExpectedBinding, others: Sequence[Finding] = ()) -> Examination:
    """Return the examination that ended with `err` before the evidence could be judged.

    An error of the family `Unavailable` leaves the verdict open: the verifier cannot tell, whatever the evidence is.
    Nothing is accepted on that ground.
    """
    return Examination(
        authentic=False,
        bound=Bound.NOT_REQUESTED if isinstance(binding.report_data, Unchecked) else Bound.NO,
        acceptable=False,
        verdict=Verdict.UNAVAILABLE if isinstance(err, Unavailable) else Verdict.REFUSE,
        findings=(_failure(err), *others),
        claims=None,
    )


def _bound(authentic: AuthenticEvidence, findings: Sequence[Finding]) -> VerifiedEvidence:
    return VerifiedEvidence(
        claims=authentic.claims,
        findings=(*authentic.findings, *findings),
        unchecked=authentic.unchecked,
        facts=authentic.facts,
    )


def _bound_word(findings: Sequence[Finding]) -> Bound:
    if any(finding.refuses for finding in findings):
        return Bound.NO
    fresh = any(finding.ok and finding.code == FRESHNESS for finding in findings)
    return Bound.YES if fresh else Bound.NOT_REQUESTED


def _unverified_binding(evidence: Evidence, binding: ExpectedBinding) -> Iterator[Finding]:
    """Say that evidence which is not authentic names another nonce besides: whoever looks for the cause wants both."""
    if isinstance(binding.report_data, Unchecked) or not binding.exact:
        return
    try:
        said = claims_reader_for(evidence.tee)(evidence).claims.report_data
    except CloisterError:
        return
    if said != binding.report_data:
        yield Finding(
            code=FRESHNESS,
            question=Question.BOUND,
            ok=False,
            message="the evidence names another nonce or key, whoever signed it",
            expected=shorten(binding.report_data),
            actual=shorten(said) or "empty",
            hint="evidence is good for one session only: start a new one",
        )


def _failure(err: CloisterError) -> Finding:
    return Finding(
        code=err.code,
        question=Question.AUTHENTIC,
        ok=False,
        severity=Severity.UNAVAILABLE if isinstance(err, Unavailable) else Severity.ERROR,
        message=err.message,
        expected=err.expected,
        actual=err.actual,
        hint=err.hint,
        path=err.path,
    )
