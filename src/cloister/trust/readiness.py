"""Readiness: whether each part that a release needs works now, by asking it, each with its reason.

Nothing is remembered from the past but the last answer, for a moment, so that asking often costs little: a part that
works again is ready again without a restart. A check raises what is wrong with it; its code and words are told, its
path and values are not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cloister.errors import CloisterError, Unavailable

KEPT_SECONDS: Final = 1.0
CLOCK_SLACK: Final = timedelta(minutes=5)  # as sessions allow it

Check = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One check's answer; an empty code means well."""

    name: str
    code: str = ""
    reason: str = ""


class Readiness:
    """Asks checks, at most once per moment.

    Args:
        checks: by name; each raises a CloisterError when its part does not work.
        clock: monotonic seconds.
    """

    def __init__(self, checks: Mapping[str, Check], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._checks = dict(checks)
        self._clock = clock
        self._lock = threading.Lock()
        self._asked = float("-inf")
        self._answers: tuple[Checked, ...] = ()

    def ask(self) -> tuple[Checked, ...]:
        """Return the answer of every check; it is at most a moment old."""
        with self._lock:
            if self._clock() - self._asked >= KEPT_SECONDS:
                self._answers = tuple(_checked(name, check) for name, check in self._checks.items())
                self._asked = self._clock()
            return self._answers


def check_clock(now: datetime, *, not_before: datetime, not_after: datetime, newest: datetime | None) -> None:
    """Return when the clock can be right.

    Args:
        now: what it says.
        not_before: beginning of the service's own CA, which a running service cannot predate.
        not_after: its end.
        newest: time of the newest record in the store, which lies in the past.

    Raises:
        Unavailable: it cannot (`trust.ready.clock`).
    """
    if not not_before - CLOCK_SLACK <= now <= not_after:
        raise Unavailable("trust.ready.clock", "the clock is outside the life of the service's own CA")
    if newest is not None and now < newest - CLOCK_SLACK:
        raise Unavailable("trust.ready.clock", "the clock is behind the newest record")


def check_collateral(directory: Path, now: datetime, *, most: timedelta) -> None:
    """Return when what vendors publish was fetched lately, or nothing of it is kept.

    Args:
        directory: where `cloister collateral` keeps it.
        now: time.
        most: how old the newest fetch may be.

    Raises:
        Unavailable: it was not (`trust.ready.collateral`), or cannot be read.
    """
    age = collateral_age(directory, now)
    if age is not None and age > most:
        raise Unavailable(
            "trust.ready.collateral",
            f"no collateral was fetched for {age.days} days",
            hint="run `cloister collateral prefetch` from a timer",
        )


def collateral_age(directory: Path, now: datetime) -> timedelta | None:
    """Return the time since anything below `directory` was written, None when there is nothing.

    Raises:
        Unavailable: it cannot be read (`trust.ready.collateral`).
    """
    try:
        times = [path.stat().st_mtime for path in directory.rglob("*") if path.is_file()]
    except OSError as err:
        raise Unavailable("trust.ready.collateral", f"the collateral cannot be read: {err.strerror}") from err
    return timedelta(seconds=max(0.0, now.timestamp() - max(times))) if times else None


def _checked(name: str, check: Check) -> Checked:
    try:
        check()
    except CloisterError as err:
        return Checked(name=name, code=err.code, reason=err.message)
    return Checked(name=name)
