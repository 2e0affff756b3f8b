"""JSON Web Encryption exactly as the key broker protocol wants it: flattened JSON, one recipient, AES-256-GCM.

RFC 7516 (JWE), RFC 7518 sections 4.3 (RSA-OAEP-256), 4.6 (ECDH-ES+A256KW) and 5.3 (A256GCM), RFC 7517 (JWK).

Why not a JOSE library: CoCo's guest does not authenticate the header bytes it received. It parses the protected
header and serialises it again: `alg`, `enc`, then every other member sorted, without blanks. Only a header written in
that order is authentic to it, so the header is written here by hand, and a golden test fixes the bytes.

The broker seals for P-256, P-521 and RSA keys that a guest bound to its evidence; a guest has a key of one of these
kinds. Guests of protocol 0.1.1 know RSA1_5 alone, and a form of their own: the tag behind the ciphertext, a header
that is neither encoded nor authenticated. Both are there for a broker whose owner asked for them in words, never for a
guest of ours: padding of PKCS #1 v1.5 tells an attacker who may ask often enough what was encrypted.

What is sealed is authentic only to whoever trusts the channel it came over: anybody can seal to a public key.

`cryptography` is imported with this module: inside the guest import it late or in a background thread.
"""

from __future__ import annotations

import enum
import json
import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from cloister.errors import FormatRefused, Refused
from cloister.protocol.kbs import TEXT_EVIDENCE, VERSION, SealedResource
from cloister.wire.base64 import decode_b64url, encode_b64url
from cloister.wire.limits import KIB, RESOURCE_BYTES

ECDH_ES_A256KW: Final = "ECDH-ES+A256KW"
RSA_OAEP_256: Final = "RSA-OAEP-256"
RSA1_5: Final = "RSA1_5"  # RFC 8017 section 7.2; deprecated everywhere
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
_OWN_RSA_BYTES: Final = 384  # of keys made here: 3072 bits, RFC 7518 asks for 2048
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
    epk: _EphemeralPublic | None = None


def parse_recipient(jwk: Mapping[str, str], *, insecure_rsa1_5: bool = False) -> Recipient:
    """Check the public JWK of a guest.

    Args:
        jwk: as sent.
        insecure_rsa1_5: whether a key for RSA1_5 is one to seal to.

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
        algorithm = RSA1_5 if insecure_rsa1_5 and jwk.get("alg") == RSA1_5 else RSA_OAEP_256
        _require_members(jwk, {"kty", "alg", "n", "e"}, algorithm)
        return Recipient(algorithm=algorithm, key=_rsa_public(jwk["n"], jwk["e"]))
    raise FormatRefused(_KEY, "unknown key type", path="kty", expected="EC or RSA", actual=str(kind)[:20])


def seal_for(recipient: Recipient, plaintext: bytes, *, version: str = VERSION) -> SealedResource:
    """Encrypt `plaintext` so that only the holder of the recipient's private key reads it.

    Args:
        recipient: whom for.
        plaintext: a resource.
        version: of the protocol the recipient speaks; 0.1.1 has a form of its own.

    Raises:
        FormatRefused: longer than a resource may be (`crypto.jwe.too_long`), or a key that this version cannot seal to
            (`crypto.jwe.key`).
    """
    if len(plaintext) > RESOURCE_BYTES:
        raise FormatRefused("crypto.jwe.too_long", "resource too long", expected=f"at most {RESOURCE_BYTES} bytes")
    cek, iv = os.urandom(_CEK_BYTES), os.urandom(_IV_BYTES)
    if version == TEXT_EVIDENCE:
        return _seal_legacy(recipient, plaintext, cek, iv)
    if isinstance(recipient.key, rsa.RSAPublicKey):
        return _seal_rsa(recipient.key, recipient.algorithm, plaintext, cek, iv)
    return _seal_ec(recipient.key, plaintext, ec.generate_private_key(recipient.key.curve), cek, iv)


class KeyKind(enum.StrEnum):
    """Kinds of key that a guest may make."""

    P256 = "P-256"
    P521 = "P-521"
    RSA = "RSA-OAEP-256"


class EphemeralKey:
    """The guest's key pair of one boot: its public half goes into the evidence, what it opens stays inside."""

    __slots__ = ("_key", "_kind")

    def __init__(self, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
        self._kind = _kind_of(key)
        self._key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = key

    @classmethod
    def generate(cls, kind: KeyKind = KeyKind.P256) -> EphemeralKey:
        """Return a fresh key. P-256 costs least; a broker may know only the others."""
        if kind is KeyKind.RSA:
            return cls(rsa.generate_private_key(public_exponent=_EXPONENT, key_size=8 * _OWN_RSA_BYTES))
        return cls(ec.generate_private_key(_CURVES[kind.value][0]()))

    def __repr__(self) -> str:
        return "EphemeralKey(wiped)" if self._key is None else f"EphemeralKey({self._kind})"

    def public_jwk(self) -> dict[str, str]:
        """Return the public key as the protocol's `tee-pubkey`."""
        private = self._private()
        if isinstance(private, rsa.RSAPrivateKey):
            numbers = private.public_key().public_numbers()
            modulus = numbers.n.to_bytes(private.key_size // 8, "big")
            exponent = numbers.e.to_bytes(3, "big")
            return {"kty": "RSA", "alg": RSA_OAEP_256, "n": encode_b64url(modulus), "e": encode_b64url(exponent)}
        jwk = _public_members(private.public_key())
        return {"kty": "EC", "crv": jwk["crv"], "alg": ECDH_ES_A256KW, "x": jwk["x"], "y": jwk["y"]}

    def open(self, sealed: SealedResource) -> bytes:
        """Return the plaintext.

        Raises:
            FormatRefused: malformed, or not for a key of this kind (`crypto.jwe.malformed`, `crypto.jwe.algorithm`).
            Refused: sealed to another key or altered; which cannot be told (`crypto.jwe.not_authentic`).
        """
        private = self._private()
        header = _parse_header(sealed.protected, self._kind)
        iv = _exactly(sealed.iv, "iv", _IV_BYTES)
        tag = _exactly(sealed.tag, "tag", _TAG_BYTES)
        ciphertext = decode_b64url(sealed.ciphertext, path="ciphertext", ceiling=RESOURCE_BYTES)
        try:
            cek = _unwrap(private, header, sealed.encrypted_key)
            return AESGCM(cek).decrypt(iv, ciphertext + tag, sealed.protected.encode("ascii"))
        except (InvalidUnwrap, InvalidTag, ValueError) as err:
            raise Refused(
                "crypto.jwe.not_authentic", "the resource does not open with this guest's key or was altered"
            ) from err

    def wipe(self) -> None:
        """Forget the private key. CPython cannot promise that no copy stays in freed memory."""
        self._key = None

    def _private(self) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
        if self._key is None:
            raise RuntimeError("the ephemeral key was wiped")
        return self._key


def _kind_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> KeyKind:
    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size // 8 not in _RSA_BYTES or key.public_key().public_numbers().e != _EXPONENT:
            raise RuntimeError("a guest's RSA key has 2048, 3072 or 4096 bits")
        return KeyKind.RSA
    name = next((name for name, (curve, _) in _CURVES.items() if isinstance(key.curve, curve)), "")
    if not name:
        raise RuntimeError("a guest's key is on P-256 or P-521")
    return KeyKind(name)


def _unwrap(private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, header: _GuestHeader, encrypted_key: str) -> bytes:
    """Return the content-encryption key.

    Raises:
        FormatRefused: malformed.
        InvalidUnwrap, ValueError: for another key, or altered.
    """
    if isinstance(private, rsa.RSAPrivateKey):
        wrapped = _exactly(encrypted_key, "encrypted_key", private.key_size // 8)
        cek = private.decrypt(wrapped, _oaep())
        if len(cek) != _CEK_BYTES:
            raise ValueError("another length than the key has")
        return cek
    wrapped = _exactly(encrypted_key, "encrypted_key", _WRAPPED_CEK_BYTES)
    epk = header.epk
    if epk is None:
        raise RuntimeError("a header without a key was accepted for this kind")
    return aes_key_unwrap(agree_wrapping_key(private, _ec_public(epk.crv, epk.x, epk.y)), wrapped)


def _seal_ec(
    key: ec.EllipticCurvePublicKey, plaintext: bytes, ephemeral: ec.EllipticCurvePrivateKey, cek: bytes, iv: bytes
) -> SealedResource:
    wrapped = aes_key_wrap(agree_wrapping_key(ephemeral, key), cek)
    epk = _public_members(ephemeral.public_key())
    return _encrypt({"alg": ECDH_ES_A256KW, "enc": A256GCM, "epk": epk}, wrapped, plaintext, cek, iv)


def _seal_rsa(key: rsa.RSAPublicKey, algorithm: str, plaintext: bytes, cek: bytes, iv: bytes) -> SealedResource:
    wrapped = key.encrypt(cek, padding.PKCS1v15() if algorithm == RSA1_5 else _oaep())
    return _encrypt({"alg": algorithm, "enc": A256GCM}, wrapped, plaintext, cek, iv)


def _seal_legacy(recipient: Recipient, plaintext: bytes, cek: bytes, iv: bytes) -> SealedResource:
    """Seal as CoCo's broker did in protocol 0.1.1: header in the clear, nothing authenticated but the text."""
    if not isinstance(recipient.key, rsa.RSAPublicKey) or recipient.algorithm != RSA1_5:
        raise FormatRefused(_KEY, "guests of this protocol version have RSA1_5 keys", path="alg", expected=RSA1_5)
    return SealedResource(
        protected=json.dumps({"alg": RSA1_5, "enc": A256GCM}, separators=(",", ":")),
        encrypted_key=encode_b64url(recipient.key.encrypt(cek, padding.PKCS1v15())),
        iv=encode_b64url(iv),
        ciphertext=encode_b64url(AESGCM(cek).encrypt(iv, plaintext, None)),
        tag="",
    )


def _oaep() -> padding.OAEP:
    return padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)


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


def agree_wrapping_key(
    private: ec.EllipticCurvePrivateKey,
    public: ec.EllipticCurvePublicKey,
    *,
    algorithm: str = ECDH_ES_A256KW,
    bits: int = _KEY_BITS,
    party_u: bytes = b"",
    party_v: bytes = b"",
) -> bytes:
    """Return the key-wrapping key of `bits` for `algorithm`: RFC 7518 section 4.6.2.

    Raises:
        ValueError: the keys are on different curves.
    """
    parts = (algorithm.encode("ascii"), party_u, party_v)
    other = b"".join(_length(part) + part for part in parts) + bits.to_bytes(4, "big")
    return ConcatKDFHash(hashes.SHA256(), bits // 8, other).derive(private.exchange(ec.ECDH(), public))


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


@lru_cache(maxsize=256)
def _ec_public(curve: str, x: str, y: str) -> ec.EllipticCurvePublicKey:
    """Return the key; a guest shows it when it attests and in its token, and it is checked once."""
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


def _parse_header(protected: str, kind: KeyKind) -> _GuestHeader:
    text = decode_b64url(protected, path="protected", ceiling=_HEADER_BYTES)
    try:
        header = msgspec.json.decode(text, type=_GuestHeader)
    except (msgspec.MsgspecError, UnicodeDecodeError) as err:
        raise FormatRefused(
            "crypto.jwe.malformed", "not a protected header of this protocol", path="protected"
        ) from err
    epk = (header.epk.kty, header.epk.crv) if header.epk is not None else ()
    found = (header.alg, header.enc, *epk)
    accepted = (RSA_OAEP_256, A256GCM) if kind is KeyKind.RSA else (ECDH_ES_A256KW, A256GCM, "EC", kind.value)
    if found != accepted:
        raise FormatRefused(
            "crypto.jwe.algorithm",
            "sealed by an algorithm this guest did not ask for",
            path="protected",
            expected=" ".join(accepted),
            actual=" ".join(found)[:120],
        )
    return header
