"""Runs revisions in the caller's transaction; loading this module loads Alembic."""

from __future__ import annotations

from typing import Final

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, column, inspect, select, table, text

from cloister.errors import Unavailable
from cloister.trust.store.migrations import REVISIONS, VERSIONS

_UNVERSIONED: Final = "schema_version"
_FIRST: Final = REVISIONS[0]
# What makes the database of an unversioned schema one of the next, by the version it has; the last one is `_FIRST`.
_UPGRADES: Final = {1: "ALTER TABLE roots ADD COLUMN instance TEXT NOT NULL DEFAULT ''"}
_LAST_UNVERSIONED: Final = 2


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring a database up to a revision: an empty one, one of an older revision, or one from before there were any.

    Raises:
        Unavailable: from before, but of no version we wrote (`trust.store.schema`).
    """
    tables = set(inspect(connection).get_table_names())
    if _UNVERSIONED in tables and "alembic_version" not in tables:
        _adopt(connection)
        command.stamp(_config(connection), _FIRST)
    command.upgrade(_config(connection), revision)


def downgrade(connection: Connection, revision: str) -> None:
    """Bring a database down to an older revision, for the version of Cloister that wrote it.

    Raises:
        Refused: the older schema cannot hold what is stored (`trust.store.downgrade`).
    """
    command.downgrade(_config(connection), revision)


def _adopt(connection: Connection) -> None:
    known = table(_UNVERSIONED, column("version"))
    version = connection.execute(select(known.c.version)).scalar_one_or_none()
    while version in _UPGRADES:
        connection.execute(text(_UPGRADES[version]))
        version += 1
    if version != _LAST_UNVERSIONED:
        raise Unavailable(
            "trust.store.schema",
            "the database was written by another version of Cloister",
            expected=f"schema {_FIRST}",
            actual=f"schema {version}",
            hint="use the version that wrote it",
        )


def _config(connection: Connection) -> Config:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(VERSIONS.parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
