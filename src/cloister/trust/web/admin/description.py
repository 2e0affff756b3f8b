"""The description of the interface, OpenAPI 3.1, made from its routes and served by one of them."""

from __future__ import annotations

from typing import Any

from litestar import Litestar, Request

from cloister.trust.access import Permission
from cloister.trust.administration import Office
from cloister.trust.web.admin.entrance import reading


def describe() -> str:
    """Return the words at the head of the description."""
    return (
        "Every route takes `Authorization: Bearer cat_..` and names the permission it needs. Errors are problem "
        "details (RFC 9457) with Cloister's code. Of a tenant that a token is not for, nothing is told, not even "
        "whether it exists."
    )


def openapi_document(application: Litestar) -> dict[str, Any]:  # Any: JSON
    """Return the OpenAPI document of the application."""
    document: dict[str, Any] = application.openapi_schema.to_schema()  # Any: JSON
    return document


@reading("/openapi.json", Permission.STATUS_READ, "This description")
def description_route(office: Office, request: Request[Any, Any, Any]) -> dict[str, Any]:  # Any: without user; JSON
    """Return the OpenAPI document."""
    return openapi_document(request.app)
