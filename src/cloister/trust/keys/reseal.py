"""Sealing old rows anew under the active data key, a few at a time, beside everything else that is written.

Each step is one transaction: it opens rows that another data key sealed and replaces each by itself under the active
one. Between steps every row opens, because both data keys are there. A step that is cut short changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, func, select, update

from cloister.trust.keys.ring import KeyRing, OpenRing
from cloister.trust.keys.ringrows import read_generation
from cloister.trust.keys.signing import SIGNING_KEY_ROWS
from cloister.trust.rowseal import HEADER_BYTES, SealedColumn, data_key_of
from cloister.trust.store.database import Store
from cloister.trust.store.evidence import EVIDENCE_ROWS
from cloister.trust.store.identitykeys import IDENTITY_KEY_ROWS
from cloister.trust.store.resources import RESOURCE_ROWS

SEALED_COLUMNS: Final[Sequence[SealedColumn]] = (
    RESOURCE_ROWS,
    SIGNING_KEY_ROWS,
    IDENTITY_KEY_ROWS,
    EVIDENCE_ROWS,
)
STEP_ROWS: Final = 8  # a resource may have 1 MiB, and everybody's writes wait for a step


def reseal_step(store: Store, ring: KeyRing, *, rows: int = STEP_ROWS) -> int:
    """Seal at most `rows` rows anew; return how many were, 0 when none is left.

    Raises:
        Unavailable: the ring is not open, a row does not open, or the store failed.
    """
    while True:
        opened = ring.latest()
        done = store.write(partial(_step, ring=opened, rows=rows))
        if done is not None:
            return done


def data_keys_in_use(connection: Connection) -> set[str]:
    """Return the data keys that rows name, `LEGACY` for rows that name none."""
    found: set[str] = set()
    for column in SEALED_COLUMNS:
        start = func.substr(column.table.c[column.column], 1, HEADER_BYTES)
        statement = select(start).where(column.table.c[column.column].is_not(None)).distinct()
        found |= {data_key_of(bytes(value) + b"\0") for value in connection.execute(statement).scalars()}
    return found


def _step(connection: Connection, ring: OpenRing, rows: int) -> int | None:
    """Return how many rows were sealed anew; None when the ring changed meanwhile and rows may need its new key."""
    if read_generation(connection) != ring.rows.generation:
        return None
    left = rows
    for column in SEALED_COLUMNS:
        sealed = column.table.c[column.column]
        old = and_(sealed.is_not(None), func.substr(sealed, 1, HEADER_BYTES) != ring.active.header)
        found = connection.execute(select(column.table).where(old).limit(left)).all() if left else []
        for row in found:
            _seal_anew(connection, ring, column, row)
        left -= len(found)
    return rows - left


def _seal_anew(
    connection: Connection,
    ring: OpenRing,
    column: SealedColumn,
    row: Row[Any],  # Any: each table has its own rows
) -> None:
    name, old = column.row_of(row), getattr(row, column.column)
    sealed = ring.seal(column.purpose, name, ring.open(column.purpose, name, old))
    same = and_(*(key == getattr(row, key.name) for key in column.table.primary_key))
    connection.execute(update(column.table).where(same).values({column.column: sealed}))
