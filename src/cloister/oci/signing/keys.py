"""Public keys that image signatures are verified with: ECDSA P-256, P-384 and P-521, RSA, Ed25519.

Which hash goes with a key is fixed here, never read from the signature. ECDSA keys are tried with SHA-256, which cosign
uses for every curve, and with their curve's own hash, which other Sigstore tools use; RSA is PKCS #1 v1.5 with SHA-256
and at least 2048 bits (both the key sizes and the padding of Sigstore's algorithm registry). The guest does not load
this module: its keys are P-256 (`cloister.crypto.signer`). Pure; trusts the keys it is given.
"""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

from cloister.errors import ImageRefused
from cloister.wire.limits import CERTIFICATE_BYTES, SIGNATURE_BYTES

_RSA_BITS: Final = range(2048, 8193)
_CURVE_HASHES: Final[dict[str, tuple[HashAlgorithm, ...]]] = {
    "secp256r1": (SHA256(),),
    "secp384r1": (SHA256(), SHA384()),
    "secp521r1": (SHA256(), SHA512()),
}
_PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey


class PublicKey:
    """A public key of an accepted kind and size.

    Raises:
        ImageRefused: `oci.signing.key.unsupported`.
    """

    __slots__ = ("_key", "kind", "spki")

    def __init__(self, key: object) -> None:
        self._key: _PublicKey
        if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVE_HASHES:
            self._key, self.kind = key, f"ECDSA {key.curve.name}"
        elif isinstance(key, rsa.RSAPublicKey) and key.key_size in _RSA_BITS:
            self._key, self.kind = key, f"RSA {key.key_size}"
        elif isinstance(key, ed25519.Ed25519PublicKey):
            self._key, self.kind = key, "Ed25519"
        else:
            raise ImageRefused(
                "oci.signing.key.unsupported",
                "key is of a kind or size that is not accepted",
                expected="ECDSA P-256, P-384 or P-521, RSA of 2048 to 8192 bits, or Ed25519",
                actual=type(key).__name__[:60],
            )
        self.spki = self._key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @property
    def fingerprint(self) -> str:
        """Lower-case hexadecimal SHA-256 of the DER SubjectPublicKeyInfo."""
        return hashlib.sha256(self.spki).hexdigest()

    def verify(self, message: bytes, signature: bytes) -> None:
        """Return if `signature` is this key's over `message`.

        Raises:
            ImageRefused: `oci.signing.bad_signature`.
        """
        if len(signature) > SIGNATURE_BYTES or not self._holds(message, signature):
            raise ImageRefused("oci.signing.bad_signature", "signature does not verify with this key")

    def _holds(self, message: bytes, signature: bytes) -> bool:
        key = self._key
        if isinstance(key, ec.EllipticCurvePublicKey):
            return any(_ecdsa_holds(key, item, message, signature) for item in _CURVE_HASHES[key.curve.name])
        try:
            if isinstance(key, rsa.RSAPublicKey):
                key.verify(signature, message, padding.PKCS1v15(), SHA256())
            else:
                key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


def _ecdsa_holds(key: ec.EllipticCurvePublicKey, algorithm: HashAlgorithm, message: bytes, signature: bytes) -> bool:
    try:
        key.verify(signature, message, ec.ECDSA(algorithm))
    except InvalidSignature:
        return False
    return True


def load_public_key(data: bytes, *, path: str = "") -> PublicKey:
    """Parse a public key, PEM (`cosign.pub`) or DER SubjectPublicKeyInfo.

    Raises:
        ImageRefused: `oci.signing.key.malformed` or `.unsupported`.
    """
    if len(data) > CERTIFICATE_BYTES:
        raise _malformed(path)
    try:
        key = load_pem_public_key(data) if b"-----BEGIN" in data[:200] else load_der_public_key(data)
    except UnsupportedAlgorithm as err:
        raise ImageRefused("oci.signing.key.unsupported", "key is of a kind that is not accepted", path=path) from err
    except ValueError as err:
        raise _malformed(path) from err
    return PublicKey(key)


def _malformed(path: str) -> ImageRefused:
    return ImageRefused(
        "oci.signing.key.malformed",
        "not a public key",
        path=path,
        expected="PEM `PUBLIC KEY`, the content of cosign.pub",
    )
