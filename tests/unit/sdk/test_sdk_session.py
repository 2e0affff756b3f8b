"""What a session says when the pod ends in the middle of a call: the reason, not what follows from it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import pytest

from cloister.errors import CloisterError, PodPolicyRefused, Unavailable
from cloister.host.vmm.machine import RunningVM
from cloister.protocol.guestapi import (
    FailedEvent,
    FrameSplitter,
    HelloEvent,
    decode_call,
    encode_event,
    encode_refusal,
    error_to_wire,
    pack_frame,
)
from cloister.sdk.session import PodSession

DIED = Unavailable("guest.keys.died", "the key process of the pod ended")
FAILED = encode_event(FailedEvent(error=error_to_wire(DIED)))


@dataclass
class Machine:
    """Ports of a machine, which has ended, and nobody knows how."""

    control: socket.socket
    streams: socket.socket

    def wait(self, seconds: float | None = None) -> None:
        return None


class Guest:
    """Answers one call with the given frames, and goes."""

    def __init__(self, answer: Callable[[int], list[bytes]]) -> None:
        self.control, control = socket.socketpair()
        self.streams, streams = socket.socketpair()
        self.control.settimeout(20)
        self.session = PodSession(cast(RunningVM, Machine(control, streams)))
        self._answer = answer
        self._thread = threading.Thread(target=self._live)
        self._thread.start()

    def _live(self) -> None:
        splitter, frames = FrameSplitter(), list[bytes]()
        with self.control, self.streams:
            self.control.sendall(pack_frame(encode_event(HelloEvent(agent="0.1", platform="tpm"))))
            while not frames:
                frames = splitter.feed(self.control.recv(65536))
            self.control.sendall(b"".join(map(pack_frame, self._answer(decode_call(frames[0]).id))))

    def close(self) -> None:
        self._thread.join()
        self.session.close()
        self.session.machine.control.close()
        self.session.machine.streams.close()


@pytest.fixture
def error_of() -> Iterator[Callable[..., CloisterError]]:
    guests: list[Guest] = []

    def start(answer: Callable[[int], list[bytes]]) -> CloisterError:
        guests.append(Guest(answer))
        with pytest.raises(CloisterError) as caught:
            guests[-1].session.start("app")
        return caught.value

    yield start
    for guest in guests:
        guest.close()


def test_a_refusal_is_told_as_it_is(error_of: Callable[..., CloisterError]) -> None:
    refusal = PodPolicyRefused("podpolicy.start.twice", "no")
    assert error_of(lambda number: [encode_refusal(number, refusal)]).code == "podpolicy.start.twice"


def test_the_reason_of_the_end_comes_before_what_fails_in_the_course_of_it(
    error_of: Callable[..., CloisterError],
) -> None:
    """A container that is removed under a call makes an error of its own."""
    consequence = Unavailable("guest.internal", "KeyError")
    assert error_of(lambda number: [FAILED, encode_refusal(number, consequence)]).code == "guest.keys.died"


def test_a_call_without_an_answer_tells_the_reason(error_of: Callable[..., CloisterError]) -> None:
    assert error_of(lambda _: [FAILED]).code == "guest.keys.died"


def test_a_pod_that_goes_without_a_word_is_lost(error_of: Callable[..., CloisterError]) -> None:
    assert error_of(lambda _: []).code == "sdk.session.lost"
