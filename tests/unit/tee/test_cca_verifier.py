"""CCA tokens under a test key: accepted as they should be, and each check of the list seen failing."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from cloister.crypto.cose import Algorithm
from cloister.errors import EndorsementError, EvidenceError, FormatRefused, Refused
from cloister.rats.claims import Level, Role
from cloister.rats.endorsement import Endorsements, TrustedRoot
from cloister.rats.evidence import AuthenticEvidence, Evidence, ExpectedBinding
from cloister.rats.policy import AppraisalPolicy
from cloister.rats.result import Bound, Examination, Unchecked, Verdict
from cloister.rats.rules import CCARules, PlatformRules
from cloister.tee.cca import abi
from cloister.tee.cca.appraisal import appraise_platform
from cloister.tee.cca.claims import LEGACY_PLATFORM_PROFILE, Lifecycle, validate_platform, validate_realm
from cloister.tee.cca.endorsements import parse_cca_roots
from cloister.tee.cca.evidence import parse_evidence, read_evidence
from cloister.tee.cca.verifier import authenticate, read_claims
from cloister.tee.verification import examine_evidence
from cloister.testing.cca import BINDING, INSTANCE_ID, NOW, REPORT_DATA, FakeCCA
from cloister.testing.cose import cose_key, sign1
from cloister.wire.base64 import decode_b64, encode_b64, encode_b64url
from cloister.wire.cbor import Tagged, decode_cbor, encode_cbor
from cloister.wire.limits import COSE_BYTES

POLICY = AppraisalPolicy(
    id="test", tees=frozenset({"cca"}), levels=frozenset({Level.HARDWARE}), accept_debug=False, digest=""
)


@pytest.fixture(scope="module")
def fake() -> FakeCCA:
    return FakeCCA()


def verify(fake: FakeCCA, evidence: Evidence, *roots: TrustedRoot) -> AuthenticEvidence:
    endorsements = Endorsements(roots=roots) if roots else fake.endorsements()
    return authenticate(evidence, endorsements, at=NOW)


def examine(fake: FakeCCA, evidence: Evidence, **changes: Any) -> Examination:
    return examine_evidence(
        evidence,
        changes.get("binding", BINDING),
        changes.get("endorsements", fake.endorsements()),
        changes.get("policy", POLICY),
        Unchecked(reason="not asked for here"),
        at=NOW,
    )


def failed(result: Examination) -> set[str]:
    return {finding.code for finding in result.findings if finding.refuses}


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_good_token_is_accepted(curve: ec.EllipticCurve, legacy: bool) -> None:
    fake = FakeCCA(curve=curve, legacy=legacy)
    result = examine(fake, fake.evidence())
    assert (result.verdict, result.authentic, result.bound) == (Verdict.ACCEPT, True, Bound.YES)
    assert result.claims is not None
    claims = result.claims
    assert (claims.level, claims.debug, claims.instance_id) == (Level.HARDWARE, False, INSTANCE_ID.hex())
    assert claims.measurements == {Role.LAUNCH: fake.realm.initial}
    assert set(claims.registers) == {"rim", "rem0", "rem1", "rem2", "rem3", "config", "sw.RMM", "sw.1"}
    assert claims.native["lifecycle_state"] == "secured"
    assert ("cca-realm-profile" in claims.raw["realm"]) is not legacy
    assert claims.raw["platform"]["cca-platform-sw-components"][1] == {
        "measurement-value": encode_b64(b"\x0c" * 32),
        "signer-id": encode_b64(b"\x0d" * 32),
        "measurement-description": "sha-256",
    }
    assert len(result.unchecked) == 2


def test_both_collections_and_both_bodies_are_read(fake: FakeCCA) -> None:
    token = fake.token()
    parts = decode_cbor(token, ceiling=COSE_BYTES, code="t").value
    cmw = encode_cbor(Tagged(tag=907, value={label: [263, part] for label, part in parts.items()}))
    for body in ({"token": list(token)}, {"token": encode_b64(token)}, {"token": list(cmw)}):
        assert verify(fake, Evidence(tee="cca", body=body)).claims.native["lifecycle"] == 0x3000


def test_unknown_signed_claims_and_a_key_id_are_let_be(fake: FakeCCA) -> None:
    evidence = fake.evidence(platform={2410: b"x"}, realm={44250: 1}, platform_unprotected={4: b"kid"})
    assert verify(fake, evidence).claims.native["unknown_claims"] == ["2410", "44250"]


PLATFORM_FAULTS: list[dict[int, Any]] = [
    *({label: None} for label in (265, 10, 2396, 256, 2401, 2395, 2402, 2399)),
    {265: "http://arm.com/PSA-SSD/1.0.0"},
    {265: 7},
    {10: bytes(31)},
    {10: "text"},
    {2396: bytes(31)},
    {256: bytes(33)},
    {256: b"\1" * 32},
    {2401: b""},
    {2401: bytes(5000)},
    {2395: 0x7000},
    {2395: -1},
    {2395: 0x10000},
    {2395: True},
    {2395: "secured"},
    {2402: "none"},
    {2402: "md5"},
    {2399: []},
    {2399: {}},
    {2399: ["x"]},
    {2399: [{2: bytes(32)}]},
    {2399: [{5: bytes(32)}]},
    {2399: [{2: bytes(20), 5: bytes(32)}]},
    {2399: [{1: "", 2: bytes(32), 5: bytes(32)}]},
    {2399: [{2: bytes(32), 5: bytes(32)}] * 65},
    {2400: ""},
    {2400: "line\nline"},
    {2400: "x" * 257},
]
REALM_FAULTS: list[dict[int, Any]] = [
    *({label: None} for label in (10, 44235, 44238, 44239, 44236, 44237, 44240)),
    {265: None},  # without it the key must be a point of 97 bytes, and is a COSE_Key
    {265: "tag:arm.com,2099:realm#9"},
    {10: bytes(63)},
    {44235: bytes(65)},
    {44238: bytes(20)},
    {44239: [bytes(32)] * 3},
    {44239: [bytes(32)] * 3 + [bytes(31)]},
    {44239: bytes(128)},
    {44236: "sha-1"},
    {44240: "sha-1"},
    {44237: b""},
]


@pytest.mark.parametrize("claims", PLATFORM_FAULTS)
def test_each_platform_claim_has_a_rule(fake: FakeCCA, claims: dict[int, Any]) -> None:
    with pytest.raises(FormatRefused) as caught:
        verify(fake, fake.evidence(platform=claims))
    assert caught.value.code == "tee.cca.platform.claims"


@pytest.mark.parametrize("claims", REALM_FAULTS)
def test_each_realm_claim_has_a_rule(fake: FakeCCA, claims: dict[int, Any]) -> None:
    with pytest.raises(FormatRefused) as caught:
        verify(fake, fake.evidence(realm=claims))
    assert caught.value.code == "tee.cca.realm.claims"


OTHER_KEY = ec.generate_private_key(ec.SECP384R1())


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        # 2
        ({"platform_key": OTHER_KEY}, "tee.cca.platform.signature"),
        ({"platform_key": ec.generate_private_key(ec.SECP256R1())}, "tee.cca.platform.signature"),
        ({"platform_header": {1: int(Algorithm.ES256)}}, "tee.cca.platform.signature"),
        ({"platform_header": {}}, "tee.cca.platform.signature"),
        ({"platform_header": {1: -35, 2: [1]}}, "tee.cca.platform.malformed"),
        ({"platform_unprotected": {33: b"chain"}}, "tee.cca.platform.malformed"),
        # 3
        ({"realm_key": OTHER_KEY}, "tee.cca.realm.signature"),
        ({"realm_key": ec.generate_private_key(ec.SECP256R1())}, "tee.cca.realm.algorithm"),
        ({"realm": {44237: b"no key"}}, "tee.cca.realm.public_key.truncated"),
        ({"realm": {44237: encode_cbor({1: 2})}}, "tee.cca.realm.public_key.malformed"),
        # 4
        ({"platform": {10: bytes(32)}}, "tee.cca.binding"),
        ({"platform": {10: bytes(48)}}, "tee.cca.binding"),
        ({"realm": {44240: "sha-512"}}, "tee.cca.binding"),
        (
            {"realm": {44237: encode_cbor(cose_key(OTHER_KEY.public_key()))}, "realm_key": OTHER_KEY},
            "tee.cca.binding",
        ),
    ],
)
def test_each_fault_is_refused_with_its_code(fake: FakeCCA, changes: dict[str, Any], code: str) -> None:
    with pytest.raises(Refused) as caught:
        verify(fake, fake.evidence(**changes))
    assert caught.value.code == code


def test_a_legacy_key_off_its_curve_is_refused() -> None:
    fake = FakeCCA(legacy=True)
    with pytest.raises(FormatRefused) as caught:
        verify(fake, fake.evidence(realm={44237: b"YB" * 48 + b"Y"}))
    assert caught.value.code == "tee.cca.realm.public_key.malformed"


def test_a_spliced_token_is_refused(fake: FakeCCA) -> None:
    """A good platform token, and a good realm token of another realm on the same platform or another."""
    other = FakeCCA()
    other.platform_key = fake.platform_key
    mine, theirs = (decode_cbor(item.token(), ceiling=COSE_BYTES, code="t").value for item in (fake, other))
    spliced = abi.encode_token(mine[abi.PLATFORM_LABEL], theirs[abi.REALM_LABEL])
    assert verify(fake, other.evidence()).claims.tee == "cca"  # each is good by itself
    with pytest.raises(EvidenceError) as caught:
        verify(fake, Evidence(tee="cca", body={"token": encode_b64(spliced)}))
    assert caught.value.code == "tee.cca.binding"


def test_the_anchor_is_found_by_instance(fake: FakeCCA) -> None:
    named = fake.root(instance=INSTANCE_ID.hex(), level=Level.MEASURED)
    assert verify(fake, fake.evidence(), named).claims.level is Level.MEASURED
    assert verify(fake, fake.evidence(), fake.root(), named).claims.level is Level.MEASURED  # the one that names it
    other = fake.root(instance="01" + "00" * 32)
    for roots in ((other,), (replace(fake.root(), tee="tpm"),)):
        with pytest.raises(EndorsementError) as caught:
            verify(fake, fake.evidence(), *roots)
        assert caught.value.code == "tee.cca.no_anchor"
    with pytest.raises(EndorsementError) as caught:
        authenticate(fake.evidence(), Endorsements(roots=()), at=NOW)
    assert caught.value.code == "tee.cca.no_anchor"


def test_of_several_anchors_one_is_enough(fake: FakeCCA) -> None:
    others = (FakeCCA().root(), FakeCCA(curve=ec.SECP256R1()).root())
    assert verify(fake, fake.evidence(), *others, fake.root()).claims.tee == "cca"
    for roots in (others, others[::-1], others[:1], others[1:]):
        with pytest.raises(EvidenceError) as caught:
            verify(fake, fake.evidence(), *roots)
        assert caught.value.code == "tee.cca.platform.signature"


def test_anchors_that_are_no_such_key_are_refused(fake: FakeCCA) -> None:
    keys = (
        rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key(),
        ec.generate_private_key(ec.SECP256K1()).public_key(),
    )
    ders = [key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for key in keys]
    for der in (*ders, b"no key"):
        with pytest.raises(EndorsementError) as caught:
            verify(fake, fake.evidence(), replace(fake.root(), der=der))
        assert caught.value.code == "tee.cca.anchor.key"


@pytest.mark.parametrize(
    ("lifecycle", "state", "codes"),
    [
        (0x30FF, Lifecycle.SECURED, set()),
        (0x0000, Lifecycle.UNKNOWN, {"appraisal.cca.lifecycle"}),
        (0x1000, Lifecycle.ASSEMBLY_AND_TEST, {"appraisal.cca.lifecycle"}),
        (0x2001, Lifecycle.PROVISIONING, {"appraisal.cca.lifecycle"}),
        (0x4000, Lifecycle.NON_CCA_DEBUG, {"appraisal.cca.lifecycle", "appraisal.debug"}),
        (0x50FF, Lifecycle.RECOVERABLE_DEBUG, {"appraisal.cca.lifecycle", "appraisal.debug"}),
        (0x6000, Lifecycle.DECOMMISSIONED, {"appraisal.cca.lifecycle"}),
    ],
)
def test_only_a_secured_platform_is_accepted(fake: FakeCCA, lifecycle: int, state: Lifecycle, codes: set[str]) -> None:
    evidence = fake.evidence(platform={2395: lifecycle})
    result = examine(fake, evidence)
    assert (failed(result), result.authentic) == (codes, True)
    assert result.claims is not None
    assert result.claims.native["lifecycle_state"] == state.name.lower()
    lenient = replace(POLICY, rules=PlatformRules(cca=CCARules(insecure_accept_unsecured=True)), accept_debug=True)
    assert examine(fake, evidence, policy=lenient).verdict is Verdict.ACCEPT


def test_profiles_can_be_demanded(fake: FakeCCA) -> None:
    policy = replace(POLICY, rules=PlatformRules(cca=CCARules(platform_profiles=(LEGACY_PLATFORM_PROFILE,))))
    assert failed(examine(fake, fake.evidence(), policy=policy)) == {"appraisal.cca.profile"}
    legacy = FakeCCA(legacy=True)
    assert examine(legacy, legacy.evidence(), policy=policy).verdict is Verdict.ACCEPT
    with pytest.raises(TypeError):
        appraise_platform(None, PlatformRules(), at=NOW)


def test_another_challenge_is_not_bound(fake: FakeCCA) -> None:
    result = examine(fake, fake.evidence(challenge=bytes(64)))
    assert (result.authentic, result.bound, failed(result)) == (True, Bound.NO, {"evidence.freshness"})


@pytest.mark.parametrize(
    ("digest", "code"),
    [
        (bytes(64), "evidence.init_data"),
        (bytes(32), "evidence.init_data.length"),
        (bytes(48), "evidence.init_data.length"),
        (bytes(65), "evidence.init_data.length"),
    ],
)
def test_init_data_must_have_the_length_of_the_field(fake: FakeCCA, digest: bytes, code: str) -> None:
    binding = ExpectedBinding(report_data=REPORT_DATA, init_data_digest=digest)
    result = examine(fake, fake.evidence(), binding=binding)
    assert failed(result) == {code}
    padded = fake.evidence(realm={44235: digest.ljust(64, b"\0")[:64]})
    assert (failed(examine(fake, padded, binding=binding)) == set()) is (len(digest) == 64)


COLLECTIONS: list[Any] = [
    {},
    [],
    Tagged(tag=399, value=[]),
    Tagged(tag=399, value={44234: b"", 44241: b"", 1: b""}),
    Tagged(tag=399, value={44234: b""}),
    Tagged(tag=399, value={44234: "x", 44241: b""}),
    Tagged(tag=399, value={44234: [263, b""], 44241: [263, b""]}),
    Tagged(tag=907, value={44234: b"", 44241: b""}),
    Tagged(tag=907, value={44234: [263, b"", 1], 44241: [263, b""]}),
    Tagged(tag=907, value={44234: [60, b""], 44241: [263, b""]}),
    Tagged(tag=400, value={44234: b"", 44241: b""}),
]


@pytest.mark.parametrize("value", COLLECTIONS)
def test_other_collections_are_refused(value: Any) -> None:
    with pytest.raises(FormatRefused) as caught:
        abi.parse_token(encode_cbor(value))
    assert caught.value.code == "tee.cca.token.malformed"


def test_claims_that_are_no_map_are_refused(fake: FakeCCA) -> None:
    message = sign1(encode_cbor([1]), fake.platform_key)
    for token, code in (
        (abi.encode_token(message, message), "tee.cca.platform.claims"),
        (abi.encode_token(b"", b""), "tee.cca.platform.truncated"),
    ):
        with pytest.raises(FormatRefused) as caught:
            abi.parse_token(token)
        assert caught.value.code == code


def test_claims_read_back(fake: FakeCCA) -> None:
    for item in (fake, FakeCCA(legacy=True)):
        platform, realm = abi.encode_platform_claims(item.platform), abi.encode_realm_claims(item.realm)
        assert validate_platform(decode_cbor(platform, ceiling=COSE_BYTES, code="t")) == item.platform
        assert validate_realm(decode_cbor(realm, ceiling=COSE_BYTES, code="t")) == item.realm
    bare = replace(fake.platform, service="")
    encoded = abi.encode_platform_claims(bare)
    assert validate_platform(decode_cbor(encoded, ceiling=COSE_BYTES, code="t")) == bare


@pytest.mark.parametrize(
    "body",
    [{}, {"token": 1}, {"token": "?"}, {"token": ["x"]}, {"token": [256]}, {"token": [-1]}, {"token": [], "x": 1}],
)
def test_other_bodies_are_refused(body: dict[str, Any]) -> None:
    with pytest.raises(FormatRefused) as caught:
        parse_evidence(Evidence(tee="cca", body=body))
    assert caught.value.code == "tee.cca.malformed"


def test_evidence_of_another_technology_and_long_tokens_are_refused(fake: FakeCCA) -> None:
    with pytest.raises(EvidenceError) as caught:
        verify(fake, replace(fake.evidence(), tee="nitro"))
    assert caught.value.code == "tee.cca.malformed"
    with pytest.raises(FormatRefused):
        parse_evidence(Evidence(tee="cca", body={"token": [0] * (COSE_BYTES + 1)}))


def test_files_in_three_forms_hold_the_same_body(fake: FakeCCA) -> None:
    token = fake.token()
    forms = {}
    for data in (token, encode_b64(token).encode(), json.dumps({"token": list(token)}).encode()):
        read = read_evidence(data, tee="cca")
        assert verify(fake, Evidence(tee="cca", body=read.body)).claims.tee == "cca"
        forms[read.form] = read.body
    assert len(forms) == 3


@pytest.mark.parametrize("data", [b"\xff", b"?", b"{", b"\xd9" + bytes(COSE_BYTES), b""])
def test_other_files_are_refused(fake: FakeCCA, data: bytes) -> None:
    with pytest.raises(FormatRefused) as caught:
        verify(fake, Evidence(tee="cca", body=read_evidence(data, tee="cca").body))
    assert caught.value.code.startswith(("tee.cca.", "tee.file."))


def jwk(fake: FakeCCA) -> dict[str, str]:
    key = load_der_public_key(fake.root().der)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    x, y = (number.to_bytes(48, "big") for number in (key.public_numbers().x, key.public_numbers().y))
    return {"kty": "EC", "crv": "P-384", "x": encode_b64url(x), "y": encode_b64url(y)}


def test_anchors_are_read_from_every_form(fake: FakeCCA) -> None:
    pem = load_der_public_key(fake.root().der).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for data in (
        json.dumps(jwk(fake)).encode(),
        json.dumps(jwk(fake) | {"d": "private", "use": "enc", "kid": "1"}).encode(),
        json.dumps({"keys": [jwk(fake)]}).encode(),
        pem,
        fake.root().der,
    ):
        (root,) = parse_cca_roots(data, origin="file")
        assert (root.der, root.instance, root.level) == (fake.root().der, "", Level.HARDWARE)
    store = [{"pkey": jwk(fake), "instance-id": INSTANCE_ID.hex().upper(), "implementation-id": "00" * 32}]
    (root,) = parse_cca_roots(json.dumps(store).encode(), level=Level.MEASURED, origin="file")
    assert (root.der, root.instance, root.level) == (fake.root().der, INSTANCE_ID.hex(), Level.MEASURED)
    assert verify(fake, fake.evidence(), root).claims.level is Level.MEASURED


STORES: list[Any] = [
    [],
    [1],
    [{}],
    [{"pkey": {}, "instance-id": ""}],
    [{"pkey": {}, "instance-id": "01" * 33}],
    [{"pkey": {}, "instance-id": "01" * 32}],
    [{"pkey": {}, "instance-id": "zz" * 33}],
    [{"pkey": {}, "instance-id": "01" * 33, "implementation-id": "00"}],
    [{"pkey": {}, "instance-id": "01" * 33, "extra": 1}],
]


@pytest.mark.parametrize("store", STORES)
def test_other_stores_are_refused(store: Any) -> None:
    with pytest.raises(FormatRefused) as caught:
        parse_cca_roots(json.dumps(store).encode(), origin="file")
    assert caught.value.code in ("tee.cca.anchor.malformed", "collateral.root.malformed")


@pytest.mark.parametrize("data", [b"[", b'[],"anchors":[]', b"[]}", b"{}", b"", b"no key"])
def test_files_without_an_anchor_are_refused(data: bytes) -> None:
    with pytest.raises(FormatRefused) as caught:
        parse_cca_roots(data, origin="file")
    assert caught.value.code.startswith(("tee.cca.anchor.", "collateral.root."))


def test_every_flipped_bit_of_a_token_is_refused(fake: FakeCCA) -> None:
    token = decode_b64(fake.evidence().body["token"], ceiling=COSE_BYTES)
    for offset in range(0, len(token), 7):
        changed = bytearray(token)
        changed[offset] ^= 1 << offset % 8
        with pytest.raises(Refused) as caught:
            verify(fake, Evidence(tee="cca", body={"token": list(changed)}))
        assert caught.value.code.startswith("tee.cca.")


def test_claims_are_shown_before_anybody_checked_them(fake: FakeCCA) -> None:
    claims = read_claims(fake.evidence(platform_key=OTHER_KEY)).claims
    assert (claims.level, claims.native) == (Level.SIMULATED, verify(fake, fake.evidence()).claims.native)
