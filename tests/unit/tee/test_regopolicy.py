"""Rego appraisal policies: what CoCo's service accepts is accepted, its blind spots are not, and errors refuse."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from cloister.errors import FormatRefused, Unavailable
from cloister.rats.claims import Claims, Level
from cloister.rats.policy import AppraisalPolicy
from cloister.rats.result import AttestationResult, Finding, Question, Severity, Verdict, VerifiedEvidence
from cloister.tee.regopolicy import appraise_with_rego, looks_like_rego, parse_rego_policy

NOW = datetime(2026, 11, 26, tzinfo=UTC)

# The constructs that CoCo's shipped policies are made of: defaults that a rule raises, `else`, membership in reference
# values, names with hyphens, comprehensions over event logs, and an `extensions` rule beside the vector.
POLICY = """# owner's policy
package policy

import rego.v1

default executables := 33

default hardware := 97

default configuration := 36

default file_system := 0

trust_claims := {
	"executables": executables,
	"hardware": hardware,
	"configuration": configuration,
	"file-system": file_system,
	"instance-identity": 0,
}

executables := 3 if {
	input.snp
	input.snp.measurement in query_reference_value("snp_launch_measurement")
}

hardware := 2 if {
	input.snp
	input.snp.reported_tcb_snp in query_reference_value("snp_snp_svn")
}

configuration := 2 if {
	input.snp
	input.snp.policy_debug_allowed == false
	input.snp.policy_smt_allowed == query_reference_value("snp_smt_allowed")
} else := 3 if {
	input.snp
	input.snp.policy_debug_allowed == false
}

executables := 3 if {
	input["az-snp-vtpm"]
	input["az-snp-vtpm"].measurement in query_reference_value("measurement")
	event_ok
}

hardware := 2 if {
	input["az-snp-vtpm"]
}

configuration := 2 if {
	input["az-snp-vtpm"]
}

event_ok if {
	event := input["az-snp-vtpm"].uefi_event_logs[_]
	event.type_name == "EV_EVENT_TAG"
	digest := event.digests[_]
	digest.digest == query_reference_value("kernelparams")
}

extensions := [{"name": "x", "key": -18, "value": {"validated": object.union_n([images, {}])}}]

images := {"container_images": [name | name := input["init_data_claims"]["images"][_]]}
"""
VALUES = {"snp_launch_measurement": ["ab" * 48], "snp_snp_svn": [22, 23], "measurement": ["cd"], "kernelparams": "ee"}
OLD_POLICY = """package policy
import rego.v1
default executables := 33
executables := 3 if { input.snp.measurement in data.reference.launch }
trust_claims := {"executables": executables, "hardware": 2}
"""

RAW = {
    "measurement": "ab" * 48,
    "reported_tcb_snp": 23,
    "policy_debug_allowed": False,
    "policy_smt_allowed": True,
}
EVIDENCE = VerifiedEvidence(
    claims=Claims(
        tee="snp",
        level=Level.HARDWARE,
        debug=False,
        registers={},
        report_data=bytes(64),
        init_data=bytes(32),
        instance_id="chip",
        raw=RAW,
    ),
    findings=(
        Finding(code="tee.sev_snp.signature", question=Question.AUTHENTIC, ok=True, message="signed"),
        Finding(code="evidence.freshness", question=Question.BOUND, ok=True, message="bound"),
    ),
)
BASE = AppraisalPolicy(
    id="base",
    tees=frozenset({"snp", "az-snp-vtpm"}),
    levels=frozenset({Level.HARDWARE}),
    accept_debug=False,
    digest="",
)


def judge(
    *,
    text: str = POLICY,
    values: dict[str, Any] | None = None,
    evidence: VerifiedEvidence = EVIDENCE,
    **claims: Any,
) -> AttestationResult:
    policy = parse_rego_policy(text.encode(), json.dumps(VALUES if values is None else values).encode())
    evidence = replace(evidence, claims=replace(evidence.claims, **claims))
    return appraise_with_rego(evidence, policy, BASE, init_data_digest="sha256:00", at=NOW, input_claims={})


def failed(result: AttestationResult) -> set[str]:
    return {finding.code for finding in result.findings if finding.refuses or finding.lowers}


def test_a_policy_written_for_coco_accepts() -> None:
    result = judge()
    assert (result.verdict, failed(result)) == (Verdict.ACCEPT, set())
    told = {finding.code: finding.actual for finding in result.findings if finding.code.startswith("appraisal.rego.")}
    assert told == {
        "appraisal.rego.executables": "3",
        "appraisal.rego.hardware": "2",
        "appraisal.rego.configuration": "3",
    }


def test_reference_values_raise_a_claim() -> None:
    told = {finding.code: finding.actual for finding in judge(values={**VALUES, "snp_smt_allowed": True}).findings}
    assert told["appraisal.rego.configuration"] == "2"


@pytest.mark.parametrize(
    ("values", "changes", "codes"),
    [
        ({}, {}, {"appraisal.rego.executables", "appraisal.rego.hardware"}),
        ({**VALUES, "snp_launch_measurement": ["00"]}, {}, {"appraisal.rego.executables"}),
        ({**VALUES, "snp_snp_svn": 23}, {}, {"appraisal.rego.hardware"}),  # not a list: matches nothing, and says so
        (VALUES, {"raw": {**RAW, "reported_tcb_snp": 9}}, {"appraisal.rego.hardware"}),
        (VALUES, {"raw": {**RAW, "policy_debug_allowed": True}}, {"appraisal.rego.configuration"}),
        (VALUES, {"debug": True}, {"appraisal.debug"}),
        (VALUES, {"level": Level.SIMULATED}, {"appraisal.level"}),
        (
            VALUES,
            {"raw": {}},
            {"appraisal.rego.executables", "appraisal.rego.hardware", "appraisal.rego.configuration"},
        ),
    ],
)
def test_what_does_not_hold_refuses(values: dict[str, Any], changes: dict[str, Any], codes: set[str]) -> None:
    result = judge(values=values, **changes)
    assert (result.verdict, failed(result)) == (Verdict.REFUSE, codes)


def test_debug_that_the_shipped_azure_policy_forgets_is_refused() -> None:
    raw = {"measurement": "cd", "uefi_event_logs": [{"type_name": "EV_EVENT_TAG", "digests": [{"digest": "ee"}]}]}
    good = judge(tee="az-snp-vtpm", raw=raw)
    assert good.verdict is Verdict.ACCEPT
    assert failed(judge(tee="az-snp-vtpm", raw=raw, debug=True)) == {"appraisal.debug"}
    raw["uefi_event_logs"] = []
    assert failed(judge(tee="az-snp-vtpm", raw=raw)) == {"appraisal.rego.executables"}


def test_revocation_that_is_not_known_stays_open() -> None:
    unknown = Finding(
        code="tee.sev_snp.revocation", question=Question.AUTHENTIC, ok=False, message="?", severity=Severity.UNAVAILABLE
    )
    evidence = replace(EVIDENCE, findings=(*EVIDENCE.findings, unknown))
    assert judge(evidence=evidence).verdict is Verdict.UNAVAILABLE


def test_an_older_policy_reads_its_values_from_data() -> None:
    assert judge(text=OLD_POLICY, values={"launch": ["ab" * 48]}).verdict is Verdict.ACCEPT
    assert failed(judge(text=OLD_POLICY, values={"launch": []})) == {"appraisal.rego.executables"}


@pytest.mark.parametrize("vector", ['{"hardware": 2}', '{"executables": 3}', "{}", '{"executables": 1, "hardware": 2}'])
def test_silence_is_not_affirming(vector: str) -> None:
    assert judge(text=f"package policy\ntrust_claims := {vector}\n").verdict is Verdict.REFUSE


@pytest.mark.parametrize(
    "text",
    [
        "package policy\nx := ",
        "package policy\n",
        "package other\ntrust_claims := {}\n",
        'package policy\ntrust_claims := "yes"\n',
        'package policy\ntrust_claims := {"hardware": "2"}\n',
        'package policy\ntrust_claims := {"hardware": 200}\n',
        'package policy\ntrust_claims := {"magic": 2}\n',
        'package policy\ntrust_claims := {"hardware": 1 / 0}\n',
        "\xff",
    ],
)
def test_what_is_no_policy_is_refused(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FormatRefused) as caught:
        parse_rego_policy(text.encode("latin-1"))
    assert caught.value.code == "rats.rego.malformed"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("values", [b"[]", b"{", b'{"a":1,"a":2}'])
def test_values_that_do_not_parse_are_refused(values: bytes) -> None:
    with pytest.raises(FormatRefused) as caught:
        parse_rego_policy(POLICY.encode(), values)
    assert caught.value.code.startswith("rats.rego.values.")


def test_without_the_extra_nothing_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "regopy", None)
    with pytest.raises(Unavailable) as caught:
        parse_rego_policy(POLICY.encode())
    assert caught.value.code == "rats.rego.absent"


def test_rego_is_told_from_the_typed_policy() -> None:
    assert looks_like_rego(POLICY.encode())
    assert not looks_like_rego(b'{"version": 1}') and not looks_like_rego(b"version = 1\n") and not looks_like_rego(b"")
