"""The hook of a batch: once, within its transaction, and told of a commit only after it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from sqlalchemy import Connection, func, insert, select

from cloister.errors import Refused, Unavailable
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.trust.store.database import Store
from cloister.trust.store.deferred import defer
from cloister.trust.store.records import AuditRow, store_audit
from cloister.trust.store.schema import nonces
from statements import statements
from store_places import Place

HOOKED = "of the hook"


class Hook:
    """Writes the number of rows it finds, and remembers what it was asked."""

    def __init__(self, look: Callable[[], int] = lambda: 0) -> None:
        self.refusal: Exception | None = None
        self.late: Exception | None = None
        self.seen: list[int] = []
        self.committed: list[int] = []
        self._look = look

    def before_commit(self, connection: Connection) -> None:
        count = connection.execute(select(func.count()).select_from(nonces)).scalar_one()
        self.seen.append(count)
        put(connection, f"{HOOKED} {count}")
        if self.refusal is not None:
            raise self.refusal

    def after_commit(self) -> None:
        self.committed.append(self._look())
        if self.late is not None:
            raise self.late


def put_all(connection: Connection, found: list[str]) -> None:
    """Write what was left, each with how many were left together."""
    for name in found:
        put(connection, f"{name} of {len(found)}")


def leave(connection: Connection, name: str) -> None:
    defer(connection, put_all, name)


def leave_and_refuse(connection: Connection) -> None:
    leave(connection, "refused")
    raise Refused("test.refused", "no")


def put(connection: Connection, name: str) -> None:
    connection.execute(insert(nonces).values(tenant=DEFAULT_TENANT, hash=name, issued_at=0))


def names(store: Store) -> set[str]:
    return set(store.read(lambda connection: connection.execute(select(nonces.c.hash)).scalars().all()))


@pytest.fixture
def hook() -> Hook:
    return Hook()


@pytest.fixture
def store(place: Place, hook: Hook) -> Store:
    return place.open(batch_hook=hook)


def together(store: Store, *works: Callable[[Connection], object], single: bool = False) -> list[BaseException | None]:
    """Put `works` into one batch, in this order; return what each ended with."""
    gate = threading.Event()
    with ThreadPoolExecutor(len(works) + 1) as threads:
        blocker = threads.submit(store.write, lambda connection: gate.wait(5) and refuse(connection))
        time.sleep(0.05)
        jobs = []
        for work in works:
            jobs.append(threads.submit(store.write, work, single=single))
            time.sleep(0.02)
        gate.set()
        blocker.exception()
        return [job.exception() for job in jobs]


def refuse(connection: Connection) -> None:
    put(connection, "refused")
    raise Refused("test.refused", "no")


def test_its_rows_are_in_the_batch_and_it_runs_once(store: Store, hook: Hook) -> None:
    assert together(store, lambda c: put(c, "a"), lambda c: put(c, "b")) == [None, None]
    assert hook.seen == [2], "once, after both jobs, and not for a batch of refusals"
    assert names(store) == {"a", "b", f"{HOOKED} 2"}


def test_what_a_refused_job_wrote_is_gone_before_it(store: Store, hook: Hook) -> None:
    errors = together(store, lambda c: put(c, "a"), refuse)
    assert errors[0] is None and isinstance(errors[1], Refused)
    assert hook.seen == [1]


@pytest.mark.parametrize("refusal", [Refused("test.hook", "no"), ValueError("a fault of ours")])
def test_raising_undoes_the_whole_batch(store: Store, hook: Hook, refusal: Exception) -> None:
    hook.refusal = refusal
    assert together(store, lambda c: put(c, "a"), lambda c: put(c, "b")) == [refusal, refusal]
    assert names(store) == set() and hook.committed == []
    assert not store.healthy
    hook.refusal = None
    store.write(lambda c: put(c, "after"))
    assert names(store) == {"after", f"{HOOKED} 1"} and store.healthy


def test_it_hears_of_a_commit_only_after_it(place: Place) -> None:
    """What it sees then, over another connection, is what was committed."""
    hook = Hook(lambda: len(names(store)))
    store = place.open(batch_hook=hook)
    store.write(lambda c: put(c, "a"))
    assert hook.committed == [2]


def test_a_fault_after_the_commit_is_a_refusal(store: Store, hook: Hook) -> None:
    hook.late = Unavailable("test.late", "witness does not answer")
    with pytest.raises(Unavailable, match="witness"):
        store.write(lambda c: put(c, "a"))
    assert "a" in names(store), "the record says more than happened, never less"


def test_making_the_tables_is_no_batch(store: Store, hook: Hook) -> None:
    assert hook.seen == [] and hook.committed == []


class TestDeferred:
    """What jobs leave for the end of their transaction."""

    @pytest.mark.parametrize("single", [False, True])
    def test_is_written_together_without_that_of_a_refused_job(self, store: Store, hook: Hook, single: bool) -> None:
        works = [lambda c: leave(c, "a"), leave_and_refuse, lambda c: leave(c, "b")]
        errors = together(store, *works, single=single)
        assert [type(error) for error in errors] == [type(None), Refused, type(None)]
        assert names(store) == {"a of 2", "b of 2", f"{HOOKED} 2"}, "before the hook, which counts it"

    def test_of_a_job_alone_goes_when_it_refuses(self, store: Store, hook: Hook) -> None:
        with pytest.raises(Refused):
            store.write(leave_and_refuse)
        store.write(lambda c: leave(c, "next"))
        assert names(store) == {"next of 1", f"{HOOKED} 1"}

    def test_goes_with_a_batch_that_is_undone(self, store: Store, hook: Hook) -> None:
        hook.refusal = Refused("test.hook", "no")
        assert together(store, lambda c: leave(c, "a"), lambda c: leave(c, "b")) == [hook.refusal] * 2
        hook.refusal = None
        store.write(lambda c: leave(c, "after"))
        assert names(store) == {"after of 1", f"{HOOKED} 1"}

    def test_what_the_database_does_not_take_fails_its_batch(self, store: Store) -> None:
        errors = together(store, lambda c: leave(c, "same"), lambda c: leave(c, "same"))
        assert [type(error) for error in errors] == [Unavailable, Unavailable]
        assert names(store) == set()

    def test_a_row_that_no_database_takes_fails_its_own_job(self, store: Store) -> None:
        """It is looked at when it is left: at the end it would fail everybody's."""
        row = AuditRow(at=datetime.now(UTC), decision="denied", code="x", resource="\ud800")
        errors = together(store, lambda c: store_audit(c, DEFAULT_TENANT, row), lambda c: put(c, "b"))
        assert [type(error) for error in errors] == [UnicodeEncodeError, type(None)]
        assert "b" in names(store)


def test_a_single_job_runs_without_a_savepoint(store: Store) -> None:
    with statements() as seen:
        assert together(store, lambda c: put(c, "a"), lambda c: leave(c, "b"), single=True) == [None, None]
    assert sum("SAVEPOINT" in text for text in seen) == 0
    with statements() as seen:
        assert together(store, lambda c: put(c, "c"), lambda c: leave(c, "d")) == [None, None]
    assert sum("SAVEPOINT" in text for text in seen) == 2


def test_a_statement_that_fails_in_a_single_job_fails_its_batch(store: Store) -> None:
    """There is nothing to go back to, so nobody is told that something was written."""
    store.write(lambda c: put(c, "a"))
    errors = together(store, lambda c: put(c, "b"), lambda c: put(c, "a"), single=True)
    assert [type(error) for error in errors] == [Unavailable, Unavailable]
    assert "b" not in names(store)
    store.write(lambda c: put(c, "after"))
    assert "after" in names(store) and store.healthy
