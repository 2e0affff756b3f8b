"""Signing keys of the owner and their public halves: ECDSA with P-256 and SHA-256 (FIPS 186-5), DER signatures.

The one algorithm of cosign's key mode. `Signer` is the interface that other key stores (PKCS #11, a vault) implement;
`ECDSAP256Signer` keeps its key in this process. A public key is identified by the SHA-256 of its
SubjectPublicKeyInfo. `cryptography` is imported on first use. Private keys never appear in a repr or an error.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, Protocol

from cloister.errors import FormatRefused, Refused
from cloister.wire.base64 import decode_b64, encode_b64
from cloister.wire.limits import CERTIFICATE_BYTES

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

ECDSA_P256_SIGNATURE_BYTES: Final = 72  # DER of two 33-byte integers
# SubjectPublicKeyInfo (RFC 5480, section 2) of an uncompressed point on P-256, up to the point's first coordinate.
_SPKI_HEAD: Final = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
_COORDINATE_BYTES: Final = 32
_SPKI_BYTES: Final = len(_SPKI_HEAD) + 2 * _COORDINATE_BYTES
_PEM_BEGIN: Final = "-----BEGIN PUBLIC KEY-----"
_PEM_END: Final = "-----END PUBLIC KEY-----"
_PEM_LINE_CHARS: Final = 64  # RFC 7468, section 2


class ECDSAP256PublicKey:
    """A P-256 public key that checks signatures."""

    __slots__ = ("_key", "spki")

    def __init__(self, key: EllipticCurvePublicKey) -> None:
        point = _require_p256_public(key).public_numbers()
        coordinates = [number.to_bytes(_COORDINATE_BYTES, "big") for number in (point.x, point.y)]
        self._key = key
        self.spki = _SPKI_HEAD + b"".join(coordinates)

    @classmethod
    def from_pem(cls, pem: bytes) -> ECDSAP256PublicKey:
        """Parse a PEM `PUBLIC KEY`, the content of cosign's `cosign.pub`.

        Raises:
            Refused: `crypto.signer.malformed_key` or `crypto.signer.unsupported_key`.
        """
        spki = _usual_spki(_bounded(pem))
        return cls(_load_pem_public(pem) if spki is None else _point_of(spki))

    @classmethod
    def from_point(cls, x: bytes, y: bytes) -> ECDSAP256PublicKey:
        """Return the key with these coordinates, 32 bytes each, big-endian.

        Raises:
            Refused: `crypto.signer.malformed_key`.
        """
        return cls(_point_of(_SPKI_HEAD + x + y))

    @property
    def fingerprint(self) -> str:
        """Lower-case hexadecimal SHA-256 of the DER SubjectPublicKeyInfo."""
        return hashlib.sha256(self.spki).hexdigest()

    def pem(self) -> bytes:
        """Return the key as PEM `PUBLIC KEY`."""
        body = encode_b64(self.spki)
        lines = [body[start : start + _PEM_LINE_CHARS] for start in range(0, len(body), _PEM_LINE_CHARS)]
        return "\n".join((_PEM_BEGIN, *lines, _PEM_END, "")).encode()

    def verify(self, message: bytes, signature: bytes) -> None:
        """Return if `signature` is this key's over `message`.

        Raises:
            Refused: `crypto.signer.bad_signature`.
        """
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
        from cryptography.hazmat.primitives.hashes import SHA256

        if len(signature) > ECDSA_P256_SIGNATURE_BYTES:
            raise Refused("crypto.signer.bad_signature", "signature is too long")
        try:
            self._key.verify(signature, message, ECDSA(SHA256()))
        except InvalidSignature as err:
            raise Refused("crypto.signer.bad_signature", "signature does not verify with this key") from err


class Signer(Protocol):
    """Something that holds a private key and signs with it."""

    @property
    def public_key(self) -> ECDSAP256PublicKey:
        """The public half."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Return the signature over `message`."""
        ...


class ECDSAP256Signer:
    """A `Signer` whose key is in this process' memory."""

    __slots__ = ("_key", "_public_key")

    def __init__(self, key: EllipticCurvePrivateKey) -> None:
        self._key = key
        self._public_key = ECDSAP256PublicKey(key.public_key())

    @classmethod
    def generate(cls) -> ECDSAP256Signer:
        """Return a signer with a fresh key."""
        from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

        return cls(generate_private_key(SECP256R1()))

    @classmethod
    def from_pem(cls, pem: bytes, password: bytes | None = None) -> ECDSAP256Signer:
        """Parse an unencrypted or password-protected PKCS #8 or SEC 1 PEM key.

        Raises:
            Refused: `crypto.signer.malformed_key`, `crypto.signer.unsupported_key` (also cosign's own encrypted
            form).
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        if b"ENCRYPTED SIGSTORE PRIVATE KEY" in pem or b"ENCRYPTED COSIGN PRIVATE KEY" in pem:
            raise Refused(
                "crypto.signer.unsupported_key",
                "cosign's own encrypted key form is not supported",
                expected="a PKCS #8 PEM key",
                hint="sign with cosign itself, or make a key with `cloister image sign`",
            )
        try:
            key = load_pem_private_key(_bounded(pem), password)
        except UnsupportedAlgorithm as err:
            raise _unsupported_key() from err
        except (ValueError, TypeError) as err:  # TypeError: password missing or not needed
            raise Refused("crypto.signer.malformed_key", "not a readable PEM private key") from err
        if not isinstance(key, EllipticCurvePrivateKey):
            raise _unsupported_key()
        _require_p256_public(key.public_key())
        return cls(key)

    @property
    def public_key(self) -> ECDSAP256PublicKey:
        """The public half."""
        return self._public_key

    def private_pem(self) -> bytes:
        """Return the key as unencrypted PKCS #8 PEM; the caller keeps the file private."""
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def sign(self, message: bytes) -> bytes:
        """Return the DER signature over `message`."""
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
        from cryptography.hazmat.primitives.hashes import SHA256

        return self._key.sign(message, ECDSA(SHA256()))


def _bounded(pem: bytes) -> bytes:
    if len(pem) > CERTIFICATE_BYTES:
        raise Refused(
            "crypto.signer.malformed_key", "key file is too long", expected=f"at most {CERTIFICATE_BYTES} bytes"
        )
    return pem


def _usual_spki(pem: bytes) -> bytes | None:
    """Return the SubjectPublicKeyInfo in a PEM of the one shape that nearly every P-256 key has; None for any other.

    Why not always by `cryptography`: importing its `serialization` brings the SSH formats along, which is 0.2 s of an
    emulated guest's start. What is not of this shape goes there, and is accepted or refused there.
    """
    lines = pem.decode("latin-1").strip().splitlines()
    if len(lines) < 3 or lines[0] != _PEM_BEGIN or lines[-1] != _PEM_END:
        return None
    try:
        spki = decode_b64("".join(lines[1:-1]), path="pem", ceiling=_SPKI_BYTES)
    except FormatRefused:
        return None
    return spki if len(spki) == _SPKI_BYTES and spki.startswith(_SPKI_HEAD) else None


def _point_of(spki: bytes) -> EllipticCurvePublicKey:
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicNumbers

    x, y = spki[-2 * _COORDINATE_BYTES : -_COORDINATE_BYTES], spki[-_COORDINATE_BYTES:]
    try:
        return EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), SECP256R1()).public_key()
    except ValueError as err:
        raise _malformed_public() from err


def _load_pem_public(pem: bytes) -> EllipticCurvePublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        return _require_p256_public(load_pem_public_key(pem))
    except UnsupportedAlgorithm as err:
        raise _unsupported_key() from err
    except ValueError as err:
        raise _malformed_public() from err


def _malformed_public() -> Refused:
    return Refused("crypto.signer.malformed_key", "not a PEM public key", hint="give the content of cosign.pub")


def _require_p256_public(key: object) -> EllipticCurvePublicKey:
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey

    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise _unsupported_key()
    return key


def _unsupported_key() -> Refused:
    return Refused("crypto.signer.unsupported_key", "key algorithm is not supported", expected="ECDSA P-256")
