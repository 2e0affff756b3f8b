"""The rows of the key ring in the database, and the code over all of them that makes them one thing.

The MAC (HMAC-SHA256 under a sub-key of the active data key) covers generation, root key and every data key row: a
row that was removed, added, altered or taken from another generation does not pass. What no code can tell is a whole
ring of an earlier time; the generation can, by whoever remembers a later one.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import Connection, delete, insert, select, true, update

from cloister.errors import Refused, Unavailable
from cloister.trust.rowseal import DataKey
from cloister.trust.store.schema import data_keys, key_ring
from cloister.wire.canonicaljson import encode_canonical

ACTIVE: Final = "active"
RETIRED: Final = "retired"
_NAME: Final = "ring"
_MANIFEST: Final = b"cloister key ring manifest v1"
_GENERATION: Final = select(key_ring.c.generation).where(key_ring.c.name == _NAME)
_RING: Final = (
    select(key_ring.c.generation, key_ring.c.root, key_ring.c.mac, data_keys)
    .select_from(key_ring.outerjoin(data_keys, true()))
    .where(key_ring.c.name == _NAME)
    .order_by(data_keys.c.id)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataKeyRow:
    """One data key as it is stored. Times in microseconds since 1970."""

    id: str
    state: str
    wrapped: bytes = field(repr=False)
    created_at: int
    retired_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RingRows:
    """A whole ring as it is stored.

    Attributes:
        generation: grows with each change.
        root: identity of the root key that wraps the data keys.
        mac: over all of it.
        keys: by id.
    """

    generation: int
    root: str
    mac: bytes = field(repr=False)
    keys: tuple[DataKeyRow, ...]

    @property
    def active(self) -> DataKeyRow:
        """The data key that seals new rows.

        Raises:
            Unavailable: not exactly one (`trust.keys.ring`).
        """
        found = [row for row in self.keys if row.state == ACTIVE]
        if len(found) != 1:
            raise altered()
        return found[0]


def read_generation(connection: Connection) -> int:
    """Return the generation of the ring, 0 when there is none."""
    return int(connection.execute(_GENERATION).scalar() or 0)


def read_ring(connection: Connection) -> RingRows | None:
    """Return the ring, by one statement; None when there is none."""
    rows = connection.execute(_RING).all()
    if not rows:
        return None
    keys = tuple(
        DataKeyRow(
            id=row.id, state=row.state, wrapped=row.wrapped, created_at=row.created_at, retired_at=row.retired_at
        )
        for row in rows
        if row.id is not None
    )
    return RingRows(generation=rows[0].generation, root=rows[0].root, mac=rows[0].mac, keys=keys)


def write_ring(connection: Connection, ring: RingRows, *, replaces: int) -> None:
    """Store a ring in place of the one of generation `replaces`, within the caller's transaction.

    Raises:
        Refused: another change came first (`trust.keys.conflict`).
        Unavailable: there are data keys and no ring (`trust.keys.ring`).
    """
    values = {"generation": ring.generation, "root": ring.root, "mac": ring.mac}
    if read_generation(connection) != replaces:
        raise conflict()
    if not replaces and connection.execute(select(data_keys.c.id)).first() is not None:
        raise altered()  # keys without their ring: making another would remove them
    if replaces:
        connection.execute(update(key_ring).where(key_ring.c.name == _NAME).values(**values))
    else:
        connection.execute(insert(key_ring).values(name=_NAME, **values))
    connection.execute(delete(data_keys))
    connection.execute(
        insert(data_keys),
        [
            {name: getattr(row, name) for name in ("id", "state", "wrapped", "created_at", "retired_at")}
            for row in ring.keys
        ],
    )


def sign_ring(generation: int, root: str, keys: Sequence[DataKeyRow], active: DataKey) -> RingRows:
    """Return the ring with its MAC."""
    ordered = tuple(sorted(keys, key=lambda row: row.id))
    return RingRows(generation=generation, root=root, mac=_mac(generation, root, ordered, active), keys=ordered)


def verify_ring(ring: RingRows, active: DataKey) -> None:
    """Return if the MAC over the ring holds.

    Raises:
        Unavailable: `trust.keys.ring`.
    """
    expected = _mac(ring.generation, ring.root, ring.keys, active)
    if active.identity != ring.active.id or not hmac.compare_digest(expected, ring.mac):
        raise altered()


def conflict() -> Refused:
    """Return the refusal of a change that came second."""
    return Refused("trust.keys.conflict", "the keys were changed by another process just now", hint="try again")


def altered() -> Unavailable:
    """Return the error of a ring that is not as it was written."""
    return Unavailable(
        "trust.keys.ring",
        "the table of data keys is not as it was written",
        hint="somebody edited or partly restored the database: restore all of it from one backup",
    )


def _mac(generation: int, root: str, keys: Sequence[DataKeyRow], active: DataKey) -> bytes:
    rows = [
        [row.id, row.state, row.created_at, row.retired_at, hashlib.sha256(row.wrapped).hexdigest()] for row in keys
    ]
    text = encode_canonical({"generation": generation, "root": root, "keys": rows})
    return hmac.digest(active.derive(_MANIFEST), text, "sha256")
