"""HTTP routes of the trust service, as a thin ASGI application: admission, limits, deadlines, nothing else.

    POST /kbs/v0/auth   POST /kbs/v0/attest   GET /kbs/v0/resource/{repository}/{type}/{tag}   GET /healthz

Bodies and headers are bounded before they are read. Requests are worked on by a few threads; those that wait are
bounded too, and one too many is turned away with 503 instead of delaying all. A request that is not done in time is
answered 503, and what its thread still does cannot release anything: the broker checks the same deadline.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from cloister.crypto.jwt import TOKEN_BYTES
from cloister.errors import CloisterError, FormatRefused, RequestRefused, Unavailable
from cloister.protocol.kbs import PREFIX, SESSION_COOKIE
from cloister.trust.journal import Journal
from cloister.trust.keybroker import Answer, Credentials, KeyBroker, error_answer
from cloister.trust.settings import TrustSettings
from cloister.trust.store.database import Store
from cloister.trust.store.sessions import COOKIE_CHARS
from cloister.wire.limits import KBS_REQUEST_BYTES

Scope = MutableMapping[str, Any]  # Any: as ASGI defines it
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_AUTH: Final = f"{PREFIX}/auth"
_ATTEST: Final = f"{PREFIX}/attest"
_RESOURCE: Final = f"{PREFIX}/resource/"
_HEALTH: Final = "/healthz"
_METHODS: Final = {"auth": "POST", "attest": "POST", "resource": "GET", "health": "GET"}
_COOKIE: Final = re.compile(rf"[0-9a-f]{{{COOKIE_CHARS}}}")
_RETRY_SECONDS: Final = b"1"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class _Request:
    """One request, read within its limits."""

    route: str
    path: str
    body: bytes
    credentials: Credentials
    deadline: float


class TrustApp:
    """The ASGI application.

    Args:
        broker: answers guests.
        store: asked for its health.
        settings: limits.
        journal: log.
    """

    def __init__(self, broker: KeyBroker, store: Store, settings: TrustSettings, journal: Journal) -> None:
        self._broker = broker
        self._store = store
        self._settings = settings
        self._journal = journal
        self._workers = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="trust-request")
        self._admitted = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope; anything but HTTP is ignored."""
        if scope["type"] != "http":
            return
        identity, begun = secrets.token_hex(4), time.monotonic()
        route = _route(scope["path"])
        answer = await self._answer(scope, receive, route, identity)
        await _send(send, answer, self._settings.session_seconds)
        self._journal.answered(
            request=identity,
            route=route or "unknown",
            status=answer.status,
            code=answer.code,
            denial=answer.denial,
            ms=1000 * (time.monotonic() - begun),
        )

    async def drain(self, seconds: float) -> bool:
        """Admit nothing more and wait for what is in flight; return whether all of it ended."""
        self._draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Stop the threads; requests that wait are dropped."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, scope: Scope, receive: Receive, route: str, identity: str) -> Answer:
        try:
            self._admit()
        except Unavailable as err:
            return error_answer(err, stage=route)
        try:
            return await self._work(scope, receive, route)
        except CloisterError as err:
            return error_answer(err, stage=route)
        except Exception as err:  # noqa: BLE001  the process edge: log, refuse, go on
            self._journal.failed(request=identity, route=route or "unknown", error=err)
            fault = Unavailable("trust.internal", "the service failed", hint="its log names the place")
            return error_answer(fault, stage=route)
        finally:
            self._admitted -= 1
            if not self._admitted:
                self._idle.set()

    def _admit(self) -> None:
        if self._draining:
            raise Unavailable("trust.request.draining", "the service is shutting down", hint="try again later")
        if self._admitted >= self._settings.queue:
            raise Unavailable("trust.request.overload", "too many requests", hint="try again later")
        self._admitted += 1
        self._idle.clear()

    async def _work(self, scope: Scope, receive: Receive, route: str) -> Answer:
        if not route:
            raise RequestRefused("trust.request.path", "no such address", hint=f"addresses begin with {PREFIX}/")
        if scope["method"] != _METHODS[route]:
            raise RequestRefused(
                "trust.request.method", "no such method", expected=_METHODS[route], actual=str(scope["method"])[:20]
            )
        deadline = time.monotonic() + self._settings.request_seconds
        late = Unavailable("trust.request.timeout", "the request took too long", hint="try again later")
        try:
            body = await asyncio.wait_for(_read_body(scope, receive), self._settings.request_seconds)
        except TimeoutError as err:
            raise late from err
        request = _Request(
            route=route,
            path=scope["path"],
            body=body,
            credentials=_credentials(scope["headers"]),
            deadline=deadline,
        )
        future = asyncio.get_running_loop().run_in_executor(self._workers, self._handle, request)
        try:
            return await asyncio.wait_for(future, max(0.0, deadline - time.monotonic()))
        except TimeoutError as err:
            raise late from err

    def _handle(self, request: _Request) -> Answer:
        if request.route == "auth":
            return self._broker.auth(request.body)
        if request.route == "attest":
            return self._broker.attest(request.body, request.credentials)
        if request.route == "resource":
            path = request.path.removeprefix(_RESOURCE)
            return self._broker.resource(path, request.credentials, deadline=request.deadline)
        self._store.check()
        return Answer(status=200, body=b'{"status":"ok"}')


def _route(path: str) -> str:
    if path.startswith(_RESOURCE):
        return "resource"
    return {_AUTH: "auth", _ATTEST: "attest", _HEALTH: "health"}.get(path, "")


def _credentials(headers: Iterable[tuple[bytes, bytes]]) -> Credentials:
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


async def _read_body(scope: Scope, receive: Receive) -> bytes:
    if scope["method"] != "POST":
        return b""
    chunks, length, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise RequestRefused("trust.request.cut", "the request ended early")
        chunk = message.get("body", b"")
        length += len(chunk)
        if length > KBS_REQUEST_BYTES:
            raise FormatRefused(
                "protocol.kbs.too_long", "message too long", expected=f"at most {KBS_REQUEST_BYTES} bytes"
            )
        chunks.append(chunk)
        more = message.get("more_body", False)
    return b"".join(chunks)


async def _send(send: Send, answer: Answer, session_seconds: float) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(answer.body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    if answer.cookie:
        # CoCo's broker sets no attribute; these narrow where a client sends the cookie, which all clients honour.
        life = f"Path={PREFIX}; Max-Age={int(session_seconds)}; HttpOnly; Secure; SameSite=Strict"
        headers.append((b"set-cookie", f"{SESSION_COOKIE}={answer.cookie}; {life}".encode()))
    if answer.status == 503:
        headers.append((b"retry-after", _RETRY_SECONDS))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
