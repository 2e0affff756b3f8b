"""Signatures for tests: keyless bundles and classic signatures under the test Sigstore, Notation chains, OpenPGP keys.

Everything is signed for real; each helper lets a test lie in one place.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloister.errors import CloisterError
from cloister.oci.digest import Digest
from cloister.oci.document import encode_document
from cloister.oci.manifest import OCI_CONFIG, OCI_MANIFEST
from cloister.oci.signing.bundle import IN_TOTO_TYPE, Bundle, LogEntry, encode_bundle, encode_statement
from cloister.oci.signing.fulcio import CertificateIdentity
from cloister.oci.signing.keyless import KeylessTrust
from cloister.oci.signing.simplesigning import (
    CERTIFICATE_ANNOTATION,
    CHAIN_ANNOTATION,
    LOG_ANNOTATION,
    SignatureCandidate,
    Statement,
    encode_payload,
)
from cloister.oci.signing.trustedroot import parse_trusted_root
from cloister.testing.sigstore import TestSigstore, dsse_body, hashedrekord_body

REPOSITORY = "images.test/team/app"
NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


def refused(action: Callable[[], object]) -> str:
    """Return the code of the refusal that `action` must raise."""
    with pytest.raises(CloisterError) as caught:
        action()
    return caught.value.code


def manifest_bytes(number: int = 0) -> bytes:
    """Return a manifest that parses; another one for another number."""
    return encode_document(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": str(Digest.of(b"c%d" % number)), "size": 2},
            "layers": [],
        }
    )


MANIFEST = manifest_bytes()


@cache
def sigstore() -> TestSigstore:
    """Return services that are made once: tests must not change them."""
    return TestSigstore(at=NOW)


def trust(services: TestSigstore, *, root: bytes | None = None, **changes: Any) -> KeylessTrust:
    """Return trust in the services' identity."""
    subject, issuer = services.identity
    fields = {
        "root": parse_trusted_root(root or services.trusted_root()),
        "identities": (CertificateIdentity(subject=subject, issuer=issuer),),
        **changes,
    }
    return KeylessTrust(**fields)


def pem_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def keyless_bundle(
    services: TestSigstore,
    artifact: bytes = MANIFEST,
    *,
    statement: bytes | None = None,
    sct: bool = True,
    promise: bool = True,
    proof: bool = True,
    stamped: bool = False,
    logged: bool = True,
    message: bool = False,
    change: Callable[[Bundle], Bundle] = lambda bundle: bundle,
    change_entry: Callable[[LogEntry], LogEntry] = lambda entry: entry,
) -> bytes:
    """Return a bundle by the services' identity over `artifact`."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = services.certificate(key.public_key(), sct=sct)
    bundle = Bundle(
        version="0.3",
        payload=b"" if message else statement or encode_statement(Digest.of(artifact), repository=REPOSITORY),
        payload_type="" if message else IN_TOTO_TYPE,
        message_digest=Digest.of(artifact) if message else None,
        signature=b"",
        certificates=(certificate.public_bytes(Encoding.DER),),
    )
    signature = key.sign(bundle.signed_bytes(artifact), ec.ECDSA(SHA256()))
    bundle = msgspec.structs.replace(bundle, signature=signature)
    if logged:
        if message:
            body = hashedrekord_body(artifact, signature, pem_of(certificate))
        else:
            body = dsse_body(b"{}", bundle.payload, signature, pem_of(certificate))
        entry = services.log(body, promise=promise, proof=proof)
        bundle = msgspec.structs.replace(bundle, entries=(change_entry(entry),))
    if stamped:
        bundle = msgspec.structs.replace(bundle, timestamps=(services.stamp(signature),))
    return encode_bundle(change(bundle))


def classic_keyless(services: TestSigstore, artifact: bytes = MANIFEST, **changes: str) -> SignatureCandidate:
    """Return a classic keyless signature as cosign 2 writes it; `changes` replaces annotations by their last word."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = services.certificate(key.public_key())
    payload = encode_payload(Statement(REPOSITORY, Digest.of(artifact)))
    signature = key.sign(payload, ec.ECDSA(SHA256()))
    entry = services.log(hashedrekord_body(payload, signature, pem_of(certificate)))
    promise = {
        "SignedEntryTimestamp": base64.b64encode(entry.promise).decode(),
        "Payload": {
            "body": base64.b64encode(entry.body).decode(),
            "integratedTime": entry.integrated_seconds,
            "logIndex": entry.log_index,
            "logID": entry.log_id.hex(),
        },
    }
    annotations = {
        CERTIFICATE_ANNOTATION: pem_of(certificate).decode(),
        CHAIN_ANNOTATION: (pem_of(services.ca) + pem_of(services.root)).decode(),
        LOG_ANNOTATION: encode_document(promise).decode(),
    }
    for name, text in changes.items():
        annotations[f"dev.sigstore.cosign/{name}"] = text
    return SignatureCandidate(payload, signature, annotations)


# -- certificates of Notation ---------------------------------------------------------------------------------------


class Signer(NamedTuple):
    """A signing key with its chain, its own certificate first."""

    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
    chain: tuple[x509.Certificate, ...]


def name_of(common: str) -> x509.Name:
    parts = ((NameOID.COUNTRY_NAME, "US"), (NameOID.STATE_OR_PROVINCE_NAME, "WA"), (NameOID.ORGANIZATION_NAME, "acme"))
    return x509.Name([x509.NameAttribute(kind, text) for kind, text in (*parts, (NameOID.COMMON_NAME, common))])


def usage(**changes: bool) -> x509.KeyUsage:
    fields = dict.fromkeys(
        (
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(**{**fields, **changes})


_ROOT_KEY = ec.generate_private_key(ec.SECP384R1())


@cache
def _root(is_ca: bool) -> x509.Certificate:
    return (
        x509.CertificateBuilder(subject_name=name_of("root"), issuer_name=name_of("root"))
        .public_key(_ROOT_KEY.public_key())
        .serial_number(7)
        .not_valid_before(NOW - timedelta(days=100))
        .not_valid_after(NOW + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(usage(key_cert_sign=True), critical=True)
        .sign(_ROOT_KEY, SHA256())
    )


def notation_signer(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | None = None,
    *,
    begin: datetime = NOW - timedelta(days=10),
    end: datetime = NOW + timedelta(days=365),
    leaf_usage: x509.KeyUsage | None = None,
    usage_critical: bool = True,
    purpose: x509.ObjectIdentifier = ExtendedKeyUsageOID.CODE_SIGNING,
    leaf_is_ca: bool = False,
    root_is_ca: bool = True,
    extra: Mapping[x509.ExtensionType, bool] | None = None,
    algorithm: HashAlgorithm | None = None,
) -> Signer:
    """Return a signer under the test root; each argument lies in one place."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    root = _root(root_is_ca)
    leaf = (
        x509.CertificateBuilder(subject_name=name_of("signer"), issuer_name=name_of("root"))
        .public_key(key.public_key())
        .serial_number(8)
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=leaf_is_ca, path_length=None), critical=True)
        .add_extension(leaf_usage or usage(digital_signature=True), critical=usage_critical)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    )
    for item, critical in (extra or {}).items():
        leaf = leaf.add_extension(item, critical=critical)
    return Signer(key, (leaf.sign(_ROOT_KEY, algorithm or SHA256()), root))
