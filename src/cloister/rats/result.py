"""Findings, and the verdicts that are functions of them: the Attestation Result and the answer to three questions.

Appraisal collects every finding; the verdict is a function of the findings, so the explanation can never disagree
with it. Sources: RFC 9334, draft-ietf-rats-ar4si (tiers).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from cloister.rats.claims import Claims

UNSIGNED: Final = "evidence.unsigned"  # code of the finding that says so
BY_REGO: Final = "appraisal.rego."  # begins the code of a finding that a Rego policy made
REFERENCED: Final = "appraisal.reference_values.init_data"  # code of the finding that reference values name init data


class Question(enum.StrEnum):
    """The three separate questions every appraisal answers."""

    AUTHENTIC = "authentic"
    BOUND = "bound"
    ACCEPTABLE = "acceptable"


class Severity(enum.StrEnum):
    """What a check that does not hold means for the verdict."""

    ERROR = "error"  # refuse
    WARNING = "warning"  # tell
    UNAVAILABLE = "unavailable"  # the answer cannot be known with what was given


_QUESTIONS: Final = frozenset(Question)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check, passed or failed, with the values it compared.

    Attributes:
        code: stable dotted code of the check; the same code whether it passed or failed.
        question: which of the three questions it belongs to.
        ok: whether it held.
        message: what was checked, lower case, no secret.
        expected: shortened expected value.
        actual: shortened found value.
        origin: where the expected value came from (a reference value id, a policy line, a standard's clause).
        hint: what to change when it failed.
        path: place in the evidence or the collateral.
        severity: what it means when it did not hold.
    """

    code: str
    question: Question
    ok: bool
    message: str
    expected: str = ""
    actual: str = ""
    origin: str = ""
    hint: str = ""
    path: str = ""
    severity: Severity = Severity.ERROR

    @property
    def refuses(self) -> bool:
        """Whether this finding alone makes the verdict a refusal."""
        return not self.ok and self.severity is Severity.ERROR

    @property
    def unknown(self) -> bool:
        """Whether this finding leaves the verdict open."""
        return not self.ok and self.severity is Severity.UNAVAILABLE

    @property
    def lowers(self) -> bool:
        """Whether this finding alone lowers the tier to a warning: so says a Rego policy, in AR4SI's words."""
        return not self.ok and self.severity is Severity.WARNING and self.code.startswith(BY_REGO)

    def as_dict(self) -> dict[str, Any]:  # Any: text and one boolean
        """Return the non-empty fields for JSON; `severity` only where the check did not hold."""
        result: dict[str, Any] = {"code": self.code, "question": str(self.question), "ok": self.ok}
        if not self.ok:
            result["severity"] = str(self.severity)
        # One by one, not in a loop over names: a result has some twenty findings, each written twice.
        if self.path:
            result["path"] = self.path
        if self.message:
            result["message"] = self.message
        if self.expected:
            result["expected"] = self.expected
        if self.actual:
            result["actual"] = self.actual
        if self.origin:
            result["origin"] = self.origin
        if self.hint:
            result["hint"] = self.hint
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchecked:
    """A check that was deliberately not made. It must be written down; it is never a default."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedEvidence:
    """Evidence whose signature chain and binding were verified.

    Only `cloister.tee.verification` constructs it. `findings` holds every check that was made; none of them refuses,
    because a check that does raises instead. Revocation that could not be judged is among them as unavailable.

    Attributes:
        claims: what it says.
        findings: checks of authenticity and binding.
        unchecked: what was deliberately not checked.
        facts: what the technology's own appraisal rules judge, typed by its package.
    """

    claims: Claims
    findings: tuple[Finding, ...]
    unchecked: tuple[Unchecked, ...] = ()
    facts: object = None

    @property
    def unsigned(self) -> bool:
        """Whether nobody signed it: then it proves nothing, and nothing about it can be affirmed."""
        return any(finding.code == UNSIGNED for finding in self.findings)


class Verdict(enum.StrEnum):
    """What an appraisal comes to."""

    ACCEPT = "accept"
    REFUSE = "refuse"
    UNAVAILABLE = "unavailable"


class Bound(enum.StrEnum):
    """Whether evidence belongs to the session it is shown in."""

    YES = "yes"
    NO = "no"
    NOT_REQUESTED = "not requested"


class Tier(enum.StrEnum):
    """AR4SI trustworthiness tier."""

    NONE = "none"
    AFFIRMING = "affirming"
    WARNING = "warning"
    CONTRAINDICATED = "contraindicated"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationResult:
    """The verdict on one piece of evidence under one appraisal policy.

    Attributes:
        claims: the verified claims.
        findings: all findings, of verification and of appraisal.
        unchecked: what was deliberately not checked.
        policy_id: name of the appraisal policy.
        policy_digest: `sha256:` of the policy text that was applied.
        init_data_digest: `sha256:` of the init data that the evidence binds.
        issued_at: aware UTC.
        expires_at: aware UTC.
        vector: AR4SI trustworthiness vector that a Rego policy gave; None where no Rego policy judged.
        extensions: further members for the result by name, of a Rego policy; JSON.
    """

    claims: Claims
    findings: tuple[Finding, ...]
    unchecked: tuple[Unchecked, ...]
    policy_id: str
    policy_digest: str
    init_data_digest: str
    issued_at: datetime
    expires_at: datetime
    vector: Mapping[str, int] | None = None
    extensions: Mapping[str, Any] = field(default_factory=dict)  # Any: JSON

    @property
    def tier(self) -> Tier:
        """Affirming when no finding refuses and each of the three questions was asked; contraindicated when one
        refuses; a warning for evidence that nobody signed, and where a Rego policy warns; none when a question was
        never asked or stays open: what was not checked is not proved."""
        asked: set[Question] = set()
        open_questions = warned = False
        for finding in self.findings:
            if not finding.ok and finding.severity is Severity.ERROR:
                return Tier.CONTRAINDICATED
            if not finding.ok and finding.severity is Severity.UNAVAILABLE:
                open_questions = True
            else:
                asked.add(finding.question)
            warned = warned or finding.code == UNSIGNED or finding.lowers
        if warned:
            return Tier.NONE if open_questions else Tier.WARNING
        return Tier.AFFIRMING if asked == _QUESTIONS and not open_questions else Tier.NONE

    @property
    def unsigned(self) -> bool:
        """Whether nobody signed the evidence."""
        return any(finding.code == UNSIGNED for finding in self.findings)

    @property
    def lowered(self) -> bool:
        """Whether a Rego policy warns."""
        return any(finding.lowers for finding in self.findings)

    @property
    def init_data_referenced(self) -> bool:
        """Whether the reference values that the evidence matched name its init data, too."""
        return any(finding.code == REFERENCED and finding.ok for finding in self.findings)

    @property
    def verdict(self) -> Verdict:
        """Unavailable while authenticity or another question stays open, else a refusal when a finding refuses, or
        nobody signed the evidence, or a Rego policy warns."""
        if any(finding.unknown for finding in self.findings):
            return Verdict.UNAVAILABLE
        return Verdict.REFUSE if self.failures or self.unsigned or self.lowered else Verdict.ACCEPT

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings that refuse."""
        return tuple(finding for finding in self.findings if finding.refuses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """The three answers about one piece of evidence, with everything that led to them.

    Attributes:
        authentic: signed by whom the roots vouch for, and not revoked; false also while that stays open.
        bound: whether it belongs to the session; what is not authentic is bound to nothing.
        acceptable: whether the policy accepts it; false for evidence that is not authentic.
        verdict: what it comes to.
        findings: all of them; of evidence that is not authentic, the one that says why.
        claims: None for evidence that is not authentic.
        unchecked: what was deliberately not checked.
        form: what the evidence was found as (`raw report`, `JSON of ...`), where it came from a file.
    """

    authentic: bool
    bound: Bound
    acceptable: bool
    verdict: Verdict
    findings: tuple[Finding, ...]
    claims: Claims | None
    unchecked: tuple[Unchecked, ...] = ()
    form: str = ""
