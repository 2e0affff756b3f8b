"""The appraisal policy: strict text, hardware unless an `insecure_` field says otherwise, verdict by findings alone."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from cloister.errors import FormatRefused
from cloister.rats.claims import Claims, Level
from cloister.rats.policy import RESULT_LIFETIME, AppraisalPolicyWire, appraise, parse_appraisal_policy
from cloister.rats.reference import ReferenceEntry
from cloister.rats.result import Finding, Question, Severity, Tier, Unchecked, Verdict, VerifiedEvidence
from cloister.rats.rules import PlatformRules
from cloister.wire.limits import POLICY_BYTES

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
STRICT = {"version": 1, "id": "default", "tees": ["tpm", "snp"]}
PCR0 = bytes(32)

CLAIMS = Claims(
    tee="tpm",
    level=Level.HARDWARE,
    debug=False,
    registers={"pcr00": PCR0, "pcr08": bytes(range(32))},
    report_data=bytes(48),
    init_data=bytes(32),
    instance_id="chip-1",
    raw={"pcr00": PCR0.hex()},
)
REFERENCE = ReferenceEntry(
    id="podvm-1", tee="tpm", registers={"pcr00": PCR0}, not_after=NOW + timedelta(days=1), origin="podvm build 1"
)
VERIFIED = (
    Finding(code="tee.tpm.chain", question=Question.AUTHENTIC, ok=True, message="chain ends at a configured root"),
    Finding(code="tee.tpm.nonce", question=Question.BOUND, ok=True, message="nonce is the one issued"),
)


def policy(**changes: object) -> Any:
    return parse_appraisal_policy(json.dumps({**STRICT, **changes}).encode())


def judge(
    *, policy_fields: dict[str, Any] | None = None, references: tuple[ReferenceEntry, ...] = (REFERENCE,), **claims: Any
) -> Any:
    evidence = VerifiedEvidence(claims=replace(CLAIMS, **claims), findings=VERIFIED)
    return appraise(evidence, policy(**(policy_fields or {})), references, init_data_digest="sha256:00", at=NOW)


def codes(result: Any) -> list[str]:
    return [finding.code for finding in result.failures]


# --- text ---


def test_digest_names_the_exact_text() -> None:
    text = json.dumps(STRICT).encode()
    assert parse_appraisal_policy(text).digest == "sha256:" + hashlib.sha256(text).hexdigest()
    assert parse_appraisal_policy(text + b"\n").digest != parse_appraisal_policy(text).digest


def test_default_accepts_hardware_without_debug_and_nothing_else() -> None:
    assert policy().levels == {Level.HARDWARE}
    assert policy().accept_debug is False


def test_every_weakening_field_begins_with_insecure() -> None:
    """A field with a default that can be left out must be harmless to leave out; what weakens is greppable."""
    sections = {name: type(getattr(PlatformRules(), name)) for name in PlatformRules.__struct_fields__}
    optional = {name for name in AppraisalPolicyWire.__struct_fields__ if name not in {*STRICT, *sections}}
    # They weaken only what they name.
    stricter = {"advisories", "acknowledged_advisories", "collateral_grace_seconds", "rego"}
    assert {name for name in optional - stricter if not name.startswith("insecure_")} == set()
    switches = {
        name
        for section in sections.values()
        for name, value in msgspec.structs.asdict(section()).items()
        if name.startswith(("accept_", "allow_")) and value is False
    }
    assert switches == set()  # what a section accepts only on demand is called `insecure_accept_*`


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 0},
        {"version": 2},
        {"version": "1"},
        {"id": ""},
        {"id": None},
        {"tees": []},
        {"tees": "tpm"},
        {"tees": None},
        {"level": "measured"},
        {"accept_levels": ["measured"]},
        {"accept_debug": True},
        {"insecure_accept_level": ["measured"]},
        {"Insecure_accept_levels": ["measured"]},
        {"insecure_accept_levels": "measured"},
        {"insecure_accept_levels": ["Measured"]},
        {"insecure_accept_levels": ["anything"]},
        {"insecure_accept_debug": 1},
        {"insecure_accept_debug": "true"},
        {"reference_values": []},
        {"": 1},
    ],
    ids=str,
)
def test_other_policies_are_refused_whole(changes: dict[str, Any]) -> None:
    """A misspelt restriction must never silently be no restriction."""
    with pytest.raises(FormatRefused) as refusal:
        policy(**changes)
    assert refusal.value.code == "rats.policy.malformed"


@pytest.mark.parametrize("name", list(STRICT))
def test_required_fields_are_required(name: str) -> None:
    with pytest.raises(FormatRefused):
        parse_appraisal_policy(json.dumps({key: value for key, value in STRICT.items() if key != name}).encode())


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff",
        json.dumps(STRICT).encode() + b"x",
        b"[" * 100_000,
        b" " * POLICY_BYTES + b"{}",
    ],
    ids=["empty", "null", "list", "no fields", "not utf-8", "tail", "deep", "too long"],
)
def test_text_that_is_no_policy_is_refused(text: bytes) -> None:
    with pytest.raises(FormatRefused) as refusal:
        parse_appraisal_policy(text)
    assert refusal.value.code == "rats.policy.malformed"


# --- judgement ---


def test_acceptable_evidence_is_affirmed_and_nothing_fails() -> None:
    result = judge()
    assert result.tier is Tier.AFFIRMING
    assert result.failures == ()
    assert {finding.code for finding in result.findings} == {
        "tee.tpm.chain",
        "tee.tpm.nonce",
        "appraisal.technology",
        "appraisal.level",
        "appraisal.debug",
        "appraisal.reference_values",
    }


def test_result_names_policy_init_data_and_a_short_life() -> None:
    result = judge()
    assert (result.policy_id, result.policy_digest) == ("default", policy().digest)
    assert result.init_data_digest == "sha256:00"
    assert (result.issued_at, result.expires_at) == (NOW, NOW + RESULT_LIFETIME)
    assert timedelta() < RESULT_LIFETIME <= timedelta(minutes=5)


@pytest.mark.parametrize("level", [Level.MEASURED, Level.SIMULATED])
def test_weaker_levels_are_never_accepted_in_silence(level: Level) -> None:
    result = judge(level=level)
    assert result.tier is Tier.CONTRAINDICATED
    assert codes(result) == ["appraisal.level"]
    (finding,) = result.failures
    assert (finding.expected, finding.actual) == ("hardware", level.value)
    assert "insecure_accept_levels" in finding.hint


@pytest.mark.parametrize("accepted", [Level.MEASURED, Level.SIMULATED])
@pytest.mark.parametrize("level", list(Level))
def test_accepting_one_weaker_level_accepts_no_other(accepted: Level, level: Level) -> None:
    result = judge(policy_fields={"insecure_accept_levels": [accepted.value]}, level=level)
    assert (result.tier is Tier.AFFIRMING) == (level in (Level.HARDWARE, accepted))


@pytest.mark.parametrize(
    ("claims", "fields", "failing"),
    [
        ({"tee": "tdx"}, {}, ["appraisal.technology", "appraisal.reference_values.empty"]),
        ({"debug": True}, {}, ["appraisal.debug"]),
        ({"debug": True}, {"insecure_accept_debug": True}, []),
        ({"debug": True, "level": Level.SIMULATED}, {"insecure_accept_levels": ["simulated"]}, ["appraisal.debug"]),
        ({"registers": {"pcr00": bytes(31) + b"\1"}}, {}, ["appraisal.reference_values.pcr00"]),
        (
            {"tee": "tdx", "level": Level.SIMULATED, "debug": True},
            {},
            ["appraisal.technology", "appraisal.level", "appraisal.debug", "appraisal.reference_values.empty"],
        ),
    ],
)
def test_all_findings_are_collected(claims: dict[str, Any], fields: dict[str, Any], failing: list[str]) -> None:
    result = judge(policy_fields=fields, **claims)
    assert codes(result) == failing
    assert (result.tier is Tier.AFFIRMING) == (not failing)


def test_each_failure_says_expected_actual_origin_and_fix() -> None:
    result = judge(tee="tdx", level=Level.SIMULATED, debug=True)
    for finding in result.failures:
        assert finding.expected and finding.actual and finding.hint and finding.message
    for finding in result.failures[:3]:
        assert finding.origin == "appraisal policy default"


def test_no_reference_value_is_a_refusal() -> None:
    assert codes(judge(references=())) == ["appraisal.reference_values.empty"]


@pytest.mark.parametrize("missing", VERIFIED, ids=lambda finding: finding.question.value)
def test_a_question_that_no_verifier_asked_is_not_affirmed(missing: Finding) -> None:
    findings = tuple(finding for finding in VERIFIED if finding is not missing)
    evidence = VerifiedEvidence(claims=CLAIMS, findings=findings)
    result = appraise(evidence, policy(), (REFERENCE,), init_data_digest="sha256:00", at=NOW)
    assert result.failures == ()
    assert result.tier is Tier.NONE


def test_what_was_not_checked_is_kept() -> None:
    evidence = VerifiedEvidence(claims=CLAIMS, findings=(), unchecked=(Unchecked(reason="no CRL"),))
    result = appraise(evidence, policy(), (REFERENCE,), init_data_digest="sha256:00", at=NOW)
    assert result.unchecked == (Unchecked(reason="no CRL"),)


# --- what stayed open ---


def open_finding(code: str) -> Finding:
    return Finding(code=code, question=Question.AUTHENTIC, ok=False, message="not known", severity=Severity.UNAVAILABLE)


@pytest.mark.parametrize(
    ("code", "allowed", "verdict"),
    [
        ("tee.snp.revocation", False, Verdict.UNAVAILABLE),
        ("tee.snp.revocation", True, Verdict.ACCEPT),
        ("tee.dcap.collateral.missing", True, Verdict.UNAVAILABLE),  # a TCB nobody knows is no revocation
        ("tee.dcap.collateral.missing", False, Verdict.UNAVAILABLE),
    ],
)
def test_only_revocation_can_be_waived(code: str, allowed: bool, verdict: Verdict) -> None:
    evidence = VerifiedEvidence(claims=CLAIMS, findings=(*VERIFIED, open_finding(code)))
    given = policy(insecure_no_revocation=allowed)
    result = appraise(evidence, given, (REFERENCE,), init_data_digest="sha256:00", at=NOW)
    assert result.verdict is verdict
    waived = [finding for finding in result.findings if finding.severity is Severity.WARNING]
    assert bool(waived) == (verdict is Verdict.ACCEPT)


def test_toml_says_the_same_as_json() -> None:
    text = b'version = 1\nid = "default"\ntees = ["tpm", "snp"]\n[snp]\nvmpls = [0, 1]\nminimum_tcb = { snp = 23 }\n'
    parsed = parse_appraisal_policy(text)
    assert parsed.rules == policy(snp={"vmpls": [0, 1], "minimum_tcb": {"snp": 23}}).rules
    assert parsed.rules.snp.minimum_tcb == {"snp": 23}


@pytest.mark.parametrize(
    "change",
    [
        {"snp": {"vmpl": 0}},
        {"snp": {"vmpls": "0"}},
        {"tdx": {"insecure_everything": True}},
        {"collateral_grace_seconds": -1},
        {"collateral_grace_seconds": 10**9},
        {"advisories": "ignore"},
    ],
)
def test_a_section_is_as_strict_as_the_rest(change: dict[str, Any]) -> None:
    with pytest.raises(FormatRefused) as caught:
        policy(**change)
    assert caught.value.code == "rats.policy.malformed"
