"""Who may sign reference values, which versions of their sets were accepted, and what became of each entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, delete, func, select

from cloister.errors import Refused
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.trust.store.database import Store
from cloister.trust.store.dialects import upsert
from cloister.trust.store.numbering import OF_TENANT, insert_numbered
from cloister.trust.store.schema import publishers, reference_history, reference_sets
from cloister.trust.store.times import from_micros, to_micros

PUBLISHERS_KEPT: Final = 256
DELETED: Final = "deleted"
_INSERT: Final = insert_numbered(reference_history)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPublisher:
    """A key whose signature on reference values is accepted.

    Attributes:
        key_id: RFC 7638 thumbprint.
        name: of whoever holds it.
        pem: public key.
        created_at: aware UTC.
    """

    key_id: str
    name: str
    pem: bytes
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceChange:
    """One change of one entry.

    Attributes:
        id: of the entry.
        at: aware UTC.
        change: `added`, `replaced` or `deleted`.
        name: of whoever called.
        publisher: id of the key whose signature was accepted, empty for unsigned values.
        reference_set: id of the signed set, empty for unsigned values.
        set_version: its version, else 0.
        entry: JSON of the entry.
        sequence: position, 0 before it is stored.
    """

    id: str
    at: datetime
    change: str
    name: str
    publisher: str = ""
    reference_set: str = ""
    set_version: int = 0
    entry: bytes = b""
    sequence: int = 0


class PublisherStore:
    """Publishers, accepted sets and the history of reference values of one tenant."""

    def __init__(self, store: Store, *, tenant: str = DEFAULT_TENANT) -> None:
        self._store = store
        self._tenant = tenant

    def put(self, publisher: StoredPublisher) -> None:
        """Register a publisher; the same key again changes its name.

        Raises:
            Refused: there are too many (`trust.refvalues.publishers`).
            Unavailable: the store failed.
        """

        def work(connection: Connection) -> None:
            others = select(func.count()).where(
                publishers.c.tenant == self._tenant, publishers.c.key_id != publisher.key_id
            )
            if connection.execute(others).scalar_one() >= PUBLISHERS_KEPT:
                raise Refused(
                    "trust.refvalues.publishers", "too many publishers", expected=f"at most {PUBLISHERS_KEPT}"
                )
            upsert(
                connection,
                publishers,
                {"tenant": self._tenant, "key_id": publisher.key_id},
                {"name": publisher.name, "pem": publisher.pem},
                created_at=to_micros(publisher.created_at),
            )

        self._store.write(work)

    def list(self) -> tuple[StoredPublisher, ...]:
        """Return all publishers by key id."""
        statement = select(publishers).where(publishers.c.tenant == self._tenant).order_by(publishers.c.key_id)
        rows = self._store.read(lambda connection: connection.execute(statement).all())
        return tuple(
            StoredPublisher(key_id=row.key_id, name=row.name, pem=row.pem, created_at=from_micros(row.created_at))
            for row in rows
        )

    def delete(self, key_id: str) -> None:
        """Accept nothing more from a publisher; what it signed before stays until it is deleted.

        Raises:
            Refused: there is none (`trust.refvalues.publisher_missing`).
            Unavailable: the store failed.
        """
        statement = delete(publishers).where(publishers.c.tenant == self._tenant, publishers.c.key_id == key_id)

        def work(connection: Connection) -> None:
            if connection.execute(statement).rowcount != 1:
                raise Refused("trust.refvalues.publisher_missing", "no such publisher", actual=key_id[:60])

        self._store.write(work)

    def seen(self) -> dict[str, tuple[int, str]]:
        """Return the newest accepted version and digest of each signed set."""
        statement = select(reference_sets).where(reference_sets.c.tenant == self._tenant)
        rows = self._store.read(lambda connection: connection.execute(statement).all())
        return {row.id: (row.version, row.digest) for row in rows}

    def remember(self, identity: str, version: int, digest: str) -> None:
        """Keep the newest accepted version of a signed set.

        Raises:
            Unavailable: the store failed.
        """
        key, row = {"tenant": self._tenant, "id": identity}, {"version": version, "digest": digest}
        self._store.write(lambda connection: upsert(connection, reference_sets, key, row))

    def note(self, changes: Sequence[ReferenceChange]) -> None:
        """Add to the history.

        Raises:
            Unavailable: the store failed.
        """

        def work(connection: Connection) -> None:
            for change in changes:
                values = {
                    "tenant": self._tenant,
                    OF_TENANT: self._tenant,
                    "id": change.id,
                    "at": to_micros(change.at),
                    "change": change.change,
                    "name": change.name,
                    "publisher": change.publisher,
                    "reference_set": change.reference_set,
                    "set_version": change.set_version,
                    "entry": change.entry,
                }
                _INSERT.row(connection, values)

        self._store.write(work)

    def history(self, *, identity: str = "", limit: int) -> tuple[ReferenceChange, ...]:
        """Return changes, the newest first, of one entry if it is named."""
        columns = reference_history.c
        statement = select(reference_history).where(columns.tenant == self._tenant)
        if identity:
            statement = statement.where(columns.id == identity)
        statement = statement.order_by(columns.sequence.desc()).limit(limit)
        return tuple(map(_change, self._store.read(lambda connection: connection.execute(statement).all())))

    def newest(self) -> dict[str, ReferenceChange]:
        """Return the newest change of each entry: where what is in force came from."""
        columns = reference_history.c
        last = select(func.max(columns.sequence)).where(columns.tenant == self._tenant).group_by(columns.id)
        statement = select(reference_history).where(columns.tenant == self._tenant, columns.sequence.in_(last))
        rows = self._store.read(lambda connection: connection.execute(statement).all())
        return {row.id: _change(row) for row in rows}


def _change(row: Row[Any]) -> ReferenceChange:  # Any: the table's row type
    return ReferenceChange(
        id=row.id,
        at=from_micros(row.at),
        change=row.change,
        name=row.name,
        publisher=row.publisher,
        reference_set=row.reference_set,
        set_version=row.set_version,
        entry=row.entry,
        sequence=row.sequence,
    )
