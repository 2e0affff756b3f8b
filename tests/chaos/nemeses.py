"""What breaks things: a seeded plan of faults, each done and undone in turn, and the time until all serve again."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Collection, Sequence

from chaos import proxy
from chaos.history import History
from chaos.load import Load
from chaos.services import FAKETIME, STORE_SECONDS, Database, Replica

RECOVERY_SECONDS = 30.0  # without faults it is under two; tests share machines
RESTART_SECONDS = 45.0  # of one that was killed: a Python process on a busy machine
RESTARTS = ("replica killed", "replica and database killed")
HELD_TRIES = 60  # instants at which a replica is stopped until one is in the middle of a transaction
GAP_SECONDS = (0.2, 1.2)


class Nemeses:
    """Breaks what a run is made of.

    Args:
        replicas: all of them.
        database: theirs.
        load: asked whether all serve again.
        observe: called after each fault, to take what the service forgets in time.
        history: of the run.
        seed: of all choices; the plan depends on nothing else.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        database: Database,
        load: Load,
        history: History,
        observe: Callable[[], None],
        *,
        seed: int,
    ) -> None:
        self._observe = observe
        self._replicas, self._database, self._load, self._history = replicas, database, load, history
        self._choose = random.Random(f"{seed} nemeses")
        self.kinds: dict[str, Callable[[], None]] = {
            "replica killed": self._kill_replica,
            "replica stopped in a transaction": self._stop_replica,
            "database killed": self._kill_database,
            "database stopped": self._stop_database,
            "database slow": self._slow_database,
            "connections of guests broken": self._break_front,
            "connections to the database broken": self._break_back,
            "disk full": self._fill_disk,
            "clock jumps": self._jump,
            "replica and database killed": self._kill_both,
        }
        if any(replica.workers > 1 for replica in replicas):
            self.kinds["worker killed"] = self._kill_worker
        self.skipped: dict[str, str] = {}
        if database.disk.reason is not None:
            self._skip("disk full", database.disk.reason)
        if not FAKETIME.exists():
            self._skip("clock jumps", f"no {FAKETIME}: run `tools/setup test-packages`")

    def run(self, seconds: float) -> None:
        """Break one thing after the other, each kind once per round, for one round and until the time is over."""
        until, rounds = time.monotonic() + seconds, 0
        while time.monotonic() < until or rounds < 1:
            round_ = sorted(self.kinds)
            self._choose.shuffle(round_)
            for kind in round_:
                if rounds and time.monotonic() >= until:
                    return
                time.sleep(self._choose.uniform(*GAP_SECONDS))
                self.kinds[kind]()
                self._history.count(f"fault: {kind}")
                self.recover(kind)
            rounds += 1

    def only(self, kinds: Collection[str]) -> None:
        """Leave out all other kinds; for looking into one."""
        self.kinds = {name: work for name, work in self.kinds.items() if name in kinds}

    def recover(self, kind: str) -> None:
        """Note how long it takes until every replica did a whole handshake; too long is a fault."""
        begun = time.monotonic()
        for replica in self._replicas:
            limit = RESTART_SECONDS if kind in RESTARTS else RECOVERY_SECONDS
            if self._load.probe(replica.number, limit) is None:
                self._history.fault(f"replica {replica.number} does not serve {limit:g} s after: {kind}")
        self._history.recoveries.append(time.monotonic() - begun)
        self._history.did(f"all serve again after {self._history.recoveries[-1]:.2f} s")
        self._observe()

    def _skip(self, kind: str, reason: str) -> None:
        self.kinds.pop(kind)
        self.skipped[kind] = reason

    def _some(self) -> Replica:
        return self._choose.choice(self._replicas)

    def _note(self, text: str, seconds: float | None = None) -> None:
        self._history.did(text if seconds is None else f"{text} for {seconds:.2f} s")

    def _kill_replica(self) -> None:
        replica = self._some()
        self._note(f"SIGKILL of replica {replica.number}")
        replica.kill()

    def _kill_worker(self) -> None:
        """Its supervisor starts it again; the other one goes on meanwhile."""
        replica = self._some()
        self._note(f"SIGKILL of a worker of replica {replica.number}")
        if not replica.kill_worker(self._choose):
            self._history.fault(f"replica {replica.number} has no workers")

    def _stop_replica(self) -> None:
        """The server must end the transaction that the stopped one holds, so that the others go on."""
        replica, seconds = self._some(), self._choose.uniform(STORE_SECONDS / 4 + 0.5, STORE_SECONDS + 1)
        backend = None
        for _ in range(HELD_TRIES):
            time.sleep(self._choose.uniform(0.0, 0.02))
            replica.signal(signal.SIGSTOP)
            time.sleep(0.01)
            held = self._database.writer()
            if held is not None and held[1] in replica.back.upstream_ports():
                backend = held[0]
                break
            replica.signal(signal.SIGCONT)
        else:
            replica.signal(signal.SIGSTOP)
        self._note(f"SIGSTOP of replica {replica.number}{' in a transaction' if backend else ''}", seconds)
        time.sleep(seconds)
        if backend is not None:
            self._history.count("replica stopped with the writers' lock")
            if self._database.lives(backend):
                self._history.fault("the database did not end the session of a stopped writer")
        replica.signal(signal.SIGCONT)

    def _kill_database(self) -> None:
        seconds = self._choose.uniform(0.1, 2.5)
        self._note("SIGKILL of the database, gone", seconds)
        self._database.server.end(signal.SIGKILL)
        time.sleep(seconds)
        self._database.server.start()

    def _kill_both(self) -> None:
        """The replica is started again before the database is: it has to try more than once."""
        replica, seconds = self._some(), self._choose.uniform(1.0, 3.0)
        self._note(f"SIGKILL of replica {replica.number} and of the database, gone", seconds)
        replica.kill()
        self._database.server.end(signal.SIGKILL)
        time.sleep(seconds)
        self._database.server.start()

    def _stop_database(self) -> None:
        seconds = self._choose.uniform(0.5, 2 * STORE_SECONDS)
        self._note("SIGSTOP of the database", seconds)
        with self._database.server.stopped():
            time.sleep(seconds)

    def _slow_database(self) -> None:
        seconds, delay = self._choose.uniform(1.0, 4.0), self._choose.uniform(0.02, 0.3)
        self._note(f"every answer of the database {delay:.2f} s later", seconds)
        self._through([replica.back for replica in self._replicas], proxy.DELAY, seconds, delay)

    def _break_front(self) -> None:
        self._break("guests and", lambda replica: replica.front)

    def _break_back(self) -> None:
        self._break("the database and", lambda replica: replica.back)

    def _break(self, ends: str, way: Callable[[Replica], proxy.Proxy]) -> None:
        replica, seconds = self._some(), self._choose.uniform(1.0, 4.0)
        mode = self._choose.choice((proxy.DROP, proxy.RESET, proxy.FLAKY))
        self._note(f"between {ends} replica {replica.number}: {mode}", seconds)
        self._through([way(replica)], mode, seconds)

    def _through(self, ways: Sequence[proxy.Proxy], mode: str, seconds: float, delay: float = 0.0) -> None:
        for way in ways:
            way.set(mode, delay)
        time.sleep(seconds)
        for way in ways:
            way.set(proxy.PASS)

    def _fill_disk(self) -> None:
        seconds = self._choose.uniform(1.0, 4.0)
        self._note("the database's disk is full", seconds)
        self._database.disk.fill()
        self._database.use_up_space()
        time.sleep(seconds)
        self._database.disk.empty()
        if self._database.require_running():
            self._note("the database had ended and was started again")

    def _jump(self) -> None:
        """One replica's wall clock jumps, forward or back, and later back again."""
        replica = self._replicas[0]
        seconds, jump = self._choose.uniform(2.5, 5.0), self._choose.choice((3600, -3600))
        self._note(f"clock of replica {replica.number} jumps by {jump:+d} s", seconds)
        replica.set_clock(jump)
        time.sleep(seconds)
        replica.set_clock(0)
        time.sleep(1.1)  # until the file is looked at again
