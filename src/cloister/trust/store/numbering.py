"""Sequence numbers that count per tenant, without gaps.

The database's own sequences would be one for all tenants: whoever sees two of its numbers could tell how much others
did in between. Here the next number is asked in the inserting statement. That is safe because all writers of all
processes take turns (`cloister.trust.store.database`), and the primary key would catch it if they did not.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Table, bindparam, func, insert, select

from cloister.trust.store.prepared import Prepared, Row

OF_TENANT = "of_tenant"  # parameter of the inserting statement beside those of its columns


def insert_numbered(table: Table) -> Prepared:
    """Return an insert that takes the row's values and `OF_TENANT`, and returns the number it gave."""
    newest = select(func.max(table.c.sequence)).where(table.c.tenant == bindparam(OF_TENANT)).scalar_subquery()
    number: ColumnElement[int] = func.coalesce(newest, 0) + 1
    return Prepared(insert(table).values(sequence=number).returning(table.c.sequence))


def number_of(row: Row | None) -> int:
    """Return the number that the statement gave."""
    if row is None:
        raise RuntimeError("an insert returned no row")
    return int(row[0])
