"""Work beside the main order of events: a thread that runs one function and keeps its error for whoever waits.

Libraries are loaded in groups, in the order of their use: what a pull needs on a thread of its own while init data is
measured; the rest by whoever needs it first, which is beside a pull. Nobody loads one outside its group: `cryptography`
has import cycles, and two threads that enter a cycle at different places find half-made modules.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

PULL_LIBRARIES: Final = (
    "cloister.oci.distribution",
    "cloister.oci.encryption.authenticate",
)
CONTAINER_LIBRARIES: Final = (
    "cloister.oci.signing.verify",
    "cryptography.hazmat.primitives.asymmetric.ec",
    "cloister.crypto.streamseal",
    "cryptography.hazmat.primitives.kdf.hkdf",
    "cloister.oci.unpack",
    "cloister.guest.streams",
    "cloister.guest.rootfiles",
    "cloister.guest.users",
    "cloister.guest.oci_spec",
)
SEAL_LIBRARIES: Final = ("cloister.guest.scratch", "cryptography.hazmat.primitives.ciphers.aead")


class Background:
    """Runs `work` on a thread at once.

    Args:
        work: what to do.
        name: of the thread.
    """

    def __init__(self, work: Callable[[], None], name: str) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when the work is done; raise what it raised."""
        self._thread.join()
        self.raise_early()

    def wait_until(self, seconds: float) -> bool:
        """Return whether the work was done within that time; raise what it raised."""
        self._thread.join(max(0.0, seconds))
        self.raise_early()
        return not self._thread.is_alive()

    def raise_early(self) -> None:
        """Raise what the work raised so far; do not wait for it."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as err:  # noqa: BLE001  # handed to whoever waits
            self._error = err


class Libraries:
    """Modules that the first who waits for them loads, one after the other; others wait for it.

    Args:
        names: the modules.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Return when they are loaded."""
        from importlib import import_module

        with self._lock:
            for name in self._names:
                import_module(name)
