"""The stream mux over a real socket pair and real pipes: credit, sealing, drains, and a host that breaks the rules."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cloister.crypto.streamseal import StreamOpener, StreamSealer
from cloister.guest import streams
from cloister.guest.streams import StreamMux
from cloister.protocol.guestapi import (
    INITIAL_WINDOW,
    StreamFrame,
    StreamKind,
    StreamSplitter,
    pack_stream_frame,
)
from cloister.wire.limits import MIB, STREAM_FRAME_BYTES

KEY, SALT = bytes(range(32)), bytes(32)
SECONDS = 20


class Host:
    """The host's end of the port, reading only when asked."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer
        peer.settimeout(SECONDS)
        self.splitter = StreamSplitter()
        self.waiting: list[StreamFrame] = []

    def send(self, stream: int, kind: StreamKind, payload: bytes = b"") -> None:
        self.peer.sendall(pack_stream_frame(StreamFrame(stream, kind, payload)))

    def grant(self, stream: int, count: int) -> None:
        self.send(stream, StreamKind.WINDOW, count.to_bytes(4, "big"))

    def frame(self) -> StreamFrame:
        while not self.waiting:
            data = self.peer.recv(65536)
            if not data:
                raise EOFError
            self.waiting += self.splitter.feed(data)
        return self.waiting.pop(0)

    def until_end(self, stream: int, *, grant: bool = True) -> list[bytes]:
        """Return the payloads of one stream up to its end."""
        pieces: list[bytes] = []
        while True:
            frame = self.frame()
            if frame.stream != stream:
                continue
            if frame.kind is StreamKind.EOF:
                return pieces
            if frame.kind is StreamKind.DATA:
                pieces.append(frame.payload)
                if grant:
                    self.grant(stream, len(frame.payload))

    def closed(self) -> bool:
        try:
            while True:
                self.frame()
        except (EOFError, ConnectionError):
            return True


@pytest.fixture
def wired() -> Iterator[tuple[StreamMux, Host]]:
    ours, theirs = socket.socketpair()
    mux = StreamMux(ours.detach(), absence_is_final=True)
    mux.start()
    yield mux, Host(theirs)
    mux.stop()
    theirs.close()


def broken() -> None:
    raise AssertionError("nothing is wrong with this input")


def output(mux: StreamMux, sealer: StreamSealer | None = None) -> tuple[int, int]:
    stream = mux.allocate()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    mux.add_output(stream, reader, sealer)
    return stream, writer


def write_all(fd: int, data: bytes) -> threading.Thread:
    def work() -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.close(fd)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def read_all(fd: int) -> bytes:
    data = b""
    while chunk := os.read(fd, 65536):
        data += chunk
    os.close(fd)
    return data


def eventually(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# --- outputs ---


def test_output_arrives_and_ends(wired: tuple[StreamMux, Host]) -> None:
    mux, host = wired
    stream, writer = output(mux)
    write_all(writer, b"hello")
    assert b"".join(host.until_end(stream)) == b"hello"


def test_large_output_passes_a_small_window(wired: tuple[StreamMux, Host]) -> None:
    mux, host = wired
    stream, writer = output(mux)
    data = os.urandom(3 * MIB + 17)
    write_all(writer, data)
    pieces = host.until_end(stream)
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= STREAM_FRAME_BYTES


def test_no_byte_beyond_the_credit(wired: tuple[StreamMux, Host]) -> None:
    mux, host = wired
    stream, writer = output(mux)
    thread = write_all(writer, bytes(2 * INITIAL_WINDOW))
    seen = 0
    while seen < INITIAL_WINDOW:
        seen += len(host.frame().payload)
    assert seen == INITIAL_WINDOW
    host.peer.settimeout(0.15)
    with pytest.raises(TimeoutError):
        host.frame()
    host.peer.settimeout(SECONDS)
    assert thread.is_alive()  # the process waits, as with any slow reader
    host.grant(stream, 1)
    assert len(host.frame().payload) == 1
    host.grant(stream, 2 * INITIAL_WINDOW)
    assert sum(map(len, host.until_end(stream))) == INITIAL_WINDOW - 1


def test_sealed_output_opens_and_is_complete(wired: tuple[StreamMux, Host]) -> None:
    mux, host = wired
    stream, writer = output(mux, StreamSealer(KEY, SALT, "stdout"))
    data = os.urandom(700_000)
    write_all(writer, data)
    opener = StreamOpener(KEY, SALT, "stdout")
    assert b"".join(opener.open(record) for record in host.until_end(stream)) == data
    opener.end()


@pytest.mark.parametrize("left", [1, 15, 17])
def test_final_record_waits_for_credit(
    wired: tuple[StreamMux, Host], monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """With too little credit for the final record the end waits; it is never sent without it."""
    mux, host = wired
    monkeypatch.setattr(streams, "INITIAL_WINDOW", 5 + 16 + left)
    stream, writer = output(mux, StreamSealer(KEY, SALT, "stdout"))
    write_all(writer, b"hello").join()
    opener = StreamOpener(KEY, SALT, "stdout")
    assert opener.open(host.frame().payload) == b"hello"
    if left < 16:
        host.peer.settimeout(0.1)
        with pytest.raises(TimeoutError):
            host.frame()
        host.peer.settimeout(SECONDS)
        host.grant(stream, 16)
    assert [opener.open(record) for record in host.until_end(stream)] == [b""]
    opener.end()


def test_a_stalled_stream_stalls_no_other(wired: tuple[StreamMux, Host]) -> None:
    mux, host = wired
    stalled, loud = output(mux)
    write_all(loud, bytes(4 * INITIAL_WINDOW))
    other, writer = output(mux)
    write_all(writer, b"through")
    pieces: list[bytes] = []
    while True:
        frame = host.frame()
        if frame.stream == other and frame.kind is StreamKind.EOF:
            break
        if frame.stream == other:
            pieces.append(frame.payload)
    assert b"".join(pieces) == b"through"
    host.grant(stalled, 4 * INITIAL_WINDOW)
    host.until_end(stalled)


def test_drain_reads_and_tells_nobody(wired: tuple[StreamMux, Host]) -> None:
    mux, host = wired
    reader, writer = os.pipe2(os.O_CLOEXEC)
    mux.add_drain(reader)
    write_all(writer, bytes(10 * MIB)).join(SECONDS)
    assert mux.flush(SECONDS)
    host.peer.settimeout(0.05)
    with pytest.raises(TimeoutError):
        host.frame()


def test_outputs_drain_when_the_host_is_gone(wired: tuple[StreamMux, Host]) -> None:
    mux, host = wired
    _, writer = output(mux)
    host.peer.close()
    thread = write_all(writer, bytes(10 * MIB))
    thread.join(SECONDS)
    assert not thread.is_alive()
    _, late = output(mux)
    write_all(late, bytes(MIB)).join(SECONDS)
    assert mux.flush(SECONDS)


def test_terminal_whose_other_side_closed_is_an_end(wired: tuple[StreamMux, Host]) -> None:
    mux, host = wired
    master, slave = os.openpty()
    stream = mux.allocate()
    mux.add_output(stream, master, None)
    os.write(slave, b"bye\n")
    assert host.frame().payload == b"bye\r\n"
    os.close(slave)
    assert host.until_end(stream) == []


def test_flush_waits_for_the_last_byte(wired: tuple[StreamMux, Host]) -> None:
    mux, host = wired
    stream, writer = output(mux)
    assert not mux.flush(0.05)
    write_all(writer, b"end")
    assert mux.flush(SECONDS)
    assert host.until_end(stream) == [b"end"]


# --- inputs ---


def plain_input(mux: StreamMux) -> tuple[int, int]:
    stream = mux.allocate()
    mux.add_input(stream, None, broken)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    mux.connect_input(stream, writer, terminal=False)
    return stream, reader


def test_input_arrives_and_ends(wired: tuple[StreamMux, Host]) -> None:
    mux, host = wired
    stream, reader = plain_input(mux)
    host.send(stream, StreamKind.DATA, b"in")
    host.send(stream, StreamKind.EOF)
    assert read_all(reader) == b"in"


def test_input_before_the_process_starts_is_kept(wired: tuple[StreamMux, Host]) -> None:
    mux, host = wired
    stream = mux.allocate()
    mux.add_input(stream, None, broken)
    host.send(stream, StreamKind.DATA, b"early")
    host.send(stream, StreamKind.EOF)
    time.sleep(0.05)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    mux.connect_input(stream, writer, terminal=False)
    assert read_all(reader) == b"early"


def test_large_input_is_paced_by_credit(wired: tuple[StreamMux, Host]) -> None:
    mux, host = wired
    stream, reader = plain_input(mux)
    data = os.urandom(2 * MIB)
    received: list[bytes] = []
    thread = threading.Thread(target=lambda: received.append(read_all(reader)), daemon=True)
    thread.start()
    credit, sent = INITIAL_WINDOW, 0
    while sent < len(data):
        piece = data[sent : sent + min(credit, STREAM_FRAME_BYTES)]
        if piece:
            host.send(stream, StreamKind.DATA, piece)
            credit -= len(piece)
            sent += len(piece)
        else:
            frame = host.frame()
            assert frame.kind is StreamKind.WINDOW
            credit += int.from_bytes(frame.payload, "big")
    host.send(stream, StreamKind.EOF)
    thread.join(SECONDS)
    assert received == [data]


def test_process_that_closed_its_input_is_not_waited_for(wired: tuple[StreamMux, Host]) -> None:
    mux, host = wired
    stream, reader = plain_input(mux)
    os.close(reader)
    total = 0
    for _ in range(20):  # more than a window: credit comes back although nobody reads
        host.send(stream, StreamKind.DATA, bytes(STREAM_FRAME_BYTES))
        frame = host.frame()
        assert frame.kind is StreamKind.WINDOW
        total += int.from_bytes(frame.payload, "big")
    assert total == 20 * STREAM_FRAME_BYTES


def test_late_bytes_for_an_ended_process_are_dropped(wired: tuple[StreamMux, Host]) -> None:
    mux, host = wired
    stream, reader = plain_input(mux)
    mux.drop_input(stream)
    assert read_all(reader) == b""
    host.send(stream, StreamKind.DATA, b"late")
    other, writer = output(mux)
    write_all(writer, b"alive")
    assert host.until_end(other) == [b"alive"]


def test_plain_input_ends_on_request(wired: tuple[StreamMux, Host]) -> None:
    mux, _ = wired
    stream, reader = plain_input(mux)
    mux.end_input(stream)
    assert read_all(reader) == b""


def sealed_input(mux: StreamMux) -> tuple[int, int, StreamSealer, threading.Event]:
    stream, bad = mux.allocate(), threading.Event()
    mux.add_input(stream, StreamOpener(KEY, SALT, "stdin"), bad.set)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    mux.connect_input(stream, writer, terminal=False)
    return stream, reader, StreamSealer(KEY, SALT, "stdin"), bad


def test_sealed_input_opens(wired: tuple[StreamMux, Host]) -> None:
    mux, host = wired
    stream, reader, sealer, bad = sealed_input(mux)
    host.send(stream, StreamKind.DATA, sealer.seal(b"secret"))
    host.send(stream, StreamKind.DATA, sealer.finish())
    host.send(stream, StreamKind.EOF)
    assert read_all(reader) == b"secret"
    assert not bad.is_set()


@pytest.mark.parametrize("attack", ["forged", "truncated", "replayed", "port closed", "breaks protocol"])
def test_broken_sealed_input_never_looks_complete(wired: tuple[StreamMux, Host], attack: str) -> None:
    mux, host = wired
    stream, reader, sealer, bad = sealed_input(mux)
    record = sealer.seal(b"half")
    host.send(stream, StreamKind.DATA, record)
    assert os.read(reader, 10) == b"half"
    if attack == "forged":
        host.send(stream, StreamKind.DATA, bytes(40))
    elif attack == "truncated":
        host.send(stream, StreamKind.EOF)
    elif attack == "replayed":
        host.send(stream, StreamKind.DATA, record)
    elif attack == "port closed":
        host.peer.close()
    else:
        host.send(99, StreamKind.EOF)
    assert bad.wait(SECONDS)
    os.set_blocking(reader, False)
    with pytest.raises(BlockingIOError):  # no end of file: the pipe is still open
        os.read(reader, 10)
    os.close(reader)


def test_host_cannot_end_a_sealed_input_by_asking(wired: tuple[StreamMux, Host]) -> None:
    mux, _ = wired
    stream, reader, _, bad = sealed_input(mux)
    mux.end_input(stream)
    time.sleep(0.05)
    assert not bad.is_set()
    os.set_blocking(reader, False)
    with pytest.raises(BlockingIOError):
        os.read(reader, 10)
    os.close(reader)


# --- a host that breaks the protocol ---


@pytest.mark.parametrize(
    "raw",
    [
        pack_stream_frame(StreamFrame(5, StreamKind.DATA, b"x")),
        pack_stream_frame(StreamFrame(0, StreamKind.EOF)),
        pack_stream_frame(StreamFrame(2, StreamKind.DATA, b"to an output")),
        pack_stream_frame(StreamFrame(2, StreamKind.WINDOW, b"\xff\xff\xff\xff")),
        b"\0\0\0\1\x03\0\0\0\0\0\0\0",
        b"\0\0\0\1\0\1\0\0\0\0\0\0",
        b"\0\0\0\1\0\0\0\0\xff\xff\xff\xff",
        b"\0\0\0\1\x02\0\0\0\0\0\0\1x",
    ],
)
def test_breaking_the_protocol_closes_the_port(wired: tuple[StreamMux, Host], raw: bytes) -> None:
    mux, host = wired
    plain, _ = plain_input(mux)
    stream, writer = output(mux)
    assert (plain, stream) == (1, 2)
    host.peer.sendall(raw)
    assert host.closed()
    write_all(writer, bytes(5 * MIB)).join(SECONDS)
    assert mux.flush(SECONDS)


def test_data_behind_the_end_closes_the_port(wired: tuple[StreamMux, Host]) -> None:
    mux, host = wired
    stream, _ = plain_input(mux)
    host.send(stream, StreamKind.EOF)
    host.send(stream, StreamKind.DATA, b"more")
    assert host.closed()


def test_flood_beyond_the_window_closes_the_port(wired: tuple[StreamMux, Host]) -> None:
    mux, host = wired
    stream = mux.allocate()
    mux.add_input(stream, None, broken)
    for _ in range(INITIAL_WINDOW // STREAM_FRAME_BYTES):
        host.send(stream, StreamKind.DATA, bytes(STREAM_FRAME_BYTES))
    host.send(stream, StreamKind.DATA, b"x")
    assert host.closed()


def test_descriptors_are_given_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = socket.socketpair()
    mux = StreamMux(ours.detach(), absence_is_final=True)
    mux.start()
    host = Host(theirs)
    stream, writer = output(mux)
    write_all(writer, b"x")
    host.until_end(stream)
    _, reader = plain_input(mux)
    mux.drop_input(2)
    assert read_all(reader) == b""
    mux.stop()
    theirs.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_absent_host_of_a_virtio_port_is_waited_for(tmp_path: object) -> None:
    """An end of file on a virtio port means that no host is connected now; a FIFO pair behaves the same."""
    path = f"{tmp_path}/port"
    os.mkfifo(path)
    port = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    mux = StreamMux(port, absence_is_final=False)
    mux.start()
    mux._request(mux._port_absent)
    eventually(lambda: mux._look_again == 0.0 and mux._port_armed != 0)
    assert mux._port_open
    mux.stop()
