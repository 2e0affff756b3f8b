"""The host's end of the streams port: many byte streams over one connection, none of which can hold up another.

Framing and credit windows are those of `protocol.guestapi`. One thread receives, one sends; callers only touch
bounded buffers. The guest is not trusted to be sane: more data than its credit, more credit than the window, frames
behind an end or streams without number break the connection for good.

A sealed stream's frames are records of ciphertext that must stay whole (`crypto.streamseal`): `read` gives one frame at
a time and `write_record` sends one. The host sees ciphertext only; it does not know which streams are sealed.
"""

from __future__ import annotations

import socket
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from cloister.errors import CloisterError, Refused, RequestRefused, Unavailable
from cloister.protocol.guestapi import (
    INITIAL_WINDOW,
    StreamFrame,
    StreamKind,
    StreamSplitter,
    pack_stream_frame,
)
from cloister.wire.limits import GUESTAPI_CONTAINERS, GUESTAPI_EXECS, STREAM_FRAME_BYTES

STREAMS: Final = 3 * (GUESTAPI_CONTAINERS + GUESTAPI_EXECS)  # open at a time
_GRANT_BYTES: Final = INITIAL_WINDOW // 4  # credit is given back in pieces of at least this size
_READ_BYTES: Final = 256 * 1024
_COMPACT_FRAMES: Final = 4096  # taken frames whose lengths are forgotten at once


class _State:
    """One stream. Guarded by the lock of its connection."""

    __slots__ = (
        "credit",
        "data",
        "done",
        "ended",
        "first",
        "lengths",
        "number",
        "outgoing",
        "owed",
        "queued",
        "to_grant",
        "window",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        # towards us: frames, flat, so that a million tiny ones cost little more than their bytes
        self.data = bytearray()
        self.lengths = array("I")
        self.first = 0
        self.window = INITIAL_WINDOW  # what the guest may still send
        self.owed = 0  # consumed and not yet granted
        self.to_grant = 0  # granted and not yet sent
        self.ended = False
        # from us
        self.credit = INITIAL_WINDOW
        self.outgoing: deque[bytes] = deque()
        self.queued = 0
        self.done = False

    def put(self, payload: bytes) -> None:
        """Buffer a frame."""
        self.data += payload
        self.lengths.append(len(payload))

    def take(self) -> bytes | None:
        """Return the oldest frame, or None."""
        if self.first == len(self.lengths):
            return None
        size = self.lengths[self.first]
        self.first += 1
        if self.first == len(self.lengths) or self.first >= _COMPACT_FRAMES:
            del self.lengths[: self.first]
            self.first = 0
        payload = bytes(self.data[:size])
        del self.data[:size]
        return payload


class GuestStreams:
    """All streams of one pod.

    Args:
        connection: connected socket of the streams port; closed by its owner.
        on_lost: told why when the connection is lost or broken.
    """

    def __init__(self, connection: socket.socket, on_lost: Callable[[CloisterError], None]) -> None:
        self._connection = connection
        self._on_lost = on_lost
        self._states: dict[int, _State] = {}
        self._changed = threading.Condition()
        self._error: CloisterError | None = None
        self._threads = [
            threading.Thread(target=self._receive, name="streams-in", daemon=True),
            threading.Thread(target=self._send, name="streams-out", daemon=True),
        ]

    def start(self) -> None:
        """Start receiving and sending."""
        for thread in self._threads:
            thread.start()

    def stream(self, number: int) -> GuestStream:
        """Return stream `number`, as the guest named it in a reply."""
        if number < 1:
            raise RuntimeError("stream 0 stands for no stream")
        with self._changed:
            self._find(number)
        return GuestStream(self, number)

    def fail(self, error: CloisterError) -> None:
        """Give up: whoever waits is told `error`, once what already came is read."""
        with self._changed:
            if self._error is not None:
                return
            self._error = error
            self._changed.notify_all()
        self._on_lost(error)

    def join(self) -> None:
        """Wait for the threads; the connection must be shut down."""
        for thread in self._threads:
            thread.join()

    # -- callers -------------------------------------------------------------------------------------------------

    def _read(self, number: int, seconds: float | None) -> bytes:
        deadline = _deadline(seconds)
        with self._changed:
            state = self._states.get(number)
            if state is None:
                return b""
            while (payload := state.take()) is None:
                if state.ended:
                    del self._states[number]
                    return b""
                self._wait(deadline)
            state.owed += len(payload)
            if state.owed >= _GRANT_BYTES and not state.ended:
                state.to_grant += state.owed
                state.window += state.owed
                state.owed = 0
                self._changed.notify_all()
            return payload

    def _write(self, number: int, payload: bytes, *, least: int, seconds: float | None) -> int:
        """Queue at least `least` bytes of `payload` as one frame; return how many."""
        deadline = _deadline(seconds)
        with self._changed:
            state = self._open_for_writing(number)
            while min(state.credit, INITIAL_WINDOW - state.queued) < least:
                self._wait(deadline)
                state = self._open_for_writing(number)
            if self._error is not None:
                raise self._error
            size = min(len(payload), state.credit, INITIAL_WINDOW - state.queued, STREAM_FRAME_BYTES)
            state.credit -= size
            self._enqueue(state, StreamFrame(number, StreamKind.DATA, payload[:size]))
            return size

    def _end(self, number: int) -> None:
        with self._changed:
            state = self._states.get(number)
            if state is None or state.done or self._error is not None:
                return
            state.done = True
            self._enqueue(state, StreamFrame(number, StreamKind.EOF))

    def _open_for_writing(self, number: int) -> _State:
        state = self._states.get(number)
        if state is None or state.done:
            raise RuntimeError("the stream's writing side is closed")
        return state

    def _enqueue(self, state: _State, frame: StreamFrame) -> None:
        state.outgoing.append(pack_stream_frame(frame))
        state.queued += len(frame.payload)
        self._changed.notify_all()

    def _wait(self, deadline: float | None) -> None:
        """Wait for any change.

        Raises:
            CloisterError: the connection is lost.
            Unavailable: the time is over (`host.guestlink.timeout`).
        """
        if self._error is not None:
            raise self._error
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise Unavailable("host.guestlink.timeout", "the guest did not read or write in time")
        self._changed.wait(left)

    def _find(self, number: int) -> _State:
        """Return the state of a stream, made now: data may come before the reply that names the stream."""
        state = self._states.get(number)
        if state is None:
            if len(self._states) >= STREAMS:
                raise _broken(f"more than {STREAMS} open streams")
            state = self._states[number] = _State(number)
        return state

    # -- the receiving thread ------------------------------------------------------------------------------------

    def _receive(self) -> None:
        splitter = StreamSplitter()
        try:
            while data := self._connection.recv(_READ_BYTES):
                frames = splitter.feed(data)
                with self._changed:
                    for frame in frames:
                        self._take(frame)
                    self._changed.notify_all()
        except Refused as err:
            self.fail(err)
        except OSError:
            pass  # the same as an end
        self.fail(Unavailable("host.guestlink.closed", "the guest closed the streams port"))

    def _take(self, frame: StreamFrame) -> None:
        if frame.stream == 0:
            raise _broken("a frame of stream 0")
        if frame.kind is StreamKind.WINDOW:
            state = self._states.get(frame.stream)
            if state is not None:
                state.credit += int.from_bytes(frame.payload, "big")
                if state.credit > INITIAL_WINDOW:
                    raise _broken("more credit than a window")
            return
        state = self._find(frame.stream)
        if state.ended:
            raise _broken("a frame behind the end of its stream")
        if frame.kind is StreamKind.EOF:
            state.ended = True
        elif frame.payload:
            state.window -= len(frame.payload)
            if state.window < 0:
                raise _broken("more data than its window")
            state.put(frame.payload)

    # -- the sending thread --------------------------------------------------------------------------------------

    def _send(self) -> None:
        try:
            while True:
                with self._changed:
                    while not (batch := self._next_batch()):
                        if self._error is not None:
                            return
                        self._changed.wait()
                    self._changed.notify_all()
                self._connection.sendall(batch)
        except OSError:
            self.fail(Unavailable("host.guestlink.closed", "the streams port cannot be written"))

    def _next_batch(self) -> bytes:
        """Return one frame of each stream that has something to say."""
        parts = []
        for state in list(self._states.values()):
            if state.to_grant:
                grant = state.to_grant.to_bytes(4, "big")
                parts.append(pack_stream_frame(StreamFrame(state.number, StreamKind.WINDOW, grant)))
                state.to_grant = 0
            if state.outgoing:
                frame = state.outgoing.popleft()
                state.queued -= len(frame) - _HEADER_BYTES
                parts.append(frame)
                if state.done and not state.outgoing:
                    del self._states[state.number]  # a stream has one direction: its end is the end
        return b"".join(parts)


class GuestStream:
    """One stream of a process in the guest: its stdin to write, its stdout or stderr to read.

    Attributes:
        number: as the guest named it.
    """

    def __init__(self, streams: GuestStreams, number: int) -> None:
        self.number = number
        self._streams = streams

    def read(self, seconds: float | None = None) -> bytes:
        """Return the payload of the next frame; empty at the end of the stream.

        Raises:
            Unavailable: the connection was lost before the end (`host.guestlink.closed`), or nothing came in time
                (`host.guestlink.timeout`).
            Refused: the guest broke the protocol (`guestapi.*`).
        """
        return self._streams._read(self.number, seconds)

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the payloads until the end of the stream; errors as `read`."""
        while payload := self.read():
            yield payload

    def write(self, data: bytes, seconds: float | None = None) -> None:
        """Send bytes, in as many frames as credit and size ask for; errors as `read`."""
        while data:
            data = data[self._streams._write(self.number, data, least=1, seconds=seconds) :]

    def write_record(self, record: bytes, seconds: float | None = None) -> None:
        """Send bytes in one frame, waiting for credit for all of it; errors as `read`."""
        if not 0 < len(record) <= STREAM_FRAME_BYTES:
            raise RuntimeError("a record is one frame")
        self._streams._write(self.number, record, least=len(record), seconds=seconds)

    def end(self) -> None:
        """Say that nothing more will be written. Further calls do nothing."""
        self._streams._end(self.number)


_HEADER_BYTES: Final = len(pack_stream_frame(StreamFrame(1, StreamKind.EOF)))


def _deadline(seconds: float | None) -> float | None:
    return None if seconds is None else time.monotonic() + seconds


def _broken(what: str) -> RequestRefused:
    return RequestRefused("guestapi.stream_protocol", f"the guest sent {what}")
