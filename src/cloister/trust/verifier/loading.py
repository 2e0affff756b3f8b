"""Code of a technology, loaded with its first guest, by one thread while the others wait.

A service for one technology loads no other. What is loaded holds message types, which several threads may decode into
only once they are ready (`cloister.wire.structs`); two guests that begin at once would otherwise end the service.
"""

from __future__ import annotations

import threading
from typing import Final

from cloister.tee.registry import WITHOUT_COLLATERAL, appraiser_for, authenticator_for, pins_for
from cloister.wire.structs import prepare_structs

_LOADING: Final = threading.Lock()
_loaded: Final[set[str]] = set()


def load_technology(tee: str) -> None:
    """Return once everything that verifies evidence of a technology is loaded and ready for many threads.

    Raises:
        EvidenceError: no such technology (`tee.unknown`).
        Unavailable: this build lacks what its verifier needs.
    """
    if tee in _loaded:
        return
    with _LOADING:
        if tee in _loaded:
            return
        authenticator_for(tee)
        appraiser_for(tee)
        pins_for(tee)
        if tee not in WITHOUT_COLLATERAL:
            from cloister.tee.collateral import cache, load, needs  # noqa: F401  what `CollateralSource` uses

        prepare_structs()
        _loaded.add(tee)
