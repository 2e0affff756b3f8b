"""The one statement whose words differ between the databases: insert a row, or change the one that is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite


def upsert(
    connection: Connection, table: Table, key: Mapping[str, Any], changes: Mapping[str, Any], **once: Any
) -> None:
    """Insert a row of `key`, `changes` and `once`; where one with that primary key exists, set `changes` there.

    Values are of the columns' own types, hence Any.
    """
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = make(table).values({**key, **changes, **once})
    connection.execute(statement.on_conflict_do_update(index_elements=list(key), set_=dict(changes)))
