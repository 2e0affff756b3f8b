"""The store: one writer, group commit, deadlines instead of hangs; on SQLite or on PostgreSQL.

All writes of a process go through one thread with one connection, which puts the jobs that wait into one transaction,
each in its own savepoint, writes what they left for its end (`deferred`), and tells every waiter only after the
commit. Processes take turns by transaction: on SQLite by a lock file, on PostgreSQL by an advisory lock, so that there
is one writer at any instant, wherever it is.

A waiter has a deadline; when it passes, the job is abandoned if it has not begun, and the caller refuses. A job that
had begun may still commit: the record then says more than happened, never less.

What differs between the databases is in `sqlite`, `postgresql` and `dialects`. Statement texts and parameters never
enter an error: they can hold what is being stored.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeVar

from sqlalchemy import Connection, Engine, select, text, update
from sqlalchemy.engine import RootTransaction
from sqlalchemy.exc import DataError as ValueRefused
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from cloister.errors import Refused, Unavailable
from cloister.trust.store import schema, setup
from cloister.trust.store.deferred import Deferred
from cloister.trust.store.failures import too_late, unavailable
from cloister.trust.store.migrations import HEAD
from cloister.trust.store.prepared import Prepared
from cloister.trust.store.sqlite import SQLiteDatabase

_T = TypeVar("_T")

_BATCH: Final = 64
_GATHERING: Final = 4  # callers under way from which on a batch waits for more
_GATHER_SECONDS: Final = 0.002  # about what a commit takes, so that the next batch is as large as it would get
_WAITING: Final = 1024  # jobs in line; beyond, the store is slower than its callers
_SETUP_SECONDS: Final = 120.0  # for bringing an old database up, which copies its tables
_READ_CONFIGURATION: Final = Prepared(
    select(schema.counters.c.value, select(schema.alembic_version.c.version_num).scalar_subquery()).where(
        schema.counters.c.name == setup.CONFIGURATION
    )
)
_SAVEPOINT: Final = Prepared(text("SAVEPOINT job"))
_ROLLBACK_TO: Final = Prepared(text("ROLLBACK TO job"))
_CLOSED: Final = "the store is closed"
SQLITE: Final = "sqlite:///"
POSTGRESQL: Final = "postgresql://"


class Database(Protocol):
    """What the store needs of a database.

    Attributes:
        reader: engine whose connections cannot write and see only what is committed.
    """

    reader: Engine

    @property
    def empty(self) -> bool:
        """Whether nothing was ever written to it, if that can be told without asking it."""
        ...

    @property
    def hint(self) -> str:
        """What an operator looks at when it fails."""
        ...

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep other processes of this machine from writing; raises `Unavailable`."""
        ...

    def limited(self, seconds: float | None = None) -> AbstractContextManager[None]:
        """End what this thread does with the database after the store's time, or `seconds`, by an `Unavailable`."""
        ...

    def reading(self) -> AbstractContextManager[Connection]:
        """Give a connection of `reader` for one statement."""
        ...

    def connect(self) -> Connection:
        """Return a connection that writes."""
        ...

    def take_turn(self, connection: Connection, seconds: float | None = None) -> None:
        """Wait, in a transaction that just began, until it is the only one that writes; then it may take `seconds`."""
        ...

    def close(self) -> None:
        """Close all connections."""
        ...


class BatchHook(Protocol):
    """What is done once per group of writes, in the writer's thread."""

    def before_commit(self, connection: Connection) -> None:
        """Work in the transaction of a batch, after its jobs, of which at least one did not refuse, and what they left.

        What a refusing job wrote was undone before; ask the database, not one's memory, what is there. Raising undoes
        the whole batch and is what all its waiters get.
        """
        ...

    def after_commit(self) -> None:
        """Called when the batch is durable, before its waiters are told; not called when that is not known."""
        ...


def _held_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(slots=True)
class _Job(Generic[_T]):
    """One waiting write. `state` moves under the store's lock: waiting -> running, or waiting -> abandoned.

    `waiting` is held until it is settled: a lock that somebody else releases costs a fraction of an event.
    """

    work: Callable[[Connection], _T]
    single: bool = False
    state: str = "waiting"
    settled: bool = False
    waiting: threading.Lock = field(default_factory=_held_lock)
    result: _T | None = None
    error: BaseException | None = None


class Store:
    """The database of one trust service.

    Args:
        database: path of a SQLite file, made when absent; or an address: `sqlite:///PATH`, `postgresql://...`
            (`cloister.trust.store.postgresql`).
        write_lock: path of the lock file that writers of all processes share; beside the file when absent. SQLite only.
        seconds: how long a caller waits for the store before it refuses.
        batch_hook: takes part in every transaction.
        committed: told the number of writes and the seconds of each commit.
        password_file: file with the password of the PostgreSQL user and nothing else.

    Raises:
        Refused: the address cannot be used (`trust.settings.database`).
        Unavailable: cannot be opened (`trust.store.failed`), or has a newer schema (`trust.store.schema`).
    """

    def __init__(
        self,
        database: Path | str,
        write_lock: Path | None = None,
        *,
        seconds: float = 4.0,
        batch_hook: BatchHook | None = None,
        password_file: Path | None = None,
        committed: Callable[[int, float], None] | None = None,
    ) -> None:
        self._committed = committed
        self._busy: Callable[[], int] = _nobody
        self._pause = _held_lock()
        self._seconds = seconds
        self._hook = batch_hook
        self._state = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()  # Any: each job has its own result
        self._closed = False
        self._healthy = True
        self._connection: Connection | None = None
        self._database = _open(database, write_lock, seconds, password_file)
        self._thread = threading.Thread(target=self._run, name="trust-store-writer", daemon=True)
        try:
            self._set_up()
        except BaseException:
            self._closed = True
            self._database.close()
            raise
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """Whether the last write was committed, in time."""
        return self._healthy

    def gather(self, busy: Callable[[], int]) -> None:
        """Wait a moment for more writes while many callers are under way: they share what is dear about a commit.

        Args:
            busy: how many callers may be about to write, or wait for it. Below four nothing waits.
        """
        self._busy = busy

    def write(self, work: Callable[[Connection], _T], *, seconds: float | None = None, single: bool = False) -> _T:
        """Run `work` in a transaction and return its result once that is durable.

        What `work` raises of Cloister's own errors undoes its changes and comes back here.

        Args:
            work: gets the writing connection; must be quick and do nothing but database work.
            seconds: deadline, not longer than the store's own.
            single: `work` runs no statement that would have to be undone when it refuses, apart from what it defers:
                then it needs no savepoint. When a statement of it fails, so does the whole batch.

        Raises:
            Unavailable: `trust.store.timeout`, `trust.store.locked`, `trust.store.failed`, `trust.store.overload`.
        """
        if self._jobs.qsize() >= _WAITING:
            raise Unavailable("trust.store.overload", "too many writes are waiting", hint="try again later")
        job: _Job[_T] = _Job(work, single)
        with self._state:
            if self._closed:
                raise Unavailable("trust.store.failed", _CLOSED)
            self._jobs.put(job)
        wait = self._seconds if seconds is None else max(0.0, min(seconds, self._seconds))
        if not job.waiting.acquire(timeout=wait):
            with self._state:
                if not job.settled:
                    job.state = "abandoned" if job.state == "waiting" else job.state
                    self._healthy = False
                    raise too_late(wait, hint=self._database.hint)
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[return-value]  # None only when `work` returned None

    def read(self, work: Callable[[Connection], _T]) -> _T:
        """Run `work`, one statement, on a connection that cannot write and sees only what is committed.

        It is run once more when the connection turns out to be gone.

        Raises:
            Unavailable: `trust.store.failed`, `trust.store.timeout`.
        """
        if self._closed:
            raise Unavailable("trust.store.failed", _CLOSED)
        try:
            with self._database.limited():
                try:
                    with self._database.reading() as connection:
                        return work(connection)
                except DBAPIError as err:
                    if not err.connection_invalidated:
                        raise
                with self._database.reading() as connection:
                    return work(connection)
        except SQLAlchemyError as err:
            raise unavailable(err, hint=self._database.hint) from None

    def check(self) -> None:
        """Return if the store can be read, and written when the last write failed.

        Raises:
            Unavailable: it cannot.
        """
        self.configuration()
        if not self._healthy:
            self.write(lambda connection: _count(connection, setup.PROBES))

    def probe(self) -> None:
        """Write something and return once it is durable.

        Raises:
            Unavailable: it cannot be written, or not in time.
        """
        self.write(lambda connection: _count(connection, setup.PROBES))

    def configuration(self) -> int:
        """Return the number that grows with every change of policy, root or reference value, of any tenant.

        Raises:
            Unavailable: the store failed, or another version of Cloister changed the schema meanwhile
                (`trust.store.schema`).
        """
        row = self.read(lambda connection: _READ_CONFIGURATION.row(connection, {}))
        if row is None:
            raise Unavailable("trust.store.failed", "a stored record is damaged", hint="restore a backup")
        value, revision = row
        if revision != HEAD:
            raise setup.other_schema(revision)
        return int(value)

    def close(self) -> None:
        """Finish the writes that wait, checkpoint and close."""
        with self._state:
            if self._closed:
                return
            self._closed = True
            self._jobs.put(None)
        self._thread.join(2 * self._seconds)
        if self._thread.is_alive():
            self._database.reader.dispose()  # the thread still holds the rest; it ends with the process
        else:
            self._database.close()

    def _set_up(self) -> None:
        """Make or bring up the tables. A database that needs neither is not written to."""
        try:
            if not self._database.empty:
                with self._database.limited(), self._database.reader.connect() as reading:
                    if setup.stamped(reading) == HEAD:
                        return
        except SQLAlchemyError:
            pass  # nothing there yet, or it will fail below as well, which then says why
        try:
            with (
                self._database.exclusive(),
                self._database.limited(_SETUP_SECONDS),
                self._database.connect() as connection,
                connection.begin(),
            ):
                self._database.take_turn(connection, _SETUP_SECONDS)
                setup.bring_up(connection)
        except (SQLAlchemyError, OSError) as err:
            raise unavailable(err, hint=self._database.hint) from None

    def _run(self) -> None:
        ending = False
        while not ending:
            batch, ending = self._take_batch()
            if batch:
                begun = time.monotonic()
                error = self._attempt(batch)
                self._healthy = error is None
                if error is None and self._committed is not None:
                    self._committed(len(batch), time.monotonic() - begun)
                self._settle(batch, error)
        with suppress(Unavailable), self._database.exclusive():
            self._drop_connection()

    def _take_batch(self) -> tuple[list[_Job[Any]], bool]:  # Any: each job has its own result
        taken = [self._jobs.get()]
        busy = self._busy()
        if busy >= _GATHERING and self._jobs.qsize() + 1 < busy and not self._closed:
            self._pause.acquire(timeout=_GATHER_SECONDS)  # never given: a pause that no jump of a clock can break
        while len(taken) < _BATCH:
            try:
                taken.append(self._jobs.get_nowait())
            except queue.Empty:
                break
        return [job for job in taken if job is not None], None in taken

    def _attempt(self, batch: list[_Job[Any]]) -> BaseException | None:
        """Commit `batch`; return why it could not be, None when it is durable."""
        try:
            with self._database.exclusive():
                try:
                    with self._database.limited():
                        ran = self._commit(batch)
                except BaseException:
                    self._drop_connection()
                    raise
            if self._hook is not None and ran:
                self._hook.after_commit()
        except (SQLAlchemyError, OSError) as err:
            return unavailable(err, hint=self._database.hint)
        except Exception as err:  # noqa: BLE001  a refusal of the hook, or a fault in it: what its waiters get
            return err
        return None

    def _commit(self, batch: list[_Job[Any]]) -> bool:
        """Run the jobs of a batch in a transaction; return whether one did not refuse."""
        connection, transaction = self._begin()
        ran = False
        with transaction:
            deferred = Deferred(connection)
            for job in batch:
                if not self._claim(job):
                    continue
                left = len(deferred)
                if (
                    job.single or len(batch) == 1
                ):  # alone it needs no savepoint, which saves two exchanges with a server
                    done = _run(connection, job, self._database.hint)
                else:
                    done = _run_in_savepoint(connection, job, self._database.hint)
                if not done:
                    deferred.cut(left)
                ran = done or ran
            if ran:
                deferred.write(connection)
                if self._hook is not None:
                    self._hook.before_commit(connection)
            else:
                transaction.rollback()
        return ran

    def _begin(self) -> tuple[Connection, RootTransaction]:
        """Begin a transaction that is the only writing one, on another connection if the last one is gone."""
        if self._connection is not None:
            try:
                return self._connection, self._take_turn(self._connection)
            except DBAPIError as err:
                self._drop_connection()
                if not err.connection_invalidated:
                    raise
        self._connection = self._database.connect()
        return self._connection, self._take_turn(self._connection)

    def _take_turn(self, connection: Connection) -> RootTransaction:
        transaction = connection.begin()
        self._database.take_turn(connection)
        return transaction

    def _claim(self, job: _Job[Any]) -> bool:
        with self._state:
            if job.state == "waiting":
                job.state = "running"
            return job.state == "running"

    def _settle(self, batch: list[_Job[Any]], error: BaseException | None) -> None:
        with self._state:
            for job in batch:
                job.error = error or job.error
                job.settled = True
                job.waiting.release()

    def _drop_connection(self) -> None:
        """Close the writing connection, under the lock; the next batch opens another."""
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None


def _nobody() -> int:
    return 0


def bump_configuration(connection: Connection) -> None:
    """Count a change of policy, root or reference value, so that running services read anew."""
    _count(connection, setup.CONFIGURATION)


def _count(connection: Connection, name: str) -> None:
    counters = schema.counters
    connection.execute(update(counters).where(counters.c.name == name).values(value=counters.c.value + 1))


def _run_in_savepoint(connection: Connection, job: _Job[Any], hint: str) -> bool:
    """Run a job, undoing what it did when it refuses; return whether it did not."""
    _SAVEPOINT.run(connection, {})  # never released: the name means the last one, and all end with the batch
    ran = _run(connection, job, hint)
    if not ran:
        _ROLLBACK_TO.run(connection, {})
    return ran


def _run(connection: Connection, job: _Job[Any], hint: str) -> bool:
    try:
        job.result = job.work(connection)
    except (IntegrityError, ValueRefused) as err:
        if job.single:
            raise  # nothing to go back to
        job.error = unavailable(err, hint=hint)
    except SQLAlchemyError:
        raise  # the transaction cannot be trusted any more: the whole batch fails
    except Exception as err:  # noqa: BLE001  a refusal, or a fault of one job, which must not end the thread of all
        job.error = err
    return job.error is None


def _open(database: Path | str, write_lock: Path | None, seconds: float, password_file: Path | None) -> Database:
    if isinstance(database, str) and database.startswith(POSTGRESQL):
        # Only here: the driver is an extra.
        from cloister.trust.store.postgresql import PostgreSQLDatabase

        return PostgreSQLDatabase(database, seconds=seconds, password_file=password_file)
    if isinstance(database, str):
        if not database.startswith(SQLITE):
            raise Refused(
                "trust.settings.database",
                "not the address of a database",
                expected=f"{POSTGRESQL}USER@HOST/DATABASE or {SQLITE}PATH",
                actual=database.partition(":")[0][:20],
            )
        database = Path(database.removeprefix(SQLITE))
    return SQLiteDatabase(database, write_lock or database.with_name("write.lock"), seconds=seconds)
