"""The ASGI application: from a path to its route or mounted application, through the gate, to an answer and a log line.

What no route and no mount knows is 404, another method is 405, and a fault of our own is 503 with its place in the
log.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cloister.errors import CloisterError, RequestRefused, Unavailable
from cloister.protocol.kbs import PREFIX
from cloister.trust.journal import Journal
from cloister.trust.releaselog import PublicLog
from cloister.trust.settings import TrustSettings
from cloister.trust.web.exchange import Receive, Request, Response, Scope, Send, error_response, send_response
from cloister.trust.web.gate import Gate, Limits, RateLimit, Route, Watched, bounded
from cloister.trust.web.kbs import DEFAULT_TENANT, Brokers, GuestRoutes
from cloister.trust.web.public import Checked, PublicRoutes

_UNKNOWN: Final = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mount:
    """Another ASGI application below a prefix. It sees whole paths and does its own authentication.

    Attributes:
        prefix: such as `/admin/v1`; what equals it or continues it after a `/` is the application's.
        name: in logs and metrics.
        limits: for any of its requests.
        application: ASGI 3 application for scope type `http`.
    """

    prefix: str
    name: str
    limits: Limits
    application: Callable[[Scope, Receive, Send], Awaitable[None]]

    @property
    def route(self) -> Route:
        """The mount as the gate and the log see it."""
        return Route(name=self.name, method="", limits=self.limits, handle=_not_called)


class TrustApp:
    """The ASGI application of the trust service.

    Args:
        guests: the guests' routes.
        public: routes without credentials.
        mounts: further applications.
        gate: admits.
        journal: log.
    """

    def __init__(
        self, guests: GuestRoutes, public: PublicRoutes, mounts: Sequence[Mount], gate: Gate, journal: Journal
    ) -> None:
        self._guests = guests
        self._public = public
        self._mounts = tuple((mount.prefix, f"{mount.prefix}/", mount, mount.route) for mount in mounts)
        self._gate = gate
        self._journal = journal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope; anything but HTTP is ignored."""
        if scope["type"] != "http":
            return
        identity, begun = secrets.token_hex(8), time.monotonic()
        path: str = scope["path"]
        for prefix, below, mount, route in self._mounts:
            if path == prefix or path.startswith(below):
                name, (status, code, denial) = (
                    mount.name,
                    await self._mounted(mount, route, scope, receive, send, identity),
                )
                break
        else:
            name, response = await self._answer(scope, receive, path, identity)
            await send_response(send, response, identity)
            status, code, denial = response.status, response.code, response.denial
        self._journal.answered(
            request=identity,
            route=name,
            status=status,
            code=code,
            denial=denial,
            ms=1000 * (time.monotonic() - begun),
        )

    async def drain(self, seconds: float) -> bool:
        """Admit nothing more and wait for what is in flight; return whether all of it ended."""
        return await self._gate.drain(seconds)

    def close(self) -> None:
        """Stop the threads; requests that wait are dropped."""
        self._gate.close()

    def _find(self, path: str) -> tuple[Route, str, str] | None:
        public = self._public.find(path)
        return (*public, DEFAULT_TENANT) if public is not None else self._guests.find(path)

    async def _answer(self, scope: Scope, receive: Receive, path: str, identity: str) -> tuple[str, Response]:
        found = self._find(path)
        if found is None:
            error = RequestRefused(
                "trust.request.path", "no such address", hint=f"addresses of guests begin with {PREFIX}/"
            )
            return _UNKNOWN, error_response(error)
        route, rest, tenant = found
        if scope["method"] not in (route.method, route.also or route.method):
            wrong = RequestRefused(
                "trust.request.method", "no such method", expected=route.method, actual=str(scope["method"])[:20]
            )
            return route.name, error_response(wrong, headers=((b"allow", route.method.encode()),))
        try:
            self._gate.enter(route, _client(scope))
        except CloisterError as err:
            return route.name, error_response(err, stage=route.stage)
        try:
            return route.name, await self._gate.work(route, scope, receive, rest, tenant, identity)
        except CloisterError as err:
            return route.name, error_response(err, stage=route.stage)
        except Exception as err:  # noqa: BLE001  the process edge: log, refuse, go on
            return route.name, self._fault(route, identity, err)
        finally:
            self._gate.leave(route)

    async def _mounted(
        self, mount: Mount, route: Route, scope: Scope, receive: Receive, send: Send, identity: str
    ) -> tuple[int, str, str]:
        """Run a mounted application; return status and code for the log."""
        watched = Watched(send, identity)
        try:
            self._gate.enter(route, _client(scope))
        except CloisterError as err:
            return await _sent(send, error_response(err), identity)
        try:
            async with asyncio.timeout(mount.limits.seconds):
                await mount.application(scope, bounded(receive, mount.limits.body_bytes), watched)
        except CloisterError as err:
            return await self._ended(watched, send, error_response(err), identity)
        except TimeoutError:
            late = Unavailable("trust.request.timeout", "the request took too long", hint="try again later")
            return await self._ended(watched, send, error_response(late), identity)
        except Exception as err:  # noqa: BLE001  the process edge: log, refuse, go on
            return await self._ended(watched, send, self._fault(route, identity, err), identity)
        finally:
            self._gate.leave(route)
        return watched.status, "", ""

    async def _ended(self, watched: Watched, send: Send, response: Response, identity: str) -> tuple[int, str, str]:
        """Answer for a mounted application that raised; when it has begun an answer, the connection just ends."""
        if not watched.status:
            return await _sent(send, response, identity)
        return watched.status, response.code, ""

    def _fault(self, route: Route, identity: str, err: Exception) -> Response:
        self._journal.failed(request=identity, route=route.name, error=err)
        fault = Unavailable("trust.internal", "the service failed", hint="its log names the place")
        return error_response(fault, stage=route.stage)


def trust_application(
    brokers: Brokers,
    service: Checked,
    settings: TrustSettings,
    journal: Journal,
    *,
    mounts: Sequence[Mount] = (),
    log: PublicLog | None = None,
) -> TrustApp:
    """Return the application over the roles.

    Args:
        brokers: the key broker of a tenant.
        service: asked for its health.
        settings: limits.
        journal: log.
        mounts: further applications.
        log: what is public of the release log.
    """
    rate = RateLimit(settings.client_rate, max(1.0, 2 * settings.client_rate))
    gate = Gate(threads=settings.concurrency, admitted=settings.queue, rate=rate)
    return TrustApp(GuestRoutes(brokers, settings), PublicRoutes(service, log), mounts, gate, journal)


async def _sent(send: Send, response: Response, identity: str) -> tuple[int, str, str]:
    await send_response(send, response, identity)
    return response.status, response.code, response.denial


def _client(scope: Scope) -> str:
    client: Any = scope.get("client")  # Any: as ASGI defines it
    return str(client[0]) if client else ""


def _not_called(_request: Request) -> Response:
    raise RuntimeError("a mounted application answers by itself")
