"""ECDSA with P-256 and SHA-256 as DCAP writes it: r and s, key as x and y, big endian. Pure."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

_CACHED: Final = 1024


@lru_cache(maxsize=_CACHED)
def is_signed(certificate: x509.Certificate, signature: bytes, data: bytes) -> bool:
    """Return whether `certificate`'s P-256 key signed `data`. Same inputs, same answer: statements and reports of a
    platform's quoting enclave come again and again."""
    key = certificate.public_key()
    return isinstance(key, ec.EllipticCurvePublicKey) and is_signed_by(key, signature, data)


@lru_cache(maxsize=_CACHED)
def load_point(point: bytes) -> ec.EllipticCurvePublicKey | None:
    """Return the key of x and y; None when they are no point of P-256."""
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + point)
    except ValueError:
        return None


def is_signed_by(key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes) -> bool:
    """Return whether a P-256 key signed `data`; `signature` is r and s, of the same length each."""
    if not isinstance(key.curve, ec.SECP256R1):
        return False
    half = len(signature) // 2
    encoded = encode_dss_signature(int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big"))
    try:
        key.verify(encoded, data, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True
