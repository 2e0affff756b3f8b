"""A lease ends when the broker says no, when it cannot be reached, and when it says nothing at all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from cloister.errors import CloisterError, KeyReleaseDenied, Unavailable
from cloister.guest.attest import KeySource
from cloister.guest.lease import Lease
from cloister.protocol.resourceuri import ResourcePath

PATH = ResourcePath("default", "stream-key", "pod")
SECONDS = 0.6


class Broker:
    """A broker whose answers the test gives."""

    token = ""

    def __init__(self, answer: Callable[[int], None]) -> None:
        self._answer = answer
        self.asked = 0
        self.wiped = False

    def attest(self) -> None:
        return

    def get_resource(self, path: ResourcePath) -> bytearray:
        self.asked += 1
        self._answer(self.asked)
        return bytearray(b"key")

    def wipe(self) -> None:
        self.wiped = True


def leased(answer: Callable[[int], None]) -> tuple[Lease, Broker, KeySource]:
    broker = Broker(answer)
    keys = KeySource(lambda: broker)
    keys.attest()
    return Lease(keys, PATH, SECONDS), broker, keys


def end_of(lease: Lease) -> tuple[CloisterError, float]:
    """Keep the lease; return why it ended and after how long."""
    begun = time.monotonic()
    with pytest.raises(CloisterError) as caught:
        lease.keep()
    return caught.value, time.monotonic() - begun


def test_a_renewed_lease_goes_on_until_it_is_stopped() -> None:
    lease, broker, _ = leased(lambda number: lease.stop() if number == 5 else None)
    begun = time.monotonic()
    lease.keep()
    assert broker.asked == 5
    assert time.monotonic() - begun > SECONDS


def test_a_refusal_ends_it_at_once() -> None:
    def refuse(number: int) -> None:
        raise KeyReleaseDenied("trust.release.revoked", "no")

    error, seconds = end_of(leased(refuse)[0])
    assert error.code == "trust.release.revoked"
    assert seconds < SECONDS


def test_a_broker_that_cannot_be_reached_ends_it_with_its_time() -> None:
    def fail(number: int) -> None:
        raise Unavailable("client.unreachable", "no")

    lease, broker, _ = leased(fail)
    error, _ = end_of(lease)
    assert (error.code, error.actual) == ("guest.lease.expired", "client.unreachable")
    assert broker.asked >= 1


def test_a_broker_that_is_silent_ends_it_with_its_time() -> None:
    """Whoever holds the network back can keep a renewal waiting, not the lease alive."""
    silent = threading.Event()

    def wait(number: int) -> None:
        silent.wait(10)
        lease.stop()

    lease, broker, keys = leased(wait)
    try:
        error, seconds = end_of(lease)
        assert (error.code, error.actual) == ("guest.lease.expired", "no answer")
        assert SECONDS * 0.9 < seconds < SECONDS + 1
        begun = time.monotonic()
        keys.close()
        assert broker.wiped
        assert time.monotonic() - begun < 10, "keys are wiped although the renewal still waits"
    finally:
        silent.set()
