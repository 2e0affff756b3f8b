"""What anybody may ask: health, readiness, metrics, and files such as the release log and key sets.

Nothing here tells a guest's name, a path or a secret. `/healthz` says that the process is alive and its store answers;
`/readyz` asks every part that a release needs, and says which one is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

import msgspec

from cloister.trust.readiness import Readiness
from cloister.trust.releaselog import PublicFile
from cloister.trust.settings import TrustSettings
from cloister.trust.web.exchange import Request, Response
from cloister.trust.web.gate import Limits, Route

File = Callable[[str], Response]

JWKS: Final = "/.well-known/jwks.json"
LOG: Final = "/log/"
NO_FILES: Final[Mapping[str, File]] = {}
_LIMITS: Final = Limits(body_bytes=0, seconds=10, admitted=32)
_IMMUTABLE: Final = ((b"cache-control", b"public, max-age=31536000, immutable"),)
_CHANGING: Final = ((b"cache-control", b"no-cache"),)


class Healthy(Protocol):
    """Something that says by an `Unavailable` that it cannot serve now: the store, or the whole service."""

    def check(self) -> None: ...


class PublicRoutes:
    """Routes without credentials.

    Args:
        settings: of which what gives protection up is told to everybody.
        health: raises when the service cannot serve.
        readiness: asked by `/readyz`; without it that is the same as `/healthz`.
        metrics: returns body and content type; None where they are served elsewhere.
        files: what is below a prefix that ends in `/`, or at an address; gets the rest of the path.
    """

    def __init__(
        self,
        settings: TrustSettings,
        *,
        health: Callable[[], None],
        readiness: Readiness | None = None,
        metrics: Callable[[], tuple[bytes, bytes]] | None = None,
        files: Mapping[str, File] = NO_FILES,
    ) -> None:
        self._health = health
        self._readiness = readiness
        self._well = b'{"status":"ok","insecure_http":true}' if settings.insecure_http else b'{"status":"ok"}'
        self._exact = {"/healthz": _route("health", self._healthy), "/readyz": _route("ready", self._ready)}
        if metrics is not None:
            self._exact["/metrics"] = metrics_route(metrics)
        self._exact |= {place: _file(place, answer) for place, answer in files.items() if not place.endswith("/")}
        self._below = [(place, _file(place, answer)) for place, answer in files.items() if place.endswith("/")]

    def find(self, path: str) -> tuple[Route, str] | None:
        """Return route and rest of the path, or None."""
        route = self._exact.get(path)
        if route is not None:
            return route, ""
        return next(((below, path[len(place) :]) for place, below in self._below if path.startswith(place)), None)

    def _healthy(self, _request: Request) -> Response:
        self._health()
        return Response(status=200, body=self._well)

    def _ready(self, request: Request) -> Response:
        if self._readiness is None:
            return self._healthy(request)
        checks = self._readiness.ask()
        wrong = next((check for check in checks if check.code), None)
        body = {
            "status": "ok" if wrong is None else "not ready",
            "checks": {check.name: "ok" if not check.code else f"{check.reason} ({check.code})" for check in checks},
        }
        return Response(
            status=200 if wrong is None else 503, body=msgspec.json.encode(body), code=wrong.code if wrong else ""
        )


def metrics_route(metrics: Callable[[], tuple[bytes, bytes]]) -> Route:
    """Return the route that answers with metrics."""

    def answer(_request: Request) -> Response:
        body, content_type = metrics()
        return Response(status=200, body=body, content_type=content_type)

    return _route("metrics", answer)


def log_response(file: PublicFile) -> Response:
    """Return what is public of the release log; a tile never changes, a checkpoint does."""
    headers = _IMMUTABLE if file.immutable else _CHANGING
    return Response(status=200, body=file.body, content_type=file.content_type.encode(), headers=headers)


def _route(name: str, handle: Callable[[Request], Response]) -> Route:
    return Route(name=name, method="GET", limits=_LIMITS, handle=handle, public=True)


def _file(place: str, answer: File) -> Route:
    return _route("jwks" if "jwk" in place else "log", lambda request: answer(request.path))
