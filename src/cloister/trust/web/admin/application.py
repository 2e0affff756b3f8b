"""The administration API as an ASGI application: routes, the guard in front of them, errors, the description.

To be mounted below `/admin/v1`, or run alone in tests. Everything that blocks runs in threads.
"""

from __future__ import annotations

from typing import Any

from litestar import Litestar, Response, Router
from litestar.datastructures import State
from litestar.exceptions import HTTPException

from cloister.errors import CloisterError
from cloister.protocol.admin.base import PREFIX, REQUEST_BYTES
from cloister.trust.access import Permission
from cloister.trust.administration import Administration
from cloister.trust.web.admin import access, policies, records, references, resources
from cloister.trust.web.admin.description import DOCUMENT, description_route
from cloister.trust.web.admin.entrance import enter, state_of
from cloister.trust.web.admin.problems import answer_error, answer_http

ROUTES = (*resources.ROUTES, *policies.ROUTES, *references.ROUTES, *access.ROUTES, *records.ROUTES, description_route)


def admin_application(administration: Administration) -> Litestar:
    """Return the application.

    Args:
        administration: what it gives access to, by whom.
    """
    return Litestar(
        route_handlers=[Router(PREFIX, route_handlers=list(ROUTES), guards=[enter])],
        state=State({**state_of(administration), DOCUMENT: ROUTES}),
        exception_handlers={CloisterError: answer_error, HTTPException: answer_http},
        openapi_config=None,
        request_max_body_size=REQUEST_BYTES,
        after_request=_keep_out_of_caches,
        logging_config=None,
        debug=False,
    )


def _keep_out_of_caches(response: Response[Any]) -> Response[Any]:  # Any: whatever body
    response.headers["cache-control"] = "no-store"
    return response


def routes_of(application: Litestar) -> tuple[tuple[str, str, Permission], ...]:
    """Return method, path and permission of every route, sorted by path."""
    found: dict[tuple[str, str], Permission] = {}
    for route in application.routes:
        for handler in getattr(route, "route_handlers", ()):
            if "permission" not in handler.opt:
                continue
            for method in handler.http_methods:
                if method != "OPTIONS":
                    found[(route.path_format, str(method))] = handler.opt["permission"]
    return tuple((method, path, permission) for (path, method), permission in sorted(found.items()))
