"""The documents of a trust domain over HTTP: public, cacheable, and absent where identities are off."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import pytest

from cloister.trust.journal import Journal
from cloister.trust.web import TrustApp, trust_application
from cloister.trust.web.identity import identity_mounts
from identity_world import ISSUER, make_domain
from trust_world import Factory, World


def application(world: World) -> TrustApp:
    mounts = identity_mounts(world.service.identity)
    journal = Journal(io.StringIO())
    return trust_application(world.service.broker_of, world.service.store, world.settings, journal, mounts=mounts)


def get(app: TrustApp, path: str, method: str = "GET") -> tuple[int, dict[bytes, bytes], Any]:
    async def call() -> list[Any]:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": method, "path": path, "headers": [], "client": ("192.0.2.1", 1)}
        await app(scope, receive, send)
        return sent

    start, body = asyncio.run(call())
    return start["status"], dict(start["headers"]), json.loads(body["body"])


@pytest.fixture
def app(new_world: Factory) -> TrustApp:
    return application(make_domain(new_world).world)


def test_anybody_may_fetch_the_documents(app: TrustApp) -> None:
    status, headers, bundle = get(app, "/spiffe/bundle")
    assert status == 200 and len(bundle["keys"]) == 2
    assert headers[b"content-type"] == b"application/json" and headers[b"cache-control"] == b"public, max-age=300"
    status, _, discovery = get(app, "/.well-known/openid-configuration")
    assert status == 200 and discovery["issuer"] == ISSUER
    status, _, keys = get(app, discovery["jwks_uri"].removeprefix(ISSUER))
    assert status == 200 and [key["use"] for key in keys["keys"]] == ["sig"]
    assert [name for key in keys["keys"] for name in key if name == "d"] == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/spiffe/bundle", 405),
        ("PUT", "/spiffe/keys", 405),
        ("GET", "/spiffe", 404),
        ("GET", "/spiffe/", 404),
        ("GET", "/spiffe/x509-svid", 404),
        ("GET", "/spiffe/../spiffe/bundle", 404),
        ("GET", "/.well-known/openid-configuration/x", 404),
        ("GET", "/.well-known/jwks.json", 404),
    ],
)
def test_nothing_else_is_there(app: TrustApp, method: str, path: str, status: int) -> None:
    assert get(app, path, method)[0] == status


def test_without_a_trust_domain_there_are_no_documents(new_world: Factory) -> None:
    app = application(new_world())
    for path in ("/spiffe/bundle", "/spiffe/keys", "/.well-known/openid-configuration"):
        assert get(app, path)[0] == 404


@pytest.mark.parametrize("issuer", ["http://a.example", "https://", "https://a.example/", "https://a.example?x", ""])
def test_an_issuer_that_is_no_https_address_is_a_usage_error(issuer: str) -> None:
    from cloister.trust.settings import settings_from_arguments

    with pytest.raises(SystemExit):
        settings_from_arguments(["--state", "x", "--identity-issuer", issuer])
    with pytest.raises(SystemExit):
        settings_from_arguments(["--state", "x", "--trust-domain", issuer])
    chosen = settings_from_arguments(["--state", "x", "--identity-issuer", ISSUER, "--trust-domain", "a.example"])
    assert (chosen.identity_issuer, chosen.trust_domain) == (ISSUER, "a.example")
