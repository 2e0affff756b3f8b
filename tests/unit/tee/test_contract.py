"""The verifier contract, over every registered technology and over verifiers that were built to break it."""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.ocsp import OCSPCertStatus

from cloister.errors import EvidenceError, Refused
from cloister.rats.claims import Level
from cloister.rats.endorsement import Document, Endorsements
from cloister.rats.evidence import AuthenticEvidence, Evidence, ExpectedBinding, Slot
from cloister.rats.result import Unchecked, Verdict
from cloister.tee.insecure.attester import SimulationAttester
from cloister.tee.insecure.endorsements import read_machine_root
from cloister.tee.registry import TECHNOLOGIES, Authenticate, authenticator_for, register_technology
from cloister.tee.sev_snp.abi import parse_report
from cloister.tee.sev_snp.cocoshape import encode_shape
from cloister.testing import azure, cca, dcap, nitro, nvidia, snp
from cloister.testing.eventlog import build_event_log, seabios_events
from cloister.testing.tpm import AK_PROFILE, INIT_DATA_DIGEST, NOW, REPORT_DATA, EndorsementCA, FakeTPM, run_session
from cloister.testing.verifiercontract import (
    BASE64URL,
    CHANGES,
    HEX,
    VARIANTS,
    ContractCase,
    Variant,
    find_violations,
    violations,
)
from cloister.wire.base64 import encode_b64

CaseMaker = Callable[[str], ContractCase]
# These verifiers accept nothing, or nothing as signed, so there is no good evidence whose changes could be tried; each
# with the test of that.
ACCEPT_NOTHING = {
    "csv": "no SM2 signatures (test_hygon_csv)",
    "sample": "nobody signs it, so all of it is accepted as unsigned, and nothing as signed (test_sample)",
    "se": "only who made the attestation request can check the answer (test_ibm_se)",
}
VERIFIED = [tee for tee in TECHNOLOGIES if tee not in ACCEPT_NOTHING]


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
            "other_report_data": "evidence.freshness",
            "no_report_data": "evidence.freshness.no_session",
            "other_init_data": "evidence.init_data",
            "no_init_data": "evidence.init_data.length",
            "long_init_data": "evidence.init_data.length",
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
        variants={
            "debug": "a TPM has no debug mode",
            "stale": Variant(
                code="tee.tpm.ek_certificate.revocation",
                verdict=Verdict.UNAVAILABLE,
                endorsements=replace(
                    ca.endorsements(), revocation_lists=(ca.revocation_list(next_update=NOW - timedelta(hours=1)),)
                ),
            ),
            "revoked": Variant(
                code="tee.tpm.ek_certificate.revoked",
                endorsements=replace(ca.endorsements(), revocation_lists=(ca.revocation_list([tpm.ek_certificate]),)),
            ),
        },
    )


def _snp_case() -> ContractCase:
    chip = snp.FakeChip.made_by(snp.FakeAMD("Turin"))
    endorsements = chip.amd.endorsements()
    stale = chip.amd.revocation_list(start=snp.NOW - timedelta(days=9), end=snp.NOW - timedelta(days=1))
    return ContractCase(
        evidence=chip.evidence(version=5),
        binding=ExpectedBinding(report_data=snp.REPORT_DATA, init_data_digest=snp.INIT_DATA_DIGEST),
        endorsements=endorsements,
        at=snp.NOW,
        level=Level.HARDWARE,
        foreign=snp.FakeAMD("Turin", name="stranger").endorsements(),
        code_prefix="tee.sev_snp.",
        codes={
            "other_report_data": "evidence.freshness",
            "no_report_data": "evidence.freshness.no_session",
            "other_init_data": "evidence.init_data",
            "no_init_data": "evidence.init_data.length",
            "long_init_data": "evidence.init_data.length",
            "no_roots": "tee.sev_snp.no_roots",
            "foreign_roots": "tee.sev_snp.vek.untrusted",
            "roots_of_another_technology": "tee.sev_snp.no_roots",
            "another_technology": "tee.sev_snp.malformed",
            "unknown_member": "tee.sev_snp.malformed",
        },
        labels=frozenset({"cert_chain.0.cert_type"}),  # certificates are found by what they are
        binary_members=("attestation_report",),
        variants={
            "debug": Variant(code="appraisal.debug", evidence=chip.evidence(policy=0xB0000)),
            "stale": Variant(
                code="tee.sev_snp.revocation",
                verdict=Verdict.UNAVAILABLE,
                endorsements=replace(endorsements, revocation_lists=(stale,)),
            ),
            "revoked": Variant(
                code="tee.sev_snp.revocation.revoked",
                endorsements=replace(endorsements, revocation_lists=(chip.amd.revocation_list(65537),)),
            ),
        },
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
            "other_report_data": "evidence.freshness",
            "no_report_data": "evidence.freshness.no_session",
            "other_init_data": "evidence.init_data",
            "no_init_data": "evidence.init_data.length",
            "long_init_data": "evidence.init_data.length",
            "no_roots": "tee.insecure.no_roots",
            "foreign_roots": "tee.insecure.key_untrusted",
            "roots_of_another_technology": "tee.insecure.no_roots",
            "another_technology": "tee.insecure.malformed",
            "unknown_member": "tee.insecure.malformed",
        },
        binary_members=("public_key", "report_data", "signature"),
        variants=dict.fromkeys(VARIANTS, "a simulation has nothing of the kind"),
    )


def _dcap_case(tee: str, intel: dcap.FakeIntel, foreign: dcap.FakeIntel) -> ContractCase:
    kind = tee.upper()
    platform = dcap.FakePlatform(intel, kind)
    events = dcap.boot_log()
    body: dict[str, Any]
    if tee == "tdx":
        body = {
            "quote": encode_b64(platform.quote(dcap.logged_report(events, td15=True))),
            "cc_eventlog": encode_b64(build_event_log(events, algorithms=("sha384",))),
        }
        debug = platform.quote(dcap.td_report(td_attributes=(1 << 28 | 1).to_bytes(8, "little")))
    else:
        body = {"quote": encode_b64(platform.quote(dcap.enclave_report()))}
        debug = platform.quote(dcap.enclave_report(attributes=b"\x07" + bytes(15)))
    return ContractCase(
        evidence=Evidence(tee=tee, body=body),
        binding=ExpectedBinding(report_data=dcap.REPORT_DATA, init_data_digest=dcap.CONFIG_ID),
        endorsements=intel.endorsements(tee),
        at=dcap.NOW,
        level=Level.HARDWARE,
        foreign=foreign.endorsements(tee),
        code_prefix="tee.",
        codes={
            "other_report_data": "evidence.freshness",
            "no_report_data": "evidence.freshness.no_session",
            "other_init_data": "evidence.init_data",
            "no_init_data": "evidence.init_data.length",
            "long_init_data": "evidence.init_data.length",
            "no_roots": "tee.dcap.no_roots",
            "foreign_roots": "tee.dcap.pck_chain.untrusted",
            "roots_of_another_technology": "tee.dcap.no_roots",
            "another_technology": f"tee.{tee}.evidence.malformed",
            "unknown_member": f"tee.{tee}.evidence.malformed",
        },
        binary_members=tuple(body),
        # Event types and data are not measured: test_tdx_verifier flips the digests.
        unauthenticated=frozenset({"cc_eventlog"}),
        optional=frozenset({"cc_eventlog"}),
        padded=frozenset({"quote"}),
        variants={
            "debug": Variant(code="appraisal.debug", evidence=Evidence(tee=tee, body={"quote": encode_b64(debug)})),
            "stale": Variant(code="tee.dcap.collateral.stale", verdict=Verdict.UNAVAILABLE, at=dcap.NEXT_UPDATE),
            "revoked": Variant(
                code="tee.dcap.certificate.revoked",
                endorsements=intel.endorsements(tee, intel.collateral(kind, revoked=[platform.pck])),
            ),
        },
    )


def _azure_case(
    hardware: snp.FakeChip | dcap.FakePlatform, foreign: Endorsements, ak: rsa.RSAPrivateKey
) -> ContractCase:
    machine = azure.FakeParavisor(hardware, ak, nv_bytes=0)
    machine.tpm.extend(8, azure.INIT_DATA_DIGEST)
    endorsements = machine.endorsements()
    if isinstance(hardware, snp.FakeChip):
        last, no_roots, untrusted = "vcek", "tee.sev_snp.no_roots", "tee.sev_snp.vek.untrusted"
        debug: dict[str, Any] = {"policy": 0xB0000}
        lists = hardware.amd.revocation_list(start=azure.NOW - timedelta(days=9), end=azure.NOW - timedelta(days=1))
        stale = Variant(
            code="tee.sev_snp.revocation",
            verdict=Verdict.UNAVAILABLE,
            endorsements=replace(endorsements, revocation_lists=(lists,)),
        )
        revoked = Variant(
            code="tee.sev_snp.revocation.revoked",
            endorsements=replace(endorsements, revocation_lists=(hardware.amd.revocation_list(65537),)),
        )
    else:
        last, no_roots, untrusted = "td_quote", "tee.dcap.no_roots", "tee.dcap.pck_chain.untrusted"
        debug = {"td_attributes": b"\x01" + bytes(7)}
        stale = Variant(code="tee.dcap.collateral.stale", verdict=Verdict.UNAVAILABLE, at=dcap.NEXT_UPDATE)
        collateral = hardware.intel.collateral("TDX", revoked=[hardware.pck])
        documents = hardware.intel.endorsements("tdx", collateral).documents
        revoked = Variant(code="tee.dcap.certificate.revoked", endorsements=replace(endorsements, documents=documents))
    return ContractCase(
        evidence=machine.evidence(),
        binding=ExpectedBinding(report_data=azure.NONCE, init_data_digest=azure.INIT_DATA_DIGEST),
        endorsements=endorsements,
        at=azure.NOW,
        level=Level.HARDWARE,
        foreign=replace(foreign, roots=tuple(replace(root, tee=machine.tee) for root in foreign.roots)),
        code_prefix="tee.",
        codes={
            "other_report_data": "evidence.freshness",
            "no_report_data": "evidence.freshness.no_session",
            "other_init_data": "evidence.init_data",
            "no_init_data": "evidence.init_data.length",
            "long_init_data": "evidence.init_data.length",
            "no_roots": no_roots,
            "foreign_roots": untrusted,
            "roots_of_another_technology": no_roots,
            "another_technology": "tee.azure.malformed",
            "unknown_member": "tee.azure.malformed",
        },
        binary_members=("tpm_quote.message", "tpm_quote.signature", "hcl_report", last),
        encodings={
            "tpm_quote.message": HEX,
            "tpm_quote.signature": HEX,
            "hcl_report": BASE64URL,
            last: BASE64URL,
        },
        # The TD report inside is not read, its quote is; test_azure_verifier flips what is around it.
        unauthenticated=frozenset() if last == "vcek" else frozenset({"hcl_report"}),
        padded=frozenset({"hcl_report", "td_quote"} - {"td_quote" if last == "vcek" else ""}),
        variants={
            "debug": Variant(
                code="appraisal.debug", evidence=machine.evidence(faults=azure.AzureFaults(hardware=debug))
            ),
            "stale": stale,
            "revoked": revoked,
        },
    )


def _nvidia_case() -> ContractCase:
    pki, foreign, manifests = nvidia.DevicePKI(), nvidia.DevicePKI(), nvidia.ManifestPKI()
    device = pki.device()
    debug = pki.device(replace(nvidia.BLACKWELL, flags=bytes.fromhex("90000001")))
    chain = device.chain[1:]
    good = nvidia.endorse(pki, [device], manifests)
    stale = nvidia.good_responses(chain, next_update=nvidia.NOW - timedelta(minutes=1))
    revoked = nvidia.ocsp_response(chain[0].certificate, chain[1], status=OCSPCertStatus.REVOKED)
    return ContractCase(
        evidence=nvidia.evidence_of([device]),
        binding=ExpectedBinding(report_data=nvidia.REPORT_DATA, init_data_digest=Unchecked(reason="a GPU binds none")),
        endorsements=good,
        at=nvidia.NOW,
        level=Level.HARDWARE,
        foreign=nvidia.endorse(foreign),
        code_prefix="tee.nvidia_gpu.",
        codes={
            "other_report_data": "evidence.freshness",
            "no_report_data": "evidence.freshness.no_session",
            "other_init_data": "evidence.init_data.no_field",
            "no_init_data": "evidence.init_data.no_field",
            "long_init_data": "evidence.init_data.no_field",
            "no_roots": "tee.nvidia_gpu.chain.no_root",
            "foreign_roots": "tee.nvidia_gpu.chain.untrusted",
            "roots_of_another_technology": "tee.nvidia_gpu.chain.no_root",
            "another_technology": "tee.nvidia_gpu.malformed",
            "unknown_member": "tee.nvidia_gpu.malformed",
        },
        binary_members=("device_evidence_list.0.evidence", "device_evidence_list.0.certificate"),
        # Of PEM only the blocks are read, and they ignore line ends; test_nvidia_verifier flips bits of the DER.
        unauthenticated=frozenset({"device_evidence_list.0.certificate"}),
        optional=frozenset({"device_evidence_list.0.arch", "device_evidence_list.0.uuid"}),
        variants={
            "debug": Variant(
                code="appraisal.debug",
                evidence=nvidia.evidence_of([debug]),
                endorsements=nvidia.endorse(pki, [debug], manifests),
            ),
            "stale": Variant(
                code="tee.nvidia_gpu.revocation",
                verdict=Verdict.UNAVAILABLE,
                endorsements=Endorsements(roots=pki.roots(), documents=stale),
            ),
            "revoked": Variant(
                code="tee.nvidia_gpu.revocation.revoked",
                endorsements=Endorsements(
                    roots=pki.roots(), documents=(Document(name="revoked.ocsp", data=revoked), *good.documents)
                ),
            ),
        },
    )


def _nitro_case() -> ContractCase:
    ca = nitro.NitroCA()
    return ContractCase(
        evidence=nitro.FakeNSM(ca).evidence(),
        binding=nitro.BINDING,
        endorsements=ca.endorsements(),
        at=nitro.NOW,
        level=Level.HARDWARE,
        foreign=nitro.NitroCA().endorsements(),
        code_prefix="tee.nitro.",
        codes={
            "other_report_data": "evidence.freshness",
            "no_report_data": "evidence.freshness.no_session",
            "other_init_data": "evidence.init_data",
            "no_init_data": "evidence.init_data.length",
            "long_init_data": "evidence.init_data",  # the field has the length of what was put in
            "no_roots": "tee.nitro.no_roots",
            "foreign_roots": "tee.nitro.root_untrusted",
            "roots_of_another_technology": "tee.nitro.no_roots",
            "another_technology": "tee.nitro.malformed",
            "unknown_member": "tee.nitro.malformed",
        },
        binary_members=("document",),
        variants={
            "debug": Variant(code="appraisal.debug", evidence=nitro.nitro_evidence(ca, debug=True)),
            "stale": Variant(code="appraisal.nitro.age", evidence=nitro.nitro_evidence(ca, age=timedelta(hours=4))),
            "revoked": Variant(
                code="tee.nitro.certificate.revoked",
                endorsements=replace(ca.endorsements(), revocation_lists=(ca.revocation_list(ca.region_serial),)),
            ),
        },
    )


def _cca_case() -> ContractCase:
    platform = cca.FakeCCA()
    return ContractCase(
        evidence=platform.evidence(),
        binding=cca.BINDING,
        endorsements=platform.endorsements(),
        at=cca.NOW,
        level=Level.HARDWARE,
        foreign=cca.FakeCCA().endorsements(),
        code_prefix="tee.cca.",
        codes={
            "other_report_data": "evidence.freshness",
            "no_report_data": "evidence.freshness.no_session",
            "other_init_data": "evidence.init_data",
            "no_init_data": "evidence.init_data.length",
            "long_init_data": "evidence.init_data.length",
            "no_roots": "tee.cca.no_anchor",
            "foreign_roots": "tee.cca.platform.signature",
            "roots_of_another_technology": "tee.cca.no_anchor",
            "another_technology": "tee.cca.malformed",
            "unknown_member": "tee.cca.malformed",
        },
        binary_members=("token",),
        variants={
            "debug": Variant(code="appraisal.debug", evidence=platform.evidence(platform={2395: 0x5000})),
            "stale": "tokens hold no time, and no vendor publishes collateral for them",
            "revoked": "anchors are raw keys: their owner withdraws them, and then there is none",
        },
    )


@pytest.fixture
def case_of(
    tpm: FakeTPM,
    ca: EndorsementCA,
    foreign_ca: EndorsementCA,
    intel: dcap.FakeIntel,
    foreign_intel: dcap.FakeIntel,
    amd_chip: snp.FakeChip,
    intel_platform: dcap.FakePlatform,
    rsa_ak: rsa.RSAPrivateKey,
    tmp_path: Path,
) -> CaseMaker:
    """Return the contract case of a technology; one without a case fails, it is not skipped."""
    makers: dict[str, Callable[[], ContractCase]] = {
        "tpm": lambda: _tpm_case(tpm, ca, foreign_ca),
        "snp": _snp_case,
        "nitro": _nitro_case,
        "cca": _cca_case,
        "az-snp-vtpm": lambda: _azure_case(
            amd_chip, snp.FakeAMD(amd_chip.amd.line, name="stranger").endorsements(), rsa_ak
        ),
        "az-tdx-vtpm": lambda: _azure_case(intel_platform, foreign_intel.endorsements("tdx"), rsa_ak),
        "cloister-simulated": lambda: _simulated_case(tmp_path),
        "tdx": lambda: _dcap_case("tdx", intel, foreign_intel),
        "sgx": lambda: _dcap_case("sgx", intel, foreign_intel),
        "nvidia": _nvidia_case,
    }
    return lambda tee: makers[tee]()


def test_tpm_evidence_with_a_certified_ak_keeps_the_contract_too(
    ca: EndorsementCA, foreign_ca: EndorsementCA, ek: rsa.RSAPrivateKey
) -> None:
    tpm = FakeTPM(ca, events=seabios_events(), ek=ek)
    tpm.extend(8, INIT_DATA_DIGEST)
    certificate = ca.issue(tpm.ak_key.public_key(), AK_PROFILE)
    case = replace(
        _tpm_case(tpm, ca, foreign_ca),
        evidence=tpm.foreign_evidence(REPORT_DATA[:32], certificate=certificate),
        binding=ExpectedBinding(report_data=REPORT_DATA, init_data_digest=INIT_DATA_DIGEST),
        binary_members=("ak_public", "ak_certificate", "tpm_quote.signature", "tpm_quote.message", "event_log"),
        # A certificate is of the key alone: attributes that the verifier does not ask about may be any.
        unauthenticated=frozenset({"event_log", "ak_public"}),
        optional=frozenset({"event_log", "ak_intermediates"}),
        variants={
            "debug": "a TPM has no debug mode",
            "stale": Variant(
                code="tee.tpm.ak_certificate.revocation",
                verdict=Verdict.UNAVAILABLE,
                endorsements=replace(
                    ca.endorsements(), revocation_lists=(ca.revocation_list(next_update=NOW - timedelta(hours=1)),)
                ),
            ),
            "revoked": Variant(
                code="tee.tpm.ak_certificate.revoked",
                endorsements=replace(ca.endorsements(), revocation_lists=(ca.revocation_list([certificate]),)),
            ),
        },
    )
    case = replace(case, codes={**case.codes, "foreign_roots": "tee.tpm.ak_certificate.untrusted"})
    assert violations(authenticator_for("tpm"), case) == []


@pytest.mark.long
@pytest.mark.parametrize("tee", VERIFIED)
def test_every_verifier_keeps_the_contract(tee: str, case_of: CaseMaker) -> None:
    case = case_of(tee)
    assert set(case.codes) == set(CHANGES)
    assert violations(authenticator_for(tee), case) == []


def test_cocos_own_shape_keeps_the_contract_member_by_member() -> None:
    """The report as CoCo's guests send it, each member left out and of every wrong type."""
    case = _snp_case()
    report = parse_report(base64.b64decode(case.evidence.body["attestation_report"]))
    body = {"attestation_report": encode_shape(report), "cert_chain": case.evidence.body["cert_chain"]}
    case = replace(case, evidence=Evidence(tee="snp", body=body), binary_members=())
    assert violations(authenticator_for("snp"), case) == []


class _AnySlot(Slot):
    """A field that claims to hold whatever is asked of it."""

    def fit(self, digest: bytes) -> bytes:
        return self.value


def _lenient(ignored: str, tee: str, case: ContractCase) -> Authenticate:
    """Return a verifier that does not look at one of its inputs."""
    authenticate = authenticator_for(tee)

    def bad(
        evidence: Evidence, endorsements: Endorsements, *, at: datetime, session_secret: bytes = b""
    ) -> AuthenticEvidence:
        if ignored == "roots":
            endorsements = case.endorsements
        elif ignored == "evidence":
            evidence = case.evidence
        found = authenticate(evidence, endorsements, at=at, session_secret=session_secret)
        if ignored == "nonce":
            return replace(found, freshness=_AnySlot(name="any", value=found.freshness.value))
        if ignored == "part of the nonce":
            return replace(found, freshness=Slot(name="1", value=found.freshness.value[:1], size=1, cut=True))
        if ignored == "init data" and found.init_data is not None:
            return replace(found, init_data=_AnySlot(name="any", value=found.init_data.value))
        return found

    return bad


FAULTS = [
    ("nonce", "other_report_data: accepted"),
    ("part of the nonce", "only 1 bytes of the session are bound"),
    ("init data", "other_init_data: accepted"),
    ("roots", "no_roots: accepted"),
    ("evidence", "unknown_member: accepted"),
]


@pytest.mark.parametrize("tee", VERIFIED)
@pytest.mark.parametrize(("ignored", "found"), FAULTS)
def test_a_verifier_that_ignores_an_input_is_found(tee: str, ignored: str, found: str, case_of: CaseMaker) -> None:
    case = case_of(tee)
    if ignored == "init data" and case.codes["other_init_data"] == "evidence.init_data.no_field":
        return  # it has no init data that could be ignored
    assert found in find_violations(_lenient(ignored, tee, case), case)


def test_a_foreign_exception_and_a_foreign_code_are_found(case_of: CaseMaker) -> None:
    case = case_of("cloister-simulated")
    authenticate = authenticator_for("cloister-simulated")

    def bad(
        evidence: Evidence, endorsements: Endorsements, *, at: datetime, session_secret: bytes = b""
    ) -> AuthenticEvidence:
        if not endorsements.roots:
            raise KeyError("root")
        if evidence.tee == "another":
            raise EvidenceError("somewhere.else", "no")
        return authenticate(evidence, endorsements, at=at, session_secret=session_secret)

    found = violations(bad, case)
    assert "no_roots: KeyError escaped: 'root'" in found
    assert "another_technology: refused with somewhere.else, not tee.insecure.malformed" in found


def test_a_verifier_that_writes_to_the_evidence_is_found(case_of: CaseMaker) -> None:
    case = case_of("cloister-simulated")
    authenticate = authenticator_for("cloister-simulated")

    def bad(evidence: Evidence, endorsements: Endorsements, **more: Any) -> AuthenticEvidence:
        body = {name: value for name, value in evidence.body.items() if name != "seen"}
        found = authenticate(replace(evidence, body=body), endorsements, **more)
        dict.__setitem__(evidence.body, "seen", True)  # type: ignore[arg-type]  # it is one, whatever its type says
        return found

    assert "the evidence was written to" in violations(bad, case)


def test_a_verifier_that_accepts_nothing_is_found(case_of: CaseMaker) -> None:
    def bad(*_: Any, **__: Any) -> Any:
        raise EvidenceError("tee.insecure.no", "no")

    assert any(text.startswith("good evidence refused") for text in violations(bad, case_of("cloister-simulated")))


def test_a_case_must_have_the_variants_or_say_why_not(case_of: CaseMaker) -> None:
    case = replace(case_of("cloister-simulated"), variants={})
    found = violations(authenticator_for("cloister-simulated"), case)
    assert [text.partition(":")[0] for text in found] == list(VARIANTS)


def test_a_variant_that_is_accepted_is_found(case_of: CaseMaker) -> None:
    case = case_of("cloister-simulated")
    case = replace(case, variants={**case.variants, "debug": Variant(code="appraisal.debug")})
    assert [text.partition(":")[0] for text in violations(authenticator_for("cloister-simulated"), case)] == ["debug"]


def test_a_verifier_that_ignores_its_nonce_cannot_be_registered(
    case_of: CaseMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of("cloister-simulated")
    package = ModuleType("planted.verifier")
    package.authenticate = _lenient("nonce", "cloister-simulated", case)  # type: ignore[attr-defined]  # made here
    monkeypatch.setitem(sys.modules, "planted", ModuleType("planted"))
    monkeypatch.setitem(sys.modules, "planted.verifier", package)
    with pytest.raises(Refused) as caught:
        register_technology("planted", "planted", violations=lambda verify: violations(verify, case))
    assert caught.value.code == "tee.contract"
    with pytest.raises(EvidenceError):
        authenticator_for("planted")
    package.authenticate = authenticator_for("cloister-simulated")  # type: ignore[attr-defined]  # made here
    register_technology("planted", "planted", violations=lambda verify: violations(verify, case))
    assert authenticator_for("planted") is authenticator_for("cloister-simulated")


def test_a_name_of_this_build_cannot_be_taken() -> None:
    with pytest.raises(Refused) as caught:
        register_technology("tpm", "planted", violations=lambda _: [])
    assert caught.value.code == "tee.contract"
