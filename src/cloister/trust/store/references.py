"""Reference values at rest: entries by id, as the JSON they were given in."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, delete, select

from cloister.errors import Refused
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.rats.reference import ReferenceEntry, encode_reference_entry, parse_reference_entry
from cloister.trust.store.database import Store, bump_configuration
from cloister.trust.store.dialects import upsert
from cloister.trust.store.schema import reference_entries
from cloister.trust.store.times import to_micros


class ReferenceStore:
    """Reference value entries of one tenant.

    Args:
        store: the database.
        tenant: whose.
    """

    def __init__(self, store: Store, *, tenant: str = DEFAULT_TENANT) -> None:
        self._store = store
        self._tenant = tenant

    def put(self, entries: Sequence[ReferenceEntry], *, at: datetime) -> None:
        """Store entries, all or none; an entry of the same id is replaced.

        Raises:
            Unavailable: the store failed.
        """

        def work(connection: Connection) -> None:
            for entry in entries:
                row = {"tee": entry.tee, "entry": encode_reference_entry(entry), "created_at": to_micros(at)}
                upsert(connection, reference_entries, {"tenant": self._tenant, "id": entry.id}, row)
            bump_configuration(connection)

        self._store.write(work)

    def list(self) -> tuple[ReferenceEntry, ...]:
        """Return all entries by id, expired ones too."""
        entries = reference_entries.c
        statement = select(entries.entry).where(entries.tenant == self._tenant).order_by(entries.id)
        rows = self._store.read(lambda connection: connection.execute(statement).scalars().all())
        return tuple(parse_reference_entry(row) for row in rows)

    def delete(self, identity: str) -> None:
        """Delete an entry.

        Raises:
            Refused: there is none (`trust.reference.missing`).
            Unavailable: the store failed.
        """

        def work(connection: Connection) -> None:
            entries = reference_entries.c
            statement = delete(reference_entries).where(entries.tenant == self._tenant, entries.id == identity)
            if connection.execute(statement).rowcount != 1:
                raise Refused("trust.reference.missing", "no such reference value entry", actual=identity[:80])
            bump_configuration(connection)

        self._store.write(work)
