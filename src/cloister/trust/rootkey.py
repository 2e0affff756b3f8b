"""The root key of a state directory, and what is sealed under it: resources and session secrets.

AES-256-GCM (NIST SP 800-38D) under sub-keys that HKDF-SHA256 (RFC 5869) derives per purpose, so that a ciphertext of
one table never opens as one of another. The associated data names the row, so that rows cannot be swapped. Nonces are
96 random bits: safe for 2**32 seals per purpose.

The key is a private file beside the database: it protects a copied database or backup, not a stolen state directory.
A later key store keeps it elsewhere behind this same class.
"""

from __future__ import annotations

import os
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cloister.crypto.aead import GCM_NONCE_BYTES, open_aes256gcm, seal_aes256gcm
from cloister.errors import Refused, Unavailable

ROOT_KEY_BYTES: Final = 32


class RootKey:
    """Seals and opens rows."""

    __slots__ = ("_keys", "_root")

    def __init__(self, root: bytes) -> None:
        if len(root) != ROOT_KEY_BYTES:
            raise Refused(
                "trust.state.root_key",
                "root key has the wrong length",
                expected=f"{ROOT_KEY_BYTES} bytes",
                actual=f"{len(root)} bytes",
                hint="restore root.key from its backup",
            )
        self._root = root
        self._keys: dict[str, bytes] = {}

    def __repr__(self) -> str:
        return "RootKey()"

    def seal(self, purpose: str, row: str, plaintext: bytes) -> bytes:
        """Return nonce, ciphertext and tag in one."""
        nonce = os.urandom(GCM_NONCE_BYTES)
        return nonce + seal_aes256gcm(self._key(purpose), nonce, plaintext, row.encode())

    def open(self, purpose: str, row: str, sealed: bytes) -> bytes:
        """Return the plaintext.

        Raises:
            Unavailable: altered, moved to another row, or sealed under another root key (`trust.store.sealed_row`).
        """
        try:
            return open_aes256gcm(self._key(purpose), sealed[:GCM_NONCE_BYTES], sealed[GCM_NONCE_BYTES:], row.encode())
        except Refused as err:
            raise Unavailable(
                "trust.store.sealed_row",
                f"a stored {purpose} does not open under the root key",
                hint="the database and root.key belong together: restore both from the same backup",
            ) from err

    def _key(self, purpose: str) -> bytes:
        if purpose not in self._keys:
            info = f"cloister trust {purpose} v1".encode()
            self._keys[purpose] = HKDF(SHA256(), ROOT_KEY_BYTES, None, info).derive(self._root)
        return self._keys[purpose]
