"""Routes of CoCo's administration, beside the guests' and below the same addresses, for who shows an access token.

The token travels as `kbs-client --admin-token-file` sends it, as Bearer. It is authenticated, and the permission of the
action required, before anything of the body is read as what it claims to be. Errors have CoCo's shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from cloister.errors import Refused
from cloister.trust.administration import Administration
from cloister.trust.cocoadmin import ACTIONS, CoCoAction, CoCoAdministration, find_action
from cloister.trust.keybroker import error_answer
from cloister.trust.settings import TrustSettings
from cloister.trust.web.exchange import Request, Response
from cloister.trust.web.gate import Limits, Route
from cloister.trust.web.kbs import credentials_of, split_tenant
from cloister.wire.limits import KBS_REQUEST_BYTES

STAGE: Final = "admin"
_ADMITTED: Final = 16  # at once and per action: administration is rare, and guests come first


class FindsRoutes(Protocol):
    """Finds the route of a request by method and path; None for what is none of its own."""

    def find(self, method: str, path: str) -> tuple[Route, str, str] | None:
        """Return route, rest of the path and tenant, or None."""
        ...


class CoCoRoutes:
    """Routes of CoCo's administration.

    Args:
        administration: does what was permitted.
        settings: limits, and whether unsigned reference values are taken.
    """

    def __init__(self, administration: Administration, settings: TrustSettings) -> None:
        self._administration = administration
        self._unsigned = settings.insecure_unsigned_reference_values
        limits = Limits(body_bytes=KBS_REQUEST_BYTES, seconds=settings.request_seconds, admitted=_ADMITTED)
        self._routes = {
            name: Route(name=name, method=method, limits=limits, handle=self._handler(name), stage=STAGE)
            for (method, _), (name, _, _) in ACTIONS.items()
        }

    def find(self, method: str, path: str) -> tuple[Route, str, str] | None:
        """Return route, rest of the path and tenant, or None."""
        place = split_tenant(path)
        action = find_action(method, place[1]) if place is not None else None
        if place is None or action is None:
            return None
        return self._routes[action.name], action.rest, place[0]

    def _handler(self, name: str) -> Callable[[Request], Response]:
        [permission] = [permission for found, permission, _ in ACTIONS.values() if found == name]

        def handle(request: Request) -> Response:
            return self._handle(CoCoAction(name=name, permission=permission, rest=request.path), request)

        return handle

    def _handle(self, action: CoCoAction, request: Request) -> Response:
        denials: list[str] = []
        bearer = credentials_of(request.headers).bearer
        subject = f"{action.name} {action.rest}".strip()
        try:
            office = self._administration.admit(
                bearer, request.tenant, action.permission, subject, denied=denials.append
            )
        except Refused as err:
            answer = error_answer(err, stage=STAGE, denial="".join(denials))
            return Response(status=answer.status, body=answer.body, code=answer.code, denial=answer.denial)
        request.correlation.tenant = request.tenant
        coco = CoCoAdministration(office, insecure_unsigned_reference_values=self._unsigned)
        answer = coco.handle(action, request.body)
        return Response(status=answer.status, body=answer.body, code=answer.code)
