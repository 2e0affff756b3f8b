"""Key stores: where the root key of the trust service is kept, one interface, one file per place.

    file:///path/root.key                         a private file; optionally sealed by a passphrase or k-of-n shares
    pkcs11:token=T;object=O?module-path=..        a hardware security module (RFC 7512); the key never leaves it
    vault://host[:port]/mount/path?token-file=..  KV version 2 of HashiCorp Vault or OpenBao

A root key wraps data keys and nothing else. `open_keystore` imports a back end when it is named.
"""

from __future__ import annotations

from cloister.crypto.keystore.interface import KeyStore, UnsealProgress
from cloister.crypto.keystore.registry import open_keystore

__all__ = ["KeyStore", "UnsealProgress", "open_keystore"]
