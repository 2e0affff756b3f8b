"""All types of messages, made ready before threads use them.

msgspec works out how to read a `Struct` when one is first read, and lets other threads use what is not finished: two
threads that meet a type for the first time at once end the process. So the service loads what it may need, and makes
every type ready, before it answers anybody.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Final

import msgspec

from cloister.tee.registry import TECHNOLOGIES, appraiser_for, authenticator_for

# Loaded with the first evidence otherwise, which is in a thread.
_LATE: Final = (
    "cloister.tee.collateral.cache",
    "cloister.tee.collateral.load",
    "cloister.tee.collateral.needs",
    "cloister.tee.tpm.credential",
)


def prepare_structs() -> frozenset[type[msgspec.Struct]]:
    """Load the verifiers of all technologies, make every loaded `Struct` ready, and return them. Before any thread."""
    for name in _LATE:
        import_module(name)
    for tee in TECHNOLOGIES:
        authenticator_for(tee)
        appraiser_for(tee)
    ready = set()
    for kind in _below(msgspec.Struct):
        try:
            msgspec.json.Decoder(kind)
        except TypeError:
            continue  # one that holds what no text can say, and that nobody reads
        ready.add(kind)
    return frozenset(ready)


def _below(kind: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    for child in kind.__subclasses__():
        yield child
        yield from _below(child)
