"""The verifier contract, over every registered technology and over verifiers that were built to break it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import EvidenceError
from cloister.rats.claims import Level
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import Evidence, ExpectedBinding
from cloister.tee.insecure.attester import SimulationAttester
from cloister.tee.insecure.endorsements import read_machine_root
from cloister.tee.registry import TECHNOLOGIES, verifier_for
from cloister.testing.tpm import INIT_DATA_DIGEST, NOW, REPORT_DATA, EndorsementCA, FakeTPM, run_session
from cloister.testing.verifiercontract import CHANGES, ContractCase, violations

CaseMaker = Callable[[str], ContractCase]


def _tpm_case(tpm: FakeTPM, ca: EndorsementCA, foreign_ca: EndorsementCA) -> ContractCase:
    session = run_session(tpm, report_data=REPORT_DATA, init_data_digest=INIT_DATA_DIGEST)
    return ContractCase(
        evidence=session.evidence,
        binding=session.binding,
        endorsements=ca.endorsements(),
        at=NOW,
        level=Level.MEASURED,
        foreign=foreign_ca.endorsements(),
        code_prefix="tee.tpm.",
        codes={
            "other_report_data": "tee.tpm.report_data_mismatch",
            "no_report_data": "tee.tpm.no_report_data",
            "other_init_data": "tee.tpm.init_data_mismatch",
            "no_init_data": "tee.tpm.init_data_algorithm",
            "long_init_data": "tee.tpm.init_data_algorithm",
            "no_roots": "tee.tpm.no_roots",
            "foreign_roots": "tee.tpm.ek_certificate.untrusted",
            "roots_of_another_technology": "tee.tpm.no_roots",
            "another_technology": "tee.tpm.malformed",
            "unknown_member": "tee.tpm.malformed",
        },
        binary_members=(
            "ak_public",
            "ek_certificate",
            "activation",
            "tpm_quote.signature",
            "tpm_quote.message",
            "event_log",
        ),
        # Event types and event data are not measured, and nothing is read from them; test_tpm_verifier flips the rest.
        unauthenticated=frozenset({"event_log"}),
        optional=frozenset({"event_log"}),
    )


def _simulated_case(directory: Path) -> ContractCase:
    with SimulationAttester(str(directory / "key.pem")) as attester:
        attester.extend(8, INIT_DATA_DIGEST)
        body = attester.attest(REPORT_DATA)
    return ContractCase(
        evidence=Evidence(tee="cloister-simulated", body=body),
        binding=ExpectedBinding(report_data=REPORT_DATA, init_data_digest=INIT_DATA_DIGEST),
        endorsements=Endorsements(roots=(read_machine_root(directory / "key.pem"),)),
        at=NOW,
        level=Level.SIMULATED,
        foreign=Endorsements(roots=(read_machine_root(directory / "other.pem"),)),
        code_prefix="tee.insecure.",
        codes={
            "other_report_data": "tee.insecure.report_data_mismatch",
            "no_report_data": "tee.insecure.no_report_data",
            "other_init_data": "tee.insecure.init_data_mismatch",
            "no_init_data": "tee.insecure.init_data_algorithm",
            "long_init_data": "tee.insecure.init_data_algorithm",
            "no_roots": "tee.insecure.no_roots",
            "foreign_roots": "tee.insecure.key_untrusted",
            "roots_of_another_technology": "tee.insecure.no_roots",
            "another_technology": "tee.insecure.malformed",
            "unknown_member": "tee.insecure.malformed",
        },
        binary_members=("public_key", "report_data", "signature"),
    )


@pytest.fixture
def case_of(tpm: FakeTPM, ca: EndorsementCA, foreign_ca: EndorsementCA, tmp_path: Path) -> CaseMaker:
    """Return the contract case of a technology; one without a case fails, it is not skipped."""
    makers: dict[str, Callable[[], ContractCase]] = {
        "tpm": lambda: _tpm_case(tpm, ca, foreign_ca),
        "cloister-simulated": lambda: _simulated_case(tmp_path),
    }
    return lambda tee: makers[tee]()


@pytest.mark.parametrize("tee", TECHNOLOGIES)
def test_every_verifier_keeps_the_contract(tee: str, case_of: CaseMaker) -> None:
    case = case_of(tee)
    assert set(case.codes) == set(CHANGES)
    assert violations(verifier_for(tee), case) == []


def _lenient(ignored: str, tee: str, case: ContractCase) -> Callable[..., Any]:
    """Return a verifier that does not look at one of its inputs."""
    verify = verifier_for(tee)

    def bad(evidence: Evidence, binding: ExpectedBinding, endorsements: Endorsements, *, at: Any) -> Any:
        if ignored == "nonce":
            binding = replace(binding, report_data=case.binding.report_data)
        elif ignored == "init data":
            binding = replace(binding, init_data_digest=case.binding.init_data_digest)
        elif ignored == "roots":
            endorsements = case.endorsements
        elif ignored == "evidence":
            evidence = case.evidence
        return verify(evidence, binding, endorsements, at=at)

    return bad


@pytest.mark.parametrize("tee", TECHNOLOGIES)
@pytest.mark.parametrize(
    ("ignored", "found"),
    [
        ("nonce", "other_report_data: accepted"),
        ("init data", "other_init_data: accepted"),
        ("roots", "no_roots: accepted"),
        ("evidence", "unknown_member: accepted"),
    ],
)
def test_a_verifier_that_ignores_an_input_is_found(tee: str, ignored: str, found: str, case_of: CaseMaker) -> None:
    case = case_of(tee)
    assert found in violations(_lenient(ignored, tee, case), case)


def test_a_foreign_exception_and_a_foreign_code_are_found(case_of: CaseMaker) -> None:
    case = case_of("cloister-simulated")
    verify = verifier_for("cloister-simulated")

    def bad(evidence: Evidence, binding: ExpectedBinding, endorsements: Endorsements, *, at: Any) -> Any:
        if not endorsements.roots:
            raise KeyError("root")
        if evidence.tee == "another":
            raise EvidenceError("somewhere.else", "no")
        return verify(evidence, binding, endorsements, at=at)

    found = violations(bad, case)
    assert "no_roots: KeyError escaped: 'root'" in found
    assert "another_technology: refused with somewhere.else, not tee.insecure.malformed" in found


def test_a_verifier_that_accepts_nothing_is_found(case_of: CaseMaker) -> None:
    def bad(*_: Any, **__: Any) -> Any:
        raise EvidenceError("tee.insecure.no", "no")

    assert any(text.startswith("good evidence refused") for text in violations(bad, case_of("cloister-simulated")))
