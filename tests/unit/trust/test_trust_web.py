"""The HTTP edge: admission, limits, deadlines, health, and a log that tells no secret."""

from __future__ import annotations

import asyncio
import io
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from cloister.crypto.jwt import TOKEN_BYTES
from cloister.errors import Refused
from cloister.trust.journal import FIELDS, Journal
from cloister.trust.keybroker import Answer, Credentials
from cloister.trust.web import Mount, trust_application
from cloister.trust.web.gate import Limits, RateLimit
from trust_edge import AUTH, Edge
from trust_world import CANARY, MODEL, Factory, World

Call = Callable[..., Awaitable[tuple[int, dict[bytes, bytes], bytes]]]


class OddBroker:
    """A broker that does what a test says instead."""

    def __init__(self, act: Callable[[], Answer]) -> None:
        self.act = act

    def auth(self, body: bytes) -> Answer:
        return self.act()


@pytest.fixture
def edge(world: World) -> Iterator[Edge]:
    made = Edge(world)
    yield made
    made.app.close()


def code(body: bytes) -> str:
    value: str = json.loads(body)["code"]
    return value


def test_auth_sets_a_narrow_cookie(edge: Edge) -> None:
    status, headers, body = asyncio.run(edge.call("POST", "/kbs/v0/auth", AUTH))
    assert status == 200 and headers[b"content-type"] == b"application/json"
    assert headers[b"cache-control"] == b"no-store" and int(headers[b"content-length"]) == len(body)
    name, *attributes = headers[b"set-cookie"].decode().split("; ")
    assert re.fullmatch("kbs-session-id=[0-9A-Za-z_-]{64,128}", name)
    assert attributes == ["Path=/kbs/v0", "Max-Age=300", "HttpOnly", "Secure", "SameSite=Strict"]


@pytest.mark.parametrize(
    ("method", "path", "status", "expected"),
    [
        ("GET", "/", 404, "trust.request.path"),
        ("GET", "/kbs/v0", 404, "trust.request.path"),
        ("GET", "/kbs/v0/attestation-policy", 404, "trust.request.path"),
        ("POST", "/kbs/v0/resource-policy", 404, "trust.request.path"),
        ("POST", "/kbs/v0/auth/", 404, "trust.request.path"),
        ("POST", "/KBS/v0/auth", 404, "trust.request.path"),
        ("GET", "/kbs/v0/auth", 405, "trust.request.method"),
        ("PUT", "/kbs/v0/attest", 405, "trust.request.method"),
        ("POST", "/kbs/v0/resource/a/b/c", 405, "trust.request.method"),
        ("DELETE", "/kbs/v0/resource/a/b/c", 405, "trust.request.method"),
        ("POST", "/healthz", 405, "trust.request.method"),
        ("POST", "/metrics", 405, "trust.request.method"),
        ("GET", "/metrics/", 404, "trust.request.path"),
    ],
)
def test_the_routes_are_closed(edge: Edge, method: str, path: str, status: int, expected: str) -> None:
    found, _, body = asyncio.run(edge.call(method, path))
    assert (found, code(body)) == (status, expected)


def test_a_body_past_the_ceiling_is_not_kept(edge: Edge) -> None:
    status, _, body = asyncio.run(edge.call("POST", "/kbs/v0/auth", [bytes(1024 * 1024)] * 3))
    assert (status, code(body)) == (413, "protocol.kbs.too_long")


def test_a_body_in_pieces(edge: Edge) -> None:
    pieces = [AUTH[index : index + 1] for index in range(len(AUTH))]
    assert asyncio.run(edge.call("POST", "/kbs/v0/auth", pieces))[0] == 200


def test_a_body_that_never_comes(new_world: Factory) -> None:
    edge = Edge(new_world(request_seconds=0.05))
    status, _, body = asyncio.run(edge.call("POST", "/kbs/v0/auth", AUTH, pause=5))
    assert (status, code(body)) == (503, "trust.request.timeout")
    edge.app.close()


def test_a_client_that_hangs_up(edge: Edge) -> None:
    async def hang_up() -> tuple[int, dict[bytes, bytes], bytes]:
        return await edge.call("POST", "/kbs/v0/auth", [])

    assert code(asyncio.run(hang_up())[2]) == "trust.request.cut"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"cookie": "kbs-session-id=short"},
        {"cookie": "other=1; kbs-session-id=" + "Z" * 32},
        {"authorization": "Basic eDp5"},
        {"authorization": "Bearer"},
        {"authorization": "Bearer " + "x" * (TOKEN_BYTES + 1)},
    ],
)
def test_what_is_no_credential_is_none(edge: Edge, headers: dict[str, str]) -> None:
    status, _, body = asyncio.run(edge.call("GET", f"/kbs/v0/resource/{MODEL}", headers=headers))
    assert (status, code(body)) == (401, "trust.token.missing")


@pytest.mark.parametrize("template", ["{}", "{}; a=b", "a=b; {}", "a=b;{};c=d"])
def test_the_session_cookie_is_found_among_others(world: World, edge: Edge, template: str) -> None:
    guest = world.guest().handshake()
    cookie = template.format(f"kbs-session-id={guest.cookie}")
    status, _, body = asyncio.run(edge.call("GET", f"/kbs/v0/resource/{MODEL}", headers={"cookie": cookie}))
    assert status == 200 and guest.open(Answer(status=200, body=body)) == CANARY


def test_the_bearer_scheme_is_case_insensitive(world: World, edge: Edge) -> None:
    guest = world.guest().handshake()
    headers = {"authorization": f"bearer {guest.token}"}
    assert asyncio.run(edge.call("GET", f"/kbs/v0/resource/{MODEL}", headers=headers))[0] == 200


def test_one_request_too_many_is_turned_away(new_world: Factory) -> None:
    world = new_world(queue=2, concurrency=1)
    edge = Edge(world, OddBroker(lambda: time.sleep(0.2) or Answer(status=200, body=b"{}")))

    async def run() -> list[tuple[int, dict[bytes, bytes], bytes]]:
        return list(await asyncio.gather(*(edge.call("POST", "/kbs/v0/auth", AUTH) for _ in range(5))))

    answers = asyncio.run(run())
    assert sorted(answer[0] for answer in answers) == [200, 200, 503, 503, 503]
    turned_away = next(answer for answer in answers if answer[0] == 503)
    assert turned_away[1][b"retry-after"] == b"1" and code(turned_away[2]) == "trust.request.overload"
    edge.app.close()


def test_work_that_takes_too_long_is_answered_in_time(new_world: Factory) -> None:
    edge = Edge(new_world(request_seconds=0.1), OddBroker(lambda: time.sleep(0.5) or Answer(status=200, body=b"late")))
    begun = time.monotonic()

    async def run() -> tuple[int, dict[bytes, bytes], bytes]:
        answer = await edge.call("POST", "/kbs/v0/auth", AUTH)
        assert time.monotonic() - begun < 0.4
        return answer

    status, _, body = asyncio.run(run())
    assert (status, code(body)) == (503, "trust.request.timeout")
    edge.app.close()


def test_draining_admits_nothing_and_waits_for_what_is_in_flight(world: World) -> None:
    edge = Edge(world, OddBroker(lambda: time.sleep(0.1) or Answer(status=200, body=b"{}")))

    async def run() -> tuple[bool, int, int]:
        running = asyncio.ensure_future(edge.call("POST", "/kbs/v0/auth", AUTH))
        await asyncio.sleep(0.02)
        draining = asyncio.ensure_future(edge.app.drain(5))
        await asyncio.sleep(0)
        late = await edge.call("POST", "/kbs/v0/auth", AUTH)
        return await draining, (await running)[0], late[0]

    assert asyncio.run(run()) == (True, 200, 503)
    edge.app.close()


class TestTenants:
    def test_the_cookie_stays_in_the_tenants_part(self, world: World) -> None:
        edge, asked = Edge(world), []
        edge.app.close()

        def brokers(tenant: str) -> Any:
            asked.append(tenant)
            return world.service.broker

        edge.app = trust_application(brokers, world.service, world.settings, Journal(edge.log))
        status, headers, _ = asyncio.run(edge.call("POST", "/t/shop-1/kbs/v0/auth", AUTH))
        assert (status, asked) == (200, ["shop-1"])
        assert "; Path=/t/shop-1/kbs/v0; " in headers[b"set-cookie"].decode()
        asyncio.run(edge.call("GET", f"/t/shop-1/kbs/v0/resource/{MODEL}"))
        asyncio.run(edge.call("POST", "/t/shop-1/kbs/v0/attest"))
        assert asked == ["shop-1"] * 3
        edge.app.close()

    @pytest.mark.parametrize(
        "path",
        [
            "/t/nobody/kbs/v0/auth",
            "/t//kbs/v0/auth",
            "/t/-a/kbs/v0/auth",
            "/t/A/kbs/v0/auth",
            "/t/" + "a" * 64 + "/kbs/v0/auth",
            "/t/default/x/kbs/v0/auth",
            "/t/default/healthz",
            "/t/default",
            "/t/default\n/kbs/v0/auth",
        ],
    )
    def test_what_is_no_tenant_is_no_address(self, edge: Edge, path: str) -> None:
        status, _, body = asyncio.run(edge.call("POST", path, AUTH))
        assert (status, code(body)) == (404, "trust.request.path")


class TestRate:
    def test_one_client_too_often(self, new_world: Factory) -> None:
        edge = Edge(new_world(client_rate=1.0))
        answers = [asyncio.run(edge.call("POST", "/kbs/v0/auth", AUTH)) for _ in range(4)]
        assert [answer[0] for answer in answers] == [200, 200, 429, 429]
        assert answers[-1][1][b"retry-after"] == b"1" and code(answers[-1][2]) == "trust.request.rate"
        assert asyncio.run(edge.call("GET", "/healthz"))[0] == 200
        edge.app.close()

    def test_it_fills_again_and_is_each_ones_own(self) -> None:
        now = [0.0]
        rate = RateLimit(2.0, 1.0, clock=lambda: now[0])
        rate.take("a")
        rate.take("b")
        with pytest.raises(Refused) as caught:
            rate.take("a")
        assert caught.value.code == "trust.request.rate"
        now[0] = 0.5
        rate.take("a")

    def test_it_remembers_a_bounded_number_of_clients(self) -> None:
        rate = RateLimit(1.0, 1.0, clock=lambda: 0.0)
        for number in range(5000):
            rate.take(str(number))
        assert len(rate._buckets) == 4096
        with pytest.raises(Refused):
            rate.take("4999")


class TestMounts:
    """Another application below a prefix, within the same gate."""

    def edge(self, world: World, application: Any, **limits: Any) -> Edge:
        limit = Limits(**{"body_bytes": 10, "seconds": 5, "admitted": 1, **limits})
        return Edge(world, mounts=[Mount(prefix="/admin/v1", name="admin", limits=limit, application=application)])

    def test_it_gets_what_is_below(self, world: World) -> None:
        seen = []

        async def application(scope: Any, receive: Any, send: Any) -> None:
            seen.append((scope["path"], (await receive())["body"]))
            await send({"type": "http.response.start", "status": 201, "headers": [(b"x", b"y")]})
            await send({"type": "http.response.body", "body": b"{}"})

        edge = self.edge(world, application)
        for path in ("/admin/v1", "/admin/v1/x"):
            status, headers, _ = asyncio.run(edge.call("POST", path, b"0123456789"))
            assert (status, headers[b"x"]) == (201, b"y") and headers[b"request-id"]
        assert asyncio.run(edge.call("POST", "/admin/v10"))[0] == 404
        assert seen == [("/admin/v1", b"0123456789"), ("/admin/v1/x", b"0123456789")]
        assert next((line["route"], line["status"]) for line in edge.lines()) == ("admin", 201)
        edge.app.close()

    def test_its_limits_hold(self, world: World) -> None:
        async def application(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await asyncio.sleep(30)

        edge = self.edge(world, application, seconds=0.1)

        async def two() -> list[tuple[int, dict[bytes, bytes], bytes]]:
            return list(await asyncio.gather(*(edge.call("GET", "/admin/v1/x") for _ in range(2))))

        assert {code(answer[2]) for answer in asyncio.run(two())} == {
            "trust.request.overload",
            "trust.request.timeout",
        }
        status, _, body = asyncio.run(edge.call("POST", "/admin/v1/x", b"01234567890"))
        assert (status, code(body)) == (413, "protocol.kbs.too_long")
        edge.app.close()

    def test_its_faults_are_not_shown(self, world: World) -> None:
        async def application(scope: Any, receive: Any, send: Any) -> None:
            raise ValueError(CANARY.decode())

        edge = self.edge(world, application)
        status, _, body = asyncio.run(edge.call("GET", "/admin/v1/x"))
        assert (status, code(body)) == (503, "trust.internal")
        assert CANARY not in body and CANARY.decode() not in edge.log.getvalue()
        edge.app.close()


class TestHealth:
    def test_well(self, edge: Edge) -> None:
        assert asyncio.run(edge.call("GET", "/healthz"))[::2] == (200, b'{"status":"ok"}')

    def test_a_store_that_is_gone(self, world: World, edge: Edge) -> None:
        world.service.store.close()
        answer = asyncio.run(edge.call("GET", f"/kbs/v0/resource/{MODEL}", headers={"authorization": "Bearer x"}))
        assert answer[0] == 503
        assert asyncio.run(edge.call("GET", "/healthz"))[0] == 503


class TestLog:
    def test_lines_have_known_fields_only(self, edge: Edge) -> None:
        asyncio.run(edge.call("POST", "/kbs/v0/auth", AUTH))
        asyncio.run(edge.call("POST", "/kbs/v0/auth", b"{"))
        good, bad = edge.lines()
        assert set(good) == {"event", "timestamp", "level", "request", "route", "status", "ms"}
        assert (bad["status"], bad["code"]) == (400, "protocol.kbs.malformed") and bad["denial"].startswith("d-")
        assert set(bad) <= FIELDS

    def test_an_unknown_field_is_dropped(self) -> None:
        log = io.StringIO()
        Journal(log).note("x", secret=CANARY.decode(), port=1)
        assert CANARY.decode() not in log.getvalue() and json.loads(log.getvalue())["port"] == 1

    def test_a_line_is_written_at_once(self) -> None:
        """Workers share the file, which may be unbuffered: a newline written apart ends another's line."""
        written: list[str] = []

        class Unbuffered(io.StringIO):
            def write(self, text: str, /) -> int:
                written.append(text)
                return len(text)

        journal = Journal(Unbuffered(), worker=1)
        journal.note("x", port=1)
        journal.warn("x", port=2)
        assert [json.loads(text)["port"] for text in written] == [1, 2]
        assert all(text.endswith("\n") for text in written)

    def test_a_fault_of_ours_shows_its_place_and_not_its_words(self, world: World) -> None:
        def fault() -> Answer:
            raise ValueError(CANARY.decode())

        edge = Edge(world, OddBroker(fault))
        status, _, body = asyncio.run(edge.call("POST", "/kbs/v0/auth", AUTH))
        assert (status, code(body)) == (503, "trust.internal")
        failed, answered = edge.lines()
        assert (failed["event"], failed["kind"]) == ("failed", "ValueError") and failed["where"].endswith(
            ".py:" + failed["where"].rsplit(":")[1]
        )
        assert answered["status"] == 503
        assert CANARY.decode() not in edge.log.getvalue() and CANARY not in body
        edge.app.close()

    def test_no_secret_on_any_path(self, world: World, edge: Edge) -> None:
        """Releases, denials, forged tokens, odd evidence, faults: none leaves a secret in the log."""
        guest = world.guest().handshake()
        stranger = world.guest(launch=b"other").handshake()
        resource = f"/kbs/v0/resource/{MODEL}"
        requests: list[tuple[str, str, bytes, dict[str, str]]] = [
            ("GET", resource, b"", {"authorization": f"Bearer {guest.token}"}),
            ("GET", resource, b"", {"cookie": f"kbs-session-id={guest.cookie}"}),
            ("GET", resource, b"", {"authorization": f"Bearer {stranger.token}"}),
            ("GET", resource, b"", {"authorization": f"Bearer {guest.token[:-9]}"}),
            ("GET", f"/kbs/v0/resource/{CANARY.decode()}/x/y", b"", {"authorization": f"Bearer {guest.token}"}),
            (
                "POST",
                "/kbs/v0/attest",
                json.dumps(guest.attestation()).encode(),
                {"cookie": f"kbs-session-id={guest.cookie}"},
            ),
            ("POST", "/kbs/v0/attest", CANARY, {}),
            ("GET", "/" + CANARY.decode(), b"", {}),
        ]
        statuses = [asyncio.run(edge.call(*request))[0] for request in requests]
        assert statuses == [200, 200, 403, 401, 404, 401, 401, 404]
        log = edge.log.getvalue()
        for secret in (CANARY.decode(), guest.token, guest.token[:60], guest.cookie, guest.nonce, guest.secret.hex()):
            assert secret not in log


def test_other_scopes_are_ignored(edge: Edge) -> None:
    async def nothing(*_: object) -> Any:
        raise AssertionError("not to be called")

    asyncio.run(edge.app({"type": "websocket"}, nothing, nothing))


def test_credentials_do_not_show_themselves() -> None:
    assert "secret" not in repr(Credentials(cookie="secret", bearer="secret"))
    assert "secret" not in str(Refused("a.b", "x"))
