"""COSE_Sign1: verify the signature over the bytes as received, by a key and algorithm that the caller chose.

RFC 9052 section 4.2 and 4.4, RFC 9053 section 2.1 (ECDSA). The message never chooses its algorithm: it must name the
one that goes with the caller's key. The payload is handed out as the bytes that were signed; nothing is encoded again.
Tag 18 is optional. Not done: counter signatures, detached payloads, external data; critical headers are the
caller's to understand or refused.
Pure; trusts the key it is given.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512

from cloister.errors import EvidenceError, FormatRefused
from cloister.wire.cbor import CBOR, Tagged, decode_cbor, encode_cbor
from cloister.wire.limits import COSE_BYTES

SIGN1_TAG: Final = 18
_ALGORITHM_HEADER: Final = 1
_CRITICAL_HEADER: Final = 2
_CONTEXT: Final = "Signature1"
_EC2: Final = 2  # RFC 9053 table 17
_KTY, _ALG, _CRV, _X, _Y = 1, 3, -1, -2, -3


class Algorithm(enum.IntEnum):
    """The signature algorithms accepted here, by their COSE number."""

    ES256 = -7
    ES384 = -35
    ES512 = -36


_CURVES: Final[Mapping[Algorithm, type[ec.EllipticCurve]]] = {
    Algorithm.ES256: ec.SECP256R1,
    Algorithm.ES384: ec.SECP384R1,
    Algorithm.ES512: ec.SECP521R1,
}
_SCHEMES: Final = {
    Algorithm.ES256: ec.ECDSA(SHA256()),
    Algorithm.ES384: ec.ECDSA(SHA384()),
    Algorithm.ES512: ec.ECDSA(SHA512()),
}
_COORDINATE_BYTES: Final = {Algorithm.ES256: 32, Algorithm.ES384: 48, Algorithm.ES512: 66}
_COSE_CURVES: Final = {1: Algorithm.ES256, 2: Algorithm.ES384, 3: Algorithm.ES512}  # RFC 9053 table 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign1:
    """A COSE_Sign1 message, not yet verified.

    Attributes:
        protected: the protected header as received, encoded.
        header: the protected header.
        unprotected: what nobody signed.
        payload: the signed bytes.
        signature: r and s, big endian, each as long as the curve's field.
    """

    protected: bytes
    header: Mapping[int | str, CBOR]
    unprotected: Mapping[int | str, CBOR]
    payload: bytes
    signature: bytes


def parse_sign1(data: bytes, *, code: str, critical: frozenset[int | str] = frozenset()) -> Sign1:
    """Parse a COSE_Sign1 message, tagged or not.

    Args:
        data: the message.
        code: prefix of the errors' codes.
        critical: labels of protected headers that the caller processes, should the message call them critical.

    Raises:
        FormatRefused: not CBOR (`<code>.truncated` and the other codes of `decode_cbor`), not a COSE_Sign1 with a
            payload, or with a critical header that nobody here understands (`<code>.malformed`).
    """
    value = decode_cbor(data, ceiling=COSE_BYTES, code=code)
    if isinstance(value, Tagged):
        if value.tag != SIGN1_TAG:
            raise _malformed(code, "tag is not that of COSE_Sign1", str(value.tag))
        value = value.value
    if not isinstance(value, list) or len(value) != 4:
        raise _malformed(code, "not a COSE_Sign1: no array of four")
    protected, unprotected, payload, signature = value
    if not (
        isinstance(protected, bytes)
        and isinstance(unprotected, dict)
        and isinstance(payload, bytes)
        and isinstance(signature, bytes)
    ):
        raise _malformed(code, "not a COSE_Sign1: members of other types")
    header = decode_cbor(protected, ceiling=COSE_BYTES, code=code)
    if not isinstance(header, dict):
        raise _malformed(code, "protected header is not a map")
    _check_critical(header, unprotected, critical, code)
    if header.keys() & unprotected.keys() or _ALGORITHM_HEADER in unprotected:
        raise _malformed(code, "a header is protected and unprotected, or the algorithm is not protected")
    return Sign1(protected=protected, header=header, unprotected=unprotected, payload=payload, signature=signature)


def _check_critical(
    header: Mapping[int | str, CBOR],
    unprotected: Mapping[int | str, CBOR],
    known: frozenset[int | str],
    code: str,
) -> None:
    """RFC 9052 section 3.1: a protected, non-empty list of labels, all of them present and understood."""
    if _CRITICAL_HEADER in unprotected:
        raise _malformed(code, "list of critical headers is not protected")
    if _CRITICAL_HEADER not in header:
        return
    labels = header[_CRITICAL_HEADER]
    if not isinstance(labels, list) or not labels:
        raise _malformed(code, "no list of critical headers")
    for label in labels:
        if isinstance(label, bool) or not isinstance(label, (int, str)) or label not in known or label not in header:
            raise _malformed(code, "message has a critical header that is not understood here", str(label)[:60])


def algorithm_of(key: ec.EllipticCurvePublicKey) -> Algorithm | None:
    """Return the one algorithm that goes with a key, None when its curve has none here."""
    return next((algorithm for algorithm, curve in _CURVES.items() if isinstance(key.curve, curve)), None)


def verify_sign1(message: Sign1, key: ec.EllipticCurvePublicKey, algorithm: Algorithm, *, code: str) -> None:
    """Verify the signature of `message`.

    Args:
        message: as parsed.
        key: who must have signed it.
        algorithm: the one expected; the message must name it in its protected header.
        code: prefix of the errors' codes.

    Raises:
        EvidenceError: another algorithm (`<code>.algorithm`), or not signed by the key (`<code>.signature`).
    """
    named = message.header.get(_ALGORITHM_HEADER)
    if named != algorithm or isinstance(named, bool) or algorithm_of(key) is not algorithm:
        raise EvidenceError(
            f"{code}.algorithm",
            "message is not signed with the algorithm of the trusted key",
            expected=algorithm.name,
            actual=str(named)[:40],
        )
    size = _COORDINATE_BYTES[algorithm]
    if len(message.signature) != 2 * size:
        raise EvidenceError(
            f"{code}.signature",
            "signature has another length",
            expected=f"{2 * size} bytes",
            actual=f"{len(message.signature)} bytes",
        )
    r, s = int.from_bytes(message.signature[:size], "big"), int.from_bytes(message.signature[size:], "big")
    try:
        key.verify(encode_dss_signature(r, s), signed_bytes(message.protected, message.payload), _SCHEMES[algorithm])
    except InvalidSignature as err:
        raise EvidenceError(
            f"{code}.signature",
            "signature does not verify",
            hint="the message was altered, or another key signed it",
        ) from err


def signed_bytes(protected: bytes, payload: bytes) -> bytes:
    """Return the Sig_structure of RFC 9052 section 4.4, around the bytes as they are."""
    return encode_cbor([_CONTEXT, protected, b"", payload])


def parse_ec2_key(data: bytes, *, code: str) -> ec.EllipticCurvePublicKey:
    """Parse a COSE_Key of an elliptic curve with both coordinates (RFC 9053 section 7.1.1).

    Raises:
        FormatRefused: not such a key (`<code>.malformed` or a code of `decode_cbor`).
    """
    value = decode_cbor(data, ceiling=COSE_BYTES, code=code)
    curve = value.get(_CRV) if isinstance(value, dict) else None
    algorithm = _COSE_CURVES.get(curve) if type(curve) is int else None
    if algorithm is None or value.get(_KTY) != _EC2 or value.get(_ALG, algorithm) != algorithm:
        raise _malformed(code, "not a COSE_Key of P-256, P-384 or P-521")
    x, y = value.get(_X), value.get(_Y)
    size = _COORDINATE_BYTES[algorithm]
    if not (isinstance(x, bytes) and isinstance(y, bytes) and len(x) == len(y) == size):
        raise _malformed(code, f"coordinates of the key are not {size} bytes each")
    return parse_point(b"\x04" + x + y, algorithm, code=code)


def parse_point(point: bytes, algorithm: Algorithm, *, code: str) -> ec.EllipticCurvePublicKey:
    """Parse an uncompressed point (SEC 1, section 2.3.4) of the curve of `algorithm`.

    Raises:
        FormatRefused: no such point (`<code>.malformed`).
    """
    try:
        if len(point) != 1 + 2 * _COORDINATE_BYTES[algorithm]:
            raise ValueError("another length")
        return ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[algorithm](), point)
    except ValueError as err:
        raise _malformed(code, "key is not a point of its curve", f"{len(point)} bytes") from err


def _malformed(code: str, message: str, actual: str = "") -> FormatRefused:
    return FormatRefused(f"{code}.malformed", message, actual=actual)
