"""Azure evidence: hardware, paravisor and virtual TPM, each link broken for its own reason; the owner's rules."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from cloister.errors import EvidenceError, FormatRefused, Refused
from cloister.rats.claims import Level
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import Evidence, ExpectedBinding
from cloister.rats.policy import AppraisalPolicy
from cloister.rats.result import Bound, Examination, Finding, Question, Severity, Unchecked, Verdict
from cloister.rats.rules import AzureRules, Handling, PlatformRules, SNPRules, TDXRules
from cloister.tee.azure.appraisal import appraise_platform
from cloister.tee.azure.endorsements import PINS
from cloister.tee.azure.evidence import AZ_SNP, AZ_TDX
from cloister.tee.azure.verifier import authenticate, read_claims
from cloister.tee.registry import pins_for
from cloister.tee.tpm import constants as c
from cloister.tee.tpm.abi import PCRSelection
from cloister.tee.verification import examine_evidence
from cloister.testing.azure import INIT_DATA_DIGEST, NONCE, NOW, AzureFaults, FakeParavisor
from cloister.testing.snp import FakeAMD, FakeChip
from cloister.testing.tpm import QuoteFaults
from tampering import flipped

NOT_ASKED = Unchecked(reason="not asked for")
MACHINES = ["on_snp", "on_tdx"]


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> FakeParavisor:
    """One VM on each hardware."""
    found: FakeParavisor = request.getfixturevalue(request.param)
    return found


def examine(
    machine: FakeParavisor,
    evidence: Evidence,
    *,
    nonce: bytes | Unchecked = NONCE,
    exact: bool = False,
    rules: PlatformRules | None = None,
    endorsements: Endorsements | None = None,
    **policy: Any,
) -> Examination:
    return examine_evidence(
        evidence,
        ExpectedBinding(report_data=nonce, init_data_digest=NOT_ASKED if exact else INIT_DATA_DIGEST, exact=exact),
        endorsements or machine.endorsements(),
        AppraisalPolicy(
            id="p",
            tees=frozenset({machine.tee}),
            levels=frozenset({Level.HARDWARE}),
            accept_debug=False,
            digest="",
            rules=rules or PlatformRules(),
            **policy,
        ),
        NOT_ASKED,
        at=NOW,
    )


def refusal(machine: FakeParavisor, faults: AzureFaults, *, version: int = 2, nonce: bytes = NONCE) -> Refused:
    with pytest.raises(Refused) as caught:
        authenticate(machine.evidence(nonce, version=version, faults=faults), machine.endorsements(), at=NOW)
    return caught.value


def finding(result: Examination, code: str) -> Finding:
    (found,) = (item for item in result.findings if item.code == code)
    return found


@pytest.mark.parametrize("version", [0, 1, 2])
def test_good_evidence_of_every_version(version: int, machine: FakeParavisor) -> None:
    result = examine(machine, machine.evidence(version=version))
    assert [item.code for item in result.findings if item.refuses] == []
    assert (result.verdict, result.bound, result.authentic) == (Verdict.ACCEPT, Bound.YES, True)
    claims = result.claims
    assert claims is not None
    assert (claims.tee, claims.level, claims.debug) == (machine.tee, Level.HARDWARE, False)
    assert claims.report_data == NONCE
    assert claims.init_data == hashlib.sha256(bytes(32) + INIT_DATA_DIGEST).digest()
    assert claims.registers["pcr08"] == claims.init_data
    assert {"pcr16", "pcr23"}.isdisjoint(claims.registers)
    assert ("measurement" if machine.tee == AZ_SNP else "mrtd") in claims.registers
    assert claims.native["pcr8"] == claims.init_data.hex()
    assert claims.native["vm_unique_id"]
    assert claims.raw["tpm"]["pcr08"] == claims.init_data.hex()
    assert claims.tcb is not None
    assert any("event log" in item.reason for item in result.unchecked)


def test_claims_have_the_names_of_cocos_policies(on_snp: FakeParavisor, on_tdx: FakeParavisor) -> None:
    raw = authenticate(on_snp.evidence(), on_snp.endorsements(), at=NOW).claims.raw
    assert raw["policy_debug_allowed"] == "false"
    assert raw["reported_tcb_snp"] == "29"
    assert raw["measurement"] == "q6ur" * 16  # base64, as that service writes it here and nowhere else
    assert raw["report_data"] == NONCE.hex()
    raw = authenticate(on_tdx.evidence(), on_tdx.endorsements(), at=NOW).claims.raw
    assert raw["quote"]["body"]["rtmr_0"] == "00" * 48
    assert raw["init_data"] == on_tdx.tpm.read_pcrs()[8].hex()


def test_the_instance_is_the_virtual_tpm(on_snp: FakeParavisor, on_tdx: FakeParavisor) -> None:
    found = {authenticate(item.evidence(), item.endorsements(), at=NOW).claims.instance_id for item in (on_snp, on_tdx)}
    assert len(found) == 1  # both fakes share one AK
    other = FakeParavisor(on_snp.hardware, rsa.generate_private_key(public_exponent=65537, key_size=2048))
    claims = authenticate(other.evidence(), other.endorsements(), at=NOW).claims
    assert claims.instance_id not in found


# 2


def test_hardware_that_nobody_vouches_for(machine: FakeParavisor, on_snp: FakeParavisor) -> None:
    code = "tee.sev_snp.no_roots" if machine.tee == AZ_SNP else "tee.dcap.no_roots"
    for roots in ((), tuple(replace(root, tee="tpm") for root in machine.endorsements().roots)):
        with pytest.raises(Refused) as caught:
            authenticate(machine.evidence(), replace(machine.endorsements(), roots=roots), at=NOW)
        assert caught.value.code == code
    stranger = FakeParavisor(FakeChip.made_by(FakeAMD("Milan", name="stranger")), on_snp.tpm.ak_key)  # type: ignore[arg-type]  # an RSA key here
    with pytest.raises(Refused) as caught:
        authenticate(on_snp.evidence(), stranger.endorsements(), at=NOW)
    assert caught.value.code.startswith("tee.sev_snp.")


def test_the_pins_are_the_hardwares_under_azures_names() -> None:
    assert {pin.tee for pin in PINS} == {AZ_SNP, AZ_TDX}
    assert {pin.sha256 for pin in pins_for(AZ_SNP)} == {pin.sha256 for pin in pins_for("snp")}
    assert {pin.sha256 for pin in pins_for(AZ_TDX)} == {pin.sha256 for pin in pins_for("tdx")}


def test_an_altered_hardware_report(on_snp: FakeParavisor) -> None:
    evidence = on_snp.evidence()
    raw = bytearray(on_snp.hcl_report(NONCE))
    raw[32 + 0x90] ^= 1  # measurement
    from cloister.testing.azure import _padded

    with pytest.raises(EvidenceError) as caught:
        authenticate(
            replace(evidence, body={**evidence.body, "hcl_report": _padded(bytes(raw))}),
            on_snp.endorsements(),
            at=NOW,
        )
    assert caught.value.code == "tee.sev_snp.signature_invalid"


def test_missing_revocation_leaves_the_verdict_open(machine: FakeParavisor) -> None:
    bare = replace(machine.endorsements(), revocation_lists=(), documents=())
    result = examine(machine, machine.evidence(), endorsements=bare)
    assert (result.verdict, result.authentic, result.bound) == (Verdict.UNAVAILABLE, False, Bound.YES)


# 3


@pytest.mark.parametrize(
    "change",
    [
        lambda digest: bytes(64),
        lambda digest: digest + b"\0" * 31 + b"\1",
        lambda digest: flipped(digest, 0) + bytes(32),
        lambda digest: digest + digest,
        lambda digest: bytes(32) + digest,
    ],
)
def test_hardware_that_vouches_for_another_json(change: Any, machine: FakeParavisor) -> None:
    digest = hashlib.sha256(machine.variable(NONCE)).digest()
    assert refusal(machine, AzureFaults(report_data=change(digest))).code == "tee.azure.variable_mismatch"


def test_a_json_that_was_put_in_place_of_another(machine: FakeParavisor) -> None:
    """The attack the chain is there against: a software TPM's key under somebody else's genuine report."""
    attacker = FakeParavisor(machine.hardware, rsa.generate_private_key(public_exponent=65537, key_size=2048))
    carried = attacker.variable(NONCE)
    assert refusal(machine, AzureFaults(carried=carried)).code == "tee.azure.variable_mismatch"


# 4


def test_keys_that_are_not_accepted(machine: FakeParavisor) -> None:
    def jwk(n: str, e: str = "AQAB") -> dict[str, str]:
        return {"kid": "HCLAkPub", "kty": "RSA", "n": n, "e": e}

    good = machine._jwk("HCLAkPub")
    for key in (jwk("AQAB"), {**good, "e": "Aw"}, jwk("_" * 172)):
        assert refusal(machine, AzureFaults(keys=[key])).code == "tee.azure.ak_key"
    for keys in ([], [good, good], [machine._jwk("HCLEkPub")]):
        assert refusal(machine, AzureFaults(keys=keys)).code == "tee.azure.hcl.variable.malformed"


# 5 to 8


@pytest.mark.parametrize(
    ("faults", "code"),
    [
        (QuoteFaults(magic=0), "tee.tpm.attest.magic"),
        (QuoteFaults(kind=0x8017), "tee.tpm.attest.type"),
        (QuoteFaults(append_to_message=b"\0"), "tee.tpm.attest.trailing_bytes"),
        (
            QuoteFaults(signing_key=rsa.generate_private_key(public_exponent=65537, key_size=2048)),
            "tee.tpm.signature_invalid",
        ),
        (QuoteFaults(values=[bytes(32)] * 24), "tee.tpm.pcr_digest_mismatch"),
        (QuoteFaults(quoted_values=[bytes(32)] * 24), "tee.tpm.pcr_digest_mismatch"),
        (QuoteFaults(selections=()), "tee.tpm.pcr_selection"),
        (
            QuoteFaults(selections=(PCRSelection(algorithm=c.ALG_SHA1, bitmap=b"\xff\xff\xff"),)),
            "tee.tpm.pcr_selection",
        ),
        (
            QuoteFaults(selections=(PCRSelection(algorithm=c.ALG_SHA256, bitmap=b"\xff\xfe\xff"),)),
            "tee.tpm.pcr_selection",
        ),
    ],
)
def test_a_quote_that_does_not_hold(faults: QuoteFaults, code: str, machine: FakeParavisor) -> None:
    assert refusal(machine, AzureFaults(quote=faults)).code == code


def test_init_data_is_read_from_what_was_signed_only(machine: FakeParavisor) -> None:
    """A register 8 beside a quote that does not cover it is nobody's statement."""
    without = [index for index in range(24) if index != 8]
    partial = machine.evidence(faults=AzureFaults(registers=without))
    found = authenticate(partial, machine.endorsements(), at=NOW)
    assert (found.init_data, found.claims.init_data) == (None, b"")
    assert "pcr8" not in found.claims.native
    result = examine(machine, partial)
    assert (result.bound, result.verdict) == (Bound.NO, Verdict.REFUSE)
    values = list(machine.tpm.read_pcrs().values())
    lied = AzureFaults(registers=without, quote=QuoteFaults(values=values))
    assert refusal(machine, lied).code == "tee.tpm.pcr_selection"


@pytest.mark.parametrize("size", [20, 31, 33, 48, 64])
def test_init_data_of_another_hash_does_not_fit(size: int, machine: FakeParavisor) -> None:
    binding = ExpectedBinding(report_data=NONCE, init_data_digest=bytes(size))
    policy = AppraisalPolicy(
        id="p", tees=frozenset({machine.tee}), levels=frozenset(Level), accept_debug=False, digest=""
    )
    result = examine_evidence(machine.evidence(), binding, machine.endorsements(), policy, NOT_ASKED, at=NOW)
    assert finding(result, "evidence.init_data.length").refuses


# 9 and the nonce


@pytest.mark.parametrize(
    "user_data",
    [
        bytes(64),
        NONCE[:47] + bytes(17),
        NONCE + bytes(15) + b"\1",
        b"\0" + NONCE + bytes(15),
        bytes(16) + NONCE,
    ],
)
def test_user_data_is_compared_whole(user_data: bytes, machine: FakeParavisor) -> None:
    assert refusal(machine, AzureFaults(user_data=user_data)).code == "tee.azure.user_data_mismatch"


def test_user_data_that_is_missing_or_of_another_length(machine: FakeParavisor) -> None:
    assert refusal(machine, AzureFaults(user_data_text=[])).code == "tee.azure.user_data_mismatch"
    for text in ("", NONCE.hex().upper(), NONCE.hex().upper() + "00" * 17, None):
        if text is not None:
            err = refusal(machine, AzureFaults(user_data_text=text))
            assert (type(err), err.code) == (FormatRefused, "tee.azure.hcl.variable.malformed")


def test_a_nonce_that_is_no_user_data(machine: FakeParavisor) -> None:
    assert refusal(machine, AzureFaults(user_data=bytes(64)), nonce=b"").code == "tee.azure.user_data_mismatch"
    long = bytes(range(65))
    assert refusal(machine, AzureFaults(user_data=long[:64]), nonce=long).code == "tee.azure.user_data_mismatch"


def test_without_the_promise_user_data_are_a_fact_and_a_rule(machine: FakeParavisor) -> None:
    strict = PlatformRules(azure=AzureRules(require_fresh_hardware=True))
    for version, verdict in ((1, Verdict.REFUSE), (2, Verdict.ACCEPT)):
        result = examine(machine, machine.evidence(version=version), rules=strict)
        assert result.verdict is verdict
        assert finding(result, "appraisal.azure.fresh_hardware").ok is (version == 2)
    promised = examine(machine, machine.evidence(version=1, faults=AzureFaults(user_data=NONCE + bytes(16))))
    assert finding(promised, "appraisal.azure.fresh_hardware").ok


@pytest.mark.parametrize("nonce", [NONCE[:-1], NONCE + b"\0", NONCE.ljust(64, b"\0"), bytes(48)])
@pytest.mark.parametrize("exact", [False, True])
def test_a_nonce_is_compared_whole(nonce: bytes, exact: bool, machine: FakeParavisor) -> None:
    result = examine(machine, machine.evidence(), nonce=nonce, exact=exact)
    assert (result.authentic, result.bound) == (True, Bound.NO)


def test_a_quote_without_a_nonce(machine: FakeParavisor) -> None:
    evidence = machine.evidence(b"", version=1)
    result = examine(machine, evidence, nonce=NOT_ASKED, exact=True)
    assert (result.authentic, result.bound, result.verdict) == (True, Bound.NOT_REQUESTED, Verdict.REFUSE)
    assert finding(result, "appraisal.azure.nonce").refuses
    lenient = PlatformRules(azure=AzureRules(insecure_accept_empty_nonce=True))
    assert examine(machine, evidence, nonce=NOT_ASKED, exact=True, rules=lenient).verdict is Verdict.ACCEPT


# Rules


@pytest.mark.parametrize("told", [True, None])
@pytest.mark.parametrize(
    ("handling", "verdict"),
    [(Handling.ACCEPT, Verdict.ACCEPT), (Handling.WARN, Verdict.ACCEPT), (Handling.REFUSE, Verdict.REFUSE)],
)
def test_a_console_that_is_on_or_may_be(
    told: bool | None, handling: Handling, verdict: Verdict, machine: FakeParavisor
) -> None:
    evidence = machine.evidence(faults=AzureFaults(configuration={"console-enabled": told}))
    result = examine(machine, evidence, rules=PlatformRules(azure=AzureRules(console=handling)))
    found = finding(result, "appraisal.azure.console")
    assert (result.verdict, found.ok) == (verdict, handling is Handling.ACCEPT)
    assert examine(machine, machine.evidence(), rules=PlatformRules(azure=AzureRules(console=handling))).acceptable


@pytest.mark.parametrize("told", [False, None])
def test_secure_boot(told: bool | None, machine: FakeParavisor) -> None:
    evidence = machine.evidence(faults=AzureFaults(configuration={"secure-boot": told}))
    demanded = PlatformRules(azure=AzureRules(require_secure_boot=True))
    assert examine(machine, evidence).verdict is Verdict.ACCEPT
    assert examine(machine, evidence, rules=demanded).verdict is Verdict.REFUSE
    assert examine(machine, machine.evidence(), rules=demanded).verdict is Verdict.ACCEPT


def test_rules_of_snp_apply_besides(on_snp: FakeParavisor) -> None:
    other_level = examine(on_snp, on_snp.evidence(faults=AzureFaults(hardware={"vmpl": 1})))
    assert finding(other_level, "appraisal.snp.vmpl").refuses
    newer = PlatformRules(snp=SNPRules(minimum_tcb={"snp": 99}))
    assert examine(on_snp, on_snp.evidence(), rules=newer).verdict is Verdict.REFUSE
    debug = examine(on_snp, on_snp.evidence(faults=AzureFaults(hardware={"policy": 0xB0000})))
    assert (debug.verdict, finding(debug, "appraisal.debug").refuses) == (Verdict.REFUSE, True)


def test_rules_of_tdx_apply_besides(on_tdx: FakeParavisor) -> None:
    debug = examine(on_tdx, on_tdx.evidence(faults=AzureFaults(hardware={"td_attributes": b"\1" + bytes(7)})))
    assert finding(debug, "appraisal.debug").refuses
    migratable = (1 << 29).to_bytes(8, "little")
    moved = examine(on_tdx, on_tdx.evidence(faults=AzureFaults(hardware={"td_attributes": migratable})))
    assert finding(moved, "appraisal.tdx.migratable").refuses
    outdated = PlatformRules(tdx=TDXRules(tcb_statuses=("OutOfDate",)))
    assert examine(on_tdx, on_tdx.evidence(), rules=outdated).verdict is Verdict.REFUSE


@pytest.mark.parametrize(
    ("handling", "verdict", "ok"),
    [
        (Handling.ACCEPT, Verdict.ACCEPT, True),
        (Handling.WARN, Verdict.ACCEPT, False),
        (Handling.REFUSE, Verdict.REFUSE, False),
    ],
)
def test_pages_that_the_host_may_unmap(handling: Handling, verdict: Verdict, ok: bool, on_tdx: FakeParavisor) -> None:
    """Section `tdx` would refuse every TD of Azure; section `azure` says what it means there."""
    result = examine(on_tdx, on_tdx.evidence(), rules=PlatformRules(azure=AzureRules(sept_ve=handling)))
    found = finding(result, "appraisal.tdx.sept_ve_disable")
    assert (result.verdict, found.ok) == (verdict, ok)
    assert found.origin == "sept_ve of section azure"
    safe = (1 << 28).to_bytes(8, "little")
    result = examine(on_tdx, on_tdx.evidence(faults=AzureFaults(hardware={"td_attributes": safe})))
    assert finding(result, "appraisal.tdx.sept_ve_disable").ok
    lenient = PlatformRules(tdx=TDXRules(insecure_accept_sept_ve=True), azure=AzureRules(sept_ve=Handling.REFUSE))
    assert examine(on_tdx, on_tdx.evidence(), rules=lenient).verdict is Verdict.ACCEPT


def test_facts_of_another_technology() -> None:
    with pytest.raises(TypeError):
        appraise_platform(object(), PlatformRules(), at=NOW)


def test_every_finding_is_of_a_question_and_a_refused_one_has_a_hint(machine: FakeParavisor) -> None:
    rules = PlatformRules(
        azure=AzureRules(console=Handling.REFUSE, require_secure_boot=True, require_fresh_hardware=True)
    )
    faults = AzureFaults(configuration={"console-enabled": True, "secure-boot": False})
    result = examine(machine, machine.evidence(version=1, faults=faults), rules=rules)
    refused = [item for item in result.findings if item.refuses]
    assert {item.code for item in refused} == {
        "appraisal.azure.console",
        "appraisal.azure.secure_boot",
        "appraisal.azure.fresh_hardware",
    }
    assert all(item.hint and item.expected and item.actual and item.origin for item in refused)
    assert {item.question for item in refused} == {Question.ACCEPTABLE}
    assert {item.severity for item in refused} == {Severity.ERROR}


def test_claims_may_be_looked_at_before_anybody_vouches(machine: FakeParavisor) -> None:
    claims = read_claims(machine.evidence()).claims
    assert (claims.level, claims.tee) == (Level.SIMULATED, machine.tee)
    assert claims.native["pcr8"] == machine.tpm.read_pcrs()[8].hex()
    with pytest.raises(EvidenceError):
        read_claims(machine.evidence(faults=AzureFaults(quote=QuoteFaults(values=[bytes(32)] * 24))))
