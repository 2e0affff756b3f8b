"""Rows that jobs of one transaction leave for its end, where one statement writes those of all of them.

Each statement costs more around it than in the database: above all a turn of the interpreter, which other threads
take meanwhile. So what nobody reads within the transaction is left until all jobs ran. What a job left goes with
everything else it did when it refuses; and a row that is committed is committed with what it belongs to, as before.

Whoever leaves a row has made sure that the database takes it: what fails at the end, fails the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import Connection

Write = Callable[[Connection, list[Any]], None]  # Any: rows as whoever left them knows them
_KEY: Final = "cloister.deferred"


class Deferred:
    """What was left in one transaction. The store makes one for each."""

    __slots__ = ("_rows",)

    def __init__(self, connection: Connection) -> None:
        self._rows: list[tuple[Write, Any]] = []  # Any: as above
        connection.info[_KEY] = self

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, write: Write, row: Any) -> None:  # Any: as above
        """Leave a row for `write`."""
        self._rows.append((write, row))

    def cut(self, length: int) -> None:
        """Forget what was left beyond the first `length`: its job was undone."""
        del self._rows[length:]

    def write(self, connection: Connection) -> None:
        """Write everything, in the order in which each kind was left first."""
        kinds: dict[Write, list[Any]] = {}  # Any: as above
        for write, row in self._rows:
            kinds.setdefault(write, []).append(row)
        for write, rows in kinds.items():
            write(connection, rows)


def defer(connection: Connection, write: Write, row: Any) -> None:  # Any: as above
    """Leave `row` for the end of the running transaction, where `write` gets all that were left for it.

    Args:
        connection: of a job of the store.
        write: the same for all rows that go together.
        row: what it takes.
    """
    deferred: Deferred = connection.info[_KEY]
    deferred.add(write, row)
