"""What a launch has made so far: undone when the launch fails, handed over to the running pod when it succeeds."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

from cloister.host.process import Child


class HasFileno(Protocol):
    """A socket or a file."""

    def fileno(self) -> int:
        """Return its descriptor."""
        ...


class Staging:
    """Use as a context manager; what was not handed over is ended, closed and removed at its end.

    There are three kinds of things: what only a child needs, like ends of channels (closed in every case), processes
    and our ends (the pod's after `hand_over`), and leftovers like files (removed by the pod at its own end).
    """

    def __init__(self) -> None:
        self._inherited = contextlib.ExitStack()
        self._leftovers = contextlib.ExitStack()
        self._undo = contextlib.ExitStack()
        self._undo.push(self._leftovers)

    def leftover(self, remove: Callable[[], object]) -> None:
        """Have something removed after all processes ended."""
        self._leftovers.callback(remove)

    def channel(self) -> tuple[socket.socket, socket.socket]:
        """Return two connected sockets: ours, and the one for a child."""
        ours, theirs = socket.socketpair()
        self._undo.callback(ours.close)
        self._inherited.callback(theirs.close)
        return ours, theirs

    def inherited(self, close: Callable[[], object]) -> None:
        """Have something closed, in every case, once the children have theirs of it."""
        self._inherited.callback(close)

    def own(self, undo: Callable[[], object]) -> None:
        """Have something undone unless it is handed over."""
        self._undo.callback(undo)

    def start(
        self, name: str, command: Sequence[str], inherits: Sequence[HasFileno] = (), *, cwd: Path | None = None
    ) -> tuple[Child, int]:
        """Start a child; return it and the readable end of its output.

        Raises:
            Unavailable: it cannot be started (`host.tool.*`).
        """
        readable, writable = os.pipe2(os.O_CLOEXEC)
        self._undo.callback(os.close, readable)
        try:
            fds = [end.fileno() for end in inherits]
            child = Child.start(name, command, output=writable, pass_fds=fds, cwd=cwd)
        finally:
            os.close(writable)
        self._undo.callback(child.close)
        self._undo.callback(child.end, grace_seconds=0)
        return child, readable

    def hand_over(self) -> Callable[[], None]:
        """Give everything up to the running pod; return what it must call after its processes ended."""
        self._undo.pop_all()
        return self._leftovers.close

    def __enter__(self) -> Staging:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Undo what was not handed over."""
        self._inherited.close()
        self._undo.close()
