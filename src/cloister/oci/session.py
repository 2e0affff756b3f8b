"""Requests to one registry: authentication, redirects, repeats, and what an answer's status means.

OCI distribution specification 1.1 for the statuses; CNCF Distribution's token specification for `Bearer` challenges;
RFC 7617 for `Basic`. The registry is untrusted: it chooses statuses, challenges and addresses, so each of them has a
rule here. Credentials go to the registry's own origin and to the token service it names, and there only where
`other_origins` allows it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from cloister.errors import FormatRefused, ImageRefused, Unavailable
from cloister.oci.document import Members, parse_document
from cloister.oci.transport import Response, Transport, split_origin
from cloister.wire.base64 import encode_b64
from cloister.wire.limits import MIB, REGISTRY_ATTEMPTS, REGISTRY_REDIRECTS, REGISTRY_TOKEN_BYTES

CODE: Final = "oci.distribution"
_FIRST_PAUSE_SECONDS: Final = 0.2
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
_REPEATABLE: Final = frozenset({"oci.transport.unreachable", "oci.transport.interrupted", f"{CODE}.busy"})
_PARAMETER: Final = r'([a-z_]+)="([^"]*)"'
_ERROR_CODE: Final = rb'"code"\s*:\s*"([A-Z_]{1,40})"'
_ERROR_BYTES: Final = 4096

_T = TypeVar("_T")


class Credentials:
    """User name and password (or access token) for a registry. The repr holds no password."""

    __slots__ = ("password", "username")

    def __init__(self, username: str, password: str) -> None:
        self.username = username
        self.password = password

    def __repr__(self) -> str:
        return f"Credentials(username={self.username!r}, password=<hidden>)"

    @property
    def basic(self) -> str:
        """The value of a Basic `Authorization` header."""
        return f"Basic {encode_b64(f'{self.username}:{self.password}'.encode())}"


class RegistrySession:
    """Sends requests to the registry at `origin`.

    Args:
        transport: carries the requests.
        origin: `scheme://host[:port]` of the registry.
        other_origins: whether the registry may send us to other servers.
        credentials: for the registry, or None for anonymous use.
        sleep: pauses between repeats, seconds.
    """

    def __init__(
        self,
        transport: Transport,
        origin: str,
        *,
        other_origins: bool,
        credentials: Credentials | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._transport = transport
        self._origin = origin.lower()
        self._other_origins = other_origins
        self._credentials = credentials
        self._sleep = sleep
        self._authorization = ""

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None, *, accept: tuple[int, ...]
    ) -> Response:
        """Send a request and return an answer whose status is in `accept`.

        Raises:
            Unavailable: `oci.distribution.denied`, `.busy`, `.unexpected_status`, `.other_origin`, `.redirects`,
                `.bad_challenge`, or `oci.transport.*`.
        """
        response = self._follow(method, url, headers, body)
        if response.status == 401:
            challenge = response.header("WWW-Authenticate")
            response.close()
            self._authorization = self._answer_challenge(challenge)
            response = self._follow(method, url, headers, body)
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
        self._sleep(_FIRST_PAUSE_SECONDS * 2 ** (failures - 1))

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

    def _follow(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Response:
        for _ in range(REGISTRY_REDIRECTS + 1):
            sent = dict(headers)
            if self._authorization and split_origin(url)[0] == self._origin:
                sent["Authorization"] = self._authorization
            response = self._transport.open(method, url, sent, body)
            if response.status not in _REDIRECTS or method not in ("GET", "HEAD"):
                return response
            location = response.header("Location")
            response.close()
            url = self.resolve(url, location)
        raise Unavailable(f"{CODE}.redirects", "registry redirects in circles", path=url[:200])

    # -- authentication --------------------------------------------------------------------------------------

    def _answer_challenge(self, challenge: str) -> str:
        """Return the `Authorization` value a 401 answer asks for."""
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic" and self._credentials is not None:
            return self._credentials.basic
        if scheme.lower() == "bearer":
            return f"Bearer {self._fetch_token(dict(re.findall(_PARAMETER, rest)))}"
        raise _denied(self._origin)

    def _fetch_token(self, parameters: Mapping[str, str]) -> str:
        from urllib.parse import urlencode

        realm = parameters.get("realm", "")
        if not realm:
            raise Unavailable(
                f"{CODE}.bad_challenge", "registry asks for a token without saying where", path=self._origin
            )
        self._require_allowed(realm)
        query = urlencode({name: parameters[name] for name in ("service", "scope") if name in parameters})
        headers = {"Authorization": self._credentials.basic} if self._credentials else {}
        response = self._transport.open("GET", f"{realm}{'&' if '?' in realm else '?'}{query}", headers)
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


def read_bounded(response: Response, ceiling: int) -> bytes | None:
    """Return the whole body, or None when it is longer than `ceiling` bytes."""
    pieces = []
    left = ceiling + 1
    while left and (piece := response.read(min(left, MIB))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces) if left else None


def _status_error(response: Response, url: str) -> Unavailable:
    if response.status in (401, 403):
        return _denied(url)
    found = re.search(_ERROR_CODE, response.read(_ERROR_BYTES))
    said = f"{response.status} {found.group(1).decode('ascii')}" if found else str(response.status)
    if response.status in _PASSING:
        return Unavailable(f"{CODE}.busy", "registry cannot answer now", path=url[:200], actual=said)
    return Unavailable(f"{CODE}.unexpected_status", "registry answered with an error", path=url[:200], actual=said)


def _denied(place: str) -> Unavailable:
    return Unavailable(
        f"{CODE}.denied",
        "registry does not let us in",
        path=place[:200],
        hint="check the repository's name, and log in if it is private",
    )
