"""One extend of a measurement register, and which component of the pod VM it measures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from cloister.rats.reference import Component


@dataclass(frozen=True, slots=True, kw_only=True)
class BootEvent:
    """One extend.

    Attributes:
        name: what is measured, in words.
        digest: what is extended.
        component: which component it measures; None for a constant, or for what follows from several.
    """

    name: str
    digest: bytes
    component: Component | None = None


def replay_events(events: Iterable[BootEvent], *, start: bytes, algorithm: str) -> bytes:
    """Return the register after extending `start` with each event, by hash `algorithm` (a name of `hashlib`)."""
    register = start
    for event in events:
        register = hashlib.new(algorithm, register + event.digest).digest()
    return register
