"""Evidence through the SDK: three answers, strict without a policy, nothing trusted by being given."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import cloister.sdk
from cloister.errors import Refused, Unavailable
from cloister.rats.claims import Level
from cloister.rats.reference import ReferenceEntry, encode_reference_entry
from cloister.rats.result import Bound, Question, Verdict
from cloister.sdk.devices import detect_platform
from cloister.sdk.evidence import PLATFORMS, attest, describe_file, verify_evidence
from cloister.tee.insecure.attester import SimulationAttester
from cloister.tee.insecure.machinekey import load_machine_key, public_der
from cloister.tee.registry import TECHNOLOGIES

NOW = datetime(2026, 11, 26, tzinfo=UTC)
REPORT_DATA = bytes(range(48))
POLICY = b"""
version = 1
id = "mine"
tees = ["cloister-simulated"]
insecure_accept_levels = ["simulated"]
"""


@dataclass(frozen=True)
class Simulated:
    """Evidence of a simulation, its key as a trust root, and the values of its registers."""

    evidence: bytes
    root: bytes
    launch: bytes
    init_data: bytes


@pytest.fixture
def simulated(tmp_path: Path) -> Simulated:
    key = tmp_path / "key.pem"
    with SimulationAttester(str(key)) as attester:
        attester.extend(8, bytes(32))
        body = attester.attest(REPORT_DATA)
    registers = body["registers"]
    return Simulated(
        evidence=json.dumps(body).encode(),
        root=public_der(load_machine_key(str(key))),
        launch=bytes.fromhex(registers["launch"]),
        init_data=bytes.fromhex(registers["pcr08"]),
    )


def verify(simulated: Simulated, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "platform": "simulated",
        "nonce": REPORT_DATA,
        "trust_roots": [simulated.root],
        "policy": POLICY,
        "at": NOW,
    }
    evidence = changes.pop("evidence", simulated.evidence)
    return verify_evidence(evidence, **{**arguments, **changes})


def failed(answer: Any) -> set[str]:
    return {finding.code for finding in answer.findings if finding.refuses}


def test_three_answers(simulated: Simulated) -> None:
    answer = verify(simulated, init_data=simulated.init_data)
    assert (answer.authentic, answer.bound, answer.acceptable) == (True, Bound.YES, True)
    assert (answer.verdict, answer.claims.level) == (Verdict.ACCEPT, Level.SIMULATED)
    warned = {finding.code for finding in answer.findings if not finding.ok}
    assert warned == {"appraisal.reference_values.not_requested"}


def test_without_a_policy_a_simulation_is_refused(simulated: Simulated) -> None:
    answer = verify(simulated, policy=None)
    assert (answer.authentic, answer.acceptable, failed(answer)) == (True, False, {"appraisal.level"})


def test_what_was_not_asked_for_is_said(simulated: Simulated) -> None:
    answer = verify(simulated, nonce=None)
    assert (answer.bound, answer.verdict) == (Bound.NOT_REQUESTED, Verdict.ACCEPT)
    assert "evidence.freshness.not_requested" in {finding.code for finding in answer.findings if not finding.ok}


@pytest.mark.parametrize(
    ("changes", "codes", "bound"),
    [
        ({"nonce": bytes(48)}, {"evidence.freshness"}, Bound.NO),
        ({"nonce": REPORT_DATA[:47]}, {"evidence.freshness"}, Bound.NO),
        ({"nonce": b""}, {"evidence.freshness.no_session"}, Bound.NO),
        ({"init_data": bytes(32)}, {"evidence.init_data"}, Bound.NO),
    ],
)
def test_another_session_or_other_init_data(
    simulated: Simulated, changes: dict[str, Any], codes: set[str], bound: Bound
) -> None:
    answer = verify(simulated, **changes)
    assert (answer.authentic, answer.bound, failed(answer)) == (True, bound, codes)
    assert answer.verdict is Verdict.REFUSE


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"trust_roots": []}, "tee.insecure.no_roots"),
        ({"evidence": b"{}"}, "tee.insecure.malformed"),
        ({"evidence": b"not evidence"}, "tee.file.not_json"),
        ({"policy": b"version = 2"}, "rats.policy.malformed"),
        ({"policy": POLICY + b"colour = 3"}, "rats.policy.malformed"),
        ({"reference": b"[]"}, "rats.reference.malformed"),
        ({"advisories": b"version = 1"}, "rats.advisory.malformed"),
        ({"trust_roots": [b"words"]}, "collateral.root.malformed"),
        ({"collateral": [b"words"]}, "collateral.file.unknown"),
    ],
)
def test_what_cannot_be_judged_is_refused(simulated: Simulated, changes: dict[str, Any], code: str) -> None:
    answer = verify(simulated, **changes)
    assert (answer.authentic, answer.acceptable, answer.verdict) == (False, False, Verdict.REFUSE)
    assert answer.claims is None and failed(answer) == {code}


def test_reference_values_are_compared(simulated: Simulated) -> None:
    entry = ReferenceEntry(
        id="one",
        tee="cloister-simulated",
        registers={"launch": simulated.launch},
        not_after=datetime(2027, 1, 1, tzinfo=UTC),
        origin="test",
    )
    answer = verify(simulated, reference=encode_reference_entry(entry))
    assert answer.verdict is Verdict.ACCEPT and all(
        finding.ok for finding in answer.findings if finding.question is Question.ACCEPTABLE
    )
    other = encode_reference_entry(replace(entry, registers={"launch": bytes(32)}))
    assert failed(verify(simulated, reference=other)) == {"appraisal.reference_values.launch"}
    both = b"[" + other + b"," + encode_reference_entry(replace(entry, id="two")) + b"]"
    assert verify(simulated, reference=both).verdict is Verdict.ACCEPT


def test_a_rego_policy_judges_too(simulated: Simulated) -> None:
    rego = b'package policy\ntrust_claims := {"executables": 3, "hardware": 2}\n'
    assert failed(verify(simulated, policy=rego)) == {"appraisal.level"}  # the floor stays


def test_a_platform_must_be_one_of_the_list(simulated: Simulated) -> None:
    for name in ("", "SNP", "cloister-simulated"):
        with pytest.raises(Refused) as caught:
            verify(simulated, platform=name)
        assert caught.value.code == "sdk.evidence.platform"


def test_nonce_and_report_data_are_the_same_field(simulated: Simulated) -> None:
    assert verify(simulated, nonce=None, report_data=REPORT_DATA).bound is Bound.YES
    with pytest.raises(Refused):
        verify(simulated, report_data=REPORT_DATA)


def test_files_and_directories(simulated: Simulated, tmp_path: Path) -> None:
    evidence, root, collateral = tmp_path / "e.json", tmp_path / "root.der", tmp_path / "collateral"
    collateral.mkdir()
    evidence.write_bytes(simulated.evidence)
    root.write_bytes(simulated.root)
    examined = verify_evidence(
        evidence, platform="simulated", trust_roots=[root], collateral=[collateral], policy=POLICY, at=NOW
    )
    assert (examined.form, examined.verdict) == ("JSON of the simulation", Verdict.ACCEPT)
    with pytest.raises(Unavailable) as caught:
        verify(simulated, evidence=tmp_path / "absent")
    assert caught.value.code == "sdk.evidence.file"


def test_too_many_files(simulated: Simulated, tmp_path: Path) -> None:
    for number in range(257):
        (tmp_path / f"{number:04}").write_bytes(b"x")
    assert failed(verify(simulated, collateral=[tmp_path])) == {"sdk.evidence.too_many_files"}


def test_evidence_is_described_whether_verified_or_not(simulated: Simulated) -> None:
    good = describe_file(simulated.evidence, platform="simulated", trust_roots=[simulated.root], at=NOW)
    assert good.problem is None and good.claims is not None and good.findings
    unverified = describe_file(simulated.evidence, platform="simulated", at=NOW)
    assert unverified.claims == good.claims
    assert unverified.problem is not None and unverified.problem.code == "tee.insecure.no_roots"
    assert describe_file(b"{}", platform="simulated", at=NOW).claims is None


def test_the_public_names_are_there() -> None:
    assert all(getattr(cloister.sdk, name) for name in cloister.sdk.__all__)
    with pytest.raises(AttributeError):
        _ = cloister.sdk.nothing


def test_every_technology_has_a_platform_name() -> None:
    assert set(TECHNOLOGIES) <= set(PLATFORMS.values())


@pytest.mark.parametrize(
    ("devices", "platform"),
    [
        (["dev/tpmrm0"], "tpm"),
        (["dev/tpmrm0", "dev/sev-guest"], "snp"),
        (["dev/tdx_guest"], "tdx"),
        (["dev/attestation/quote"], "sgx"),
        (["dev/nsm", "dev/tpmrm0"], "nitro"),
    ],
)
def test_the_device_that_is_here(devices: list[str], platform: str, tmp_path: Path) -> None:
    for device in devices:
        (tmp_path / device).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / device).touch()
    assert detect_platform(tmp_path) == platform


def test_no_device(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        detect_platform(tmp_path)
    assert caught.value.code == "sdk.evidence.no_device"


def test_evidence_of_a_simulation_is_collected_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOISTER_HOME", str(tmp_path))
    (tmp_path / "simulation").mkdir()
    platform, body = attest(REPORT_DATA[:32], platform="simulated")
    root = public_der(load_machine_key(str(tmp_path / "simulation" / "key")))
    answer = verify_evidence(
        json.dumps(body).encode(),
        platform=platform,
        nonce=REPORT_DATA[:32] + bytes(16),
        trust_roots=[root],
        policy=POLICY,
    )
    assert (answer.authentic, answer.bound) == (True, Bound.YES)


@pytest.mark.parametrize("size", [0, 31, 65])
def test_report_data_that_binds_too_little_or_fits_nowhere(size: int) -> None:
    with pytest.raises(Refused) as caught:
        attest(bytes(size), platform="simulated")
    assert caught.value.code == "sdk.evidence.report_data"
