"""What anybody may ask: health. Nothing here tells a name, a path or a secret."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from cloister.trust.web.exchange import Request, Response
from cloister.trust.web.gate import Limits, Route

_LIMITS: Final = Limits(body_bytes=0, seconds=10, admitted=32)


class Checked(Protocol):
    """Something that says by an `Unavailable` that it cannot serve now: the store, or the whole service."""

    def check(self) -> None: ...


class PublicRoutes:
    """Routes without credentials.

    Args:
        service: asked for its health.
    """

    def __init__(self, service: Checked) -> None:
        self._service = service
        self.exact: Mapping[str, Route] = {
            "/healthz": Route(name="health", method="GET", limits=_LIMITS, handle=self._health, public=True),
        }

    def _health(self, _request: Request) -> Response:
        self._service.check()
        return Response(status=200, body=b'{"status":"ok"}')
