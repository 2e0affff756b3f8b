"""What anybody may ask: health, and the release log. Nothing here tells a name, a path or a secret."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from cloister.trust.releaselog import PublicLog
from cloister.trust.web.exchange import Request, Response
from cloister.trust.web.gate import Limits, Route

LOG: Final = "/log/"
_LIMITS: Final = Limits(body_bytes=0, seconds=10, admitted=32)
_IMMUTABLE: Final = ((b"cache-control", b"public, max-age=31536000, immutable"),)
_CHANGING: Final = ((b"cache-control", b"no-cache"),)


class Checked(Protocol):
    """Something that says by an `Unavailable` that it cannot serve now: the store, or the whole service."""

    def check(self) -> None: ...


class PublicRoutes:
    """Routes without credentials.

    Args:
        service: asked for its health.
        log: what is public of the release log; None for no such routes.
    """

    def __init__(self, service: Checked, log: PublicLog | None = None) -> None:
        self._service = service
        self._log = log
        self._tiles = Route(name="log", method="GET", limits=_LIMITS, handle=self._serve, public=True)
        self.exact: Mapping[str, Route] = {
            "/healthz": Route(name="health", method="GET", limits=_LIMITS, handle=self._health, public=True),
        }

    def find(self, path: str) -> tuple[Route, str] | None:
        """Return route and rest of the path, or None."""
        if self._log is not None and path.startswith(LOG):
            return self._tiles, path[len(LOG) :]
        route = self.exact.get(path)
        return None if route is None else (route, "")

    def _health(self, _request: Request) -> Response:
        self._service.check()
        return Response(status=200, body=b'{"status":"ok"}')

    def _serve(self, request: Request) -> Response:
        if self._log is None:
            raise RuntimeError("there is no such route")
        file = self._log.get(request.path)
        headers = _IMMUTABLE if file.immutable else _CHANGING
        return Response(status=200, body=file.body, content_type=file.content_type.encode(), headers=headers)
