"""One request and its response, between ASGI and our own code. Bodies and credentials are bounded as they are read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from cloister.errors import CloisterError, FormatRefused, RequestRefused
from cloister.trust.keybroker import error_answer
from cloister.trust.tracing import Correlation

Scope = MutableMapping[str, Any]  # Any: as ASGI defines it
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = tuple[tuple[bytes, bytes], ...]

RETRY_SECONDS: Final = b"1"
_JSON: Final = b"application/json"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Request:
    """One request, read within its limits.

    Attributes:
        path: what follows the route's own part of the address.
        query: as received, percent-encoded, without `?`.
        tenant: whose space it is about.
        headers: names in lower case, as received.
        body: whole.
        deadline: on the monotonic clock; past it nothing must be released any more.
        correlation: what it is known by.
    """

    path: str
    query: str
    tenant: str
    headers: Headers
    body: bytes
    deadline: float
    correlation: Correlation


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Response:
    """What goes back.

    Attributes:
        status: HTTP status.
        body: whole.
        content_type: of the body.
        headers: further ones.
        code: dotted code, empty for success.
        denial: denial id, empty when none was recorded.
    """

    status: int
    body: bytes
    content_type: bytes = _JSON
    headers: Headers = ()
    code: str = ""
    denial: str = ""


def json_response(body: object) -> Response:
    """Return 200 with `body` as JSON."""
    return Response(status=200, body=msgspec.json.encode(body))


def error_response(error: CloisterError, *, stage: str = "", headers: Headers = ()) -> Response:
    """Return the response to a refusal or failure, in the shape that CoCo's clients read."""
    answer = error_answer(error, stage=stage)
    return Response(status=answer.status, body=answer.body, code=answer.code, headers=headers)


async def read_body(receive: Receive, most: int) -> bytes:
    """Read a body.

    Raises:
        Refused: longer than `most` bytes, or the client hung up.
    """
    chunks: list[bytes] = []
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise RequestRefused("trust.request.cut", "the request ended early")
        chunk = message.get("body", b"")
        length += len(chunk)
        if length > most:
            raise too_long(most)
        chunks.append(chunk)
        more = message.get("more_body", False)
    return b"".join(chunks)


def too_long(most: int) -> FormatRefused:
    """Return the refusal of a body that is longer than `most` bytes."""
    return FormatRefused("protocol.kbs.too_long", "message too long", expected=f"at most {most} bytes")


def correlation_headers(correlation: Correlation) -> Headers:
    """Return the headers by which a guest finds its request again."""
    return ((b"request-id", correlation.identity.encode()), (b"traceparent", correlation.traceparent))


async def send_response(send: Send, response: Response, correlation: Correlation) -> None:
    """Send a response. What anybody's cache must not keep is said to be so."""
    headers = [
        (b"content-type", response.content_type),
        (b"content-length", str(len(response.body)).encode()),
        *correlation_headers(correlation),
        *response.headers,
    ]
    if not any(name == b"cache-control" for name, _ in response.headers):
        headers.append((b"cache-control", b"no-store"))
    if response.status in (429, 503):
        headers.append((b"retry-after", RETRY_SECONDS))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})
