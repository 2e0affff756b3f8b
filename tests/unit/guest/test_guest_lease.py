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
OTHER = ResourcePath("default", "model", "one")
SECONDS = 0.6


class Broker:
    """A broker whose answers the test gives."""

    token = ""

    def __init__(self, answer: Callable[[int], None]) -> None:
        self._answer = answer
        self.asked = 0
        self.paths: list[ResourcePath] = []
        self.leases: dict[ResourcePath, float] = {}
        self.attested = 0
        self.wiped = False

    def attest(self) -> None:
        self.attested += 1

    def release(self, path: ResourcePath) -> tuple[bytearray, float]:
        self.asked += 1
        self.paths.append(path)
        self._answer(self.asked)
        return bytearray(b"key"), self.leases.get(path, 0)

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


@pytest.mark.long
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


# -- leases of the key broker


def ask(keys: KeySource, path: ResourcePath) -> None:
    with keys.resource(path):
        pass


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def kept(lease: Lease) -> tuple[threading.Thread, list[CloisterError]]:
    ends: list[CloisterError] = []

    def keep() -> None:
        try:
            lease.keep()
        except CloisterError as err:
            ends.append(err)

    thread = threading.Thread(target=keep, daemon=True)  # a failing test leaves it waiting
    thread.start()
    return thread, ends


def test_without_any_lease_nothing_is_asked() -> None:
    _, broker, keys = leased(lambda _: None)
    lease = Lease(keys, PATH, 0)
    thread, ends = kept(lease)
    ask(keys, OTHER)
    time.sleep(0.2)
    lease.stop()
    thread.join(5)
    assert not thread.is_alive()
    assert (broker.paths, broker.attested, ends) == ([OTHER], 1, [])


def test_a_key_that_comes_with_a_lease_is_renewed_with_fresh_evidence() -> None:
    """Also one that a container asks for long after the start; other keys are not asked for again."""
    _, broker, keys = leased(lambda _: None)
    lease = Lease(keys, None, 0)
    thread, ends = kept(lease)
    broker.leases[OTHER] = 0.3
    time.sleep(0.05)
    ask(keys, PATH)
    ask(keys, OTHER)
    until(lambda: broker.paths.count(OTHER) >= 4)
    lease.stop()
    thread.join(5)
    assert ends == []
    assert broker.paths.count(PATH) == 1
    assert broker.attested >= broker.paths.count(OTHER)


def test_the_shorter_lease_counts() -> None:
    _, broker, keys = leased(lambda _: None)
    broker.leases[OTHER] = 0.3
    ask(keys, OTHER)
    lease = Lease(keys, PATH, 3600)
    thread, _ = kept(lease)
    until(lambda: broker.attested >= 3)
    lease.stop()
    thread.join(5)
    assert broker.paths[-2:] in ([OTHER, PATH], [PATH, OTHER])


def test_a_leased_key_that_is_withdrawn_ends_the_pod() -> None:
    def refuse(number: int) -> None:
        if number > 2:
            raise KeyReleaseDenied("trust.release.revoked", "no")

    _, broker, keys = leased(refuse)
    broker.leases[OTHER] = 0.3
    lease = Lease(keys, None, 0)
    thread, ends = kept(lease)
    ask(keys, OTHER)
    thread.join(5)
    assert not thread.is_alive()
    assert [error.code for error in ends] == ["trust.release.revoked"]
    assert broker.asked == 3


def test_a_lease_that_the_broker_ends_is_over() -> None:
    """The rule gives no lease any more: the pod goes on without one."""
    _, broker, keys = leased(lambda _: None)
    broker.leases[OTHER] = 0.3
    ask(keys, OTHER)
    broker.leases.clear()
    ask(keys, OTHER)
    assert keys.terms(lambda: None) == {}
