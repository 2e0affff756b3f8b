"""Symmetric ciphers of the formats Cloister reads and writes: AES-256-GCM (NIST SP 800-38D), AES-256-CTR (SP
800-38A).

CTR mode authenticates nothing: whoever uses `ctr_stream` has checked a MAC over all of the ciphertext before anything
but a digest looks at what comes out. Keys and nonces have exactly one length each. `cryptography` is imported on first
use, because its import is a visible part of a guest's cold start. Keys are never put in an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from cloister.errors import Refused

AES256_KEY_BYTES: Final = 32
GCM_NONCE_BYTES: Final = 12
GCM_TAG_BYTES: Final = 16
CTR_NONCE_BYTES: Final = 16  # the whole initial counter block, big-endian


def seal_aes256gcm(
    key: bytes | bytearray, nonce: bytes, plaintext: bytes, associated_data: bytes | None = None
) -> bytes:
    """Return ciphertext with the 16-byte tag appended.

    The caller gives every nonce only once per key.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    _require_length("key", key, AES256_KEY_BYTES)
    _require_length("nonce", nonce, GCM_NONCE_BYTES)
    return AESGCM(bytes(key)).encrypt(nonce, plaintext, associated_data)


def open_aes256gcm(key: bytes | bytearray, nonce: bytes, sealed: bytes, associated_data: bytes | None = None) -> bytes:
    """Return the plaintext of ciphertext with appended tag.

    Raises:
        Refused: `crypto.aead.not_authentic`: other key, or any other byte changed. Which of these cannot be told.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    _require_length("key", key, AES256_KEY_BYTES)
    _require_length("nonce", nonce, GCM_NONCE_BYTES)
    if len(sealed) < GCM_TAG_BYTES:
        raise Refused("crypto.aead.not_authentic", "sealed bytes are shorter than their tag")
    try:
        return AESGCM(bytes(key)).decrypt(nonce, sealed, associated_data)
    except InvalidTag as err:
        raise Refused("crypto.aead.not_authentic", "sealed bytes do not open with this key") from err


def ctr_stream(key: bytes | bytearray, nonce: bytes, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Encrypt or decrypt `chunks` with AES-256-CTR; the two are the same operation. Authenticates nothing."""
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.ciphers.modes import CTR

    _require_length("key", key, AES256_KEY_BYTES)
    _require_length("nonce", nonce, CTR_NONCE_BYTES)
    context = Cipher(AES(bytes(key)), CTR(nonce)).encryptor()
    for chunk in chunks:
        yield context.update(chunk)
    context.finalize()


def _require_length(what: str, value: bytes | bytearray, length: int) -> None:
    if len(value) != length:
        raise Refused(
            f"crypto.aead.{what}_length",
            f"{what} has the wrong length",
            expected=f"{length} bytes",
            actual=f"{len(value)} bytes",
        )
