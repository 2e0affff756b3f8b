"""Reference values at rest: entries by id, as the JSON they were given in."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects.sqlite import insert

from cloister.errors import Refused
from cloister.rats.reference import ReferenceEntry, encode_reference_entry, parse_reference_entry
from cloister.trust.store.database import Store, bump_configuration
from cloister.trust.store.schema import reference_entries
from cloister.trust.store.times import to_micros


class ReferenceStore:
    """Reference value entries of one database."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, entries: Sequence[ReferenceEntry], *, at: datetime) -> None:
        """Store entries, all or none; an entry of the same id is replaced.

        Raises:
            Unavailable: the store failed.
        """

        def work(connection: Connection) -> None:
            for entry in entries:
                row = {"tee": entry.tee, "entry": encode_reference_entry(entry), "created_at": to_micros(at)}
                statement = insert(reference_entries).values(id=entry.id, **row)
                connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=row))
            bump_configuration(connection)

        self._store.write(work)

    def list(self) -> tuple[ReferenceEntry, ...]:
        """Return all entries by id, expired ones too."""
        statement = select(reference_entries.c.entry).order_by(reference_entries.c.id)
        rows = self._store.read(lambda connection: connection.execute(statement).scalars().all())
        return tuple(parse_reference_entry(row) for row in rows)

    def delete(self, identity: str) -> None:
        """Delete an entry.

        Raises:
            Refused: there is none (`trust.reference.missing`).
            Unavailable: the store failed.
        """

        def work(connection: Connection) -> None:
            statement = delete(reference_entries).where(reference_entries.c.id == identity)
            if connection.execute(statement).rowcount != 1:
                raise Refused("trust.reference.missing", "no such reference value entry", actual=identity[:80])
            bump_configuration(connection)

        self._store.write(work)
