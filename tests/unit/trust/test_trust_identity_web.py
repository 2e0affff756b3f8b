"""The documents of a trust domain over HTTP: public, cacheable, and absent where identities are off."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from typing import Any
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.errors import Refused, Unavailable
from cloister.protocol.kbs import SealedResource
from cloister.trust.journal import Journal
from cloister.trust.keybroker import Credentials
from cloister.trust.web import TrustApp, trust_application
from cloister.trust.web.identity import identity_mounts
from identity_world import AUDIENCE, ISSUER, Domain, grant, make_domain, policy, request
from trust_world import Factory, Guest, World


def application(world: World) -> TrustApp:
    mounts = identity_mounts(world.service.identity)
    journal = Journal(io.StringIO())
    return trust_application(world.service.broker_of, world.service, world.settings, journal, mounts=mounts)


def get(
    app: TrustApp, path: str, method: str = "GET", *, query: str = "", body: bytes = b"", token: str = ""
) -> tuple[int, dict[bytes, bytes], Any]:
    async def call() -> list[Any]:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
        scope = {"type": "http", "method": method, "path": path, "headers": headers, "client": ("192.0.2.1", 1)}
        scope["query_string"] = query.encode()
        await app(scope, receive, send)
        return sent

    start, answer = asyncio.run(call())
    return start["status"], dict(start["headers"]), json.loads(answer["body"])


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


@pytest.mark.parametrize("issuer", ["http://a.example", "https://", "https://a.example/", "https://a.example?x"])
def test_an_issuer_that_is_no_https_address_is_a_usage_error(issuer: str) -> None:
    from cloister.trust.configuration import settings_from_arguments

    with pytest.raises(SystemExit):
        settings_from_arguments(["--data", "x", "--identity-issuer", issuer])
    with pytest.raises(SystemExit):
        settings_from_arguments(["--data", "x", "--trust-domain", issuer])
    chosen = settings_from_arguments(["--data", "x", "--identity-issuer", ISSUER, "--trust-domain", "a.example"])
    assert (chosen.identity_issuer, chosen.trust_domain) == (ISSUER, "a.example")


# --- the guests' side: a plugin of the key broker ---

PLUGIN = "/kbs/v0/spiffe"


def csr() -> bytes:
    return request(ec.generate_private_key(ec.SECP256R1()))


def opened(guest: Guest, answer: Any) -> Any:
    return json.loads(guest.key.open(SealedResource(**answer)))


@pytest.fixture
def domain(new_world: Factory) -> Domain:
    return make_domain(new_world)


def test_an_attested_guest_asks_by_get_as_cocos_clients_do_and_by_post(domain: Domain) -> None:
    app, guest = application(domain.world), domain.world.guest().handshake()
    in_query = "csr=" + base64.urlsafe_b64encode(csr()).rstrip(b"=").decode()
    in_body = json.dumps({"csr": base64.b64encode(csr()).decode()}).encode()
    for method, query, body in (("GET", in_query, b""), ("POST", "", in_body)):
        status, headers, answer = get(app, f"{PLUGIN}/x509-svid", method, query=query, body=body, token=guest.token)
        assert status == 200 and headers[b"cache-control"] == b"no-store"
        assert opened(guest, answer)["spiffe_id"].startswith("spiffe://prod.example.org/default/measured/shop/")
        with pytest.raises(Refused):  # sealed to the guest: of no use to whoever stole the token
            opened(domain.world.guest(), answer)
    status, _, answer = get(app, f"{PLUGIN}/jwt-svid", query=f"audience={quote(AUDIENCE)}", token=guest.token)
    assert status == 200 and opened(guest, answer)["svid"].count(".") == 2
    status, _, answer = get(app, f"{PLUGIN}/bundle", token=guest.token)
    assert status == 200 and opened(guest, answer)["spiffe_sequence"]
    assert [row.code for row in domain.world.admin.list_audit()] == ["trust.identity.issued"] * 3


def test_what_the_plugin_refuses_is_a_denial_with_all_its_checks(domain: Domain) -> None:
    domain.world.admin.put_identity_policy(policy(grant(domain.world.data, insecure_allow_levels=[])))
    app, guest = application(domain.world), domain.world.guest().handshake()
    body = json.dumps({"csr": base64.b64encode(csr()).decode()}).encode()
    status, _, error = get(app, f"{PLUGIN}/x509-svid", "POST", body=body, token=guest.token)
    assert (status, error["code"]) == (403, "trust.identity.level")
    record = domain.world.admin.get_denial(error["denial-id"])
    assert record.resource == "spiffe/x509-svid" and record.attestation == domain.token(guest).attestation
    assert {"trust.identity.tier", "trust.identity.level"} <= {finding.code for finding in record.findings}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "spiffe/x509-svid", 400),
        ("GET", "spiffe/jwt-svid", 400),
        ("GET", "spiffe/nothing", 404),
        ("GET", "spiffe/../spiffe/bundle", 404),
        ("GET", "other/bundle", 404),
        ("GET", "spiffe", 404),
        ("GET", "spiffe/", 404),
        ("PUT", "spiffe/bundle", 405),
        ("GET", "SPIFFE/bundle", 404),
    ],
)
def test_other_requests_of_a_guest_are_refused(domain: Domain, method: str, path: str, status: int) -> None:
    guest = domain.world.guest().handshake()
    found, _, _ = get(application(domain.world), f"/kbs/v0/{path}", method, token=guest.token)
    assert found == status


def test_without_a_token_or_with_an_expired_one_nothing_is_told(domain: Domain) -> None:
    app, guest = application(domain.world), domain.world.guest().handshake()
    assert get(app, f"{PLUGIN}/bundle")[0] == 401
    assert get(app, f"{PLUGIN}/bundle", token=guest.token + "x")[0] == 401
    domain.world.clock.advance(minutes=5)
    status, _, error = get(app, f"{PLUGIN}/bundle", token=guest.token)
    assert (status, error["code"]) == (401, "crypto.jwt.expired")


def test_a_late_answer_is_none(domain: Domain) -> None:
    guest = domain.world.guest().handshake()
    with pytest.raises(Unavailable) as failure:
        domain.world.service.broker.plugin(
            "spiffe", "bundle", "", b"", Credentials(bearer=guest.token), deadline=time.monotonic() - 1
        )
    assert failure.value.code == "trust.request.timeout"
