"""Nitro documents under a test root: accepted as they should be, and each check of the list seen failing."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cloister.errors import EndorsementError, EvidenceError, FormatRefused, Refused
from cloister.rats.claims import Level, Role
from cloister.rats.endorsement import Endorsements, PinnedRoot, TrustedRoot
from cloister.rats.evidence import AuthenticEvidence, Evidence
from cloister.rats.policy import AppraisalPolicy
from cloister.rats.result import Bound, Examination, Unchecked, Verdict
from cloister.rats.rules import NitroRules, PlatformRules
from cloister.tee.nitro import abi
from cloister.tee.nitro.appraisal import CLOCK_SKEW, appraise_platform
from cloister.tee.nitro.endorsements import PINS
from cloister.tee.nitro.evidence import parse_evidence, read_evidence
from cloister.tee.nitro.verifier import authenticate, read_claims
from cloister.tee.verification import examine_evidence
from cloister.testing.nitro import BINDING, INIT_DATA_DIGEST, MODULE_ID, NOW, REPORT_DATA, FakeNSM, NitroCA
from cloister.testing.nitro import nitro_evidence as evidence_with
from cloister.wire.base64 import decode_b64, encode_b64
from cloister.wire.cbor import decode_cbor, encode_cbor
from cloister.wire.limits import COSE_BYTES, NITRO_FIELD_BYTES

POLICY = AppraisalPolicy(
    id="test", tees=frozenset({"nitro"}), levels=frozenset({Level.HARDWARE}), accept_debug=False, digest=""
)


@pytest.fixture(scope="module")
def ca() -> NitroCA:
    return NitroCA()


def verify(ca: NitroCA, evidence: Evidence, **changes: Any) -> AuthenticEvidence:
    return authenticate(
        evidence, changes.get("endorsements", ca.endorsements()), at=NOW + changes.get("after", timedelta())
    )


def examine(ca: NitroCA, evidence: Evidence, **changes: Any) -> Examination:
    return examine_evidence(
        evidence,
        changes.get("binding", BINDING),
        changes.get("endorsements", ca.endorsements()),
        changes.get("policy", POLICY),
        Unchecked(reason="not asked for here"),
        at=NOW + changes.get("after", timedelta()),
    )


def failed(result: Examination) -> set[str]:
    return {finding.code for finding in result.findings if not finding.ok and finding.refuses}


@pytest.mark.parametrize("indefinite", [False, True])
def test_a_good_document_is_accepted(ca: NitroCA, indefinite: bool) -> None:
    result = examine(ca, evidence_with(ca, indefinite=indefinite))
    assert (result.verdict, result.authentic, result.bound) == (Verdict.ACCEPT, True, Bound.YES)
    assert result.claims is not None
    claims = result.claims
    assert (claims.level, claims.debug, claims.instance_id) == (Level.HARDWARE, False, MODULE_ID)
    assert claims.report_data == REPORT_DATA
    assert claims.init_data == INIT_DATA_DIGEST
    assert set(claims.registers) == {f"pcr{index:02d}" for index in range(16)}
    assert claims.native["pcr0"] == claims.measurements[Role.LAUNCH].hex() == claims.registers["pcr00"].hex()
    assert claims.native["nonce"] == REPORT_DATA.hex()
    assert claims.window is not None
    assert claims.window.not_after == NOW - timedelta(seconds=10) + timedelta(hours=3)  # the leaf's
    assert "revocation" in result.unchecked[0].reason


def test_a_public_key_and_unknown_members_are_reported(ca: NitroCA) -> None:
    evidence = evidence_with(ca, members={"public_key": b"k" * 32, "newer": [1, {"x": None}]})
    native = verify(ca, evidence).claims.native
    assert native["public_key"] == (b"k" * 32).hex()
    assert native["unknown_members"] == [b"newer".hex()]


def test_a_pinned_root_is_found_in_the_bundle_only(ca: NitroCA) -> None:
    der = ca.roots()[0].der
    pin = PinnedRoot(tee="nitro", level=Level.HARDWARE, name="pin", sha256=x509_fingerprint(der))
    good = verify(ca, evidence_with(ca), endorsements=Endorsements(roots=(), pins=(pin,)))
    assert good.claims.level is Level.HARDWARE
    with pytest.raises(EndorsementError) as caught:  # the root is left out of the bundle, and given beside it
        verify(
            ca,
            evidence_with(ca, drop=frozenset({0})),
            endorsements=Endorsements(roots=(), pins=(pin,), certificates=(der,)),
        )
    assert caught.value.code == "tee.nitro.root_untrusted"


def x509_fingerprint(der: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256

    return x509.load_der_x509_certificate(der).fingerprint(SHA256())


def test_the_level_is_the_roots(ca: NitroCA) -> None:
    endorsements = Endorsements(roots=ca.roots(Level.SIMULATED))
    assert verify(ca, evidence_with(ca), endorsements=endorsements).claims.level is Level.SIMULATED
    assert failed(examine(ca, evidence_with(ca), endorsements=endorsements)) == {"appraisal.level"}


REFUSED: list[tuple[dict[str, Any], str]] = [
    # 1
    ({"unprotected": {4: b"kid"}}, "tee.nitro.document.malformed"),
    ({"members": {"module_id": None}}, "tee.nitro.document.malformed"),
    ({"members": {"module_id": ""}}, "tee.nitro.document.malformed"),
    ({"members": {"module_id": "a\nb"}}, "tee.nitro.document.malformed"),
    ({"members": {"module_id": "i" * 257}}, "tee.nitro.document.malformed"),
    ({"members": {"digest": "SHA256"}}, "tee.nitro.document.malformed"),
    ({"members": {"digest": None}}, "tee.nitro.document.malformed"),
    ({"members": {"timestamp": -1}}, "tee.nitro.document.malformed"),
    ({"members": {"timestamp": True}}, "tee.nitro.document.malformed"),
    ({"members": {"timestamp": 1 << 60}}, "tee.nitro.document.malformed"),
    ({"members": {"pcrs": {}}}, "tee.nitro.document.malformed"),
    ({"members": {"pcrs": {0: bytes(48), 1: bytes(48)}}}, "tee.nitro.document.malformed"),
    ({"members": {"pcrs": dict.fromkeys(range(33), bytes(48))}}, "tee.nitro.document.malformed"),
    ({"members": {"pcrs": dict.fromkeys([0, 1, 2, "3"], bytes(48))}}, "tee.nitro.document.malformed"),
    ({"members": {"pcrs": dict.fromkeys(range(3), bytes(32))}}, "tee.nitro.document.malformed"),
    ({"members": {"pcrs": [bytes(48)] * 3}}, "tee.nitro.document.malformed"),
    ({"members": {"certificate": b""}}, "tee.nitro.document.malformed"),
    ({"members": {"certificate": "text"}}, "tee.nitro.document.malformed"),
    ({"members": {"certificate": b"x" * (1 << 15)}}, "tee.nitro.document.malformed"),
    ({"members": {"certificate": b"no certificate"}}, "tee.nitro.certificate.malformed"),
    ({"members": {"cabundle": []}}, "tee.nitro.document.malformed"),
    ({"members": {"cabundle": [b"x"] * 6}}, "tee.nitro.document.malformed"),
    ({"members": {"cabundle": {}}}, "tee.nitro.document.malformed"),
    ({"members": {"public_key": b""}}, "tee.nitro.document.malformed"),
    ({"members": {"public_key": bytes(NITRO_FIELD_BYTES + 1)}}, "tee.nitro.document.malformed"),
    ({"members": {"user_data": bytes(NITRO_FIELD_BYTES + 1)}}, "tee.nitro.document.malformed"),
    ({"members": {"nonce": "text"}}, "tee.nitro.document.malformed"),
    # 2
    ({"members": {"cabundle": [b"no certificate"]}}, "tee.nitro.root_untrusted"),
    ({"drop": frozenset({0})}, "tee.nitro.root_untrusted"),
    # 3
    ({"drop": frozenset({1})}, "tee.nitro.certificate.untrusted"),
    ({"drop": frozenset({3})}, "tee.nitro.certificate.untrusted"),
    ({"extra_certificate": True}, "tee.nitro.bundle"),
    ({"region_path_length": 0}, "tee.nitro.certificate.path_length"),
    ({"leaf_ca": True}, "tee.nitro.certificate.leaf_is_ca"),
    ({"leaf_signs": False}, "tee.nitro.certificate.key_usage"),
    ({"leaf_lifetime": timedelta(seconds=9)}, "tee.nitro.certificate.expired"),
    ({"leaf_starts": timedelta(seconds=-1)}, "tee.nitro.certificate.not_yet_valid"),
    # 5
    ({"header": {1: -7}}, "tee.nitro.document.algorithm"),
    ({"header": {}}, "tee.nitro.document.algorithm"),
    ({"header": {1: -35, 2: [1]}}, "tee.nitro.document.malformed"),
    ({"signing_key": ec.generate_private_key(ec.SECP384R1())}, "tee.nitro.document.signature"),
    ({"signing_key": ec.generate_private_key(ec.SECP256R1())}, "tee.nitro.document.algorithm"),
    ({"signing_key": ec.generate_private_key(ec.SECP256R1()), "header": {1: -35}}, "tee.nitro.document.signature"),
]


@pytest.mark.parametrize(("faults", "code"), REFUSED)
def test_each_fault_is_refused_with_its_code(ca: NitroCA, faults: dict[str, Any], code: str) -> None:
    with pytest.raises(Refused) as caught:
        verify(ca, evidence_with(ca, **faults))
    assert caught.value.code == code
    assert examine(ca, evidence_with(ca, **faults)).verdict is Verdict.REFUSE


def test_debug_is_reported_and_refused_by_default(ca: NitroCA) -> None:
    assert verify(ca, evidence_with(ca, debug=True)).claims.debug
    assert failed(examine(ca, evidence_with(ca, debug=True))) == {"appraisal.debug"}
    accepting = replace(POLICY, accept_debug=True)
    assert examine(ca, evidence_with(ca, debug=True), policy=accepting).verdict is Verdict.ACCEPT


def test_one_zero_register_is_debug_too(ca: NitroCA) -> None:
    registers = dict.fromkeys(range(5), b"\1" * 48) | {1: bytes(48)}
    assert verify(ca, evidence_with(ca, members={"pcrs": registers})).claims.debug


def test_other_keys_and_no_roots(ca: NitroCA) -> None:
    for endorsements, code in (
        (NitroCA().endorsements(), "tee.nitro.root_untrusted"),
        (Endorsements(roots=(), pins=PINS), "tee.nitro.root_untrusted"),
        (Endorsements(roots=()), "tee.nitro.no_roots"),
        (Endorsements(roots=(replace(ca.roots()[0], tee="tpm"),)), "tee.nitro.no_roots"),
    ):
        with pytest.raises(EndorsementError) as caught:
            verify(ca, evidence_with(ca), endorsements=endorsements)
        assert caught.value.code == code


def test_an_intermediate_is_no_root_unless_configured(ca: NitroCA) -> None:
    """Whoever trusts a region's CA by configuration trusts chains that begin there, and no others."""
    region = FakeNSM(ca).ca.chain()[1][1]
    trusted = TrustedRoot(tee="nitro", level=Level.HARDWARE, name="region", der=region)
    with pytest.raises(EndorsementError) as caught:
        verify(ca, evidence_with(ca), endorsements=Endorsements(roots=(trusted,)))
    assert caught.value.code == "tee.nitro.root_untrusted"


def test_age_is_judged_by_the_documents_own_time(ca: NitroCA) -> None:
    assert examine(ca, evidence_with(ca), after=timedelta(hours=2)).verdict is Verdict.ACCEPT
    short = replace(POLICY, rules=PlatformRules(nitro=NitroRules(longest_age_seconds=60)))
    assert examine(ca, evidence_with(ca), policy=short).verdict is Verdict.ACCEPT
    result = examine(ca, evidence_with(ca), policy=short, after=timedelta(seconds=56))
    assert failed(result) == {"appraisal.nitro.age"}
    future = evidence_with(ca, age=-CLOCK_SKEW - timedelta(seconds=1))
    assert failed(examine(ca, future)) == {"appraisal.nitro.age"}
    assert examine(ca, evidence_with(ca, age=-CLOCK_SKEW)).verdict is Verdict.ACCEPT
    with pytest.raises(TypeError):
        appraise_platform(None, PlatformRules(), at=NOW)


@pytest.mark.parametrize("nonce", [b"", REPORT_DATA[:-1], REPORT_DATA + b"\0", bytes(48)])
def test_another_nonce_or_none_is_not_bound(ca: NitroCA, nonce: bytes) -> None:
    evidence = FakeNSM(ca).evidence(nonce=nonce)
    result = examine(ca, evidence)
    assert (result.authentic, result.bound, failed(result)) == (True, Bound.NO, {"evidence.freshness"})


@pytest.mark.parametrize("user_data", [b"", INIT_DATA_DIGEST + b"\0", bytes(48)])
def test_other_init_data_or_none_is_not_bound(ca: NitroCA, user_data: bytes) -> None:
    result = examine(ca, FakeNSM(ca).evidence(user_data=user_data))
    assert (result.bound, failed(result)) == (Bound.NO, {"evidence.init_data"})


def test_revocation_lists_that_are_given_are_used(ca: NitroCA) -> None:
    evidence = evidence_with(ca)
    good = Endorsements(roots=ca.roots(), revocation_lists=(ca.revocation_list(),))
    result = verify(ca, evidence, endorsements=good)
    assert [finding.code for finding in result.findings].count("tee.nitro.revocation") == 1
    assert result.unchecked  # three of four certificates have no list
    old = Endorsements(roots=ca.roots(), revocation_lists=(ca.revocation_list(lifetime=timedelta(hours=-1)),))
    assert examine(ca, evidence, endorsements=old).verdict is Verdict.ACCEPT
    forged = Endorsements(roots=ca.roots(), revocation_lists=(NitroCA().revocation_list(),))
    revoked = Endorsements(roots=ca.roots(), revocation_lists=(ca.revocation_list(ca.region_serial),))
    rubbish = Endorsements(roots=ca.roots(), revocation_lists=(b"no list",))
    for endorsements, code in (
        (forged, "tee.nitro.certificate.crl_signature"),
        (revoked, "tee.nitro.certificate.revoked"),
        (rubbish, "tee.nitro.crl.malformed"),
    ):
        with pytest.raises(Refused) as caught:
            verify(ca, evidence, endorsements=endorsements)
        assert caught.value.code == code


@pytest.mark.parametrize(
    "body", [{}, {"document": 1}, {"document": "?"}, {"document": "AA==", "x": 1}, {"document": "AB=="}]
)
def test_other_bodies_are_refused(body: dict[str, Any]) -> None:
    with pytest.raises(FormatRefused) as caught:
        parse_evidence(Evidence(tee="nitro", body=body))
    assert caught.value.code in ("tee.nitro.malformed", "tee.nitro.document.malformed")


def test_evidence_of_another_technology_is_refused(ca: NitroCA) -> None:
    with pytest.raises(EvidenceError) as caught:
        verify(ca, replace(evidence_with(ca), tee="tpm"))
    assert caught.value.code == "tee.nitro.malformed"


def test_files_in_three_forms_hold_the_same_body(ca: NitroCA) -> None:
    evidence = evidence_with(ca)
    raw = decode_b64(evidence.body["document"], ceiling=COSE_BYTES)
    tagged = b"\xd2" + raw
    text = base64.encodebytes(raw)
    forms = {
        read_evidence(data, tee="nitro").form: read_evidence(data, tee="nitro").body["document"]
        for data in (raw, text, json.dumps(dict(evidence.body)).encode())
    }
    assert len(forms) == 3
    assert set(forms.values()) == {encode_b64(raw)}
    assert verify(ca, Evidence(tee="nitro", body=read_evidence(tagged, tee="nitro").body)).claims.tee == "nitro"


@pytest.mark.parametrize(
    "data", [b"\xff\xff", b"no base64!", b"\x84" + bytes(COSE_BYTES), b"{", b"A" * (COSE_BYTES * 2)]
)
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(FormatRefused) as caught:
        read_evidence(data, tee="nitro")
    assert caught.value.code.startswith(("tee.nitro.", "tee.file."))


def test_documents_read_back() -> None:
    document = abi.Document(
        module_id="i",
        timestamp=1,
        registers=dict.fromkeys(range(3), bytes(48)),
        certificate=b"c",
        bundle=(b"r", b"i"),
        public_key=b"k",
        user_data=b"u",
        nonce=b"n",
    )
    assert abi.parse_document(abi.encode_document(document)) == document
    assert (
        abi.parse_document(encode_cbor(decode_cbor(abi.encode_document(document), ceiling=999, code="t"))) == document
    )
    with pytest.raises(TypeError):
        abi.encode_document(replace(document, unknown=("x",)))
    for value in ([], {1: 2}, "x"):
        with pytest.raises(FormatRefused) as caught:
            abi.parse_document(encode_cbor(value))
        assert caught.value.code == "tee.nitro.document.malformed"


def test_a_certificate_of_another_kind_of_key_is_refused(ca: NitroCA) -> None:
    other = NitroCA()
    signing_key, other.leaf_key = other.leaf_key, rsa.generate_private_key(public_exponent=65537, key_size=2048)
    with pytest.raises(EndorsementError) as caught:
        verify(other, evidence_with(other, signing_key=signing_key))
    assert caught.value.code == "tee.nitro.certificate.key"
    with pytest.raises(EndorsementError) as caught:
        verify(ca, evidence_with(ca, members={"certificate": ca.roots()[0].der}))
    assert caught.value.code == "tee.nitro.certificate.leaf_is_ca"


def test_claims_are_shown_before_anybody_checked_them(ca: NitroCA) -> None:
    claims = read_claims(evidence_with(ca, signing_key=ec.generate_private_key(ec.SECP384R1()))).claims
    good = verify(ca, evidence_with(ca)).claims
    assert (claims.level, claims.native["pcr0"]) == (Level.SIMULATED, good.native["pcr0"])
    assert claims.window == good.window
    with pytest.raises(FormatRefused):
        read_claims(evidence_with(ca, members={"certificate": b"no certificate"}))
