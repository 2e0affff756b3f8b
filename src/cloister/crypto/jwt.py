"""JSON Web Tokens signed with ES256: the one form in which an Attestation Result travels.

RFC 7519 (JWT), RFC 7515 (JWS, compact form), RFC 7518 section 3.4 (ES256: the signature is R and S, 32 bytes each),
RFC 7638 (key thumbprint), RFC 8725 (best practice). The header has what CoCo's relying parties read (`jwk` with
`x5c`) and what they lack, a `kid`.

The verifier chooses key and algorithm, never the token: `alg` must be `ES256`, `kid` must name a pinned key, and a
`jwk` in the header must be that very key. `none`, HMAC keyed with a public key, and keys from the header are all
refused by that one rule. Certificate chains are carried for others; no chain is validated here.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final

import msgspec

from cloister.crypto.signer import ECDSAP256PublicKey, Signer
from cloister.errors import FormatRefused, Refused
from cloister.wire.base64 import decode_b64url, encode_b64, encode_b64url
from cloister.wire.canonicaljson import encode_canonical
from cloister.wire.limits import KIB

TOKEN_BYTES: Final = 384 * KIB  # with event log and all findings under 64; with eight GPUs and four switches about 220
CLOCK_SKEW: Final = timedelta(seconds=30)
_ALGORITHM: Final = "ES256"
_WIDTH: Final = 32
_POINT_BYTES: Final = 1 + 2 * _WIDTH  # SEC 1 uncompressed point, the tail of a P-256 SubjectPublicKeyInfo
_HELD: Final = 256  # tokens: a guest asks for its resources right after it has attested
_HELD_BYTES: Final = 32 * KIB
_HEADER_BYTES: Final = 16 * KIB
_MALFORMED: Final = "crypto.jwt.malformed"


class _Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    alg: str
    kid: str = ""
    typ: str = "JWT"
    jwk: dict[str, Any] | None = None  # Any: compared member by member with the pinned key


class _Times(msgspec.Struct, frozen=True, kw_only=True):
    iat: int
    exp: int


def public_jwk(key: ECDSAP256PublicKey) -> dict[str, str]:
    """Return the public key as a JWK for signatures."""
    point = key.spki[-_POINT_BYTES:]
    x, y = point[1 : 1 + _WIDTH], point[1 + _WIDTH :]
    return {"kty": "EC", "crv": "P-256", "x": encode_b64url(x), "y": encode_b64url(y), "alg": _ALGORITHM}


def key_id(key: ECDSAP256PublicKey) -> str:
    """Return the RFC 7638 thumbprint of the key, by which tokens name it."""
    jwk = public_jwk(key)
    required = {name: jwk[name] for name in ("crv", "kty", "x", "y")}
    return encode_b64url(hashlib.sha256(encode_canonical(required)).digest())


def sign_jwt(claims: Mapping[str, Any], signer: Signer, *, chain: Sequence[bytes] = (), carry_key: bool = True) -> str:
    """Return the signed token.

    Args:
        claims: JSON values.
        signer: holds the key.
        chain: DER certificates of the key, leaf first, for relying parties that pin a CA.
        carry_key: whether the header shows the public key; a JWT-SVID's must not.
    """
    header = _header_text(signer.public_key, tuple(chain), carry_key)
    signed = f"{header}.{encode_b64url(msgspec.json.encode(dict(claims)))}"
    return f"{signed}.{encode_b64url(sign_es256(signer, signed.encode('ascii')))}"


@lru_cache(maxsize=16)
def _header_text(key: ECDSAP256PublicKey, chain: tuple[bytes, ...], carry_key: bool) -> str:
    """Return the encoded header: the same for all tokens that a key signs."""
    header: dict[str, Any] = {"typ": "JWT", "alg": _ALGORITHM, "kid": key_id(key)}  # Any: jwk
    if carry_key:
        jwk: dict[str, Any] = {**public_jwk(key)}  # Any: x5c is a list
        if chain:
            jwk["x5c"] = [encode_b64(certificate) for certificate in chain]
        header["jwk"] = jwk
    return encode_b64url(msgspec.json.encode(header))


def verify_jwt(token: str, keys: Mapping[str, ECDSAP256PublicKey], *, at: datetime) -> dict[str, Any]:
    """Return the claims of a token that one of `keys` signed and that is valid at `at`.

    Steps: 1 three parts within the ceiling; 2 the header names ES256 and a pinned key and nothing unknown; 3 a key in
    the header is the pinned one; 4 the signature holds; 5 issued not later than now, not expired.

    Args:
        token: compact form.
        keys: pinned keys by `key_id`.
        at: aware UTC.

    Raises:
        FormatRefused: `crypto.jwt.malformed`.
        Refused: `crypto.jwt.algorithm`, `crypto.jwt.unknown_key`, `crypto.jwt.bad_signature`, `crypto.jwt.expired`,
            `crypto.jwt.not_yet_valid`.
    """
    # 1
    parts = token.split(".") if len(token) <= TOKEN_BYTES else []
    if len(parts) != 3 or not token.isascii():
        raise FormatRefused(_MALFORMED, "not a signed token in compact form")
    # 2, 3
    key = _select_key(_decode(_decode_part(parts[0], "header", _HEADER_BYTES), "header", _Header), keys)
    # 4
    signature = _decode_part(parts[2], "signature", 2 * _WIDTH)
    try:
        verify_es256(key, f"{parts[0]}.{parts[1]}".encode("ascii"), signature)
    except Refused as err:
        raise Refused("crypto.jwt.bad_signature", "the token's signature does not hold") from err
    # 5
    payload = _decode_part(parts[1], "claims", TOKEN_BYTES)
    times = _decode(payload, "claims", _Times)
    _require_time(times.iat, times.exp, at)
    claims: dict[str, Any] = _decode(payload, "claims", dict[str, Any])
    return claims


class HeldTokens:
    """Tokens that are known to hold: those a trusted signer handed over, and those verified before.

    A signature that held once holds always; what changes is the time, and which keys count, so these are asked anew.
    The newest are kept, and no long ones: what is not kept is verified. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._held: OrderedDict[bytes, tuple[str, dict[str, Any]]] = OrderedDict()  # Any: JSON

    def add(self, token: str, claims: dict[str, Any]) -> None:  # Any: JSON
        """Remember a token whose signature holds, or was just made, with what it says; nobody may change that.

        Raises:
            FormatRefused: not a token (`crypto.jwt.malformed`).
        """
        if len(token) > _HELD_BYTES:
            return
        self._held[_digest(token)] = (_header_kid(token.partition(".")[0]), claims)
        if len(self._held) > _HELD:
            self._held.popitem(last=False)

    def verify(self, token: str, keys: Mapping[str, ECDSAP256PublicKey], *, at: datetime) -> dict[str, Any]:
        """Do what `verify_jwt` does, without the signature where it is known to hold under a key that still counts."""
        if len(token) <= _HELD_BYTES and token.isascii():
            held = self._held.get(_digest(token))
            if held is not None and held[0] in keys:
                _require_time(held[1]["iat"], held[1]["exp"], at)
                return held[1]
        claims = verify_jwt(token, keys, at=at)
        self.add(token, claims)
        return claims


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("ascii")).digest()


@lru_cache(maxsize=64)
def _header_kid(header: str) -> str:
    """Return the key id of an encoded header of a token that holds; there are as many as there are keys."""
    found: _Header = _decode(_decode_part(header, "header", _HEADER_BYTES), "header", _Header)
    return found.kid


def _require_time(issued: int, expires: int, at: datetime) -> None:
    """Step 5."""
    now = at.timestamp()
    if issued > now + CLOCK_SKEW.total_seconds():
        raise Refused("crypto.jwt.not_yet_valid", "token was issued in the future", hint="compare the clocks")
    if expires <= now:
        raise Refused(
            "crypto.jwt.expired",
            "token has expired",
            actual=f"{int(now - expires)} s ago",
            hint="attest again: a token lives a few minutes",
        )


def sign_es256(signer: Signer, signed: bytes) -> bytes:
    """Return the 64 bytes of an ES256 signature: R and S (RFC 7518, section 3.4)."""
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    r, s = decode_dss_signature(signer.sign(signed))
    return r.to_bytes(_WIDTH, "big") + s.to_bytes(_WIDTH, "big")


def verify_es256(key: ECDSAP256PublicKey, signed: bytes, signature: bytes) -> None:
    """Return if `signature` is an ES256 signature of `key` over `signed`.

    Raises:
        Refused: `crypto.signer.bad_signature`.
    """
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    if len(signature) != 2 * _WIDTH:
        raise Refused(
            "crypto.signer.bad_signature", "signature length", expected=str(2 * _WIDTH), actual=str(len(signature))
        )
    r, s = (int.from_bytes(half, "big") for half in (signature[:_WIDTH], signature[_WIDTH:]))
    key.verify(signed, encode_dss_signature(r, s))


def read_key_header(token: str) -> tuple[str, Mapping[str, Any] | None]:  # Any: JSON, not believed yet
    """Return the `kid` and the `jwk` of a token's header, unverified: only to choose which keys to verify it with.

    Raises:
        FormatRefused: not a token of three parts, or a header with anything unknown (`crypto.jwt.malformed`).
    """
    parts = token.split(".") if len(token) <= TOKEN_BYTES else []
    if len(parts) != 3 or not token.isascii():
        raise FormatRefused(_MALFORMED, "not a signed token in compact form")
    header: _Header = _decode(_decode_part(parts[0], "header", _HEADER_BYTES), "header", _Header)
    return header.kid, header.jwk


def _select_key(header: _Header, keys: Mapping[str, ECDSAP256PublicKey]) -> ECDSAP256PublicKey:
    if header.alg != _ALGORITHM or header.typ != "JWT":
        raise Refused(
            "crypto.jwt.algorithm",
            "token is signed with an algorithm that is not accepted",
            path="header.alg",
            expected=_ALGORITHM,
            actual=header.alg[:20],
        )
    key = keys.get(header.kid)
    if key is None:
        raise Refused(
            "crypto.jwt.unknown_key",
            "token is not signed by a key this relying party trusts",
            path="header.kid",
            expected=", ".join(sorted(keys))[:120] or "no key at all",
            actual=header.kid[:60],
        )
    if header.jwk is not None:
        expected = public_jwk(key)
        found = {name: value for name, value in header.jwk.items() if name not in ("x5c", "x5u")}
        if found != expected:
            raise Refused("crypto.jwt.unknown_key", "the key in the header is not the one it names", path="header.jwk")
    return key


def _decode(data: bytes, name: str, kind: Any) -> Any:  # Any: msgspec's type argument and its instance
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise _malformed(name) from err


def _decode_part(part: str, name: str, ceiling: int) -> bytes:
    try:
        return decode_b64url(part, path=name, ceiling=ceiling)
    except FormatRefused as err:
        raise _malformed(name) from err


def _malformed(name: str) -> FormatRefused:
    return FormatRefused(_MALFORMED, f"token {name} is not of the expected shape", path=name)
