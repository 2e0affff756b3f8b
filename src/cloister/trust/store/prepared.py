"""Statements that every handshake runs: compiled once for each database, run on the driver's own cursor.

SQLAlchemy looks a statement up, makes a context and a result for each run, which costs several times what the
database does with a short one. What is prepared is a constant; parameters are of the columns' own types, and a row
comes back as the driver's tuple.

Errors are those that SQLAlchemy would have raised: whether a transaction can be trusted after one is decided by
their types (`cloister.trust.store.database`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import BigInteger, BindParameter, ColumnElement, Connection, Dialect, Insert, Table, bindparam, insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.expression import Executable

Row = tuple[Any, ...]  # Any: columns have their own types
Parameters = Mapping[str, Any]  # Any: the same
Given = Callable[[str], BindParameter[Any]]  # Any: the same
"""Names a parameter of a row."""
NOTHING: Final[Mapping[str, Any]] = {}  # Any: nothing is in it
_MOST_AT_ONCE: Final = 64


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


class PreparedRows:
    """An insert of any number of rows: 64, 32, .. or 1 with a statement, so that few texts do for all numbers.

    Args:
        table: takes a value for each of its columns.
        made: columns whose values the statement makes, from parameters of the row; those that are no columns are
            numbers.
    """

    def __init__(self, table: Table, made: Mapping[str, Callable[[Given], ColumnElement[Any]]] = NOTHING) -> None:
        self._table = table
        self._made = made
        self._columns = [column.name for column in table.columns if column.name not in self._made]
        self._statements: dict[int, Prepared] = {}

    def run(self, connection: Connection, rows: Sequence[Parameters]) -> None:
        """Insert `rows`.

        Raises:
            SQLAlchemyError: the database refuses one, or is gone.
        """
        for some in pieces(rows):
            self.run_piece(connection, some)

    def run_piece(self, connection: Connection, rows: Sequence[Parameters]) -> None:
        """As `run`, for a piece of `pieces`: one statement."""
        values = {f"{name}_{place}": value for place, row in enumerate(rows) for name, value in row.items()}
        self._for(len(rows)).run(connection, values)

    def _for(self, count: int) -> Prepared:
        known = self._statements.get(count)
        if known is None:
            known = self._statements[count] = Prepared(
                insert(self._table).values([self._row(place) for place in range(count)])
            )
        return known

    def _row(self, place: int) -> dict[str, ColumnElement[Any]]:  # Any: columns have their own types
        columns = self._table.columns

        def given(name: str) -> BindParameter[Any]:
            return bindparam(f"{name}_{place}", type_=columns[name].type if name in columns else BigInteger())

        row: dict[str, ColumnElement[Any]] = {name: given(name) for name in self._columns}
        return row | {name: make(given) for name, make in self._made.items()}


def pieces(rows: Sequence[Parameters]) -> Iterator[Sequence[Parameters]]:
    """Yield `rows` in order, in pieces of 64, 32, .. or 1."""
    done = 0
    while left := len(rows) - done:
        count = min(_MOST_AT_ONCE, 1 << (left.bit_length() - 1))
        yield rows[done : done + count]
        done += count


def _compile(statement: Executable, dialect: Dialect) -> _Compiled:
    keys = None
    if isinstance(statement, Insert) and statement.select is None and not statement._multi_values:
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
