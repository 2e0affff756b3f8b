"""Binding: one rule for all technologies, nothing bound by nothing, no silent cut."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from cloister.errors import EvidenceError
from cloister.rats.binding import judge_binding, verify_binding
from cloister.rats.claims import Claims, Level
from cloister.rats.evidence import AuthenticEvidence, ExpectedBinding, Slot
from cloister.rats.result import Severity, Unchecked

DIGEST = bytes(range(48))
INIT = bytes(range(32))
ASKED_NOTHING = Unchecked(reason="nobody asked")
CLAIMS = Claims(
    tee="snp",
    level=Level.HARDWARE,
    debug=False,
    registers={},
    report_data=DIGEST,
    init_data=INIT,
    instance_id="i",
)


def authentic(freshness: Slot, init_data: Slot | None) -> AuthenticEvidence:
    return AuthenticEvidence(claims=CLAIMS, findings=(), unchecked=(), freshness=freshness, init_data=init_data)


GOOD = authentic(
    Slot(name="REPORT_DATA", value=DIGEST + bytes(16), size=64), Slot(name="HOST_DATA", value=INIT, size=32)
)
EXPECTED = ExpectedBinding(report_data=DIGEST, init_data_digest=INIT)


def refusal(evidence: AuthenticEvidence, expected: ExpectedBinding) -> str:
    with pytest.raises(EvidenceError) as caught:
        verify_binding(evidence, expected)
    [first] = [finding for finding in judge_binding(evidence, expected) if finding.refuses][:1]
    assert first.code == caught.value.code
    return caught.value.code


def test_good_evidence_is_bound() -> None:
    assert [finding.ok for finding in verify_binding(GOOD, EXPECTED)] == [True, True]


@pytest.mark.parametrize(
    ("slot", "digest", "fitted"),
    [
        (Slot(name="64", value=b"", size=64), DIGEST, DIGEST + bytes(16)),
        (Slot(name="32", value=b"", size=32, cut=True), DIGEST, DIGEST[:32]),
        (Slot(name="32", value=b"", size=32), DIGEST, None),
        (Slot(name="any", value=b""), DIGEST, DIGEST),
        (Slot(name="pcr", value=b"", extended=True), INIT, hashlib.sha256(bytes(32) + INIT).digest()),
        (Slot(name="pcr", value=b"", extended=True), DIGEST, None),
        (Slot(name="any", value=b""), b"", None),
        (Slot(name="64", value=b"", size=64), b"", None),
        (Slot(name="pcr", value=b"", extended=True), b"", None),
    ],
)
def test_fitting_a_digest_into_a_field(slot: Slot, digest: bytes, fitted: bytes | None) -> None:
    assert slot.fit(digest) == fitted


@pytest.mark.parametrize("position", [0, 31, 47, 63])
def test_every_byte_of_the_field_counts(position: int) -> None:
    value = bytearray(GOOD.freshness.value)
    value[position] ^= 1
    assert (
        refusal(replace(GOOD, freshness=replace(GOOD.freshness, value=bytes(value))), EXPECTED) == "evidence.freshness"
    )


def test_a_prefix_or_an_empty_field_is_another_nonce() -> None:
    for value in (b"", DIGEST[:47], DIGEST, DIGEST + bytes(17)):
        assert refusal(replace(GOOD, freshness=replace(GOOD.freshness, value=value)), EXPECTED) == "evidence.freshness"


def test_nothing_is_bound_by_nothing() -> None:
    """A real cloud attestation with an empty nonce exists."""
    empty = replace(GOOD, freshness=Slot(name="extraData", value=b""))
    for exact in (False, True):
        expected = replace(EXPECTED, report_data=b"", exact=exact)
        assert refusal(empty, expected) == "evidence.freshness.no_session"
        assert refusal(GOOD, expected) == "evidence.freshness.no_session"


def test_exact_values_are_compared_whole() -> None:
    exact = ExpectedBinding(report_data=DIGEST + bytes(16), init_data_digest=INIT, exact=True)
    assert all(finding.ok for finding in verify_binding(GOOD, exact))
    assert refusal(GOOD, replace(exact, report_data=DIGEST)) == "evidence.freshness"


def test_other_init_data() -> None:
    assert refusal(GOOD, replace(EXPECTED, init_data_digest=bytes(32))) == "evidence.init_data"
    assert refusal(GOOD, replace(EXPECTED, init_data_digest=bytes(48))) == "evidence.init_data.length"
    assert refusal(GOOD, replace(EXPECTED, init_data_digest=b"")) == "evidence.init_data.length"
    assert refusal(replace(GOOD, init_data=None), EXPECTED) == "evidence.init_data.no_field"


def test_what_is_not_asked_for_is_told() -> None:
    findings = verify_binding(GOOD, ExpectedBinding(report_data=ASKED_NOTHING, init_data_digest=ASKED_NOTHING))
    assert [finding.code for finding in findings] == [
        "evidence.freshness.not_requested",
        "evidence.init_data.not_requested",
    ]
    assert all(finding.severity is Severity.WARNING and "nobody asked" in finding.message for finding in findings)
