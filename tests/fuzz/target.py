"""What a target of fuzzing is; the tables are in `targets.py` and `images.py`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.errors import CloisterError

Run = Callable[[bytes], object]
LARGEST_SEED: Final = 256 * 1024  # a log of a whole boot; larger ones teach nothing more


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One parser, or several that read the same bytes.

    Attributes:
        run: takes any bytes; raises `CloisterError` and nothing else.
        seeds: good inputs; given the directory of evidence vectors, or None, also what is found there.
        modules: the parser's own modules, whose lines the inputs must reach.
        ceiling: most bytes its reader admits, of `cloister.wire.limits`.
    """

    run: Run
    seeds: Callable[[Path | None], list[bytes]]
    modules: tuple[str, ...]
    ceiling: int


def seeds(make: Callable[[], Iterable[bytes]], *patterns: str) -> Callable[[Path | None], list[bytes]]:
    """Return seeds made by fakes, and the files below the vectors that match one of `patterns`."""

    def collect(vectors: Path | None) -> list[bytes]:
        found = list(make())
        for pattern in patterns if vectors is not None else ():
            found += [path.read_bytes() for path in sorted(vectors.glob(pattern)) if path.is_file()]
        return [data for data in dict.fromkeys(found) if len(data) <= LARGEST_SEED]

    return collect


def each(*steps: Callable[[], object]) -> None:
    """Make every step, whichever of them refuse."""
    for step in steps:
        with contextlib.suppress(CloisterError):
            step()


def same(read: object, written: object) -> None:
    """A value has one encoding: what is read must be written back the same."""
    if read != written:
        raise AssertionError("what was read is written back otherwise")


def target_of(run: Run, found: Callable[[Path | None], list[bytes]], ceiling: int, *modules: str) -> Target:
    """Return a target whose modules are named without `cloister.`."""
    return Target(run=run, seeds=found, modules=tuple(f"cloister.{name}" for name in modules), ceiling=ceiling)
