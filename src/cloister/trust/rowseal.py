"""How a secret in the database is sealed: AES-256-GCM under a data key, bound to its purpose and its row.

NIST SP 800-38D; sub-keys per purpose by HKDF-SHA256 (RFC 5869), so that a ciphertext of one table never opens as one
of another. The associated data names the row, so that rows cannot be swapped. Nonces are 96 random bits: safe for
2**32 seals per data key and purpose.

A sealed row begins with 4 bytes magic and the 8 bytes identity of its data key. Rows of before there were data keys
have neither: they are under the data key `LEGACY`, which is the root key of that time.

The stores know this module only; who holds data keys is `cloister.trust.keys`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import Row, Table

from cloister.crypto.aead import AES256_KEY_BYTES, GCM_NONCE_BYTES, open_aes256gcm, seal_aes256gcm
from cloister.errors import Refused, Unavailable

ROW_MAGIC: Final = b"CLR\x01"
KEY_ID_BYTES: Final = 8
HEADER_BYTES: Final = len(ROW_MAGIC) + KEY_ID_BYTES
LEGACY: Final = "00" * KEY_ID_BYTES


class RowSealer(Protocol):
    """Seals and opens rows."""

    def require_open(self) -> None:
        """Return if rows can be sealed and opened.

        Raises:
            Unavailable: the keys are not had now: `trust.keys.sealed`, `crypto.keystore.*`.
        """
        ...

    def seal(self, purpose: str, row: str, plaintext: bytes) -> bytes:
        """Return the sealed row.

        Raises:
            Unavailable: the keys are not had now: `trust.keys.sealed`, `crypto.keystore.*`.
        """
        ...

    def open(self, purpose: str, row: str, sealed: bytes) -> bytes:
        """Return the plaintext.

        Raises:
            Unavailable: altered, moved to another row (`trust.store.sealed_row`), under a data key that is not there
                (`trust.keys.unknown_data_key`), or the keys are not had now.
        """
        ...

    def derived(self, purpose: str, named: str = "") -> tuple[str, bytes]:
        """Return the identity of a data key and its sub-key of 32 bytes for `purpose`.

        Args:
            purpose: what for, as told apart from what rows are sealed for.
            named: identity of the data key; empty for the one that seals now.

        Raises:
            Unavailable: no such data key (`trust.keys.unknown_data_key`), or the keys are not had now.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedColumn:
    """Where sealed rows are, so that they can be sealed anew under another data key.

    Attributes:
        purpose: what they are sealed for.
        table: the table; has a primary key.
        column: of the sealed bytes; may be null.
        row_of: the name a row is bound to.
    """

    purpose: str
    table: Table
    column: str
    row_of: Callable[[Row[Any]], str]  # Any: each table has its own rows


class DataKey:
    """One data key in memory."""

    __slots__ = ("_keys", "_secret", "header", "identity")

    def __init__(self, identity: str, secret: bytes) -> None:
        if len(secret) != AES256_KEY_BYTES:
            raise RuntimeError("a data key has 32 bytes")
        self.identity = identity
        self._secret = secret
        self.header = ROW_MAGIC + bytes.fromhex(identity)  # what the rows that this key seals begin with
        self._keys: dict[bytes, bytes] = {}

    def __repr__(self) -> str:
        return f"DataKey({self.identity})"

    def seal(self, purpose: str, row: str, plaintext: bytes) -> bytes:
        """Return header, nonce, ciphertext and tag in one."""
        nonce = os.urandom(GCM_NONCE_BYTES)
        key = self.derive(b"cloister row " + purpose.encode() + b" v2")
        return self.header + nonce + seal_aes256gcm(key, nonce, plaintext, self.header + row.encode())

    def open(self, purpose: str, row: str, sealed: bytes) -> bytes:
        """Return the plaintext of a row that names this key, or of one without a header.

        Raises:
            Unavailable: `trust.store.sealed_row`.
        """
        named = sealed.startswith(self.header)
        info, header = (b"cloister row %s v2", self.header) if named else (b"cloister trust %s v1", b"")
        body = sealed[len(header) :]
        try:
            return open_aes256gcm(
                self.derive(info % purpose.encode()),
                body[:GCM_NONCE_BYTES],
                body[GCM_NONCE_BYTES:],
                header + row.encode(),
            )
        except Refused as err:
            raise Unavailable(
                "trust.store.sealed_row",
                f"a stored {purpose} does not open under its data key",
                hint="the database and the key store belong together: restore both from the same backup",
            ) from err

    def derived(self, purpose: str, named: str = "") -> tuple[str, bytes]:
        """See `RowSealer`."""
        if named not in ("", self.identity):
            raise unknown_data_key(purpose, named)
        return self.identity, self.derive(b"cloister derived " + purpose.encode() + b" v1")

    def derive(self, info: bytes) -> bytes:
        """Return a sub-key of 32 bytes."""
        if info not in self._keys:
            self._keys[info] = HKDF(SHA256(), AES256_KEY_BYTES, None, info).derive(self._secret)
        return self._keys[info]

    def secret(self) -> bytes:
        """Return the key itself, to be wrapped."""
        return self._secret


def data_key_of(sealed: bytes) -> str:
    """Return the identity of the data key that a sealed row names, `LEGACY` when it names none."""
    if len(sealed) > HEADER_BYTES and sealed.startswith(ROW_MAGIC):
        return sealed[len(ROW_MAGIC) : HEADER_BYTES].hex()
    return LEGACY


def unknown_data_key(purpose: str, named: str) -> Unavailable:
    """Return the failure of something under a data key that is not there."""
    return Unavailable(
        "trust.keys.unknown_data_key",
        f"a stored {purpose} is sealed under a data key that is not there",
        expected=named,
        hint="rows and data keys are of different times: restore the whole database from one backup",
    )
