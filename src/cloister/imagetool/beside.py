"""A check that runs beside the bytes it is about, on a thread of its own.

The chunks go to whoever asks for them and, through a short queue, to the check, which reads all of them. Its verdict
comes behind the last chunk, before the end: whoever takes the end for success has waited for it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Final

_WAITING_CHUNKS: Final = 4


def checked_beside(chunks: Iterable[bytes], check: Callable[[Iterable[bytes]], None]) -> Iterator[bytes]:
    """Yield `chunks` while `check` reads them too; raise what it raises.

    Args:
        chunks: the bytes.
        check: reads to the end of what it is given, or raises. When the chunks are not used up, its own end early too.
    """
    waiting: queue.Queue[bytes | None] = queue.Queue(_WAITING_CHUNKS)
    error: BaseException | None = None

    def given() -> Iterator[bytes]:
        while (chunk := waiting.get()) is not None:
            yield chunk

    def run() -> None:
        nonlocal error
        source = given()
        try:
            check(source)
        except BaseException as err:  # noqa: BLE001  # handed to the user of the chunks
            error = err
        for _ in source:  # after an error: whoever feeds must not wait for room
            continue

    thread = threading.Thread(target=run, name="beside", daemon=True)
    thread.start()
    try:
        for chunk in chunks:
            if error is not None:
                break
            waiting.put(chunk)
            yield chunk
    finally:
        waiting.put(None)
        thread.join()
    if error is not None:
        raise error
