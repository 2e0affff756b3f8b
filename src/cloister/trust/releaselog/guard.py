"""Whether the log in the database is the one that others were shown: what stands before the first write.

A restored backup, a replica that lost its last commits, a copy that somebody let run: each would sign a second history.
So writing waits until the high-water mark beside the database and one of the configured witnesses have been asked.

- The mark is above the database, or of another history: nothing is written, unless a witness says that what it cosigned
  last is exactly what is in the database, and none says more.
- A witness has cosigned more, or another history: nothing is written, whatever others say, until it is taken out of
  the configuration or the right database is back.
- No witness answers: nothing is written until one does.
"""

from __future__ import annotations

import threading
from typing import Final

from sqlalchemy import Connection

from cloister.errors import Unavailable
from cloister.tlog.tree import CompactRange
from cloister.trust.releaselog import rows
from cloister.trust.releaselog.highwater import HighWater, Mark

_CODE: Final = "trust.releaselog.rolled_back"
_HINT: Final = "restore the newest backup; docs/howto/release-log.md says what to do when there is none"


class Guard:
    """The state of the question.

    Args:
        high_water: the mark.
        asked: whether there are witnesses to ask.
    """

    def __init__(self, high_water: HighWater, *, asked: bool) -> None:
        self._high_water = high_water
        self._state = threading.Condition()
        self._below_mark: Unavailable | None = None
        self._contradicted: Unavailable | None = None
        self._waiting = asked
        self._found = Mark()

    def look(self, connection: Connection, mark: Mark, tree: CompactRange) -> None:
        """Compare the stored log with the mark, which was read before it."""
        self._found = Mark(size=tree.size, root=tree.root())
        try:
            self.require_continues(connection, mark, tree)
        except Unavailable as err:
            self._below_mark = err

    def require_continues(self, connection: Connection, mark: Mark, tree: CompactRange) -> None:
        """Return if the log in the database is the one of `mark`, or continues it.

        Raises:
            Unavailable: it is shorter, or another one (`trust.releaselog.rolled_back`).
        """
        if mark.size > tree.size:
            raise Unavailable(
                _CODE,
                "the database holds an older state of the release log than was written here",
                expected=f"at least {mark.size} entries",
                actual=str(tree.size),
                hint=_HINT,
            )
        if rows.read_tree(connection, mark.size).root() != mark.root:
            raise Unavailable(
                _CODE, "the database holds another release log than was written here", path="root", hint=_HINT
            )

    def require_clear(self) -> None:
        """Return if the log may be written.

        Raises:
            Unavailable: `trust.releaselog.rolled_back`, or no witness has answered (`trust.releaselog.unconfirmed`).
        """
        with self._state:
            problem = self._contradicted or self._below_mark
            waiting = self._waiting
        if problem is not None:
            raise problem
        if waiting:
            raise Unavailable(
                "trust.releaselog.unconfirmed",
                "no witness has confirmed yet that this is the newest state of the release log",
                hint="see that a witness runs and is reachable; nothing is released before",
            )

    def agreed(self, *, exactly: bool) -> None:
        """A witness cosigned the state that was found.

        Args:
            exactly: this state was what it had cosigned last, so that nothing it saw is missing.
        """
        with self._state:
            self._waiting = False
            if exactly and self._below_mark is not None and self._contradicted is None:
                self._high_water.reset(self._found)
                self._below_mark = None
            self._state.notify_all()

    def contradicted(self, witness: str, size: int) -> None:
        """A witness has cosigned another history, or more of this one."""
        with self._state:
            self._contradicted = Unavailable(
                _CODE,
                "a witness has cosigned another state of the release log than the database holds",
                path=witness,
                expected=f"the log that had {size} entries",
                actual=f"{self._found.size} entries",
                hint=_HINT,
            )
            self._state.notify_all()

    def wait(self, seconds: float) -> None:
        """Wait until a witness has answered, or that long."""
        with self._state:
            self._state.wait_for(lambda: not self._waiting or self._contradicted is not None, seconds)
