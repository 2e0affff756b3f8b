"""Appraisal over arbitrary evidence and reference values: the verdict is the findings, and never more generous."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import FormatRefused
from cloister.rats.claims import Claims, Level
from cloister.rats.policy import AppraisalPolicy, appraise, parse_appraisal_policy
from cloister.rats.reference import (
    ReferenceEntry,
    appraise_registers,
    encode_reference_entry,
    parse_reference_entry,
)
from cloister.rats.result import Finding, Question, Tier, VerifiedEvidence

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
ASKED = tuple(Finding(code="c", question=question, ok=True, message="m") for question in Question)
NAMES = ["pcr00", "pcr04", "pcr09", "pcr11"]
REGISTERS = st.dictionaries(st.sampled_from(NAMES), st.sampled_from([b"\0" * 32, b"\1" * 32, b"\2" * 32]), max_size=4)
TEES = st.sampled_from(["tpm", "snp", "tdx"])
ENTRIES = st.builds(
    ReferenceEntry,
    id=st.text(min_size=1, max_size=5),
    tee=TEES,
    registers=REGISTERS,
    not_after=st.sampled_from([-1, 0, 1]).map(lambda days: NOW + timedelta(days=days)),
    origin=st.just("test"),
)
CLAIMS = st.builds(
    Claims,
    tee=TEES,
    level=st.sampled_from(Level),
    debug=st.booleans(),
    registers=REGISTERS,
    report_data=st.just(b""),
    init_data=st.just(b""),
    instance_id=st.just(""),
)
POLICIES = st.builds(
    AppraisalPolicy,
    id=st.just("p"),
    tees=st.frozensets(TEES),
    levels=st.frozensets(st.sampled_from(Level)),
    accept_debug=st.booleans(),
    digest=st.just("sha256:00"),
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def matches(claims: Claims, entry: ReferenceEntry) -> bool:
    """The rule of `spec` in one line, written independently of the code under test."""
    return bool(
        entry.tee == claims.tee
        and entry.registers
        and entry.not_after > NOW
        and entry.registers.items() <= claims.registers.items()
    )


@given(CLAIMS, st.lists(ENTRIES, max_size=5))
def test_registers_hold_exactly_when_one_live_entry_matches_whole(claims, entries):
    findings = appraise_registers(claims, entries, at=NOW)
    assert findings
    assert all(finding.ok for finding in findings) == any(matches(claims, entry) for entry in entries)


@given(CLAIMS, st.lists(ENTRIES, max_size=5))
def test_every_failed_comparison_explains_itself(claims, entries):
    for finding in appraise_registers(claims, entries, at=NOW):
        assert finding.ok or (finding.expected and finding.actual and finding.hint)


@given(CLAIMS, POLICIES, st.lists(ENTRIES, max_size=4))
def test_affirmed_means_every_rule_holds(claims, policy, entries):
    evidence = VerifiedEvidence(claims=claims, findings=ASKED)
    result = appraise(evidence, policy, entries, init_data_digest="sha256:00", at=NOW)
    assert (result.tier is Tier.AFFIRMING) == (
        claims.tee in policy.tees
        and claims.level in policy.levels
        and (policy.accept_debug or not claims.debug)
        and any(matches(claims, entry) for entry in entries)
    )
    assert (result.tier is Tier.AFFIRMING) == (not result.failures)


@given(CLAIMS, POLICIES, st.lists(ENTRIES, max_size=3), ENTRIES)
def test_an_expired_or_foreign_entry_never_helps(claims, policy, entries, further):
    if matches(claims, further):
        return
    evidence = VerifiedEvidence(claims=claims, findings=ASKED)
    before = appraise(evidence, policy, entries, init_data_digest="", at=NOW)
    after = appraise(evidence, policy, [*entries, further], init_data_digest="", at=NOW)
    assert before.tier is after.tier


@given(ENTRIES)
def test_entry_round_trip(entry):
    with contextlib.suppress(FormatRefused):
        assert parse_reference_entry(encode_reference_entry(entry)) == entry
    if entry.registers:
        assert parse_reference_entry(encode_reference_entry(entry)) == entry


@given(st.binary(max_size=200) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_policy_or_a_refusal(data):
    for parse in (parse_appraisal_policy, parse_reference_entry):
        with contextlib.suppress(FormatRefused):
            parse(data)


@given(st.text(min_size=1), JSON_VALUES)
def test_policies_refuse_any_further_field(name, value):
    fields = {"version": 1, "id": "p", "tees": ["tpm"]}
    if name in fields or name.startswith("insecure_accept_"):
        return
    with contextlib.suppress(FormatRefused):
        parse_appraisal_policy(json.dumps({**fields, name: value}).encode())
        raise AssertionError("accepted")
