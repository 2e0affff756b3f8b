"""Errors of the administration API: problem details (RFC 9457) with what `cloister.errors` says."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from litestar import Request, Response
from litestar.exceptions import HTTPException

from cloister.errors import CloisterError, FormatRefused, RequestRefused, Unavailable
from cloister.protocol.admin.base import PROBLEM_TYPE, Problem

DENIAL_KEY: Final = "denial"
_SHOWN_CHARS: Final = 1000
_RETRY_SECONDS: Final = "1"
_BY_CODE: Final = {
    "trust.access.unauthenticated": HTTPStatus.UNAUTHORIZED,
    "trust.access.forbidden": HTTPStatus.FORBIDDEN,
    "trust.access.escalation": HTTPStatus.FORBIDDEN,
    "trust.access.name_reserved": HTTPStatus.FORBIDDEN,
    "trust.approval.not_an_approver": HTTPStatus.FORBIDDEN,
    "trust.access.name_taken": HTTPStatus.CONFLICT,
    "trust.approval.closed": HTTPStatus.CONFLICT,
    "trust.approval.digest": HTTPStatus.CONFLICT,
    "trust.policy.conflict": HTTPStatus.CONFLICT,
    "trust.resource.conflict": HTTPStatus.CONFLICT,
    "trust.keys.pending": HTTPStatus.CONFLICT,
    "trust.tenant.exists": HTTPStatus.CONFLICT,
    "trust.tenant.default": HTTPStatus.CONFLICT,
}
_HTTP_CODES: Final = {
    HTTPStatus.NOT_FOUND: "trust.request.path",
    HTTPStatus.METHOD_NOT_ALLOWED: "trust.request.method",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "trust.request.too_long",
}


def status_of(error: CloisterError) -> HTTPStatus:
    """Return the HTTP status of an error."""
    if isinstance(error, Unavailable):
        return HTTPStatus.SERVICE_UNAVAILABLE
    if error.code in _BY_CODE:
        return _BY_CODE[error.code]
    if error.code.endswith((".missing", "_missing", ".missing_rule")):
        return HTTPStatus.NOT_FOUND
    if error.code.endswith(".too_many"):
        return HTTPStatus.CONFLICT
    return HTTPStatus.BAD_REQUEST


def problem_of(error: CloisterError, *, denial: str = "") -> Problem:
    """Return the body for an error."""
    status = status_of(error)
    return Problem(
        title=status.phrase,
        status=status.value,
        detail=error.message[:_SHOWN_CHARS],
        code=error.code,
        path=error.path[:_SHOWN_CHARS],
        expected=error.expected[:_SHOWN_CHARS],
        actual=error.actual[:_SHOWN_CHARS],
        hint=error.hint[:_SHOWN_CHARS],
        denial=denial,
    )


def answer_error(request: Request[Any, Any, Any], error: CloisterError) -> Response[Problem]:  # Any: no user, no auth
    """Answer a refusal, or that the service cannot tell now."""
    problem = problem_of(error, denial=request.scope["state"].get(DENIAL_KEY, ""))
    headers = {"cache-control": "no-store"}
    if problem.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = 'Bearer realm="cloister"'
    if problem.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["retry-after"] = _RETRY_SECONDS
    return Response(problem, status_code=problem.status, media_type=PROBLEM_TYPE, headers=headers)


def answer_http(request: Request[Any, Any, Any], error: HTTPException) -> Response[Problem]:  # Any: as above
    """Answer what the framework itself refuses: another path or method, a body or parameter of another shape."""
    status = HTTPStatus(error.status_code)
    code = _HTTP_CODES.get(status, "trust.request.malformed")
    found = error.extra[0] if isinstance(error.extra, list) and error.extra else {}
    details = found if isinstance(found, dict) else {}
    refusal = (FormatRefused if status is HTTPStatus.BAD_REQUEST else RequestRefused)(
        code,
        str(details.get("message") or error.detail or status.phrase).lower()[:_SHOWN_CHARS],
        path=str(details.get("key", "")),
    )
    problem = problem_of(refusal)
    body = Problem(
        title=status.phrase,
        status=status.value,
        detail=problem.detail,
        code=code,
        path=problem.path,
        hint="the description of the interface is at /admin/v1/openapi.json",
    )
    headers = {name: value for name, value in (error.headers or {}).items() if name.lower() == "allow"}
    return Response(body, status_code=status.value, media_type=PROBLEM_TYPE, headers=headers)
