"""The gate before the keys: closed until the handshake succeeded, closed for good when it failed."""

from __future__ import annotations

import threading
import time

import pytest

from cloister.errors import AppraisalRefused, CloisterError, KeyReleaseDenied, Unavailable
from cloister.guest.attest import KeySource, wipe
from cloister.protocol.resourceuri import ResourcePath

PATH = ResourcePath("a", "b", "c")


class Broker:
    """A broker client without a broker."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.calls: list[str] = []
        self.inside = 0
        self.most = 0

    @property
    def token(self) -> str:
        self.calls.append("token")
        return "jwt"

    def attest(self) -> None:
        self.calls.append("attest")
        if self.error:
            raise self.error

    def release(self, path: ResourcePath) -> tuple[bytearray, int]:
        self.inside += 1
        self.most = max(self.most, self.inside)
        time.sleep(0.005)
        self.inside -= 1
        if path != PATH:
            raise KeyReleaseDenied("trust.denied", "no")
        return bytearray(b"k" * 32), 0

    def wipe(self) -> None:
        self.calls.append("wipe")


def test_resource_is_overwritten_after_use() -> None:
    keys = KeySource(Broker)
    keys.attest()
    with keys.resource(PATH) as secret:
        assert secret == b"k" * 32
        kept = secret
    assert kept == bytes(32)


def test_resource_is_overwritten_after_an_error() -> None:
    keys = KeySource(Broker)
    keys.attest()
    with pytest.raises(ValueError, match="inside"), keys.resource(PATH) as secret:
        kept = secret
        raise ValueError("inside")
    assert kept == bytes(32)


def test_everybody_waits_for_the_handshake() -> None:
    keys = KeySource(Broker)
    got: list[bytes] = []

    def fetch() -> None:
        with keys.resource(PATH) as secret:
            got.append(bytes(secret))

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    time.sleep(0.03)
    assert not got
    keys.attest()
    thread.join(20)
    assert got == [b"k" * 32]


def test_failed_handshake_closes_the_gate_with_its_reason() -> None:
    broker = Broker(AppraisalRefused("trust.refused", "no", path="d-abcdefghij"))
    keys = KeySource(lambda: broker)
    with pytest.raises(AppraisalRefused):
        keys.attest()
    for use in (lambda: keys.resource(PATH).__enter__(), keys.token, keys.wait_attested):
        with pytest.raises(CloisterError) as caught:
            use()
        assert caught.value.code == "trust.refused"
    assert broker.calls == ["attest"]


def test_unforeseen_error_closes_the_gate_without_its_text() -> None:
    keys = KeySource(lambda: Broker(ValueError("text with a secret")))
    with pytest.raises(ValueError, match="secret"):
        keys.attest()
    with pytest.raises(Unavailable) as caught:
        keys.wait_attested()
    assert caught.value.code == "guest.internal"
    assert "secret" not in str(caught.value)


def test_denial_of_one_resource_leaves_the_gate_open() -> None:
    keys = KeySource(Broker)
    keys.attest()
    with pytest.raises(KeyReleaseDenied):
        keys.resource(ResourcePath("x", "y", "z")).__enter__()
    assert keys.token() == "jwt"


def test_one_thread_at_a_time() -> None:
    broker = Broker()
    keys = KeySource(lambda: broker)
    keys.attest()

    def fetch() -> None:
        with keys.resource(PATH):
            pass

    threads = [threading.Thread(target=fetch) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert broker.most == 1


def test_close_wipes_once_there_is_a_client() -> None:
    broker = Broker()
    keys = KeySource(lambda: broker)
    keys.close()
    assert not broker.calls
    keys.attest()
    keys.close()
    assert broker.calls[-1] == "wipe"


def test_renewal_attests_anew_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker()
    given = bytearray(b"k" * 32)
    monkeypatch.setattr(broker, "release", lambda path: (given, 0))
    keys = KeySource(lambda: broker)
    keys.attest()
    keys.renew([PATH])
    assert broker.calls == ["attest", "attest"]
    assert given == bytes(32)


def test_wipe_overwrites_in_place() -> None:
    secret = bytearray(b"secret")
    wipe(secret)
    assert secret == bytes(6)
