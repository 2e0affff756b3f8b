"""Ten times the load: what is admitted is done, in bounded time and by the policy; the rest is turned away at once."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cloister.trust.store.records import DENIED, RELEASED
from trust_process import Owner, Running, make_owner, running
from trust_world import MODEL

QUEUE = 8
CLIENTS = 10 * QUEUE
SECONDS = 3.0
AUTH = b'{"version":"0.4.0","tee":"cloister-simulated","extra-params":""}'


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    return make_owner(tmp_path)


@pytest.fixture
def service(owner: Owner) -> Iterator[Running]:
    with running(owner.state, "--concurrency", "2", "--queue", str(QUEUE)) as made:
        yield made


class Load:
    """Clients that ask without a pause, each over a connection of its own."""

    def __init__(self, service: Running, token: str, clients: int) -> None:
        self.answers: list[tuple[int, str, bool, float]] = []
        self._service = service
        self._headers = {"Authorization": f"Bearer {token}"}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def run(self, seconds: float) -> None:
        for thread in self._threads:
            thread.start()
        time.sleep(seconds)
        self._stop.set()
        for thread in self._threads:
            thread.join(20)

    def latencies(self, status: int) -> list[float]:
        return sorted(seconds for found, _, _, seconds in self.answers if found == status)

    def _ask(self) -> None:
        connection = self._service.connect()
        while not self._stop.is_set():
            begun = time.monotonic()
            connection.request("GET", f"/kbs/v0/resource/{MODEL}", headers=self._headers)
            response = connection.getresponse()
            body = json.loads(response.read())
            later = response.headers["retry-after"] is not None
            self.answers.append((response.status, body.get("code", ""), later, time.monotonic() - begun))


def token_of(owner: Owner, service: Running, *, launch: bytes | None = None) -> str:
    tpm = owner.tpm() if launch is None else owner.tpm(launch=launch)
    client = service.client(owner, tpm)
    client.attest()
    token: str = client.token
    client.wipe()
    return token


def test_ten_times_the_load(owner: Owner, service: Running) -> None:
    token = token_of(owner, service)
    quiet = Load(service, token, 1)
    quiet.run(1.0)
    assert {answer[0] for answer in quiet.answers} == {200}
    load = Load(service, token, CLIENTS)
    load.run(SECONDS)
    found = Counter((status, code, later) for status, code, later, _ in load.answers)
    assert set(found) == {(200, "", False), (503, "trust.request.overload", True)}, found
    admitted = load.latencies(200)
    assert len(admitted) > 20 and found[(503, "trust.request.overload", True)] > len(admitted)
    # What is admitted waits behind at most a queue of others, whatever else knocks.
    half = quiet.latencies(200)[len(quiet.answers) // 2]
    bound = max(1.0, 10 * QUEUE * half)
    assert admitted[int(len(admitted) * 0.99)] < bound, (admitted[-1], half)
    assert service.request("GET", "/healthz")[0] == 200
    with owner.admin() as admin:
        rows, after = [], 0
        while page := admin.list_audit(after=after):
            rows += page
            after = page[-1].sequence
    assert Counter(row.decision for row in rows) == {RELEASED: len(admitted) + len(quiet.answers)}


def test_none_is_answered_without_policy(owner: Owner, service: Running) -> None:
    stranger = token_of(owner, service, launch=b"other")
    load = Load(service, stranger, CLIENTS)
    load.run(SECONDS / 2)
    found = Counter((status, later) for status, _, later, _ in load.answers)
    assert set(found) == {(403, False), (503, True)}
    with owner.admin() as admin:
        assert {row.decision for row in admin.list_audit()} == {DENIED}


def test_handshakes_that_have_begun_can_end(owner: Owner, service: Running) -> None:
    """A flood of `/auth` never takes the last places."""
    client = service.client(owner)
    client.attest()
    stop = threading.Event()
    turned_away: Counter[bytes] = Counter()

    def knock() -> None:
        while not stop.is_set():
            connection = service.connect()
            with suppress(OSError, http.client.HTTPException):  # idle for too long: a client makes another connection
                while not stop.is_set():
                    connection.request("POST", "/kbs/v0/auth", AUTH)
                    turned_away[connection.getresponse().read()[:40]] += 1
            connection.close()

    threads = [threading.Thread(target=knock) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        connection: http.client.HTTPSConnection = service.connect()
        for _ in range(20):
            connection.request("GET", f"/kbs/v0/resource/{MODEL}", headers={"Authorization": f"Bearer {client.token}"})
            response = connection.getresponse()
            response.read()
            assert response.status == 200
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
        client.wipe()
    assert sum(turned_away.values()) > CLIENTS
