"""Ask a vendor's web service once more than it deserves, and believe nothing of how it answers.

RFC 9110, 9111 5.2 (nothing cached below us), 6585 (429). HTTPS, against the machine's own CA store: what is fetched is
signed, so this protects privacy and availability. Plain HTTP only to a host that was configured so. Redirects are
followed to the same origin only. Every answer has a ceiling in bytes and a deadline in seconds, of all attempts
together; only passing faults are tried again, after a pause with jitter, or the one the server asks for. No proxies, no
cookies, no compression.
"""

from __future__ import annotations

import contextlib
import email.utils
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from urllib.parse import SplitResult, urljoin, urlsplit

from cloister.errors import EndorsementError, FormatRefused, Refused, Unavailable
from cloister.tee.collateral.gate import HostGate, Turn, resting
from cloister.wire.http1 import Answer as HTTPAnswer
from cloister.wire.http1 import encode_request
from cloister.wire.limits import (
    COLLATERAL_ATTEMPT_SECONDS,
    COLLATERAL_ATTEMPTS,
    COLLATERAL_BYTES,
    COLLATERAL_FETCH_SECONDS,
    COLLATERAL_REDIRECTS,
    COLLATERAL_WAIT_SECONDS,
)

_PASSING: Final = frozenset({429, 500, 502, 503, 504})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_PORTS: Final = {"http": 80, "https": 443}
_READ_BYTES: Final = 64 * 1024
_FIRST_PAUSE_SECONDS: Final = 1.0
_USER_AGENT: Final = "cloister-collateral"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to ask a service for.

    Attributes:
        path: below the service's base address, with its query; begins with a slash.
        types: media types that the answer may have.
        body: of a POST; None for a GET.
        body_type: media type of the body.
    """

    path: str
    types: frozenset[str]
    body: bytes | None = None
    body_type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a service answered, with status 200.

    Attributes:
        body: at most `COLLATERAL_BYTES`.
        headers: lower-case names.
        origin: host it came from.
    """

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    origin: str = ""


class NoSuchItem(Unavailable):
    """The vendor says that it has no such thing (status 404)."""

    __slots__ = ()


Ask = Callable[[Request], Answer]
"""Sends one request to the host whose turn it is.

Raises:
    NoSuchItem: status 404.
    Unavailable: no answer, or none of use (`collateral.fetch.*`, `collateral.host.*`).
    EndorsementError: an answer that is refused (`collateral.answer.*`).
"""


class HTTPTransport:
    """Asks web services over sockets.

    Args:
        gate: lets one request through to each host.
        tls: how hosts are authenticated; by default against the machine's own CA store.
        clock: seconds that never go back, for deadlines.
        sleep: waits for some seconds.
        jitter: a number of [0, 1).
    """

    def __init__(
        self,
        gate: HostGate,
        *,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._gate = gate
        self._tls = tls
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter

    @contextlib.contextmanager
    def turn(self, base: str) -> Iterator[Ask]:
        """Wait until the host of `base` may be asked, and return how.

        Raises:
            Refused: not an address (`collateral.fetch.address`).
            Unavailable: it may not be asked now (`collateral.host.*`).
        """
        parts = parse_address(base)
        with self._gate.hold(parts.netloc, COLLATERAL_FETCH_SECONDS) as turn:
            yield lambda request: self._persist(base.rstrip("/") + request.path, parts, request, turn)

    def _persist(self, url: str, parts: SplitResult, request: Request, turn: Turn) -> Answer:
        end = self._clock() + COLLATERAL_FETCH_SECONDS
        failure = Unavailable("collateral.fetch.unreachable", "host does not answer", path=url)
        for attempt in range(COLLATERAL_ATTEMPTS):
            pause = _FIRST_PAUSE_SECONDS * 2**attempt * (0.5 + self._jitter() / 2)
            try:
                status, answer = self._follow(url, parts, request, end)
            except Unavailable as err:
                failure = err
            else:
                if status not in _PASSING:
                    return _accept(status, answer, url, request)
                failure = _bad_status(status, url)
                asked = _retry_after(answer.headers)
                if asked is not None:
                    if asked > COLLATERAL_WAIT_SECONDS:
                        turn.rest(asked)
                        raise resting(parts.netloc, asked)
                    pause = max(asked, pause)
            if attempt + 1 == COLLATERAL_ATTEMPTS or self._clock() + pause >= end:
                break
            self._sleep(pause)
        raise failure

    def _follow(self, url: str, parts: SplitResult, request: Request, end: float) -> tuple[int, Answer]:
        """Return the status and the answer of one attempt, after redirects within the same origin."""
        for _ in range(COLLATERAL_REDIRECTS + 1):
            status, answer = self._exchange(url, request, min(end, self._clock() + COLLATERAL_ATTEMPT_SECONDS))
            if status not in _REDIRECTS:
                return status, answer
            url = urljoin(url, answer.headers.get("location", ""))
            target = urlsplit(url)
            if (target.scheme, target.netloc.lower()) != (parts.scheme, parts.netloc.lower()) or request.body:
                raise EndorsementError(
                    "collateral.answer.redirect",
                    "the host sends us elsewhere",
                    path=parts.netloc,
                    expected=f"an answer, or another path of {parts.scheme}://{parts.netloc}",
                    actual=f"{target.scheme}://{target.netloc}"[:120],
                    hint="name the other host as the service's address, if that is meant",
                )
        raise EndorsementError("collateral.answer.redirect", "the host sends us in circles", path=parts.netloc)

    def _exchange(self, url: str, request: Request, end: float) -> tuple[int, Answer]:
        parts = parse_address(url)
        host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"User-Agent": _USER_AGENT, "Accept": ", ".join(sorted(request.types)), "Connection": "close"}
        if request.body is not None:
            headers["Content-Type"] = request.body_type
        method = "GET" if request.body is None else "POST"
        try:
            message = encode_request(method, target, parts.netloc, headers, request.body)
            with self._connect(parts.scheme, host, port, end) as connection:
                connection.settimeout(self._left(end))
                connection.sendall(message)

                def receive(count: int) -> bytes:
                    connection.settimeout(self._left(end))
                    return connection.recv(count)

                answer = HTTPAnswer(receive, method)
                body = _read_whole(answer, parts.netloc)
                return answer.status, Answer(body=body, headers=answer.headers, origin=host)
        except ssl.SSLCertVerificationError as err:
            raise EndorsementError(
                "collateral.answer.host",
                f"host is not certified for its name: {err.verify_message}",
                path=parts.netloc,
                hint="something answers in the vendor's place, or the machine's CA store is not complete",
            ) from err
        except OSError as err:
            raise _unreachable(parts.netloc, err.strerror or str(err) or type(err).__name__) from err
        except ValueError as err:  # a name that no host can have
            raise _unreachable(parts.netloc, str(err)) from err
        except FormatRefused as err:  # broken off, or not HTTP
            raise _unreachable(parts.netloc, err.message) from err

    def _connect(self, scheme: str, host: str, port: int, end: float) -> socket.socket:
        plain = socket.create_connection((host, port), self._left(end))
        if scheme == "http":
            return plain
        try:
            self._tls = self._tls or ssl.create_default_context()
            return self._tls.wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            raise

    def _left(self, end: float) -> float:
        left = end - self._clock()
        if left <= 0:
            raise TimeoutError("too slow")
        return left


def parse_address(url: str) -> SplitResult:
    """Return the parts of an address of a web service.

    Raises:
        Refused: not http or https with a host, or with a user name or fragment (`collateral.fetch.address`).
    """
    try:
        parts = urlsplit(url)
        whole = parts.scheme in _PORTS and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        whole = False
    if not whole or "@" in parts.netloc or parts.fragment or not url.isascii() or not url.isprintable() or " " in url:
        raise Refused(
            "collateral.fetch.address",
            "not the address of a web service",
            expected="https://HOST[:PORT][/PATH], without user name",
            actual=url[:120],
        )
    return parts


def _accept(status: int, answer: Answer, url: str, request: Request) -> Answer:
    if status == 404:
        raise NoSuchItem(
            "collateral.fetch.absent",
            "the vendor has no such item",
            path=url,
            hint="check the identity; a new chip, TCB or driver may not be published yet",
        )
    if status != 200:
        raise _bad_status(status, url)
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and kind not in request.types:
        raise EndorsementError(
            "collateral.answer.type",
            "answer is of another kind than was asked for",
            path=url,
            expected=" or ".join(sorted(request.types)),
            actual=kind[:60],
            hint="a login page or a proxy may answer in the vendor's place",
        )
    if answer.headers.get("content-encoding", "identity").lower() != "identity":
        raise EndorsementError("collateral.answer.type", "answer is compressed, which was not asked for", path=url)
    return answer


def _read_whole(answer: HTTPAnswer, host: str) -> bytes:
    parts, left = [], COLLATERAL_BYTES
    while data := answer.read(_READ_BYTES):
        left -= len(data)
        if left < 0:
            raise EndorsementError(
                "collateral.answer.too_long",
                "answer is too long",
                path=host,
                expected=f"at most {COLLATERAL_BYTES} bytes",
            )
        parts.append(data)
    return b"".join(parts)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of `Retry-After` (RFC 9110 10.2.3), None when it is absent or nonsense."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    return max((moment - datetime.now(UTC)).total_seconds(), 0.0)


def _bad_status(status: int, url: str) -> Unavailable:
    return Unavailable(
        "collateral.fetch.status",
        "the vendor's service does not give the item",
        path=url,
        expected="status 200",
        actual=f"status {status}",
    )


def _unreachable(host: str, reason: str) -> Unavailable:
    return Unavailable(
        "collateral.fetch.unreachable",
        f"host does not answer: {reason}"[:200],
        path=host,
        hint="check the network and the address; without a way out use a mirror or import a bundle",
    )
