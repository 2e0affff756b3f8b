"""CoCo's sample TEE: read strictly, believed in nothing, and never better than a warning."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import EvidenceError, FormatRefused
from cloister.rats.claims import Level
from cloister.rats.ear import PRIMARY, decode_ear, encode_ear
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import Evidence, ExpectedBinding
from cloister.rats.policy import parse_appraisal_policy
from cloister.rats.result import AttestationResult, Severity, Tier, Unchecked, Verdict
from cloister.tee.builtinpolicy import BUILTIN_DIGEST, BUILTIN_TEXT, builtin_policy
from cloister.tee.insecure.sample.attester import SampleAttester
from cloister.tee.insecure.sample.verifier import authenticate, read_claims
from cloister.tee.registry import TECHNOLOGIES, reader_for
from cloister.tee.verification import appraise_evidence, examine_evidence, verify_evidence

NOW = datetime(2026, 11, 24, tzinfo=UTC)
BOUND = bytes(range(48))
DIGEST = b"\x07" * 32
NOTHING = Endorsements(roots=())
NONE_SENT = Unchecked(reason="none sent")
ACCEPTS = b'{"version":1,"id":"x","tees":["sample"],"insecure_accept_levels":["simulated"]}'


def evidence(**changes: Any) -> Evidence:
    return Evidence(tee="sample", body={**SampleAttester().attest(BOUND), **changes})


def binding(report_data: bytes = BOUND, digest: bytes | Unchecked = NONE_SENT) -> ExpectedBinding:
    return ExpectedBinding(report_data=report_data, init_data_digest=digest)


def judged(policy: bytes, given: Evidence | None = None, digest: bytes | Unchecked = NONE_SENT) -> AttestationResult:
    verified = verify_evidence(given or evidence(), binding(digest=digest), NOTHING, at=NOW)
    return appraise_evidence(verified, parse_appraisal_policy(policy), (), init_data_digest="", at=NOW)


def test_the_claims_are_those_of_cocos_verifier() -> None:
    claims = read_claims(evidence()).claims
    assert claims.level is Level.SIMULATED and claims.instance_id == "" and claims.registers == {}
    assert claims.raw == {
        "svn": "1",
        "report_data": base64.b64encode(BOUND).decode(),
        "launch_digest": "abcde",
        "platform_version": {"major": 1, "minor": 4},
        "debug": False,
    }


def test_that_nobody_signed_it_is_a_warning() -> None:
    found = authenticate(evidence(), NOTHING, at=NOW)
    [finding] = found.findings
    assert (finding.code, finding.ok, finding.severity) == ("evidence.unsigned", False, Severity.WARNING)
    assert "unsigned" in found.unchecked[0].reason


@pytest.mark.parametrize("policy", [BUILTIN_TEXT, ACCEPTS, b'{"version":1,"id":"y","tees":["tpm"]}'])
def test_no_policy_makes_it_affirming_and_none_refuses_it(policy: bytes) -> None:
    result = judged(policy)
    assert result.tier is Tier.WARNING and result.failures == ()
    ear = encode_ear({PRIMARY: result}, runtime_data={}, verifier="t", identity="i")
    submodule = decode_ear(ear).primary
    assert submodule.status is Tier.WARNING and submodule.level is Level.SIMULATED
    assert submodule.vector["hardware"] == submodule.vector["executables"] == 32


def test_what_a_policy_says_of_it_is_told() -> None:
    told = {finding.code for finding in judged(BUILTIN_TEXT).findings if not finding.ok}
    assert {"evidence.unsigned", "appraisal.level", "appraisal.reference_values.empty"} <= told


def test_signed_evidence_is_refused_for_the_same_faults() -> None:
    """The leniency is of unsigned evidence alone."""
    from dataclasses import replace

    verified = verify_evidence(evidence(), binding(), NOTHING, at=NOW)
    signed = replace(verified, findings=tuple(item for item in verified.findings if item.code != "evidence.unsigned"))
    result = appraise_evidence(signed, builtin_policy(), (), init_data_digest="", at=NOW)
    assert result.tier is Tier.CONTRAINDICATED


@pytest.mark.parametrize("other", [bytes(48), BOUND[:47], BOUND + b"\0", b""])
def test_report_data_is_compared_whole(other: bytes) -> None:
    with pytest.raises(EvidenceError) as caught:
        verify_evidence(evidence(), binding(report_data=other), NOTHING, at=NOW)
    assert caught.value.code.startswith("evidence.freshness")


def test_init_data_that_it_names_must_be_the_one_sent() -> None:
    named = evidence(init_data=base64.b64encode(DIGEST).decode())
    assert judged(BUILTIN_TEXT, named, DIGEST).tier is Tier.WARNING
    with pytest.raises(EvidenceError) as caught:
        judged(BUILTIN_TEXT, named, bytes(32))
    assert caught.value.code == "evidence.init_data"


@pytest.mark.parametrize("body", [{}, {"init_data": None}, {"init_data": ""}])
def test_without_init_data_that_is_said(body: dict[str, Any]) -> None:
    codes = {finding.code for finding in judged(BUILTIN_TEXT, evidence(**body), DIGEST).findings}
    assert "evidence.init_data.not_requested" in codes


@pytest.mark.parametrize(
    "changes",
    [
        {"svn": 1},
        {"svn": None},
        {"svn": "x" * 65},
        {"report_data": None},
        {"report_data": "%"},
        {"report_data": base64.b64encode(bytes(65)).decode()},
        {"init_data": base64.b64encode(bytes(65)).decode()},
        {"init_data": 3},
        {"signature": "x"},
    ],
)
def test_malformed_evidence_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatRefused) as caught:
        authenticate(evidence(**changes), NOTHING, at=NOW)
    assert caught.value.code == "tee.insecure.malformed"


def test_evidence_of_another_technology_is_refused() -> None:
    with pytest.raises(EvidenceError):
        authenticate(Evidence(tee="snp", body=evidence().body), NOTHING, at=NOW)


def test_an_examination_does_not_accept_it() -> None:
    answer = examine_evidence(evidence(), binding(), NOTHING, builtin_policy(), (), at=NOW)
    assert answer.verdict is Verdict.REFUSE and not answer.authentic and not answer.acceptable
    assert reader_for("sample")(b'{"svn":"1","report_data":""}', tee="sample").body["svn"] == "1"


def test_the_built_in_policy_is_about_every_technology_and_accepts_hardware_only() -> None:
    policy = builtin_policy()
    assert policy.tees == set(TECHNOLOGIES) and policy.levels == {Level.HARDWARE}
    assert not policy.accept_debug and not policy.accept_unchecked_revocation


def test_its_digest_is_the_published_one(repository: Path) -> None:
    assert BUILTIN_DIGEST in (repository / "docs/reference/kbs-api.md").read_text("utf-8")
