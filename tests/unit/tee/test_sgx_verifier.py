"""SGX evidence: claims, binding, and the owner's rules."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloister.errors import EvidenceError, Refused
from cloister.rats.claims import Level, Role
from cloister.rats.evidence import Evidence, ExpectedBinding
from cloister.rats.policy import AppraisalPolicy
from cloister.rats.result import Bound, Examination, Unchecked, Verdict
from cloister.rats.rules import PlatformRules, SGXRules
from cloister.tee.sgx.endorsements import PINS
from cloister.tee.sgx.evidence import read_evidence
from cloister.tee.sgx.verifier import authenticate, read_claims
from cloister.tee.verification import examine_evidence
from cloister.testing.dcap import CONFIG_ID, NOW, REPORT_DATA, FakeIntel, FakePlatform, enclave_report, td_report
from cloister.wire.base64 import encode_b64

BINDING = ExpectedBinding(report_data=REPORT_DATA, init_data_digest=CONFIG_ID)


@pytest.fixture(scope="module")
def platform(intel: FakeIntel) -> FakePlatform:
    return FakePlatform(intel, "SGX")


def evidence(quote: bytes) -> Evidence:
    return Evidence(tee="sgx", body={"quote": encode_b64(quote)})


def examine(intel: FakeIntel, quote: bytes, *, rules: SGXRules | None = None) -> Examination:
    policy = AppraisalPolicy(
        id="test",
        tees=frozenset({"sgx"}),
        levels=frozenset({Level.HARDWARE}),
        accept_debug=False,
        digest="",
        rules=PlatformRules(sgx=rules or SGXRules()),
    )
    return examine_evidence(
        evidence(quote), BINDING, intel.endorsements("sgx"), policy, Unchecked(reason="not asked for"), at=NOW
    )


def failed(result: Examination) -> list[str]:
    return [finding.code for finding in result.findings if finding.refuses]


def flags(value: int) -> bytes:
    return value.to_bytes(8, "little") + bytes(8)


def test_claims(intel: FakeIntel, platform: FakePlatform) -> None:
    claims = authenticate(evidence(platform.quote(enclave_report())), intel.endorsements("sgx"), at=NOW).claims
    assert (claims.tee, claims.product, claims.debug) == ("sgx", "intel-sgx", False)
    assert claims.registers == {"mrenclave": b"\x99" * 32, "mrsigner": b"\x88" * 32}
    assert claims.measurements == {Role.LAUNCH: b"\x99" * 32}
    assert (claims.native["isvsvn"], claims.native["mrsigner"]) == (3, "88" * 32)
    assert claims.tcb is not None
    assert "tdx01" not in claims.tcb.reported
    raw = claims.raw
    assert raw["header"] == {
        "version": "0300",
        "att_key_type": "0200",
        "att_key_data_0": "00000000",
        "qe_svn": "0000",
        "pce_svn": "0000",
        "vendor_id": "939a7233f79c4ca9940a0db3957f0607",
        "user_data": "00" * 20,
    }
    assert raw["body"]["isv_svn"] == "0300"
    assert raw["init_data"] == (CONFIG_ID + bytes(16)).hex()
    json.dumps([dict(claims.native), dict(raw)])


def test_good_evidence_is_accepted(intel: FakeIntel, platform: FakePlatform) -> None:
    for version in (3, 5):
        result = examine(intel, platform.quote(enclave_report(), version=version))
        assert (result.verdict, result.bound) == (Verdict.ACCEPT, Bound.YES)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"attributes": flags(0x07)}, "appraisal.debug"),
        ({"attributes": flags(0x15)}, "appraisal.sgx.provisioning_key"),
        ({"report_data": bytes(64)}, "evidence.freshness"),
        ({"config_id": bytes(64)}, "evidence.init_data"),
    ],
)
def test_the_strict_default(intel: FakeIntel, platform: FakePlatform, changes: dict[str, Any], code: str) -> None:
    result = examine(intel, platform.quote(enclave_report(**changes)))
    assert (failed(result), result.authentic, result.verdict) == ([code], True, Verdict.REFUSE)


def test_rules(intel: FakeIntel, platform: FakePlatform) -> None:
    quote = platform.quote(enclave_report(attributes=flags(0x15)))
    assert examine(intel, quote, rules=SGXRules(insecure_accept_provisioning_key=True)).verdict is Verdict.ACCEPT
    good = platform.quote(enclave_report())
    for rules, code in (
        (SGXRules(minimum_isv_svn=4), "appraisal.sgx.isv_svn"),
        (SGXRules(minimum_evaluation_number=20), "appraisal.sgx.evaluation_number"),
        (SGXRules(tcb_statuses=("OutOfDate",)), "appraisal.sgx.tcb_status"),
    ):
        assert failed(examine(intel, good, rules=rules)) == [code]
    assert failed(examine(intel, good + b"\0x")) == ["appraisal.sgx.trailing_bytes"]


def test_the_quote_of_a_td_is_no_enclave(intel: FakeIntel) -> None:
    with pytest.raises(EvidenceError) as caught:
        authenticate(evidence(FakePlatform(intel).quote(td_report())), intel.endorsements("sgx"), at=NOW)
    assert caught.value.code == "tee.sgx.not_an_enclave"


@pytest.mark.parametrize("body", [{}, {"quote": None}, {"quote": "?"}, {"quote": "", "cc_eventlog": None}])
def test_malformed_evidence(intel: FakeIntel, body: dict[str, Any]) -> None:
    with pytest.raises(Refused) as caught:
        authenticate(Evidence(tee="sgx", body=body), intel.endorsements("sgx"), at=NOW)
    assert caught.value.code == "tee.sgx.evidence.malformed"


def test_forms_of_a_file(platform: FakePlatform) -> None:
    quote = platform.quote(enclave_report())
    assert read_evidence(quote, tee="sgx").form == "quote of version 3, raw"
    assert read_evidence(quote, tee="sgx").body == read_evidence(quote.hex().encode(), tee="sgx").body


def test_intels_root_is_pinned() -> None:
    assert [(pin.tee, pin.sha256.hex()[:8]) for pin in PINS] == [("sgx", "44a0196b")]


def test_claims_of_evidence_that_nobody_verified(intel: FakeIntel, platform: FakePlatform) -> None:
    found = evidence(platform.quote(enclave_report()))
    unverified = read_claims(found).claims
    verified = authenticate(found, intel.endorsements("sgx"), at=NOW).claims
    assert (unverified.level, verified.level) == (Level.SIMULATED, Level.HARDWARE)
    assert unverified.registers == verified.registers
    assert unverified.native.items() < verified.native.items()
