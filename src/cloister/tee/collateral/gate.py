"""One request at a time to each host, over all processes of a user, and none while the host asked for rest.

AMD's and Intel's services answer 429 to whoever asks too often, for minutes. The right to ask is a lock (flock(2)) on a
file per host; until when the host wants to be left alone is written in it, for the next process to read.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from cloister.errors import Unavailable

_PRIVATE: Final = 0o700
_POLL_SECONDS: Final = 0.05
_LONGEST_REST_SECONDS: Final = 3600.0  # a note of a wrong clock must not silence a host for a year
_NOTE_BYTES: Final = 32
_STRANGE: Final = re.compile(r"[^a-z0-9.-]")


class HostGate:
    """Gives out the right to ask a host.

    Args:
        directory: for the files; processes that use the same one wait for each other.
        clock: seconds since the epoch.
        sleep: waits for some seconds.
    """

    def __init__(self, directory: Path, *, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._directory = directory
        self._clock = clock
        self._sleep = sleep

    @contextlib.contextmanager
    def hold(self, host: str, patience_seconds: float) -> Iterator[Turn]:
        """Hold the right to ask `host`.

        Raises:
            Unavailable: others hold it for longer than `patience_seconds` (`collateral.host.busy`), the host asked for
                rest (`collateral.host.resting`), or the directory cannot be written (`collateral.host.gate`).
        """
        try:
            self._directory.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            path = self._directory / _STRANGE.sub("_", host.lower())
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as err:
            raise Unavailable(
                "collateral.host.gate", f"cannot write: {err.strerror}", path=str(self._directory)
            ) from err
        try:
            self._wait(descriptor, host, patience_seconds)
            turn = Turn(descriptor, self._clock)
            left = turn.rest_seconds()
            if left > 0:
                raise resting(host, left)
            yield turn
        finally:
            os.close(descriptor)

    def _wait(self, descriptor: int, host: str, patience_seconds: float) -> None:
        end = self._clock() + patience_seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as err:
                if not isinstance(err, BlockingIOError):
                    raise Unavailable("collateral.host.gate", f"cannot lock: {err.strerror}", path=host) from err
            if self._clock() >= end:
                raise Unavailable(
                    "collateral.host.busy",
                    "another process is asking the host, for too long",
                    path=host,
                    expected=f"within {patience_seconds:.0f} s",
                )
            self._sleep(_POLL_SECONDS)


class Turn:
    """The right to ask one host, while held."""

    def __init__(self, descriptor: int, clock: Callable[[], float]) -> None:
        self._descriptor = descriptor
        self._clock = clock

    def rest_seconds(self) -> float:
        """How long the host still wants to be left alone."""
        try:
            until = float(os.pread(self._descriptor, _NOTE_BYTES, 0) or b"0")
        except ValueError:
            return 0.0
        left = until - self._clock()
        return left if left <= _LONGEST_REST_SECONDS else 0.0

    def rest(self, seconds: float) -> None:
        """Write down that the host wants to be left alone for so long."""
        until = self._clock() + min(seconds, _LONGEST_REST_SECONDS)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{until:.3f}".encode("ascii"), 0)


def resting(host: str, seconds: float) -> Unavailable:
    """Return the error for a host that asked for rest."""
    return Unavailable(
        "collateral.host.resting",
        "the host wants no requests for now",
        path=host,
        expected="no such limit",
        actual=f"{seconds:.0f} s left",
        hint="try again then, use a mirror, or import a bundle",
    )
