"""Connections, durability and failure of the store: one writer, group commit, deadlines instead of hangs.

SQLite in WAL mode with synchronous=FULL: a commit that returned survives a power cut. All writes go through one
thread with one connection, which puts the jobs that wait into one transaction, each in its own savepoint, and tells
every waiter only after the commit. A waiter has a deadline; when it passes, the job is abandoned if it has not begun,
and the caller refuses. A job that had begun may still commit: the record then says more than happened, never less.

SQLite 3.7.0 to 3.51.2 can corrupt a WAL database when two connections write and checkpoint at the same instant
(sqlite.org/wal.html, "WAL-reset"). `write.lock` (flock) is held around every transaction, checkpoint and close, by
the service and by the owner's commands alike, so that instant does not exist here.

Statement texts and parameters never enter an error: they can hold what is being stored.
"""

from __future__ import annotations

import fcntl
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, insert, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.pool import NullPool, QueuePool

from cloister.errors import CloisterError, Unavailable
from cloister.trust.store import schema

_T = TypeVar("_T")

_BATCH: Final = 64
_WAITING: Final = 1024  # jobs in line; beyond, the store is slower than its callers
_LOCK_POLL_SECONDS: Final = 0.005
_READERS: Final = 16
_CONFIGURATION: Final = "configuration"
_PROBES: Final = "probes"
_READ_CONFIGURATION: Final = select(schema.counters.c.value).where(schema.counters.c.name == _CONFIGURATION)
_CLOSED: Final = "the store is closed"


@dataclass(slots=True)
class _Job(Generic[_T]):
    """One waiting write. `state` moves under the store's lock: waiting -> running, or waiting -> abandoned."""

    work: Callable[[Connection], _T]
    state: str = "waiting"
    done: threading.Event = field(default_factory=threading.Event)
    result: _T | None = None
    error: BaseException | None = None


class Store:
    """The database of one state directory.

    Args:
        database: path of the SQLite file; made when absent.
        write_lock: path of the lock file that writers of all processes share.
        seconds: how long a caller waits for the store before it refuses.

    Raises:
        Unavailable: cannot be opened (`trust.store.failed`), or has a newer schema (`trust.store.schema`).
    """

    def __init__(self, database: Path, write_lock: Path, *, seconds: float = 4.0) -> None:
        self._seconds = seconds
        self._state = threading.Lock()
        self._jobs: queue.Queue[_Job[Any] | None] = queue.Queue()  # Any: each job has its own result
        self._closed = False
        self._healthy = True
        self._connection: Connection | None = None
        # Made before SQLite does, so that it and the -wal and -shm files, which take its mode, are private.
        os.close(os.open(database, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._lock_descriptor = os.open(write_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._writer = _engine(database, seconds, writer=True)
        self._reader = _engine(database, seconds, writer=False)
        self._thread = threading.Thread(target=self._run, name="trust-store-writer", daemon=True)
        self._thread.start()
        try:
            self.write(_initialise)
        except BaseException:
            self.close()
            raise

    @property
    def healthy(self) -> bool:
        """Whether the last write was committed, in time."""
        return self._healthy

    def write(self, work: Callable[[Connection], _T], *, seconds: float | None = None) -> _T:
        """Run `work` in a transaction and return its result once that is durable.

        What `work` raises of Cloister's own errors undoes its changes and comes back here.

        Args:
            work: gets the writing connection; must be quick and do nothing but database work.
            seconds: deadline, not longer than the store's own.

        Raises:
            Unavailable: `trust.store.timeout`, `trust.store.locked`, `trust.store.failed`, `trust.store.overload`.
        """
        if self._jobs.qsize() >= _WAITING:
            raise Unavailable("trust.store.overload", "too many writes are waiting", hint="try again later")
        job: _Job[_T] = _Job(work)
        with self._state:
            if self._closed:
                raise Unavailable("trust.store.failed", _CLOSED)
            self._jobs.put(job)
        wait = self._seconds if seconds is None else max(0.0, min(seconds, self._seconds))
        if not job.done.wait(wait):
            with self._state:
                if not job.done.is_set():
                    job.state = "abandoned" if job.state == "waiting" else job.state
                    self._healthy = False
                    raise Unavailable(
                        "trust.store.timeout",
                        "the store did not answer in time",
                        expected=f"an answer within {wait:g} s",
                        hint="look for a full or slow disk under the state directory",
                    )
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[return-value]  # None only when `work` returned None

    def read(self, work: Callable[[Connection], _T]) -> _T:
        """Run `work`, one statement, on a connection that cannot write and sees only what is committed.

        Raises:
            Unavailable: `trust.store.failed`.
        """
        if self._closed:
            raise Unavailable("trust.store.failed", _CLOSED)
        try:
            with self._reader.connect() as connection:
                return work(connection)
        except SQLAlchemyError as err:
            raise _unavailable(err) from err

    def check(self) -> None:
        """Return if the store can be read, and written when the last write failed.

        Raises:
            Unavailable: it cannot.
        """
        self.configuration()
        if not self._healthy:
            self.write(lambda connection: _count(connection, _PROBES))

    def configuration(self) -> int:
        """Return the number that grows with every change of policy, root or reference value."""
        return self.read(lambda connection: int(connection.execute(_READ_CONFIGURATION).scalar_one()))

    def close(self) -> None:
        """Finish the writes that wait, checkpoint and close."""
        with self._state:
            if self._closed:
                return
            self._closed = True
            self._jobs.put(None)
        self._thread.join(2 * self._seconds)
        # Without the lock another process is writing: then ours is not the last connection and no checkpoint follows.
        locked = self._lock()
        self._reader.dispose()
        self._writer.dispose()
        if locked:
            self._unlock()
        if not self._thread.is_alive():
            os.close(self._lock_descriptor)

    def _run(self) -> None:
        ending = False
        while not ending:
            batch, ending = self._take_batch()
            if batch:
                error = self._attempt(batch)
                self._healthy = error is None
                self._settle(batch, error)
        if self._lock():
            self._drop_connection()
            self._unlock()

    def _take_batch(self) -> tuple[list[_Job[Any]], bool]:  # Any: each job has its own result
        taken = [self._jobs.get()]
        while len(taken) < _BATCH:
            try:
                taken.append(self._jobs.get_nowait())
            except queue.Empty:
                break
        return [job for job in taken if job is not None], None in taken

    def _attempt(self, batch: list[_Job[Any]]) -> CloisterError | None:
        """Commit `batch`; return why it could not be, None when it is durable."""
        if not self._lock():
            return Unavailable(
                "trust.store.locked",
                "another process holds the store's write lock",
                hint="wait for the other command to end",
            )
        try:
            if self._connection is None:
                self._connection = self._writer.connect()
            with self._connection.begin():
                for job in batch:
                    if self._claim(job):
                        _run_in_savepoint(self._connection, job)
        except (SQLAlchemyError, OSError) as err:
            self._drop_connection()
            return _unavailable(err)
        finally:
            self._unlock()
        return None

    def _claim(self, job: _Job[Any]) -> bool:
        with self._state:
            if job.state == "waiting":
                job.state = "running"
            return job.state == "running"

    def _settle(self, batch: list[_Job[Any]], error: CloisterError | None) -> None:
        with self._state:
            for job in batch:
                job.error = error or job.error
                job.done.set()

    def _drop_connection(self) -> None:
        """Close the writing connection, under the lock; the next batch opens another."""
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None

    def _lock(self) -> bool:
        until = time.monotonic() + self._seconds
        while True:
            try:
                fcntl.flock(self._lock_descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    return False
                time.sleep(_LOCK_POLL_SECONDS)
            else:
                return True

    def _unlock(self) -> None:
        fcntl.flock(self._lock_descriptor, fcntl.LOCK_UN)


def bump_configuration(connection: Connection) -> None:
    """Count a change of policy, root or reference value, so that running services read anew."""
    _count(connection, _CONFIGURATION)


def _count(connection: Connection, name: str) -> None:
    counters = schema.counters
    connection.execute(update(counters).where(counters.c.name == name).values(value=counters.c.value + 1))


def _run_in_savepoint(connection: Connection, job: _Job[Any]) -> None:
    connection.exec_driver_sql("SAVEPOINT job")
    try:
        job.result = job.work(connection)
    except (IntegrityError, CloisterError) as err:
        connection.exec_driver_sql("ROLLBACK TO job")
        job.error = _unavailable(err) if isinstance(err, IntegrityError) else err
    except SQLAlchemyError:
        raise  # the transaction cannot be trusted any more: the whole batch fails
    except Exception as err:  # noqa: BLE001  a fault of one job must not end the thread that serves all
        connection.exec_driver_sql("ROLLBACK TO job")
        job.error = err
    connection.exec_driver_sql("RELEASE job")


def _initialise(connection: Connection) -> None:
    schema.metadata.create_all(connection)
    version = connection.execute(select(func.max(schema.schema_version.c.version))).scalar_one()
    if version is None:
        connection.execute(insert(schema.schema_version).values(version=schema.SCHEMA_VERSION))
        connection.execute(insert(schema.counters), [{"name": name, "value": 1} for name in (_CONFIGURATION, _PROBES)])
        return
    while version in schema.UPGRADES:
        for statement in schema.UPGRADES[version]:
            connection.exec_driver_sql(statement)
        version += 1
        connection.execute(update(schema.schema_version).values(version=version))
    if version != schema.SCHEMA_VERSION:
        raise Unavailable(
            "trust.store.schema",
            "the database was written by another version of Cloister",
            expected=f"schema {schema.SCHEMA_VERSION}",
            actual=f"schema {version}",
            hint="use the version that wrote it",
        )


def _engine(database: Path, seconds: float, *, writer: bool) -> Engine:
    options: dict[str, Any] = {  # Any: as the engine takes them
        "hide_parameters": True,
        "connect_args": {"timeout": seconds / 2, "check_same_thread": False},
    }
    if writer:
        options |= {"poolclass": NullPool}
    else:
        options |= {
            "poolclass": QueuePool,
            "pool_size": _READERS,
            "max_overflow": 0,
            "pool_timeout": seconds,
            "pool_reset_on_return": None,  # nothing to undo: readers hold no transaction
            "isolation_level": "AUTOCOMMIT",
        }
    engine = create_engine(URL.create("sqlite+pysqlite", database=str(database)), **options)
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
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _unavailable(err: SQLAlchemyError | OSError) -> Unavailable:
    cause: BaseException = err.orig if isinstance(err, DBAPIError) and err.orig is not None else err
    name: str = getattr(cause, "sqlite_errorname", type(cause).__name__)
    code = "trust.store.locked" if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")) else "trust.store.failed"
    return Unavailable(
        code,
        f"the store failed: {name}",
        hint="look for a full, read-only or failing disk under the state directory",
    )
