"""Before anything of a request is read: who asks, in which tenant, and whether the route's permission is theirs.

Every route names one permission; a route that names none lets nobody in. The guard runs in a thread, because it asks
the store.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final

from litestar import Request, delete, get, post, put
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency, Provide
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import QueryParameter

from cloister.errors import Refused
from cloister.protocol.admin.base import PREFIX, PROBLEM_TYPE, Problem, TenantName
from cloister.protocol.tenants import parse_tenant
from cloister.trust.access import Permission
from cloister.trust.administration import Administration, Office
from cloister.trust.web.admin.problems import DENIAL_KEY

PERMISSION: Final = "permission"
OFFICE: Final = "office"
_ADMINISTRATION: Final = "administration"
_SCHEME: Final = "bearer "
_AUTHORIZATION_CHARS: Final = 256
_EXPLAINED: Final = {
    400: "The request is malformed, or refused by what it holds.",
    401: "No valid access token.",
    403: "The token does not permit this here.",
    404: "There is no such thing.",
    409: "Somebody else changed it, or it stands in the way of what is there.",
    413: "The request is too long.",
    503: "The store cannot answer now; try again.",
}
_ERRORS: Final = {
    status: ResponseSpec(
        data_container=Problem,
        description=text,
        media_type=PROBLEM_TYPE,
        generate_examples=False,
    )
    for status, text in _EXPLAINED.items()
}
Admitted = NamedDependency[Office]
# Any: connections without user and session
Connection = ASGIConnection[Any, Any, Any, Any]


def enter(connection: Connection, handler: BaseRouteHandler) -> None:
    """Guard of every route: authenticate, find the tenant, require the permission.

    Raises:
        Refused: `trust.access.unauthenticated`, `trust.access.forbidden`, `trust.tenant.missing`.
        FormatRefused: not the name of a tenant.
        Unavailable: the store failed.
    """
    administration: Administration = connection.app.state[_ADMINISTRATION]
    permission: Permission | None = handler.opt.get(PERMISSION)
    if permission is None:
        raise RuntimeError(f"the route {connection.scope['path']} names no permission")
    state, bearer = connection.scope["state"], _bearer(connection)
    administration.access.authenticate(bearer)  # before a malformed request is told anything
    state[OFFICE] = administration.admit(
        bearer,
        _tenant(connection),
        permission,
        connection.scope["path"],
        denied=lambda denial: state.__setitem__(DENIAL_KEY, denial),
    )


def office_of(
    request: Request[Any, Any, Any],  # Any: without user and session
    tenant: Annotated[
        TenantName | None,
        QueryParameter(name="tenant", description="Whose; by default the token's own, else `default`."),
    ] = None,
) -> Office:
    """Return what the guard found. It has read `tenant`, which stands here for the description of the interface."""
    del tenant
    office: Office = request.scope["state"][OFFICE]
    return office


def reading(path: str, permission: Permission, summary: str) -> Callable[[Callable[..., Any]], HTTPRouteHandler]:
    """Make a function the handler of a GET that changes nothing but the record of calls."""
    return get(path, **_options(path, permission, summary, 200))


def putting(path: str, permission: Permission, summary: str) -> Callable[[Callable[..., Any]], HTTPRouteHandler]:
    """Make a function the handler of a PUT."""
    return put(path, **_options(path, permission, summary, 200))


def posting(
    path: str, permission: Permission, summary: str, *, status: int = 200
) -> Callable[[Callable[..., Any]], HTTPRouteHandler]:
    """Make a function the handler of a POST."""
    return post(path, **_options(path, permission, summary, status))


def deleting(path: str, permission: Permission, summary: str) -> Callable[[Callable[..., Any]], HTTPRouteHandler]:
    """Make a function the handler of a DELETE that answers with what was deleted."""
    return delete(path, **_options(path, permission, summary, 200))


def _options(path: str, permission: Permission, summary: str, status: int) -> dict[str, Any]:  # Any: of the framework
    return {
        "opt": {PERMISSION: permission},
        "sync_to_thread": True,
        "status_code": status,
        "summary": summary,
        "description": f"Needs `{permission.value}`.",
        "tags": [path.strip("/").partition("/")[0]],
        "responses": _ERRORS,
        "dependencies": {OFFICE: Provide(office_of, sync_to_thread=False)},
    }


def state_of(administration: Administration) -> dict[str, Any]:  # Any: the framework's
    """Return the application state that the guard needs."""
    return {_ADMINISTRATION: administration}


def _bearer(connection: Connection) -> str:
    text = connection.headers.get("authorization", "")
    if len(text) > _AUTHORIZATION_CHARS or text[: len(_SCHEME)].lower() != _SCHEME:
        return ""
    return text[len(_SCHEME) :].strip()


def _tenant(connection: Connection) -> str | None:
    named = connection.query_params.getall("tenant", [])
    if len(named) > 1:
        raise Refused("trust.request.malformed", "the tenant is named twice", path="tenant")
    return parse_tenant(named[0]) if named else None


__all__ = ["OFFICE", "PERMISSION", "PREFIX", "deleting", "enter", "posting", "putting", "reading", "state_of"]
