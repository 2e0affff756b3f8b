"""Throw-away keys and certificates of image recipients, made once for each test process."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

from cloister.oci.digest import Digest
from cloister.oci.encryption.options import PrivateOptions, encode_private_options
from cloister.wire.base64 import encode_b64url

OPTIONS = encode_private_options(PrivateOptions(key=b"k" * 32, digest=Digest.of(b"plain"), nonce=b"n" * 16))
CURVES = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}


def rsa_key(name: str = "", bits: int = 2048) -> rsa.RSAPrivateKey:
    """Return the RSA key of this name."""
    return _rsa_key(name, bits)


def ec_key(curve: str = "P-256", name: str = "") -> ec.EllipticCurvePrivateKey:
    """Return the key of this name on a curve."""
    return _ec_key(curve, name)


@cache
def certificate(name: str = "", *, of_ec: bool = False) -> x509.Certificate:
    """Return a self-signed certificate of `rsa_key(name)`."""
    key: Any = ec_key(name=name) if of_ec else rsa_key(name)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"recipient {name}")])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
    return builder.not_valid_after(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=3650)).sign(key, SHA256())


def public_pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    """Return the public half as PEM."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def private_bytes(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
    encoding: Encoding = Encoding.PEM,
    form: PrivateFormat = PrivateFormat.PKCS8,
    password: bytes = b"",
) -> bytes:
    """Return a private key in one of its forms."""
    protection = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(encoding, form, protection)


def jwk(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, *, private: bool = False, **more: Any) -> bytes:
    """Return a JSON Web Key."""
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.private_numbers()
        members = {"kty": "RSA", "n": _number(numbers.public_numbers.n), "e": _number(numbers.public_numbers.e)}
        secret = {name: _number(getattr(numbers, name)) for name in ("d", "p", "q")}
    else:
        width = (key.key_size + 7) // 8
        point = key.public_key().public_numbers()
        curve = next(name for name, kind in CURVES.items() if kind.name == key.curve.name)
        members = {"kty": "EC", "crv": curve, "x": _number(point.x, width), "y": _number(point.y, width)}
        secret = {"d": _number(key.private_numbers().private_value, width)}
    return json.dumps({**members, **(secret if private else {}), **more}).encode()


def _number(value: int, width: int = 0) -> str:
    return encode_b64url(value.to_bytes(max(width, (value.bit_length() + 7) // 8), "big"))


@cache
def _rsa_key(name: str, bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


@cache
def _ec_key(curve: str, name: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(CURVES[curve])
