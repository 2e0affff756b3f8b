"""The order of checks of `cloister.tee.dcap.verifier`, each seen failing on evidence that is otherwise good."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.errors import EndorsementError, EvidenceError, FormatRefused, Refused
from cloister.rats.claims import Level
from cloister.rats.endorsement import Document, Endorsements, PinnedRoot, TrustedRoot
from cloister.rats.result import Severity
from cloister.tee.dcap import abi, stated
from cloister.tee.dcap.chain import PCK_CAS, TCB_SIGNING
from cloister.tee.dcap.verifier import _KNOWN, VerifiedQuote, verify_quote
from cloister.testing.dcap import (
    ISSUED,
    NEXT_UPDATE,
    NOW,
    FakeIntel,
    FakePlatform,
    Machine,
    enclave_report,
    pem,
    qe_identity_of,
    tcb_info_of,
    td_report,
)
from tampering import flipped

SECOND = timedelta(seconds=1)


@pytest.fixture(scope="module")
def platform(intel: FakeIntel) -> FakePlatform:
    return FakePlatform(intel)


def verify(
    intel: FakeIntel,
    quote: bytes,
    collateral: bytes | None = None,
    *,
    tee: str = "tdx",
    at: datetime = NOW,
    endorsements: Endorsements | None = None,
) -> VerifiedQuote:
    return verify_quote(abi.parse_quote(quote), endorsements or intel.endorsements(tee, collateral), tee=tee, at=at)


def code(call: Callable[[], object], family: type[Refused] = EndorsementError) -> str:
    with pytest.raises(family) as caught:
        call()
    assert type(caught.value) is family
    return caught.value.code


def held(verified: VerifiedQuote) -> set[str]:
    return {finding.code for finding in verified.findings if finding.ok}


def open_codes(verified: VerifiedQuote) -> list[tuple[str, Severity]]:
    return [(finding.code, finding.severity) for finding in verified.findings if not finding.ok]


@pytest.mark.parametrize("ca", PCK_CAS)
@pytest.mark.parametrize("version", [4, 5])
def test_good_quotes_of_tds(intel: FakeIntel, version: int, ca: str) -> None:
    platform = FakePlatform(intel, ca=ca)
    verified = verify(intel, platform.quote(td_report(), version=version), intel.collateral("TDX", ca=ca))
    assert open_codes(verified) == []
    assert verified.tcb is not None
    assert verified.tcb.status == "UpToDate"
    assert (verified.evaluation_number, verified.qe_svn, verified.crl_numbers) == (19, 8, (1, 1))
    assert verified.root.level is Level.HARDWARE
    assert (verified.window.not_before, verified.window.not_after) == (ISSUED, NEXT_UPDATE)


@pytest.mark.parametrize("version", [3, 5])
def test_good_quotes_of_enclaves(intel: FakeIntel, version: int) -> None:
    verified = verify(intel, FakePlatform(intel, "SGX").quote(enclave_report(), version=version), tee="sgx")
    assert open_codes(verified) == []
    assert held(verified) == {
        "tee.dcap.tcb_info.signature",
        "tee.dcap.qe_identity.signature",
        "tee.dcap.pck_chain",
        "tee.dcap.qe_signature",
        "tee.dcap.qe_binding",
        "tee.dcap.qe_identity",
        "tee.dcap.signature_invalid",
        "tee.dcap.fmspc",
        "tee.dcap.tcb_revoked",
        "tee.dcap.revocation",
    }


def test_the_time_must_be_aware(intel: FakeIntel, platform: FakePlatform) -> None:
    with pytest.raises(RuntimeError):
        verify(intel, platform.quote(td_report()), at=NOW.replace(tzinfo=None))


# 1


def test_1_another_vendor(intel: FakeIntel, platform: FakePlatform) -> None:
    quote = platform.quote(td_report(), vendor=bytes(16))
    assert code(lambda: verify(intel, quote), EvidenceError) == "tee.dcap.quote.vendor"


def test_1_certificates_that_do_not_parse(intel: FakeIntel, platform: FakePlatform) -> None:
    quote = platform.quote(td_report(), data={"certification": b"no PEM"})
    assert code(lambda: verify(intel, quote), FormatRefused) == "tee.dcap.pck_chain.malformed"


def test_1_no_root(intel: FakeIntel, platform: FakePlatform) -> None:
    quote = platform.quote(td_report())
    for endorsements in (Endorsements(roots=()), Endorsements(roots=(intel.trusted("sgx"),))):
        assert code(lambda e=endorsements: verify(intel, quote, endorsements=e)) == "tee.dcap.no_roots"


def test_1_a_root_is_pinned_by_fingerprint(intel: FakeIntel, foreign_intel: FakeIntel) -> None:
    from hashlib import sha256

    def pinned(fingerprint: bytes) -> Endorsements:
        pin = PinnedRoot(tee="tdx", level=Level.HARDWARE, name="pin", sha256=fingerprint)
        return replace(intel.endorsements("tdx"), roots=(), pins=(pin,))

    quote = FakePlatform(intel).quote(td_report())
    right = pinned(sha256(intel.root_der).digest())
    assert verify(intel, quote, endorsements=right).root.name == "pin"
    wrong = pinned(sha256(foreign_intel.root_der).digest())
    assert code(lambda: verify(intel, quote, endorsements=wrong)) == "tee.dcap.untrusted_root"
    foreign = FakePlatform(foreign_intel).quote(td_report())
    assert code(lambda: verify(intel, foreign, endorsements=right)) == "tee.dcap.pck_chain.untrusted"


def test_1_a_root_that_is_no_certificate(intel: FakeIntel, platform: FakePlatform) -> None:
    root = TrustedRoot(tee="tdx", level=Level.HARDWARE, name="key", der=b"\x30\x00")
    endorsements = replace(intel.endorsements("tdx"), roots=(root,))
    quote = platform.quote(td_report())
    assert code(lambda: verify(intel, quote, endorsements=endorsements), FormatRefused) == "tee.dcap.root.malformed"


# 2 and 3


@pytest.mark.parametrize(
    ("member", "expected"),
    [("tcb_info", "tee.dcap.tcb_info.signature"), ("qe_identity", "tee.dcap.qe_identity.signature")],
)
def test_2_3_a_statement_is_signed_over_its_exact_bytes(
    intel: FakeIntel, platform: FakePlatform, member: str, expected: str
) -> None:
    members = intel.collateral_members("TDX")
    quote = platform.quote(td_report())
    for changed in (members[member].replace("UpToDate", "SWHardeningNeeded"), members[member] + " "):
        collateral = json.dumps({**members, member: changed}).encode()
        assert code(lambda c=collateral: verify(intel, quote, c)) == expected


def test_2_a_statement_needs_its_signer(intel: FakeIntel, platform: FakePlatform) -> None:
    text = json.dumps(tcb_info_of("TDX"))
    answer = f'{{"tcbInfo":{text},"signature":"{intel.sign(text.encode()).hex()}"}}'.encode()
    quote = platform.quote(td_report())
    assert code(lambda: verify(intel, quote, answer)) == "tee.dcap.tcb_info.signature"
    chain = Document(name="chain", data=pem(intel.tcb_signing.certificate, intel.root.certificate).encode())
    endorsements = intel.endorsements("tdx", answer)
    endorsements = replace(endorsements, documents=(*endorsements.documents, chain))
    assert verify(intel, quote, endorsements=endorsements).tcb is not None


def test_2_the_signer_chains_to_the_root(intel: FakeIntel, foreign_intel: FakeIntel, platform: FakePlatform) -> None:
    collateral = intel.collateral("TDX", signer=foreign_intel.tcb_signing)
    assert code(lambda: verify(intel, platform.quote(td_report()), collateral)) == "tee.dcap.tcb_signing.untrusted"


def test_2_a_platform_cannot_sign_collateral(intel: FakeIntel, platform: FakePlatform) -> None:
    """Whoever has the key of one PCK certificate must not be able to say that it is up to date."""
    from cloister.testing.dcap import _Authority

    own = _Authority(key=platform.key, certificate=platform.pck)
    collateral = intel.collateral("TDX", signer=own)
    assert code(lambda: verify(intel, platform.quote(td_report()), collateral)) == "tee.dcap.tcb_info.signature"


def test_2_the_signer_is_not_revoked(intel: FakeIntel, platform: FakePlatform) -> None:
    collateral = intel.collateral("TDX", revoked=[intel.tcb_signing.certificate])
    assert code(lambda: verify(intel, platform.quote(td_report()), collateral)) == "tee.dcap.certificate.revoked"


def test_2_statements_of_the_other_tee_do_not_count(intel: FakeIntel, platform: FakePlatform) -> None:
    verified = verify(intel, platform.quote(td_report()), intel.collateral("SGX"))
    assert open_codes(verified) == [("tee.dcap.collateral.missing", Severity.UNAVAILABLE)] * 2


@pytest.mark.parametrize("member", ["tcb_info", "qe_identity"])
@pytest.mark.parametrize(
    ("at", "stale"), [(ISSUED - SECOND, True), (ISSUED, False), (NEXT_UPDATE - SECOND, False), (NEXT_UPDATE, True)]
)
def test_2_3_a_statement_is_in_force_from_issue_to_before_its_next_update(
    intel: FakeIntel, member: str, at: datetime, stale: bool
) -> None:
    platform = FakePlatform(intel)
    wide = {"issueDate": "2026-01-01T00:00:00Z", "nextUpdate": "2027-01-01T00:00:00Z"}
    other: dict[str, Any] = {"tcb_info": wide, "qe_identity": wide}
    del other[member]
    endorsements = intel.endorsements("tdx", intel.collateral("TDX", **other))
    verified = verify(intel, platform.quote(td_report()), endorsements=endorsements, at=at)
    found = [item for item in open_codes(verified) if item[0] != "tee.dcap.revocation"]
    assert found == ([("tee.dcap.collateral.stale", Severity.UNAVAILABLE)] if stale else [])
    assert verified.tcb is not None


def test_2_grace_makes_it_a_warning(intel: FakeIntel, platform: FakePlatform) -> None:
    def severities(grace: timedelta, at: datetime) -> set[Severity]:
        endorsements = replace(intel.endorsements("tdx"), grace=grace)
        return {severity for _, severity in open_codes(verify(intel, quote, endorsements=endorsements, at=at))}

    quote = platform.quote(td_report())
    assert severities(timedelta(days=1), NEXT_UPDATE + SECOND) == {Severity.WARNING}
    assert severities(timedelta(days=1), NEXT_UPDATE + timedelta(days=1, seconds=1)) == {Severity.UNAVAILABLE}
    assert Severity.UNAVAILABLE in severities(timedelta(days=30), ISSUED - SECOND)  # not issued yet is not stale


def test_2_the_newest_evaluation_in_force_counts(intel: FakeIntel, platform: FakePlatform) -> None:
    def document(**changes: Any) -> Document:
        return Document(name="collateral", data=intel.collateral("TDX", tcb_info=changes))

    quote = platform.quote(td_report())
    later = (NEXT_UPDATE - timedelta(days=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    endorsements = Endorsements(
        roots=(intel.trusted("tdx"),),
        documents=(
            document(tcbEvaluationDataNumber=18),
            document(tcbEvaluationDataNumber=20, tcbLevels=[], nextUpdate=later),
            document(tcbEvaluationDataNumber=21, nextUpdate="2026-06-25T00:00:00Z", tcbLevels=[]),
        ),
    )
    for at, status in ((NOW, "Unsupported"), (NEXT_UPDATE - SECOND, "UpToDate"), (NOW, "Unsupported")):
        verified = verify(intel, quote, endorsements=endorsements, at=at)
        assert verified.tcb is not None
        assert verified.tcb.status == status
        assert "tee.dcap.collateral.stale" not in dict(open_codes(verified))


# 4


@pytest.mark.parametrize("index", [0, 1])
def test_4_revoked(intel: FakeIntel, index: int) -> None:
    platform = FakePlatform(intel)
    collateral = intel.collateral("TDX", revoked=[platform.chain[index]])
    assert code(lambda: verify(intel, platform.quote(td_report()), collateral)) == "tee.dcap.certificate.revoked"


@pytest.mark.parametrize("member", ["pck_crl", "root_ca_crl"])
def test_4_a_forged_list(intel: FakeIntel, platform: FakePlatform, member: str) -> None:
    issuer = intel.root if member == "root_ca_crl" else intel.cas[PCK_CAS[0]]
    forged = intel.revocation_list(issuer, key=ec.generate_private_key(ec.SECP256R1()))
    collateral = json.dumps({**intel.collateral_members("TDX"), member: forged.hex()}).encode()
    quote = platform.quote(td_report())
    assert code(lambda: verify(intel, quote, collateral)) == "tee.dcap.certificate.crl_signature"


def test_4_a_list_that_does_not_parse(intel: FakeIntel, platform: FakePlatform) -> None:
    collateral = json.dumps({**intel.collateral_members("TDX"), "pck_crl": "3000"}).encode()
    quote = platform.quote(td_report())
    assert code(lambda: verify(intel, quote, collateral), FormatRefused) == "tee.dcap.crl.malformed"


def test_4_the_list_of_the_other_ca_says_nothing(intel: FakeIntel, platform: FakePlatform) -> None:
    verified = verify(intel, platform.quote(td_report()), intel.collateral("TDX", ca=PCK_CAS[1]))
    assert open_codes(verified) == [("tee.dcap.revocation", Severity.UNAVAILABLE)]


def test_4_lists_may_come_apart(intel: FakeIntel, platform: FakePlatform) -> None:
    members = intel.collateral_members("TDX")
    lists = tuple(bytes.fromhex(members[name]) for name in ("pck_crl", "root_ca_crl"))
    endorsements = Endorsements(
        roots=(intel.trusted("tdx"),),
        certificates=(intel.root_der,),
        revocation_lists=lists,
        documents=(
            Document(name="chain", data=members["tcb_info_issuer_chain"].encode()),
            *(
                Document(name=name, data=f'{{"{name}":{text},"signature":"{signature}"}}'.encode())
                for name, text, signature in (
                    ("tcbInfo", members["tcb_info"], members["tcb_info_signature"]),
                    ("enclaveIdentity", members["qe_identity"], members["qe_identity_signature"]),
                )
            ),
        ),
    )
    assert open_codes(verify(intel, platform.quote(td_report()), endorsements=endorsements)) == []


def test_4_another_root_of_the_same_name(intel: FakeIntel, foreign_intel: FakeIntel) -> None:
    quote = FakePlatform(foreign_intel).quote(td_report())
    assert code(lambda: verify(intel, quote)) == "tee.dcap.pck_chain.untrusted"


@pytest.mark.parametrize("name", [TCB_SIGNING, "Intel SGX PCK Platform CA", ""])
def test_4_a_leaf_of_another_name(intel: FakeIntel, name: str) -> None:
    quote = FakePlatform(intel, name=name or "x").quote(td_report())
    assert code(lambda: verify(intel, quote)) == "tee.dcap.pck_chain"


def test_4_a_leaf_right_below_the_root(intel: FakeIntel) -> None:
    platform = FakePlatform(intel)
    quote = platform.quote(
        td_report(), data={"certification": pem(intel.tcb_signing.certificate, intel.root.certificate).encode()}
    )
    assert code(lambda: verify(intel, quote)) == "tee.dcap.pck.extension"


def test_4_the_certificates_are_the_path_and_nothing_else(intel: FakeIntel, foreign_intel: FakeIntel) -> None:
    platform = FakePlatform(intel)
    pck, ca, root = platform.chain
    for certificates in (
        (pck, root, ca),
        (pck, ca, foreign_intel.root.certificate),
        (pck, ca, root, root),
        (pck, ca, root, foreign_intel.root.certificate),
        (pck, intel.cas[PCK_CAS[1]].certificate, ca, root),
    ):
        quote = platform.quote(td_report(), data={"certification": pem(*certificates).encode()})
        assert code(lambda q=quote: verify(intel, q)) == "tee.dcap.pck_chain"
    without_root = platform.quote(td_report(), data={"certification": pem(pck, ca).encode()})
    assert verify(intel, without_root).root.der == intel.root_der


def test_4_out_of_its_time(intel: FakeIntel, platform: FakePlatform) -> None:
    quote = platform.quote(td_report())
    assert code(lambda: verify(intel, quote, b"", at=NOW + timedelta(days=4000))) == "tee.dcap.pck_chain.expired"
    assert code(lambda: verify(intel, quote, b"", at=NOW - timedelta(days=4000))) == "tee.dcap.pck_chain.not_yet_valid"


def test_4_stale_lists_leave_it_open(intel: FakeIntel, platform: FakePlatform) -> None:
    old = intel.revocation_list(intel.root, next_update=NOW - SECOND)
    collateral = json.dumps({**intel.collateral_members("TDX"), "root_ca_crl": old.hex()}).encode()
    verified = verify(intel, platform.quote(td_report()), collateral)
    assert open_codes(verified) == [("tee.dcap.revocation", Severity.UNAVAILABLE)] * 2


# 5 to 8


def test_5_report_of_the_quoting_enclave_signed_by_another_key(intel: FakeIntel, platform: FakePlatform) -> None:
    other = FakePlatform(intel).signature_data(b"").qe_signature
    quote = platform.quote(td_report(), data={"qe_signature": other})
    assert code(lambda: verify(intel, quote), EvidenceError) == "tee.dcap.qe_signature"


@pytest.mark.parametrize(
    "data", [{"attestation_key": b"\x01" * 64}, {"authentication": b""}, {"authentication": bytes(33)}]
)
def test_6_another_key_or_other_data(intel: FakeIntel, platform: FakePlatform, data: dict[str, bytes]) -> None:
    quote = platform.quote(td_report(), data=data)
    assert code(lambda: verify(intel, quote), EvidenceError) == "tee.dcap.qe_binding"


def test_6_the_rest_of_the_report_data_is_zero(intel: FakeIntel) -> None:
    import hashlib

    platform = FakePlatform(intel)
    good = platform.signature_data(b"")
    bound = hashlib.sha256(good.attestation_key + good.authentication).digest()
    platform._qe = {"report_data": bound + bytes(31) + b"\x01"}
    assert code(lambda: verify(intel, platform.quote(td_report())), EvidenceError) == "tee.dcap.qe_binding"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"mr_signer": bytes(32)}, "MRSIGNER"),
        ({"isv_prod_id": 1}, "ISVPRODID"),
        ({"misc_select": 1}, "MISCSELECT"),
        ({"attributes": bytes.fromhex("05000000000000000700000000000000")}, "ATTRIBUTES"),
        ({"attributes": bytes.fromhex("17000000000000000700000000000000")}, "debug"),
        ({"isv_svn": 3}, "older"),
    ],
)
def test_7_another_quoting_enclave(intel: FakeIntel, change: dict[str, Any], word: str) -> None:
    quote = FakePlatform(intel, qe=change).quote(td_report())
    with pytest.raises(EvidenceError) as caught:
        verify(intel, quote)
    assert caught.value.code == "tee.dcap.qe_identity"
    assert word in caught.value.message


def test_7_bits_outside_the_masks_do_not_count(intel: FakeIntel) -> None:
    qe = {"attributes": bytes.fromhex("1500000000000000ffffffffffffffff"), "isv_svn": 6}
    assert open_codes(verify(intel, FakePlatform(intel, qe=qe).quote(td_report()))) == []


def test_7_a_debug_quoting_enclave_is_refused_without_collateral_too(intel: FakeIntel) -> None:
    quote = FakePlatform(intel, qe={"attributes": b"\x17" + bytes(15)}).quote(td_report())
    assert code(lambda: verify(intel, quote, b""), EvidenceError) == "tee.dcap.qe_identity"


def test_8_another_signature_or_body(intel: FakeIntel, platform: FakePlatform) -> None:
    good = platform.quote(td_report())
    verify(intel, good)  # also when the platform is known already
    signature = platform.quote(td_report(), data={"signature": bytes(64)})
    other = flipped(good, 520)
    for quote in (signature, other):
        assert code(lambda q=quote: verify(intel, q), EvidenceError) == "tee.dcap.signature_invalid"


def test_8_a_key_that_is_no_point(intel: FakeIntel) -> None:
    import hashlib

    platform = FakePlatform(intel)
    platform._qe = {"report_data": hashlib.sha256(b"\xff" * 64 + bytes(range(32))).digest() + bytes(32)}
    quote = platform.quote(td_report(), data={"attestation_key": b"\xff" * 64})
    assert code(lambda: verify(intel, quote), EvidenceError) == "tee.dcap.signature_invalid"


# 9 and 10


@pytest.mark.parametrize("machine", [Machine(fmspc=bytes(6)), Machine(pce_id=b"\x01\x00")])
def test_9_tcb_info_of_another_kind_of_platform(intel: FakeIntel, machine: Machine) -> None:
    quote = FakePlatform(intel, machine=machine).quote(td_report())
    assert code(lambda: verify(intel, quote)) == "tee.dcap.fmspc"


def test_9_tcb_infos_of_other_platforms_beside_the_right_one(intel: FakeIntel, platform: FakePlatform) -> None:
    documents = tuple(
        Document(name="c", data=intel.collateral("TDX", tcb_info=changes)) for changes in ({"fmspc": "00" * 6}, {})
    )
    endorsements = Endorsements(roots=(intel.trusted("tdx"),), documents=documents)
    assert open_codes(verify(intel, platform.quote(td_report()), endorsements=endorsements)) == []


@pytest.mark.parametrize(
    "change",
    [
        {"mr_signer_seam": b"\x01" * 48},
        {"seam_attributes": b"\x01" + bytes(7)},
        {"mr_signer_seam": b"\x01" * 48, "tee_tcb_svn": bytes([5, 0, 2]) + bytes(13)},
    ],
)
def test_9_another_module(intel: FakeIntel, platform: FakePlatform, change: dict[str, bytes]) -> None:
    quote = platform.quote(td_report(**change))
    assert code(lambda: verify(intel, quote), EvidenceError) == "tee.dcap.module_identity"


def test_9_attributes_of_the_module_under_the_mask(intel: FakeIntel, platform: FakePlatform) -> None:
    modules = tcb_info_of("TDX")["tdxModuleIdentities"]
    modules[0]["attributesMask"] = "00" + "FF" * 7
    collateral = intel.collateral("TDX", tcb_info={"tdxModuleIdentities": modules})
    quote = platform.quote(td_report(seam_attributes=b"\x01" + bytes(7)))
    assert open_codes(verify(intel, quote, collateral)) == []


def test_10_a_revoked_tcb(intel: FakeIntel) -> None:
    platform = FakePlatform(intel, machine=Machine(components=(1,) * 16))
    assert code(lambda: verify(intel, platform.quote(td_report()))) == "tee.dcap.tcb_revoked"


def test_10_no_level(intel: FakeIntel) -> None:
    platform = FakePlatform(intel, machine=Machine(components=(0,) * 16))
    verified = verify(intel, platform.quote(td_report()))
    assert verified.tcb is not None
    assert (verified.tcb.status, verified.tcb.date) == ("Unsupported", None)


# Without collateral, and again


def test_without_collateral_signatures_are_verified_and_the_rest_is_open(
    intel: FakeIntel, platform: FakePlatform
) -> None:
    verified = verify(intel, platform.quote(td_report()), b"")
    assert verified.tcb is None
    assert verified.evaluation_number is None
    assert held(verified) == {
        "tee.dcap.pck_chain",
        "tee.dcap.qe_signature",
        "tee.dcap.qe_binding",
        "tee.dcap.qe_identity",
        "tee.dcap.signature_invalid",
    }
    assert open_codes(verified) == [
        *[("tee.dcap.collateral.missing", Severity.UNAVAILABLE)] * 2,
        *[("tee.dcap.revocation", Severity.UNAVAILABLE)] * 2,
    ]


def test_a_known_platform_is_judged_as_at_first(intel: FakeIntel) -> None:
    platform = FakePlatform(intel)
    endorsements = intel.endorsements("tdx")
    first = verify(intel, platform.quote(td_report()), endorsements=endorsements)
    body = td_report(report_data=b"\x01" * 64)
    again = verify(intel, platform.quote(body), endorsements=endorsements)
    assert again.quote.body == body
    assert replace(again, quote=first.quote) == first


def test_the_quote_of_a_known_platform_is_verified_each_time(intel: FakeIntel) -> None:
    platform = FakePlatform(intel)
    endorsements = intel.endorsements("tdx")
    good = platform.quote(td_report())
    verify(intel, good, endorsements=endorsements)
    before = len(_KNOWN._answers)
    other = flipped(good, 600)
    for quote in (other, platform.quote(td_report(), data={"signature": bytes(64)})):
        assert code(lambda q=quote: verify(intel, q, endorsements=endorsements), EvidenceError) == (
            "tee.dcap.signature_invalid"
        )
    verify(intel, platform.quote(td_report(mr_td=bytes(48))), endorsements=endorsements)
    assert len(_KNOWN._answers) == before


def test_what_left_anything_open_is_not_kept(intel: FakeIntel) -> None:
    quote = FakePlatform(intel).quote(td_report())
    before = list(_KNOWN._answers)
    verify(intel, quote, b"")
    verify(intel, quote, at=NEXT_UPDATE)
    assert list(_KNOWN._answers) == before


def test_a_known_platform_is_not_known_under_anything_else(intel: FakeIntel, foreign_intel: FakeIntel) -> None:
    platform = FakePlatform(intel)
    quote = platform.quote(td_report())
    verify(intel, quote)
    assert code(lambda: verify(foreign_intel, quote)) == "tee.dcap.pck_chain.untrusted"
    assert code(lambda: verify(intel, quote, tee="tdx", endorsements=intel.endorsements("sgx"))) == "tee.dcap.no_roots"
    revoked = intel.collateral("TDX", revoked=[platform.pck])
    assert code(lambda: verify(intel, quote, revoked)) == "tee.dcap.certificate.revoked"
    assert open_codes(verify(intel, quote, at=NEXT_UPDATE)) != []
    assert open_codes(verify(intel, quote)) == []
    old = platform.quote(td_report(tee_tcb_svn=bytes([2, 1, 2]) + bytes(13)))
    verified = verify(intel, old)
    assert verified.tcb is not None
    assert verified.tcb.status == "OutOfDate"


def test_statements_are_known_for_the_next_platform_of_that_kind_and_no_other(
    intel: FakeIntel, foreign_intel: FakeIntel
) -> None:
    """New platforms throughout, so that only what is remembered of the statements can be what answers."""
    stated._KNOWN.cache_clear()
    collateral = intel.collateral("TDX")
    first = verify(intel, FakePlatform(intel).quote(td_report()), collateral)
    assert len(stated._KNOWN) == 1
    second = verify(intel, FakePlatform(intel).quote(td_report()), collateral)
    assert [finding.code for finding in second.findings] == [finding.code for finding in first.findings]
    assert second.window == first.window
    assert len(stated._KNOWN) == 1

    def fresh(given: bytes = collateral, **options: Any) -> VerifiedQuote:
        return verify(intel, FakePlatform(intel).quote(td_report()), given, **options)

    other = FakePlatform(intel, machine=Machine(fmspc=bytes(6))).quote(td_report())
    assert code(lambda: verify(intel, other, collateral)) == "tee.dcap.fmspc"
    foreign = FakePlatform(foreign_intel).quote(td_report())
    assert code(lambda: verify(foreign_intel, foreign, collateral)) == "tee.dcap.tcb_signing.untrusted"
    assert ("tee.dcap.collateral.stale", Severity.UNAVAILABLE) in open_codes(fresh(at=NEXT_UPDATE))
    assert ("tee.dcap.collateral.stale", Severity.UNAVAILABLE) in open_codes(fresh(at=ISSUED - timedelta(seconds=1)))
    revoked = intel.collateral("TDX", revoked=[intel.tcb_signing.certificate])
    assert code(lambda: fresh(revoked)) == "tee.dcap.certificate.revoked"
    altered = json.loads(collateral)
    altered["tcb_info"] = altered["tcb_info"].replace("UpToDate", "UpToDatf", 1)
    assert code(lambda: fresh(json.dumps(altered).encode())).startswith("tee.dcap.tcb_info")
    assert open_codes(fresh()) == []


def test_two_kinds_of_platforms_under_one_collateral(intel: FakeIntel) -> None:
    """Each is judged by the TCB info of its own FMSPC, whichever came first."""
    other = Machine(fmspc=bytes(6))
    documents = tuple(
        Document(name=name, data=intel.collateral("TDX", tcb_info={"fmspc": fmspc.hex()}))
        for name, fmspc in (("a", Machine().fmspc), ("b", other.fmspc))
    )
    endorsements = Endorsements(roots=(intel.trusted("tdx"),), documents=documents)
    for machine in (Machine(), other, Machine(), other):
        verified = verify(intel, FakePlatform(intel, machine=machine).quote(td_report()), endorsements=endorsements)
        assert open_codes(verified) == []
        assert verified.pck.fmspc == machine.fmspc


def test_statements_that_leave_anything_open_are_not_kept(intel: FakeIntel) -> None:
    stated._KNOWN.cache_clear()
    for given, at in ((b"", NOW), (intel.collateral("TDX"), NEXT_UPDATE), (intel.collateral("TDX"), NEXT_UPDATE)):
        assert open_codes(verify(intel, FakePlatform(intel).quote(td_report()), given, at=at)) != []
    assert len(stated._KNOWN) == 0


def test_identities_of_another_enclave_do_not_count(intel: FakeIntel, platform: FakePlatform) -> None:
    collateral = intel.collateral("TDX", qe_identity={**qe_identity_of("TDX"), "id": "QVE"})
    found = open_codes(verify(intel, platform.quote(td_report()), collateral))
    assert found == [("tee.dcap.collateral.missing", Severity.UNAVAILABLE)]
