"""Makes the tables of an empty database, and brings those of an older version up."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, insert, inspect, select

from cloister.errors import Unavailable
from cloister.trust.store import schema
from cloister.trust.store.migrations import HEAD, REVISIONS

CONFIGURATION: Final = "configuration"
PROBES: Final = "probes"
_UNVERSIONED: Final = "schema_version"  # a table that databases had before they had revisions


def stamped(connection: Connection) -> str | None:
    """Return the revision of a database that has one."""
    return connection.execute(select(schema.alembic_version.c.version_num)).scalar_one_or_none()


def bring_up(connection: Connection) -> None:
    """Make the tables, or change them to what this version knows, in the caller's transaction.

    Raises:
        Unavailable: another version wrote them (`trust.store.schema`).
    """
    tables = set(inspect(connection).get_table_names())
    if schema.alembic_version.name in tables:
        revision = stamped(connection)
        if revision == HEAD:
            return  # somebody else was first
        if revision not in REVISIONS:
            raise other_schema(revision or "none")
    elif _UNVERSIONED in tables:
        pass
    else:
        schema.metadata.create_all(connection)
        connection.execute(insert(schema.counters), [{"name": name, "value": 1} for name in (CONFIGURATION, PROBES)])
        connection.execute(insert(schema.alembic_version).values(version_num=HEAD))
        return
    # Only here: Alembic takes longer to load than most starts take.
    from cloister.trust.store.migrations.runner import upgrade

    upgrade(connection)


def other_schema(revision: str) -> Unavailable:
    """Return the refusal for a database that this version does not know."""
    return Unavailable(
        "trust.store.schema",
        "the database was written by another version of Cloister",
        expected=f"schema {HEAD}",
        actual=f"schema {revision}"[:60],
        hint="use the version that wrote it",
    )
