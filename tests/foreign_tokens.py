"""Tokens of an attestation service that is not ours, under test roots, with seven ways of certificates beside a key.

The scenarios are those of CoCo's own fixtures for its token verifier: 1 a root and a leaf, 2 a key that is not the
leaf's, 3 no certificates, 4 another root, 5 an intermediate between, 6 two of them in the wrong order, 7 the same with
a foreign root behind.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

PROFILE = "tag:github.com,2024:confidential-containers/Trustee"
GOOD = (1, 5, 6, 7)
BAD = (2, 3, 4)


@dataclass
class Named:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)


def named(name: str, issuer: Named | None, at: datetime, *, ca: bool = True) -> Named:
    """Return a certificate of `issuer`, or of itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - timedelta(days=1))
        .not_valid_after(at + timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    return Named(builder.sign(issuer.key if issuer else key, SHA256()), key)


@dataclass
class Scenario:
    """A signing key, the certificates sent beside it, the key that is said to sign, and who is trusted."""

    key: ec.EllipticCurvePrivateKey
    shown: ec.EllipticCurvePublicKey
    chain: list[bytes]
    trusted: x509.Certificate

    def token(self, claims: dict[str, Any], *, url: bool = False, **header: Any) -> str:
        """Return the signed token; `url` for certificates in base64url, as older releases write them."""
        numbers = self.shown.public_numbers()
        jwk: dict[str, Any] = {
            "kty": "EC",
            "crv": "P-256",
            "alg": "ES256",
            "x": b64url(numbers.x.to_bytes(32, "big")),
            "y": b64url(numbers.y.to_bytes(32, "big")),
        }
        if self.chain:
            jwk["x5c"] = [b64url(der) if url else base64.b64encode(der).decode() for der in self.chain]
        parts = ({"typ": "JWT", "alg": "ES256", "jwk": jwk, **header}, claims)
        signed = ".".join(b64url(json.dumps(part, separators=(",", ":")).encode()) for part in parts)
        r, s = decode_dss_signature(self.key.sign(signed.encode(), ec.ECDSA(SHA256())))
        return f"{signed}.{b64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def scenario(number: int, at: datetime) -> Scenario:
    """Return one of the seven."""
    root, other = named("root", None, at), named("decoy", None, at)
    first = named("int-a", root, at)
    second = named("int-b", first, at)
    issuer = {5: first, 6: second, 7: second}.get(number, root)
    leaf = named("leaf", issuer, at, ca=False)
    chains = {
        3: [],
        5: [leaf.der, first.der],
        6: [leaf.der, first.der, second.der],
        7: [leaf.der, first.der, second.der, other.der],
    }
    stranger = ec.generate_private_key(ec.SECP256R1())
    key = stranger if number == 2 else leaf.key
    trusted = other if number == 4 else root
    return Scenario(key, key.public_key(), chains.get(number, [leaf.der]), trusted.certificate)


def claims(
    jwk: dict[str, str],
    at: datetime,
    *,
    tee: str = "snp",
    status: str = "affirming",
    init_data: str = "",
    vector: dict[str, int] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Return claims in the shape of CoCo's attestation service."""
    submodule = {
        "ear.status": status,
        "ear.trustworthiness-vector": vector or {"executables": 3, "hardware": 2, "configuration": 2},
        "ear.appraisal-policy-id": "default",
        "ear.veraison.annotated-evidence": {
            tee: {"measurement": "00"},
            "report_data": "00",
            "init_data": init_data,
            "runtime_data_claims": {"nonce": "bm9uY2U=", "tee-pubkey": jwk},
        },
    }
    return {
        "eat_profile": PROFILE,
        "iss": "CoCo-Attestation-Service",
        "iat": int(at.timestamp()),
        "exp": int(at.timestamp()) + 300,
        "ear.verifier-id": {"developer": "https://confidentialcontainers.org", "build": "attestation-service 0.21.0"},
        "submods": {"cpu0": submodule},
        **changes,
    }


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
