"""What watches the service: numbers, traces, one correlation id, calls to a webhook; and none of it tells secrets."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import http.server
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import FormatRefused, Refused, Unavailable
from cloister.trust import tracing
from cloister.trust.telemetry import FAMILIES, OTHER, ROUTES, TEES, Telemetry, family
from cloister.trust.tracing import Correlation, Observed, correlate
from cloister.trust.webhook import QUEUE, Webhook, parse_webhook_url, read_webhook_secret
from trust_edge import AUTH, Edge
from trust_world import CANARY, MODEL, Factory, World

SECRET = b"0123456789abcdef0123456789abcdef"
GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE = GIVEN.split("-")[1]
NOW = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def edge(world: World) -> Iterator[Edge]:
    made = Edge(world)
    yield made
    made.app.close()


def exercise(world: World, edge: Edge) -> tuple[list[int], list[bytes]]:
    """Do everything a stranger and a guest can do; return the statuses, and what must never be told."""
    guest = world.guest()
    headers = {"traceparent": GIVEN}
    assert asyncio.run(edge.call("POST", "/kbs/v0/auth", AUTH, headers=headers))[0] == 200
    guest.handshake()
    stranger = world.guest(launch=b"other").handshake()
    waiting = world.guest()
    waiting.auth()
    resource = f"/kbs/v0/resource/{MODEL}"
    canary = CANARY.decode()
    requests: list[tuple[str, str, bytes, dict[str, str]]] = [
        ("GET", resource, b"", {"authorization": f"Bearer {guest.token}"}),
        ("GET", resource, b"", {"cookie": f"kbs-session-id={guest.cookie}"}),
        ("GET", resource, b"", {"authorization": f"Bearer {stranger.token}"}),
        ("GET", f"/kbs/v0/resource/{canary}/x/y", b"", {"authorization": f"Bearer {guest.token}"}),
        (
            "POST",
            "/kbs/v0/attest",
            json.dumps(waiting.attestation()).encode(),
            {"cookie": f"kbs-session-id={waiting.cookie}", "traceparent": f"01-{TRACE}-b7ad6b7169203331-01-{canary}"},
        ),
        ("POST", "/kbs/v0/attest", CANARY, {"cookie": "kbs-session-id=" + "0" * 32}),
        ("POST", f"/t/{canary[:30]}/kbs/v0/auth", AUTH, {}),
        ("GET", "/" + canary, b"", {"traceparent": canary}),
        (canary, "/kbs/v0/auth", b"", {}),
        ("POST", "/kbs/v0/auth", json.dumps({"version": "0.4.0", "tee": canary, "extra-params": ""}).encode(), {}),
    ]
    statuses = [asyncio.run(edge.call(*request))[0] for request in requests]
    secrets = [
        CANARY,
        canary[:30].encode(),
        str(MODEL).encode(),
        guest.token.encode(),
        guest.token[:60].encode(),
        guest.cookie.encode(),
        guest.nonce.encode(),
        guest.secret.hex().encode(),
        waiting.cookie.encode(),
    ]
    return statuses, secrets


def metrics_of(edge: Edge) -> str:
    status, headers, body = asyncio.run(edge.call("GET", "/metrics"))
    assert status == 200 and headers[b"content-type"].startswith(b"text/plain; version=0.0.4")
    return body.decode()


class TestMetrics:
    def test_they_count_what_happened(self, world: World, edge: Edge) -> None:
        exercise(world, edge)
        text = metrics_of(edge)
        for line in (
            'cloister_requests_total{route="resource",status="2xx",tenant=""} 2.0',
            'cloister_requests_total{route="unknown",status="4xx",tenant=""} 1.0',
            'cloister_releases_total{tee="tpm"} 2.0',
            'cloister_handshakes_total{tee="tpm",tier="affirming"} 1.0',
            'cloister_denials_total{family="appraisal",route="resource"} 1.0',
            "cloister_requests_admitted 0.0",
        ):
            assert line in text.splitlines(), (line, text)
        assert 'cloister_request_seconds_bucket{le="0.001",route="auth"}' in text

    def test_no_secret_path_or_name_is_in_them(self, world: World, edge: Edge) -> None:
        statuses, secrets = exercise(world, edge)
        assert statuses[:3] == [200, 200, 403]
        text = metrics_of(edge).encode()
        for secret in secrets:
            assert secret not in text and secret.lower() not in text.lower()

    def test_labels_come_from_closed_sets(self, world: World, edge: Edge) -> None:
        exercise(world, edge)
        allowed = {
            "route": ROUTES,
            "family": FAMILIES,
            "tee": TEES,
            "tenant": {""},
            "status": {"2xx", "4xx", "5xx"},
            "tier": {"affirming", "contraindicated"},
        }
        for name, value in re.findall(r'([a-z_]+)="([^"]*)"', metrics_of(edge)):
            assert name == "le" or value in {*allowed[name], OTHER}, (name, value)

    def test_whatever_is_not_known_is_other(self) -> None:
        telemetry = Telemetry()
        marks = Correlation("0" * 32, "0" * 16, tee="x" * 1000, tier="y")
        for number in range(50):
            telemetry.observed(
                Observed(route=f"r{number}", status=200 + number, correlation=marks, denial="d-1", code="a.b")
            )
        telemetry.observed(Observed(route="attest", status=200, correlation=marks))
        telemetry.called("odd")
        text = telemetry.render()[0].decode()
        assert 'tee="other",tier="other"' in text and 'family="other",route="other"' in text
        assert 'cloister_webhooks_total{outcome="other"} 1.0' in text
        assert "r49" not in text and "xxx" not in text
        assert {family(code) for code in ("trust.release.tier", "tee.tpm.x", "trust.zz.x", "zz")} == {
            "trust.release",
            "tee",
            OTHER,
        }

    def test_tenants_only_where_allowed_and_there(self, new_world: Factory) -> None:
        for setting, expected in ((False, 'tenant=""'), (True, 'tenant="default"')):
            edge = Edge(new_world(metrics_tenants=setting))
            asyncio.run(edge.call("POST", "/kbs/v0/auth", AUTH))
            asyncio.run(edge.call("POST", "/t/nobody/kbs/v0/auth", AUTH))
            text = metrics_of(edge)
            assert f'route="auth",status="2xx",{expected}' in text and "nobody" not in text
            edge.app.close()

    def test_a_number_that_cannot_be_had_is_left_out(self) -> None:
        def failing() -> float:
            raise Unavailable("a.b", "x")

        telemetry = Telemetry()
        telemetry.gauge("good", "Good.", lambda: 7)
        telemetry.gauge("bad", "Bad.", failing)
        text = telemetry.render()[0].decode()
        assert "cloister_good 7.0" in text and "bad" not in text

    def test_the_store_tells_its_commits(self, world: World) -> None:
        from cloister.trust.service import TrustService

        seen: list[tuple[int, float]] = []
        with TrustService(world.settings, clock=world.clock, committed=lambda *given: seen.append(given)) as service:
            service.store.probe()
        assert seen and seen[-1][0] == 1 and seen[-1][1] > 0

    def test_elsewhere_they_are_not_here(self, new_world: Factory) -> None:
        edge = Edge(new_world(metrics_listen=("127.0.0.1", 1)))
        assert asyncio.run(edge.call("GET", "/metrics"))[0] == 404
        edge.app.close()


class TestCorrelation:
    def test_the_guests_own_id_is_taken_and_goes_everywhere(self, world: World, edge: Edge) -> None:
        status, headers, body = asyncio.run(edge.call("POST", "/kbs/v0/auth", b"{", headers={"traceparent": GIVEN}))
        assert status == 400 and headers[b"request-id"].decode() == TRACE
        version, trace, span, flags = headers[b"traceparent"].decode().split("-")
        assert (version, trace, flags) == ("00", TRACE, "01") and span != GIVEN.split("-")[2]
        assert edge.lines()[-1]["request"] == TRACE
        assert world.admin.get_denial(json.loads(body)["denial-id"]).request == TRACE

    def test_it_is_in_the_audit(self, world: World, edge: Edge) -> None:
        guest = world.guest().handshake()
        headers = {"authorization": f"Bearer {guest.token}", "traceparent": GIVEN}
        assert asyncio.run(edge.call("GET", f"/kbs/v0/resource/{MODEL}", headers=headers))[0] == 200
        [row] = world.admin.list_audit()
        assert (row.decision, row.request) == ("released", TRACE)

    def test_others_get_one_each(self, edge: Edge) -> None:
        ids = {asyncio.run(edge.call("GET", "/healthz"))[1][b"request-id"] for _ in range(5)}
        assert len(ids) == 5 and all(re.fullmatch(rb"[0-9a-f]{32}", identity) for identity in ids)

    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"00",
            GIVEN.upper().encode(),
            b"ff" + GIVEN[2:].encode(),
            b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01",
            b"00-0af7651916cd43dd8448eb211c80319c-" + b"0" * 16 + b"-01",
            GIVEN.encode() + b"x",
            GIVEN.encode() + b"-x",
            b" " + GIVEN.encode(),
            CANARY,
        ],
    )
    def test_a_malformed_one_is_none(self, text: bytes) -> None:
        found = correlate([(b"traceparent", text)])
        assert found.identity != TRACE and re.fullmatch(r"[0-9a-f]{32}", found.identity) and not found.parent

    def test_two_are_none(self) -> None:
        assert correlate([(b"traceparent", GIVEN.encode())] * 2).identity != TRACE

    def test_outside_of_a_request_there_is_none(self) -> None:
        assert tracing.current().identity == ""
        tracing.current().tee = "tpm"
        assert tracing.current().tee == ""


class TestTraces:
    @pytest.fixture
    def spans(self) -> Iterator[Callable[[], list[Any]]]:
        export = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
        exporter = export.InMemorySpanExporter()
        tracing.export_to("", exporter=exporter)
        yield lambda: list(exporter.get_finished_spans())
        tracing.stop_exporting()

    def test_spans_from_guest_to_decision(self, world: World, edge: Edge, spans: Callable[[], list[Any]]) -> None:
        guest = world.guest()
        guest.auth()
        cookie = f"kbs-session-id={guest.cookie}"
        body = json.dumps(guest.attestation()).encode()
        headers = {"cookie": cookie, "traceparent": GIVEN}
        assert asyncio.run(edge.call("POST", "/kbs/v0/attest", body, headers=headers))[0] == 200
        assert asyncio.run(edge.call("GET", f"/kbs/v0/resource/{MODEL}", headers=headers))[0] == 200
        found = {span.name: span for span in spans()}
        assert set(found) == {"verify", "appraise", "attest", "policy", "seal", "audit", "resource"}
        assert {f"{span.context.trace_id:032x}" for span in found.values()} == {TRACE}
        assert f"{found['attest'].parent.span_id:016x}" == GIVEN.split("-")[2]
        assert found["verify"].parent.span_id == found["attest"].context.span_id
        assert found["seal"].parent.span_id == found["resource"].context.span_id
        assert dict(found["attest"].attributes) == {"tee": "tpm", "tier": "affirming"}

    def test_no_secret_is_in_them(self, world: World, edge: Edge, spans: Callable[[], list[Any]]) -> None:
        _, secrets = exercise(world, edge)
        text = "".join(span.to_json() for span in spans()).encode()
        assert len(spans()) > 10
        for secret in secrets:
            assert secret not in text
        assert os.uname().nodename.encode() not in text

    def test_off_they_are_nothing(self) -> None:
        assert tracing.span("x") is tracing.span("y")


class TestWebhookAddress:
    @pytest.mark.parametrize(
        "text", ["https://a.example/x", "http://127.0.0.1:8/x", "http://[::1]/", "http://localhost/"]
    )
    def test_good(self, text: str) -> None:
        assert parse_webhook_url(text) == text

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "x",
            "http://a.example/",
            "ftp://127.0.0.1/",
            "https://",
            "https://u:p@a/",
            "https://a/#x",
            "https://a:b/",
            "http://[::1/",
        ],
    )
    def test_bad(self, text: str) -> None:
        with pytest.raises(FormatRefused) as caught:
            parse_webhook_url(text)
        assert caught.value.code == "trust.settings.webhook"

    @pytest.mark.parametrize(("mode", "content"), [(0o640, SECRET), (0o600, b"short"), (0o600, b"x" * 1025)])
    def test_a_secret_that_is_none(self, tmp_path: Path, mode: int, content: bytes) -> None:
        file = tmp_path / "secret"
        file.write_bytes(content)
        file.chmod(mode)
        with pytest.raises(Refused) as caught:
            read_webhook_secret(file)
        assert caught.value.code == "trust.settings.webhook_secret"
        assert content.decode() not in str(caught.value)

    def test_a_secret(self, tmp_path: Path) -> None:
        file = tmp_path / "secret"
        file.write_bytes(SECRET + b"\n")
        file.chmod(0o600)
        assert read_webhook_secret(file) == SECRET
        with pytest.raises(Unavailable):
            read_webhook_secret(tmp_path / "none")


class Outcomes:
    """Counts and waits for outcomes."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.changed = threading.Condition()

    def __call__(self, outcome: str) -> None:
        with self.changed:
            self.seen.append(outcome)
            self.changed.notify_all()

    def wait(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.seen) >= count, 10), self.seen


def denied(route: str = "attest", denial: str = "d-aaaaaaaaaa") -> Observed:
    marks = Correlation(TRACE, "b7ad6b7169203331", tee="tpm", tenant="default")
    return Observed(route=route, status=403, code="tee.tpm.quote.signature", denial=denial, correlation=marks)


class TestWebhook:
    def test_a_real_receiver_can_check_it(self) -> None:
        got: list[tuple[dict[str, str], bytes]] = []

        class Receiver(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                got.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        with http.server.HTTPServer(("127.0.0.1", 0), Receiver) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            outcomes = Outcomes()
            hook = Webhook(f"http://127.0.0.1:{server.server_port}/x", SECRET, clock=lambda: NOW, count=outcomes)
            hook.observed(denied())
            outcomes.wait(1)
            hook.close()
            server.shutdown()
            thread.join(10)
        [(headers, body)] = got
        signed = headers["cloister-timestamp"].encode() + b"." + body
        assert headers["cloister-signature"] == "sha256=" + hmac.new(SECRET, signed, hashlib.sha256).hexdigest()
        assert headers["traceparent"].split("-")[1] == TRACE and outcomes.seen == ["sent"]
        assert json.loads(body) == {
            "version": 1,
            "event": "denied",
            "at": "2026-11-01T00:00:00Z",
            "tenant": "default",
            "route": "attest",
            "tee": "tpm",
            "code": "tee.tpm.quote.signature",
            "denial": "d-aaaaaaaaaa",
            "request": TRACE,
        }

    @pytest.mark.parametrize(
        ("statuses", "expected"), [([503, 0, 200], "sent"), ([500] * 9, "failed"), ([302] * 9, "failed")]
    )
    def test_it_tries_again(self, statuses: list[int], expected: str) -> None:
        tried: list[str] = []

        def post(_url: str, _body: bytes, headers: dict[str, str]) -> int:
            tried.append(headers["cloister-signature"])
            status = statuses[len(tried) - 1]
            if not status:
                raise Unavailable("trust.app.webhook", "no answer")
            return status

        outcomes = Outcomes()
        hook = Webhook("https://a/", SECRET, clock=lambda: NOW, count=outcomes, post=post, pauses=(0.0, 0.0, 0.0))
        hook.observed(denied())
        outcomes.wait(1)
        hook.close()
        assert outcomes.seen == [expected]
        assert len(tried) == (3 if expected == "sent" else 4)

    def test_a_receiver_that_hangs_blocks_nothing(self) -> None:
        release = threading.Event()
        outcomes = Outcomes()

        def post(*_: object) -> int:
            release.wait(10)
            return 200

        hook = Webhook("https://a/", SECRET, clock=lambda: NOW, count=outcomes, post=post)
        for _ in range(QUEUE + 10):
            hook.observed(denied())
        assert set(outcomes.seen) == {"dropped"} and 9 <= len(outcomes.seen) <= 10
        release.set()
        hook.close()

    def test_what_was_not_denied_is_not_told(self) -> None:
        outcomes = Outcomes()
        hook = Webhook("https://a/", SECRET, clock=lambda: NOW, count=outcomes, post=lambda *_: 200)
        hook.observed(denied(denial=""))
        hook.observed(denied(route="auth"))
        hook.observed(denied(route="resource"))
        outcomes.wait(1)
        hook.close()
        assert outcomes.seen == ["sent"]

    def test_no_secret_is_told(self, world: World) -> None:
        sent: list[bytes] = []
        outcomes = Outcomes()

        def post(_url: str, body: bytes, headers: dict[str, str]) -> int:
            sent.append(body + repr(headers).encode())
            return 200

        hook = Webhook("https://a/", SECRET, clock=lambda: NOW, count=outcomes, post=post)
        edge = Edge(world, webhook=hook)
        _, secrets = exercise(world, edge)
        outcomes.wait(3)
        hook.close()
        edge.app.close()
        for secret in [*secrets, SECRET]:
            assert secret not in b"".join(sent)
