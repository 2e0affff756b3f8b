"""SPIFFE identities: what an attested guest gets, read by libraries that are not ours, and what it is refused."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, VerificationError
from cryptography.x509.verification import Store as TrustStore
from joserfc import jwt
from joserfc.jwk import KeySet

from cloister.errors import FormatRefused, Refused, Unavailable
from cloister.protocol.initdata import InitData
from cloister.protocol.spiffe import ATTESTATION_OID
from cloister.protocol.svidextension import AttestationStatement, encode_statement, parse_statement
from cloister.rats.claims import Level
from cloister.trust.events import LogEvent
from cloister.trust.identity.authorities import KEY_LIFE, OVERLAP, ROTATED_AFTER, Use
from cloister.trust.identity.policy import parse_identity_policy
from cloister.trust.identity.service import IdentityParts, IdentityService
from cloister.trust.identity.storedauthorities import StoredAuthorities
from cloister.trust.roles import PluginDenied
from cloister.trust.store.records import RELEASED
from identity_world import (
    AUDIENCE,
    CONTRACT,
    DOMAIN,
    ISSUER,
    Domain,
    grant,
    leaf,
    make_domain,
    names_of,
    pod_data,
    policy,
    request,
    uris,
)
from tampering import flipped
from trust_world import Factory, Guest, all_bytes, booted_tpm, init_data, now_utc

KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def domain(new_world: Factory) -> Domain:
    """A trust domain that names the pod of the furnished world."""
    return make_domain(new_world)


def verified(domain: Domain, certificate: x509.Certificate) -> list[x509.Certificate]:
    """Verify as a TLS server of another workload does, with cryptography's own path validation."""
    verifier = PolicyBuilder().store(TrustStore(domain.authorities())).time(domain.world.clock.now)
    return list(verifier.build_client_verifier().verify(certificate, []).chain)


def test_an_attested_guest_gets_an_x509_svid_of_the_profile(domain: Domain) -> None:
    world, guest = domain.world, domain.world.guest().handshake()
    token = domain.token(guest)
    answer = domain.x509(guest, request(KEY))
    certificate = leaf(answer)
    expected = f"spiffe://{DOMAIN}/default/measured/shop/{world.data.digest.hex()[:32]}"
    assert answer["spiffe_id"] == expected
    assert names_of(certificate) == [("UniformResourceIdentifier", expected)]
    assert certificate.public_key() == KEY.public_key()
    extension = certificate.extensions.get_extension_for_class
    assert extension(x509.BasicConstraints).value == x509.BasicConstraints(ca=False, path_length=None)
    usage = extension(x509.KeyUsage)
    assert usage.critical and usage.value.digital_signature
    assert not (usage.value.key_cert_sign or usage.value.crl_sign or usage.value.key_agreement)
    assert set(extension(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.SERVER_AUTH,
    }
    assert (
        certificate.not_valid_after_utc
        == token.expires_at.replace(microsecond=0)
        <= world.clock.now + timedelta(hours=1)
    )
    assert len(verified(domain, certificate)) == 2
    bundle = base64.b64decode(answer["bundle"])
    assert bundle == b"".join(authority.public_bytes(Encoding.DER) for authority in domain.authorities())


def test_the_certificate_says_what_was_proved(domain: Domain) -> None:
    data = pod_data()
    domain.world.admin.put_identity_policy(policy(grant(data, template="{level}/{contract}/{pod}-{policy}")))
    guest = domain.world.guest(data).handshake()
    answer = domain.x509(guest, request(KEY), data=data)
    assert answer["spiffe_id"] == f"spiffe://{DOMAIN}/default/measured/{'c0' * 32}/classifier-default"
    value = leaf(answer).extensions.get_extension_for_oid(x509.ObjectIdentifier(ATTESTATION_OID))
    assert not value.critical and isinstance(value.value, x509.UnrecognizedExtension)
    token = domain.token(guest)
    assert parse_statement(value.value.value) == AttestationStatement(
        level="measured",
        policy_digest=token.policy_digest,
        contract_id=CONTRACT,
        init_data=data.digest_text,
        attestation=token.attestation,
    )
    assert "level measured" in leaf(answer).subject.rfc4514_string()


def test_an_independent_library_verifies_a_jwt_svid_by_the_bundle(domain: Domain) -> None:
    data = pod_data()
    domain.world.admin.put_identity_policy(policy(grant(data)))
    guest = domain.world.guest(data).handshake()
    answer = domain.jwt(guest, AUDIENCE, "spiffe://prod.example.org/default/measured/ledger", data=data)
    bundle = json.loads(domain.service.bundle())
    own = [key for key in bundle["keys"] if key.pop("use") == "jwt-svid"]  # a word of SPIFFE's that JOSE does not know
    keys = KeySet.import_key_set({"keys": own})
    decoded = jwt.decode(answer["svid"], keys, algorithms=["ES256"])
    token = domain.token(guest)
    now = int(domain.world.clock.now.timestamp())
    assert set(decoded.header) == {"alg", "kid", "typ"} and decoded.header["typ"] == "JWT"
    assert decoded.claims.pop("jti")
    assert decoded.claims == {
        "iss": ISSUER,
        "sub": answer["spiffe_id"],
        "aud": [AUDIENCE, "spiffe://prod.example.org/default/measured/ledger"],
        "iat": now,
        "exp": now + 300,
        "cloister.level": "measured",
        "cloister.policy-digest": token.policy_digest,
        "cloister.contract-id": CONTRACT,
        "cloister.attestation": token.attestation,
    }
    document = domain.service.document("/.well-known/openid-configuration")
    assert document is not None and json.loads(document.body)["issuer"] == ISSUER
    uri = json.loads(document.body)["jwks_uri"]
    published = domain.service.document(uri.removeprefix(ISSUER))
    assert published is not None
    assert jwt.decode(answer["svid"], KeySet.import_key_set(json.loads(published.body))).claims["aud"]


def test_the_bundle_is_a_spiffe_bundle(domain: Domain) -> None:
    document = domain.service.document("/spiffe/bundle")
    assert document is not None and document.content_type == "application/json" and document.max_age_seconds == 300
    bundle = json.loads(document.body)
    assert bundle["spiffe_refresh_hint"] == 300 and bundle["spiffe_sequence"] == 2
    assert sorted(key["use"] for key in bundle["keys"]) == ["jwt-svid", "x509-svid"]
    for key in bundle["keys"]:
        assert ("kid" in key) is (key["use"] == "jwt-svid") and len(key.get("x5c", [])) == (key["use"] == "x509-svid")
        assert "d" not in key
    [authority] = domain.authorities()
    assert names_of(authority) == [("UniformResourceIdentifier", f"spiffe://{DOMAIN}")]
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    tls = x509.load_pem_x509_certificate(domain.world.service.state.ca_file.read_bytes())
    assert tls.public_key() != authority.public_key()
    assert domain.service.document("/spiffe/nothing") is None
    assert (
        json.loads(domain.service.handle("bundle", "", b"", domain.token(domain.world.guest().handshake()))) == bundle
    )


def test_what_is_issued_is_recorded_before_it_leaves(domain: Domain) -> None:
    guest = domain.world.guest().handshake()
    answer = domain.x509(guest, request(KEY))
    [row] = domain.world.admin.list_audit()
    token = domain.token(guest)
    assert (row.decision, row.code, row.resource) == (RELEASED, "trust.identity.issued", answer["spiffe_id"])
    assert (row.level, row.init_data, row.attestation) == ("measured", token.init_data, token.attestation)
    assert row.release_policy_digest == domain.world.admin.identity_policy().digest


def test_nothing_is_issued_that_the_log_does_not_take(domain: Domain) -> None:
    taken: list[LogEvent] = []

    class Full:
        def append(self, connection: object, event: LogEvent) -> object:
            taken.append(event)
            raise Unavailable("trust.log.full", "no")

    world = domain.world
    service = IdentityService(
        IdentityParts(
            store=world.service.store,
            authorities=StoredAuthorities(world.service.store, world.service.keys.ring, DOMAIN),
            trust_domain=DOMAIN,
            tenant="default",
            clock=world.clock,
            events=Full(),
        )
    )
    guest = Domain(world=world, service=service), world.guest().handshake()
    with pytest.raises(Unavailable):
        guest[0].x509(guest[1], request(KEY))
    with pytest.raises(Unavailable):
        guest[0].jwt(guest[1], AUDIENCE)
    assert world.admin.list_audit() == ()
    kinds = [(event.kind, event.tenant, event.fields["svid"]) for event in taken]
    assert kinds == [("release", "default", "x509-svid"), ("release", "default", "jwt-svid")]
    assert taken[0].fields["serial"] and taken[1].fields["audience"] == AUDIENCE


# --- refusals by policy ---


def denied(domain: Domain, guest: Guest, *audiences: str, data: InitData | None = None) -> str:
    """Return the code of the refusal; both kinds of SVID are refused, and nothing is recorded as issued."""
    with pytest.raises(PluginDenied) as refusal:
        domain.x509(guest, request(KEY), data=data)
    assert refusal.value.findings and not all(finding.ok for finding in refusal.value.findings)
    with pytest.raises(PluginDenied):
        domain.jwt(guest, *(audiences or (AUDIENCE,)), data=data)
    assert domain.world.admin.list_audit() == ()
    return refusal.value.code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"init_data": []}, "trust.identity.no_grant"),
        ({"init_data": ["sha256:" + "00" * 32]}, "trust.identity.no_grant"),
        ({"insecure_allow_levels": []}, "trust.identity.level"),
        ({"insecure_allow_levels": ["simulated"]}, "trust.identity.level"),
        ({"appraisal_policy": "strict"}, "trust.identity.appraisal_policy"),
        ({"template": "{level}/{contract}"}, "trust.identity.template"),
        ({"template": "{level}/{pod}"}, "trust.identity.template"),
    ],
)
def test_a_grant_is_needed_that_fits(new_world: Factory, changes: Mapping[str, Any], code: str) -> None:
    domain = make_domain(new_world)
    domain.world.admin.put_identity_policy(policy(grant(domain.world.data, **changes)))
    assert denied(domain, domain.world.guest().handshake()) == code


def test_without_a_policy_there_is_no_name(new_world: Factory) -> None:
    world = new_world(trust_domain=DOMAIN)
    assert world.service.identity is not None
    domain = Domain(world=world, service=world.service.identity)
    assert denied(domain, world.guest().handshake()) == "trust.identity.no_grant"
    assert domain.service.document("/.well-known/openid-configuration") is None  # no issuer is configured


def test_identity_is_off_until_a_trust_domain_is_configured(new_world: Factory) -> None:
    assert new_world().service.identity is None


def test_a_guest_that_was_not_affirmed_gets_no_name(domain: Domain) -> None:
    guest = domain.world.guest(launch=b"another launch").handshake()
    assert domain.token(guest).tier.value == "contraindicated"
    assert denied(domain, guest) == "trust.identity.tier"


def test_a_revoked_pod_gets_no_name(domain: Domain) -> None:
    data = domain.world.data
    domain.world.admin.put_identity_policy(policy(grant(data, revoked=[data.digest_text])))
    assert denied(domain, domain.world.guest().handshake()) == "trust.identity.revoked"


def test_another_version_of_the_appraisal_policy_asks_for_fresh_evidence(domain: Domain) -> None:
    guest = domain.world.guest().handshake()
    domain.world.admin.put_appraisal_policy(
        b'{"version":1,"id":"default","tees":["tpm","snp"],"insecure_accept_levels":["measured"]}'
    )
    assert denied(domain, guest) == "trust.identity.appraisal_policy.version"
    assert domain.x509(domain.world.guest().handshake(), request(KEY))


def test_an_expired_result_gets_nothing(domain: Domain) -> None:
    guest = domain.world.guest().handshake()
    token = domain.token(guest)
    domain.world.clock.advance(minutes=4, seconds=50)
    short = leaf(domain.x509(guest, request(KEY)))
    assert short.not_valid_after_utc - domain.world.clock.now <= timedelta(seconds=10)
    domain.world.clock.advance(seconds=10)
    with pytest.raises(Refused, match="expired"):
        domain.token(guest)
    body = json.dumps({"csr": base64.b64encode(request(KEY)).decode()}).encode()
    with pytest.raises(PluginDenied) as refusal:  # also when somebody kept a token that had been verified
        domain.service.handle("x509-svid", "", body, token)
    assert refusal.value.code == "trust.identity.fresh"


def test_a_name_has_its_tenant_in_it_and_another_tenants_policy_grants_nothing(domain: Domain) -> None:
    guest = domain.world.guest().handshake()
    name = f"spiffe://{DOMAIN}/other/measured/shop/{domain.world.data.digest.hex()[:32]}"
    with pytest.raises(PluginDenied) as refusal:
        domain.x509(guest, request(KEY), name=name)
    assert refusal.value.code == "trust.identity.no_grant"


def test_with_two_names_the_guest_says_which(domain: Domain) -> None:
    data, guest = domain.world.data, domain.world.guest().handshake()
    domain.world.admin.put_identity_policy(
        policy(
            grant(data, template="{level}/a"), grant(data, template="{level}/b"), grant(data, template="{level}/{pod}")
        )
    )
    name = f"spiffe://{DOMAIN}/default/measured/b"
    assert domain.x509(guest, request(KEY), name=name)["spiffe_id"] == name
    with pytest.raises(PluginDenied) as refusal:
        domain.x509(guest, request(KEY))
    assert refusal.value.code == "trust.identity.no_grant" and "several" in refusal.value.message


def test_init_data_that_the_evidence_did_not_bind_name_nobody(domain: Domain) -> None:
    data = pod_data()
    domain.world.admin.put_identity_policy(policy(grant(domain.world.data, template="{level}/{pod}")))
    guest = domain.world.guest().handshake()
    with pytest.raises(Refused) as refusal:
        domain.x509(guest, request(KEY), data=data)
    assert refusal.value.code == "trust.identity.init_data"
    damaged = pod_data(**{"contract-id": "sha256:zz"})
    domain.world.admin.put_identity_policy(policy(grant(damaged, template="{level}/{pod}")))
    with pytest.raises(FormatRefused) as refusal_of_contract:
        domain.x509(domain.world.guest(damaged).handshake(), request(KEY), data=damaged)
    assert refusal_of_contract.value.code == "trust.identity.init_data"


@pytest.mark.parametrize("audience", ["*", "https://*.example.org", "", "a" * 513, "new\nline"])
def test_a_jwt_svid_is_for_exact_names(domain: Domain, audience: str) -> None:
    guest = domain.world.guest().handshake()
    with pytest.raises(FormatRefused) as refusal:
        domain.jwt(guest, audience)
    assert refusal.value.code == "trust.identity.audience"


def test_a_jwt_svid_is_for_somebody_the_grant_names(domain: Domain) -> None:
    guest = domain.world.guest().handshake()
    for audiences, code in (
        ((), "trust.identity.audience"),
        ((AUDIENCE, "https://other.example.org"), "trust.identity.audience_granted"),
        (tuple(f"https://{number}.example.org" for number in range(9)), "trust.identity.audience"),
    ):
        with pytest.raises(Refused) as refusal:
            domain.jwt(guest, *audiences)
        assert refusal.value.code == code
    assert domain.world.admin.list_audit() == ()


# --- refusals of requests ---


def ca_flag() -> bytes:
    return request(KEY, x509.BasicConstraints(ca=True, path_length=None))


BAD_REQUESTS: list[tuple[Callable[[], bytes], str]] = [
    (ca_flag, "trust.identity.csr.asks_more"),
    (lambda: request(KEY, x509.SubjectAlternativeName([x509.DNSName("a.example")])), "trust.identity.csr.asks_more"),
    (lambda: request(KEY, uris("spiffe://prod.example.org/default/root")), "trust.identity.csr.asks_more"),
    (lambda: request(KEY, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])), "trust.identity.csr.asks_more"),
    (lambda: request(ec.generate_private_key(ec.SECP384R1())), "trust.identity.csr.key"),
    (lambda: request(ec.generate_private_key(ec.SECP224R1())), "trust.identity.csr.key"),
    (lambda: request(rsa.generate_private_key(65537, 2048)), "trust.identity.csr.key"),
    (lambda: request(KEY, hash_=hashes.SHA224()), "trust.identity.csr.key"),
    (lambda: flipped(request(KEY)), "trust.identity.csr.proof"),
    (lambda: request(KEY) + b"\0", "trust.identity.csr"),
    (lambda: b"nonsense", "trust.identity.csr"),
    (lambda: bytes(4097), "wire.base64.too_long"),
]


@pytest.mark.parametrize(("make", "code"), BAD_REQUESTS)
def test_a_request_is_a_proof_of_a_key_and_nothing_more(domain: Domain, make: Callable[[], bytes], code: str) -> None:
    guest = domain.world.guest().handshake()
    with pytest.raises(Refused) as refusal:
        domain.x509(guest, make())
    assert refusal.value.code == code
    assert domain.world.admin.list_audit() == ()


def test_a_request_may_name_what_it_gets(domain: Domain) -> None:
    guest = domain.world.guest().handshake()
    name = domain.x509(guest, request(KEY))["spiffe_id"]
    assert domain.x509(guest, request(KEY, uris(name)))["spiffe_id"] == name
    with pytest.raises(Refused) as refusal:
        domain.x509(guest, request(KEY, uris(name, "spiffe://prod.example.org/default/root")))
    assert refusal.value.code == "trust.identity.csr.asks_more"


def test_the_request_may_stand_in_the_address(domain: Domain) -> None:
    """CoCo's clients send GET without a body."""
    guest = domain.world.guest().handshake()
    text = base64.urlsafe_b64encode(request(KEY)).rstrip(b"=").decode()
    answer = json.loads(domain.service.handle("x509-svid", f"csr={text}", b"", domain.token(guest)))
    assert leaf(answer).public_key() == KEY.public_key()


@pytest.mark.parametrize(
    ("path", "query", "body", "code"),
    [
        ("x509-svid", "", b"", "trust.identity.request"),
        ("x509-svid", "csr=AA", b'{"csr":"AA=="}', "trust.identity.request"),
        ("x509-svid", "csr=AA&csr=AA", b"", "trust.identity.request"),
        ("x509-svid", "csr=AA&audience=x", b"", "trust.identity.request"),
        ("x509-svid", "csr", b"", "trust.identity.request"),
        ("x509-svid", "csr=%ff", b"", "trust.identity.request"),
        ("x509-svid", "&".join(["a=b"] * 50), b"", "trust.identity.request"),
        ("x509-svid", "a" * 100_000, b"", "trust.identity.request"),
        ("x509-svid", "", b"{", "trust.identity.request"),
        ("x509-svid", "", b'{"csr":"AA==","uid":0}', "trust.identity.request"),
        ("jwt-svid", "audience=a&csr=AA", b"", "trust.identity.request"),
        ("jwt-svid", "audience=a", b'{"csr":"AA=="}', "trust.identity.audience"),
        ("jwt-svid", "audience=a&id=spiffe://prod.example.org/default/../root", b"", "protocol.spiffe.id"),
        ("jwt-svid", "audience=a&id=https://prod.example.org", b"", "protocol.spiffe.id"),
        ("bundle", "id=x", b"", "trust.request.path"),
        ("../x509-svid", "", b"", "trust.request.path"),
        ("", "", b"", "trust.request.path"),
    ],
)
def test_requests_of_another_shape_are_refused(domain: Domain, path: str, query: str, body: bytes, code: str) -> None:
    token = domain.token(domain.world.guest().handshake())
    with pytest.raises(Refused) as refusal:
        domain.service.handle(path, query, body, token)
    assert refusal.value.code == code


# --- the policy ---


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"template": ""}, "trust.identity.template"),
        ({"template": "a//b"}, "trust.identity.template"),
        ({"template": "/a"}, "trust.identity.template"),
        ({"template": "../{level}"}, "trust.identity.template"),
        ({"template": "{level}/%2e"}, "trust.identity.template"),
        ({"template": "{level}/{nonce}"}, "trust.identity.template"),
        ({"template": "{level}/{}"}, "trust.identity.template"),
        ({"template": "{level}/{pod"}, "trust.identity.template"),
        ({"template": "{level}/" + "a" * 600}, "trust.identity.template"),
        ({"template": "shop/web"}, "trust.identity.policy"),  # a weaker level under a name that does not show it
        ({"insecure_accept_levels": ["simulated"]}, "trust.identity.policy"),
        ({"init_data": ["sha256:abc"]}, "trust.identity.policy"),
        ({"audiences": ["https://*"]}, "trust.identity.audience"),
        ({"appraisal_policy": ""}, "trust.identity.policy"),
    ],
)
def test_a_policy_that_is_not_exact_is_refused_whole(changes: Mapping[str, Any], code: str) -> None:
    with pytest.raises(FormatRefused) as refusal:
        parse_identity_policy(policy(grant(init_data()), grant(init_data(), **{"template": "{level}/b", **changes})))
    assert refusal.value.code == code


def test_a_policy_may_be_toml_and_hardware_needs_no_level_in_the_name() -> None:
    text = (
        b'version = 1\nid = "shop"\n[[grants]]\ntemplate = "shop/web"\ninit_data = []\nappraisal_policy = "default"\n'
    )
    assert parse_identity_policy(text).grants[0].insecure_allow_levels == ()
    for damaged in (b"", b"[]", b"version = 2\nid = 'a'\ngrants = []", text + text[20:], b"{" * 10_000):
        with pytest.raises(FormatRefused):
            parse_identity_policy(damaged)
    twice = grant(init_data())
    with pytest.raises(FormatRefused, match="same template"):
        parse_identity_policy(policy(twice, twice))
    allowed = parse_identity_policy(policy(grant(init_data(), insecure_allow_levels=["simulated"])))
    assert allowed.grants[0].insecure_allow_levels == (Level.SIMULATED,)


# --- keys ---


def test_keys_rotate_with_overlap_and_old_svids_stay_valid(domain: Domain) -> None:
    world = domain.world
    old = leaf(domain.x509(world.guest().handshake(), request(KEY)))
    first = json.loads(domain.service.bundle())
    world.clock.advance(seconds=ROTATED_AFTER.total_seconds() - 60)
    guest = renewed_guest(domain)
    before = leaf(domain.x509(guest, request(KEY)))
    world.clock.advance(seconds=60)
    during = leaf(domain.x509(guest, request(KEY)))
    bundle = json.loads(domain.service.bundle())
    assert len(bundle["keys"]) == 4 and bundle["spiffe_sequence"] > first["spiffe_sequence"]
    assert before.issuer == during.issuer == old.issuer  # the new key is known, and does not sign yet
    world.clock.advance(seconds=OVERLAP.total_seconds())
    after = leaf(domain.x509(renewed_guest(domain), request(KEY)))
    assert after.issuer != before.issuer
    assert len(verified(domain, after)) == 2
    world.clock.now = before.not_valid_after_utc - timedelta(seconds=1)
    assert len(verified(domain, before)) == 2
    world.clock.advance(seconds=KEY_LIFE.total_seconds())
    assert len(json.loads(domain.service.bundle())["keys"]) == 2  # nobody asked for two months: all new
    with pytest.raises(VerificationError):
        verified(domain, old)


def renewed_guest(domain: Domain) -> Guest:
    """A guest at a later time: the world's reference values have expired, so the owner registers new ones."""
    world = domain.world
    [entry] = world.admin.list_reference_entries()
    later = world.clock.now + timedelta(days=30)
    world.admin.add_reference_entries([replace(entry, not_after=later)])
    return world.guest().handshake()


def test_a_withdrawn_key_leaves_the_bundle_at_once(domain: Domain) -> None:
    world = domain.world
    certificate = leaf(domain.x509(world.guest().handshake(), request(KEY)))
    ring = StoredAuthorities(world.service.store, world.service.keys.ring, DOMAIN)
    key = ring.signing(Use.X509, at=world.clock.now)
    sequence = ring.sequence(at=world.clock.now)
    ring.withdraw(key.key_id, at=world.clock.now)
    with pytest.raises(VerificationError):
        verified(domain, certificate)
    assert verified(domain, leaf(domain.x509(world.guest().handshake(), request(KEY))))
    assert ring.sequence(at=world.clock.now) > sequence
    for wrong in (key.key_id, "nothing"):
        with pytest.raises(Refused) as refusal:
            ring.withdraw(wrong, at=world.clock.now)
        assert refusal.value.code == "trust.identity.key"


def test_replicas_share_keys_and_other_trust_domains_have_others(domain: Domain) -> None:
    world = domain.world
    rings = [
        StoredAuthorities(world.service.store, world.service.keys.ring, name) for name in (DOMAIN, DOMAIN, "other")
    ]
    ids = [ring.signing(Use.JWT, at=world.clock.now).key_id for ring in rings]
    assert ids[0] == ids[1] != ids[2]
    assert domain.service.bundle()
    world.restart()
    assert world.service.identity is not None and world.service.identity.bundle() == domain_bundle(
        world.service.identity
    )
    assert ids[0] in world.service.identity.bundle().decode()


def domain_bundle(service: IdentityService) -> bytes:
    document = service.document("/spiffe/bundle")
    assert document is not None
    return document.body


def test_private_keys_are_sealed_at_rest(domain: Domain) -> None:
    domain.service.bundle()
    world = domain.world
    authority = StoredAuthorities(world.service.store, world.service.keys.ring, DOMAIN).signing(
        Use.X509, at=world.clock.now
    )
    pem = authority.signer.private_pem()  # type: ignore[attr-defined]  # the test knows how this ring keeps keys
    assert b"PRIVATE KEY" in pem and pem[30:80] not in all_bytes(world.state)
    assert authority.certificate in all_bytes(world.state)  # the search finds what is there
    assert "PRIVATE" not in repr(authority)


def test_the_statement_has_one_encoding() -> None:
    statement = AttestationStatement(
        level="hardware",
        policy_digest="sha256:" + "ab" * 32,
        contract_id="",
        init_data="sha384:" + "cd" * 48,
        attestation="a-1",
    )
    encoded = encode_statement(statement)
    assert parse_statement(encoded) == statement
    for damaged in (
        encoded + b"\0",
        encoded[:-1],
        b"",
        b"0",
        b"\x31" + encoded[1:],
        encoded.replace(b"\x02\x01\x01", b"\x02\x01\x02"),
    ):
        with pytest.raises(FormatRefused):
            parse_statement(damaged)
    with pytest.raises(FormatRefused):
        encode_statement(
            AttestationStatement(level="x" * 2000, policy_digest="", contract_id="", init_data="", attestation="")
        )


# --- two workloads ---


def workload(domain: Domain, directory: Path, name: str) -> Mapping[str, Any]:
    """Attest, get an SVID for a fresh key and write what a TLS library wants as files."""
    key = ec.generate_private_key(ec.SECP256R1())
    answer = domain.x509(present_guest(domain), request(key))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / f"{name}.pem").write_bytes(leaf(answer).public_bytes(Encoding.PEM) + pem)
    bundle = b"".join(authority.public_bytes(Encoding.PEM) for authority in domain.authorities())
    (directory / f"{name}-bundle.pem").write_bytes(bundle)
    return answer


def present_guest(domain: Domain) -> Guest:
    """A guest of today: a TLS library knows no other clock than the machine's."""
    world = domain.world
    world.clock.now = now_utc()
    [entry] = world.admin.list_reference_entries()
    world.admin.add_reference_entries([replace(entry, not_after=world.clock.now + timedelta(days=1))])
    return Guest(world, booted_tpm(world.ca, world.data, now=world.clock.now), world.data).handshake()


def context(directory: Path, name: str, *, server: bool) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False  # SPIFFE peers are known by URI
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    made.load_cert_chain(directory / f"{name}.pem")
    made.load_verify_locations(directory / f"{name}-bundle.pem")
    return made


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> tuple[str, str]:
    """Return the names that server and client see; TLS over memory."""
    ends = [(ssl.MemoryBIO(), ssl.MemoryBIO()) for _ in range(2)]
    one = client.wrap_bio(ends[0][0], ends[0][1])
    two = server.wrap_bio(ends[1][0], ends[1][1], server_side=True)
    pending = [one, two]
    for _ in range(20):
        for end in list(pending):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
                pending.remove(end)
        ends[1][0].write(ends[0][1].read())
        ends[0][0].write(ends[1][1].read())
        if not pending:
            return uri_of(two), uri_of(one)
    raise AssertionError("no handshake")


def uri_of(end: ssl.SSLObject) -> str:
    peer = end.getpeercert()
    assert peer is not None
    found = peer["subjectAltName"]
    assert isinstance(found, tuple) and len(found) == 1
    kind, value = found[0]
    assert kind == "URI"
    return str(value)


def test_two_attested_workloads_speak_tls_and_a_foreign_one_does_not(new_world: Factory, quick: Path) -> None:
    ours, foreign = make_domain(new_world), make_domain(new_world, domain="evil.example.org")
    names = [workload(ours, quick, name)["spiffe_id"] for name in ("web", "db")]
    workload(foreign, quick, "stranger")
    web, db = (context(quick, name, server=name == "db") for name in ("web", "db"))
    assert shake_hands(web, db) == (names[0], names[1])
    with pytest.raises(ssl.SSLError):
        shake_hands(context(quick, "stranger", server=False), db)
    with pytest.raises(ssl.SSLError):
        shake_hands(web, context(quick, "stranger", server=True))
    # The same name out of another trust domain's key is no better.
    imitation = make_domain(new_world)
    workload(imitation, quick, "imitation")
    with pytest.raises(ssl.SSLError):
        shake_hands(context(quick, "imitation", server=False), db)
