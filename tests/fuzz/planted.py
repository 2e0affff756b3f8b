"""Parsers with faults, to see that fuzzing finds them: an exception that is no refusal, a loop, memory without end."""

from __future__ import annotations

import os
import signal

from cloister.errors import FormatRefused
from fuzz.target import Target, seeds

_MAGIC = b"FUZZ"


def _parse(data: bytes) -> int:
    """A crash behind four comparisons, none of which the good input comes through."""
    if data[:1] != b"F":
        raise FormatRefused("tee.file.form", "no magic")
    if data[1:2] != b"U":
        raise FormatRefused("tee.file.form", "no magic")
    if data[2:3] != b"Z":
        raise FormatRefused("tee.file.form", "no magic")
    if data[3:4] != b"Z":
        raise FormatRefused("tee.file.form", "no magic")
    return {}["length"]  # type: ignore[no-any-return]  # the planted fault


def _loop(data: bytes) -> None:
    while data:
        pass


def _fill(data: bytes) -> int:
    return sum(len(part) for part in [bytearray(b"x" * 1024 * 1024) for _ in range(600 * len(data))])


def _deaf(data: bytes) -> None:
    """A loop that the alarm clock of a fuzzer does not end."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    _loop(data or b"x")


def _dead(data: bytes) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _endless_seeds() -> list[bytes]:
    while True:
        pass


def _careful(data: bytes) -> None:
    raise FormatRefused("tee.file.form", "refuses everything")


TARGETS = {
    name: Target(run=run, seeds=seeds(lambda: [b"good"]), modules=("fuzz.planted",), ceiling=64)
    for name, run in {
        "crash": _parse,
        "loop": _loop,
        "memory": _fill,
        "deaf": _deaf,
        "dead": _dead,
        "careful": _careful,
    }.items()
}
TARGETS["seeds"] = Target(run=_careful, seeds=seeds(_endless_seeds), modules=("fuzz.planted",), ceiling=64)
