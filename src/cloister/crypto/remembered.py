"""Answers that held, each with the time in which it holds: what makes the second verification of a chain cheap.

A memory changes no answer. What is put in must be a pure function of its key and of the time, and must not depend on
the time within its window; what did not hold, and so might hold with other inputs, is not put in at all, so an attacker
fills nothing. Bounded: the one that was not asked for longest goes. Safe for several threads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from datetime import datetime
from typing import Generic, TypeVar

_V = TypeVar("_V")


class Remembered(Generic[_V]):
    """A memory of one kind of answers.

    Args:
        ceiling: most answers kept.
    """

    def __init__(self, ceiling: int) -> None:
        self._ceiling = ceiling
        self._answers: OrderedDict[Hashable, tuple[_V, datetime, datetime]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, at: datetime) -> _V | None:
        """Return the answer to `key` when it holds at `at`. The last instant of a window is no longer in it: some of
        the vendors' windows end before it, and a second look costs little."""
        with self._lock:
            found = self._answers.get(key)
            if found is None or not found[1] <= at < found[2]:
                return None
            self._answers.move_to_end(key)
            return found[0]

    def put(self, key: Hashable, answer: _V, start: datetime, end: datetime) -> None:
        """Keep an answer that holds from `start` to before `end`."""
        with self._lock:
            self._answers[key] = (answer, start, end)
            self._answers.move_to_end(key)
            while len(self._answers) > self._ceiling:
                self._answers.popitem(last=False)

    def cache_clear(self) -> None:
        """Forget everything, for measurements of the first verification; no answer depends on it."""
        with self._lock:
            self._answers.clear()

    def __len__(self) -> int:
        return len(self._answers)
