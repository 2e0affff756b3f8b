"""Certificates of a trust domain: its authorities, and X509-SVIDs.

X509-SVID (sections 2 SPIFFE ID, 3 hierarchy, 4 constraints), RFC 5280, P-256 with SHA-256. An authority's certificate
is self-signed, CA, path length 0, and has the trust domain as its one URI. An SVID has exactly one URI, is no CA, may
sign and nothing else, for TLS clients and servers; what it says beside the name is in one extension of ours
(`cloister.protocol.svidextension`). Everything is made from what was attested: of a guest's request only the key is
taken.

The private key is behind `Signer`, which may be a token or a vault; `cryptography` builds certificates with a private
key object, so `_SignerKey` is one that signs by `Signer` and can do nothing else.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from typing import Final, NoReturn

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloister.crypto.signer import Signer
from cloister.protocol.spiffe import ATTESTATION_OID, SCHEME, SPIFFEID
from cloister.protocol.svidextension import AttestationStatement, encode_statement
from cloister.trust.identity.authorities import Authority

BACKDATED: Final = timedelta(seconds=30)  # a relying party's clock may be behind; `cloister.crypto.jwt` allows as much
_COMMON_NAME_CHARS: Final = 64  # RFC 5280, appendix A.1, ub-common-name


def authority_certificate(signer: Signer, trust_domain: str, *, at: datetime, expires_at: datetime) -> bytes:
    """Return the DER of the self-signed certificate of a new authority.

    Args:
        signer: its key.
        trust_domain: checked name.
        at: aware UTC.
        expires_at: aware UTC.
    """
    key = _SignerKey(signer)
    # Two authorities of one trust domain have two names: a chain is then found without trying all keys.
    number = hashlib.sha256(signer.public_key.spki).hexdigest()[:16]
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "cloister"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"SPIFFE {trust_domain}"[:_COMMON_NAME_CHARS]),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, number),
        ]
    )
    builder = _builder(subject, subject, key.public_key(), at - BACKDATED, expires_at)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(ca=True), critical=True)
    builder = builder.add_extension(_uri(SCHEME + trust_domain), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def issue_x509_svid(
    authority: Authority,
    key: ec.EllipticCurvePublicKey,
    name: SPIFFEID,
    statement: AttestationStatement,
    *,
    at: datetime,
    expires_at: datetime,
) -> bytes:
    """Return the DER of an X509-SVID.

    Args:
        authority: signs it.
        key: whose holder proved to hold it.
        name: SPIFFE ID with a path.
        statement: what was attested.
        at: aware UTC.
        expires_at: aware UTC; not after the authority's own end.
    """
    issuer = x509.load_der_x509_certificate(authority.certificate)
    signing = _SignerKey(authority.signer)
    # The level is in the subject too, because that is what every tool prints first.
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "cloister"),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, f"level {statement.level}"),
        ]
    )
    builder = _builder(subject, issuer.subject, key, at - BACKDATED, min(expires_at, authority.expires_at))
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(ca=False), critical=True)
    usage = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
    builder = builder.add_extension(_uri(str(name)), critical=False)
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(ATTESTATION_OID), encode_statement(statement))
    builder = builder.add_extension(extension, critical=False)
    return builder.sign(signing, hashes.SHA256()).public_bytes(Encoding.DER)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    not_before: datetime,
    not_after: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _uri(text: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(text)])


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


class _SignerKey(ec.EllipticCurvePrivateKey):
    """A `Signer` in the shape that certificate builders take."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        public = load_der_public_key(signer.public_key.spki)
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise RuntimeError("signers of this service are on P-256")
        self._public = public

    def sign(
        self, data: bytes | bytearray | memoryview, signature_algorithm: ec.EllipticCurveSignatureAlgorithm
    ) -> bytes:
        algorithm = signature_algorithm.algorithm
        if isinstance(algorithm, Prehashed) or algorithm.name != "sha256":
            raise RuntimeError("signers of this service sign messages with SHA-256")
        return self._signer.sign(bytes(data))

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._public

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._public.curve

    @property
    def key_size(self) -> int:
        return self._public.key_size

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> NoReturn:
        raise RuntimeError("a signer agrees on no key")

    def private_numbers(self) -> NoReturn:
        raise RuntimeError("a signer shows no key")

    def private_bytes(self, encoding: object, format: object, encryption_algorithm: object) -> NoReturn:
        raise RuntimeError("a signer shows no key")

    def __copy__(self) -> _SignerKey:
        return self

    def __deepcopy__(self, memo: object) -> _SignerKey:
        return self
