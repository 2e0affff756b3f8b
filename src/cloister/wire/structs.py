"""Message types made ready before several threads use them.

msgspec makes what it needs to decode into a `Struct` when the type is first used, and a second thread that uses the
type meanwhile finds it half made: the process dies of a segmentation fault. So whoever decodes in threads calls
`prepare_structs` first, while nobody else uses the types that were loaded since the last call.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Final

import msgspec

_OURS: Final = "cloister."
_PREPARING: Final = threading.Lock()
_prepared: Final[set[type[msgspec.Struct]]] = set()


def prepare_structs() -> None:
    """Make all `Struct` types of loaded modules of Cloister ready; those that were are left alone."""
    with _PREPARING:
        for struct in _below(msgspec.Struct):
            if struct.__module__.startswith(_OURS) and struct not in _prepared:
                _prepare(struct)
                _prepared.add(struct)


def _prepare(struct: type[msgspec.Struct]) -> None:
    try:
        msgspec.json.Decoder(struct)
    except TypeError:
        return  # a type that nothing can be decoded into: it only holds values


def _below(struct: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    for child in struct.__subclasses__():
        yield child
        yield from _below(child)
