"""Work beside the main order of events: a thread that runs one function and keeps its error for whoever waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

# What the agent needs after attestation began, slowest first. Loading it beside the TPM's and the network's work hides
# most of the time; the order follows the order of use.
LIBRARIES: Final = (
    "cloister.client.keybroker",
    "http.client",
    "ssl",
    "cryptography.hazmat.primitives.asymmetric.ec",
    "cryptography.hazmat.primitives.ciphers.aead",
    "cloister.oci.distribution",
    "cloister.oci.signing.verify",
    "cloister.oci.unpack",
    "cloister.oci.encryption.authenticate",
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
        if self._error is not None:
            raise self._error

    def raise_early(self) -> None:
        """Raise what the work raised so far; do not wait for it."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as err:  # noqa: BLE001  # handed to whoever waits
            self._error = err


def load_libraries() -> None:
    """Import `LIBRARIES`, so that whoever needs one finds it loaded."""
    from importlib import import_module

    for name in LIBRARIES:
        import_module(name)
