"""Statements that every handshake runs: compiled once for each database, run on the driver's own cursor.

SQLAlchemy looks a statement up, makes a context and a result for each run, which costs several times what the
database does with a short one. What is prepared is a constant; parameters are of the columns' own types, and a row
comes back as the driver's tuple.

Errors are those that SQLAlchemy would have raised: whether a transaction can be trusted after one is decided by
their types (`cloister.trust.store.database`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Dialect, Insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.expression import Executable

Row = tuple[Any, ...]  # Any: columns have their own types
Parameters = Mapping[str, Any]  # Any: the same


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A statement for one database.

    Attributes:
        text: with the driver's own marks.
        places: names of its parameters, where they go by place; None where they go by name.
        constants: parameters that the statement itself brings.
    """

    text: str
    places: tuple[str, ...] | None
    constants: dict[str, Any]

    def values(self, parameters: Parameters) -> Any:  # Any: as drivers take them
        whole = {**self.constants, **parameters} if self.constants else parameters
        return whole if self.places is None else [whole[name] for name in self.places]


class Prepared:
    """One statement. Safe to use from several threads.

    Args:
        statement: with its parameters bound by name. An insert takes a value for every column of its table that it
            does not set itself.
    """

    def __init__(self, statement: Executable) -> None:
        self._statement = statement
        self._compiled: dict[str, _Compiled] = {}

    def rows(self, connection: Connection, parameters: Parameters) -> list[Row]:
        """Run it and return all rows; for statements that return some.

        Raises:
            SQLAlchemyError: the database refuses it, or is gone.
        """
        return self._run(connection, parameters, rows=True)

    def row(self, connection: Connection, parameters: Parameters) -> Row | None:
        """As `rows`, for at most one."""
        found = self._run(connection, parameters, rows=True)
        if len(found) > 1:
            raise RuntimeError("a statement for one row returned several")
        return found[0] if found else None

    def run(self, connection: Connection, parameters: Parameters) -> None:
        """Run it, for statements that return nothing."""
        self._run(connection, parameters, rows=False)

    def run_all(self, connection: Connection, many: Iterable[Parameters]) -> None:
        """Run it once for each of `many`; for statements that return nothing."""
        compiled = self._for(connection)
        given = [compiled.values(each) for each in many]
        with _Driven(connection) as cursor:
            cursor.executemany(compiled.text, given)

    def _run(self, connection: Connection, parameters: Parameters, *, rows: bool) -> list[Row]:
        compiled = self._for(connection)
        with _Driven(connection) as cursor:
            cursor.execute(compiled.text, compiled.values(parameters))
            found: list[Row] = cursor.fetchall() if rows else []
        return found

    def _for(self, connection: Connection) -> _Compiled:
        known = self._compiled.get(connection.dialect.name)
        if known is None:
            known = self._compiled[connection.dialect.name] = _compile(self._statement, connection.dialect)
        return known


def _compile(statement: Executable, dialect: Dialect) -> _Compiled:
    keys = None
    if isinstance(statement, Insert) and statement.select is None:
        keys = [column.name for column in statement.table.columns]
    compiled: Any = statement.compile(dialect=dialect, column_keys=keys)  # type: ignore[attr-defined]  # all have it
    constants = {name: value for name, value in compiled.params.items() if value is not None}
    return _Compiled(str(compiled), tuple(compiled.positiontup) if compiled.positional else None, constants)


class _Driven:
    """Gives the driver's cursor; an error of the driver becomes what SQLAlchemy makes of it."""

    __slots__ = ("_connection", "_held")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._held: Any = connection.connection.dbapi_connection  # Any: the driver's connection

    def __enter__(self) -> Any:  # Any: the driver's cursor
        try:
            return self._held.cursor()  # raises already when the connection was closed meanwhile
        except self._connection.dialect.loaded_dbapi.Error as err:
            raise self._converted(err) from err

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, _trace: object) -> None:
        if isinstance(err, self._connection.dialect.loaded_dbapi.Error):
            raise self._converted(err) from err

    def _converted(self, err: Any) -> BaseException:  # Any: the driver's error
        dialect = self._connection.dialect
        gone = dialect.is_disconnect(err, self._held, None)
        if gone:
            self._connection.invalidate(err)  # it is not used again, nor are those that wait in its pool
            self._connection.engine.dispose()
        converted: BaseException = DBAPIError.instance(
            None, None, err, dialect.loaded_dbapi.Error, hide_parameters=True, connection_invalidated=gone,
            dialect=dialect,
        )  # fmt: skip
        return converted
