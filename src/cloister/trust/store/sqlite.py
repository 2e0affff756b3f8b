"""SQLite: one file of the state directory, for one machine.

WAL mode with synchronous=FULL: a commit that returned survives a power cut.

SQLite 3.7.0 to 3.51.2 can corrupt a WAL database when two connections write and checkpoint at the same instant
(sqlite.org/wal.html, "WAL-reset"). `write.lock` (flock) is held around every transaction, checkpoint and close, by
the service and by the owner's commands alike, so that instant does not exist here.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import NullPool

from cloister.errors import Unavailable
from cloister.trust.store.failures import locked
from cloister.trust.store.prepared import Prepared

_LOCK_POLL_SECONDS: Final = 0.005
_READERS: Final = 16
_BEGIN: Final = Prepared(text("BEGIN IMMEDIATE"))
_NO_LIMIT: Final[AbstractContextManager[None]] = nullcontext()


class SQLiteDatabase:
    """One SQLite file, made when absent.

    Args:
        file: its path.
        write_lock: path of the lock file that writers of all processes share.
        seconds: how long to wait for another writer.
    """

    hint: Final = "look for a full, slow, read-only or failing disk under the state directory"

    def __init__(self, file: Path, write_lock: Path, *, seconds: float) -> None:
        self._seconds = seconds
        # Made before SQLite does, so that it and the -wal and -shm files, which take its mode, are private.
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._lock_descriptor = os.open(write_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.empty = file.stat().st_size == 0
        self._writer = _engine(file, seconds, writer=True)
        self.reader = _engine(file, seconds, writer=False)
        self._idle: SimpleQueue[Connection] = SimpleQueue()
        self._counting = threading.Lock()
        self._readers = 0

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock file.

        Raises:
            Unavailable: another process does (`trust.store.locked`).
        """
        self._lock()
        try:
            yield
        finally:
            fcntl.flock(self._lock_descriptor, fcntl.LOCK_UN)

    def limited(self, seconds: float | None = None) -> AbstractContextManager[None]:
        """Nothing: the file is local, and what waits for another writer has SQLite's own limit."""
        return _NO_LIMIT

    def reading(self) -> AbstractContextManager[Connection]:
        """Give a connection that nobody reads on; one more while there are few.

        They stay out of an engine's pool, which costs more than a short statement at every exchange.
        """
        return _Reading(self)

    def take_reader(self) -> Connection:
        """Return a connection that reads, for the caller alone, who gives it back or drops it.

        Raises:
            SQLAlchemyError: none can be opened, or none was given back in time.
        """
        try:
            return self._idle.get_nowait()
        except Empty:
            return self._more()

    def give_reader(self, connection: Connection) -> None:
        """Take a connection back."""
        self._idle.put(connection)

    def drop_reader(self, connection: Connection) -> None:
        """Close a connection that failed."""
        with self._counting:
            self._readers -= 1
        connection.close()

    def connect(self) -> Connection:
        """Return a connection that writes; call it, and close it, within `exclusive`."""
        return self._writer.connect()

    def take_turn(self, connection: Connection, seconds: float | None = None) -> None:
        """Nothing: whoever is within `exclusive` has it."""

    def close(self) -> None:
        """Checkpoint and close."""
        # Without the lock another process is writing: then ours is not the last connection and no checkpoint follows.
        with suppress(Unavailable), self.exclusive():
            self._close_readers()
        self._close_readers()
        os.close(self._lock_descriptor)

    def _more(self) -> Connection:
        with self._counting:
            more = self._readers < _READERS
            self._readers += more
        if not more:
            try:
                return self._idle.get(timeout=self._seconds)
            except Empty:
                raise PoolTimeout("all connections are in use") from None
        try:
            return self.reader.connect()
        except BaseException:
            with self._counting:
                self._readers -= 1
            raise

    def _close_readers(self) -> None:
        with suppress(Empty):
            while True:
                self._idle.get_nowait().close()
        self.reader.dispose()

    def _lock(self) -> None:
        until = time.monotonic() + self._seconds
        while True:
            try:
                fcntl.flock(self._lock_descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise locked() from None
                time.sleep(_LOCK_POLL_SECONDS)
            else:
                return


class _Reading:
    """A reading connection for the length of a block."""

    __slots__ = ("_connection", "_database")

    def __init__(self, database: SQLiteDatabase) -> None:
        self._database = database

    def __enter__(self) -> Connection:
        self._connection = self._database.take_reader()
        return self._connection

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self._database.give_reader(self._connection)
        else:
            self._database.drop_reader(self._connection)


def _engine(file: Path, seconds: float, *, writer: bool) -> Engine:
    options: dict[str, Any] = {  # Any: as the engine takes them
        "hide_parameters": True,
        "poolclass": NullPool,
        "connect_args": {"timeout": seconds / 2, "check_same_thread": False},
    }
    if not writer:
        options |= {
            "pool_reset_on_return": None,  # nothing to undo: readers hold no transaction
            "isolation_level": "AUTOCOMMIT",
        }
    engine = create_engine(URL.create("sqlite+pysqlite", database=str(file)), **options)
    pragmas = [
        "PRAGMA journal_mode=WAL",
        "PRAGMA synchronous=FULL",
        "PRAGMA foreign_keys=ON",
        "PRAGMA mmap_size=0",
        "PRAGMA trusted_schema=OFF",
        "PRAGMA wal_autocheckpoint=1000" if writer else "PRAGMA wal_autocheckpoint=0",
    ]
    if not writer:
        pragmas.append("PRAGMA query_only=ON")

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:  # Any: the driver's connection
        connection.isolation_level = None  # SQLAlchemy's own BEGIN below, not the driver's late one
        for pragma in pragmas:
            connection.execute(pragma)

    if writer:

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            _BEGIN.run(connection, {})

    return engine
