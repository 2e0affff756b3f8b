"""The guest link against a guest that behaves, one that does not, and one that is gone."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import CloisterError, PodPolicyRefused, Refused, RequestRefused, Unavailable
from cloister.host import guestlink
from cloister.host.guestlink import EVENTS, GuestLink
from cloister.protocol.guestapi import (
    Call,
    ContainerParams,
    CreateParams,
    Done,
    EventEnvelope,
    ExecParams,
    ExitEvent,
    FailedEvent,
    FrameSplitter,
    HelloEvent,
    InfoResult,
    KillParams,
    NoParams,
    PhaseEvent,
    PidsResult,
    ReadyEvent,
    ResizeParams,
    StartResult,
    StateResult,
    StatsResult,
    StreamsResult,
    WaitResult,
    decode_call,
    encode_event,
    encode_refusal,
    encode_reply,
    pack_frame,
)

HELLO = HelloEvent(agent="0.1", platform="tpm")
SECONDS = 20.0


class Guest:
    """The other end of both ports."""

    def __init__(self) -> None:
        self.control, self.theirs_control = socket.socketpair()
        self.streams, self.theirs_streams = socket.socketpair()
        self.control.settimeout(SECONDS)
        self._splitter = FrameSplitter()
        self._frames: list[bytes] = []

    def say(self, *bodies: bytes) -> None:
        self.control.sendall(b"".join(map(pack_frame, bodies)))

    def hear(self) -> Call:
        while not self._frames:
            data = self.control.recv(65536)
            assert data, "the host closed the port"
            self._frames += self._splitter.feed(data)
        return decode_call(self._frames.pop(0))

    def close(self) -> None:
        for end in (self.control, self.theirs_control, self.streams, self.theirs_streams):
            end.close()


@pytest.fixture
def guest(threads: ThreadPoolExecutor) -> Iterator[Guest]:
    """Closed before the threads are waited for."""
    made = Guest()
    yield made
    made.close()


@pytest.fixture
def link(guest: Guest) -> Iterator[GuestLink]:
    with GuestLink(guest.theirs_control, guest.theirs_streams) as made:
        yield made


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def test_hello_events_and_end(guest: Guest, link: GuestLink) -> None:
    events = [PhaseEvent(name="agent", uptime_ms=5, took_ms=2), ReadyEvent(init_data="sha256:00")]
    guest.say(encode_event(HELLO), *map(encode_event, events))
    guest.say(encode_event(ExitEvent(container="c", exec="", status=3)))
    guest.control.close()
    assert link.hello(SECONDS) == HELLO
    assert list(link.events()) == [*events, ExitEvent(container="c", exec="", status=3)]
    with pytest.raises(Unavailable, match=r"host\.guestlink\.closed"):
        link.next_event(SECONDS)


def test_a_reason_is_known_before_the_replies_after_it(
    guest: Guest, link: GuestLink, threads: ThreadPoolExecutor
) -> None:
    """The pod says why it ends, then kills the workload: whoever waited for the workload learns the reason at once."""
    guest.say(encode_event(HELLO))
    waiting = threads.submit(lambda: (link.wait("c", seconds=SECONDS), link.failed))
    call = guest.hear()
    failed = FailedEvent(error={"code": "trust.release.revoked", "message": "the owner revoked this pod"})
    guest.say(encode_event(failed), encode_reply(call.id, WaitResult(status=137)))
    assert waiting.result() == (WaitResult(status=137), failed)


def test_a_call_that_fails_because_the_pod_ends_tells_why_it_ends(
    guest: Guest, link: GuestLink, threads: ThreadPoolExecutor
) -> None:
    """The container is removed under the call; what the user must learn is what removed it."""
    guest.say(encode_event(HELLO))
    waiting = threads.submit(lambda: link.wait("c", seconds=SECONDS))
    call = guest.hear()
    failed = FailedEvent(error={"family": "unavailable", "code": "guest.keys.died", "message": "keys are gone"})
    refusal = encode_refusal(call.id, Unavailable("guest.internal", "KeyError"))
    guest.say(encode_event(failed), refusal)
    with pytest.raises(Unavailable) as caught:
        waiting.result()
    assert caught.value.code == "guest.keys.died"


def test_no_hello_in_time(link: GuestLink) -> None:
    with pytest.raises(Unavailable, match=r"host\.guestlink\.timeout"):
        link.hello(0.05)
    with pytest.raises(Unavailable, match=r"host\.guestlink\.timeout"):
        link.next_event(0.05)


EVERY_CALL: list[tuple[str, Callable[[GuestLink], object], object]] = [
    ("info", lambda link: link.info(), InfoResult(agent="", platform="", init_data="", pod="", containers=["a"])),
    (
        "create",
        lambda link: link.create(CreateParams(container="c", name="app")),
        StreamsResult(stdin=1, stdout=2, stderr=3),
    ),
    ("start", lambda link: link.start("c"), StartResult(pid=7)),
    (
        "exec",
        lambda link: link.exec(ExecParams(container="c", exec="e", args=["sh"])),
        StreamsResult(stdin=0, stdout=4, stderr=0),
    ),
    ("kill", lambda link: link.kill(KillParams(container="c", signal=9)), Done()),
    ("wait", lambda link: link.wait("c", seconds=SECONDS), WaitResult(status=137)),
    ("state", lambda link: link.state("c"), StateResult(status="running", pid=7)),
    ("pids", lambda link: link.pids("c"), PidsResult(pids=[7])),
    ("stats", lambda link: link.stats("c"), StatsResult(cpu_usec=1, memory_bytes=2, pids=3)),
    ("resize", lambda link: link.resize(ResizeParams(container="c", width=80, height=24)), Done()),
    ("close_io", lambda link: link.close_io("c"), Done()),
    ("pause", lambda link: link.pause("c"), Done()),
    ("resume", lambda link: link.resume("c"), Done()),
    ("delete", lambda link: link.delete("c", "e"), WaitResult(status=0)),
    ("shutdown", lambda link: link.shutdown(), Done()),
]


@pytest.mark.parametrize(("name", "ask", "answer"), EVERY_CALL, ids=[name for name, _, _ in EVERY_CALL])
def test_every_call(
    guest: Guest,
    link: GuestLink,
    threads: ThreadPoolExecutor,
    name: str,
    ask: Callable[[GuestLink], object],
    answer: msgspec.Struct,
) -> None:
    asked = threads.submit(ask, link)
    call = guest.hear()
    assert call.name == name
    guest.say(encode_reply(call.id, answer))
    assert asked.result(SECONDS) == answer


def test_refusal_of_the_guest_is_raised(guest: Guest, link: GuestLink, threads: ThreadPoolExecutor) -> None:
    asked = threads.submit(link.start, "c")
    refusal = PodPolicyRefused("podpolicy.order", "started before its init container", path="app", hint="wait")
    guest.say(encode_refusal(guest.hear().id, refusal))
    error = asked.exception(SECONDS)
    assert isinstance(error, Refused)
    assert (error.code, error.path, error.hint) == ("podpolicy.order", "app", "wait")
    again = threads.submit(link.start, "c")
    guest.say(encode_refusal(guest.hear().id, Unavailable("guestapi.busy", "too many")))
    assert isinstance(again.exception(SECONDS), Unavailable)


def test_replies_in_any_order(guest: Guest, link: GuestLink, threads: ThreadPoolExecutor) -> None:
    asked = [threads.submit(link.wait, f"c{number}", seconds=SECONDS) for number in range(10)]
    calls = [guest.hear() for _ in asked]
    for call in reversed(calls):
        assert isinstance(call.params, ContainerParams)
        guest.say(encode_reply(call.id, WaitResult(status=int(call.params.container[1:]))))
    assert [future.result(SECONDS) for future in asked] == [WaitResult(status=number) for number in range(10)]


def test_late_reply_is_dropped(guest: Guest, link: GuestLink, threads: ThreadPoolExecutor) -> None:
    with pytest.raises(Unavailable, match=r"host\.guestlink\.timeout"):
        link.call("info", NoParams(), seconds=0.05)
    late = guest.hear()
    asked = threads.submit(link.start, "c")
    call = guest.hear()
    guest.say(encode_reply(late.id, Done()), encode_reply(call.id, StartResult(pid=1)))
    assert asked.result(SECONDS) == StartResult(pid=1)


def test_guest_that_answers_nothing_is_given_up(guest: Guest, link: GuestLink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guestlink, "ABANDONED_CALLS", 2)
    for _ in range(3):
        with pytest.raises(Unavailable, match=r"host\.guestlink\.timeout"):
            link.call("info", NoParams(), seconds=0.01)
    with pytest.raises(Unavailable, match="too many calls unanswered"):
        link.info()


def test_guest_that_reads_nothing(guest: Guest, link: GuestLink) -> None:
    """Calls fill the socket; the one that does not fit waits no longer than it was told to."""
    big = ExecParams(container="c", exec="e", args=["x" * 100_000])
    with pytest.raises(Unavailable, match=r"host\.guestlink\.timeout"):
        for _ in range(100):
            link.call("exec", big, seconds=0.05)


def test_guest_goes_while_a_call_waits(guest: Guest, link: GuestLink, threads: ThreadPoolExecutor) -> None:
    asked = [threads.submit(link.wait, "c") for _ in range(3)]
    for _ in asked:
        guest.hear()
    guest.control.close()
    for future in asked:
        error = future.exception(SECONDS)
        assert isinstance(error, Unavailable)
        assert error.code == "host.guestlink.closed"
    with pytest.raises(Unavailable, match=r"host\.guestlink\.closed"):
        link.info()


def test_close_wakes_everybody(guest: Guest, threads: ThreadPoolExecutor) -> None:
    link = GuestLink(guest.theirs_control, guest.theirs_streams)
    asked = threads.submit(link.wait, "c")
    event = threads.submit(link.next_event)
    read = threads.submit(link.stream(1).read)
    guest.hear()
    link.close()
    link.close()
    for future in (asked, event, read):
        assert isinstance(future.exception(SECONDS), Unavailable)


def test_wrong_parameters_are_our_own_mistake(link: GuestLink) -> None:
    with pytest.raises(TypeError):
        link.call("start", NoParams())


MISBEHAVIOUR = {
    "no hello": [encode_event(ReadyEvent(init_data=""))],
    "two hellos": [encode_event(HELLO), encode_event(HELLO)],
    "reply nobody asked for": [encode_event(HELLO), encode_reply(99, Done())],
    "not JSON": [b"{"],
    "unknown version": [b'{"v":2,"event":{}}'],
    "unknown event": [msgspec.json.encode({"v": 1, "event": {"kind": "reboot"}})],
    "unknown field": [msgspec.json.encode({"v": 1, "id": 1, "result": {}, "extra": 1})],
    "flood of events": [encode_event(HELLO), *[encode_event(ReadyEvent(init_data=""))] * (EVENTS + 1)],
}


@pytest.mark.parametrize("bodies", MISBEHAVIOUR.values(), ids=MISBEHAVIOUR.keys())
def test_guest_that_breaks_the_protocol(guest: Guest, link: GuestLink, bodies: list[bytes]) -> None:
    guest.say(*bodies)
    with pytest.raises(RequestRefused, match=r"guestapi\."):
        link.call("info", NoParams(), seconds=SECONDS)
    with pytest.raises(RequestRefused, match=r"guestapi\."):
        for _ in range(EVENTS + 1):
            link.next_event(SECONDS)


def test_frame_too_long(guest: Guest, link: GuestLink) -> None:
    guest.control.sendall(b"\x7f\xff\xff\xff")
    with pytest.raises(Refused, match=r"guestapi\.frame"):
        link.hello(SECONDS)


def test_reply_of_another_type(guest: Guest, link: GuestLink, threads: ThreadPoolExecutor) -> None:
    asked = threads.submit(link.start, "c")
    guest.say(encode_reply(guest.hear().id, WaitResult(status=1)))
    assert isinstance(asked.exception(SECONDS), RequestRefused)


def test_broken_streams_end_the_link(guest: Guest, link: GuestLink) -> None:
    guest.streams.sendall(b"\xff" * 12)
    with pytest.raises(Refused, match=r"guestapi\.stream_frame"):
        link.hello(SECONDS)


def test_end_of_streams_is_not_the_end_of_control(guest: Guest, link: GuestLink, threads: ThreadPoolExecutor) -> None:
    guest.streams.close()
    with pytest.raises(Unavailable, match=r"host\.guestlink\.closed"):
        link.stream(1).read(SECONDS)
    asked = threads.submit(link.start, "c")
    guest.say(encode_reply(guest.hear().id, StartResult(pid=1)))
    assert asked.result(SECONDS) == StartResult(pid=1)


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=120), max_size=4))
def test_any_bytes_only_refuse(parts: list[bytes]) -> None:
    guest = Guest()
    with contextlib.suppress(OSError), GuestLink(guest.theirs_control, guest.theirs_streams) as link:
        with contextlib.suppress(BrokenPipeError):
            for part in parts:
                guest.control.sendall(part)
                guest.streams.sendall(part)
        guest.control.shutdown(socket.SHUT_WR)
        with pytest.raises(CloisterError):
            link.hello(SECONDS)
    guest.close()
    assert not [thread for thread in threading.enumerate() if thread.name in {"control-in", "streams-in"}]


def test_event_envelope_is_what_the_guest_sends() -> None:
    decoded = msgspec.json.decode(encode_event(HELLO), type=EventEnvelope)
    assert decoded.event == HELLO
