"""From URI to key store: a plain table of schemes; a back end is imported when its scheme is used."""

from __future__ import annotations

from importlib import import_module
from typing import Final, cast

from cloister.crypto.keystore.interface import KeyStore
from cloister.errors import FormatRefused

URI_CHARS: Final = 1024
BACKENDS: Final = {
    "file": "cloister.crypto.keystore.file",
    "pkcs11": "cloister.crypto.keystore.pkcs11",
    "vault": "cloister.crypto.keystore.vault",
}


def open_keystore(uri: str, *, seconds: float = 3.0) -> KeyStore:
    """Open the key store that `uri` names. Nothing is asked of it yet: a store that is away now may come back.

    Args:
        uri: see docs/reference/key-stores.md.
        seconds: how long any one request to the store may take.

    Raises:
        FormatRefused: not the address of a key store (`crypto.keystore.uri`).
        Unavailable: the library that the back end needs is not installed (`crypto.keystore.library`).
    """
    scheme, _, _ = uri.partition(":")
    module = BACKENDS.get(scheme)
    if module is None or len(uri) > URI_CHARS:
        raise FormatRefused(
            "crypto.keystore.uri",
            "not the address of a key store",
            expected=", ".join(f"{name}:.." for name in BACKENDS),
            actual=scheme[:20],
        )
    return cast(KeyStore, import_module(module).from_uri(uri, seconds=seconds))
