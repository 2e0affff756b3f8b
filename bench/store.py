"""Rows that are durable per second: the store's group commit beside single commits on the bare driver.

    python bench/store.py [--rounds 15] [--directory DIR]

Each row is an audit row of a release; it counts when the caller was told that it is on disk. The bare driver runs the
same insert with the same settings, one commit each, in one thread. On PostgreSQL the server is one that is started here
(Debian's, on the same disk, fsync on), reached by its socket. Only the ratios within one run mean something elsewhere.
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from sqlalchemy import Connection

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import postgres_process
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.trust.store.database import Store
from cloister.trust.store.records import RELEASED, AuditRow, RecordStore, store_audit

WAITERS = (1, 8, 32)
SLICE = 0.5  # seconds
COLUMNS = (
    "tenant, sequence, at, decision, code, resource, resource_version, tee, level, instance, init_data, pcr00,"
    " guest_key, appraisal_policy, appraisal_policy_digest, release_policy_digest, attestation, denial"
)
ROW = AuditRow(
    at=datetime(2026, 1, 1, tzinfo=UTC), decision=RELEASED, code="trust.released", resource="default/model/one",
    resource_version=1, tee="snp", level="hardware", instance="ab" * 64, init_data="sha256:" + "cd" * 32, pcr00="",
    guest_key="ef" * 32, appraisal_policy="default", appraisal_policy_digest="sha256:" + "01" * 32,
    release_policy_digest="sha256:" + "23" * 32, attestation="a-aaaaaaaaaa",
)  # fmt: skip


def values(number: int) -> tuple[object, ...]:
    named = [getattr(ROW, name) for name in COLUMNS.replace(" ", "").split(",")[3:]]
    return ("bare", number, 1, *named)


def record(connection: Connection) -> None:
    store_audit(connection, DEFAULT_TENANT, ROW)


@dataclass
class Side:
    """One database: how a store and a bare single commit are had on it."""

    name: str
    address: str
    bare: Callable[[], Callable[[int], object]]


def rate(work: Callable[[], object], waiters: int, seconds: float) -> float:
    """Return calls per second of that many threads."""
    done = [0] * waiters
    until = time.perf_counter() + seconds

    def run(place: int) -> None:
        while time.perf_counter() < until:
            work()
            done[place] += 1

    threads = [threading.Thread(target=run, args=(place,)) for place in range(waiters)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - begun)


def bare_sqlite(file: Path) -> Callable[[int], object]:
    connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
    statement = f"INSERT INTO audit ({COLUMNS}) VALUES ({', '.join('?' * 18)})"  # noqa: S608

    def commit(number: int) -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(statement, values(number))
        connection.execute("COMMIT")

    return commit


def bare_postgresql(address: str) -> Callable[[int], object]:
    connection = psycopg.connect(address, options="-c synchronous_commit=on", autocommit=True)
    statement = f"INSERT INTO audit ({COLUMNS}) VALUES ({', '.join(['%s'] * 18)})"  # noqa: S608
    return lambda number: connection.execute(statement.encode(), values(number))


def measure(side: Side, rounds: int) -> None:
    store = Store(side.address)
    commit = side.bare()
    numbers = iter(range(1, 10**9))
    bare: list[float] = []
    ours: dict[int, list[float]] = {waiters: [] for waiters in WAITERS}
    for _ in range(rounds):  # in turn, because what a commit costs on a shared disk changes from second to second
        bare.append(rate(lambda: commit(next(numbers)), 1, SLICE))
        for waiters, rates in ours.items():
            rates.append(rate(lambda: store.write(record), waiters, SLICE))
    base = statistics.median(bare)
    print(f"{side.name}, bare driver, single commits: {base:.0f} rows/s ({min(bare):.0f} to {max(bare):.0f})")
    for waiters, rates in ours.items():
        ratio = statistics.median(own / other for own, other in zip(rates, bare, strict=True))
        print(f"{side.name}, store, {waiters:2} waiting: {statistics.median(rates):.0f} rows/s, {ratio:.2f}x")
    last = RecordStore(store, tenant=DEFAULT_TENANT).last_audit()
    store.close()
    again = Store(side.address)
    assert RecordStore(again).last_audit() == last > 0  # what is counted is there
    again.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="of half a second for each figure")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on the disk to measure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        file = Path(directory) / "trust.db"
        measure(Side("SQLite", f"sqlite:///{file}", lambda: bare_sqlite(file)), options.rounds)
    with postgres_process.running(fsync=True) as server:
        address = server.url(server.create_database())
        measure(Side("PostgreSQL", address, lambda: bare_postgresql(address)), options.rounds)


if __name__ == "__main__":
    main()
