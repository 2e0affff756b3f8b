"""Standard streams over one port: credit windows, sealing, and no way for one stream to hold up another.

One thread moves all bytes with `epoll`; every descriptor is non-blocking and every buffer bounded:
- an output pipe is read only while its stream has credit and the port's queue has room, so a host that does not read
  stalls that stream (the pipe fills, the process waits, as with any slow log reader) and nothing else;
- an input buffer never exceeds its window, because a host that sends more than its credit breaks the protocol;
- when the port is gone, outputs are read and dropped: a chatty process does not hang on a log nobody may have.

A frame that breaks the protocol closes the port for good. Sealed input that is not authentic, or ends without its
final record, is never passed on as a clean end of file: `on_broken` decides (the pod kills the process).

Trusts nobody on the port. Interface: any thread may call the public methods; the mux thread owns all the rest.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from cloister.errors import Refused, RequestRefused
from cloister.protocol.guestapi import (
    INITIAL_WINDOW,
    StreamFrame,
    StreamKind,
    StreamSplitter,
    pack_stream_frame,
)
from cloister.wire.limits import MIB, STREAM_FRAME_BYTES

if TYPE_CHECKING:
    from cloister.crypto.streamseal import StreamOpener, StreamSealer

_QUEUE_BYTES: Final = 256 * 1024  # of frames waiting for the port
_READ_BYTES: Final = 64 * 1024
_CREDIT_CEILING: Final = 256 * MIB
_ABSENT_SECONDS: Final = 0.1  # between looks at a virtio port without a peer
_GONE: Final = select.EPOLLHUP | select.EPOLLERR


class _Output:
    """A process' stdout or stderr on its way to the host."""

    __slots__ = ("armed", "carried", "credit", "ended", "fd", "sealer", "stream")

    def __init__(self, stream: int, fd: int, sealer: StreamSealer | None, *, carried: bool) -> None:
        self.stream = stream
        self.fd = fd
        self.sealer = sealer
        self.carried = carried  # else read and dropped
        self.credit = INITIAL_WINDOW
        self.armed = False
        self.ended = False  # the pipe has ended, the end of the stream is not yet sent

    @property
    def room(self) -> int:
        """Bytes of plain text that may be read now."""
        overhead = 0 if self.sealer is None else _overhead()
        return min(self.credit, STREAM_FRAME_BYTES) - overhead


class _Input:
    """The host's bytes on their way to a process' stdin; `fd` is -1 until the process starts and after it closed."""

    __slots__ = ("armed", "buffer", "closed", "ended", "fd", "on_broken", "opener", "owed", "stream", "terminal")

    def __init__(self, stream: int, opener: StreamOpener | None, on_broken: Callable[[], None]) -> None:
        self.stream = stream
        self.opener = opener
        self.on_broken = on_broken
        self.fd = -1
        self.buffer = bytearray()
        self.owed = 0  # credit used by the host and not given back
        self.armed = False
        self.ended = False  # the host has sent its end of file
        self.closed = False  # the process reads no more: drop what comes
        self.terminal = False


class StreamMux:
    """All streams of the pod.

    Args:
        port: descriptor of the streams port; the mux owns it.
        absence_is_final: whether an end of file on the port is its end (a socket), or only says that no host is
            connected (a virtio-serial port).
    """

    def __init__(self, port: int, *, absence_is_final: bool) -> None:
        os.set_blocking(port, False)
        self._port = port
        self._absence_is_final = absence_is_final
        self._poll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._wake, select.EPOLLIN)
        self._port_armed = 0
        self._port_open = True
        self._look_again = 0.0
        self._splitter = StreamSplitter()
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        self._outputs: dict[int, _Output] = {}
        self._inputs: dict[int, _Input] = {}
        self._by_fd: dict[int, _Output | _Input] = {}
        self._requests: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._last_stream = 0
        self._idle = threading.Event()
        self._stopping = False
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="streams", daemon=True)

    # -- for any thread --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin moving bytes."""
        self._thread.start()

    def allocate(self) -> int:
        """Return a stream number that was never used before."""
        with self._lock:
            self._last_stream += 1
            return self._last_stream

    def add_output(self, stream: int, fd: int, sealer: StreamSealer | None) -> None:
        """Carry what is read from `fd` (taken over) until its end."""
        self._request(lambda: self._add_output(_Output(stream, fd, sealer, carried=True)))

    def add_drain(self, fd: int) -> None:
        """Read `fd` (taken over) until its end and drop what comes: nobody may have it, and nobody shall wait."""
        stream = self.allocate()
        self._request(lambda: self._add_output(_Output(stream, fd, None, carried=False)))

    def add_input(self, stream: int, opener: StreamOpener | None, on_broken: Callable[[], None]) -> None:
        """Accept the host's bytes for `stream`; they wait for `connect_input`."""
        self._request(lambda: self._inputs.__setitem__(stream, _Input(stream, opener, on_broken)))

    def connect_input(self, stream: int, fd: int, *, terminal: bool) -> None:
        """Write what came and comes for `stream` to `fd` (taken over)."""
        self._request(lambda: self._connect_input(stream, fd, terminal))

    def end_input(self, stream: int) -> None:
        """End a plain input as if the host had sent its end of file; a sealed one ends by its final record only."""
        self._request(lambda: self._end_input(stream))

    def drop_input(self, stream: int) -> None:
        """The process is gone: close its input."""
        self._request(lambda: self._drop_input(stream))

    def flush(self, seconds: float) -> bool:
        """Wait until every output has ended and all frames are written; return whether that happened in time."""
        self._idle.clear()
        self._request(lambda: None)
        return self._idle.wait(seconds)

    def stop(self) -> None:
        """End the thread and close the port; what is asked afterwards does nothing."""
        self._request(lambda: setattr(self, "_stopping", True))
        self._thread.join()
        with self._lock:
            self._stopped = True
            os.close(self._wake)

    def _request(self, action: Callable[[], None]) -> None:
        with self._lock:
            if not self._stopped:
                self._requests.append(action)
                os.eventfd_write(self._wake, 1)

    # -- the mux thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            self._arm_port()
            for fd, mask in self._poll.poll(self._timeout()):
                if fd == self._wake:
                    os.eventfd_read(self._wake)
                elif fd == self._port:
                    self._serve_port(mask)
                else:
                    self._serve_stream(fd)
            self._take_requests()
            for output in list(self._outputs.values()):
                self._arm_output(output)
            if not self._outputs and not self._queue:
                self._idle.set()
        self._close_port()
        self._poll.close()

    def _timeout(self) -> float | None:
        return max(0.0, self._look_again - time.monotonic()) if self._look_again else None

    def _take_requests(self) -> None:
        while self._requests:
            self._requests.popleft()()

    # port

    def _arm_port(self) -> None:
        if not self._port_open:
            return
        if self._look_again:
            if time.monotonic() < self._look_again:
                return
            self._look_again = 0.0
        wanted = select.EPOLLIN | (select.EPOLLOUT if self._queue else 0)
        if self._port_armed == wanted:
            return
        if self._port_armed:
            self._poll.modify(self._port, wanted)
        else:
            self._poll.register(self._port, wanted)
        self._port_armed = wanted

    def _serve_port(self, mask: int) -> None:
        if mask & select.EPOLLIN:
            self._read_port()
        elif mask & _GONE:
            self._port_absent()
        if mask & select.EPOLLOUT and self._port_open:
            self._write_port()

    def _read_port(self) -> None:
        try:
            data = os.read(self._port, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._close_port()
            return
        if not data:
            self._port_absent()
            return
        self._take_requests()  # a stream the host was just told of
        try:
            for frame in self._splitter.feed(data):
                self._take(frame)
        except Refused:
            self._close_port()

    def _port_absent(self) -> None:
        if self._absence_is_final:
            self._close_port()
            return
        if self._port_armed:
            self._poll.unregister(self._port)
            self._port_armed = 0
        self._look_again = time.monotonic() + _ABSENT_SECONDS

    def _close_port(self) -> None:
        """Give the port up: outputs drain into nothing from now on, inputs end or break."""
        if not self._port_open:
            return
        if self._port_armed:
            self._poll.unregister(self._port)
            self._port_armed = 0
        self._port_open = False
        os.close(self._port)
        self._port = -1  # the number may come back as a pipe's
        self._queue.clear()
        self._queued = 0
        for output in self._outputs.values():
            output.carried = False
        for source in list(self._inputs.values()):
            self._end_of_input(source)

    def _write_port(self) -> None:
        while self._queue:
            view = self._queue[0]
            try:
                count = os.write(self._port, view)
            except BlockingIOError:
                return
            except OSError:
                self._port_absent()
                return
            self._queued -= count
            if count < len(view):
                self._queue[0] = view[count:]
                return
            self._queue.popleft()

    def _send(self, frame: StreamFrame) -> None:
        if not self._port_open:
            return
        data = memoryview(pack_stream_frame(frame))
        self._queue.append(data)
        self._queued += len(data)

    def _take(self, frame: StreamFrame) -> None:
        """Act on one frame of the host.

        Raises:
            Refused: it breaks the protocol.
        """
        if not 0 < frame.stream <= self._last_stream:
            raise _broken("a stream that does not exist")
        if frame.kind is StreamKind.WINDOW:
            self._take_credit(frame)
            return
        source = self._inputs.get(frame.stream)
        if source is None:
            if frame.stream in self._outputs:
                raise _broken("data on an output")
            return  # late bytes for a process that has ended
        if frame.kind is StreamKind.EOF:
            self._end_of_input(source)
        else:
            self._take_data(source, frame.payload)

    def _take_credit(self, frame: StreamFrame) -> None:
        output = self._outputs.get(frame.stream)
        if output is None:
            return
        output.credit += int.from_bytes(frame.payload, "big")
        if output.credit > _CREDIT_CEILING:
            raise _broken("more credit than any reader has memory for")

    # outputs

    def _add_output(self, output: _Output) -> None:
        os.set_blocking(output.fd, False)
        output.carried = output.carried and self._port_open
        self._outputs[output.stream] = output
        self._by_fd[output.fd] = output

    def _arm_output(self, output: _Output) -> None:
        """Watch the pipe exactly while something may be read from it: a hang-up is reported whether asked or not."""
        if output.ended:
            self._finish_output(output)
            return
        wanted = not output.carried or (output.room > 0 and self._queued < _QUEUE_BYTES)
        if wanted and not output.armed:
            self._poll.register(output.fd, select.EPOLLIN)
        elif output.armed and not wanted:
            self._poll.unregister(output.fd)
        output.armed = wanted

    def _serve_stream(self, fd: int) -> None:
        served = self._by_fd.get(fd)
        if isinstance(served, _Output):
            self._read_output(served)
        elif isinstance(served, _Input):
            self._write_input(served)

    def _read_output(self, output: _Output) -> None:
        size = output.room if output.carried else _READ_BYTES
        if size <= 0:
            return
        try:
            data = os.read(output.fd, size)
        except BlockingIOError:
            return
        except OSError as err:
            if err.errno != errno.EIO:  # a terminal's other side closed
                raise
            data = b""
        if not data:
            self._poll.unregister(output.fd)
            output.armed = False
            output.ended = True
            self._finish_output(output)
            return
        if output.carried:
            self._send_data(output, data if output.sealer is None else output.sealer.seal(data))

    def _send_data(self, output: _Output, payload: bytes) -> None:
        output.credit -= len(payload)
        self._send(StreamFrame(output.stream, StreamKind.DATA, payload))

    def _finish_output(self, output: _Output) -> None:
        if output.carried:
            if output.sealer is not None:
                if output.credit < _overhead():
                    return  # the host must make room for the final record
                self._send_data(output, output.sealer.finish())
            self._send(StreamFrame(output.stream, StreamKind.EOF))
        del self._outputs[output.stream], self._by_fd[output.fd]
        os.close(output.fd)

    # inputs

    def _take_data(self, source: _Input, payload: bytes) -> None:
        source.owed += len(payload)
        if source.owed > INITIAL_WINDOW or source.ended:
            raise _broken("data beyond the window, or behind the end")
        if source.closed:
            self._give_credit(source)
            return
        if source.opener is not None:
            try:
                payload = source.opener.open(payload)
            except Refused:
                self._break_input(source)
                return
        source.buffer += payload
        self._write_input(source)

    def _end_input(self, stream: int) -> None:
        source = self._inputs.get(stream)
        if source is not None and source.opener is None:
            self._end_of_input(source)

    def _end_of_input(self, source: _Input) -> None:
        if source.ended:
            return
        if source.opener is not None and not source.opener.finished:
            self._break_input(source)
            return
        source.ended = True
        self._write_input(source)

    def _break_input(self, source: _Input) -> None:
        """Close nothing: a closed pipe would look like a complete input. Whoever is told ends the process."""
        already = source.closed
        source.closed = True
        source.buffer.clear()
        if not already:
            source.on_broken()

    def _connect_input(self, stream: int, fd: int, terminal: bool) -> None:
        source = self._inputs.get(stream)
        if source is None:
            os.close(fd)
            return
        os.set_blocking(fd, False)
        source.fd = fd
        source.terminal = terminal
        self._by_fd[fd] = source
        self._write_input(source)

    def _write_input(self, source: _Input) -> None:
        if source.fd < 0 or (source.closed and not source.buffer):
            return
        try:
            while source.buffer:
                del source.buffer[: os.write(source.fd, source.buffer)]
        except BlockingIOError:
            self._arm_input(source, wanted=True)
            return
        except OSError:
            self._close_input(source)  # the process closed its standard input
            return
        self._arm_input(source, wanted=False)
        self._give_credit(source)
        if source.ended and not source.terminal:
            self._close_input(source)

    def _arm_input(self, source: _Input, *, wanted: bool) -> None:
        if wanted and not source.armed:
            self._poll.register(source.fd, select.EPOLLOUT)
        elif source.armed and not wanted:
            self._poll.unregister(source.fd)
        source.armed = wanted

    def _give_credit(self, source: _Input) -> None:
        if source.owed and not source.ended:
            self._send(StreamFrame(source.stream, StreamKind.WINDOW, source.owed.to_bytes(4, "big")))
            source.owed = 0

    def _close_input(self, source: _Input) -> None:
        if source.fd >= 0:
            self._arm_input(source, wanted=False)
            del self._by_fd[source.fd]
            os.close(source.fd)
            source.fd = -1
        source.closed = True
        source.buffer.clear()
        self._give_credit(source)

    def _drop_input(self, stream: int) -> None:
        source = self._inputs.pop(stream, None)
        if source is not None:
            self._close_input(source)


def _overhead() -> int:
    from cloister.crypto.streamseal import RECORD_OVERHEAD

    return RECORD_OVERHEAD


def _broken(what: str) -> RequestRefused:
    return RequestRefused("guestapi.stream_protocol", f"the host sent {what}")
