"""EAR: names relying parties know, a level that cannot be lost, a vector that says no more than was checked."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cloister.errors import FormatRefused
from cloister.rats.claims import Claims, Level
from cloister.rats.ear import EAR_PROFILE, SUBMODULES, decode_ear, encode_ear, trust_vector
from cloister.rats.result import AttestationResult, Finding, Question, Severity, Tier, Unchecked

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def finding(question: Question, ok: bool, code: str = "c", severity: Severity = Severity.ERROR) -> Finding:
    return Finding(code=code, question=question, ok=ok, message="m", severity=severity)


ALL_GOOD = (
    *(finding(question, True) for question in Question),
    finding(Question.ACCEPTABLE, True, "appraisal.reference_values"),
)


def result(*findings: Finding, level: Level = Level.HARDWARE, tee: str = "tpm") -> AttestationResult:
    claims = Claims(
        tee=tee,
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


def encode(**results: AttestationResult) -> dict[str, Any]:
    encoded = encode_ear(results, runtime_data={"nonce": "n"}, verifier="cloister 0.1", identity="a-1")
    parsed: dict[str, Any] = json.loads(json.dumps(encoded))
    return parsed


@pytest.mark.parametrize("oks", list(itertools.product([True, False], repeat=4)))
@pytest.mark.parametrize("level", list(Level))
def test_trust_vector(level: Level, oks: tuple[bool, bool, bool, bool]) -> None:
    authentic, bound, configured, executable = oks
    findings = [
        finding(Question.AUTHENTIC, authentic),
        finding(Question.BOUND, bound),
        finding(Question.ACCEPTABLE, configured, "appraisal.debug"),
        finding(Question.ACCEPTABLE, executable, "appraisal.reference_values.pcr00"),
    ]
    good_hardware = 2 if level is Level.HARDWARE else 32
    assert trust_vector(findings, level) == {
        "instance-identity": 2 if bound else 96,
        "configuration": 2 if configured else 96,
        "executables": 2 if executable else 96,
        "hardware": good_hardware if authentic else 96,
    }


@pytest.mark.parametrize(
    ("severity", "value"), [(Severity.WARNING, 32), (Severity.UNAVAILABLE, 0), (Severity.ERROR, 96)]
)
def test_vector_of_a_check_that_did_not_hold(severity: Severity, value: int) -> None:
    findings = [finding(Question.AUTHENTIC, True), finding(Question.AUTHENTIC, False, severity=severity)]
    assert trust_vector(findings, Level.HARDWARE)["hardware"] == value


@pytest.mark.parametrize("level", list(Level))
def test_vector_of_nothing_affirms_nothing(level: Level) -> None:
    assert 2 not in trust_vector([], level).values()


@pytest.mark.parametrize("level", list(Level))
def test_ear_says_level_findings_and_what_was_not_checked(level: Level) -> None:
    ear = encode(cpu0=result(*ALL_GOOD, level=level))
    assert ear["eat_profile"] == EAR_PROFILE
    assert ear["exp"] - ear["iat"] == 300
    module = ear["submods"]["cpu0"]
    assert module["ear.cloister.level"] == level.value
    assert module["ear.status"] == "affirming"
    assert len(module["ear.cloister.findings"]) == 4
    assert module["ear.cloister.unchecked"] == ["no revocation list"]
    assert module["ear.appraisal-policy-id"] == "default"
    evidence = module["ear.veraison.annotated-evidence"]
    assert evidence["tpm"] == {"pcr00": "00"}
    assert (evidence["report_data"], evidence["init_data"]) == ("01" * 48, "sha256:bb")
    assert evidence["runtime_data_claims"] == {"nonce": "n"}


def test_what_was_encoded_is_decoded() -> None:
    bad = finding(Question.BOUND, False, "x", Severity.WARNING)
    decoded = decode_ear(encode(cpu0=result(*ALL_GOOD, bad), gpu0=result(*ALL_GOOD, tee="nvidia")))
    assert (decoded.identity, decoded.issued_at, decoded.expires_at) == ("a-1", NOW, NOW + timedelta(minutes=5))
    assert [item.tee for item in decoded.submodules.values()] == ["tpm", "nvidia"]
    primary = decoded.primary
    assert (primary.level, primary.status, primary.policy_digest) == (Level.HARDWARE, Tier.AFFIRMING, "sha256:aa")
    assert primary.vector["instance-identity"] == 32
    assert [(item.code, item.severity) for item in primary.findings if not item.ok] == [("x", Severity.WARNING)]
    assert decoded.status is Tier.AFFIRMING and primary.failures == ()


def test_the_worst_device_decides() -> None:
    refused = replace(result(*ALL_GOOD, tee="nvidia"), findings=(*ALL_GOOD, finding(Question.ACCEPTABLE, False)))
    decoded = decode_ear(encode(cpu0=result(*ALL_GOOD), gpu0=result(*ALL_GOOD, tee="nvidia"), gpu1=refused))
    assert decoded.status is Tier.CONTRAINDICATED
    assert decoded.primary.status is Tier.AFFIRMING


CPU = "cpu0"
EVIDENCE = "ear.veraison.annotated-evidence"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda ear: ear.update(eat_profile="tag:other"), "rats.ear.malformed"),
        (lambda ear: ear.update(iat="today"), "rats.ear.malformed"),
        (lambda ear: ear.update(exp=2**62), "rats.ear.malformed"),
        (lambda ear: ear["submods"].update(gpu0=ear["submods"].pop(CPU)), "rats.ear.malformed"),
        (
            lambda ear: ear["submods"].update({f"gpu{n}": ear["submods"][CPU] for n in range(SUBMODULES)}),
            "rats.ear.malformed",
        ),
        (lambda ear: ear["submods"][CPU][EVIDENCE].pop("tpm"), "rats.ear.malformed"),
        (lambda ear: ear["submods"][CPU][EVIDENCE].update(snp={}), "rats.ear.malformed"),
        (lambda ear: ear["submods"][CPU][EVIDENCE].pop("init_data"), "rats.ear.malformed"),
        (lambda ear: ear["submods"][CPU].update({"ear.status": "fine"}), "rats.ear.malformed"),
        (lambda ear: ear["submods"][CPU].update({"ear.status": "contraindicated"}), "rats.ear.inconsistent"),
        (lambda ear: ear["submods"][CPU]["ear.cloister.findings"].clear(), "rats.ear.inconsistent"),
        (lambda ear: ear["submods"][CPU]["ear.cloister.findings"][0].update(ok=False), "rats.ear.inconsistent"),
    ],
)
def test_what_is_no_result_is_refused(change: Callable[[dict[str, Any]], object], code: str) -> None:
    ear = encode(cpu0=result(*ALL_GOOD))
    decode_ear(ear)
    change(ear)
    with pytest.raises(FormatRefused) as caught:
        decode_ear(ear)
    assert caught.value.code == code
