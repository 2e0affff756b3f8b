"""TDX evidence: claims, event log, binding, and the owner's rules."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from cloister.errors import EvidenceError, FormatRefused, Refused
from cloister.rats.claims import TCB, Level, Role
from cloister.rats.evidence import AuthenticEvidence, Evidence, ExpectedBinding
from cloister.rats.policy import AppraisalPolicy
from cloister.rats.result import Bound, Examination, Severity, Unchecked, Verdict
from cloister.rats.rules import PlatformRules, TDXRules
from cloister.tee.dcap import abi as dcap
from cloister.tee.eventlog import Event
from cloister.tee.sgx.appraisal import appraise_platform as appraise_sgx
from cloister.tee.tdx.appraisal import appraise_platform
from cloister.tee.tdx.endorsements import PINS
from cloister.tee.tdx.evidence import read_evidence
from cloister.tee.tdx.verifier import authenticate, read_claims
from cloister.tee.verification import examine_evidence
from cloister.testing.dcap import (
    CONFIG_ID,
    NOW,
    REPORT_DATA,
    FakeIntel,
    FakePlatform,
    Machine,
    boot_log,
    enclave_report,
    logged_report,
    td_report,
)
from cloister.testing.eventlog import build_event_log
from cloister.wire.base64 import encode_b64
from tampering import flipped

BINDING = ExpectedBinding(report_data=REPORT_DATA, init_data_digest=CONFIG_ID)
ANY = Unchecked(reason="not asked for in this test")
SEPT_VE = 1 << 28


@pytest.fixture(scope="module")
def platform(intel: FakeIntel) -> FakePlatform:
    return FakePlatform(intel)


def evidence(quote: bytes, events: tuple[Event, ...] | None = None, **members: Any) -> Evidence:
    body: dict[str, Any] = {"quote": encode_b64(quote), **members}
    if events is not None:
        body["cc_eventlog"] = encode_b64(build_event_log(events, algorithms=("sha384",)))
    return Evidence(tee="tdx", body=body)


def verify(intel: FakeIntel, found: Evidence) -> AuthenticEvidence:
    return authenticate(found, intel.endorsements("tdx"), at=NOW)


def examine(
    intel: FakeIntel,
    found: Evidence,
    *,
    collateral: bytes | None = None,
    rules: TDXRules | None = None,
    no_revocation: bool = False,
) -> Examination:
    policy = AppraisalPolicy(
        id="test",
        tees=frozenset({"tdx"}),
        levels=frozenset({Level.HARDWARE}),
        accept_debug=False,
        digest="",
        rules=PlatformRules(tdx=rules or TDXRules()),
        accept_unchecked_revocation=no_revocation,
    )
    return examine_evidence(found, BINDING, intel.endorsements("tdx", collateral), policy, ANY, at=NOW)


def failed(result: Examination) -> list[str]:
    return [finding.code for finding in result.findings if finding.refuses]


def attributes(value: int) -> bytes:
    return value.to_bytes(8, "little")


def test_claims(intel: FakeIntel, platform: FakePlatform) -> None:
    claims = verify(intel, evidence(platform.quote(td_report(td15=True)))).claims
    assert (claims.tee, claims.level, claims.debug, claims.product) == ("tdx", Level.HARDWARE, False, "intel-tdx")
    assert claims.platform == "Intel TDX, TD report 1.5"
    assert claims.registers == {
        "mrtd": b"\xab" * 48,
        "rtmr0": b"\xc0" * 48,
        "rtmr1": b"\xc1" * 48,
        "rtmr2": b"\xc2" * 48,
        "rtmr3": bytes(48),
    }
    assert claims.init_data == CONFIG_ID
    assert claims.instance_id == "66" * 16
    assert claims.measurements == {Role.LAUNCH: b"\xab" * 48}
    assert claims.tcb is not None
    assert claims.tcb.status == "UpToDate"
    assert (claims.tcb.reported["pce"], claims.tcb.reported["sgx16"], claims.tcb.reported["tdx02"]) == (11, 5, 1)
    native = claims.native
    assert (native["mrtd"], native["debug"], native["tcb_status"]) == ("ab" * 48, False, "UpToDate")
    assert native["tcb_evaluation_data_number"] == 19
    assert native["mrservicetd"] == "00" * 48
    json.dumps([dict(native), dict(claims.raw)])


def test_claims_under_the_names_of_coco(intel: FakeIntel, platform: FakePlatform) -> None:
    raw = verify(intel, evidence(platform.quote(td_report(td15=True)))).claims.raw
    assert raw["quote"]["header"]["tee_type"] == "81000000"
    assert (raw["quote"]["type"], raw["quote"]["size"]) == ("0300", "88020000")
    assert raw["quote"]["body"]["mr_td"] == "ab" * 48
    assert raw["quote"]["body"]["tee_tcb_svn2"].startswith("050102")
    assert raw["td_attributes"] == {
        "debug": False,
        "septve_disable": True,
        "protection_keys": False,
        "key_locker": False,
        "perfmon": False,
    }
    assert (raw["tcb_status"], raw["collateral_expiration_status"], raw["tcb_eval_num"]) == ("UpToDate", "0", 19)
    assert raw["is_smt_enabled"] is True
    assert "type" not in verify(intel, evidence(platform.quote(td_report()))).claims.raw["quote"]


def test_a_version_1_0_report_has_no_more_than_it_has(intel: FakeIntel, platform: FakePlatform) -> None:
    claims = verify(intel, evidence(platform.quote(td_report()))).claims
    assert claims.platform == "Intel TDX, TD report 1.0"
    assert "mrservicetd" not in claims.native


def test_the_level_is_the_roots(intel: FakeIntel, platform: FakePlatform) -> None:
    endorsements = intel.endorsements("tdx")
    root = replace(endorsements.roots[0], level=Level.SIMULATED)
    found = authenticate(evidence(platform.quote(td_report())), replace(endorsements, roots=(root,)), at=NOW)
    assert found.claims.level is Level.SIMULATED


def test_good_evidence_is_accepted(intel: FakeIntel, platform: FakePlatform) -> None:
    for version in (4, 5):
        result = examine(intel, evidence(platform.quote(td_report(), version=version)))
        assert (result.verdict, result.bound, result.authentic) == (Verdict.ACCEPT, Bound.YES, True)


# The log


def test_a_log_that_replays(intel: FakeIntel, platform: FakePlatform) -> None:
    events = boot_log()
    found = verify(intel, evidence(platform.quote(logged_report(events)), events))
    assert sum(finding.code == "tee.tdx.event_log_mismatch" for finding in found.findings) == 4
    assert found.unchecked == ()
    claims = found.claims
    assert claims.measurements[Role.KERNEL] == events[2].digests["sha384"]
    assert claims.measurements[Role.COMMAND_LINE] == events[4].digests["sha384"]
    assert claims.measurements[Role.INITRD] == events[5].digests["sha384"]
    logs = claims.raw["uefi_event_logs"]
    assert [item["index"] for item in logs] == [1, 1, 2, 3, 3, 2]
    assert logs[4]["details"] == {"string": "Linux initrd"}


def test_a_log_may_be_absent_null_or_padded(intel: FakeIntel, platform: FakePlatform) -> None:
    events = boot_log()
    quote = platform.quote(logged_report(events))
    for members in ({}, {"cc_eventlog": None}, {"cc_eventlog": ""}):
        assert verify(intel, evidence(quote, **members)).unchecked != ()
    padded = encode_b64(build_event_log(events, algorithms=("sha384",), fill=b"\xff" * 100))
    assert verify(intel, evidence(quote, cc_eventlog=padded)).unchecked == ()


def test_every_measured_digest_of_the_log_counts(intel: FakeIntel, platform: FakePlatform) -> None:
    events = boot_log()
    quote = platform.quote(logged_report(events))
    for index, event in enumerate(events):
        digest = event.digests["sha384"]
        other = replace(event, digests={"sha384": flipped(digest, 0)})
        changed = (*events[:index], other, *events[index + 1 :])
        if event.register == 0:  # nothing is extended by a remark
            verify(intel, evidence(quote, changed))
            continue
        with pytest.raises(EvidenceError) as caught:
            verify(intel, evidence(quote, changed))
        assert caught.value.code == "tee.tdx.event_log_mismatch"
        assert caught.value.path == "cc_eventlog"


@pytest.mark.parametrize("register", range(4))
def test_every_register_must_be_explained(intel: FakeIntel, platform: FakePlatform, register: int) -> None:
    events = boot_log()
    report = replace(logged_report(events), **{f"rtmr{register}": b"\x01" * 48})
    with pytest.raises(EvidenceError) as caught:
        verify(intel, evidence(platform.quote(report), events))
    assert caught.value.code == "tee.tdx.event_log_mismatch"
    assert caught.value.message.endswith(f"RTMR {register}")


def test_a_log_that_is_cut_or_reordered(intel: FakeIntel, platform: FakePlatform) -> None:
    events = boot_log()
    quote = platform.quote(logged_report(events))
    for changed in (events[:-1], events[1:], (events[1], events[0], *events[2:]), ()):
        with pytest.raises(EvidenceError):
            verify(intel, evidence(quote, changed))


def test_a_log_without_the_bank(intel: FakeIntel, platform: FakePlatform) -> None:
    from cloister.testing.eventlog import seabios_events

    log = encode_b64(build_event_log(seabios_events()))
    with pytest.raises(FormatRefused) as caught:
        verify(intel, evidence(platform.quote(td_report()), cc_eventlog=log))
    assert caught.value.code == "tee.tdx.eventlog.bank"


def test_the_log_of_older_agents_is_not_read(intel: FakeIntel, platform: FakePlatform) -> None:
    found = verify(intel, evidence(platform.quote(td_report()), aa_eventlog="INIT sha384/0000"))
    assert any("own event log" in item.reason for item in found.unchecked)


# Refusals of the shape


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"quote": None},
        {"quote": 7},
        {"quote": "!"},
        {"quote": "AAA"},
        {"quote": "AAAA ", "cc_eventlog": None},
        {"quote": "", "more": ""},
        {"quote": "", "cc_eventlog": 5},
    ],
)
def test_malformed_evidence(intel: FakeIntel, body: dict[str, Any]) -> None:
    with pytest.raises(Refused) as caught:
        verify(intel, Evidence(tee="tdx", body=body))
    assert caught.value.code in {"tee.tdx.evidence.malformed", "tee.dcap.quote.truncated"}


def test_a_log_in_bad_base64(intel: FakeIntel, platform: FakePlatform) -> None:
    with pytest.raises(FormatRefused) as caught:
        verify(intel, evidence(platform.quote(td_report()), cc_eventlog="?"))
    assert (caught.value.code, caught.value.path) == ("tee.tdx.evidence.malformed", "cc_eventlog")


def test_the_quote_of_an_enclave_is_no_td(intel: FakeIntel) -> None:
    quote = FakePlatform(intel, "SGX").quote(enclave_report())
    with pytest.raises(EvidenceError) as caught:
        verify(intel, evidence(quote))
    assert caught.value.code == "tee.tdx.not_a_td"


def test_forms_of_a_file(platform: FakePlatform) -> None:
    quote = platform.quote(td_report(td15=True))
    body = {"quote": encode_b64(quote)}
    for data, form in (
        (quote, "quote of version 5, raw"),
        (quote.hex().encode() + b"\n", "quote of version 5, in hex"),
        (b"0x" + quote.hex().upper().encode(), "quote of version 5, in hex"),
        (json.dumps(body).encode(), "JSON as CoCo's guest sends it"),
        (json.dumps({"primary_evidence": body}).encode(), "JSON as CoCo's guest sends it"),
    ):
        found = read_evidence(data, tee="tdx")
        assert (dict(found.body), found.form) == (body, form)


@pytest.mark.parametrize("data", [b"", b"quote", b"\0" * 100, b"[]", b"{", b"\x04\x00" * 100, b"ab" * 100_000])
def test_files_that_are_no_evidence(data: bytes) -> None:
    with pytest.raises(FormatRefused) as caught:
        read_evidence(data, tee="tdx")
    assert caught.value.code.startswith("tee.file.")


def test_intels_root_is_pinned() -> None:
    assert [(pin.tee, pin.level, pin.sha256.hex()[:8]) for pin in PINS] == [("tdx", Level.HARDWARE, "44a0196b")]


# The owner's rules


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({"td_attributes": attributes(0)}, ["appraisal.tdx.sept_ve_disable"]),
        ({"td_attributes": attributes(SEPT_VE | 1)}, ["appraisal.debug"]),
        ({"td_attributes": attributes(SEPT_VE | 1 << 4)}, ["appraisal.debug"]),
        ({"td_attributes": attributes(SEPT_VE | 1 << 7)}, ["appraisal.debug"]),
        ({"td_attributes": attributes(SEPT_VE | 1 << 29)}, ["appraisal.tdx.migratable"]),
        ({"td_attributes": attributes(SEPT_VE | 1 << 8)}, ["appraisal.tdx.attributes"]),
        ({"td_attributes": attributes(SEPT_VE | 1 << 40)}, ["appraisal.tdx.attributes"]),
        ({"td_attributes": attributes(SEPT_VE | 1 << 63 | 1 << 30 | 1 << 31)}, []),
        ({"td15": True, "mr_service_td": b"\x01" * 48}, ["appraisal.tdx.mr_service_td"]),
        ({"tee_tcb_svn": bytes([2, 1, 2]) + bytes(13)}, ["appraisal.tdx.tcb_status"]),
        ({"tee_tcb_svn": bytes([5, 2, 2]) + bytes(13)}, ["appraisal.tdx.tcb_unsupported"]),
        (
            {"td15": True, "tee_tcb_svn": bytes([2, 1, 2]) + bytes(13)},
            ["appraisal.tdx.tcb_status"],
        ),
    ],
)
def test_the_strict_default(
    intel: FakeIntel, platform: FakePlatform, changes: dict[str, Any], codes: list[str]
) -> None:
    result = examine(intel, evidence(platform.quote(td_report(**changes))))
    assert (failed(result), result.authentic, result.bound) == (codes, True, Bound.YES)
    assert result.verdict is (Verdict.REFUSE if codes else Verdict.ACCEPT)


def test_debug_evidence_tells_what_it_is(intel: FakeIntel, platform: FakePlatform) -> None:
    result = examine(intel, evidence(platform.quote(td_report(td_attributes=attributes(SEPT_VE | 1)))))
    assert result.claims is not None
    assert result.claims.debug


@pytest.mark.parametrize(
    ("changes", "rules"),
    [
        ({"td_attributes": attributes(0)}, TDXRules(insecure_accept_sept_ve=True)),
        ({"td_attributes": attributes(SEPT_VE | 1 << 29)}, TDXRules(insecure_accept_migration=True)),
        ({"td15": True, "mr_service_td": b"\x01" * 48}, TDXRules(mr_service_tds=("01" * 48,))),
        ({"tee_tcb_svn": bytes([2, 1, 2]) + bytes(13)}, TDXRules(tcb_statuses=("UpToDate", "OutOfDate"))),
        (
            {"td15": True, "tee_tcb_svn": bytes([2, 1, 2]) + bytes(13)},
            TDXRules(tcb_statuses=("TDRelaunchAdvised",)),
        ),
    ],
)
def test_what_an_owner_may_accept(
    intel: FakeIntel, platform: FakePlatform, changes: dict[str, Any], rules: TDXRules
) -> None:
    assert examine(intel, evidence(platform.quote(td_report(**changes))), rules=rules).verdict is Verdict.ACCEPT


@pytest.mark.parametrize(
    ("rules", "code"),
    [
        (TDXRules(tcb_statuses=()), "appraisal.tdx.tcb_status"),
        (TDXRules(minimum_evaluation_number=20), "appraisal.tdx.evaluation_number"),
        (TDXRules(mr_signer_seams=("01" * 48,)), "appraisal.tdx.mr_signer_seam"),
        (TDXRules(mr_service_tds=("01" * 48,)), "appraisal.tdx.mr_service_td"),
    ],
)
def test_what_an_owner_may_refuse(intel: FakeIntel, platform: FakePlatform, rules: TDXRules, code: str) -> None:
    assert failed(examine(intel, evidence(platform.quote(td_report(td15=True))), rules=rules)) == [code]


def test_denied_advisories(intel: FakeIntel) -> None:
    quote = FakePlatform(intel, machine=Machine(pce_svn=10)).quote(td_report())
    accepted = TDXRules(tcb_statuses=("OutOfDate",))
    assert examine(intel, evidence(quote), rules=accepted).verdict is Verdict.ACCEPT
    denied = TDXRules(tcb_statuses=("OutOfDate",), denied_advisories=("INTEL-SA-01036",))
    assert failed(examine(intel, evidence(quote), rules=denied)) == ["appraisal.tdx.advisories"]


@pytest.mark.parametrize("status", ["Unsupported", "Revoked"])
def test_no_policy_accepts_some_statuses(intel: FakeIntel, status: str) -> None:
    pce_svn = 4 if status == "Unsupported" else 5
    quote = FakePlatform(intel, machine=Machine(pce_svn=pce_svn)).quote(td_report())
    result = examine(intel, evidence(quote), rules=TDXRules(tcb_statuses=(status,)))
    assert result.verdict is Verdict.REFUSE


def test_bytes_behind_the_quote(intel: FakeIntel, platform: FakePlatform) -> None:
    quote = platform.quote(td_report())
    assert examine(intel, evidence(quote + bytes(3065))).verdict is Verdict.ACCEPT
    result = examine(intel, evidence(quote + bytes(10) + b"x"))
    assert failed(result) == ["appraisal.tdx.trailing_bytes"]


def test_without_collateral_the_verdict_is_open(intel: FakeIntel, platform: FakePlatform) -> None:
    found = evidence(platform.quote(td_report()))
    result = examine(intel, found, collateral=b"")
    assert (result.verdict, result.authentic, result.bound) == (Verdict.UNAVAILABLE, False, Bound.YES)
    assert result.claims is not None
    assert result.claims.tcb is not None
    assert result.claims.tcb.status == ""
    told = examine(intel, found, collateral=b"", no_revocation=True)
    assert told.verdict is Verdict.UNAVAILABLE  # revocation was waived, a TCB that nobody knows is not
    warnings = {item.code for item in told.findings if not item.ok and item.severity is Severity.WARNING}
    assert "tee.dcap.revocation" in warnings and "tee.dcap.collateral.missing" not in warnings
    for rules in (TDXRules(minimum_evaluation_number=1), TDXRules(denied_advisories=("INTEL-SA-01036",))):
        asked = examine(intel, found, collateral=b"", no_revocation=True, rules=rules)
        assert asked.verdict is not Verdict.ACCEPT


def test_signers_of_other_modules_without_collateral(intel: FakeIntel, platform: FakePlatform) -> None:
    quote = platform.quote(td_report(mr_signer_seam=b"\x01" * 48))
    assert failed(examine(intel, evidence(quote), collateral=b"")) == ["appraisal.tdx.mr_signer_seam"]
    rules = TDXRules(mr_signer_seams=("01" * 48,))
    assert failed(examine(intel, evidence(quote), collateral=b"", rules=rules)) == []


def test_facts_of_another_technology(intel: FakeIntel, platform: FakePlatform) -> None:
    facts = verify(intel, evidence(platform.quote(td_report()))).facts
    with pytest.raises(TypeError):
        appraise_platform(object(), PlatformRules(), at=NOW)
    with pytest.raises(TypeError):
        appraise_sgx(facts, PlatformRules(), at=NOW)


def test_report_data_is_the_whole_field(intel: FakeIntel, platform: FakePlatform) -> None:
    found = verify(intel, evidence(platform.quote(td_report())))
    assert found.freshness.value == REPORT_DATA.ljust(64, b"\0")
    assert found.init_data is not None
    assert (found.init_data.size, found.init_data.cut) == (48, False)
    assert dcap.TD10_BYTES == 584


def test_claims_of_evidence_that_nobody_verified(intel: FakeIntel, platform: FakePlatform) -> None:
    events = boot_log()
    found = evidence(platform.quote(logged_report(events, td15=True)), events)
    unverified, verified = read_claims(found).claims, verify(intel, found).claims
    assert unverified.level is Level.SIMULATED
    assert (unverified.window, unverified.advisories) == (None, ())
    assert unverified.tcb is not None
    assert (unverified.tcb.status, unverified.tcb.reported) == ("", verified.tcb.reported if verified.tcb else {})
    assert unverified.registers == verified.registers
    assert unverified.raw["quote"] == verified.raw["quote"]
    assert not {"tcb_status", "root_key_id", "latest_issue_date"} & set(unverified.raw)
    with pytest.raises(FormatRefused):
        read_claims(evidence(b""))


def test_versions_that_run_are_told_where_they_are_others(intel: FakeIntel, platform: FakePlatform) -> None:
    def tcb(report: dcap.TDReport) -> TCB:
        found = verify(intel, evidence(platform.quote(report))).claims.tcb
        assert found is not None
        return found

    assert tcb(td_report()).current == {}
    assert tcb(td_report(td15=True)).current == {}
    older = tcb(td_report(td15=True, tee_tcb_svn=bytes([2, 1, 2]) + bytes(13)))
    assert (older.status, older.reported["tdx01"], older.current["tdx01"]) == ("TDRelaunchAdvised", 2, 5)
