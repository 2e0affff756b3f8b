"""Requests to one registry: authentication, redirects, repeats, and what an answer's status means.

OCI distribution specification 1.1 for the statuses; CNCF Distribution's "Token Authentication Specification" and
"OAuth2 Authentication" for `Bearer` challenges; RFC 7617 for `Basic`. The registry is untrusted: it chooses statuses,
challenges and addresses, so each of them has a rule here. Credentials go to the registry's own origin, and to the
token service it names only where that is the registry's host, a neighbour of it (`auth.docker.io` beside
`registry-1.docker.io`) or one the owner named; an anonymous token may come from any server that `other_origins` allows.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, TypeVar

from cloister.errors import FormatRefused, ImageRefused, Unavailable
from cloister.oci.document import Members, parse_document
from cloister.oci.transport import Response, Transport, host_of, is_address, is_inside_address, split_origin
from cloister.wire.base64 import encode_b64
from cloister.wire.limits import (
    BLOB_PIECE_BYTES,
    REGISTRY_ATTEMPTS,
    REGISTRY_PAUSE_SECONDS,
    REGISTRY_REDIRECTS,
    REGISTRY_TOKEN_BYTES,
)

CODE: Final = "oci.distribution"
_FIRST_PAUSE_SECONDS: Final = 0.2
_CLIENT_ID: Final = "cloister"
_NO_OAUTH: Final = (404, 405)
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
_REPEATABLE: Final = frozenset({"oci.transport.unreachable", "oci.transport.interrupted", f"{CODE}.busy"})
_PARAMETER: Final = r'([a-z_]+)="([^"]*)"'
_ERROR_CODE: Final = rb'"code"\s*:\s*"([A-Z_]{1,40})"'
_ERROR_BYTES: Final = 4096
_SCOPES: Final = 8

_T = TypeVar("_T")


class Credentials:
    """User name and password (or access token) for a registry, or an identity token that a registry's token service
    takes instead. The repr holds none of them."""

    __slots__ = ("identity_token", "password", "username")

    def __init__(self, username: str, password: str, *, identity_token: str = "") -> None:
        self.username = username
        self.password = password
        self.identity_token = identity_token

    def __repr__(self) -> str:
        return f"Credentials(username={self.username!r}, password=<hidden>)"

    @property
    def basic(self) -> str:
        """The value of a Basic `Authorization` header."""
        return f"Basic {encode_b64(f'{self.username}:{self.password}'.encode())}"


class Busy(Unavailable):
    """The registry cannot answer now; `after` is how long it asks us to wait, seconds."""

    __slots__ = ("after",)

    def __init__(self, place: str, said: str, after: float) -> None:
        super().__init__(f"{CODE}.busy", "registry cannot answer now", path=place, actual=said)
        self.after = after


class RegistrySession:
    """Sends requests to the registry at `origin`. Threads may share one.

    Args:
        transport: carries the requests.
        origin: `scheme://host[:port]` of the registry.
        other_origins: whether the registry may send us to other servers.
        credentials: for the registry, or None for anonymous use.
        token_services: origins that may get the credentials to make a token, beside the registry and its neighbours.
        sleep: pauses between repeats, seconds.
    """

    def __init__(
        self,
        transport: Transport,
        origin: str,
        *,
        other_origins: bool,
        credentials: Credentials | None = None,
        token_services: Collection[str] = (),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._transport = transport
        self._origin = origin.lower()
        self._other_origins = other_origins
        self._credentials = credentials
        self._token_services = frozenset(split_origin(service)[0] for service in token_services)
        self._sleep = sleep
        self._authorizations: dict[str, str] = {}  # by the scope asked for beside the challenge's own

    @property
    def origin(self) -> str:
        """`scheme://host[:port]` of the registry."""
        return self._origin

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        *,
        accept: tuple[int, ...],
        scope: str = "",
    ) -> Response:
        """Send a request and return an answer whose status is in `accept`.

        A token that ran out is renewed once. `scope` is asked for beside what the registry's challenge names.

        Raises:
            Unavailable: `oci.distribution.denied`, `.busy`, `.unexpected_status`, `.other_origin`, `.redirects`,
                `.bad_challenge`, `.token_service`, `.inside_address`, or `oci.transport.*`.
        """
        response = self._follow(method, url, headers, body, scope)
        if response.status == 401:
            challenge = response.header("WWW-Authenticate")
            response.close()
            self._authorizations[scope] = self._answer_challenge(challenge, scope)
            response = self._follow(method, url, headers, body, scope)
        if response.status in accept:
            return response
        try:
            raise _status_error(response, url)
        finally:
            response.close()

    def repeat(self, attempt: Callable[[], _T]) -> _T:
        """Run `attempt`, and again after a passing fault, a bounded number of times."""
        failures = 0
        while True:
            try:
                return attempt()
            except Unavailable as err:
                failures += 1
                self.pause_or_raise(err, failures)

    def pause_or_raise(self, err: Unavailable, failures: int) -> None:
        """Wait before the next attempt, or raise `err` when repeating is useless or was done enough."""
        if failures >= REGISTRY_ATTEMPTS or err.code not in _REPEATABLE:
            raise err
        asked = err.after if isinstance(err, Busy) else 0.0
        self._sleep(min(max(_FIRST_PAUSE_SECONDS * 2 ** (failures - 1), asked), REGISTRY_PAUSE_SECONDS))

    def resolve(self, base: str, location: str) -> str:
        """Return the absolute address of a `Location` header, if we may go there.

        Raises:
            Unavailable: `oci.distribution.other_origin`, `oci.transport.bad_url`.
        """
        from urllib.parse import urljoin

        if not location:
            raise Unavailable(f"{CODE}.no_location", "registry answered without an address", path=base[:200])
        try:
            target = urljoin(base, location)
        except ValueError as err:
            raise Unavailable(
                "oci.transport.bad_url", "registry answered no valid address", path=location[:200]
            ) from err
        self._require_allowed(target)
        return target

    def _require_allowed(self, url: str) -> None:
        origin, _ = split_origin(url)
        if origin == self._origin:
            return
        if not self._other_origins or (origin.startswith("http:") and self._origin.startswith("https:")):
            raise Unavailable(
                f"{CODE}.other_origin",
                "registry sends us to another server",
                expected=self._origin,
                actual=origin[:200],
                hint="pull from a registry that serves its blobs itself",
            )
        host = host_of(origin)
        if host != host_of(self._origin) and is_inside_address(host):
            raise Unavailable(
                f"{CODE}.inside_address",
                "registry sends us to an address that only this machine has",
                expected=self._origin,
                actual=origin[:200],
            )

    def _follow(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, scope: str) -> Response:
        authorization = self._authorizations.get(scope, "")
        for _ in range(REGISTRY_REDIRECTS + 1):
            sent = dict(headers)
            if authorization and split_origin(url)[0] == self._origin:
                sent["Authorization"] = authorization
            response = self._transport.open(method, url, sent, body)
            if response.status not in _REDIRECTS or method not in ("GET", "HEAD"):
                return response
            location = response.header("Location")
            response.close()
            url = self.resolve(url, location)
        raise Unavailable(f"{CODE}.redirects", "registry redirects in circles", path=url[:200])

    # -- authentication --------------------------------------------------------------------------------------

    def _answer_challenge(self, challenge: str, scope: str) -> str:
        """Return the `Authorization` value a 401 answer asks for."""
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic" and self._credentials is not None and not self._credentials.identity_token:
            return self._credentials.basic
        if scheme.lower() == "bearer":
            parameters = dict(re.findall(_PARAMETER, rest))
            scopes = [*parameters.get("scope", "").split(), *scope.split()][:_SCOPES]
            return f"Bearer {self._fetch_token(parameters, list(dict.fromkeys(scopes)))}"
        raise _denied(self._origin)

    def _fetch_token(self, parameters: Mapping[str, str], scopes: Sequence[str]) -> str:
        realm = parameters.get("realm", "")
        if not realm:
            raise Unavailable(
                f"{CODE}.bad_challenge", "registry asks for a token without saying where", path=self._origin
            )
        self._require_allowed(realm)
        if self._credentials is not None:
            self._require_token_service(realm)
        response = self._ask_token_service(realm, parameters.get("service", ""), scopes)
        try:
            if response.status != 200:
                raise _denied(realm[:200])
            raw = read_bounded(response, REGISTRY_TOKEN_BYTES)
        finally:
            response.close()
        try:
            if raw is None:
                raise ImageRefused(f"{CODE}.token.too_long", "token is too long")
            answer = Members(
                parse_document(raw, ceiling=REGISTRY_TOKEN_BYTES, code=f"{CODE}.token"), path="", code=f"{CODE}.token"
            )
            token = answer.text("token", "") or answer.text("access_token")
        except (ImageRefused, FormatRefused) as err:
            raise Unavailable(f"{CODE}.bad_token", "token service answered no token", path=realm[:200]) from err
        if not token.isascii() or not token.isprintable():
            raise Unavailable(f"{CODE}.bad_token", "token service answered no usable token", path=realm[:200])
        return token

    def _ask_token_service(self, realm: str, service: str, scopes: Sequence[str]) -> Response:
        """Ask by GET, or with an identity token by POST, which only services that know OAuth2 take."""
        from urllib.parse import urlencode

        credentials = self._credentials
        if credentials is not None and credentials.identity_token:
            form = {
                "grant_type": "refresh_token",
                "refresh_token": credentials.identity_token,
                "service": service,
                "scope": " ".join(scopes),
                "client_id": _CLIENT_ID,
            }
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            response = self._transport.open("POST", realm, headers, urlencode(form).encode("ascii"))
            if response.status not in _NO_OAUTH or not credentials.password:
                return response
            response.close()
        query = urlencode([("service", service)] * bool(service) + [("scope", scope) for scope in scopes])
        headers = {"Authorization": credentials.basic} if credentials else {}
        return self._transport.open("GET", f"{realm}{'&' if '?' in realm else '?'}{query}", headers)

    def _require_token_service(self, realm: str) -> None:
        """Refuse to show our credentials to whoever a registry names: it could name anybody."""
        origin, _ = split_origin(realm)
        host, own = host_of(origin), host_of(self._origin)
        if origin in self._token_services or host == own or is_neighbour(host, own):
            return
        raise Unavailable(
            f"{CODE}.token_service",
            "registry wants our credentials shown to another server",
            expected=self._origin,
            actual=origin[:200],
            hint="if that server is theirs, name it in token-services of the registry in registries.conf",
        )


def is_neighbour(host: str, registry: str) -> bool:
    """Whether `host` belongs to the same people as `registry` by its name: below it, or beside it under one domain.

    The domain of `registry` is what follows its first label, and only if that is a domain with a dot in it.
    """
    if is_address(host) or is_address(registry):
        return False
    _, _, domain = registry.partition(".")
    return host.endswith(f".{registry}") or ("." in domain and (host == domain or host.endswith(f".{domain}")))


def read_bounded(response: Response, ceiling: int) -> bytes | None:
    """Return the whole body, or None when it is longer than `ceiling` bytes."""
    pieces = []
    left = ceiling + 1
    while left and (piece := response.read(min(left, BLOB_PIECE_BYTES))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces) if left else None


def _status_error(response: Response, url: str) -> Unavailable:
    if response.status in (401, 403):
        return _denied(url)
    found = re.search(_ERROR_CODE, response.read(_ERROR_BYTES))
    said = f"{response.status} {found.group(1).decode('ascii')}" if found else str(response.status)
    if response.status in _PASSING:
        after = response.header("Retry-After").strip()
        return Busy(url[:200], said, float(after) if after.isdigit() and len(after) < 9 else 0.0)
    return Unavailable(f"{CODE}.unexpected_status", "registry answered with an error", path=url[:200], actual=said)


def _denied(place: str) -> Unavailable:
    return Unavailable(
        f"{CODE}.denied",
        "registry does not let us in",
        path=place[:200],
        hint="check the repository's name, and log in if it is private",
    )
