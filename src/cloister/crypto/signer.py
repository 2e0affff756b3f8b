"""Signing keys of the owner and their public halves: ECDSA with P-256 and SHA-256 (FIPS 186-5), DER signatures.

The one algorithm of cosign's key mode. `Signer` is the interface that other key stores (PKCS #11, a vault) implement;
`ECDSAP256Signer` keeps its key in this process. A public key is identified by the SHA-256 of its
SubjectPublicKeyInfo. `cryptography` is imported on first use. Private keys never appear in a repr or an error.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, Protocol

from cloister.errors import Refused
from cloister.wire.limits import CERTIFICATE_BYTES

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

ECDSA_P256_SIGNATURE_BYTES: Final = 72  # DER of two 33-byte integers


class ECDSAP256PublicKey:
    """A P-256 public key that checks signatures."""

    __slots__ = ("_key", "spki")

    def __init__(self, key: EllipticCurvePublicKey) -> None:
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        self._key = key
        self.spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @classmethod
    def from_pem(cls, pem: bytes) -> ECDSAP256PublicKey:
        """Parse a PEM `PUBLIC KEY`, the content of cosign's `cosign.pub`.

        Raises:
            Refused: `crypto.signer.malformed_key` or `crypto.signer.unsupported_key`.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        try:
            key = load_pem_public_key(_bounded(pem))
        except UnsupportedAlgorithm as err:
            raise _unsupported_key() from err
        except ValueError as err:
            raise Refused(
                "crypto.signer.malformed_key", "not a PEM public key", hint="give the content of cosign.pub"
            ) from err
        return cls(_require_p256_public(key))

    @property
    def fingerprint(self) -> str:
        """Lower-case hexadecimal SHA-256 of the DER SubjectPublicKeyInfo."""
        return hashlib.sha256(self.spki).hexdigest()

    def pem(self) -> bytes:
        """Return the key as PEM `PUBLIC KEY`."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return self._key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

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


def _require_p256_public(key: object) -> EllipticCurvePublicKey:
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey

    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise _unsupported_key()
    return key


def _unsupported_key() -> Refused:
    return Refused("crypto.signer.unsupported_key", "key algorithm is not supported", expected="ECDSA P-256")
