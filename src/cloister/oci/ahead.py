"""Things made ahead of their use, on another thread: decryption beside inflating beside writing, the next layer's MAC
beside this layer's files.

At most a few wait. An error of the maker is raised where the thing after the last good one would come; a user that
stops early ends the maker. Order and content are the maker's own: nothing here looks at them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable
from typing import Final, TypeVar

AHEAD_CHUNKS: Final = 4
_Made = TypeVar("_Made")


def made_ahead(things: Iterable[_Made], *, most: int = AHEAD_CHUNKS) -> Generator[_Made, None, None]:
    """Yield `things`, which are made on a thread of their own; up to `most` of them wait."""
    waiting: deque[_Made] = deque()
    changed = threading.Condition()
    ended = False
    error: BaseException | None = None
    abandoned = False

    def make() -> None:
        nonlocal ended, error
        try:
            for thing in things:
                with changed:
                    changed.wait_for(lambda: len(waiting) < most or abandoned)
                    if abandoned:
                        return
                    waiting.append(thing)
                    changed.notify_all()
        except BaseException as err:  # noqa: BLE001  # handed to the user
            error = err
        finally:
            with changed:
                ended = True
                changed.notify_all()

    maker = threading.Thread(target=make, name="ahead", daemon=True)
    maker.start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: waiting or ended)
                if not waiting:
                    break
                thing = waiting.popleft()
                changed.notify_all()
            yield thing
        if error is not None:
            raise error
    finally:
        with changed:
            abandoned = True
            waiting.clear()
            changed.notify_all()
        maker.join()
