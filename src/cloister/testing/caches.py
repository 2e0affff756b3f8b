"""Forget what verification remembers: for measurements of the first time, and for tests that must not depend on it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

_PACKAGE = "cloister."
_FAKES = "cloister.testing."  # what these keep is no answer of a verifier


def forget_everything() -> None:
    """Empty every cache of every module of ours that is loaded."""
    for clear in find_caches().values():
        clear()


def find_caches() -> dict[str, Callable[[], None]]:
    """Return how each cache is emptied, by its qualified name: functions with `lru_cache`, and `Remembered`."""
    return dict(_caches())


def _caches() -> Iterator[tuple[str, Callable[[], None]]]:
    for name, module in list(sys.modules.items()):
        if name.startswith(_PACKAGE) and not name.startswith(_FAKES):
            for attribute, value in vars(module).items():
                clear = getattr(value, "cache_clear", None)
                if callable(clear) and not isinstance(value, type):
                    yield f"{name}.{attribute}", clear
