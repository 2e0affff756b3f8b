"""Sequence numbers that count per tenant, without gaps.

The database's own sequences would be one for all tenants: whoever sees two of its numbers could tell how much others
did in between. Here the next number is asked in the inserting statement. That is safe because all writers of all
processes take turns (`cloister.trust.store.database`), and the primary key would catch it if they did not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import BindParameter, ColumnElement, Connection, Table, bindparam, func, insert, select

from cloister.trust.store.prepared import Given, Parameters, Prepared, PreparedRows, Row, pieces

OF_TENANT: Final = "of_tenant"  # parameter of the inserting statement beside those of its columns
_PLACE: Final = "place"


def insert_numbered(table: Table) -> Prepared:
    """Return an insert that takes the row's values and `OF_TENANT`, and returns the number it gave."""
    number = newest_number(table, bindparam(OF_TENANT)) + 1
    return Prepared(insert(table).values(sequence=number).returning(table.c.sequence))


class NumberedRows:
    """An insert of any number of rows of any tenants; each takes the values of its other columns.

    A statement looks for the newest number before it inserts anything, so a row brings its place among its tenant's.
    """

    def __init__(self, table: Table) -> None:
        def number(given: Given) -> ColumnElement[int]:
            return newest_number(table, given("tenant")) + given(_PLACE)

        self._statement = PreparedRows(table, {"sequence": number})

    def run(self, connection: Connection, rows: Sequence[Parameters]) -> None:
        """Insert `rows`, numbered in this order.

        Raises:
            SQLAlchemyError: the database refuses one, or is gone.
        """
        for some in pieces(rows):
            counted: Counter[str] = Counter()
            placed = []
            for row in some:
                counted[row["tenant"]] += 1
                placed.append({**row, _PLACE: counted[row["tenant"]]})
            self._statement.run_piece(connection, placed)


def newest_number(table: Table, tenant: BindParameter[Any]) -> ColumnElement[int]:  # Any: as SQLAlchemy types them
    """Return the newest number of a tenant, 0 without any, as part of a statement."""
    newest = select(func.max(table.c.sequence)).where(table.c.tenant == tenant).scalar_subquery()
    return func.coalesce(newest, 0)


def number_of(row: Row | None) -> int:
    """Return the number that the statement gave."""
    if row is None:
        raise RuntimeError("an insert returned no row")
    return int(row[0])
