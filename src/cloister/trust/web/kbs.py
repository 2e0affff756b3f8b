"""The guests' routes: the key broker protocol for each tenant.

    POST /kbs/v0/auth   POST /kbs/v0/attest   GET /kbs/v0/resource/{repository}/{type}/{tag}
    GET or POST /kbs/v0/{plugin}/{path}

for the default tenant, and the same below `/t/<tenant>` for the others. A session cookie is sent to the tenant's own
part of the address only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

from cloister.crypto.jwt import TOKEN_BYTES
from cloister.protocol.kbs import PREFIX, SESSION_COOKIE
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.trust.keybroker import Answer, Credentials, KeyBroker
from cloister.trust.settings import TrustSettings
from cloister.trust.store.sessions import COOKIE_CHARS, SHORTEST_COOKIE
from cloister.trust.web.exchange import Request, Response
from cloister.trust.web.gate import Limits, Route
from cloister.wire.limits import KBS_REQUEST_BYTES

Brokers = Callable[[str], KeyBroker]

_TENANT: Final = re.compile(r"/t/([a-z0-9][a-z0-9-]{0,62})(/kbs/.*)")
_COOKIE: Final = re.compile(rf"[0-9A-Za-z_-]{{{SHORTEST_COOKIE},{COOKIE_CHARS}}}")
_RESOURCE: Final = f"{PREFIX}/resource/"
_PLUGIN: Final = re.compile(rf"{PREFIX}/([a-z][a-z0-9-]{{0,31}}/[A-Za-z0-9._/-]{{1,400}})")


class GuestRoutes:
    """Routes of the key broker protocol.

    Args:
        brokers: the key broker of a tenant; raises Refused `trust.request.path` for one that does not exist.
        settings: limits, and whether cookies are for TLS only.
    """

    def __init__(self, brokers: Brokers, settings: TrustSettings) -> None:
        self._brokers = brokers
        secure = "" if settings.insecure_http else "Secure; "
        life = f"Max-Age={int(settings.session_seconds)}; HttpOnly; {secure}SameSite=Strict"
        self._cookie_life = life
        begins = Limits(
            body_bytes=KBS_REQUEST_BYTES,
            seconds=settings.request_seconds,
            admitted=settings.queue - settings.queue // 4,
        )
        goes_on = Limits(body_bytes=KBS_REQUEST_BYTES, seconds=settings.request_seconds, admitted=settings.queue)
        self._resource = Route(name="resource", method="GET", limits=goes_on, handle=self._release, stage="resource")
        self._plugin = Route(
            name="plugin", method="POST", also="GET", limits=goes_on, handle=self._ask_plugin, stage="resource"
        )
        self._exact = {
            f"{PREFIX}/auth": Route(name="auth", method="POST", limits=begins, handle=self._auth, stage="auth"),
            f"{PREFIX}/attest": Route(
                name="attest", method="POST", limits=goes_on, handle=self._attest, stage="attest"
            ),
        }

    def find(self, path: str) -> tuple[Route, str, str] | None:
        """Return route, rest of the path and tenant, or None."""
        place = split_tenant(path)
        if place is None:
            return None
        tenant, path = place
        if path.startswith(_RESOURCE):
            return self._resource, path[len(_RESOURCE) :], tenant
        route = self._exact.get(path)
        if route is not None:
            return route, "", tenant
        plugin = _PLUGIN.fullmatch(path)
        return None if plugin is None else (self._plugin, plugin[1], tenant)

    def _auth(self, request: Request) -> Response:
        return self._response(request, self._broker(request).auth(request.body))

    def _attest(self, request: Request) -> Response:
        credentials = credentials_of(request.headers)
        return self._response(request, self._broker(request).attest(request.body, credentials))

    def _release(self, request: Request) -> Response:
        credentials = credentials_of(request.headers)
        return self._response(
            request, self._broker(request).resource(request.path, credentials, deadline=request.deadline)
        )

    def _broker(self, request: Request) -> KeyBroker:
        broker = self._brokers(request.tenant)
        request.correlation.tenant = request.tenant
        return broker

    def _ask_plugin(self, request: Request) -> Response:
        broker = self._brokers(request.tenant)
        credentials = credentials_of(request.headers)
        name, _, path = request.path.partition("/")
        answer = broker.plugin(name, path, request.query, request.body, credentials, deadline=request.deadline)
        return self._response(request, answer)

    def _response(self, request: Request, answer: Answer) -> Response:
        headers = answer.headers
        if answer.cookie:
            # CoCo's broker sets no attribute; these narrow where a client sends the cookie, which all clients honour.
            place = PREFIX if request.tenant == DEFAULT_TENANT else f"/t/{request.tenant}{PREFIX}"
            cookie = f"{SESSION_COOKIE}={answer.cookie}; Path={place}; {self._cookie_life}"
            headers = (*headers, (b"set-cookie", cookie.encode()))
        return Response(status=answer.status, body=answer.body, headers=headers, code=answer.code, denial=answer.denial)


def split_tenant(path: str) -> tuple[str, str] | None:
    """Return the tenant that an address names, and what follows; None for no such address."""
    if not path.startswith("/t/"):
        return DEFAULT_TENANT, path
    match = _TENANT.fullmatch(path)
    return None if match is None else (match[1], match[2])


def credentials_of(headers: Iterable[tuple[bytes, bytes]]) -> Credentials:
    """Return the session cookie and the bearer token; a malformed one is none."""
    cookie, bearer = "", ""
    for name, value in headers:
        if name == b"cookie":
            for pair in value.decode("latin-1").split(";"):
                key, _, text = pair.strip().partition("=")
                if key == SESSION_COOKIE and _COOKIE.fullmatch(text.strip('"')):
                    cookie = text.strip('"')
        elif name == b"authorization" and value[:7].lower() == b"bearer " and len(value) <= TOKEN_BYTES:
            bearer = value[7:].decode("latin-1").strip()
    return Credentials(cookie=cookie, bearer=bearer)
