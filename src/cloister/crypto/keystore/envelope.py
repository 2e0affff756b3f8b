"""Wrapping with a root key that is in this process: AES-256-GCM (NIST SP 800-38D) under a sub-key of HKDF-SHA256.

Used by the stores that hand the root key out (a file, a KV secret). The identity of such a root key is derived from
it, one way: 64 bits, enough to tell root keys apart, worth nothing to a guesser of 256.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cloister.crypto.aead import GCM_NONCE_BYTES, open_aes256gcm, seal_aes256gcm
from cloister.crypto.keystore.interface import (
    IDENTITY_BYTES,
    ROOT_KEY_BYTES,
    join_wrapped,
    not_authentic,
    split_wrapped,
    unknown_root,
    wrapped_header,
)
from cloister.errors import Refused

_WRAP: Final = b"cloister key store wrap v1"
_IDENTITY: Final = b"cloister key store identity v1"


def identity_of(root: bytes) -> str:
    """Return the identity of a root key, 16 hexadecimal characters."""
    return _derive(root, _IDENTITY, IDENTITY_BYTES).hex()


def wrap_under(root: bytes, purpose: str, key: bytes) -> bytes:
    """Return `key` wrapped under `root`."""
    identity, nonce = identity_of(root), os.urandom(GCM_NONCE_BYTES)
    sealed = seal_aes256gcm(_derive(root, _WRAP), nonce, key, wrapped_header(identity) + purpose.encode())
    return join_wrapped(identity, nonce + sealed)


def unwrap_with(roots: Mapping[str, bytes], place: str, purpose: str, wrapped: bytes) -> bytes:
    """Return the key in `wrapped`, opened by the one of `roots` (by identity) that it names.

    Raises:
        Refused: `crypto.keystore.not_authentic`, `crypto.keystore.unknown_root`.
    """
    identity, body = split_wrapped(wrapped)
    root = roots.get(identity)
    if root is None:
        raise unknown_root(identity, place, tuple(roots))
    nonce, sealed = body[:GCM_NONCE_BYTES], body[GCM_NONCE_BYTES:]
    if len(nonce) != GCM_NONCE_BYTES:
        raise not_authentic()
    try:
        return open_aes256gcm(_derive(root, _WRAP), nonce, sealed, wrapped_header(identity) + purpose.encode())
    except Refused as err:
        raise not_authentic() from err


def require_root(roots: Mapping[str, bytes], place: str, identity: str) -> bytes:
    """Return the root key `identity`.

    Raises:
        Refused: it is not there (`crypto.keystore.unknown_root`).
    """
    root = roots.get(identity)
    if root is None:
        raise unknown_root(identity, place, tuple(roots))
    return root


def _derive(root: bytes, info: bytes, length: int = ROOT_KEY_BYTES) -> bytes:
    return HKDF(SHA256(), length, None, info).derive(root)
