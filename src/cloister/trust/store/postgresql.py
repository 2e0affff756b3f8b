"""PostgreSQL: one database for any number of replicas.

Writers of all replicas take turns by `pg_advisory_xact_lock`, taken as the first statement of each transaction and
released by its end, however that comes about. Nobody holds it for long: the server ends a transaction whose client
says nothing (`idle_in_transaction_session_timeout`: a stopped or vanished replica), a statement that takes too long,
and the wait for the lock itself; the client cuts a connection whose server says nothing (`deadlines`).

The address says where, and how the server is authenticated; it never holds a password. TLS with a verified name is
required for a server that is not on this machine. What is not listed in `_PARAMETERS` is refused: an address could
otherwise turn off synchronous commits.
"""

from __future__ import annotations

import os
import socket
import stat
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, Final

from sqlalchemy import BigInteger, Connection, Engine, String, bindparam, create_engine, event, func, select
from sqlalchemy.pool import NullPool, QueuePool

from cloister.errors import Refused, Unavailable
from cloister.trust.store.deadlines import Deadlines

try:
    import psycopg
    from psycopg import conninfo
except ImportError as err:
    raise Unavailable(
        "trust.store.driver",
        "the driver of PostgreSQL is not installed",
        hint='pip install "cloister[postgres]"',
    ) from err

_WRITER: Final = int.from_bytes(b"cloister")  # the advisory lock's number; locks are per database
_READERS: Final = 16
_PARAMETERS: Final = frozenset(
    {
        "host", "hostaddr", "port", "dbname", "user", "passfile",
        "sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "channel_binding",
    }
)  # fmt: skip
_VERIFIED: Final = "verify-full"
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_LEAST_SECONDS: Final = 0.5  # shorter and a busy machine would look like a stopped one
_CONNECT_SECONDS: Final = 2  # what libpq takes for the least
_UNANSWERED_MILLISECONDS: Final = 6000
_PASSWORD_BYTES: Final = 4096
_UTF8: Final = "UTF8"
_TAKE_TURN: Final = select(func.pg_advisory_xact_lock(bindparam("number", _WRITER, BigInteger)))
_LIMIT: Final = select(func.set_config(bindparam("name", type_=String), bindparam("value", type_=String), True))


class _Connection(psycopg.Connection[Any]):  # Any: rows, which SQLAlchemy makes of tuples
    """A connection that another thread may cut.

    The cut goes through a descriptor of its own: the driver's may be closed, and its number be somebody else's, at
    the instant of the cut.
    """

    _line: socket.socket | None = None

    def hold(self) -> None:
        """Take the descriptor."""
        self._line = socket.socket(fileno=os.dup(self.pgconn.socket))

    def cut(self) -> None:
        """End the connection, so that whoever waits for the server is told now."""
        line = self._line
        if line is not None:
            with suppress(OSError):  # it ended by itself
                line.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close connection and descriptor."""
        super().close()
        line, self._line = self._line, None
        if line is not None:
            line.close()


class PostgreSQLDatabase:
    """One database of a PostgreSQL server, 13 or newer.

    Args:
        address: `postgresql://USER@HOST[:PORT]/DATABASE[?PARAMETER=VALUE..]`; a directory as `host` parameter for a
            unix socket.
        seconds: how long to wait for server and other writers.
        password_file: file with the password and nothing else, read for each connection; without one the driver looks
            where `passfile` or `PGPASSFILE` says.

    Raises:
        Refused: the address cannot be used (`trust.settings.database`).
    """

    hint: Final = "look whether the PostgreSQL server runs, can be reached, accepts this user and has space left"
    empty: Final = False  # the server is asked

    def __init__(self, address: str, *, seconds: float, password_file: Path | None) -> None:
        self._parameters = _parse(address)
        self._seconds = seconds
        self._password_file = password_file
        self._deadlines = Deadlines(seconds, hint=self.hint)
        options: dict[str, Any] = {"hide_parameters": True, "use_native_hstore": False}  # Any: as the engine takes them
        self._writer = create_engine(
            "postgresql+psycopg://", creator=lambda: self._connect(read_only=False), poolclass=NullPool, **options
        )
        self.reader: Engine = create_engine(
            "postgresql+psycopg://",
            creator=lambda: self._connect(read_only=True),
            poolclass=QueuePool,
            pool_size=_READERS,
            max_overflow=0,
            pool_timeout=seconds,
            pool_reset_on_return=None,  # nothing to undo: readers hold no transaction
            isolation_level="AUTOCOMMIT",
            **options,
        )

        @event.listens_for(self.reader, "checkout")
        def attach(connection: _Connection, _record: object, _proxy: object) -> None:
            self._deadlines.attach(connection)

        @event.listens_for(self._writer, "begin")
        def attach_writer(connection: Connection) -> None:
            held: Any = connection.connection.dbapi_connection  # Any: the driver's connection
            self._deadlines.attach(held)

    def exclusive(self) -> AbstractContextManager[None]:
        """Nothing: processes take turns at the server."""
        return nullcontext()

    def limited(self, seconds: float | None = None) -> AbstractContextManager[None]:
        """Cut the connection that this thread uses when it does so for too long."""
        return self._deadlines.limited(seconds)

    def reading(self) -> AbstractContextManager[Connection]:
        """Give a connection of the pool, under the limit that this thread has."""
        return self.reader.connect()

    def connect(self) -> Connection:
        """Return a connection that writes."""
        return self._writer.connect()

    def take_turn(self, connection: Connection, seconds: float | None = None) -> None:
        """Take the advisory lock for this transaction."""
        if seconds is not None:
            for name in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
                connection.execute(_LIMIT, {"name": name, "value": f"{round(seconds * 1000)}ms"})
        connection.execute(_TAKE_TURN)

    def close(self) -> None:
        """Close all connections."""
        self.reader.dispose()
        self._writer.dispose()
        self._deadlines.close()

    def _connect(self, *, read_only: bool) -> _Connection:
        self._deadlines.require_time()
        limits = {
            "synchronous_commit": "on",
            "default_transaction_isolation": r"read\ committed",
            "default_transaction_read_only": "on" if read_only else "off",
            "lock_timeout": _milliseconds(self._seconds / 2),
            "statement_timeout": _milliseconds(self._seconds),
            "idle_in_transaction_session_timeout": _milliseconds(self._seconds / 4),
            "tcp_keepalives_idle": "5",
            "tcp_keepalives_interval": "2",
            "tcp_keepalives_count": "3",
            "tcp_user_timeout": str(_UNANSWERED_MILLISECONDS),
        }
        parameters: dict[str, Any] = {  # Any: as the driver takes them
            **self._parameters,
            "application_name": "cloister",
            "client_encoding": "utf8",
            "connect_timeout": _CONNECT_SECONDS,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": _UNANSWERED_MILLISECONDS,
            "target_session_attrs": "primary",  # a standby answers from the past
            "options": " ".join(f"-c {name}={value}" for name, value in limits.items()),
        }
        if self._password_file is not None:
            parameters["password"] = _password(self._password_file)
        connection = _Connection.connect(**parameters, autocommit=read_only)
        connection.hold()
        self._deadlines.attach(connection)
        if connection.info.parameter_status("server_encoding") != _UTF8:
            connection.close()
            raise Unavailable(
                "trust.store.encoding",
                "the database does not hold Unicode",
                expected=_UTF8,
                hint="create database cloister with (encoding 'UTF8', template template0)",
            )
        return connection


def _parse(address: str) -> dict[str, str]:
    """Return the connection parameters of an address, with the server authenticated unless it is on this machine."""
    try:
        given = {name: str(value) for name, value in conninfo.conninfo_to_dict(address).items() if value is not None}
    except psycopg.Error:
        raise _refused("not an address of a PostgreSQL database") from None  # the driver's words may hold a password
    if "password" in given:
        raise _refused(
            "a password does not belong into the address", hint="put it into a file: --database-password-file"
        )
    if unknown := sorted(set(given) - _PARAMETERS):
        raise _refused("a parameter that may not be set by the address", actual=unknown[0])
    hosts = (given.get("host") or given.get("hostaddr") or "").split(",")
    if "" in hosts:
        raise _refused(
            "the address names no host", hint="for a unix socket: postgresql://USER@/DATABASE?host=DIRECTORY"
        )
    if all(host.startswith("/") or host in _LOOPBACK for host in hosts):
        return given
    mode = given.setdefault("sslmode", _VERIFIED)
    if mode != _VERIFIED:
        raise _refused("the server is on another machine and would not be authenticated", actual=f"sslmode={mode}"[:40])
    return given


def _refused(message: str, *, actual: str = "", hint: str = "") -> Refused:
    expected = "postgresql://USER@HOST/DATABASE?sslmode=verify-full&sslrootcert=FILE"
    return Refused("trust.settings.database", message, expected=expected, actual=actual, hint=hint)


def _password(place: Path) -> str:
    try:
        with place.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & stat.S_IRWXO:
                raise Refused(
                    "trust.state.permissions",
                    "others can read the password of the database",
                    path=str(place),
                    hint=f"chmod o-rwx {place}",
                )
            return file.read(_PASSWORD_BYTES).decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as err:
        raise Unavailable("trust.state.io", "the password of the database cannot be read", path=str(place)) from err


def _milliseconds(seconds: float) -> str:
    return f"{round(max(seconds, _LEAST_SECONDS) * 1000)}ms"
