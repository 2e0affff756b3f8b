"""One process of a container, first or exec: its streams, its terminal, how it ended.

Which streams exist follows from the measured policy: none at all in mode `none` (the process writes to `/dev/null`),
sealed under the pod's stream key in mode `sealed`, plain in mode `host`. The salt of sealed streams is fresh for each
process. Nothing here decides whether a process may run.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from cloister.errors import CloisterError, RequestRefused
from cloister.guest.runtime import Ended, ProcessIO, Started
from cloister.protocol.guestapi import StreamsResult
from cloister.wire.base64 import encode_b64

if TYPE_CHECKING:
    from cloister.crypto.streamseal import StreamName, StreamSealer
    from cloister.guest.streams import StreamMux
    from cloister.podpolicy.model import StreamsMode

_TIOCSWINSZ: Final = 0x5414  # ioctl_tty(2)
_CELLS: Final = 0xFFFF
_NOT_RUNNING: Final = "guest.pod.not_running"
_FAILED_STATUS: Final = {"guest.runtime.not_found": 127, "guest.runtime.not_executable": 126}
_OTHER_FAILURE: Final = 125  # as docker tells that the runtime, not the program, failed


class StreamSetup:
    """How the pod's streams are carried.

    Args:
        mux: carries them.
        mode: of the pod policy.
        key: the stream key in mode `sealed`, else None; owned by the pod.
    """

    __slots__ = ("key", "mode", "mux")

    def __init__(self, mux: StreamMux, mode: StreamsMode, key: bytearray | None) -> None:
        if (mode == "sealed") != (key is not None):
            raise RuntimeError("a stream key goes with sealed streams")
        self.mux = mux
        self.mode = mode
        self.key = key

    def wipe(self) -> None:
        """Overwrite the stream key."""
        if self.key is not None:
            self.key[:] = bytes(len(self.key))


class PodProcess:
    """A process that will run, runs, or has ended.

    Args:
        setup: how streams are carried.
        terminal: whether it has a terminal.
        stdin: whether the policy gives it standard input.
        on_broken: called when sealed input is not authentic or is cut off; on the mux thread.
    """

    def __init__(self, setup: StreamSetup, *, terminal: bool, stdin: bool, on_broken: Callable[[], None]) -> None:
        self._setup = setup
        self._mux = setup.mux
        self._terminal = terminal
        carried = setup.mode != "none"
        self._salt = os.urandom(32) if setup.mode == "sealed" else b""
        self._stdin = self._mux.allocate() if carried and stdin else 0
        self._stdout = self._mux.allocate() if carried else 0
        self._stderr = self._mux.allocate() if carried and not terminal else 0
        self._ended = threading.Event()
        self._window = -1  # the terminal, for resizing
        self.status = -1
        self.pid = 0
        if self._stdin:
            opener = None
            if setup.key is not None:
                from cloister.crypto.streamseal import StreamOpener

                opener = StreamOpener(setup.key, self._salt, "stdin")
            self._mux.add_input(self._stdin, opener, on_broken)

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self.pid > 0 and not self._ended.is_set()

    @property
    def exited(self) -> bool:
        """Whether it has ended, or failed to start."""
        return self._ended.is_set()

    def streams(self) -> StreamsResult:
        """Return what the host needs to know of the streams."""
        salt = encode_b64(self._salt) if self._salt else ""
        return StreamsResult(stdin=self._stdin, stdout=self._stdout, stderr=self._stderr, salt=salt)

    def launch(self, start: Callable[[ProcessIO, Ended], Started], ended: Ended) -> int:
        """Run `start` with the child's side of the streams; return the process id.

        Args:
            start: a method of the runtime.
            ended: called once with the status, after `status` is set; also when `start` fails.

        Raises:
            Unavailable: `start` failed.
        """

        def note(status: int) -> None:
            self._note_end(status)
            ended(status)

        child: list[int] = []
        try:
            io = ProcessIO() if self._terminal else self._open_pipes(child)
            started = start(io, note)
        except CloisterError as err:
            if self._terminal:
                self._open_pipes(child)  # so that the streams the host was told of end
            note(_FAILED_STATUS.get(err.code, _OTHER_FAILURE))
            raise
        finally:
            for fd in child:
                os.close(fd)
        if started.terminal >= 0:
            self._connect_terminal(started.terminal)
        self.pid = started.pid
        return started.pid

    def wait(self) -> int:
        """Return the status once it has ended."""
        self._ended.wait()
        return self.status

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size.

        Raises:
            RequestRefused: not a size, or there is no terminal (`guest.process.resize`).
        """
        import fcntl

        if self._window < 0 or not (0 < width <= _CELLS and 0 < height <= _CELLS):
            raise RequestRefused("guest.process.resize", "no terminal, or not a size", path="params")
        size = height.to_bytes(2, "little") + width.to_bytes(2, "little") + bytes(4)
        fcntl.ioctl(self._window, _TIOCSWINSZ, size)

    def close_input(self) -> None:
        """End standard input; a sealed one ends by its final record only."""
        if self._stdin:
            self._mux.end_input(self._stdin)

    def require_running(self) -> None:
        """Return if it runs.

        Raises:
            RequestRefused: it was not started, or has ended (`guest.pod.not_running`).
        """
        if not self.running:
            raise RequestRefused(_NOT_RUNNING, "process does not run", hint="start it first; it may have ended")

    def dispose(self) -> None:
        """Give descriptors back; the process has ended or never ran."""
        if self._stdin:
            self._mux.drop_input(self._stdin)
        if self._window >= 0:
            os.close(self._window)
            self._window = -1

    def _open_pipes(self, child: list[int]) -> ProcessIO:
        """Connect our ends to the mux and return the child's, which are also added to `child`."""
        ends = {}
        for name, stream in (("stdout", self._stdout), ("stderr", self._stderr)):
            if stream:
                ours, theirs = os.pipe2(os.O_CLOEXEC)
                child.append(theirs)
                self._mux.add_output(stream, ours, self._sealer("stdout" if name == "stdout" else "stderr"))
                ends[name] = theirs
        if self._stdin:
            theirs, ours = os.pipe2(os.O_CLOEXEC)
            child.append(theirs)
            self._mux.connect_input(self._stdin, ours, terminal=False)
            ends["stdin"] = theirs
        return ProcessIO(**ends)

    def _connect_terminal(self, master: int) -> None:
        self._window = os.dup(master)
        if self._stdin:
            self._mux.connect_input(self._stdin, os.dup(master), terminal=True)
        if self._stdout:
            self._mux.add_output(self._stdout, master, self._sealer("stdout"))
        else:
            self._mux.add_drain(master)

    def _sealer(self, name: StreamName) -> StreamSealer | None:
        if self._setup.key is None:
            return None
        from cloister.crypto.streamseal import StreamSealer

        return StreamSealer(self._setup.key, self._salt, name)

    def _note_end(self, status: int) -> None:
        self.status = status
        self._ended.set()
        if self._stdin:
            self._mux.drop_input(self._stdin)
