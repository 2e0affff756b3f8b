"""One thread per pod that reacts to descriptors: children that end, logs, QEMU's events, the TPM's control channel."""

from __future__ import annotations

import os
import selectors
import threading
from collections.abc import Callable
from typing import Protocol

from cloister.errors import CloisterError


class HasFileno(Protocol):
    """Anything a selector can wait for."""

    def fileno(self) -> int:
        """Return the descriptor."""
        ...


class Supervisor:
    """Calls a reaction whenever its descriptor is readable.

    A reaction returns whether to go on watching. It runs in the supervisor's thread and must not wait for what another
    reaction would have to do. All `watch` calls come before `start`.

    Args:
        name: of the thread.
        on_error: told of a refusal that a reaction raised; its descriptor is then no longer watched.
    """

    def __init__(self, name: str, on_error: Callable[[CloisterError], None]) -> None:
        self._selector = selectors.DefaultSelector()
        self._on_error = on_error
        self._stopping = False
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._stop, selectors.EVENT_READ, lambda: True)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def watch(self, source: HasFileno, react: Callable[[], bool]) -> None:
        """React to `source`."""
        self._selector.register(source, selectors.EVENT_READ, react)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Make the thread end after the reaction it is in; it can be called from a reaction."""
        self._stopping = True
        os.eventfd_write(self._stop, 1)

    def join(self) -> None:
        """Wait for the thread's end and release what it held; only once, after `stop`."""
        if self._thread.is_alive():
            self._thread.join()
        self._selector.close()
        os.close(self._stop)

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if self._stopping:  # what is left of this round may be closed already
                    return
                try:
                    keep = key.data()
                except CloisterError as err:
                    keep = False
                    self._on_error(err)
                except OSError:
                    keep = False  # the peer went away in the middle; its process is watched too
                if not keep:
                    self._selector.unregister(key.fileobj)
