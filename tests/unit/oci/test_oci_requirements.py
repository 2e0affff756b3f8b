"""Requirements of policy.json with their keys: one's own authority, Fulcio by its root, keyrings; and rare refusals."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from cloister.crypto.signer import ECDSAP256Signer
from cloister.oci.digest import Digest
from cloister.oci.reference import parse_reference
from cloister.oci.signing.bundle import IN_TOTO_TYPE, Bundle, encode_bundle, encode_statement
from cloister.oci.signing.fulcio import read_identity
from cloister.oci.signing.identity import IdentityRule, MatchRepository
from cloister.oci.signing.keyless import KeylessTrust
from cloister.oci.signing.policyjson import FulcioSource, KeySource, PKISource, Reject, SignedBy, SigstoreSigned
from cloister.oci.signing.referred import NOTATION_JWS, EnvelopeCandidate
from cloister.oci.signing.requirements import (
    KeylessRequirement,
    OpenPGPCandidate,
    OpenPGPRequirement,
    RejectRequirement,
    load_requirement,
)
from cloister.oci.signing.simplesigning import (
    CERTIFICATE_ANNOTATION,
    CHAIN_ANNOTATION,
    SignatureCandidate,
    Statement,
    encode_payload,
)
from cloister.oci.signing.timestamp import verify_timestamp
from cloister.oci.signing.verify import BundleCandidate
from cloister.testing import sigstore as testing
from signing_world import (
    MANIFEST,
    NOW,
    REPOSITORY,
    Signer,
    classic_keyless,
    keyless_bundle,
    notation_signer,
    pem_of,
    refused,
    sigstore,
    trust,
)
from tampering import flipped

RULE = IdentityRule(MatchRepository(), parse_reference(f"{REPOSITORY}:v1"))


def no_file(path: str) -> bytes:
    raise AssertionError(path)


def load(asked: Any, read: Callable[[str], bytes] = no_file) -> Any:
    return load_requirement(asked, lambda identity: RULE, read)


def developer(*names: x509.GeneralName, purpose: x509.ObjectIdentifier = ExtendedKeyUsageOID.CODE_SIGNING) -> Signer:
    found = names or (x509.RFC822Name("dev@example.test"), x509.DNSName("build.example.test"))
    return notation_signer(extra={x509.SubjectAlternativeName(found): False}, purpose=purpose)


def pki(signer: Signer, *, email: str = "dev@example.test", hostname: str = "", inner: bool = False) -> Any:
    source = PKISource(
        roots=KeySource(data=pem_of(signer.chain[-1])),
        intermediates=KeySource(data=pem_of(signer.chain[-1])) if inner else None,
        email=email,
        hostname=hostname,
    )
    return load(SigstoreSigned(pki=source, identity=MatchRepository()))


def classic(signer: Signer, name: str = REPOSITORY, digest: Digest | None = None) -> SignatureCandidate:
    """Return a signature under a certificate, in no log."""
    assert isinstance(signer.key, ec.EllipticCurvePrivateKey)
    payload = encode_payload(Statement(name, digest or Digest.of(MANIFEST)))
    annotations = {
        CERTIFICATE_ANNOTATION: pem_of(signer.chain[0]).decode(),
        CHAIN_ANNOTATION: pem_of(signer.chain[1]).decode(),
    }
    return SignatureCandidate(payload, signer.key.sign(payload, ec.ECDSA(SHA256())), annotations)


def as_bundle(signer: Signer) -> BundleCandidate:
    assert isinstance(signer.key, ec.EllipticCurvePrivateKey)
    statement = encode_statement(Digest.of(MANIFEST), repository=REPOSITORY)
    der = signer.chain[0].public_bytes(Encoding.DER)
    bundle = Bundle(version="0.3", payload=statement, payload_type=IN_TOTO_TYPE, signature=b"", certificates=(der,))
    signature = signer.key.sign(bundle.signed_bytes(MANIFEST), ec.ECDSA(SHA256()))
    return BundleCandidate(raw=encode_bundle(msgspec.structs.replace(bundle, signature=signature)))


def test_an_authority_of_ones_own() -> None:
    signer = developer()
    for needed in (pki(signer), pki(signer, email="", hostname="build.example.test"), pki(signer, inner=True)):
        for candidate in (classic(signer), as_bundle(signer)):
            assert "certificate for" in needed.judge(candidate, MANIFEST, NOW).name


@pytest.mark.parametrize(
    ("judge", "code"),
    [
        (lambda: pki(developer(), email="other@example.test"), "pki.identity"),
        (lambda: pki(developer(), email="dev@example.test", hostname="other.test"), "pki.identity"),
        (lambda: pki(developer(), hostname="dev@example.test", email=""), "pki.identity"),
    ],
)
def test_certificates_for_somebody_else_are_refused(judge: Callable[[], Any], code: str) -> None:
    assert refused(lambda: judge().judge(classic(developer()), MANIFEST, NOW)) == f"oci.signing.{code}"


def test_certificates_that_do_not_hold_are_refused() -> None:
    signer, needed = developer(), pki(developer())
    late = NOW + timedelta(days=400)
    assert refused(lambda: needed.judge(classic(signer), MANIFEST, late)) == "oci.signing.pki.expired"
    server = developer(purpose=ExtendedKeyUsageOID.SERVER_AUTH)
    assert refused(lambda: needed.judge(classic(server), MANIFEST, NOW)) == "oci.signing.pki.purpose"
    foreign = classic_keyless(sigstore())
    assert refused(lambda: needed.judge(foreign, MANIFEST, NOW)) == "oci.signing.pki.untrusted"
    forged = msgspec.structs.replace(classic(signer), signature=flipped(classic(signer).signature))
    assert refused(lambda: needed.judge(forged, MANIFEST, NOW)) == "oci.signing.bad_signature"
    other = classic(signer, name="images.test/other")
    assert refused(lambda: needed.judge(other, MANIFEST, NOW)) == "oci.signing.other_repository"
    moved = classic(signer, digest=Digest.of(b"other"))
    assert refused(lambda: needed.judge(moved, MANIFEST, NOW)) == "oci.signing.other_image"
    plain = SignatureCandidate(b"p", b"s")
    assert refused(lambda: needed.judge(plain, MANIFEST, NOW)) == "oci.signing.not_keyless"


def fulcio(root: bytes, log: bytes, email: str = "dev@example.test") -> Any:
    source = FulcioSource(authority=KeySource(data=root), issuer="https://login.example.test", email=email)
    return load(SigstoreSigned(fulcio=source, rekor_keys=(KeySource(data=log),), identity=MatchRepository()))


def test_fulcio_by_its_root_through_what_comes_with_the_signature() -> None:
    """The policy names a root; the authority between stands beside the signature, and is trusted by nothing but it."""
    services = sigstore()
    needed = fulcio(pem_of(services.root), testing.spki_of(services.log_key))
    assert needed.judge(classic_keyless(services), MANIFEST, NOW)
    chainless = classic_keyless(services, chain="")
    assert refused(lambda: needed.judge(chainless, MANIFEST, NOW)) == "oci.signing.fulcio.untrusted"
    foreign = fulcio(pem_of(notation_signer().chain[-1]), testing.spki_of(services.log_key))
    assert refused(lambda: foreign.judge(classic_keyless(services), MANIFEST, NOW)) == "oci.signing.fulcio.untrusted"
    unlogged = fulcio(pem_of(services.root), testing.spki_of(services.ct_key))
    assert refused(lambda: unlogged.judge(classic_keyless(services), MANIFEST, NOW)) == "oci.signing.rekor.unknown_log"


def test_keys_are_read_where_they_are_named(tmp_path: Path) -> None:
    signer = ECDSAP256Signer.generate()
    files = {"/a.pub": signer.public_key.pem(), "kbs:///a/b/c": b"no key"}
    needed = load(SigstoreSigned(keys=(KeySource(path="/a.pub"),), identity=MatchRepository()), files.__getitem__)
    payload = encode_payload(Statement(REPOSITORY, Digest.of(MANIFEST)))
    assert needed.judge(SignatureCandidate(payload, signer.sign(payload)), MANIFEST, NOW)
    for asked, code in (
        (SigstoreSigned(keys=(KeySource(path="kbs:///a/b/c"),), identity=MatchRepository()), "key.malformed"),
        (SignedBy(keyrings=(KeySource(path="kbs:///a/b/c"),), identity=MatchRepository()), "policy.keyring"),
        (
            SigstoreSigned(
                pki=PKISource(roots=KeySource(path="kbs:///a/b/c"), intermediates=None, email="a", hostname=""),
                identity=MatchRepository(),
            ),
            "policy.certificate",
        ),
    ):
        assert refused(lambda asked=asked: load(asked, files.__getitem__)) == f"oci.signing.{code}"


def test_formats_that_are_not_asked_for() -> None:
    envelope = EnvelopeCandidate(media_type=NOTATION_JWS, raw=b"")
    message = OpenPGPCandidate(raw=b"")
    keyless = KeylessRequirement(trust=trust(sigstore()), repository=RULE)
    openpgp = OpenPGPRequirement(keyring=(), repository=RULE)
    for needed, candidate in ((keyless, envelope), (keyless, message), (openpgp, envelope), (openpgp, classic_keyless)):
        chosen = candidate(sigstore()) if callable(candidate) else candidate
        assert refused(lambda n=needed, c=chosen: n.judge(c, MANIFEST, NOW)) == "oci.signing.other_format"
    assert isinstance(load(Reject()), RejectRequirement)
    assert refused(lambda: load(Reject()).judge(message, MANIFEST, NOW)) == "oci.signing.rejected"


# -- rare refusals --------------------------------------------------------------------------------------------------

ISSUER_V1, ISSUER_V2 = (x509.ObjectIdentifier(f"1.3.6.1.4.1.57264.1.{number}") for number in (1, 8))
OTHER_NAME = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.7")


def leaf(*extensions: x509.ExtensionType) -> x509.Certificate:
    return notation_signer(extra=dict.fromkeys(extensions, False)).chain[0]


def test_identities_of_every_kind_are_read() -> None:
    utf8 = b"\x0c\x04user"
    names = x509.SubjectAlternativeName(
        [
            x509.RFC822Name("a@b.test"),
            x509.UniformResourceIdentifier("https://c.test"),
            x509.OtherName(OTHER_NAME, utf8),
            x509.DNSName("ignored.test"),
        ]
    )
    old = x509.UnrecognizedExtension(ISSUER_V1, b"https://old.test")
    assert read_identity(leaf(names, old)) == (("a@b.test", "https://c.test", "user"), "https://old.test")
    long = b"x" * 200
    new = x509.UnrecognizedExtension(ISSUER_V2, b"\x0c\x81\xc8" + long)
    assert read_identity(leaf(new)) == ((), long.decode())
    assert read_identity(leaf()) == ((), "")


@pytest.mark.parametrize(
    "der", [b"", b"\x0c", b"\x0c\x05user", b"\x0c\x03user", b"\x13\x04user", b"\x0c\x80user", b"\x0c\x01\xff"]
)
def test_identities_that_do_not_parse_are_refused(der: bytes) -> None:
    extension = x509.UnrecognizedExtension(ISSUER_V2, der)
    assert refused(lambda: read_identity(leaf(extension))) == "oci.signing.fulcio.identity_malformed"


def test_two_issuers_are_none() -> None:
    both = (
        x509.UnrecognizedExtension(ISSUER_V1, b"https://a.test"),
        x509.UnrecognizedExtension(ISSUER_V2, b"\x0c\x0ehttps://b.test"),
    )
    assert refused(lambda: read_identity(leaf(*both))) == "oci.signing.fulcio.identity_malformed"


def test_without_the_library_a_timestamp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The import fails as it does where the extra is not installed."""
    monkeypatch.setitem(sys.modules, "rfc3161_client", None)
    raw = keyless_bundle(sigstore(), stamped=True)
    needed = KeylessRequirement(trust=trust(sigstore()), repository=RULE)
    assert refused(lambda: needed.judge(BundleCandidate(raw=raw), MANIFEST, NOW)) == "oci.signing.timestamp.unsupported"


def test_a_timestamp_of_an_authority_that_is_not_trusted() -> None:
    services = sigstore()
    believed: KeylessTrust = trust(services)
    stamp = services.stamp(b"signature")
    assert verify_timestamp(stamp, b"signature", believed.root) == NOW
    for authorities in ((), trust(testing.TestSigstore(at=NOW)).root.timestamp_authorities):
        root = msgspec.structs.replace(believed.root, timestamp_authorities=authorities)
        assert (
            refused(lambda root=root: verify_timestamp(stamp, b"signature", root)) == "oci.signing.timestamp.untrusted"
        )
    (authority,) = believed.root.timestamp_authorities
    period = msgspec.structs.replace(authority.period, end=datetime(2026, 2, 1, tzinfo=UTC))
    ended = msgspec.structs.replace(authority, period=period)
    root = msgspec.structs.replace(believed.root, timestamp_authorities=(ended,))
    assert refused(lambda: verify_timestamp(stamp, b"signature", root)) == "oci.signing.timestamp.untrusted"
