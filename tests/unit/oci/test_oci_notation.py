"""Notation: envelopes of both kinds, certificate rules, trust policies; each rule refuses with its own code."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from cloister.imagetool.notation import NotationKey, load_signing_key, sign_notation
from cloister.oci.digest import Digest
from cloister.oci.manifest import OCI_MANIFEST
from cloister.oci.reference import parse_reference
from cloister.oci.signing import notation
from cloister.oci.signing.notation import (
    PAYLOAD_TYPE,
    TargetArtifact,
    check_chain,
    sign_envelope,
    verify_envelope,
)
from cloister.oci.signing.referred import NOTATION_COSE, NOTATION_JWS, EnvelopeCandidate, read_referred
from cloister.oci.signing.trustpolicy import NotationRequirement, parse_trust_policy, select_policy
from cloister.wire.base64 import encode_b64url
from cloister.wire.cbor import Tagged, encode_cbor
from signing_world import MANIFEST, NOW, REPOSITORY, Signer, manifest_bytes, notation_signer, refused, usage
from unit.oci.builders import archive, build_layout, file

TARGET = TargetArtifact(media_type=OCI_MANIFEST, digest=Digest.of(MANIFEST), size=len(MANIFEST))
BOTH = [NOTATION_JWS, NOTATION_COSE]


@cache
def signer() -> Signer:
    return notation_signer()


def envelope(media_type: str = NOTATION_JWS, by: Signer | None = None, **options: Any) -> bytes:
    by = by or signer()
    target = options.pop("target", TARGET)
    return sign_envelope(target, by.key, by.chain, media_type=media_type, **{"at": NOW, **options})


@pytest.mark.parametrize("media_type", BOTH)
@pytest.mark.parametrize("kind", ["p256", "p384", "p521", "rsa2048", "rsa3072"])
def test_what_is_signed_verifies(media_type: str, kind: str) -> None:
    curves = {"p256": ec.SECP256R1, "p384": ec.SECP384R1, "p521": ec.SECP521R1}
    if kind in curves:
        by = notation_signer(ec.generate_private_key(curves[kind]()))
    else:
        by = notation_signer(rsa.generate_private_key(65537, int(kind[3:])))
    found = verify_envelope(envelope(media_type, by, expires=NOW + timedelta(days=1)), media_type)
    assert found.target == TARGET and found.chain == by.chain
    assert found.signed_at == NOW and found.expires == NOW + timedelta(days=1)


# -- envelopes byte by byte -----------------------------------------------------------------------------------------

SCHEME, TIME = "io.cncf.notary.signingScheme", "io.cncf.notary.signingTime"
AUTHENTIC, EXPIRY = "io.cncf.notary.authenticSigningTime", "io.cncf.notary.expiry"
HEAD: dict[str, Any] = {
    "alg": "ES256",
    "cty": PAYLOAD_TYPE,
    "crit": [SCHEME],
    SCHEME: "notary.x509",
    TIME: "2026-11-20T12:00:00Z",
}
PAYLOAD = {"targetArtifact": {"mediaType": OCI_MANIFEST, "digest": str(TARGET.digest), "size": TARGET.size}}


def jws(head: dict[str, Any] | None = None, payload: Any = None, by: Signer | None = None, **top: Any) -> bytes:
    by = by or signer()
    protected = encode_b64url(json.dumps(head or HEAD).encode())
    body = encode_b64url(json.dumps(payload or PAYLOAD).encode())
    algorithm = notation.algorithm_of(by.chain[0].public_key())
    signature = notation._sign(by.key, algorithm, f"{protected}.{body}".encode())
    chain = [notation.encode_b64(item.public_bytes(Encoding.DER)) for item in by.chain]
    document = {
        "payload": body,
        "protected": protected,
        "header": {"x5c": chain},
        "signature": encode_b64url(signature),
    }
    return json.dumps({**document, **top}).encode()


def without(*names: str, **more: Any) -> dict[str, Any]:
    return {**{name: value for name, value in HEAD.items() if name not in names}, **more}


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (lambda: jws({**HEAD, "alg": "ES384"}), "notation.algorithm"),
        (lambda: jws({**HEAD, "alg": "none"}), "notation.algorithm"),
        (lambda: jws({**HEAD, "cty": "text/plain"}), "notation.content_type"),
        (lambda: jws({**HEAD, SCHEME: "notary.other"}), "notation.scheme"),
        (lambda: jws(without("crit")), "notation.critical"),
        (lambda: jws({**HEAD, "crit": []}), "notation.critical"),
        (lambda: jws({**HEAD, "crit": [SCHEME, "io.cncf.notary.verificationPlugin"]}), "notation.critical"),
        (lambda: jws({**HEAD, "crit": [SCHEME, EXPIRY]}), "notation.critical"),
        (lambda: jws({**HEAD, "crit": [SCHEME, SCHEME]}), "notation.critical"),
        (lambda: jws({**HEAD, EXPIRY: "2027-01-01T00:00:00Z"}), "notation.critical"),
        (lambda: jws({**HEAD, AUTHENTIC: "2026-11-20T12:00:00Z"}), "notation.critical"),
        (lambda: jws({**HEAD, SCHEME: "notary.x509.signingAuthority"}), "notation.critical"),
        (lambda: jws(without(TIME)), "notation.time"),
        (lambda: jws({**HEAD, TIME: "yesterday"}), "notation.time"),
        (lambda: jws({**HEAD, TIME: "2026-13-20T12:00:00Z"}), "notation.time"),
        (lambda: jws({**HEAD, TIME: True}), "notation.time"),
        (lambda: jws(payload={"targetArtifact": {}}), "notation.payload.missing_member"),
        (lambda: jws(payload={**PAYLOAD, "more": 1}), "notation.payload.unknown_member"),
        (lambda: jws(signature=encode_b64url(bytes(64))), "bad_signature"),
        (lambda: jws(signature=encode_b64url(bytes(63))), "bad_signature"),
        (lambda: jws(payload_=1), "notation.jws.unknown_member"),
        (lambda: jws(signature="!"), "notation.malformed"),
        (lambda: jws(header={"x5c": []}), "notation.chain"),
        (lambda: jws(header={"x5c": ["AAAA"]}), "notation.certificate.malformed"),
        (lambda: b"{", "notation.jws.not_json"),
    ],
)
def test_other_jws_envelopes_are_refused(raw: Callable[[], bytes], code: str) -> None:
    assert refused(lambda: verify_envelope(raw(), NOTATION_JWS)) == f"oci.signing.{code}"


def cose(change: dict[int | str, Any] | None = None, *, tag: int = 18, unprotected: Any = None) -> bytes:
    header: dict[int | str, Any] = {1: -7, 2: [SCHEME], 3: PAYLOAD_TYPE, SCHEME: "notary.x509", TIME: 1795176000}
    header = {name: value for name, value in {**header, **(change or {})}.items() if value is not None}
    protected, payload = encode_cbor(header), json.dumps(PAYLOAD).encode()
    chain = [item.public_bytes(Encoding.DER) for item in signer().chain]
    signature = notation._sign(signer().key, notation.Algorithm.ES256, notation.signed_bytes(protected, payload))
    items = [protected, {33: chain} if unprotected is None else unprotected, payload, signature]
    return encode_cbor(Tagged(tag=tag, value=items))


@pytest.mark.parametrize("time", [1795176000, Tagged(tag=1, value=1795176000)])
def test_times_of_cose_may_be_tagged(time: Any) -> None:
    assert verify_envelope(cose({TIME: time}), NOTATION_COSE).target == TARGET


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (lambda: cose({1: -37}), "algorithm"),
        (lambda: cose({1: None}), "cose.malformed"),
        (lambda: cose({2: None}), "critical"),
        (lambda: cose({2: []}), "malformed"),
        (lambda: cose({2: [SCHEME, "unknown"]}), "malformed"),
        (lambda: cose({3: "text/plain"}), "content_type"),
        (lambda: cose({SCHEME: "other"}), "scheme"),
        (lambda: cose({TIME: Tagged(tag=0, value=1)}), "time"),
        (lambda: cose({TIME: -1}), "time"),
        (lambda: cose({EXPIRY: 1}), "critical"),
        (lambda: cose(tag=17), "cose.malformed"),
        (lambda: cose()[1:], "cose.malformed"),
        (lambda: cose(unprotected={}), "cose.malformed"),
        (lambda: cose(unprotected={33: [1]}), "cose.malformed"),
        (lambda: cose() + b"x", "trailing"),
    ],
)
def test_other_cose_envelopes_are_refused(raw: Callable[[], bytes], code: str) -> None:
    found = refused(lambda: verify_envelope(raw(), NOTATION_COSE))
    assert found.startswith("oci.signing.notation.") and code.rpartition(".")[2] in found


@pytest.mark.parametrize("media_type", BOTH)
def test_every_flipped_bit_is_refused(media_type: str) -> None:
    raw = envelope(media_type)
    signed_agent = raw.find(b"io.cncf.notary.signingAgent")  # what nobody signed is neither verified nor used
    for place in range(0, len(raw), 7):
        if signed_agent <= place < signed_agent + 60:
            continue
        changed = raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :]
        assert refused(lambda changed=changed: verify_envelope(changed, media_type)).startswith("oci.")


# -- certificates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"leaf_usage": usage(key_agreement=True)},
        {"leaf_usage": usage(digital_signature=True, key_cert_sign=True)},
        {"usage_critical": False},
        {"purpose": ExtendedKeyUsageOID.SERVER_AUTH},
        {"purpose": ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE},
        {"purpose": ExtendedKeyUsageOID.TIME_STAMPING},
        {"leaf_is_ca": True},
        {"root_is_ca": False},
        {"extra": {x509.InhibitAnyPolicy(1): True}},
    ],
)
def test_chains_of_another_shape_are_refused(options: dict[str, Any]) -> None:
    assert refused(lambda: check_chain(notation_signer(**options).chain)) == "oci.signing.notation.chain"


def test_chains_are_whole_and_in_order() -> None:
    leaf, root = signer().chain
    for chain in ((), (leaf,), (root, leaf), (leaf, root, root, root, root, root, root), (leaf, leaf)):
        assert refused(lambda chain=chain: check_chain(chain)) == "oci.signing.notation.chain"


def test_keys_of_other_kinds_are_refused() -> None:
    by = notation_signer(rsa.generate_private_key(65537, 2560))
    assert refused(lambda: envelope(by=by)) == "oci.signing.notation.key"
    odd = notation_signer(ec.generate_private_key(ec.SECP256K1()))
    assert refused(lambda: envelope(by=odd)) == "oci.signing.notation.key"
    other = Signer(ec.generate_private_key(ec.SECP256R1()), signer().chain)
    assert refused(lambda: envelope(by=other)) == "oci.signing.notation.other_key"
    from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat

    ed = ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    assert refused(lambda: load_signing_key(ed, b"")) == "oci.signing.notation.key"
    assert refused(lambda: load_signing_key(b"x", b"")) == "oci.signing.notation.key"


# -- trust policies -------------------------------------------------------------------------------------------------


def policy_file(**changes: Any) -> bytes:
    policy = {
        "name": "acme",
        "registryScopes": [REPOSITORY],
        "signatureVerification": {"level": "strict"},
        "trustStores": ["ca:acme"],
        "trustedIdentities": ["x509.subject: C=US, ST=WA, O=acme"],
        **changes,
    }
    return json.dumps({"version": "1.0", "trustPolicies": [policy]}).encode()


def requirement(store: x509.Certificate | None = None, **changes: Any) -> NotationRequirement:
    policy = select_policy(parse_trust_policy(policy_file(**changes)), parse_reference(f"{REPOSITORY}:1"))
    root = signer().chain[-1] if store is None else store
    return NotationRequirement(policy=policy, stores=dict.fromkeys(policy.stores, (root,)))


def judge(
    raw: bytes, needed: NotationRequirement | None = None, *, now: datetime = NOW, artifact: bytes = MANIFEST
) -> str:
    candidate = EnvelopeCandidate(media_type=NOTATION_JWS, raw=raw)
    return (needed or requirement()).judge(candidate, artifact, now).name


def test_a_trusted_signature_is_accepted() -> None:
    assert judge(envelope()) == "CN=signer,O=acme,ST=WA,C=US"
    assert judge(envelope(), requirement(trustedIdentities=["*"]))
    assert judge(envelope(), requirement(trustedIdentities=["x509.subject: C=US, ST=WA, O=acme, CN=signer"]))


AUTHORITY = {
    **HEAD,
    SCHEME: "notary.x509.signingAuthority",
    "crit": [SCHEME, AUTHENTIC],
    AUTHENTIC: "2026-11-20T12:00:00Z",
}
AUTHORITY.pop(TIME)


def test_a_signing_authority_has_stores_and_times_of_its_own() -> None:
    """Its word on the time counts: a certificate that expired since was good then."""
    raw = jws(AUTHORITY)
    needed = requirement(trustStores=["signingAuthority:acme"])
    assert judge(raw, needed, now=NOW + timedelta(days=2000))
    assert refused(lambda: judge(raw)) == "oci.signing.notation.untrusted"
    assert refused(lambda: judge(envelope(), needed)) == "oci.signing.notation.untrusted"


@pytest.mark.parametrize(
    ("action", "code"),
    [
        (lambda: judge(envelope(), artifact=manifest_bytes(1)), "oci.signing.other_image"),
        (lambda: judge(envelope(target=msgspec.structs.replace(TARGET, size=1))), "oci.signing.other_image"),
        (lambda: judge(envelope(target=msgspec.structs.replace(TARGET, media_type="a/b"))), "oci.signing.other_image"),
        (
            lambda: judge(envelope(), requirement(trustedIdentities=["x509.subject: C=US, ST=WA, O=other"])),
            "oci.signing.notation.identity",
        ),
        (lambda: judge(envelope(), requirement(notation_signer().chain[0])), "oci.signing.notation.untrusted"),
        (lambda: judge(envelope(), now=NOW + timedelta(days=400)), "oci.signing.notation.certificate_time"),
        (lambda: judge(envelope(), now=NOW - timedelta(days=50)), "oci.signing.notation.certificate_time"),
        (
            lambda: judge(envelope(expires=NOW + timedelta(days=1)), now=NOW + timedelta(days=1)),
            "oci.signing.notation.expired",
        ),
    ],
)
def test_signatures_that_a_strict_policy_refuses(action: Callable[[], object], code: str) -> None:
    assert refused(action) == code


def revocable() -> Signer:
    point = x509.DistributionPoint([x509.UniformResourceIdentifier("http://crl.test")], None, None, None)
    return notation_signer(extra={x509.CRLDistributionPoints([point]): False})


def test_revocation_that_is_not_looked_up_is_refused_unless_the_policy_says_so() -> None:
    raw = envelope(by=revocable())
    assert refused(lambda: judge(raw)) == "oci.signing.notation.revocation"
    skip = {"level": "strict", "override": {"revocation": "skip"}}
    assert judge(raw, requirement(signatureVerification=skip)) == "CN=signer,O=acme,ST=WA,C=US"


def test_levels_say_what_is_told_and_what_is_enforced() -> None:
    late = envelope(expires=NOW - timedelta(days=1))
    permissive = requirement(signatureVerification={"level": "permissive"})
    assert "not enforced: oci.signing.notation.expired" in judge(late, permissive) and permissive.enforces
    unknown = requirement(notation_signer().chain[0], signatureVerification={"level": "permissive"})
    assert refused(lambda: judge(envelope(), unknown)) == "oci.signing.notation.untrusted"
    audit = requirement(notation_signer().chain[0], signatureVerification={"level": "audit"})
    assert "not enforced: oci.signing.notation.untrusted" in judge(envelope(), audit) and not audit.enforces
    assert refused(lambda: judge(jws(signature=encode_b64url(bytes(64))), audit)) == "oci.signing.bad_signature"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"signatureVerification": {"level": "loose"}}, "level"),
        ({"signatureVerification": {"level": "strict", "override": {"integrity": "log"}}}, "unknown_member"),
        ({"signatureVerification": {"level": "strict", "override": {"expiry": "skip"}}}, "level"),
        ({"signatureVerification": {"level": "strict", "override": {"expiry": "maybe"}}}, "level"),
        ({"signatureVerification": {"level": "skip"}}, "stores"),
        ({"trustStores": []}, "stores"),
        ({"trustStores": ["acme"]}, "stores"),
        ({"trustedIdentities": []}, "stores"),
        ({"trustedIdentities": ["*", "x509.subject: C=US, ST=WA, O=a"]}, "identity"),
        ({"trustedIdentities": ["C=US"]}, "identity"),
        ({"trustedIdentities": ["x509.subject: C=US, O=a"]}, "identity"),
        ({"trustedIdentities": ["x509.subject: no name"]}, "identity"),
        ({"registryScopes": []}, "scope"),
        ({"registryScopes": ["*", REPOSITORY]}, "scope"),
        ({"registryScopes": ["images.test/*"]}, "scope"),
        ({"registryScopes": [REPOSITORY, REPOSITORY]}, "ambiguous"),
        ({"more": 1}, "unknown_member"),
    ],
)
def test_files_that_are_no_trust_policy_are_refused(changes: dict[str, Any], code: str) -> None:
    assert refused(lambda: parse_trust_policy(policy_file(**changes))) == f"oci.signing.trust_policy.{code}"


def test_the_policy_for_a_repository() -> None:
    policies = parse_trust_policy(policy_file())
    other = parse_reference("images.test/other")
    assert refused(lambda: select_policy(policies, other)) == "oci.signing.trust_policy.no_policy"
    assert select_policy(parse_trust_policy(policy_file(registryScopes=["*"])), other).name == "acme"
    raw = policy_file().replace(b'"1.0"', b'"2.0"')
    assert refused(lambda: parse_trust_policy(raw)) == "oci.signing.trust_policy.version"


@pytest.mark.parametrize("media_type", BOTH)
def test_a_signature_is_attached_and_found(media_type: str, tmp_path: Path) -> None:
    built = build_layout(tmp_path / "plain", archive(file(b"a", b"x")))
    key = NotationKey(key=signer().key, chain=signer().chain)
    assert "PRIVATE" not in repr(key) and "signer" in repr(key)
    digest = sign_notation(built.layout, "v1", key, media_type=media_type, clock=lambda: NOW)
    (found,) = read_referred(built.layout, digest)
    assert isinstance(found, EnvelopeCandidate) and found.media_type == media_type
    raw = built.layout.get_manifest(str(digest))
    assert raw is not None and requirement().judge(found, raw.raw, NOW)
