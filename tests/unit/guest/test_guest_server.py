"""The control loop: every frame is answered, refused by name, or ends the pod."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import CloisterError, PodPolicyRefused, Refused, Unavailable
from cloister.guest import server as server_module
from cloister.guest.ports import ControlPort, HostGone
from cloister.guest.server import ControlServer, answer
from cloister.protocol.guestapi import (
    Call,
    Done,
    FrameSplitter,
    InfoResult,
    NoParams,
    decode_from_guest,
    decode_result,
    encode_call,
    pack_frame,
)

INFO = InfoResult(agent="1", platform="tpm", init_data="sha256:0", pod="p", containers=["app"])


class Served:
    """A server on a thread, and the host's end."""

    def __init__(self, handle: Callable[[Call], msgspec.Struct]) -> None:
        ours, self.peer = socket.socketpair()
        self.peer.settimeout(20)
        self.down = threading.Event()
        self.error: BaseException | None = None
        self.server = ControlServer(ControlPort(ours.detach(), absence_seconds=0), handle, self.down.set)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()
        self.splitter = FrameSplitter()
        self.frames: list[bytes] = []

    def _serve(self) -> None:
        try:
            self.server.serve()
        except (CloisterError, HostGone) as err:
            self.error = err

    def send(self, body: bytes) -> None:
        self.peer.sendall(pack_frame(body))

    def reply(self) -> Any:
        while not self.frames:
            data = self.peer.recv(65536)
            assert data, self.error
            self.frames += self.splitter.feed(data)
        return decode_from_guest(self.frames.pop(0))

    def ended(self) -> BaseException | None:
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.error


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[Call], msgspec.Struct]], Served]]:
    made: list[Served] = []

    def start(handle: Callable[[Call], msgspec.Struct]) -> Served:
        made.append(Served(handle))
        return made[-1]

    yield start
    for item in made:
        item.peer.close()
        item.thread.join(20)


Start = Callable[[Callable[[Call], msgspec.Struct]], Served]


def test_call_is_answered(serve: Start) -> None:
    served = serve(lambda call: INFO)
    served.send(encode_call(7, "info", NoParams()))
    reply = served.reply()
    assert reply.id == 7
    assert decode_result("info", reply) == INFO


@pytest.mark.parametrize(
    "body",
    [
        {"v": 1, "id": 3, "call": "copy_file"},
        {"v": 1, "id": 3, "call": "set_policy", "params": {}},
        {"v": 9, "id": 3, "call": "info"},
        {"v": 1, "id": 3, "call": "info", "params": {"oci": {}}},
        {"v": 1, "id": 3, "call": "info", "extra": 1},
        {"v": 1, "id": 3, "call": "start", "params": {"container": "../../etc"}},
    ],
)
def test_frame_outside_the_schema_is_refused_and_nothing_runs(serve: Start, body: dict[str, Any]) -> None:
    called: list[Call] = []
    served = serve(lambda call: called.append(call) or Done())
    served.send(json.dumps(body).encode())
    reply = served.reply()
    assert reply.id == 3
    assert reply.error["family"] == "refused"
    assert reply.error["code"].startswith("guestapi.")
    assert not called


@pytest.mark.parametrize("body", [b"{}", b"[]", b"null", b"\xff\xfe", b'{"id":"x"}', b"0", b"{" * 1000])
def test_frame_without_a_number_ends_the_pod(serve: Start, body: bytes) -> None:
    served = serve(lambda call: Done())
    served.send(body)
    error = served.ended()
    assert isinstance(error, Refused)
    assert error.code == "guestapi.schema"


@pytest.mark.parametrize("raw", [b"\0\0\0\0", b"\x7f\xff\xff\xff", (256 * 1024 + 1).to_bytes(4, "big")])
def test_length_outside_the_ceiling_ends_the_pod(serve: Start, raw: bytes) -> None:
    served = serve(lambda call: Done())
    served.peer.sendall(raw)
    error = served.ended()
    assert isinstance(error, Refused)
    assert error.code == "guestapi.frame"


def test_host_that_leaves_ends_the_pod(serve: Start) -> None:
    served = serve(lambda call: Done())
    served.peer.close()
    assert isinstance(served.ended(), HostGone)


def test_waiting_calls_hold_up_nothing(serve: Start) -> None:
    gate = threading.Event()

    def handle(call: Call) -> msgspec.Struct:
        if call.name == "wait":
            gate.wait(20)
        return INFO if call.name == "info" else Done()

    served = serve(handle)
    served.send(b'{"v":1,"id":1,"call":"wait","params":{"container":"c"}}')
    served.send(encode_call(2, "info", NoParams()))
    assert served.reply().id == 2
    gate.set()
    assert served.reply().id == 1


def test_too_many_calls_in_flight_are_turned_away(serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "CALLS_IN_FLIGHT", 2)
    gate = threading.Event()
    served = serve(lambda call: gate.wait(20) and Done())
    for number in range(3):
        served.send(b'{"v":1,"id":%d,"call":"wait","params":{"container":"c"}}' % number)
    reply = served.reply()
    assert reply.error["code"] == "guestapi.busy"
    assert reply.error["family"] == "unavailable"
    gate.set()
    assert {served.reply().id, served.reply().id} == {0, 1}


def test_shutdown_is_answered_before_the_end(serve: Start) -> None:
    served = serve(lambda call: Done())
    served.send(encode_call(4, "shutdown", NoParams()))
    assert served.reply().id == 4
    assert served.down.wait(20)


def call() -> Call:
    return Call(id=1, name="info", params=NoParams())


@pytest.mark.parametrize(
    ("error", "family"),
    [
        (PodPolicyRefused("podpolicy.exec", "no"), "refused"),
        (Unavailable("guest.runtime.failed", "later"), "unavailable"),
    ],
)
def test_refusals_keep_their_family_and_code(error: CloisterError, family: str) -> None:
    def handle(_: Call) -> msgspec.Struct:
        raise error

    reply = json.loads(answer(handle, call()))
    assert reply["error"]["family"] == family
    assert reply["error"]["code"] == error.code


def test_text_of_a_foreign_error_stays_inside() -> None:
    def handle(_: Call) -> msgspec.Struct:
        raise ValueError("the key is 0xc0ffee")

    raw = answer(handle, call())
    assert b"c0ffee" not in raw
    assert json.loads(raw)["error"]["message"] == "ValueError"


@given(st.binary(min_size=1, max_size=200))
def test_any_frame_is_answered_or_ends_the_pod(body: bytes) -> None:
    served = Served(lambda call: Done())
    served.send(body)
    served.peer.shutdown(socket.SHUT_WR)
    error = served.ended()
    assert isinstance(error, (Refused, HostGone))
    served.peer.close()
