"""Several workers on one port: handshakes across them, one nonce for all, death, end, metrics."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloister.crypto.jwe import EphemeralKey
from cloister.protocol.kbs import SealedResource
from cloister.trust.store.records import RELEASED
from trust_process import Owner, Running, attestation_body, command, enrolment, make_owner, running
from trust_world import CANARY, MODEL

HANDSHAKES = 200


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    return make_owner(tmp_path)


@pytest.fixture
def service(owner: Owner) -> Iterator[Running]:
    with running(owner.state, "--workers", "2") as made:
        yield made


def workers_of(service: Running) -> list[int]:
    pid = service.process.pid
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until(condition: Callable[[], bool], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def handshake(owner: Owner, service: Running) -> bytes:
    """One connection per request, as clients without keep-alive make them."""
    tpm, key = owner.tpm(), EphemeralKey.generate()
    status, headers, body = service.request("POST", "/kbs/v0/auth", enrolment(tpm))
    assert status == 200, body
    cookie = headers["set-cookie"].split(";")[0]
    message = attestation_body(owner, tpm, key, json.loads(body))
    status, _, body = service.request("POST", "/kbs/v0/attest", message, Cookie=cookie)
    assert status == 200, body
    status, _, body = service.request("GET", f"/kbs/v0/resource/{MODEL}", Cookie=cookie)
    assert status == 200, body
    return key.open(SealedResource(**json.loads(body)))


def test_no_handshake_is_lost_between_workers(owner: Owner, service: Running) -> None:
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: handshake(owner, service), range(HANDSHAKES)))
    assert results == [CANARY] * HANDSHAKES
    answered = [line["worker"] for line in service.lines() if line["event"] == "answered"]
    assert len(answered) == 3 * HANDSHAKES and set(answered) == {1, 2}
    assert min(answered.count(1), answered.count(2)) > HANDSHAKES // 2
    with owner.admin() as admin:
        rows, after = [], 0
        while page := admin.list_audit(after=after):
            rows += page
            after = page[-1].sequence
    assert [row.decision for row in rows] == [RELEASED] * HANDSHAKES


def test_one_nonce_at_all_workers_succeeds_once(owner: Owner, service: Running) -> None:
    tpm = owner.tpm()
    _, headers, body = service.request("POST", "/kbs/v0/auth", enrolment(tpm))
    cookie = headers["set-cookie"].split(";")[0]
    message = attestation_body(owner, tpm, EphemeralKey.generate(), json.loads(body))
    with ThreadPoolExecutor(20) as threads:
        answers = list(
            threads.map(lambda _: service.request("POST", "/kbs/v0/attest", message, Cookie=cookie), range(40))
        )
    assert sorted(answer[0] for answer in answers) == [200, *([401] * 39)]
    tried = {line["worker"] for line in service.lines() if line.get("code") == "trust.session.nonce_used"}
    assert tried == {1, 2}


class TestLife:
    def test_one_report_when_all_answer(self, service: Running) -> None:
        assert service.report["pid"] == service.process.pid and len(workers_of(service)) == 2
        events = [line["event"] for line in service.lines()]
        assert events == ["worker ready", "worker ready", "ready"]
        assert {line["worker"] for line in service.lines()[:2]} == {1, 2}  # who is faster is first

    def test_a_dead_worker_is_started_again(self, owner: Owner, service: Running) -> None:
        before = workers_of(service)
        os.kill(before[0], signal.SIGKILL)
        until(lambda: len(workers_of(service)) == 2 and before[0] not in workers_of(service))
        until(lambda: [line["event"] for line in service.lines()].count("worker ready") == 3)
        for _ in range(8):
            assert handshake(owner, service) == CANARY
        assert service.process.poll() is None and before[1] in workers_of(service)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_all_end_after_what_they_have_begun(self, owner: Owner, service: Running, number: int) -> None:
        workers = workers_of(service)
        assert handshake(owner, service) == CANARY
        assert service.end(number) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
        assert [line["event"] for line in service.lines()].count("stopped") == 3
        assert not list(owner.state.glob("tls-*")) and not list(owner.state.glob("*-wal"))

    def test_workers_end_when_the_supervisor_dies(self, service: Running) -> None:
        workers = workers_of(service)
        service.process.kill()
        service.process.wait(20)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))

    def test_a_state_that_cannot_be_used_ends_it(self, owner: Owner) -> None:
        (owner.state / "ca.key").write_text("no key")
        done = subprocess.run(command(owner.state, "--workers", "2"), capture_output=True, text=True, timeout=20)
        assert done.returncode in (1, 3) and done.stderr.count("cloister: error:") == 1

    def test_a_taken_port_is_refused_once(self, owner: Owner, service: Running) -> None:
        arguments = ("--workers", "2", "--listen", f"127.0.0.1:{service.report['port']}")
        done = subprocess.run(command(owner.state, *arguments), capture_output=True, text=True, timeout=20)
        assert done.returncode == 1 and done.stderr.count("trust.app.address_in_use") <= 1
        assert done.stderr.count("cloister: error:") == 1


class TestPlainHTTP:
    """For a proxy on the same machine that ends TLS."""

    def test_it_answers_and_says_so(self, owner: Owner) -> None:
        with running(owner.state, "--insecure-http") as service:
            assert service.report["url"].startswith("http://")
            connection = http.client.HTTPConnection("127.0.0.1", service.report["port"], timeout=10)
            connection.request("POST", "/kbs/v0/auth", enrolment(owner.tpm()))
            response = connection.getresponse()
            response.read()
            cookie = response.headers["set-cookie"]
            assert response.status == 200 and "Secure" not in cookie and "HttpOnly" in cookie
            connection.request("GET", "/healthz")
            assert json.loads(connection.getresponse().read())["insecure_http"] is True
            connection.close()
            warning = next(line for line in service.lines() if line["event"] == "insecure_http")
            assert warning["level"] == "warning" and "reads and changes" in warning["reason"]
            assert not list(owner.state.glob("tls-*"))

    def test_not_on_an_address_of_others(self, owner: Owner) -> None:
        arguments = ("--insecure-http", "--listen", "0.0.0.0:0")
        done = subprocess.run(command(owner.state, *arguments), capture_output=True, text=True, timeout=20)
        assert done.returncode == 1 and "reach" in done.stderr


class TestMetrics:
    """Whoever of the workers is asked answers for all of them."""

    def counted(self, text: bytes) -> dict[str, float]:
        lines = [line.rpartition(" ") for line in text.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    def test_workers_are_added_up(self, owner: Owner, service: Running) -> None:
        for _ in range(10):
            assert handshake(owner, service) == CANARY
        assert {line["worker"] for line in service.lines() if line["event"] == "answered"} == {1, 2}
        os.kill(workers_of(service)[0], signal.SIGKILL)  # what it counted stays
        until(lambda: [line["event"] for line in service.lines()].count("worker ready") == 3)
        for _ in range(4):
            found = self.counted(service.request("GET", "/metrics")[2])
            assert found['cloister_releases_total{tee="tpm"}'] == 10
            assert found['cloister_handshakes_total{tee="tpm",tier="affirming"}'] == 10
            assert found['cloister_request_seconds_count{route="auth"}'] == 10
            assert found["cloister_sessions"] == 10 and found["cloister_store_healthy"] == 1
            assert found["cloister_store_batch_writes_count"] >= 20

    def test_at_an_address_of_their_own(self, owner: Owner) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with running(owner.state, "--metrics-listen", f"127.0.0.1:{port}") as service:
            assert service.request("GET", "/metrics")[0] == 404
            service.report["port"] = port
            status, headers, body = service.request("GET", "/metrics")
            assert status == 200 and b"cloister_requests_total" in body and headers["content-type"].startswith("text/")
            assert service.request("GET", "/healthz")[0] == 404
            assert service.request("POST", "/kbs/v0/auth", b"{}")[0] == 404
            assert service.end() == 0
