"""The measuring proxy against a control server that speaks swtpm's protocol."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from cloister.errors import Unavailable
from cloister.host.vmm.hcrtm import Command, HCRTMProxy

GET_CAPABILITY, STOP, SET_DATAFD, GET_INFO = 1, 14, 16, 18
SUCCESS, TPM_FAIL = b"\0\0\0\0", b"\0\0\0\x09"


@dataclass
class FakeSWTPM:
    """Answers like swtpm's control channel and remembers what it was asked.

    Attributes:
        answers: replies that differ from success, by command.
        log: commands in order.
        hashed: data of each completed hash sequence.
        received: descriptors that came with SET_DATAFD.
    """

    channel: socket.socket
    answers: dict[int, bytes] = field(default_factory=dict)
    log: list[int] = field(default_factory=list)
    hashed: list[bytes] = field(default_factory=list)
    received: list[int] = field(default_factory=list)

    def start(self) -> None:
        threading.Thread(target=self._serve, daemon=True).start()

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part, descriptors, _, _ = socket.recv_fds(self.channel, size - len(data), 1)
            self.received += descriptors
            if not part:
                raise EOFError
            data += part
        return data

    def _serve(self) -> None:
        sequence = b""
        try:
            while True:
                command = int.from_bytes(self._exactly(4), "big")
                self.log.append(command)
                if command == Command.INIT:
                    self._exactly(4)
                elif command == Command.HASH_START:
                    sequence = b""
                elif command == Command.HASH_DATA:
                    size = int.from_bytes(self._exactly(4), "big")
                    assert 0 < size <= 4096
                    sequence += self._exactly(size)
                elif command == Command.HASH_END:
                    self.hashed.append(sequence)
                default = struct.pack(">Q", 0xFFFF) if command == GET_CAPABILITY else SUCCESS
                answer = self.answers.get(command, default)
                if answer == b"":
                    self.channel.close()
                    return
                self.channel.sendall(answer)
        except (EOFError, OSError):
            return


@dataclass
class Wired:
    """QEMU's end, the proxy, and the fake behind it. `step` relays one request and its reply."""

    qemu: socket.socket
    proxy: HCRTMProxy
    tpm: FakeSWTPM

    def step(self, request: bytes, replies: int = 1) -> bytes:
        self.qemu.sendall(request)
        assert self.proxy.relay_request()
        for _ in range(replies):
            assert self.proxy.relay_reply()
        return self.qemu.recv(4096)


@pytest.fixture
def wire() -> Iterator[Callable[[bytes], Wired]]:
    opened: list[socket.socket] = []

    def make(blob: bytes) -> Wired:
        qemu, vmm = socket.socketpair()
        tpm, far = socket.socketpair()
        opened.extend((qemu, vmm, tpm, far))
        for end in (qemu, vmm, tpm):
            end.settimeout(10)
        fake = FakeSWTPM(far)
        fake.start()
        return Wired(qemu, HCRTMProxy(vmm, tpm, blob), fake)

    yield make
    for end in opened:
        end.close()


INIT = struct.pack(">II", Command.INIT, 0)


def test_blob_is_hashed_between_init_and_its_reply(wire: Callable[[bytes], Wired]) -> None:
    wired = wire(b"launch blob")
    assert wired.step(struct.pack(">I", GET_CAPABILITY)) == struct.pack(">Q", 0xFFFF)
    assert wired.step(struct.pack(">I", STOP)) == SUCCESS
    assert wired.proxy.measurements == 0
    assert wired.step(INIT) == SUCCESS
    assert wired.tpm.hashed == [b"launch blob"]
    assert wired.tpm.log == [GET_CAPABILITY, STOP, 2, 6, 7, 8]
    assert wired.proxy.measurements == 1


def test_a_second_power_on_is_measured_again(wire: Callable[[bytes], Wired]) -> None:
    wired = wire(b"launch blob")
    wired.step(INIT)
    wired.step(struct.pack(">I", STOP))
    wired.step(INIT)
    assert wired.tpm.hashed == [b"launch blob"] * 2
    assert wired.proxy.measurements == 2


def test_long_blob_goes_in_pieces(wire: Callable[[bytes], Wired]) -> None:
    blob = bytes(range(256)) * 40
    wired = wire(blob)
    wired.step(INIT)
    assert wired.tpm.hashed == [blob]
    assert wired.tpm.log.count(Command.HASH_DATA) == 3


def test_descriptors_pass(wire: Callable[[bytes], Wired]) -> None:
    wired = wire(b"x")
    reading, writing = os.pipe()
    socket.send_fds(wired.qemu, [struct.pack(">I", SET_DATAFD)], [writing])
    os.close(writing)
    assert wired.proxy.relay_request()
    assert wired.proxy.relay_reply()
    assert wired.qemu.recv(16) == SUCCESS
    assert len(wired.tpm.received) == 1
    os.write(wired.tpm.received[0], b"through")
    os.close(wired.tpm.received[0])
    assert os.read(reading, 16) == b"through"
    os.close(reading)


def test_request_in_pieces(wire: Callable[[bytes], Wired]) -> None:
    wired = wire(b"blob")
    for part in (INIT[:2], INIT[2:5], INIT[5:]):
        wired.qemu.sendall(part)
        assert wired.proxy.relay_request()
    assert wired.proxy.relay_reply()
    assert wired.tpm.hashed == [b"blob"]


def test_failed_init_is_not_measured(wire: Callable[[bytes], Wired]) -> None:
    wired = wire(b"blob")
    wired.tpm.answers[Command.INIT] = TPM_FAIL
    assert wired.step(INIT) == TPM_FAIL
    assert wired.tpm.hashed == []
    assert wired.proxy.measurements == 0


@pytest.mark.parametrize("command", [Command.HASH_START, Command.HASH_DATA, Command.HASH_END])
def test_each_refusal_of_the_tpm_is_an_error(wire: Callable[[bytes], Wired], command: Command) -> None:
    wired = wire(b"blob")
    wired.tpm.answers[command] = TPM_FAIL
    wired.qemu.sendall(INIT)
    wired.proxy.relay_request()
    with pytest.raises(Unavailable, match=r"host\.hcrtm\.refused") as error:
        wired.proxy.relay_reply()
    assert command.name in str(error.value)
    assert wired.proxy.measurements == 0
    wired.qemu.setblocking(False)
    with pytest.raises(BlockingIOError):
        wired.qemu.recv(4)  # QEMU never learns that its TPM is on


def test_tpm_that_goes_away_in_the_middle(wire: Callable[[bytes], Wired]) -> None:
    wired = wire(b"blob")
    wired.tpm.answers[Command.HASH_DATA] = b""
    wired.qemu.sendall(INIT)
    wired.proxy.relay_request()
    with pytest.raises(Unavailable, match=r"host\.hcrtm"):
        wired.proxy.relay_reply()


def test_long_replies_pass(wire: Callable[[bytes], Wired]) -> None:
    wired = wire(b"blob")
    wired.tpm.answers[GET_INFO] = bytes(range(200))
    assert wired.step(struct.pack(">IQ", GET_INFO, 1)[:4]) == bytes(range(200))


def test_both_ends_may_close(wire: Callable[[bytes], Wired]) -> None:
    wired = wire(b"blob")
    wired.qemu.close()
    assert not wired.proxy.relay_request()
    wired.tpm.channel.shutdown(socket.SHUT_RDWR)
    assert not wired.proxy.relay_reply()
