"""Streams: credit both ways, no stream holds up another, everything bounded; also against the guest's own mux."""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cloister.crypto.streamseal import StreamOpener, StreamSealer
from cloister.errors import CloisterError, RequestRefused, Unavailable
from cloister.guest.streams import StreamMux
from cloister.host import gueststreams
from cloister.host.gueststreams import STREAMS, GuestStreams
from cloister.protocol.guestapi import (
    INITIAL_WINDOW,
    StreamFrame,
    StreamKind,
    StreamSplitter,
    pack_stream_frame,
)
from cloister.wire.limits import STREAM_FRAME_BYTES

SECONDS = 20.0
CHUNK = b"x" * STREAM_FRAME_BYTES


class Guest:
    """The guest's end of the port, frame by frame."""

    def __init__(self) -> None:
        self.port, self.theirs = socket.socketpair()
        self.port.settimeout(SECONDS)
        self.lost: queue.SimpleQueue[CloisterError] = queue.SimpleQueue()
        self.streams = GuestStreams(self.theirs, self.lost.put)
        self.streams.start()
        self._splitter = StreamSplitter()
        self._frames: list[StreamFrame] = []

    def say(self, stream: int, kind: StreamKind, payload: bytes = b"") -> None:
        self.port.sendall(pack_stream_frame(StreamFrame(stream, kind, payload)))

    def hear(self) -> StreamFrame:
        while not self._frames:
            data = self.port.recv(1 << 20)
            assert data
            self._frames += self._splitter.feed(data)
        return self._frames.pop(0)

    def close(self) -> None:
        self.streams.fail(Unavailable("host.guestlink.closed", "test ends"))
        for end in (self.port, self.theirs):
            end.close() if end is self.port else end.shutdown(socket.SHUT_RDWR)
        self.streams.join()
        self.theirs.close()


@pytest.fixture
def guest(threads: ThreadPoolExecutor) -> Iterator[Guest]:
    """Closed before the threads are waited for."""
    made = Guest()
    yield made
    made.close()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def test_output_frame_by_frame(guest: Guest) -> None:
    stream = guest.streams.stream(2)
    guest.say(2, StreamKind.DATA, b"one")
    guest.say(2, StreamKind.DATA, b"")
    guest.say(2, StreamKind.DATA, b"two")
    guest.say(2, StreamKind.EOF)
    assert [stream.read(SECONDS), stream.read(SECONDS), stream.read(SECONDS), stream.read(SECONDS)] == [
        b"one",
        b"two",
        b"",
        b"",
    ]


def test_data_before_anybody_asked_for_the_stream(guest: Guest) -> None:
    guest.say(5, StreamKind.DATA, b"early")
    guest.say(5, StreamKind.EOF)
    assert list(guest.streams.stream(5)) == [b"early"]


def test_input_and_its_end(guest: Guest) -> None:
    stream = guest.streams.stream(1)
    stream.write(b"line\n")
    stream.end()
    stream.end()
    assert guest.hear() == StreamFrame(1, StreamKind.DATA, b"line\n")
    assert guest.hear() == StreamFrame(1, StreamKind.EOF)
    with pytest.raises(RuntimeError):
        stream.write(b"more")


def test_sender_stops_at_zero_credit(guest: Guest, threads: ThreadPoolExecutor) -> None:
    stream = guest.streams.stream(1)
    data = os.urandom(INITIAL_WINDOW + 10)
    writing = threads.submit(stream.write, data)
    received = b""
    while len(received) < INITIAL_WINDOW:
        received += guest.hear().payload
    assert not writing.done()
    guest.say(1, StreamKind.WINDOW, (4).to_bytes(4, "big"))
    assert len(frame := guest.hear().payload) == 4
    assert not writing.done()
    guest.say(1, StreamKind.WINDOW, (100).to_bytes(4, "big"))
    writing.result(SECONDS)
    assert received + frame + guest.hear().payload == data


def test_write_that_waits_too_long(guest: Guest) -> None:
    stream = guest.streams.stream(1)
    stream.write(bytes(INITIAL_WINDOW))
    with pytest.raises(Unavailable, match=r"host\.guestlink\.timeout"):
        stream.write(b"x", seconds=0.05)


def test_record_is_one_frame(guest: Guest, threads: ThreadPoolExecutor) -> None:
    stream = guest.streams.stream(1)
    for _ in range(INITIAL_WINDOW // STREAM_FRAME_BYTES - 1):
        stream.write_record(CHUNK)
    stream.write_record(b"y" * 100)
    sending = threads.submit(stream.write_record, CHUNK)
    for _ in range(INITIAL_WINDOW // STREAM_FRAME_BYTES - 1):
        assert guest.hear().payload == CHUNK
    assert guest.hear().payload == b"y" * 100
    assert not sending.done()  # credit for most of the record is not enough
    guest.say(1, StreamKind.WINDOW, (100).to_bytes(4, "big"))
    sending.result(SECONDS)
    assert guest.hear().payload == CHUNK
    with pytest.raises(RuntimeError):
        stream.write_record(b"")
    with pytest.raises(RuntimeError):
        stream.write_record(CHUNK + b"x")


def test_credit_is_given_back_as_it_is_read(guest: Guest) -> None:
    stream = guest.streams.stream(2)
    for _ in range(INITIAL_WINDOW // STREAM_FRAME_BYTES):
        guest.say(2, StreamKind.DATA, CHUNK)
    granted = read = 0
    for _ in range(INITIAL_WINDOW // STREAM_FRAME_BYTES):
        read += len(stream.read(SECONDS))
    while granted < read:
        frame = guest.hear()
        assert (frame.stream, frame.kind) == (2, StreamKind.WINDOW)
        granted += int.from_bytes(frame.payload, "big")
    assert granted == INITIAL_WINDOW
    guest.say(2, StreamKind.DATA, CHUNK)
    assert stream.read(SECONDS) == CHUNK


def test_stalled_stream_holds_up_nobody(guest: Guest, threads: ThreadPoolExecutor) -> None:
    stalled, other = guest.streams.stream(1), guest.streams.stream(3)
    stuck = threads.submit(stalled.write, bytes(INITIAL_WINDOW * 2))
    for _ in range(INITIAL_WINDOW // STREAM_FRAME_BYTES):
        guest.say(2, StreamKind.DATA, CHUNK)  # an output nobody reads
        assert guest.hear().stream == 1
    other.write(b"through")
    assert guest.hear() == StreamFrame(3, StreamKind.DATA, b"through")
    guest.say(4, StreamKind.DATA, b"back")
    assert guest.streams.stream(4).read(SECONDS) == b"back"
    assert not stuck.done()


def test_lost_before_the_end_is_not_an_end(guest: Guest) -> None:
    stream = guest.streams.stream(2)
    guest.say(2, StreamKind.DATA, b"part")
    guest.port.close()
    assert stream.read(SECONDS) == b"part"
    with pytest.raises(Unavailable, match=r"host\.guestlink\.closed"):
        stream.read(SECONDS)
    with pytest.raises(Unavailable, match=r"host\.guestlink\.closed"):
        guest.streams.stream(1).write(b"x", seconds=SECONDS)
    guest.streams.stream(1).end()


def test_read_that_waits_too_long(guest: Guest) -> None:
    with pytest.raises(Unavailable, match=r"host\.guestlink\.timeout"):
        guest.streams.stream(2).read(0.05)


def test_streams_can_be_used_again_and_again(guest: Guest) -> None:
    """Many processes over the life of a pod: ended streams take no place."""
    for number in range(1, STREAMS * 3, 2):
        stdin = guest.streams.stream(number)
        stdin.end()
        assert guest.hear() == StreamFrame(number, StreamKind.EOF)
        guest.say(number, StreamKind.WINDOW, bytes(4))  # late, for a stream that is forgotten
        guest.say(number + 1, StreamKind.DATA, b"x")
        guest.say(number + 1, StreamKind.EOF)
        assert list(guest.streams.stream(number + 1)) == [b"x"]
    assert guest.lost.empty()


def too_much(guest: Guest) -> None:
    for _ in range(INITIAL_WINDOW // STREAM_FRAME_BYTES + 1):
        guest.say(2, StreamKind.DATA, CHUNK)


def behind_the_end(guest: Guest) -> None:
    guest.say(2, StreamKind.EOF)
    guest.say(2, StreamKind.DATA, b"x")


def two_ends(guest: Guest) -> None:
    guest.say(2, StreamKind.EOF)
    guest.say(2, StreamKind.EOF)


def too_many_streams(guest: Guest) -> None:
    for number in range(1, STREAMS + 2):
        guest.say(number, StreamKind.DATA, b"x")


def too_much_credit(guest: Guest) -> None:
    guest.streams.stream(1)
    guest.say(1, StreamKind.WINDOW, (1).to_bytes(4, "big"))


def stream_zero(guest: Guest) -> None:
    guest.say(0, StreamKind.DATA, b"x")


@pytest.mark.parametrize(
    "misbehave", [too_much, behind_the_end, two_ends, too_many_streams, too_much_credit, stream_zero]
)
def test_guest_that_breaks_the_protocol(guest: Guest, misbehave: object) -> None:
    assert callable(misbehave)
    misbehave(guest)
    error = guest.lost.get(timeout=SECONDS)
    assert isinstance(error, RequestRefused)
    assert error.code == "guestapi.stream_protocol"
    with pytest.raises(RequestRefused):
        guest.streams.stream(1000).read(SECONDS)


def test_tiny_frames_are_small(guest: Guest) -> None:
    count = 20_000
    frames = pack_stream_frame(StreamFrame(2, StreamKind.DATA, b"x")) * count
    stream = guest.streams.stream(2)
    sender = threading.Thread(target=guest.port.sendall, args=(frames,))
    sender.start()
    total = 0
    state = guest.streams._states[2]
    while total < count:
        total += len(stream.read(SECONDS))
        assert state.first < gueststreams._COMPACT_FRAMES
    sender.join()
    assert not state.data
    assert len(state.lengths) == state.first == 0


def test_our_own_mistakes(guest: Guest) -> None:
    with pytest.raises(RuntimeError):
        guest.streams.stream(0)


@pytest.fixture
def mux() -> Iterator[tuple[StreamMux, GuestStreams]]:
    """The guest's implementation on the other end."""
    port, theirs = socket.socketpair()
    guest_mux = StreamMux(port.detach(), absence_is_final=True)
    guest_mux.start()
    host = GuestStreams(theirs, lambda error: None)
    host.start()
    yield guest_mux, host
    guest_mux.stop()
    host.join()
    theirs.close()


def test_with_the_guests_mux_a_lot_of_output(mux: tuple[StreamMux, GuestStreams]) -> None:
    guest_mux, host = mux
    reading, writing = os.pipe()
    number = guest_mux.allocate()
    guest_mux.add_output(number, reading, None)
    data = os.urandom(3 * 1024 * 1024)

    def write() -> None:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(data)

    writer = threading.Thread(target=write)
    writer.start()
    assert b"".join(host.stream(number)) == data
    writer.join()


def test_with_the_guests_mux_a_lot_of_input(mux: tuple[StreamMux, GuestStreams], threads: ThreadPoolExecutor) -> None:
    guest_mux, host = mux
    reading, writing = os.pipe()
    number = guest_mux.allocate()
    guest_mux.add_input(number, None, lambda: None)
    guest_mux.connect_input(number, writing, terminal=False)
    data = os.urandom(3 * 1024 * 1024)

    def send() -> None:
        stream = host.stream(number)
        stream.write(data, SECONDS)
        stream.end()

    sent = threads.submit(send)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == data
    sent.result(SECONDS)


def test_with_the_guests_mux_sealed(mux: tuple[StreamMux, GuestStreams]) -> None:
    guest_mux, host = mux
    key, salt = os.urandom(32), os.urandom(32)
    out_read, out_write = os.pipe()
    in_read, in_write = os.pipe()
    stdin, stdout = guest_mux.allocate(), guest_mux.allocate()
    guest_mux.add_output(stdout, out_read, StreamSealer(key, salt, "stdout"))
    guest_mux.add_input(stdin, StreamOpener(key, salt, "stdin"), lambda: None)
    guest_mux.connect_input(stdin, in_write, terminal=False)
    opener, sealer = StreamOpener(key, salt, "stdout"), StreamSealer(key, salt, "stdin")
    stream = host.stream(stdin)
    stream.write_record(sealer.seal(b"question"))
    stream.write_record(sealer.finish())
    stream.end()
    with os.fdopen(in_read, "rb") as pipe:
        assert pipe.read() == b"question"
    with os.fdopen(out_write, "wb") as pipe:
        pipe.write(b"answer" * 50_000)
    records = list(host.stream(stdout))
    assert b"answer" not in b"".join(records)
    assert b"".join(map(opener.open, records)) == b"answer" * 50_000
    assert opener.finished
