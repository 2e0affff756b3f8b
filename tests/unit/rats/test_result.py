"""The Attestation Result: verdict by findings alone, a level that cannot be lost, names relying parties know."""

from __future__ import annotations

import itertools
import json
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta

import pytest

from cloister.rats.claims import LEVEL_MEANING, Claims, Level
from cloister.rats.result import (
    EAR_PROFILE,
    AttestationResult,
    Finding,
    Question,
    Tier,
    Unchecked,
    encode_ear,
    trust_vector,
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


@pytest.mark.parametrize("oks", list(itertools.product([True, False], repeat=3)))
@pytest.mark.parametrize("level", list(Level))
def test_trust_vector(level: Level, oks: tuple[bool, bool, bool]) -> None:
    authentic, bound, acceptable = oks
    findings = [
        finding(Question.AUTHENTIC, authentic),
        finding(Question.BOUND, bound),
        finding(Question.ACCEPTABLE, acceptable),
    ]
    good_hardware = 2 if level is Level.HARDWARE else 32
    assert trust_vector(findings, level) == {
        "instance-identity": 2 if bound else 96,
        "hardware": good_hardware if authentic else 96,
        "executables": 2 if acceptable else 96,
    }


@pytest.mark.parametrize("level", list(Level))
def test_vector_of_nothing_affirms_nothing(level: Level) -> None:
    assert 2 not in trust_vector([], level).values()


def test_finding_leaves_empty_fields_out() -> None:
    assert finding(Question.BOUND, False).as_dict() == {
        "code": "c",
        "question": "bound",
        "ok": False,
        "severity": "error",
        "message": "m",
    }


@pytest.mark.parametrize("level", list(Level))
def test_ear_says_level_findings_and_what_was_not_checked(level: Level) -> None:
    ear = encode_ear(result(*ALL_GOOD, level=level), runtime_data={"nonce": "n"}, verifier="cloister 0.1")
    assert ear["eat_profile"] == EAR_PROFILE
    assert ear["exp"] - ear["iat"] == 300
    module = ear["submods"]["cpu0"]
    assert module["ear.cloister.level"] == level.value
    assert module["ear.status"] == "affirming"
    assert len(module["ear.cloister.findings"]) == 3
    assert module["ear.cloister.unchecked"] == ["no revocation list"]
    assert module["ear.appraisal-policy-id"] == "default"
    evidence = module["ear.veraison.annotated-evidence"]
    assert evidence["tpm"] == {"pcr00": "00"}
    assert (evidence["report_data"], evidence["init_data"]) == ("01" * 48, "sha256:bb")
    assert evidence["runtime_data_claims"] == {"nonce": "n"}
    json.dumps(ear)


def test_ear_of_a_refusal_says_so() -> None:
    ear = encode_ear(result(*ALL_GOOD, finding(Question.BOUND, False)), runtime_data={}, verifier="v")
    assert ear["submods"]["cpu0"]["ear.status"] == "contraindicated"


def test_every_level_has_its_meaning_in_words() -> None:
    assert set(LEVEL_MEANING) == set(Level)
    assert "root" in LEVEL_MEANING[Level.MEASURED]
    assert "protects nothing" in LEVEL_MEANING[Level.SIMULATED]
