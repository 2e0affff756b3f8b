"""Client of the guest API: calls, events and streams of one pod.

Messages are those of `protocol.guestapi`, over the two connections a launcher gives (`RunningVM.control`, `.streams`).
Threads read and write; callers wait with a time limit. Everything that comes from the guest is bounded: frames,
events that nobody fetched, replies nobody asked for (refused), streams (`gueststreams`). What the guest says is a claim
of the guest: nothing here makes it true.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Final, TypeVar

import msgspec

from cloister.errors import CloisterError, Refused, RequestRefused, Unavailable
from cloister.host.gueststreams import GuestStream, GuestStreams
from cloister.protocol.guestapi import (
    CALLS,
    ContainerParams,
    CreateParams,
    Done,
    Event,
    EventEnvelope,
    ExecParams,
    FailedEvent,
    FrameSplitter,
    HelloEvent,
    InfoResult,
    KillParams,
    NoParams,
    PidsResult,
    ReplyEnvelope,
    ResizeParams,
    StartResult,
    StateResult,
    StatsResult,
    StreamsResult,
    WaitResult,
    WholeContainerParams,
    decode_from_guest,
    decode_result,
    encode_call,
    error_from_wire,
    pack_frame,
)

_R = TypeVar("_R", bound=msgspec.Struct)
EVENTS: Final = 1024  # kept for a caller who does not fetch them; a pod sends some ten per container
ABANDONED_CALLS: Final = 1024  # calls given up whose reply may still come
CALL_SECONDS: Final = 30.0
CREATE_SECONDS: Final = 1800.0  # the guest pulls, verifies, decrypts and unpacks an image in `create`
_READ_BYTES: Final = 64 * 1024


class _Pending:
    """A call without its reply."""

    __slots__ = ("reply",)

    def __init__(self) -> None:
        self.reply: ReplyEnvelope | None = None


class GuestLink:
    """Calls and streams of one pod. Use as a context manager, or call `close`.

    Args:
        control: connected socket of the control port; closed by its owner.
        streams: connected socket of the streams port; closed by its owner.
    """

    def __init__(self, control: socket.socket, streams: socket.socket) -> None:
        self._control = control
        self._streams_connection = streams
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._ids = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._abandoned: set[int] = set()
        self._events: deque[Event] = deque()
        self._hello: HelloEvent | None = None
        self._failed: FailedEvent | None = None
        self._error: CloisterError | None = None
        self._streams = GuestStreams(streams, self._on_streams_lost)
        self._thread = threading.Thread(target=self._receive, name="control-in", daemon=True)
        self._thread.start()
        self._streams.start()

    # -- what a caller does --------------------------------------------------------------------------------------

    def hello(self, seconds: float) -> HelloEvent:
        """Wait for the agent's first word.

        Raises:
            Unavailable: nothing came in time (`host.guestlink.timeout`), or the guest is gone.
            Refused: the guest broke the protocol (`guestapi.*`).
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            while self._hello is None:
                self._wait(deadline, "the agent did not say hello in time")
            return self._hello

    def next_event(self, seconds: float | None = None) -> Event:
        """Return the oldest event not yet fetched; `hello` is not among them. Errors as `hello`."""
        deadline = None if seconds is None else time.monotonic() + seconds
        with self._changed:
            while not self._events:
                self._wait(deadline, "no event came in time")
            return self._events.popleft()

    @property
    def failed(self) -> FailedEvent | None:
        """Why the pod cannot run on, by its own word. Set before any reply that the guest sent after saying it."""
        with self._changed:
            return self._failed

    def events(self) -> Iterator[Event]:
        """Iterate over events until the guest closes the port; a broken protocol raises as in `hello`."""
        while True:
            try:
                event = self.next_event()
            except Unavailable:
                return
            yield event

    def stream(self, number: int) -> GuestStream:
        """Return a stream named in a reply."""
        return self._streams.stream(number)

    def call(self, name: str, params: msgspec.Struct, *, seconds: float | None = CALL_SECONDS) -> msgspec.Struct:
        """Make a call and wait for its reply; several threads may have calls under way.

        Args:
            name: one of `CALLS`.
            params: of the type that belongs to the name.
            seconds: how long to wait; None for as long as the guest lives.

        Raises:
            Refused, Unavailable: the guest's refusal, with its code.
            Unavailable: no reply in time (`host.guestlink.timeout`), or the guest is gone (`host.guestlink.closed`).
            RequestRefused: the guest broke the protocol (`guestapi.*`).
        """
        wanted = CALLS[name][0]
        if not isinstance(params, wanted):
            raise TypeError(f"{name} takes {wanted.__name__}")
        deadline = None if seconds is None else time.monotonic() + seconds
        pending = _Pending()
        with self._changed:
            if self._error is not None:
                raise self._error
            number = next(self._ids)
            self._pending[number] = pending
        try:
            self._send(pack_frame(encode_call(number, name, params)), deadline)
            with self._changed:
                while pending.reply is None:
                    self._wait(deadline, f"no reply to {name} in time")
        finally:
            self._forget(number, pending)
        failed = self.failed
        if pending.reply.error and failed is not None:  # the pod ends, and with it the call: that is the reason
            raise error_from_wire(failed.error)
        return decode_result(name, pending.reply)

    def close(self) -> None:
        """Leave the guest: whoever waits is told. Further calls do nothing."""
        self._fail(Unavailable("host.guestlink.closed", "the link to the guest was closed"))
        for connection in (self._control, self._streams_connection):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._streams.join()

    def __enter__(self) -> GuestLink:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the guest."""
        self.close()

    # -- the calls, typed; errors as `call` ----------------------------------------------------------------------

    def info(self) -> InfoResult:
        """Return what the guest says about itself."""
        return self._typed(InfoResult, "info", NoParams())

    def create(self, params: CreateParams, *, seconds: float | None = CREATE_SECONDS) -> StreamsResult:
        """Have a container made: its image pulled, verified, unpacked."""
        return self._typed(StreamsResult, "create", params, seconds)

    def start(self, container: str, exec_id: str = "") -> StartResult:
        """Run a container's first process, or an added one."""
        return self._typed(StartResult, "start", ContainerParams(container=container, exec=exec_id))

    def exec(self, params: ExecParams) -> StreamsResult:
        """Add a process."""
        return self._typed(StreamsResult, "exec", params)

    def kill(self, params: KillParams) -> Done:
        """Send a signal."""
        return self._typed(Done, "kill", params)

    def wait(self, container: str, exec_id: str = "", *, seconds: float | None = None) -> WaitResult:
        """Wait for a process to end."""
        return self._typed(WaitResult, "wait", ContainerParams(container=container, exec=exec_id), seconds)

    def state(self, container: str, exec_id: str = "") -> StateResult:
        """Return the state of a process."""
        return self._typed(StateResult, "state", ContainerParams(container=container, exec=exec_id))

    def pids(self, container: str) -> PidsResult:
        """Return process ids."""
        return self._typed(PidsResult, "pids", WholeContainerParams(container=container))

    def stats(self, container: str) -> StatsResult:
        """Return resource use."""
        return self._typed(StatsResult, "stats", WholeContainerParams(container=container))

    def resize(self, params: ResizeParams) -> Done:
        """Set a terminal's size."""
        return self._typed(Done, "resize", params)

    def close_io(self, container: str, exec_id: str = "") -> Done:
        """Close a process' standard input, at once: bytes still on their way on the streams port are lost.

        The two ports are not ordered. An end behind the last byte is the EOF frame of the stream itself.
        """
        return self._typed(Done, "close_io", ContainerParams(container=container, exec=exec_id))

    def pause(self, container: str) -> Done:
        """Stop all processes of a container."""
        return self._typed(Done, "pause", WholeContainerParams(container=container))

    def resume(self, container: str) -> Done:
        """Continue them."""
        return self._typed(Done, "resume", WholeContainerParams(container=container))

    def delete(self, container: str, exec_id: str = "") -> WaitResult:
        """Remove an ended process or container; return its exit status."""
        return self._typed(WaitResult, "delete", ContainerParams(container=container, exec=exec_id))

    def shutdown(self) -> Done:
        """End the pod."""
        return self._typed(Done, "shutdown", NoParams())

    def _typed(self, result: type[_R], name: str, params: msgspec.Struct, seconds: float | None = CALL_SECONDS) -> _R:
        reply = self.call(name, params, seconds=seconds)
        if not isinstance(reply, result):
            raise TypeError(f"{name} does not answer with {result.__name__}")
        return reply

    # -- inside --------------------------------------------------------------------------------------------------

    def _send(self, frame: bytes, deadline: float | None) -> None:
        """Write one frame. When only a part could be written the link is given up: it cannot be taken back."""
        left = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
        if not self._sending.acquire(timeout=left):
            raise Unavailable("host.guestlink.timeout", "the guest does not read its control port")
        view = memoryview(frame)
        try:
            while view:
                try:
                    view = view[self._control.send(view, socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    self._wait_writable(deadline)
        except OSError as err:
            error = Unavailable("host.guestlink.closed", "the control port cannot be written")
            self._fail(error)
            raise error from err
        except Unavailable as err:
            if len(view) < len(frame):
                self._fail(err)
            raise
        finally:
            self._sending.release()

    def _wait_writable(self, deadline: float | None) -> None:
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        poller = select.poll()
        poller.register(self._control, select.POLLOUT)
        if not poller.poll(left):
            raise Unavailable("host.guestlink.timeout", "the guest does not read its control port")

    def _wait(self, deadline: float | None, late: str) -> None:
        """Wait for any change; what already came is still given out after the link was lost."""
        if self._error is not None:
            raise self._error
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise Unavailable("host.guestlink.timeout", late)
        self._changed.wait(left)

    def _forget(self, number: int, pending: _Pending) -> None:
        with self._changed:
            self._pending.pop(number, None)
            if pending.reply is None:
                self._abandoned.add(number)
            lost = len(self._abandoned) > ABANDONED_CALLS
        if lost:
            self._fail(Unavailable("host.guestlink.timeout", "the guest left too many calls unanswered"))

    def _fail(self, error: CloisterError) -> None:
        with self._changed:
            if self._error is None:
                self._error = error
                self._changed.notify_all()
        self._streams.fail(error)

    def _on_streams_lost(self, error: CloisterError) -> None:
        """A guest that breaks the streams' protocol is not listened to on the other port either; a mere end is fine."""
        if isinstance(error, Refused):
            self._fail(error)

    def _receive(self) -> None:
        splitter = FrameSplitter()
        try:
            while data := self._control.recv(_READ_BYTES):
                for frame in splitter.feed(data):
                    message = decode_from_guest(frame)
                    with self._changed:
                        self._take(message)
                        self._changed.notify_all()
        except Refused as err:
            self._fail(err)
        except OSError:
            pass  # the same as an end
        self._fail(Unavailable("host.guestlink.closed", "the guest closed the control port"))

    def _take(self, message: ReplyEnvelope | EventEnvelope) -> None:
        if isinstance(message, EventEnvelope):
            self._take_event(message.event)
            return
        pending = self._pending.get(message.id)
        if pending is not None and pending.reply is None:
            pending.reply = message
        elif message.id in self._abandoned:
            self._abandoned.discard(message.id)
        else:
            raise RequestRefused("guestapi.unexpected_reply", "the guest answered a call nobody made")

    def _take_event(self, event: Event) -> None:
        if isinstance(event, HelloEvent) == (self._hello is not None):
            what = "a second hello" if self._hello else "another event before its hello"
            raise RequestRefused("guestapi.hello", f"the guest sent {what}")
        if isinstance(event, HelloEvent):
            self._hello = event
            return
        if len(self._events) >= EVENTS:
            raise RequestRefused("guestapi.events", "the guest floods events", expected=f"at most {EVENTS} unfetched")
        if isinstance(event, FailedEvent):
            self._failed = event
        self._events.append(event)
