"""Sigstore bundles signed by keys, keys of all kinds, and where signatures are found."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.crypto.signer import ECDSAP256Signer
from cloister.imagetool.sign import sign_bundle, sign_image
from cloister.oci.digest import Digest
from cloister.oci.layout import OCILayout
from cloister.oci.signing.bundle import (
    IN_TOTO_TYPE,
    Bundle,
    encode_bundle,
    encode_statement,
    parse_bundle,
    parse_statement,
)
from cloister.oci.signing.keys import PublicKey, load_public_key
from cloister.oci.signing.referred import EnvelopeCandidate, read_bundles, read_referred
from cloister.oci.signing.requirements import KeyRequirement
from cloister.oci.signing.verify import BundleCandidate, ExactRepository, verify_by_key, verify_manifest
from cloister.oci.store import read_manifest
from signing_world import MANIFEST, NOW, REPOSITORY, classic_keyless, keyless_bundle, manifest_bytes, refused, sigstore
from unit.oci.builders import Built, archive, build_layout, file, registry_client

RULE = ExactRepository(REPOSITORY)


def key_bundle(signer: ECDSAP256Signer, **changes: Any) -> bytes:
    fields = {
        "version": "0.3",
        "payload": encode_statement(Digest.of(MANIFEST), repository=REPOSITORY),
        "payload_type": IN_TOTO_TYPE,
        "signature": b"",
        "key_hint": "hint",
        **changes,
    }
    bundle = Bundle(**fields)
    if not bundle.signature:
        bundle = msgspec.structs.replace(bundle, signature=signer.sign(bundle.signed_bytes(MANIFEST)))
    return encode_bundle(bundle)


SIGNER = ECDSAP256Signer.generate()
GOOD = key_bundle(SIGNER)


def judge(raw: bytes, artifact: bytes = MANIFEST, rule: ExactRepository = RULE) -> str:
    return verify_by_key(BundleCandidate(raw=raw), artifact, [SIGNER.public_key], rule).fingerprint


def test_a_bundle_by_the_key_is_accepted_and_parses_as_written() -> None:
    assert judge(GOOD) == SIGNER.public_key.fingerprint
    assert encode_bundle(parse_bundle(GOOD)) == GOOD
    keyless = keyless_bundle(sigstore(), stamped=True)
    assert encode_bundle(parse_bundle(keyless)) == keyless


def test_the_hint_is_no_proof() -> None:
    """The right hint with another key's signature, and any hint with the right one."""
    hint = base64.b64encode(bytes.fromhex(SIGNER.public_key.fingerprint)).decode()
    assert refused(lambda: judge(key_bundle(ECDSAP256Signer.generate(), key_hint=hint))) == "oci.signing.bad_signature"
    assert judge(key_bundle(SIGNER, key_hint=""))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"payload": encode_statement(Digest.of(b"x"), repository=REPOSITORY)}, "oci.signing.other_image"),
        ({"payload": encode_statement(Digest.of(MANIFEST), repository="a.test/b")}, "oci.signing.other_repository"),
        ({"payload": encode_statement(Digest.of(MANIFEST), repository="")}, "oci.signing.other_repository"),
        ({"payload": b"{}"}, "oci.signing.statement.missing_member"),
        ({"payload_type": "text/plain"}, "oci.signing.bundle.payload_type"),
        ({"signature": b"x"}, "oci.signing.bad_signature"),
        ({"message_digest": Digest.of(b"x"), "payload": b"", "payload_type": ""}, "oci.signing.other_image"),
        (
            {"payload": encode_statement(Digest.of(MANIFEST), repository=REPOSITORY, predicate_type="https://a/b")},
            "oci.signing.statement.predicate",
        ),
    ],
)
def test_bundles_about_something_else_are_refused(changes: dict[str, Any], code: str) -> None:
    assert refused(lambda: judge(key_bundle(SIGNER, **changes))) == code


def test_a_bundle_without_a_name_counts_only_where_that_is_said() -> None:
    raw = key_bundle(SIGNER, payload=encode_statement(Digest.of(MANIFEST), repository=""))
    assert judge(raw, rule=ExactRepository(REPOSITORY, allow_unnamed=True))
    other = key_bundle(SIGNER, payload=encode_statement(Digest.of(MANIFEST), repository="a.test/b"))
    rule = ExactRepository(REPOSITORY, allow_unnamed=True)
    assert refused(lambda: judge(other, rule=rule)) == "oci.signing.other_repository"


def test_a_certificate_is_not_a_key() -> None:
    assert refused(lambda: judge(keyless_bundle(sigstore()))) == "oci.signing.keyless"


def change(text: str, to: str) -> Callable[[dict[str, Any]], object]:
    *path, last = text.split(".")

    def apply(document: dict[str, Any]) -> None:
        for name in path:
            document = document[int(name)] if name.isdigit() else document[name]
        document[last] = json.loads(to)

    return apply


@pytest.mark.parametrize(
    ("apply", "code"),
    [
        (change("mediaType", '"application/vnd.dev.sigstore.bundle.v0.9+json"'), "version"),
        (change("extra", "1"), "unknown_member"),
        (change("messageSignature", '{"messageDigest":{},"signature":""}'), "content"),
        (change("dsseEnvelope", "null"), "content"),
        (change("dsseEnvelope.signatures", "[]"), "content"),
        (change("dsseEnvelope.signatures", '[{"sig":"AA=="},{"sig":"AA=="}]'), "too_many"),
        (change("dsseEnvelope.payload", '"!"'), "base64"),
        (change("dsseEnvelope.payload", '""'), "base64"),
        (change("verificationMaterial.publicKey", "null"), "material"),
        (change("verificationMaterial.certificate", '{"rawBytes":"AA=="}'), "material"),
        (change("verificationMaterial.x509CertificateChain", '{"certificates":[]}'), "material"),
        (change("verificationMaterial.tlogEntries", '[{"logId":{"keyId":"AA=="},"logIndex":"-1"}]'), "integer"),
        (change("verificationMaterial.tlogEntries", '[{"logId":{"keyId":"AA=="},"logIndex":3}]'), "wrong_type"),
        (change("verificationMaterial.more", "1"), "unknown_member"),
    ],
)
def test_what_is_no_bundle_is_refused(apply: Callable[[dict[str, Any]], object], code: str) -> None:
    document = json.loads(GOOD)
    apply(document)
    assert refused(lambda: parse_bundle(json.dumps(document).encode())) == f"oci.signing.bundle.{code}"


def test_other_hashes_and_chains_are_refused() -> None:
    document = json.loads(key_bundle(SIGNER, message_digest=Digest.of(MANIFEST), payload=b"", payload_type=""))
    document["messageSignature"]["messageDigest"]["algorithm"] = "SHA1"
    assert refused(lambda: parse_bundle(json.dumps(document).encode())) == "oci.signing.bundle.hash"
    document = json.loads(GOOD)
    document["verificationMaterial"] = {"x509CertificateChain": {"certificates": []}}
    assert refused(lambda: parse_bundle(json.dumps(document).encode())) == "oci.signing.bundle.material"


@pytest.mark.parametrize("version", ["0.1", "0.2", "0.3"])
def test_older_versions_are_read(version: str) -> None:
    document = json.loads(GOOD)
    document["mediaType"] = f"application/vnd.dev.sigstore.bundle+json;version={version}"
    assert parse_bundle(json.dumps(document).encode()).version == version


def test_statements_of_other_kinds_are_refused() -> None:
    good = json.loads(encode_statement(Digest.of(MANIFEST), repository=REPOSITORY))
    assert parse_statement(json.dumps({**good, "_type": "https://in-toto.io/Statement/v0.1"}).encode())
    for bad, code in (({"_type": "https://in-toto.io/Link/v1"}, "unknown_type"), ({"more": 1}, "unknown_member")):
        raw = json.dumps({**good, **bad}).encode()
        assert refused(lambda raw=raw: parse_statement(raw)) == f"oci.signing.statement.{code}"


# -- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["p256", "p384", "p384-own-hash", "p521", "rsa", "ed25519"])
def test_keys_of_all_kinds_verify(kind: str) -> None:
    message = b"message"
    private: Any = {
        "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "p384-own-hash": lambda: ec.generate_private_key(ec.SECP384R1()),
        "p521": lambda: ec.generate_private_key(ec.SECP521R1()),
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
        "ed25519": ed25519.Ed25519PrivateKey.generate,
    }[kind]()
    if kind == "rsa":
        signature = private.sign(message, padding.PKCS1v15(), SHA256())
    elif kind == "ed25519":
        signature = private.sign(message)
    else:
        signature = private.sign(message, ec.ECDSA(SHA384() if kind == "p384-own-hash" else SHA256()))
    public = private.public_key()
    for encoding in (Encoding.PEM, Encoding.DER):
        key = load_public_key(public.public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo))
        key.verify(message, signature)
        assert refused(lambda key=key: key.verify(message + b"x", signature)) == "oci.signing.bad_signature"
        assert refused(lambda key=key: key.verify(message, signature[:-1])) == "oci.signing.bad_signature"
        assert refused(lambda key=key: key.verify(message, bytes(5000))) == "oci.signing.bad_signature"


def test_keys_of_other_kinds_are_refused() -> None:
    weak = rsa.generate_private_key(65537, 1024).public_key()  # noqa: S505  # must be refused
    other = dsa.generate_private_key(1024).public_key()  # noqa: S505  # the same
    for key in (weak, other, ec.generate_private_key(ec.SECP256K1()).public_key()):
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        assert refused(lambda pem=pem: load_public_key(pem)) == "oci.signing.key.unsupported"
    for raw in (b"", b"-----BEGIN PUBLIC KEY-----", b"x" * 100_000):
        assert refused(lambda raw=raw: load_public_key(raw)) == "oci.signing.key.malformed"


def test_a_key_may_have_to_be_logged() -> None:
    """A key's signature that must be in a log: the classic form carries the log's promise."""
    services = sigstore()
    key = PublicKey(services.certificate(ec.generate_private_key(ec.SECP256R1()).public_key()).public_key())
    from cloister.oci.signing.trustedroot import parse_trusted_root

    logs = parse_trusted_root(services.trusted_root()).logs
    plain = BundleCandidate(raw=GOOD)
    ours = load_public_key(SIGNER.public_key.pem())
    assert KeyRequirement(keys=(ours,), repository=RULE).judge(plain, MANIFEST, NOW)
    logged = KeyRequirement(keys=(key, ours), repository=RULE, logs=logs)
    assert refused(lambda: logged.judge(plain, MANIFEST, NOW)) == "oci.signing.rekor.missing"
    assert refused(lambda: logged.judge(classic_keyless(services), MANIFEST, NOW)) == "oci.signing.bad_signature"


# -- in stores ------------------------------------------------------------------------------------------------------


@pytest.fixture
def built(tmp_path: Path) -> Built:
    return build_layout(tmp_path / "plain", archive(file(b"a", b"x")))


def test_signing_attaches_a_bundle_once(built: Built) -> None:
    for _ in range(2):
        assert sign_bundle(built.layout, "v1", SIGNER, repository=REPOSITORY) == built.digest
    (found,) = read_bundles(built.layout, built.digest)
    raw = read_manifest(built.layout, built.digest).raw
    assert verify_by_key(found, raw, [SIGNER.public_key], RULE)
    assert verify_manifest(
        raw, expected=built.digest, candidates=[found], keys=[SIGNER.public_key], repository=RULE
    ).signer == (SIGNER.public_key.fingerprint)


def test_a_bundle_whose_blob_was_replaced_says_so_and_hides_no_other(built: Built, tmp_path: Path) -> None:
    sign_bundle(built.layout, "v1", SIGNER, repository=REPOSITORY)
    sign_bundle(built.layout, "v1", ECDSAP256Signer.generate(), repository=REPOSITORY)
    (mine, other) = sorted(read_bundles(built.layout, built.digest), key=lambda item: "hint" in item.place)
    blob = built.path / "blobs" / "sha256" / Digest.of(other.raw).hex
    blob.chmod(0o600)
    blob.write_bytes(b"x" * len(other.raw))
    found = read_bundles(OCILayout(built.path), built.digest)
    codes = [item.refusal.code if item.refusal else "" for item in found]
    assert sorted(codes) == ["", "oci.layout.digest_mismatch"]
    assert mine.raw in [item.raw for item in found]


def test_a_store_that_has_none_has_none(tmp_path: Path, built: Built) -> None:
    client, _ = registry_client(tmp_path / "registry")
    assert list(read_referred(client, Digest.of(MANIFEST))) == []
    sign_image(built.layout, "v1", SIGNER, repository=REPOSITORY)
    assert not [item for item in read_referred(built.layout, built.digest) if isinstance(item, EnvelopeCandidate)]
    assert manifest_bytes(1) != MANIFEST
