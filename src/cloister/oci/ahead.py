"""Chunks made ahead of their use, on another thread: decryption beside hashing, inflating and writing.

At most a few chunks wait. An error of the maker is raised where the chunk after the last good one would come; a user
that stops early ends the maker. Order and content are the maker's own: nothing here looks at bytes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final

AHEAD_CHUNKS: Final = 4


def made_ahead(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield `chunks`, which are made on a thread of their own."""
    waiting: deque[bytes] = deque()
    changed = threading.Condition()
    ended = False
    error: BaseException | None = None
    abandoned = False

    def make() -> None:
        nonlocal ended, error
        try:
            for chunk in chunks:
                with changed:
                    changed.wait_for(lambda: len(waiting) < AHEAD_CHUNKS or abandoned)
                    if abandoned:
                        return
                    waiting.append(chunk)
                    changed.notify_all()
        except BaseException as err:  # noqa: BLE001  # handed to the user of the chunks
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
                chunk = waiting.popleft()
                changed.notify_all()
            yield chunk
        if error is not None:
            raise error
    finally:
        with changed:
            abandoned = True
            waiting.clear()
            changed.notify_all()
        maker.join()
