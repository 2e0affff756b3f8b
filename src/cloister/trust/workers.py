"""Several processes of the service on one port: started, watched, restarted, ended together.

The supervisor holds the port (bound, not listening) and forks; each worker listens on it by SO_REUSEPORT, so the
kernel spreads connections. State is in the store alone, which is why a handshake may land on another worker with each
request. The supervisor itself opens no store, reads no key and starts no thread.

A worker that dies is started again, at once when it had lived a while and with growing pauses when not. One that
cannot start at all, before all were ready, ends the service with its exit code. When the supervisor dies, the workers
notice and drain.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from cloister.trust.journal import Journal

_LIVED_SECONDS: Final = 5.0
_PAUSES: Final = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
_KILL_SECONDS: Final = 10.0  # beyond the time that requests in flight have
_TICK_SECONDS: Final = 0.25
_FAULT: Final = 70  # EX_SOFTWARE
_READY_BYTES: Final = 4096


@dataclass(slots=True, kw_only=True)
class _Worker:
    """One place among the workers and who holds it now."""

    number: int
    pid: int = 0
    watch: int = -1  # pidfd, readable once it ended
    ready: int = -1  # pipe, readable once it answers
    begun: float = 0.0
    failures: int = 0
    due: float = 0.0


class Supervisor:
    """Runs workers until asked to stop.

    Args:
        count: how many.
        work: the life of a worker, in a fork: gets its number and a descriptor to say ready on, returns an exit code.
        on_ready: called once, when all answer.
        on_death: called with the process id of each worker that ended.
        journal: log.
        drain_seconds: time that workers take to end at most.
        parent: process whose end ends this one; None to outlive it.
    """

    def __init__(
        self,
        count: int,
        work: Callable[[int, int], int],
        *,
        on_ready: Callable[[], None],
        on_death: Callable[[int], None],
        journal: Journal,
        drain_seconds: float,
        parent: int | None,
    ) -> None:
        self._work = work
        self._on_ready = on_ready
        self._on_death = on_death
        self._journal = journal
        self._drain_seconds = drain_seconds
        self._parent = parent
        self._workers = [_Worker(number=number) for number in range(1, count + 1)]
        self._announced = False

    def run(self) -> int:
        """Start all, keep all alive, end all; return the exit code. Main thread only."""
        with _wakeups() as wakeup, _watched(self._parent) as parent:
            for worker in self._workers[1:]:
                worker.due = float("inf")  # until the first answers: it brings the store up, or says once why it cannot
            try:
                return self._keep(wakeup, parent)
            finally:
                self._end()

    def _keep(self, wakeup: int, parent: int) -> int:
        while True:
            watched = {wakeup, parent} - {-1}
            for worker in self._workers:
                watched |= {worker.watch, worker.ready} - {-1}
            readable = set(select.select(list(watched), [], [], _TICK_SECONDS)[0])
            if readable & {wakeup, parent}:
                return 0
            for worker in self._workers:
                if worker.ready in readable:
                    self._became_ready(worker)
                if worker.watch in readable:
                    code = self._buried(worker)
                    if not self._announced:
                        return code or _FAULT
                if not worker.pid and time.monotonic() >= worker.due:
                    self._start(worker, wakeup)

    def _start(self, worker: _Worker, wakeup: int) -> None:
        reading, writing = os.pipe()
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            self._become(worker.number, writing, {reading, wakeup})
        os.close(writing)
        worker.pid, worker.ready, worker.begun = pid, reading, time.monotonic()
        worker.watch = os.pidfd_open(pid)

    def _become(self, number: int, writing: int, others: set[int]) -> None:
        """Be the worker; does not return."""
        code = _FAULT
        try:
            signal.set_wakeup_fd(-1)
            for each in (signal.SIGTERM, signal.SIGINT):
                signal.signal(each, signal.SIG_DFL)
            for worker in self._workers:
                others |= {worker.watch, worker.ready} - {-1}
            for descriptor in others:
                os.close(descriptor)
            code = self._work(number, writing)
        except BaseException:  # a fork must not come back as a second supervisor
            traceback.print_exc()
            raise
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _became_ready(self, worker: _Worker) -> None:
        said = os.read(worker.ready, _READY_BYTES)
        os.close(worker.ready)
        worker.ready = -1
        if not said:
            return  # it died: its pidfd says so
        self._journal.note("worker ready", worker=worker.number, pid=worker.pid)
        for each in self._workers:
            each.due = min(each.due, 0.0) if not each.pid and not self._announced else each.due
        if not self._announced and all(each.pid and each.ready == -1 for each in self._workers):
            self._announced = True
            self._on_ready()

    def _buried(self, worker: _Worker) -> int:
        """Collect a dead worker and plan its successor; return its exit code, negative for a signal."""
        code = os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
        self._journal.note("worker ended", worker=worker.number, pid=worker.pid, reason=f"exit code {code}")
        self._on_death(worker.pid)
        lived = time.monotonic() - worker.begun >= _LIVED_SECONDS
        worker.failures = 0 if lived else min(worker.failures + 1, len(_PAUSES) - 1)
        worker.due = time.monotonic() + _PAUSES[max(0, worker.failures - 1)]
        for descriptor in {worker.watch, worker.ready} - {-1}:
            os.close(descriptor)
        worker.pid, worker.watch, worker.ready = 0, -1, -1
        return code

    def _end(self) -> None:
        living = [worker for worker in self._workers if worker.pid]
        for worker in living:
            os.kill(worker.pid, signal.SIGTERM)
        until = time.monotonic() + self._drain_seconds + _KILL_SECONDS
        for worker in living:
            if not select.select([worker.watch], [], [], max(0.0, until - time.monotonic()))[0]:
                os.kill(worker.pid, signal.SIGKILL)
            self._buried(worker)


@contextmanager
def _wakeups() -> Iterator[int]:
    """Give a descriptor that becomes readable on SIGTERM and SIGINT."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = {number: signal.signal(number, _noted) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)


def _noted(_number: int, _frame: object) -> None:
    """Do nothing: the wakeup descriptor has taken it."""


@contextmanager
def _watched(parent: int | None) -> Iterator[int]:
    """Give a descriptor that becomes readable when `parent` ends, -1 for None."""
    if parent is None:
        yield -1
        return
    descriptor = -1
    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(parent)
    try:
        yield descriptor
    finally:
        if descriptor != -1:
            os.close(descriptor)
