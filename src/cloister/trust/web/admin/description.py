"""The description of the interface, OpenAPI 3.1, made from its routes and served by one of them.

The application that serves requests has none of the framework's own routes for descriptions: they would ask nobody for
a token. The document is made from the same routes by an application that serves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from litestar import Litestar, Request, Router
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components, SecurityScheme

from cloister import __version__
from cloister.protocol.admin.base import PREFIX
from cloister.trust.access import Permission
from cloister.trust.web.admin.entrance import Admitted, reading

DOCUMENT: Final = "document"  # where the application keeps the function that makes it
_WORDS: Final = (
    "Every route takes `Authorization: Bearer cat_..` and names the permission it needs. Errors are problem details "
    "(RFC 9457) with Cloister's code. Of a tenant that a token is not for, nothing is told, not even whether it exists."
)


@cache
def openapi_document(routes: tuple[HTTPRouteHandler, ...]) -> dict[str, Any]:  # Any: JSON
    """Return the OpenAPI document of routes below the prefix. Made once: callers leave it as it is."""
    application = Litestar(
        route_handlers=[Router(PREFIX, route_handlers=list(routes))],
        openapi_config=OpenAPIConfig(
            title="Cloister trust service: administration",
            version=__version__,
            description=_WORDS,
            components=Components(
                security_schemes={"token": SecurityScheme(type="http", scheme="bearer", description="`cat_..`")}
            ),
            security=[{"token": []}],
        ),
        logging_config=None,
    )
    document: dict[str, Any] = application.openapi_schema.to_schema()  # Any: JSON
    closed = {_schema_of(body) for body in _bodies(document)}
    for name in closed:
        document["components"]["schemas"][name]["additionalProperties"] = False
    return document


@reading("/openapi.json", Permission.STATUS_READ, "This description")
def description_route(office: Admitted, request: Request[Any, Any, Any]) -> dict[str, Any]:  # Any: without user; JSON
    """Return the OpenAPI document."""
    del office
    return openapi_document(request.app.state[DOCUMENT])


def _bodies(document: dict[str, Any]) -> Sequence[dict[str, Any]]:  # Any: JSON
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    return [operation["requestBody"] for operation in operations if "requestBody" in operation]


def _schema_of(body: dict[str, Any]) -> str:  # Any: JSON
    reference: str = body["content"]["application/json"]["schema"]["$ref"]
    return reference.rpartition("/")[2]
