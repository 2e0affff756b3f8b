"""Break the trust service on purpose, under load, and hold what its clients saw against what it recorded.

    python tests/chaos/run.py --seconds 600 --seed 1 --database postgresql
    python tests/chaos/run.py --seconds 600 --seed 1 --workers 2
    python tests/chaos/run.py --kills 200 --seed 1 --database sqlite

Prints a report as JSON; the exit code is 1 when a promise was broken. The seed fixes what is done and with which
parameters; what happens in between is the machine's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from chaos import checkers
from chaos.history import History
from chaos.load import Load
from chaos.nemeses import Nemeses
from chaos.owner import Owner
from chaos.proxy import Proxies
from chaos.records import Records, read_bound, read_records
from chaos.served import check_served
from chaos.services import Database, Replica, Supervisor, disk
from chaos.sudden import KillPlan, kill_often
from cloister.tlog.receipt import LogPins, parse_pins
from postgres_process import USER

REPLICAS = 3
GUESTS = 6
START_SECONDS = 60.0


@dataclass(slots=True, kw_only=True)
class Report:
    """What a run did and found.

    Attributes:
        faults: promises that were broken; empty when all were kept.
        figures: numbers, by name.
        counts: of what happened, by name.
        schedule: what was done, in order, with seconds from the start.
        skipped: what could not be done here, and why.
    """

    seed: int
    database: str
    faults: list[str]
    figures: dict[str, float]
    counts: dict[str, int]
    schedule: list[str]
    skipped: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:  # Any: JSON
        return {name: getattr(self, name) for name in self.__slots__}


def run_postgresql(directory: Path, *, seconds: float, seed: int, only: Sequence[str] = (), workers: int = 1) -> Report:
    """Three replicas of so many workers on one PostgreSQL server, everything broken in turn, or `only` some kinds."""
    history = History()
    with ExitStack() as stack:
        where = stack.enter_context(disk(directory))
        database = Database(where)
        stack.callback(database.end)
        owner = Owner(directory, history, database=database.url)
        stack.callback(owner.close)
        proxies = stack.enter_context(Proxies(seed))
        replicas = []
        for number in range(REPLICAS):
            state = directory / f"replica{number}"
            state.mkdir(mode=0o700)
            shutil.copy2(owner.state / "root.key", state)
            replicas.append(
                Replica(number, state, proxies, database.proxied_url, database.server.port, workers=workers)
            )
        with Supervisor(replicas, history) as supervisor:
            supervisor.wait_serving(START_SECONDS)
            history.began = time.monotonic()
            engine = create_engine(
                f"postgresql+psycopg://{USER}@/{database.name}?host={database.server.directory}&port={database.server.port}",
                poolclass=NullPool,
            )

            def observe() -> None:
                with engine.connect() as connection:
                    history.bound.update(read_bound(connection))

            urls = [lambda replica=replica: f"https://127.0.0.1:{replica.front.port}" for replica in replicas]
            with Load(urls, owner, history, seed=seed, guests=GUESTS) as load:
                nemeses = Nemeses(replicas, database, load, history, observe, seed=seed)
                if only:
                    nemeses.only(only)
                nemeses.run(seconds)
                nemeses.recover("the last fault")
            took = history.elapsed()
            observe()
            with engine.connect() as connection:
                records = read_records(connection)
            pins = parse_pins(owner.log_pins.key, (), 0)
            roots, _ = checkers.recompute(records)
            for replica, url in zip(replicas, urls, strict=True):
                history.faults += check_served(url(), owner.ca_pem, pins.key, roots, f"replica {replica.number}")
        logs = {replica.log.name: replica.log.read_bytes() for replica in replicas}
        logs["the database's log"] = (database.server.directory / "log").read_bytes()
        history.counts["disk full felt"] = int(database.felt_the_disk)
        history.counts["starts of replicas"] = sum(replica.starts for replica in replicas)
    report = _report(history, records, pins, logs, seed=seed, database="postgresql", seconds=took)
    report.skipped = nemeses.skipped
    return report


def run_sqlite(directory: Path, *, kills: int, seed: int) -> Report:
    """One service on a SQLite file, killed at `kills` instants."""
    history = History()
    owner = Owner(directory, history)
    try:
        history.began = time.monotonic()
        plan = KillPlan(kills=kills, seed=seed)
        logs = kill_often(owner, history, plan)
        took = history.elapsed()
    finally:
        owner.close()
    engine = create_engine(f"sqlite+pysqlite:///{owner.state}/trust.db")
    with engine.connect() as connection:
        verdict = connection.exec_driver_sql("PRAGMA integrity_check").scalar_one()
        if verdict != "ok":
            history.faults.append(f"the database is damaged: {verdict}")
        records = read_records(connection)
        history.bound.update(read_bound(connection))
    engine.dispose()
    pins = parse_pins(owner.log_pins.key, (), 0)
    return _report(history, records, pins, logs, seed=seed, database="sqlite", seconds=took)


def _report(
    history: History,
    records: Records,
    pins: LogPins,
    logs: dict[str, bytes],
    *,
    seed: int,
    database: str,
    seconds: float,
) -> Report:
    faults = checkers.check(history, records, pins) + checkers.silent(history.secrets, logs)
    recoveries = history.recoveries or [0.0]
    figures = {
        "seconds": round(seconds, 1),
        "acknowledged releases": len(history.releases),
        "attestations accepted": history.counts["attested"],
        "attestations fired at once": history.counts["attestations fired at all replicas at once"],
        "intrusions tried": history.counts["intrusions tried"],
        "faults injected": sum(n for name, n in history.counts.items() if name.startswith("fault: ")),
        "recovery median s": round(statistics.median(recoveries), 2),
        "recovery longest s": round(max(recoveries), 2),
        **checkers.numbers(records),
    }
    counts = dict(sorted(history.counts.items()))
    return Report(
        seed=seed, database=database, faults=faults, figures=figures, counts=counts, schedule=history.schedule
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long faults are injected (PostgreSQL)")
    parser.add_argument("--kills", type=int, default=200, help="how often the service is killed (SQLite)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes of each replica (PostgreSQL)")
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument(
        "--only", action="append", default=[], metavar="KIND", help="a kind of fault, as reports name it"
    )
    parser.add_argument("--keep", type=Path, help="a new directory for state and logs, kept")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="cloister-chaos-") as temporary:
        directory = given.keep or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        if given.database == "postgresql":
            report = run_postgresql(
                directory, seconds=given.seconds, seed=given.seed, only=given.only, workers=given.workers
            )
        else:
            report = run_sqlite(directory, kills=given.kills, seed=given.seed)
    print(json.dumps(report.as_dict(), indent=1))
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
