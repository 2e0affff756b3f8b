"""What an owner does with keys: list, rotate, seal old rows anew. Needs no running service; running ones follow.

The root key's rotation re-wraps data keys and touches no row. The data key's rotation seals new rows under the new key
and then, step by step, the old ones; `list_keys` shows what is left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cloister.trust.keys.reseal import data_keys_in_use, reseal_step
from cloister.trust.keys.service import ServiceKeys
from cloister.trust.keys.signing import TOKEN_LEAD
from cloister.trust.store.database import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyEntry:
    """One line of the list of keys.

    Attributes:
        purpose: `root`, `data`, or what a signing key is for: `token`, `ca`, `log`, `admin`.
        id: identity or key id.
        state: `active`, `next` or `retired`.
        created_at: aware UTC; None for a root key.
        not_before: signs from then on; None unless it signs.
        not_after: accepted until then; None while it is not retired.
        place: of a root key: its key store.
    """

    purpose: str
    id: str
    state: str
    created_at: datetime | None = None
    not_before: datetime | None = None
    not_after: datetime | None = None
    place: str = ""


class KeyAdministration:
    """Lists and rotates the keys of one service.

    Every method raises `Unavailable` when store or key store cannot be used.
    """

    def __init__(self, store: Store, keys: ServiceKeys) -> None:
        self._store = store
        self._keys = keys

    def list_keys(self) -> tuple[KeyEntry, ...]:
        """Return all keys: root, data keys, signing keys."""
        ring = self._keys.ring
        root = KeyEntry(purpose="root", id=ring.root, state="active", place=self._keys.place)
        data = [
            KeyEntry(purpose="data", id=key.id, state=key.state, created_at=key.created_at, not_after=key.retired_at)
            for key in ring.entries()
        ]
        signing = [
            KeyEntry(
                purpose=key.purpose,
                id=key.kid,
                state=key.state,
                created_at=key.created_at,
                not_before=key.not_before,
                not_after=key.not_after,
            )
            for key in self._keys.signing.entries()
        ]
        return (root, *data, *signing)

    def rotate_root(self) -> str:
        """Make a new root key, wrap every data key with it, forget the old one; return its identity.

        Replicas whose root key file is a copy of its own need the new file before they start again.
        """
        return self._keys.ring.rotate_root()

    def move_root(self, key_store: str) -> str:
        """Go on with a root key of another key store, made there when there is none; return its identity.

        The old root key is not needed any more and is removed where this service made it: a `root.key` of the state
        directory. Running services are started anew with the new address; until then they go on without a change.

        Args:
            key_store: address of the other key store.

        Raises:
            Refused: not an address of a key store.
        """
        return self._keys.move_root(key_store)

    def prepare_seal(self, names: tuple[str, ...]) -> Path:
        """Return the root key file that can be sealed, after keeping a certificate for a start that is sealed.

        Args:
            names: names and addresses of the service, for that certificate.

        Raises:
            Refused: the root key is in another key store, which has its own seal (`crypto.keystore.uri`).
        """
        return self._keys.prepare_seal(names)

    def rotate_data_key(self, *, progress: Callable[[int], None] = lambda rows: None) -> str:
        """Make a new data key and seal every row under it; return its identity.

        Cut short, it is finished by `reseal`; until then old rows open with their old key.

        Args:
            progress: told the rows done so far.
        """
        identity = self._keys.ring.rotate_data_key()
        self.reseal(progress=progress)
        return identity

    def reseal(self, *, progress: Callable[[int], None] = lambda rows: None) -> int:
        """Seal rows of retired data keys anew, and remove those keys that nothing needs any more; return the rows."""
        done = 0
        while step := reseal_step(self._store, self._keys.ring):
            done += step
            progress(done)
        self._keys.ring.drop_retired(data_keys_in_use)
        return done

    def rotate_token_key(self, *, revoke: bool = False) -> str:
        """Publish the next token-signing key, which signs in a few minutes; return its key id.

        Args:
            revoke: for a key that leaked: change at once, and let no token of an older key count.

        Raises:
            Refused: the last rotation has not finished (`trust.keys.pending`).
        """
        return self._keys.signing.rotate_token_key(lead=TOKEN_LEAD, revoke=revoke).kid
