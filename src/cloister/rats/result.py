"""Findings, the trustworthiness vector (AR4SI) and the Attestation Result (EAR).

Appraisal collects every finding; the verdict is a function of the findings, so the explanation can never disagree
with it.
Sources: RFC 9334, draft-ietf-rats-ar4si (tiers and categories), draft-fv-rats-ear (claim names). The EAR written
here uses the claim names of CoCo's attestation service, so that relying parties written for it understand ours.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from cloister.rats.claims import Claims, Level

EAR_PROFILE: Final = "tag:cloister,2026:ear/1"


class Question(enum.StrEnum):
    """The three separate questions every appraisal answers."""

    AUTHENTIC = "authentic"
    BOUND = "bound"
    ACCEPTABLE = "acceptable"


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
    """

    code: str
    question: Question
    ok: bool
    message: str
    expected: str = ""
    actual: str = ""
    origin: str = ""
    hint: str = ""

    def as_dict(self) -> dict[str, Any]:  # Any: text and one boolean
        """Return the non-empty fields for JSON."""
        result: dict[str, Any] = {"code": self.code, "question": self.question.value, "ok": self.ok}
        for name in ("message", "expected", "actual", "origin", "hint"):
            if value := getattr(self, name):
                result[name] = value
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchecked:
    """A check that was deliberately not made. It must be written down; it is never a default."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedEvidence:
    """Evidence whose signature chain and binding were verified by a `cloister.tee.*.verifier`.

    Only verifiers construct it. `findings` holds every check they made, all of them `ok`: a verifier that finds a
    failure raises instead.
    """

    claims: Claims
    findings: tuple[Finding, ...]
    unchecked: tuple[Unchecked, ...] = ()


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
    """

    claims: Claims
    findings: tuple[Finding, ...]
    unchecked: tuple[Unchecked, ...]
    policy_id: str
    policy_digest: str
    init_data_digest: str
    issued_at: datetime
    expires_at: datetime

    @property
    def tier(self) -> Tier:
        """Affirming when every finding holds and each of the three questions was asked; contraindicated when one
        finding does not hold; none when a question was never asked: what was not checked is not proved."""
        if self.failures:
            return Tier.CONTRAINDICATED
        asked = {finding.question for finding in self.findings}
        return Tier.AFFIRMING if asked == set(Question) else Tier.NONE

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings that did not hold."""
        return tuple(finding for finding in self.findings if not finding.ok)


def trust_vector(findings: Sequence[Finding], level: Level) -> dict[str, int]:
    """Return the AR4SI vector for `findings`.

    `instance-identity`, `hardware` and `executables` follow the three questions; 2 is affirming, 96 contraindicated,
    0 says nothing because nothing was checked.
    A level other than `hardware` can never affirm `hardware`: it is 32 (warning), whatever the policy accepted.
    """

    def value(question: Question) -> int:
        answers = [finding.ok for finding in findings if finding.question is question]
        if not answers:
            return 0
        return 2 if all(answers) else 96

    hardware = value(Question.AUTHENTIC)
    if hardware == 2 and level is not Level.HARDWARE:
        hardware = 32
    return {
        "instance-identity": value(Question.BOUND),
        "hardware": hardware,
        "executables": value(Question.ACCEPTABLE),
    }


def encode_ear(result: AttestationResult, *, runtime_data: Mapping[str, Any], verifier: str) -> dict[str, Any]:
    """Return the EAR claims set (unsigned) of `result`; the caller signs it as a JWT.

    Args:
        result: the appraisal.
        runtime_data: nonce and TEE public key as the guest sent them; verified against the evidence.
        verifier: build name of the verifier.
    """
    return {
        "eat_profile": EAR_PROFILE,
        "iat": int(result.issued_at.timestamp()),
        "exp": int(result.expires_at.timestamp()),
        "iss": "cloister-verifier",
        "ear.verifier-id": {"developer": "https://github.com/cloister", "build": verifier},
        "submods": {
            "cpu0": {
                "ear.status": result.tier.value,
                "ear.trustworthiness-vector": trust_vector(result.findings, result.claims.level),
                "ear.appraisal-policy-id": result.policy_id,
                "ear.cloister.policy-digest": result.policy_digest,
                "ear.cloister.level": result.claims.level.value,
                "ear.cloister.findings": [finding.as_dict() for finding in result.findings],
                "ear.cloister.unchecked": [item.reason for item in result.unchecked],
                "ear.veraison.annotated-evidence": {
                    result.claims.tee: dict(result.claims.raw),
                    "report_data": result.claims.report_data.hex(),
                    "init_data": result.init_data_digest,
                    "runtime_data_claims": dict(runtime_data),
                },
            }
        },
    }
