"""The processes of a chaos run: replicas under a supervisor, and a PostgreSQL server on a disk that can be full."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg

from chaos.history import History
from chaos.proxy import Proxies
from postgres_process import PostgreSQLServer, require_programs
from trust_process import command

DISK_BYTES = 1 << 30  # sparse, in memory
STORE_SECONDS, REQUEST_SECONDS = 2.0, 3.0
RESTART_SECONDS = 0.2  # between death and restart
_POLL_SECONDS = 0.02
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


class Replica:
    """One `python -m cloister.trust.app`; clients and database are reached through proxies.

    Attributes:
        number: which.
        workers: processes of it that answer; with more than one the first process is their supervisor.
        front: proxy between clients and it.
        back: proxy between it and the database.
        starts: how often it was started.
    """

    def __init__(
        self, number: int, state: Path, proxies: Proxies, database: str, database_port: int, *, workers: int = 1
    ) -> None:
        self.number, self.state, self.workers = number, state, workers
        self.front, self.back = proxies.make(), proxies.make()
        self.back.target = database_port
        self._database = database.format(port=self.back.port)
        self.log = state.with_suffix(".log")
        self.clock = state.with_suffix(".clock")
        self.clock.write_text("+0")
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self.may_end = False
        self.serving = False
        self._ready = state.with_suffix(".ready")

    def start(self) -> None:
        self._ready.unlink(missing_ok=True)
        self.serving = self.may_end = False
        self.starts += 1
        arguments = ["--database", self._database, "--ready-file", str(self._ready), "--die-with-parent"]
        arguments += ["--store-seconds", str(STORE_SECONDS), "--request-seconds", str(REQUEST_SECONDS)]
        arguments += ["--workers", str(self.workers)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command(self.state, *arguments), stdout=log, stderr=log, env=self._environment()
            )

    def look(self) -> int | None:
        """Notice readiness; return the exit code of a process that ended."""
        assert self.process is not None
        code = self.process.poll()
        if code is None and not self.serving and not self.may_end and self._ready.exists():
            self.front.target = json.loads(self._ready.read_text())["port"]
            self.serving = True
        return code

    def kill(self) -> None:
        """End all its processes at once, the supervisor first: it would start the others again."""
        assert self.process is not None
        self.may_end = True
        others = self.others()
        self.process.kill()
        _signal(others, signal.SIGKILL)

    def kill_worker(self, choose: random.Random) -> bool:
        """End one of several workers, which its supervisor starts again; return False when there was none."""
        others = self.others()
        if others:
            _signal([choose.choice(others)], signal.SIGKILL)
        return bool(others)

    def signal(self, number: int) -> None:
        assert self.process is not None
        others = self.others()
        with suppress(ProcessLookupError):
            self.process.send_signal(number)
        _signal(others, number)

    def others(self) -> list[int]:
        """Return its processes but the first, in the order in which they were started."""
        assert self.process is not None
        try:
            text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        except OSError:
            return []  # it has ended
        return [int(pid) for pid in text.split()]

    def set_clock(self, seconds: int) -> None:
        self.clock.write_text(f"{seconds:+d}")

    def end(self) -> None:
        if self.process is not None:
            self.kill()
            self.process.wait(20)

    def _environment(self) -> dict[str, str]:
        """Its wall clock is what the file says; the monotonic one is left alone."""
        if not FAKETIME.exists() or self.number != 0:
            return dict(os.environ)
        return {
            **os.environ,
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(self.clock),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }


def _signal(processes: Sequence[int], number: int) -> None:
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


class Supervisor:
    """Restarts what was killed, as an init system does, and nothing else: whatever else ends is a fault."""

    def __init__(self, replicas: Sequence[Replica], history: History) -> None:
        self._replicas, self._history = replicas, history
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos-supervisor", daemon=True)

    def __enter__(self) -> Supervisor:
        for replica in self._replicas:
            replica.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        for replica in self._replicas:
            replica.end()

    def wait_serving(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not all(replica.serving for replica in self._replicas):
            if time.monotonic() > until:
                logs = "\n".join(replica.log.read_text()[-2000:] for replica in self._replicas)
                raise RuntimeError(f"replicas do not start: {logs}")
            time.sleep(_POLL_SECONDS)

    def _run(self) -> None:
        dead: set[int] = set()
        while not self._stop.wait(_POLL_SECONDS):
            for replica in self._replicas:
                if replica.number in dead or (code := replica.look()) is None:
                    continue
                if replica.serving and not replica.may_end:
                    self._history.fault(f"replica {replica.number} ended by itself with {code}")
                    dead.add(replica.number)
                    continue
                if not self._stop.wait(RESTART_SECONDS):  # also one that could not start: the database was away
                    replica.start()


class Disk:
    """A file system of its own, to be filled and emptied; None as `reason` when it is one.

    Attributes:
        place: where it is.
        reason: why there is none.
    """

    def __init__(self, place: Path, reason: str | None) -> None:
        self.place, self.reason = place, reason
        self._ballast = place / "ballast"

    def fill(self) -> None:
        """Leave no byte."""
        with self._ballast.open("wb") as file:
            piece = 64 << 20
            size = 0
            while piece >= 4096:
                try:
                    os.posix_fallocate(file.fileno(), size, piece)
                    size += piece
                except OSError:
                    piece //= 2

    def empty(self) -> None:
        self._ballast.unlink(missing_ok=True)


@contextmanager
def disk(directory: Path) -> Iterator[Disk]:
    """Mount a small file system from a file; where that cannot be done, give a plain directory and the reason."""
    memory = Path("/dev/shm")
    base = Path(tempfile.mkdtemp(prefix="cloister-chaos-", dir=memory if os.access(memory, os.W_OK) else directory))
    image, place = base / "image", base / "disk"
    place.mkdir()
    reason = _mount(image, place)
    base.chmod(0o755)
    try:
        yield Disk(place, reason)
    finally:
        if reason is None:
            for _ in range(50):
                if subprocess.run(["umount", str(place)], capture_output=True, check=False).returncode == 0:
                    break
                time.sleep(0.1)
        shutil.rmtree(base, ignore_errors=True)


def _mount(image: Path, place: Path) -> str | None:
    if os.geteuid() != 0:
        return "mounting a file system needs root"
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    for words in (["mkfs.ext4", "-q", "-m", "0", str(image)], ["mount", "-o", "loop", str(image), str(place)]):
        environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
        except OSError as err:
            return f"{words[0]}: {err.strerror}"
        if done.returncode:
            return f"{words[0]}: {done.stderr.strip()[:200]}"
    return None


class Database:
    """The PostgreSQL server, restarted when it was killed or could not go on with a full disk."""

    def __init__(self, where: Disk) -> None:
        require_programs()
        self.disk = where
        directory = where.place / "postgresql"
        directory.mkdir()
        options = {"max_wal_size": "64MB", "min_wal_size": "32MB", "wal_keep_size": "0", "checkpoint_timeout": "30s"}
        self.server = PostgreSQLServer(directory, fsync=True, options=options)
        self.server.start()
        self.name = self.server.create_database()

    @property
    def url(self) -> str:
        return self.server.url(self.name)

    @property
    def proxied_url(self) -> str:
        """Address with a place for the port of a proxy."""
        return self.server.url(self.name, tcp=True).replace(str(self.server.port), "{port}")

    def require_running(self) -> bool:
        """Start it if it ended; return whether it had."""
        assert self.server.process is not None
        for _ in range(100):  # ending takes a moment after a panic
            if self.server.process.poll() is not None:
                break
            with suppress(Exception):
                self.server.execute("SELECT 1")
                return False
            time.sleep(0.1)
        self.server.end(signal.SIGKILL)
        (self.server.directory / "data" / "postmaster.pid").unlink(missing_ok=True)
        self.server.start()
        return True

    def use_up_space(self) -> None:
        """Make the server need new files: while the disk is full it must fail, not go on with files it has."""
        for _ in range(4):
            with suppress(psycopg.Error):
                self.server.execute("SELECT pg_switch_wal()")
            time.sleep(0.1)

    @property
    def felt_the_disk(self) -> bool:
        return b"No space left on device" in (self.server.directory / "log").read_bytes()

    def writer(self) -> tuple[int, int] | None:
        """Backend and client port of whoever has the writers' lock and says nothing, None when nobody has."""
        rows: list[Any] = self.server.execute(
            "SELECT a.pid, a.client_port FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid "
            "WHERE l.locktype = 'advisory' AND l.granted AND a.state = 'idle in transaction'"
        )
        return (int(rows[0][0]), int(rows[0][1])) if rows else None

    def lives(self, backend: int) -> bool:
        return bool(self.server.execute(f"SELECT 1 FROM pg_stat_activity WHERE pid = {backend}"))  # noqa: S608

    def end(self) -> None:
        self.server.end(signal.SIGKILL)
