"""The ASGI application: from a path to its route or mounted application, through the gate, to an answer and a log line.

What no route and no mount knows is 404, another method is 405, and a fault of our own is 503 with its place in the
log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cloister.errors import CloisterError, RequestRefused, Unavailable
from cloister.protocol.kbs import PREFIX
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.trust.journal import Journal
from cloister.trust.readiness import Readiness
from cloister.trust.settings import TrustSettings
from cloister.trust.telemetry import Telemetry
from cloister.trust.tracing import Correlation, Observed, correlate
from cloister.trust.web.coco import FindsRoutes
from cloister.trust.web.exchange import Receive, Request, Response, Scope, Send, error_response, send_response
from cloister.trust.web.gate import Gate, Limits, RateLimit, Route, Watched, bounded
from cloister.trust.web.kbs import Brokers, GuestRoutes
from cloister.trust.web.public import NO_FILES, File, Healthy, PublicRoutes
from cloister.trust.webhook import Webhook

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
        observe: told of every request that was answered.
        besides: routes that are told from the guests' by method, too; None for none.
    """

    def __init__(
        self,
        guests: GuestRoutes,
        public: PublicRoutes,
        mounts: Sequence[Mount],
        gate: Gate,
        observe: Callable[[Observed], None],
        besides: FindsRoutes | None = None,
    ) -> None:
        self._guests = guests
        self._public = public
        self._besides = besides
        self._mounts = tuple((mount.prefix, f"{mount.prefix}/", mount, mount.route) for mount in mounts)
        self._gate = gate
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope; anything but HTTP is ignored."""
        if scope["type"] != "http":
            return
        correlation, begun = correlate(scope["headers"]), time.monotonic()
        path: str = scope["path"]
        for prefix, below, mount, route in self._mounts:
            if path == prefix or path.startswith(below):
                seen = await self._mounted(mount, route, scope, receive, send, correlation)
                break
        else:
            name, response, fault = await self._answer(scope, receive, path, correlation)
            await send_response(send, response, correlation)
            seen = _seen(name, response, correlation, fault)
        seen.seconds = time.monotonic() - begun
        self._observe(seen)

    @property
    def admitted(self) -> int:
        """Requests of guests that are worked on or wait."""
        return self._gate.admitted

    async def drain(self, seconds: float) -> bool:
        """Admit nothing more and wait for what is in flight; return whether all of it ended."""
        return await self._gate.drain(seconds)

    def close(self) -> None:
        """Stop the threads; requests that wait are dropped."""
        self._gate.close()

    def _find(self, method: str, path: str) -> tuple[Route, str, str] | None:
        found = self._besides.find(method, path) if self._besides is not None else None
        if found is not None:
            return found
        public = self._public.find(path)
        return self._guests.find(path) if public is None else (*public, DEFAULT_TENANT)

    async def _answer(
        self, scope: Scope, receive: Receive, path: str, correlation: Correlation
    ) -> tuple[str, Response, BaseException | None]:
        found = self._find(scope["method"], path)
        if found is None:
            error = RequestRefused(
                "trust.request.path", "no such address", hint=f"addresses of guests begin with {PREFIX}/"
            )
            return _UNKNOWN, error_response(error), None
        route, rest, tenant = found
        if scope["method"] not in (route.method, route.also or route.method):
            wrong = RequestRefused(
                "trust.request.method", "no such method", expected=route.method, actual=str(scope["method"])[:20]
            )
            return route.name, error_response(wrong, headers=((b"allow", route.method.encode()),)), None
        try:
            self._gate.enter(route, _client(scope))
        except CloisterError as err:
            return route.name, error_response(err, stage=route.stage), None
        try:
            return route.name, await self._gate.work(route, scope, receive, rest, tenant, correlation), None
        except CloisterError as err:
            return route.name, error_response(err, stage=route.stage), None
        except Exception as err:  # noqa: BLE001  the process edge: log, refuse, go on
            return route.name, error_response(_fault(), stage=route.stage), err
        finally:
            self._gate.leave(route)

    async def _mounted(
        self, mount: Mount, route: Route, scope: Scope, receive: Receive, send: Send, correlation: Correlation
    ) -> Observed:
        """Run a mounted application; when it raises after it has begun an answer, the connection just ends."""
        watched = Watched(send, correlation)
        scope["cloister.correlation"] = correlation
        fault: BaseException | None = None
        entered = False
        try:
            self._gate.enter(route, _client(scope))
            entered = True
            async with asyncio.timeout(mount.limits.seconds):
                await mount.application(scope, bounded(receive, mount.limits.body_bytes), watched)
            return Observed(route=mount.name, status=watched.status, correlation=correlation)
        except CloisterError as err:
            response = error_response(err)
        except TimeoutError:
            response = error_response(
                Unavailable("trust.request.timeout", "the request took too long", hint="try again later")
            )
        except Exception as err:  # noqa: BLE001  the process edge: log, refuse, go on
            response, fault = error_response(_fault()), err
        finally:
            if entered:
                self._gate.leave(route)
        if not watched.status:
            await send_response(send, response, correlation)
        return _seen(mount.name, response, correlation, fault)


def trust_application(
    brokers: Brokers,
    service: Healthy,
    settings: TrustSettings,
    journal: Journal,
    *,
    mounts: Sequence[Mount] = (),
    telemetry: Telemetry | None = None,
    readiness: Readiness | None = None,
    webhook: Webhook | None = None,
    files: Mapping[str, File] = NO_FILES,
    besides: FindsRoutes | None = None,
) -> TrustApp:
    """Return the application over the roles.

    Args:
        brokers: the key broker of a tenant.
        service: asked for its health.
        settings: limits.
        journal: log.
        mounts: further applications.
        telemetry: numbers; made when absent.
        readiness: what `/readyz` asks; only the store when absent.
        webhook: told of denied attestations.
        files: further public answers, by prefix: the release log, key sets.
        besides: routes that are told from the guests' by method, too: CoCo's administration.
    """
    rate = RateLimit(settings.client_rate, max(1.0, 2 * settings.client_rate))
    gate = Gate(threads=settings.concurrency, admitted=settings.queue, rate=rate)
    telemetry = telemetry or Telemetry(tenants=settings.metrics_tenants)
    telemetry.gauge("requests_admitted", "Requests of guests worked on or waiting.", lambda: gate.admitted)
    metrics = None if settings.metrics_listen else telemetry.render
    public = PublicRoutes(settings, health=service.check, readiness=readiness, metrics=metrics, files=files)

    def observe(seen: Observed) -> None:
        journal.observed(seen)
        telemetry.observed(seen)
        if webhook is not None:
            webhook.observed(seen)

    return TrustApp(GuestRoutes(brokers, settings), public, mounts, gate, observe, besides)


def metrics_application(telemetry: Telemetry) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """Return an application that serves `/metrics` and nothing else, for an address of its own."""

    async def application(scope: Scope, _receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        response = Response(status=404, body=b"{}")
        if scope["path"] == "/metrics" and scope["method"] == "GET":
            body, content_type = await asyncio.to_thread(telemetry.render)
            response = Response(status=200, body=body, content_type=content_type)
        await send_response(send, response, correlate(scope["headers"]))

    return application


def _seen(route: str, response: Response, correlation: Correlation, fault: BaseException | None) -> Observed:
    return Observed(
        route=route,
        status=response.status,
        code=response.code,
        denial=response.denial,
        correlation=correlation,
        fault=fault,
    )


def _fault() -> Unavailable:
    return Unavailable("trust.internal", "the service failed", hint="its log names the place")


def _client(scope: Scope) -> str:
    client: Any = scope.get("client")  # Any: as ASGI defines it
    return str(client[0]) if client else ""


def _not_called(_request: Request) -> Response:
    raise RuntimeError("a mounted application answers by itself")
