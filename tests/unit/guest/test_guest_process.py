"""One process: which streams it has, and that they end whatever happens."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from cloister.crypto.streamseal import StreamOpener
from cloister.errors import CloisterError, RequestRefused, Unavailable
from cloister.guest import children
from cloister.guest.process import PodProcess, StreamSetup
from cloister.guest.runtime import Ended, ProcessIO, Started
from cloister.guest.streams import StreamMux
from cloister.protocol.guestapi import StreamFrame, StreamKind, StreamSplitter
from cloister.wire.base64 import decode_b64

KEY = bytes(range(32))


class Wire:
    """The host's end: keeps everything until a stream ends."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer
        self.splitter = StreamSplitter()
        self.frames: list[StreamFrame] = []
        peer.settimeout(20)

    def content(self, stream: int) -> list[bytes]:
        while not any(frame.stream == stream and frame.kind is StreamKind.EOF for frame in self.frames):
            data = self.peer.recv(65536)
            assert data
            self.frames += self.splitter.feed(data)
        return [frame.payload for frame in self.frames if frame.stream == stream and frame.kind is StreamKind.DATA]


@pytest.fixture
def wire() -> Iterator[tuple[StreamMux, Wire]]:
    ours, theirs = socket.socketpair()
    mux = StreamMux(ours.detach(), absence_is_final=True)
    mux.start()
    yield mux, Wire(theirs)
    mux.stop()
    theirs.close()


def watch(pid: int, ended: Ended) -> None:
    pidfd = os.pidfd_open(pid)

    def close(status: int) -> None:
        os.close(pidfd)
        ended(status)

    children.watch(pidfd, close)


def runner(script: str) -> Callable[[ProcessIO, Ended], Started]:
    """What a runtime does, without a container."""

    def start(io: ProcessIO, ended: Ended) -> Started:
        pid = children.spawn("/bin/sh", ["sh", "-c", script], environment={}, descriptors=io.descriptors())
        watch(pid, ended)
        return Started(pid=pid)

    return start


def failing(code: str) -> Callable[[ProcessIO, Ended], Started]:
    def start(io: ProcessIO, ended: Ended) -> Started:
        raise Unavailable(code, "no")

    return start


def process(mux: StreamMux, mode: str = "host", *, terminal: bool = False, stdin: bool = False) -> PodProcess:
    key = bytearray(KEY) if mode == "sealed" else None
    setup = StreamSetup(mux, mode, key)  # type: ignore[arg-type]  # one of the three modes
    return PodProcess(setup, terminal=terminal, stdin=stdin, on_broken=lambda: None)


def test_plain_streams(wire: tuple[StreamMux, Wire]) -> None:
    mux, host = wire
    item = process(mux)
    statuses: list[int] = []
    done = threading.Event()
    item.launch(runner("echo out; echo err >&2; exit 6"), lambda status: (statuses.append(status), done.set()))
    assert item.wait() == 6
    assert done.wait(20)
    assert statuses == [6]
    streams = item.streams()
    assert (streams.stdin, streams.salt) == (0, "")
    assert host.content(streams.stdout) == [b"out\n"]
    assert host.content(streams.stderr) == [b"err\n"]


def test_sealed_streams_have_a_fresh_salt(wire: tuple[StreamMux, Wire]) -> None:
    mux, host = wire
    items = [process(mux, "sealed") for _ in range(2)]
    salts = [decode_b64(item.streams().salt, ceiling=32) for item in items]
    assert len(set(salts)) == 2
    items[0].launch(runner("echo secret"), lambda status: None)
    records = host.content(items[0].streams().stdout)
    assert b"secret" not in b"".join(records)
    opener = StreamOpener(KEY, salts[0], "stdout")
    assert b"".join(map(opener.open, records)) == b"secret\n"
    opener.end()


def test_no_streams_at_all(wire: tuple[StreamMux, Wire]) -> None:
    mux, _ = wire
    item = process(mux, "none", stdin=True)
    streams = item.streams()
    assert (streams.stdin, streams.stdout, streams.stderr, streams.salt) == (0, 0, 0, "")
    item.launch(runner("test $(readlink /proc/self/fd/1) = /dev/null"), lambda status: None)
    item.wait()
    item.close_input()


def test_terminal_has_one_output(wire: tuple[StreamMux, Wire]) -> None:
    mux, host = wire
    item = process(mux, terminal=True, stdin=True)
    streams = item.streams()
    assert streams.stderr == 0
    assert streams.stdin

    def start(io: ProcessIO, ended: Ended) -> Started:
        assert not io.descriptors()
        master, slave = os.openpty()
        pid = children.spawn(
            "/bin/sh", ["sh", "-c", "stty size"], environment={"PATH": "/bin:/usr/bin"}, descriptors={},
            terminal=os.ttyname(slave),
        )  # fmt: skip
        os.close(slave)
        watch(pid, ended)
        return Started(pid=pid, terminal=master)

    item.launch(start, lambda status: None)
    item.resize(90, 33)
    item.wait()
    assert host.content(streams.stdout)
    item.dispose()
    with pytest.raises(RequestRefused):
        item.resize(90, 33)


@pytest.mark.parametrize(("width", "height"), [(0, 1), (1, 0), (-1, 1), (65536, 1)])
def test_sizes_have_bounds(wire: tuple[StreamMux, Wire], width: int, height: int) -> None:
    item = process(wire[0], terminal=True)
    with pytest.raises(RequestRefused) as caught:
        item.resize(width, height)
    assert caught.value.code == "guest.process.resize"


@pytest.mark.parametrize(
    ("code", "status"),
    [("guest.runtime.not_found", 127), ("guest.runtime.not_executable", 126), ("guest.runtime.failed", 125)],
)
@pytest.mark.parametrize("terminal", [False, True])
def test_failed_start_ends_the_streams_and_has_a_status(
    wire: tuple[StreamMux, Wire], code: str, status: int, terminal: bool
) -> None:
    mux, host = wire
    item = process(mux, terminal=terminal)
    told: list[int] = []
    with pytest.raises(CloisterError) as caught:
        item.launch(failing(code), told.append)
    assert caught.value.code == code
    assert told == [status]
    assert item.wait() == status
    assert item.exited
    assert host.content(item.streams().stdout) == []


def test_only_a_running_process_takes_signals(wire: tuple[StreamMux, Wire]) -> None:
    item = process(wire[0])
    with pytest.raises(RequestRefused) as caught:
        item.require_running()
    assert caught.value.code == "guest.pod.not_running"
    item.launch(runner("read x"), lambda status: None)
    item.wait()
    with pytest.raises(RequestRefused):
        item.require_running()


def test_a_key_goes_with_sealed_streams_only(wire: tuple[StreamMux, Wire]) -> None:
    with pytest.raises(RuntimeError):
        StreamSetup(wire[0], "sealed", None)
    with pytest.raises(RuntimeError):
        StreamSetup(wire[0], "host", bytearray(32))
    setup = StreamSetup(wire[0], "sealed", bytearray(KEY))
    setup.wipe()
    assert setup.key == bytes(32)
