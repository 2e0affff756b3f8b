"""JSON Web Encryption exactly as the key broker protocol wants it: flattened JSON, one recipient, AES-256-GCM.

RFC 7516 (JWE), RFC 7518 sections 4.3 (RSA-OAEP-256), 4.6 (ECDH-ES+A256KW) and 5.3 (A256GCM), RFC 7517 (JWK).

Why not a JOSE library: CoCo's guest does not authenticate the header bytes it received. It parses the protected
header and serialises it again: `alg`, `enc`, then every other member sorted, without blanks. Only a header written in
that order is authentic to it, so the header is written here by hand, and a golden test fixes the bytes.

The broker seals for P-256, P-521 and RSA keys that a guest bound to its evidence; the guest opens with its P-256 key.
What is sealed is authentic only to whoever trusts the channel it came over: anybody can seal to a public key.

`cryptography` is imported with this module: inside the guest import it late or in a background thread.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from cloister.errors import FormatRefused, Refused
from cloister.protocol.kbs import SealedResource
from cloister.wire.base64 import decode_b64url, encode_b64url
from cloister.wire.limits import KIB, RESOURCE_BYTES

ECDH_ES_A256KW: Final = "ECDH-ES+A256KW"
RSA_OAEP_256: Final = "RSA-OAEP-256"
A256GCM: Final = "A256GCM"

_CEK_BYTES: Final = 32
_IV_BYTES: Final = 12
_TAG_BYTES: Final = 16
_WRAPPED_CEK_BYTES: Final = 40  # RFC 3394: eight bytes more than the key
_HEADER_BYTES: Final = 1 * KIB  # with an epk on P-521 about 350
_KEY_BITS: Final = 256
_EXPONENT: Final = 65537
_RSA_BYTES: Final = (256, 384, 512)  # 2048, 3072 and 4096 bits
_CURVES: Final[Mapping[str, tuple[type[ec.EllipticCurve], int]]] = {
    "P-256": (ec.SECP256R1, 32),
    "P-521": (ec.SECP521R1, 66),
}
_GUEST_CURVE: Final = "P-256"
_KEY: Final = "crypto.jwe.key"


class Recipient(msgspec.Struct, frozen=True, kw_only=True):
    """A checked public key to seal to, and the key-wrapping algorithm that goes with it."""

    algorithm: str
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey


class _EphemeralPublic(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    crv: str
    kty: str
    x: str
    y: str


class _GuestHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    alg: str
    enc: str
    epk: _EphemeralPublic


def parse_recipient(jwk: Mapping[str, str]) -> Recipient:
    """Check the public JWK of a guest.

    Raises:
        FormatRefused: unknown key type, curve or algorithm, surplus or missing member, a point off its curve, an RSA
            key of another size than 2048, 3072 or 4096 bits (`crypto.jwe.key`).
    """
    kind = jwk.get("kty")
    if kind == "EC":
        _require_members(jwk, {"kty", "alg", "crv", "x", "y"}, ECDH_ES_A256KW)
        if jwk["crv"] not in _CURVES:
            raise FormatRefused(
                _KEY, "unknown curve", path="crv", expected=" or ".join(_CURVES), actual=jwk["crv"][:20]
            )
        return Recipient(algorithm=ECDH_ES_A256KW, key=_ec_public(jwk["crv"], jwk["x"], jwk["y"]))
    if kind == "RSA":
        _require_members(jwk, {"kty", "alg", "n", "e"}, RSA_OAEP_256)
        return Recipient(algorithm=RSA_OAEP_256, key=_rsa_public(jwk["n"], jwk["e"]))
    raise FormatRefused(_KEY, "unknown key type", path="kty", expected="EC or RSA", actual=str(kind)[:20])


def seal_for(recipient: Recipient, plaintext: bytes) -> SealedResource:
    """Encrypt `plaintext` so that only the holder of the recipient's private key reads it.

    Raises:
        FormatRefused: longer than a resource may be (`crypto.jwe.too_long`).
    """
    if len(plaintext) > RESOURCE_BYTES:
        raise FormatRefused("crypto.jwe.too_long", "resource too long", expected=f"at most {RESOURCE_BYTES} bytes")
    cek, iv = os.urandom(_CEK_BYTES), os.urandom(_IV_BYTES)
    if isinstance(recipient.key, rsa.RSAPublicKey):
        return _seal_rsa(recipient.key, plaintext, cek, iv)
    return _seal_ec(recipient.key, plaintext, ec.generate_private_key(recipient.key.curve), cek, iv)


class EphemeralKey:
    """The guest's P-256 key pair of one boot: its public half goes into the evidence, what it opens stays inside."""

    __slots__ = ("_key",)

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        if not isinstance(key.curve, ec.SECP256R1):
            raise RuntimeError("the guest's key is on P-256")
        self._key: ec.EllipticCurvePrivateKey | None = key

    @classmethod
    def generate(cls) -> EphemeralKey:
        """Return a fresh key."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    def __repr__(self) -> str:
        return "EphemeralKey(wiped)" if self._key is None else "EphemeralKey(P-256)"

    def public_jwk(self) -> dict[str, str]:
        """Return the public key as the protocol's `tee-pubkey`."""
        jwk = _public_members(self._private().public_key())
        return {"kty": "EC", "crv": jwk["crv"], "alg": ECDH_ES_A256KW, "x": jwk["x"], "y": jwk["y"]}

    def open(self, sealed: SealedResource) -> bytes:
        """Return the plaintext.

        Raises:
            FormatRefused: malformed, or not for a key of this kind (`crypto.jwe.malformed`, `crypto.jwe.algorithm`).
            Refused: sealed to another key or altered; which cannot be told (`crypto.jwe.not_authentic`).
        """
        private = self._private()
        header = _parse_header(sealed.protected)
        wrapped = _exactly(sealed.encrypted_key, "encrypted_key", _WRAPPED_CEK_BYTES)
        iv = _exactly(sealed.iv, "iv", _IV_BYTES)
        tag = _exactly(sealed.tag, "tag", _TAG_BYTES)
        ciphertext = decode_b64url(sealed.ciphertext, path="ciphertext", ceiling=RESOURCE_BYTES)
        sender = _ec_public(_GUEST_CURVE, header.epk.x, header.epk.y)
        kek = _agree(private, sender)
        try:
            cek = aes_key_unwrap(kek, wrapped)
            return AESGCM(cek).decrypt(iv, ciphertext + tag, sealed.protected.encode("ascii"))
        except (InvalidUnwrap, InvalidTag, ValueError) as err:
            raise Refused(
                "crypto.jwe.not_authentic", "the resource does not open with this guest's key or was altered"
            ) from err

    def wipe(self) -> None:
        """Forget the private key. CPython cannot promise that no copy stays in freed memory."""
        self._key = None

    def _private(self) -> ec.EllipticCurvePrivateKey:
        if self._key is None:
            raise RuntimeError("the ephemeral key was wiped")
        return self._key


def _seal_ec(
    key: ec.EllipticCurvePublicKey, plaintext: bytes, ephemeral: ec.EllipticCurvePrivateKey, cek: bytes, iv: bytes
) -> SealedResource:
    wrapped = aes_key_wrap(_agree(ephemeral, key), cek)
    epk = _public_members(ephemeral.public_key())
    return _encrypt({"alg": ECDH_ES_A256KW, "enc": A256GCM, "epk": epk}, wrapped, plaintext, cek, iv)


def _seal_rsa(key: rsa.RSAPublicKey, plaintext: bytes, cek: bytes, iv: bytes) -> SealedResource:
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    return _encrypt({"alg": RSA_OAEP_256, "enc": A256GCM}, key.encrypt(cek, oaep), plaintext, cek, iv)


def _encrypt(header: dict[str, object], wrapped: bytes, plaintext: bytes, cek: bytes, iv: bytes) -> SealedResource:
    # The order of `header` is the order on the wire: alg, enc, then sorted. See the module's docstring.
    protected = encode_b64url(json.dumps(header, separators=(",", ":")).encode("ascii"))
    sealed = AESGCM(cek).encrypt(iv, plaintext, protected.encode("ascii"))
    return SealedResource(
        protected=protected,
        encrypted_key=encode_b64url(wrapped),
        iv=encode_b64url(iv),
        ciphertext=encode_b64url(sealed[:-_TAG_BYTES]),
        tag=encode_b64url(sealed[-_TAG_BYTES:]),
    )


def _agree(private: ec.EllipticCurvePrivateKey, public: ec.EllipticCurvePublicKey) -> bytes:
    """Return the key-wrapping key: RFC 7518 section 4.6.2, with empty PartyUInfo and PartyVInfo."""
    algorithm = ECDH_ES_A256KW.encode("ascii")
    other = b"".join((_length(algorithm), algorithm, _length(b""), _length(b""), _KEY_BITS.to_bytes(4, "big")))
    shared = private.exchange(ec.ECDH(), public)
    return ConcatKDFHash(hashes.SHA256(), _KEY_BITS // 8, other).derive(shared)


def _length(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big")


def _public_members(key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    name = next(name for name, (curve, _) in _CURVES.items() if isinstance(key.curve, curve))
    width = _CURVES[name][1]
    numbers = key.public_numbers()
    x, y = numbers.x.to_bytes(width, "big"), numbers.y.to_bytes(width, "big")
    return {"crv": name, "kty": "EC", "x": encode_b64url(x), "y": encode_b64url(y)}


def _require_members(jwk: Mapping[str, str], members: set[str], algorithm: str) -> None:
    if set(jwk) != members:
        raise FormatRefused(
            _KEY,
            "key has other members than its type",
            expected=" ".join(sorted(members)),
            actual=" ".join(sorted(jwk))[:120],
        )
    if jwk["alg"] != algorithm:
        raise FormatRefused(
            _KEY, "unknown key-wrapping algorithm", path="alg", expected=algorithm, actual=jwk["alg"][:40]
        )


def _ec_public(curve: str, x: str, y: str) -> ec.EllipticCurvePublicKey:
    kind, width = _CURVES[curve]
    point = (int.from_bytes(_exactly(x, "x", width), "big"), int.from_bytes(_exactly(y, "y", width), "big"))
    try:
        return ec.EllipticCurvePublicNumbers(point[0], point[1], kind()).public_key()
    except ValueError as err:
        raise FormatRefused(_KEY, "not a point of its curve", path="x") from err


def _rsa_public(n: str, e: str) -> rsa.RSAPublicKey:
    modulus = decode_b64url(n, path="n", ceiling=max(_RSA_BYTES))
    exponent = int.from_bytes(decode_b64url(e, path="e", ceiling=8), "big")
    if len(modulus) not in _RSA_BYTES or not modulus[0] & 0x80:
        raise FormatRefused(
            _KEY,
            "RSA key size",
            path="n",
            expected="2048, 3072 or 4096 bits",
            actual=f"{int.from_bytes(modulus, 'big').bit_length()} bits",
        )
    if exponent != _EXPONENT:
        raise FormatRefused(_KEY, "RSA exponent", path="e", expected=str(_EXPONENT))
    try:
        return rsa.RSAPublicNumbers(exponent, int.from_bytes(modulus, "big")).public_key()
    except ValueError as err:
        raise FormatRefused(_KEY, "not an RSA key", path="n") from err


def _exactly(text: str, name: str, width: int) -> bytes:
    data = decode_b64url(text, path=name, ceiling=width)
    if len(data) != width:
        raise FormatRefused(
            "crypto.jwe.malformed", "wrong length", path=name, expected=f"{width} bytes", actual=f"{len(data)} bytes"
        )
    return data


def _parse_header(protected: str) -> _GuestHeader:
    text = decode_b64url(protected, path="protected", ceiling=_HEADER_BYTES)
    try:
        header = msgspec.json.decode(text, type=_GuestHeader)
    except (msgspec.MsgspecError, UnicodeDecodeError) as err:
        raise FormatRefused(
            "crypto.jwe.malformed", "not a protected header of this protocol", path="protected"
        ) from err
    found = (header.alg, header.enc, header.epk.kty, header.epk.crv)
    accepted = (ECDH_ES_A256KW, A256GCM, "EC", _GUEST_CURVE)
    if found != accepted:
        raise FormatRefused(
            "crypto.jwe.algorithm",
            "sealed by an algorithm this guest did not ask for",
            path="protected",
            expected=" ".join(accepted),
            actual=" ".join(found)[:120],
        )
    return header
