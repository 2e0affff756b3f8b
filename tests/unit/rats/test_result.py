"""The Attestation Result: verdict by findings alone, a level that cannot be lost, names relying parties know."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime, timedelta

import pytest

from cloister.rats.claims import LEVEL_MEANING, Claims, Level
from cloister.rats.result import (
    AttestationResult,
    Finding,
    Question,
    Severity,
    Tier,
    Unchecked,
    Verdict,
)

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def finding(question: Question, ok: bool, code: str = "c") -> Finding:
    return Finding(code=code, question=question, ok=ok, message="m")


def result(*findings: Finding, level: Level = Level.HARDWARE) -> AttestationResult:
    claims = Claims(
        tee="tpm",
        level=level,
        debug=False,
        registers={},
        report_data=b"\1" * 48,
        init_data=b"",
        instance_id="i",
        raw={"pcr00": "00"},
    )
    return AttestationResult(
        claims=claims,
        findings=findings,
        unchecked=(Unchecked(reason="no revocation list"),),
        policy_id="default",
        policy_digest="sha256:aa",
        init_data_digest="sha256:bb",
        issued_at=NOW,
        expires_at=NOW + timedelta(minutes=5),
    )


ALL_GOOD = tuple(finding(question, True) for question in Question)


def test_one_failed_finding_is_a_refusal() -> None:
    for position in range(4):
        findings = [*ALL_GOOD]
        findings.insert(position, finding(Question.ACCEPTABLE, False, "bad"))
        judged = result(*findings)
        assert judged.tier is Tier.CONTRAINDICATED
        assert [item.code for item in judged.failures] == ["bad"]


def test_all_findings_hold_is_affirming() -> None:
    assert result(*ALL_GOOD).tier is Tier.AFFIRMING


def test_no_finding_at_all_is_not_affirming() -> None:
    """Fail closed: nothing checked is nothing proved."""
    assert result().tier is not Tier.AFFIRMING


def test_a_result_cannot_be_edited() -> None:
    with pytest.raises(FrozenInstanceError):
        result(*ALL_GOOD).policy_id = "other"  # type: ignore[misc]  # the point of the test


def test_a_warning_does_not_refuse_and_an_open_question_is_not_affirming() -> None:
    warning = replace(finding(Question.ACCEPTABLE, False), severity=Severity.WARNING)
    unknown = replace(finding(Question.AUTHENTIC, False), severity=Severity.UNAVAILABLE)
    assert (result(*ALL_GOOD, warning).tier, result(*ALL_GOOD, warning).verdict) == (Tier.AFFIRMING, Verdict.ACCEPT)
    assert (result(*ALL_GOOD, unknown).tier, result(*ALL_GOOD, unknown).verdict) == (Tier.NONE, Verdict.UNAVAILABLE)
    bad = result(*ALL_GOOD, unknown, finding(Question.BOUND, False))
    assert (bad.tier, bad.verdict) == (Tier.CONTRAINDICATED, Verdict.UNAVAILABLE)
    assert result(*ALL_GOOD, finding(Question.BOUND, False)).verdict is Verdict.REFUSE


def test_finding_leaves_empty_fields_out() -> None:
    assert finding(Question.BOUND, False).as_dict() == {
        "code": "c",
        "question": "bound",
        "ok": False,
        "severity": "error",
        "message": "m",
    }


def test_every_level_has_its_meaning_in_words() -> None:
    assert set(LEVEL_MEANING) == set(Level)
    assert "root" in LEVEL_MEANING[Level.MEASURED]
    assert "protects nothing" in LEVEL_MEANING[Level.SIMULATED]
