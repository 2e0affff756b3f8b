"""Admission: how many requests are worked on and wait, for how long, and how large they may be.

Every route has its limits. Requests are worked on by a few threads; those that wait are bounded, in all and per
route, and one too many is turned away at once with 503 instead of delaying all. Those that begin a handshake never get
the last quarter of the places, so that handshakes that have begun can end. A request that is not done in time is
answered 503, and what its thread still does cannot release anything: the broker checks the same deadline.

A limit per client address turns one caller's excess away with 429. It is off by default: behind a proxy or NAT all
guests have one address.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Final

from cloister.errors import Refused, Unavailable
from cloister.trust.tracing import Correlation, working
from cloister.trust.web.exchange import (
    Receive,
    Request,
    Response,
    Scope,
    Send,
    correlation_headers,
    read_body,
    too_long,
)

_CALLERS: Final = 4096  # remembered by a rate limit; the one not seen for longest is forgotten
_PUBLIC_THREADS: Final = 2
_LATER: Final = "try again later"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one route.

    Attributes:
        body_bytes: longest body.
        seconds: time from admission to answer.
        admitted: requests of this route admitted at once.
    """

    body_bytes: int
    seconds: float
    admitted: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Route:
    """One thing that can be asked.

    Attributes:
        name: in logs and metrics; from a closed set.
        method: the method it has.
        also: another one, empty for none.
        limits: its limits.
        handle: works on a request, in a thread.
        stage: in error bodies: `auth`, `attest`, `resource` or empty.
        public: health and the like, which do not wait behind guests.
    """

    name: str
    method: str
    limits: Limits
    handle: Callable[[Request], Response]
    also: str = ""
    stage: str = ""
    public: bool = False


class RateLimit:
    """A token bucket per caller.

    Args:
        rate: requests per second that a caller may make for ever; 0 for no limit.
        burst: requests that it may make at once.
        clock: monotonic seconds.
    """

    def __init__(self, rate: float, burst: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> None:
        """Count one request of `caller`.

        Raises:
            Refused: too many (`trust.request.rate`), answered 429.
        """
        if not self._rate:
            return
        now = self._clock()
        left, seen = self._buckets.pop(caller, (self._burst, now))
        left = min(self._burst, left + (now - seen) * self._rate)
        allowed = left >= 1
        self._buckets[caller] = (left - 1 if allowed else left, now)
        if len(self._buckets) > _CALLERS:
            self._buckets.popitem(last=False)
        if not allowed:
            raise Refused("trust.request.rate", "too many requests from this client", hint=_LATER)


class Gate:
    """Admits requests and works on them.

    Args:
        threads: requests of guests worked on at once.
        admitted: requests of guests admitted at once, over all routes.
        rate: limit per client address.
    """

    def __init__(self, *, threads: int, admitted: int, rate: RateLimit) -> None:
        self._most = admitted
        self._rate = rate
        self._guests = _Threads(threads, "trust-request")
        self._public = _Threads(_PUBLIC_THREADS, "trust-public")
        self._admitted = 0
        self._waiting = 0
        self._of_route: dict[str, int] = {}
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def admitted(self) -> int:
        """Requests of guests that are worked on or wait."""
        return self._waiting

    def enter(self, route: Route, client: str) -> None:
        """Admit one request; `leave` must follow.

        Raises:
            Unavailable: shutting down, or too many (`trust.request.draining`, `trust.request.overload`).
            Refused: too many from this client (`trust.request.rate`).
        """
        if self._draining and not route.public:
            raise Unavailable("trust.request.draining", "the service is shutting down", hint=_LATER)
        here = self._of_route.get(route.name, 0)
        if here >= route.limits.admitted or (not route.public and self._waiting >= self._most):
            raise Unavailable("trust.request.overload", "too many requests", hint=_LATER)
        if not route.public:
            self._rate.take(client)
            self._waiting += 1
        self._of_route[route.name] = here + 1
        self._admitted += 1
        self._idle.clear()

    def leave(self, route: Route) -> None:
        """Give the place of one request back."""
        self._of_route[route.name] -= 1
        self._waiting -= not route.public
        self._admitted -= 1
        if not self._admitted:
            self._idle.set()

    async def work(
        self, route: Route, scope: Scope, receive: Receive, path: str, tenant: str, correlation: Correlation
    ) -> Response:
        """Read an admitted request and work on it, within its limits.

        Raises:
            CloisterError: what reading or working on it raised; `trust.request.timeout` when it took too long.
        """
        limits = route.limits
        deadline = time.monotonic() + limits.seconds
        try:
            async with asyncio.timeout(limits.seconds):
                body = await read_body(receive, limits.body_bytes) if scope["method"] == "POST" else b""
                request = Request(
                    path=path,
                    query=scope.get("query_string", b"").decode("latin-1"),
                    tenant=tenant,
                    headers=scope["headers"],
                    body=body,
                    deadline=deadline,
                    correlation=correlation,
                )
                return await (self._public if route.public else self._guests).work(route, request)
        except TimeoutError as err:
            raise Unavailable("trust.request.timeout", "the request took too long", hint=_LATER) from err

    async def drain(self, seconds: float) -> bool:
        """Admit nothing more and wait for what is in flight; return whether all of it ended."""
        self._draining = True
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Stop the threads; requests that wait are dropped."""
        for threads in (self._guests, self._public):
            threads.close()


class _Threads:
    """Threads that work on requests, started with the first one.

    Not an executor of the standard library: of what that does for each call, most is for callers that are not here,
    and it costs a tenth of a handshake.

    Args:
        count: how many.
        name: prefix of their names.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._started = 0
        self._closed = False
        self._waiting: SimpleQueue[tuple[Route, Request, asyncio.Future[Response]] | None] = SimpleQueue()

    def work(self, route: Route, request: Request) -> asyncio.Future[Response]:
        """Return what the route's handler will answer; call it in the event loop's thread."""
        answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        if self._closed:
            raise Unavailable("trust.request.draining", "the service is shutting down", hint=_LATER)
        self._waiting.put((route, request, answer))
        if self._started < self._count:
            self._started += 1
            threading.Thread(target=self._run, name=f"{self._name}-{self._started}", daemon=True).start()
        return answer

    def close(self) -> None:
        """End the threads, each after the request it works on; those that wait are dropped."""
        self._closed = True
        with suppress(Empty):
            while True:
                self._waiting.get_nowait()
        for _ in range(self._started):
            self._waiting.put(None)

    def _run(self) -> None:
        while (taken := self._waiting.get()) is not None:
            route, request, answer = taken
            if answer.done():  # its time passed while it waited
                continue
            response: Response | None = None
            fault: BaseException | None = None
            try:
                with working(request.correlation, route.name):
                    response = route.handle(request)
            except BaseException as err:  # noqa: BLE001  handed to the event loop, which raises it
                fault = err
            with suppress(RuntimeError):  # the event loop has ended
                answer.get_loop().call_soon_threadsafe(_settle, answer, response, fault)


def _settle(answer: asyncio.Future[Response], response: Response | None, fault: BaseException | None) -> None:
    if answer.done():  # its time has passed
        return
    if response is not None:
        answer.set_result(response)
    elif fault is not None:
        answer.set_exception(fault)


def bounded(receive: Receive, most: int) -> Receive:
    """Return `receive` for a mounted application, refusing a body longer than `most` bytes."""
    length = 0

    async def counted() -> MutableMapping[str, Any]:  # Any: as ASGI defines it
        nonlocal length
        message = await receive()
        length += len(message.get("body", b""))
        if length > most:
            raise too_long(most)
        return message

    return counted


class Watched:
    """A `send` for a mounted application that remembers the status and adds the correlation id."""

    __slots__ = ("_headers", "_send", "status")

    def __init__(self, send: Send, correlation: Correlation) -> None:
        self._send = send
        self._headers = correlation_headers(correlation)
        self.status = 0

    async def __call__(self, message: MutableMapping[str, Any]) -> None:  # Any: as ASGI defines it
        """Pass one message on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *self._headers]}
        await self._send(message)
