"""Asking a vendor's service: every way in which it can misbehave, and the manners of the one who asks."""

from __future__ import annotations

import random
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from cloister.errors import CloisterError, EndorsementError, Refused, Unavailable
from cloister.tee.collateral import transport as module
from cloister.tee.collateral.gate import HostGate
from cloister.tee.collateral.transport import Answer, HTTPTransport, NoSuchItem, Request, parse_address
from cloister.testing import vendor
from cloister.testing.vendor import FakeVendor, Reply
from cloister.wire.limits import COLLATERAL_ATTEMPTS, COLLATERAL_WAIT_SECONDS

TYPES: Final = frozenset({"application/octet-stream"})
REQUEST: Final = Request(path="/thing?a=1", types=TYPES)
BODY: Final = bytes(range(256)) * 8


class Clock:
    """Time that passes only by sleeping, beside the real one for deadlines of sockets."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Asker:
    """A transport with its gate over one clock."""

    def __init__(self, directory: Path, *, tls: ssl.SSLContext | None = None) -> None:
        self.clock = Clock()
        self.gate = HostGate(directory, clock=self.clock, sleep=self.clock.sleep)
        self.transport = HTTPTransport(self.gate, tls=tls, clock=self.clock, sleep=self.clock.sleep, jitter=lambda: 1.0)

    def ask(self, address: str, request: Request = REQUEST) -> Answer:
        with self.transport.turn(address) as ask:
            return ask(request)

    def refused(self, address: str, request: Request = REQUEST) -> CloisterError:
        with pytest.raises(CloisterError) as caught:
            self.ask(address, request)
        return caught.value


@pytest.fixture
def asker(tmp_path: Path) -> Asker:
    return Asker(tmp_path / "hosts")


@pytest.fixture
def service() -> Iterator[FakeVendor]:
    made = FakeVendor()
    made.serve("/thing?a=1", BODY, "application/octet-stream")
    yield made
    made.close()


def test_an_answer(asker: Asker, service: FakeVendor) -> None:
    with service:
        answer = asker.ask(service.address + "/")
    assert (answer.body, answer.origin, service.count()) == (BODY, "127.0.0.1", 1)
    assert answer.headers["content-type"] == "application/octet-stream"


def test_a_post(asker: Asker, service: FakeVendor) -> None:
    service.responders["/"] = lambda call: Reply(body=call.body[::-1], headers={"Content-Type": "text/x"})
    request = Request(path="/", types=frozenset({"text/x"}), body=b"abc", body_type="text/y")
    with service:
        assert asker.ask(service.address, request).body == b"cba"
    assert service.calls[0].method == "POST"


def test_https_with_its_own_ca(tmp_path: Path) -> None:
    with FakeVendor(tls=True) as service:
        assert service.ca is not None
        service.serve("/thing?a=1", BODY, "application/octet-stream")
        context = ssl.create_default_context(cadata=service.ca.certificate_pem.decode())
        assert Asker(tmp_path, tls=context).ask(service.address).body == BODY
        strangers = Asker(tmp_path)
        error = strangers.refused(service.address)
    assert (error.code, type(error)) == ("collateral.answer.host", EndorsementError)
    assert strangers.clock.slept == []  # no use in trying again
    assert service.count() == 1


def test_plain_http_to_a_port_of_tls_is_no_answer(asker: Asker) -> None:
    with FakeVendor(tls=True) as service:
        address = service.address.replace("https://localhost", "http://127.0.0.1")
        assert asker.refused(address).code == "collateral.fetch.unreachable"


def test_404_is_known_at_once(asker: Asker, service: FakeVendor) -> None:
    with service:
        error = asker.refused(service.address, Request(path="/other", types=TYPES))
    assert isinstance(error, NoSuchItem)
    assert service.count() == 1


@pytest.mark.parametrize("status", [429, 503])
def test_throttled_twice_then_answered(asker: Asker, service: FakeVendor, status: int) -> None:
    service.personality = vendor.throttling(2, "7", status)
    with service:
        assert asker.ask(service.address).body == BODY
    assert service.count() == 3
    assert asker.clock.slept == [7.0, 7.0]


def test_pauses_grow_and_have_jitter(asker: Asker, service: FakeVendor) -> None:
    service.personality = vendor.throttling(99)
    with service:
        assert asker.refused(service.address).code == "collateral.fetch.status"
    assert service.count() == COLLATERAL_ATTEMPTS
    assert asker.clock.slept == [1.0, 2.0, 4.0]
    halved = HTTPTransport(asker.gate, clock=asker.clock, sleep=asker.clock.sleep, jitter=lambda: 0.0)
    with FakeVendor() as other, halved.turn(other.address) as ask:
        other.personality = vendor.failing(502)
        with pytest.raises(Unavailable):
            ask(REQUEST)
    assert asker.clock.slept[3:] == [0.5, 1.0, 2.0]


def test_a_long_rest_is_kept_also_by_others(asker: Asker, service: FakeVendor, tmp_path: Path) -> None:
    wanted = COLLATERAL_WAIT_SECONDS + 270
    service.personality = vendor.throttling(1, str(wanted))
    with service:
        error = asker.refused(service.address)
        assert (error.code, service.count(), asker.clock.slept) == ("collateral.host.resting", 1, [])
        other = Asker(tmp_path / "hosts")  # another process: only the directory is shared
        assert other.refused(service.address).code == "collateral.host.resting"
        assert service.count() == 1
        other.clock.now += wanted + 1
        assert other.ask(service.address).body == BODY


def test_retry_after_may_be_a_date(asker: Asker, service: FakeVendor) -> None:
    service.personality = vendor.throttling(1, "Sun, 06 Nov 1994 08:49:37 GMT")
    with service:
        assert asker.ask(service.address).body == BODY
    assert asker.clock.slept == [1.0]  # past: our own pause
    assert (module._retry_after({"retry-after": "Sun, 06 Nov 2994 08:49:37 GMT"}) or 0) > 1e9
    for nonsense in ("", "-3", "soon", "1e3", "Sun, 06 Nov 2994 08:49:37"):
        assert module._retry_after({"retry-after": nonsense}) is None


@pytest.mark.parametrize("status", [400, 401, 403, 418, 204])
def test_other_statuses_are_not_tried_again(asker: Asker, service: FakeVendor, status: int) -> None:
    service.personality = vendor.failing(status)
    with service:
        error = asker.refused(service.address)
    assert (error.code, service.count()) == ("collateral.fetch.status", 1)
    assert isinstance(error, Unavailable)


@pytest.mark.parametrize("personality", [vendor.down, vendor.truncating])
def test_down_and_broken_off(asker: Asker, service: FakeVendor, personality: vendor.Personality) -> None:
    service.personality = personality
    with service:
        error = asker.refused(service.address)
    assert (error.code, service.count()) == ("collateral.fetch.unreachable", COLLATERAL_ATTEMPTS)
    assert isinstance(error, Unavailable)


def test_a_fault_that_passes(asker: Asker, service: FakeVendor) -> None:
    service.personality = lambda call, reply: Reply(hang_up=True) if call.turn == 0 else reply
    with service:
        assert asker.ask(service.address).body == BODY


def test_nobody_listens(asker: Asker, service: FakeVendor) -> None:
    with service:
        address = service.address
    assert asker.refused(address).code == "collateral.fetch.unreachable"
    assert asker.refused("https://no-such-host.invalid").code == "collateral.fetch.unreachable"


@pytest.mark.parametrize("personality", [vendor.slow(5), vendor.dripping])
def test_slow_ones_are_given_up(
    tmp_path: Path, service: FakeVendor, personality: vendor.Personality, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COLLATERAL_ATTEMPT_SECONDS", 0.3)
    monkeypatch.setattr(module, "COLLATERAL_FETCH_SECONDS", 1.0)
    gate = HostGate(tmp_path, clock=time.time, sleep=time.sleep)
    patient = HTTPTransport(gate, jitter=random.Random(1).random)  # the real clock
    service.personality = personality
    began = time.monotonic()
    with service, patient.turn(service.address) as ask, pytest.raises(Unavailable) as caught:
        ask(REQUEST)
    assert caught.value.code == "collateral.fetch.unreachable"
    assert time.monotonic() - began < 3


def test_too_much_is_refused(asker: Asker, service: FakeVendor) -> None:
    service.personality = vendor.oversized
    with service:
        error = asker.refused(service.address)
    assert (error.code, service.count()) == ("collateral.answer.too_long", 1)


def test_a_page_for_people_is_refused(asker: Asker, service: FakeVendor) -> None:
    service.personality = vendor.portal
    with service:
        error = asker.refused(service.address)
    assert (error.code, service.count()) == ("collateral.answer.type", 1)
    assert isinstance(error, EndorsementError)


def test_compression_is_refused(asker: Asker, service: FakeVendor) -> None:
    service.serve("/thing?a=1", BODY, "application/octet-stream", {"Content-Encoding": "gzip"})
    with service:
        assert asker.refused(service.address).code == "collateral.answer.type"


def test_redirects_stay_at_the_host(asker: Asker, service: FakeVendor) -> None:
    with FakeVendor() as elsewhere, service:
        elsewhere.serve("/thing?a=1", b"lured", "application/octet-stream")
        for location in (
            elsewhere.address + "/thing?a=1",
            "https://127.0.0.1/",
            "file:///etc/passwd",
            "//evil.invalid/x",
        ):
            service.personality = vendor.redirecting(location)
            assert asker.refused(service.address).code == "collateral.answer.redirect"
        assert elsewhere.count() == 0
        service.serve("/moved", BODY, "application/octet-stream")
        service.personality = lambda call, reply: (
            reply if call.path == "/moved" else Reply(status=307, headers={"Location": "/moved"})
        )
        assert asker.ask(service.address).body == BODY
        service.personality = vendor.redirecting("/thing?a=1")
        before = service.count()
        assert asker.refused(service.address).code == "collateral.answer.redirect"
        assert service.count() - before == 3
        service.personality = vendor.redirecting("")
        assert asker.refused(service.address).code == "collateral.answer.redirect"


def test_one_request_at_a_time_to_a_host(tmp_path: Path, service: FakeVendor) -> None:
    service.personality = vendor.slow(0.05)
    gate = HostGate(tmp_path, clock=time.time, sleep=time.sleep)

    def ask_once() -> None:
        with HTTPTransport(gate).turn(service.address) as ask:
            ask(REQUEST)

    with service:
        threads = [threading.Thread(target=ask_once) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (service.count(), service.most_at_once) == (5, 1)


def test_waiting_for_others_has_an_end(asker: Asker, tmp_path: Path) -> None:
    holder = HostGate(tmp_path / "hosts", clock=time.time, sleep=time.sleep)
    with holder.hold("example.invalid", 1):
        error = asker.refused("http://example.invalid")
    assert error.code == "collateral.host.busy"
    assert sum(asker.clock.slept) > 119


def test_notes_of_a_wrong_clock_are_forgotten(asker: Asker, tmp_path: Path) -> None:
    for note in (b"9e99", b"nan", b"x", b"\xff", b"99999999999999"):
        (tmp_path / "hosts").mkdir(exist_ok=True)
        (tmp_path / "hosts" / "example.invalid").write_bytes(note)
        with asker.gate.hold("example.invalid", 1) as turn:
            assert not turn.rest_seconds() > 0


def test_a_gate_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert Asker(tmp_path / "file").refused("http://example.invalid").code == "collateral.host.gate"


@pytest.mark.parametrize(
    "address",
    ["", "kds", "ftp://x", "https://", "https://u:p@x", "https://x#f", "https://x y", "http://x:99999", "https://é"],
)
def test_addresses(address: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_address(address)
    assert caught.value.code == "collateral.fetch.address"
