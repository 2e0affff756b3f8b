"""Work beside the main order of events: a thread that runs one function and keeps its error for whoever waits.

Libraries are loaded by one such thread, in the order of their use, while the TPM and the network take their time.
Nobody else imports them first: `cryptography` has import cycles, and two threads that enter a cycle at different
places find half-made modules. So whoever needs a library waits for its group.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

BROKER_LIBRARIES: Final = ("cloister.crypto.jwe", "cloister.client.keybroker", "ssl")
IMAGE_LIBRARIES: Final = (
    "cloister.oci.distribution",
    "cloister.crypto.signer",
    "cloister.oci.signing.verify",
    "cloister.oci.encryption.authenticate",
)
CONTAINER_LIBRARIES: Final = (
    "cloister.crypto.streamseal",
    "cryptography.hazmat.primitives.kdf.hkdf",
    "cloister.oci.unpack",
    "cloister.guest.rootfiles",
    "cloister.guest.users",
    "cloister.guest.oci_spec",
)


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
    """Loads the groups one after the other, beginning now."""

    def __init__(self) -> None:
        self.broker = _loading(BROKER_LIBRARIES, None)
        self.images = _loading(IMAGE_LIBRARIES, self.broker)
        self.containers = _loading(CONTAINER_LIBRARIES, self.images)


def _loading(names: tuple[str, ...], before: Background | None) -> Background:
    from importlib import import_module

    def load() -> None:
        if before is not None:
            before.wait()
        for name in names:
            import_module(name)

    return Background(load, "libraries")
