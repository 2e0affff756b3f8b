"""The owner's own certificate authority: one root per state directory, pinned by its PEM in the measured init data.

RFC 5280 profile, P-256 with SHA-256. The root signs two kinds of leaf: the TLS server certificate of the trust
service (RFC 9525 names as subjectAltName), and the certificate that travels as `x5c` with signed tokens. Nothing here
is public web PKI: no name constraints, no revocation. A guest trusts this one root because its owner wrote it into
the init data, and stops trusting it when the owner writes another.

Every leaf carries the identifiers that OpenSSL's strict mode (the default from Python 3.13 on) asks for.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_public_key,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloister.errors import FormatRefused

BACKDATED: Final = timedelta(days=1)  # a guest's clock may be behind
ROOT_LIFETIME: Final = timedelta(days=3650)
LEAF_LIFETIME: Final = timedelta(days=397)
_CODE: Final = "crypto.tlsca.malformed"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class IssuedServer:
    """A server certificate with its key, PEM; the key goes into a private file only."""

    certificate_pem: bytes
    key_pem: bytes


class CertificateAuthority:
    """One root certificate with its key."""

    __slots__ = ("_certificate", "_key")

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key

    @classmethod
    def create(cls, name: str, *, at: datetime) -> CertificateAuthority:
        """Return a new root.

        Args:
            name: common name.
            at: aware UTC; validity begins a day earlier.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(name)
        builder = _builder(subject, subject, key.public_key(), at, ROOT_LIFETIME)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_key_usage(ca=True), critical=True)
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def from_pem(cls, certificate_pem: bytes, key_pem: bytes) -> CertificateAuthority:
        """Load a root that `create` made.

        Raises:
            FormatRefused: not PEM, or the key is not the certificate's (`crypto.tlsca.malformed`).
        """
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem)
            key = load_pem_private_key(key_pem, None)
        except (ValueError, TypeError) as err:
            raise FormatRefused(_CODE, "not a CA certificate with its key") from err
        if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
            raise FormatRefused(_CODE, "the CA key is not the certificate's")
        return cls(certificate, key)

    @property
    def certificate_pem(self) -> bytes:
        """The root certificate."""
        return self._certificate.public_bytes(Encoding.PEM)

    @property
    def certificate_der(self) -> bytes:
        """The root certificate."""
        return self._certificate.public_bytes(Encoding.DER)

    def key_pem(self) -> bytes:
        """Return the private key, unencrypted PKCS #8; the caller keeps the file private."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def issue_server(self, names: Sequence[str], *, at: datetime) -> IssuedServer:
        """Return a fresh key with a certificate for `names` (DNS names and IP addresses).

        Raises:
            FormatRefused: no name, or one that is neither (`crypto.tlsca.name`).
        """
        if not names:
            raise FormatRefused("crypto.tlsca.name", "a server certificate needs at least one name")
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._leaf("cloister trust service", key.public_key(), at)
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False
        )
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return IssuedServer(
            certificate_pem=certificate.public_bytes(Encoding.PEM) + self.certificate_pem,
            key_pem=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        )

    def certify_signer(self, name: str, spki: bytes, *, at: datetime) -> bytes:
        """Return the DER certificate of a token-signing key given as SubjectPublicKeyInfo."""
        key = load_der_public_key(spki)
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise RuntimeError("token-signing keys are on an elliptic curve")
        return self._leaf(name, key, at).sign(self._key, hashes.SHA256()).public_bytes(Encoding.DER)

    def _leaf(self, name: str, key: ec.EllipticCurvePublicKey, at: datetime) -> x509.CertificateBuilder:
        builder = _builder(_name(name), self._certificate.subject, key, at, LEAF_LIFETIME)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        return builder.add_extension(_key_usage(ca=False), critical=True)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, at: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - BACKDATED)
        .not_valid_after(at + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


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


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not name.isascii() or not name or "/" in name or len(name) > 253:
        raise FormatRefused(
            "crypto.tlsca.name",
            "neither a DNS name nor an IP address",
            expected="like trust.example or 10.0.2.2",
            actual=name[:60],
        )
    return x509.DNSName(name)
