"""Signs COSE_Sign1 messages and writes COSE_Keys, for fakes; the payload and headers are whatever the caller says."""

from __future__ import annotations

from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512

from cloister.crypto.cose import SIGN1_TAG, algorithm_of, signed_bytes
from cloister.wire.cbor import CBOR, Tagged, encode_cbor

_SCHEMES = {
    "secp256r1": (1, 32, ec.ECDSA(SHA256())),
    "secp384r1": (2, 48, ec.ECDSA(SHA384())),
    "secp521r1": (3, 66, ec.ECDSA(SHA512())),
}  # curve: COSE number, bytes of a coordinate, scheme


def sign1(
    payload: bytes,
    key: ec.EllipticCurvePrivateKey,
    *,
    tagged: bool = True,
    header: Mapping[int, CBOR] | None = None,
    unprotected: Mapping[int, CBOR] | None = None,
) -> bytes:
    """Return a COSE_Sign1 message.

    Args:
        payload: what is signed.
        key: on P-256, P-384 or P-521.
        tagged: whether tag 18 comes first.
        header: protected header; the algorithm of the key alone when absent.
        unprotected: unprotected header; empty when absent.
    """
    _, size, scheme = _SCHEMES[key.curve.name]
    protected = encode_cbor({1: algorithm_of(key.public_key())} if header is None else header)
    r, s = decode_dss_signature(key.sign(signed_bytes(protected, payload), scheme))
    message = [protected, dict(unprotected or {}), payload, r.to_bytes(size, "big") + s.to_bytes(size, "big")]
    return encode_cbor(Tagged(tag=SIGN1_TAG, value=message) if tagged else message)


def cose_key(key: ec.EllipticCurvePublicKey) -> dict[int, CBOR]:
    """Return the members of the COSE_Key of `key`."""
    curve, size, _ = _SCHEMES[key.curve.name]
    numbers = key.public_numbers()
    return {1: 2, -1: curve, -2: numbers.x.to_bytes(size, "big"), -3: numbers.y.to_bytes(size, "big")}
