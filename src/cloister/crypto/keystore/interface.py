"""What every key store does, and the one form of a wrapped key.

A store holds one root key, and during a rotation two. A wrapped key names the root key that opens it, so that a reader
needs no moment at which all wrapped keys change at once: `create` makes the next root key beside the old one, the
owner of the wrapped keys wraps them anew, `settle` says which root key is in use from now on and which may go.

Wrapped key: 4 bytes magic, 8 bytes identity of the root key, then what the back end wrote. The purpose (what the key
is for, in words) is authenticated with it: a wrapped key does not open as another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from cloister.errors import Refused, Unavailable

ROOT_KEY_BYTES: Final = 32
IDENTITY_BYTES: Final = 8
WRAPPED_BYTES: Final = 1024  # a 32-byte key with any back end's overhead stays under 200
MAGIC: Final = b"CKW\x01"
_HEADER_BYTES: Final = len(MAGIC) + IDENTITY_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsealProgress:
    """How far a sealed store is.

    Attributes:
        sealed: whether it still is.
        given: shares given so far; 0 once open.
        needed: shares that open it; 1 for a passphrase.
    """

    sealed: bool
    given: int
    needed: int


class KeyStore(Protocol):
    """Holds root keys and wraps keys under them. Safe to use from several threads.

    Every method that needs the place raises `Unavailable`: `crypto.keystore.sealed` while sealed,
    `crypto.keystore.unreachable` when it does not answer in time, `crypto.keystore.denied` when it refuses us.
    A store recovers by itself: the next call tries anew.
    """

    @property
    def place(self) -> str:
        """Where the root key is, without any secret."""
        ...

    @property
    def sealed(self) -> bool:
        """Whether a person has to give shares or a passphrase first; until then no key is in this process."""
        ...

    @property
    def sealable(self) -> bool:
        """Whether the next process that opens it finds it sealed."""
        ...

    def progress(self) -> UnsealProgress:
        """Return how far a sealed store is."""
        ...

    def unseal(self, secret: str) -> UnsealProgress:
        """Give one share, or the passphrase.

        Raises:
            Refused: not a share of this store (`crypto.keystore.share`), or what was given opens nothing
                (`crypto.keystore.unseal`): all shares given so far are forgotten.
        """
        ...

    def identities(self) -> tuple[str, ...]:
        """Return the root keys that are there, 16 hexadecimal characters each; none when none was made yet."""
        ...

    def create(self) -> str:
        """Make another root key, durably, beside those that are there; return its identity."""
        ...

    def wrap(self, identity: str, purpose: str, key: bytes) -> bytes:
        """Return `key`, 32 bytes, wrapped under the root key `identity`."""
        ...

    def unwrap(self, purpose: str, wrapped: bytes) -> bytes:
        """Return the key.

        Raises:
            Refused: altered, for another purpose (`crypto.keystore.not_authentic`), or wrapped under a root key that
                is not here (`crypto.keystore.unknown_root`).
        """
        ...

    def settle(self, identity: str, forget: Sequence[str]) -> None:
        """Let `identity` be the root key in use, and forget those of `forget` that are still there.

        Only what is named goes: of two rotations at once, neither removes what the other one just made.
        """
        ...

    def check(self) -> None:
        """Return if the store would answer now."""
        ...

    def close(self) -> None:
        """Let go of sessions and of keys in memory."""
        ...


def join_wrapped(identity: str, body: bytes) -> bytes:
    """Return the wrapped form of what a back end wrote."""
    return wrapped_header(identity) + body


def wrapped_header(identity: str) -> bytes:
    """Return what stands before a back end's own bytes, and is authenticated with them."""
    return MAGIC + bytes.fromhex(identity)


def split_wrapped(wrapped: bytes) -> tuple[str, bytes]:
    """Return the identity of the root key and the back end's bytes.

    Raises:
        Refused: not a wrapped key (`crypto.keystore.not_authentic`).
    """
    if not wrapped.startswith(MAGIC) or not _HEADER_BYTES < len(wrapped) <= WRAPPED_BYTES:
        raise not_authentic()
    return wrapped[len(MAGIC) : _HEADER_BYTES].hex(), wrapped[_HEADER_BYTES:]


def not_authentic() -> Refused:
    """Return the refusal of a wrapped key that does not open."""
    return Refused(
        "crypto.keystore.not_authentic",
        "a wrapped key does not open under its root key",
        hint="it was altered, or stands in another key's place: restore the database from a backup",
    )


def unknown_root(identity: str, place: str, known: tuple[str, ...]) -> Refused:
    """Return the refusal of a key wrapped under a root key that is not in the store."""
    return Refused(
        "crypto.keystore.unknown_root",
        "the key store does not hold the root key that wrapped this",
        path=place,
        expected=identity,
        actual=", ".join(known) or "no root key at all",
        hint="the database and its root key belong together: name the right key store, or restore both",
    )


def sealed_error(place: str, progress: UnsealProgress) -> Unavailable:
    """Return the error of a store that is sealed."""
    return Unavailable(
        "crypto.keystore.sealed",
        "the key store is sealed",
        path=place,
        expected=f"{progress.needed} shares or passphrases",
        actual=str(progress.given),
        hint="give them with `cloister key unseal`",
    )


def unreachable(place: str, reason: str) -> Unavailable:
    """Return the error of a store that does not answer."""
    return Unavailable(
        "crypto.keystore.unreachable",
        f"the key store does not answer: {reason}",
        path=place,
        hint="the service tries again by itself once the key store is back",
    )


def denied(place: str, reason: str) -> Unavailable:
    """Return the error of a store that refuses us."""
    return Unavailable(
        "crypto.keystore.denied",
        f"the key store refuses: {reason}",
        path=place,
        hint="renew the PIN or token in its file: it is read anew with the next request",
    )
