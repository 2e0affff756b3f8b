"""The database: durable or refused, never hanging, and never more than one writer."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Connection, func, insert, select, text

from cloister.errors import Refused, Unavailable
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.trust.store.database import Store
from cloister.trust.store.schema import nonces
from store_places import Place

DEADLINE = 0.5


@pytest.fixture
def store(place: Place) -> Store:
    """A store on each kind of database in turn."""
    return place.open(seconds=DEADLINE)


@pytest.fixture
def sqlite(quick: Path) -> Iterator[Store]:
    opened = Store(quick / "trust.db", quick / "write.lock", seconds=DEADLINE)
    yield opened
    opened.close()


def put(store: Store, name: str) -> None:
    store.write(lambda connection: insert_nonce(connection, name))


def insert_nonce(connection: Connection, name: str) -> None:
    connection.execute(insert(nonces).values(tenant=DEFAULT_TENANT, hash=name, issued_at=0))


def names(store: Store) -> list[str]:
    return list(store.read(lambda connection: connection.execute(select(nonces.c.hash)).scalars().all()))


def refused(store: Store, name: str = "late") -> str:
    """Return the code of a refused write, which must come within the deadline."""
    begun = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        put(store, name)
    assert time.monotonic() - begun < 3 * DEADLINE
    return caught.value.code


def test_a_write_is_there_after_a_restart(place: Place) -> None:
    first = place.open()
    put(first, "kept")
    first.close()
    assert names(place.open()) == ["kept"]


@pytest.mark.parametrize(
    ("pragma", "value"),
    [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("mmap_size", 0), ("trusted_schema", 0)],
)
def test_both_connections_are_durable_and_strict(sqlite: Store, pragma: str, value: object) -> None:
    ask = text(f"PRAGMA {pragma}")
    assert sqlite.write(lambda connection: connection.execute(ask).scalar()) == value
    assert sqlite.read(lambda connection: connection.execute(ask).scalar()) == value


def test_only_the_writer_checkpoints(sqlite: Store) -> None:
    ask = text("PRAGMA wal_autocheckpoint")
    assert sqlite.read(lambda connection: connection.execute(ask).scalar()) == 0
    assert sqlite.write(lambda connection: connection.execute(ask).scalar()) == 1000


def test_a_reader_cannot_write(store: Store) -> None:
    with pytest.raises(Unavailable):
        store.read(lambda connection: insert_nonce(connection, "x"))
    assert names(store) == []


def test_all_files_are_private(sqlite: Store, quick: Path) -> None:
    put(sqlite, "x")
    for path in quick.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_a_refusing_job_undoes_only_its_own_changes(store: Store) -> None:
    gate = threading.Event()

    def refuse(connection: Connection) -> None:
        insert_nonce(connection, "undone")
        raise Refused("test.refused", "no")

    def fault(connection: Connection) -> None:
        insert_nonce(connection, "undone too")
        raise ValueError("a fault of ours")

    with ThreadPoolExecutor(4) as threads:
        blocker = threads.submit(store.write, lambda connection: gate.wait(DEADLINE) and None)
        time.sleep(0.02)
        jobs = [threads.submit(store.write, work) for work in (refuse, fault)]
        kept = threads.submit(put, store, "kept")
        time.sleep(0.02)
        gate.set()
        blocker.result()
        kept.result()
        with pytest.raises(Refused):
            jobs[0].result()
        with pytest.raises(ValueError, match="a fault of ours"):
            jobs[1].result()
    assert names(store) == ["kept"]
    put(store, "the thread still lives")


def test_a_conflict_fails_its_own_job_only(store: Store) -> None:
    put(store, "x")
    assert refused(store, "x") == "trust.store.failed"
    put(store, "y")


def test_waiters_share_commits_and_each_gets_its_result(store: Store) -> None:
    def count(connection: Connection) -> int:
        insert_nonce(connection, os.urandom(8).hex())
        return int(connection.execute(select(func.count()).select_from(nonces)).scalar_one())

    with ThreadPoolExecutor(16) as threads:
        results = list(threads.map(lambda _: store.write(count), range(200)))
    assert sorted(results) == list(range(1, 201))


class TestStalled:
    def test_by_a_foreign_transaction(self, sqlite: Store, quick: Path) -> None:
        """Somebody opened the file with the sqlite3 shell."""
        foreign = sqlite3.connect(quick / "trust.db", isolation_level=None)
        foreign.execute("BEGIN EXCLUSIVE")
        assert refused(sqlite) in ("trust.store.locked", "trust.store.timeout")
        assert not sqlite.healthy
        foreign.execute("ROLLBACK")
        foreign.close()
        put(sqlite, "after")
        assert sqlite.healthy and "after" in names(sqlite)

    def test_by_the_write_lock_of_another_process(self, sqlite: Store, quick: Path) -> None:
        descriptor = os.open(quick / "write.lock", os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert refused(sqlite) in ("trust.store.locked", "trust.store.timeout")
        os.close(descriptor)
        put(sqlite, "after")
        assert names(sqlite) == ["after"], "what was given up is not written later"

    def test_by_another_job(self, store: Store) -> None:
        """On PostgreSQL the server ends the transaction of one who says nothing."""
        gate = threading.Event()
        with ThreadPoolExecutor(1) as threads:
            stuck = threads.submit(store.write, lambda connection: gate.wait(10) and None)
            time.sleep(0.05)
            assert refused(store, "given up") == "trust.store.timeout"
            gate.set()
            with pytest.raises(Unavailable):
                stuck.result()
        put(store, "after")
        assert names(store) == ["after"]

    def test_a_caller_may_wait_shorter(self, store: Store) -> None:
        with pytest.raises(Unavailable) as caught:
            store.write(lambda connection: time.sleep(0.1), seconds=0.01)
        assert caught.value.code == "trust.store.timeout"


class TestFull:
    def test_a_full_disk_refuses_and_recovers(self, sqlite: Store) -> None:
        """SQLite's own ceiling stands for ENOSPC: the same SQLITE_FULL comes out of the same place."""
        pages = sqlite.write(lambda connection: connection.execute(text("PRAGMA page_count")).scalar_one())
        sqlite.write(lambda connection: connection.execute(text(f"PRAGMA max_page_count={pages}")) and None)
        big = "x" * 4096 * 8
        assert refused(sqlite, big) == "trust.store.failed"
        assert not sqlite.healthy
        put(sqlite, big)  # the next connection has no such ceiling: space was freed
        assert sqlite.healthy and names(sqlite) == [big]

    def test_health_is_asked_of_the_disk_not_of_memory(self, sqlite: Store, quick: Path) -> None:
        sqlite.check()
        descriptor = os.open(quick / "write.lock", os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        refused(sqlite)
        with pytest.raises(Unavailable):
            sqlite.check()
        os.close(descriptor)
        sqlite.check()
        assert sqlite.healthy


def test_statement_and_parameters_do_not_enter_errors(store: Store) -> None:
    put(store, "canary")
    with pytest.raises(Unavailable) as caught:
        put(store, "canary")
    chain: BaseException | None = caught.value
    while chain is not None:
        assert "canary" not in str(chain) and "canary" not in repr(chain)
        chain = chain.__cause__


def test_what_is_no_database_is_refused(quick: Path) -> None:
    (quick / "trust.db").write_bytes(b"not a database" * 400)
    with pytest.raises(Unavailable) as caught:
        Store(quick / "trust.db", quick / "write.lock")
    assert caught.value.code == "trust.store.failed"


def test_a_closed_store_refuses(store: Store) -> None:
    store.close()
    store.close()
    with pytest.raises(Unavailable):
        put(store, "x")


def test_two_stores_of_one_database_write_in_turn(place: Place) -> None:
    """Two replicas, or the service and a command of the owner, each with its own connection."""
    stores = [place.open() for _ in range(2)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda index: put(stores[index % 2], str(index)), range(200)))
    assert len(names(stores[0])) == len(names(stores[1])) == 200
    for store in stores:
        store.close()
    if place.server is None:
        with sqlite3.connect(place.directory / "trust.db") as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()
