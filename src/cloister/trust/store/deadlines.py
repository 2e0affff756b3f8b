"""Time limits on a server that does not answer: its connection is cut, and whoever waits on it gets an error.

A server that was stopped, or that is behind a cut cable, says nothing, and a driver waits for it. Limits of the server
(`statement_timeout`) do not help, because it does not run; those of TCP do not, because its kernel still acknowledges.
So one thread looks at what the others are waiting for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from sqlalchemy.exc import SQLAlchemyError

from cloister.trust.store.failures import too_late

_TICK_SECONDS: Final = 0.05


class Severable(Protocol):
    """A connection that another thread may cut."""

    def cut(self) -> None:
        """End it, so that whoever waits for its peer is told now."""
        ...


@dataclass(slots=True, eq=False)
class _Limit:
    seconds: float
    until: float
    connection: Severable | None = None
    passed: bool = False


class Deadlines:
    """Cuts connections that are used for too long.

    Args:
        seconds: the limit where none is said.
        hint: what an operator looks at when it passes.
    """

    def __init__(self, seconds: float, *, hint: str) -> None:
        self._seconds = seconds
        self._hint = hint
        self._lock = threading.Lock()
        self._limits: set[_Limit] = set()
        self._mine = threading.local()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="trust-store-deadlines", daemon=True)
        self._thread.start()

    @contextmanager
    def limited(self, seconds: float | None = None) -> Iterator[None]:
        """Limit what this thread does with the connections it attaches in the block.

        Raises:
            Unavailable: the block failed after its time had passed (`trust.store.timeout`).
        """
        wait = self._seconds if seconds is None else seconds
        limit = _Limit(wait, time.monotonic() + wait)
        with self._lock:
            self._limits.add(limit)
        self._mine.limit = limit
        try:
            yield
        except (SQLAlchemyError, OSError):
            if limit.passed:
                raise too_late(wait, hint=self._hint) from None
            raise
        finally:
            self._mine.limit = None
            with self._lock:
                self._limits.discard(limit)

    def require_time(self) -> None:
        """Return if the time of this thread has not passed: what was cut is not begun again.

        Raises:
            Unavailable: it has (`trust.store.timeout`).
        """
        limit: _Limit | None = getattr(self._mine, "limit", None)
        if limit is not None and limit.passed:
            raise too_late(limit.seconds, hint=self._hint)

    def attach(self, connection: Severable) -> None:
        """Say which connection this thread uses from here on."""
        limit: _Limit | None = getattr(self._mine, "limit", None)
        if limit is not None:
            with self._lock:
                limit.connection = connection
                if limit.passed:
                    connection.cut()

    def close(self) -> None:
        """End the watching thread."""
        self._ending.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ending.wait(_TICK_SECONDS):
            now = time.monotonic()
            with self._lock:
                for limit in self._limits:
                    if now >= limit.until and not limit.passed:
                        limit.passed = True
                        if limit.connection is not None:
                            limit.connection.cut()
