"""The hook of a batch: once, within its transaction, and told of a commit only after it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Connection, func, insert, select

from cloister.errors import Refused, Unavailable
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.trust.store.database import Store
from cloister.trust.store.schema import nonces
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


def together(store: Store, *works: Callable[[Connection], object]) -> list[BaseException | None]:
    """Put `works` into one batch; return what each ended with."""
    gate = threading.Event()
    with ThreadPoolExecutor(len(works) + 1) as threads:
        blocker = threads.submit(store.write, lambda connection: gate.wait(5) and refuse(connection))
        time.sleep(0.05)
        jobs = [threads.submit(store.write, work) for work in works]
        time.sleep(0.05)
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
