"""What anybody may ask: health. Nothing here tells a name, a path or a secret."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cloister.trust.store.database import Store
from cloister.trust.web.exchange import Request, Response
from cloister.trust.web.gate import Limits, Route

_LIMITS: Final = Limits(body_bytes=0, seconds=10, admitted=32)


class PublicRoutes:
    """Routes without credentials.

    Args:
        store: asked for its health.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.exact: Mapping[str, Route] = {
            "/healthz": Route(name="health", method="GET", limits=_LIMITS, handle=self._health, public=True),
        }

    def _health(self, _request: Request) -> Response:
        self._store.check()
        return Response(status=200, body=b'{"status":"ok"}')
