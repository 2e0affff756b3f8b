"""The key ring: envelope encryption. A root key in a key store wraps data keys, data keys seal rows.

The ring of the database is taken into memory when first needed, looked at again every second (so that a change by
another replica is seen), and proved again by the key store every few minutes: a service whose key store is gone for
longer refuses, and goes on by itself once it is back. A row that names a data key that is not in memory makes the
ring look at once.

Every change is one transaction that names the generation it replaces. A crash leaves the old ring or the new one; the
key store holds the root keys of both until after.

Of the ring of the database nothing is believed but what the root key opens and the ring's MAC holds together. A ring
that is older than one seen before, by this process or by this state directory, is refused.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, TypeVar

from sqlalchemy import Connection

from cloister.crypto.aead import AES256_KEY_BYTES
from cloister.crypto.keystore import KeyStore, UnsealProgress
from cloister.errors import CloisterError, Refused, Unavailable
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.trust.events import NO_EVENTS, Events, LogEvent
from cloister.trust.keys.ringrows import (
    ACTIVE,
    RETIRED,
    DataKeyRow,
    RingRows,
    altered,
    conflict,
    read_generation,
    read_ring,
    sign_ring,
    verify_ring,
    write_ring,
)
from cloister.trust.rowseal import KEY_ID_BYTES, LEGACY, DataKey, data_key_of, unknown_data_key
from cloister.trust.store.database import Store
from cloister.trust.store.times import from_micros, to_micros
from cloister.wholefile import OWNER_ONLY, write_whole

_Result = TypeVar("_Result")

PROVED_SECONDS: Final = 300.0  # so long the service goes on without its key store
RETIRED_KEPT: Final = timedelta(days=1)  # longer than any write can have been under way
_LOOK_SECONDS: Final = 1.0
_PROBE_SECONDS: Final = 5.0
_ATTEMPTS: Final = 5
_UNKNOWN_ROOT: Final = "crypto.keystore.unknown_root"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataKeyEntry:
    """One line of a listing."""

    id: str
    state: str
    created_at: datetime
    retired_at: datetime | None


@dataclass(frozen=True, slots=True, repr=False)
class OpenRing:
    """The ring in memory; does no input or output. A `RowSealer`."""

    rows: RingRows
    keys: dict[str, DataKey]

    @property
    def active(self) -> DataKey:
        """Seals new rows."""
        return self.keys[self.rows.active.id]

    def seal(self, purpose: str, row: str, plaintext: bytes) -> bytes:
        """See `RowSealer`."""
        return self.active.seal(purpose, row, plaintext)

    def open(self, purpose: str, row: str, sealed: bytes) -> bytes:
        """See `RowSealer`."""
        named = data_key_of(sealed)
        key = self.keys.get(named)
        if key is not None:
            return key.open(purpose, row, sealed)
        legacy = self.keys.get(LEGACY)
        if legacy is not None:  # whose rows begin with random bytes
            try:
                return legacy.open(purpose, row, sealed)
            except Unavailable:
                pass
        raise unknown_data_key(purpose, named)

    def derived(self, purpose: str, named: str = "") -> tuple[str, bytes]:
        """See `RowSealer`."""
        key = self.keys.get(named) if named else self.active
        if key is None:
            raise unknown_data_key(purpose, named)
        return key.derived(purpose)


class KeyRing:
    """Data keys of one database. Safe to use from several threads; a `RowSealer`.

    Args:
        store: the database.
        keystore: holds the root key.
        clock: aware UTC now.
        seen: file that remembers the highest generation, or None.
        events: told of every change, in its transaction.
        proved_seconds: how long the service goes on without its key store.
        monotonic: seconds of a clock that does not jump.
    """

    def __init__(
        self,
        store: Store,
        keystore: KeyStore,
        *,
        clock: Callable[[], datetime],
        seen: Path | None = None,
        events: Events = NO_EVENTS,
        proved_seconds: float = PROVED_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._keystore = keystore
        self._next: KeyStore | None = None
        self._clock = clock
        self._seen = seen
        self._events = events
        self._proved_seconds = proved_seconds
        self._monotonic = monotonic
        self._loading = threading.RLock()
        self._open: OpenRing | None = None
        self._looked = self._proved = -1e9
        self._failure: CloisterError | None = None
        self._failed = -1e9
        self._unwrapping = 0
        self._highest = _remembered(seen)

    def __repr__(self) -> str:
        return "KeyRing()"

    @property
    def place(self) -> str:
        """Where the root key is."""
        return self._keystore.place

    @property
    def sealed(self) -> bool:
        """Whether a person has to open the key store first."""
        return self._open is None and self._keystore.sealed

    def unseal(self, secret: str) -> UnsealProgress:
        """Give a share or the passphrase.

        Raises:
            Refused: `crypto.keystore.share`, `crypto.keystore.unseal`.
            Unavailable: the key store does not answer.
        """
        return self._keystore.unseal(secret)

    def progress(self) -> UnsealProgress:
        """Return how far a sealed key store is."""
        return self._keystore.progress()

    def require_open(self) -> None:
        """Return if rows can be sealed and opened.

        Raises:
            Unavailable: `trust.keys.sealed`, `crypto.keystore.*`, or the store failed.
        """
        self.current()

    def seal(self, purpose: str, row: str, plaintext: bytes) -> bytes:
        """See `RowSealer`."""
        return self.current().seal(purpose, row, plaintext)

    def open(self, purpose: str, row: str, sealed: bytes) -> bytes:
        """See `RowSealer`."""
        ring = self.current()
        if data_key_of(sealed) not in ring.keys:
            ring = self._look(older_than=0)
        return ring.open(purpose, row, sealed)

    def derived(self, purpose: str, named: str = "") -> tuple[str, bytes]:
        """See `RowSealer`."""
        ring = self.current()
        if named and named not in ring.keys:
            ring = self._look(older_than=0)
        return ring.derived(purpose, named)

    def current(self) -> OpenRing:
        """Return the ring as it was at most a second ago."""
        ring, now = self._open, self._monotonic()
        if ring is not None and now - self._looked < _LOOK_SECONDS and now - self._proved < self._proved_seconds:
            return ring
        return self._look(older_than=_LOOK_SECONDS)

    def latest(self) -> OpenRing:
        """Return the ring as it is."""
        return self._look(older_than=0)

    def check(self) -> None:
        """Return if the key store answered within the last seconds.

        Raises:
            Unavailable: it does not, or is sealed (`trust.keys.sealed`).
        """
        if self._monotonic() - self._proved >= _PROBE_SECONDS or self._open is None:
            self._look(older_than=_PROBE_SECONDS, prove=True)

    def entries(self) -> tuple[DataKeyEntry, ...]:
        """Return the data keys, oldest first."""
        rows = sorted(self._look(older_than=0).rows.keys, key=lambda row: row.created_at)
        return tuple(
            DataKeyEntry(
                id=row.id,
                state=row.state,
                created_at=from_micros(row.created_at),
                retired_at=None if row.retired_at is None else from_micros(row.retired_at),
            )
            for row in rows
        )

    @property
    def root(self) -> str:
        """Identity of the root key in use."""
        return self._look(older_than=0).rows.root

    def begin(self, legacy: bytes | None = None) -> None:
        """Make the ring if there is none yet.

        Args:
            legacy: the root key that sealed rows directly, before there were data keys.

        Raises:
            Unavailable: `trust.keys.sealed`, the key store or the store failed.
        """
        if self._store.read(read_generation):
            return
        if self._highest:
            raise altered()
        self._require_unsealed()
        there = self._keystore.identities()
        root = there[0] if there else self._keystore.create()
        now = to_micros(self._clock())
        active = _new_key()
        rows = [self._wrapped(root, active, state=ACTIVE, created_at=now, retired_at=None)]
        if legacy is not None:
            old = DataKey(LEGACY, legacy)
            rows.append(self._wrapped(root, old, state=RETIRED, created_at=now, retired_at=now))
        ring = sign_ring(1, root, rows, active)
        try:
            self._store.write(lambda connection: self._write(connection, ring, 0, "begin"))
        except Refused as err:
            if err.code != "trust.keys.conflict":
                raise  # else another replica made it first

    def rotate_root(self) -> str:
        """Make a new root key and wrap every data key with it; return its identity.

        Steps: 1 the ring as it is; 2 the root keys that are there; 3 a new one, durable beside them; 4 every data key
        wrapped with it; 5 in one transaction the new rows in place of exactly those of step 1; 6 the key store
        forgets the root keys of step 2. A crash before 5 leaves the old ring and one root key too many, which the
        next rotation removes; after 5 the new ring.

        Raises:
            Unavailable: sealed, the key store or the store failed.
        """

        def rotate() -> str:
            # 1
            ring = self._look(older_than=0, prove=True)
            # 2
            before = self._keystore.identities()
            # 3
            root = self._keystore.create()
            # 4
            rows = self._wrapped_anew(ring, self._keystore, root)
            # 5
            new = sign_ring(ring.rows.generation + 1, root, rows, ring.active)
            try:
                self._replace(ring, new, "rotate_root")
            except Refused:
                self._keystore.settle(self._look(older_than=0).rows.root, [root])
                raise
            # 6
            self._keystore.settle(root, before)
            return root

        return self._retried(rotate)

    def move_root(self, keystore: KeyStore) -> str:
        """Wrap every data key with a root key of another key store, and use that one from now on; return its identity.

        Raises:
            Unavailable: sealed, a key store or the store failed.
        """
        there = keystore.identities()
        root = there[0] if there else keystore.create()

        def move() -> str:
            ring = self._look(older_than=0, prove=True)
            rows = self._wrapped_anew(ring, keystore, root)
            new = sign_ring(ring.rows.generation + 1, root, rows, ring.active)
            self._store.write(lambda connection: self._write(connection, new, ring.rows.generation, "move_root"))
            return root

        self._next = keystore  # opens what `move` writes, from the instant it is there
        try:
            self._retried(move)
            self._keystore = keystore
        finally:
            self._next = None
        self._look(older_than=0, prove=True)
        return root

    def rotate_data_key(self) -> str:
        """Make a new data key, which seals from now on; return its identity. Older rows open as before.

        Raises:
            Unavailable: sealed, the key store or the store failed.
        """

        def rotate() -> str:
            ring = self._look(older_than=0)
            now, active = to_micros(self._clock()), _new_key()
            old = [
                replace(row, state=RETIRED, retired_at=now) if row.state == ACTIVE else row for row in ring.rows.keys
            ]
            fresh = self._wrapped(ring.rows.root, active, state=ACTIVE, created_at=now, retired_at=None)
            new = sign_ring(ring.rows.generation + 1, ring.rows.root, [*old, fresh], active)
            self._replace(ring, new, "rotate_data_key")
            return active.identity

        return self._retried(rotate)

    def drop_retired(self, in_use: Callable[[Connection], set[str]]) -> tuple[str, ...]:
        """Remove retired data keys that no row names and that no write under way can still use; return them.

        Args:
            in_use: data keys that rows name; asked in the transaction that removes the others.

        Raises:
            Unavailable: sealed, the key store or the store failed.
        """

        def drop() -> tuple[str, ...]:
            ring = self._look(older_than=0)
            latest = to_micros(self._clock() - RETIRED_KEPT)
            old = {row.id for row in ring.rows.keys if row.retired_at is not None and row.retired_at <= latest}

            def work(connection: Connection) -> tuple[str, ...]:
                gone = old - in_use(connection)
                if gone:
                    rows = [row for row in ring.rows.keys if row.id not in gone]
                    new = sign_ring(ring.rows.generation + 1, ring.rows.root, rows, ring.active)
                    self._write(connection, new, ring.rows.generation, "drop_data_keys")
                return tuple(sorted(gone))

            return self._store.write(work) if old else ()

        return self._retried(drop)

    def _replace(self, old: OpenRing, new: RingRows, action: str) -> None:
        self._store.write(lambda connection: self._write(connection, new, old.rows.generation, action))
        self._look(older_than=0)

    def _write(self, connection: Connection, ring: RingRows, replaces: int, action: str) -> None:
        write_ring(connection, ring, replaces=replaces)
        fields = {
            "action": action,
            "generation": str(ring.generation),
            "root": ring.root,
            "data_key": ring.active.id,
            "ring": ring.mac.hex(),
        }
        self._events.append(connection, LogEvent(kind="key", at=self._clock(), tenant=DEFAULT_TENANT, fields=fields))

    def _retried(self, change: Callable[[], _Result]) -> _Result:
        for _ in range(_ATTEMPTS):
            try:
                return change()
            except Refused as err:
                # A root key that is gone is what a rotation that was faster leaves to this one.
                if err.code not in ("trust.keys.conflict", _UNKNOWN_ROOT):
                    raise
        raise conflict()

    def _look(self, *, older_than: float, prove: bool = False) -> OpenRing:
        """Return the ring, read anew unless it was within `older_than` seconds; once, for all threads that wait."""
        with self._loading:
            now = self._monotonic()
            proved = now - self._proved < self._proved_seconds and not prove
            if self._open is not None and proved and now - self._looked < older_than:
                return self._open
            if self._failure is not None and now - self._failed < _LOOK_SECONDS and not self._keystore_opened():
                raise self._failure.with_traceback(None)
            return self._load(prove=not proved)

    def _keystore_opened(self) -> bool:
        return self._failure is not None and self._failure.code == "trust.keys.sealed" and not self._keystore.sealed

    def _load(self, *, prove: bool) -> OpenRing:
        try:
            ring = self._read(prove=prove)
        except CloisterError as err:
            self._failure, self._failed = err, self._monotonic()
            if self._monotonic() - self._proved >= self._proved_seconds:
                self._open = None  # not a key stays
            raise
        self._failure, self._open, self._looked = None, ring, self._monotonic()
        return ring

    def _read(self, *, prove: bool) -> OpenRing:
        """Return the ring of the database; once more when its root key was rotated away between two steps."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._read_once(prove=prove)
            except Unavailable as err:
                read = self._unwrapping
                if err.code != _UNKNOWN_ROOT or self._store.read(read_generation) == read:
                    raise
        return self._read_once(prove=prove)

    def _read_once(self, *, prove: bool) -> OpenRing:
        """Steps: 1 the rows; 2 not older than seen before; 3 what is in memory already, unless the key store has to
        prove itself; 4 what is not, from the key store; 5 the MAC over the whole.
        """
        # 1
        known = self._open
        if known is not None and not prove and self._store.read(read_generation) == known.rows.generation:
            return known
        self._require_unsealed()
        rows = self._store.read(read_ring)
        if rows is None:
            raise altered() if self._highest else _missing()
        self._unwrapping = rows.generation
        # 2
        if rows.generation < self._highest:
            raise _rolled_back(rows.generation, self._highest)
        # 3
        keys = dict(known.keys) if known is not None else {}
        if prove:
            keys.pop(rows.active.id, None)
        # 4
        for row in rows.keys:
            if row.id not in keys:
                keys[row.id] = DataKey(row.id, self._unwrap(row))
                self._proved = self._monotonic()
        # 5
        keys = {row.id: keys[row.id] for row in rows.keys}
        verify_ring(rows, keys[rows.active.id])
        self._remember(rows.generation)
        return OpenRing(rows, keys)

    def _unwrap(self, row: DataKeyRow) -> bytes:
        try:
            return self._keystore.unwrap(_purpose(row.id), row.wrapped)
        except Refused as err:
            if self._next is not None and err.code == _UNKNOWN_ROOT:
                return self._next.unwrap(_purpose(row.id), row.wrapped)
            # Data do not say no here: the keys are not the ones this database needs.
            raise Unavailable(
                err.code, err.message, path=err.path, expected=err.expected, actual=err.actual, hint=err.hint
            ) from err

    def _wrapped(self, root: str, key: DataKey, *, state: str, created_at: int, retired_at: int | None) -> DataKeyRow:
        wrapped = self._keystore.wrap(root, _purpose(key.identity), key.secret())
        return DataKeyRow(id=key.identity, state=state, wrapped=wrapped, created_at=created_at, retired_at=retired_at)

    def _wrapped_anew(self, ring: OpenRing, keystore: KeyStore, root: str) -> list[DataKeyRow]:
        return [
            replace(row, wrapped=keystore.wrap(root, _purpose(row.id), ring.keys[row.id].secret()))
            for row in ring.rows.keys
        ]

    def _require_unsealed(self) -> None:
        if self._keystore.sealed:
            progress = self._keystore.progress()
            raise Unavailable(
                "trust.keys.sealed",
                "the service is sealed: no key is in it",
                expected=f"{progress.needed} shares, or the passphrase",
                actual=f"{progress.given} given",
                hint="whoever holds a share gives it with `cloister key unseal`",
            )

    def _remember(self, generation: int) -> None:
        if generation <= self._highest:
            return
        self._highest = generation
        if self._seen is not None:
            try:
                write_whole(self._seen, b"%d\n" % generation, mode=OWNER_ONLY)
            except OSError as err:
                raise Unavailable(
                    "trust.state.io",
                    f"cannot remember the generation of the keys: {err.strerror}",
                    path=str(self._seen),
                ) from err


def _new_key() -> DataKey:
    return DataKey(os.urandom(KEY_ID_BYTES).hex(), os.urandom(AES256_KEY_BYTES))


def _purpose(identity: str) -> str:
    return f"cloister data key {identity}"


def _missing() -> Unavailable:
    return Unavailable("trust.keys.ring", "there are no data keys yet", hint="start the service on this database once")


def _rolled_back(found: int, seen: int) -> Unavailable:
    return Unavailable(
        "trust.keys.rolled_back",
        "the table of data keys is older than one seen before",
        expected=f"generation {seen} or later",
        actual=str(found),
        hint="if you restored a backup on purpose, delete keys.seen in the state directory and start again",
    )


def _remembered(seen: Path | None) -> int:
    if seen is None or not seen.exists():
        return 0
    try:
        return int(seen.read_text(encoding="ascii"))
    except (OSError, ValueError) as err:
        raise Unavailable("trust.state.io", "cannot read the generation of the keys", path=str(seen)) from err
