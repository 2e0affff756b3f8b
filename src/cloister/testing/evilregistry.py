"""A registry that lies: a real HTTP server before an honest one, whose answers it alters on their way.

It stands for whoever runs the registry, the network to it, or a mirror. A lie is a function from a request and the
honest answer to the answer that is sent; those a test wants are below, and others are easily written. It keeps what it
was asked for, so that a test can say that a request was never made. Binds 127.0.0.1, one thread per connection.
Nothing here is trusted by anything.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, Literal, Protocol

_PATH: Final = re.compile(r"/v2/(?P<repository>.+)/(?P<kind>manifests|blobs)/(?P<selector>[^/]+)")
_CHUNK_BYTES: Final = 64 * 1024
_HONEST_SECONDS: Final = 30.0
_KEPT: Final = frozenset({"content-type", "content-range", "docker-content-digest", "location"})

Kind = Literal["manifest", "blob", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request for a manifest or a blob.

    Attributes:
        method: `GET` or `HEAD`.
        kind: what is asked for.
        selector: tag or digest; the path for other requests.
        turn: how often the same was asked before.
    """

    method: str
    kind: Kind
    selector: str
    turn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is sent.

    Attributes:
        status: HTTP status.
        headers: without `Content-Length`.
        body: the bytes.
        declared: what `Content-Length` says; None says the truth.
        padding: zero bytes sent behind the body, up to the end of the connection and with no length told.
        pause_seconds: silence before the body.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    declared: int | None = None
    padding: int = 0
    pause_seconds: float = 0.0


class Lie(Protocol):
    """Alters an answer."""

    def __call__(self, request: Request, honest: Answer) -> Answer:
        """Return what to send instead of `honest`."""
        ...


def other_bytes(selector: str, body: bytes) -> Lie:
    """Answer `body` for a manifest or blob."""
    return lambda request, honest: replace(honest, body=body) if request.selector == selector else honest


def answered(selector: str, body: bytes, media_type: str) -> Lie:
    """Answer `body` for a manifest or blob, also for one that the honest registry does not have."""
    answer = Answer(status=200, headers={"Content-Type": media_type}, body=body)
    return lambda request, honest: answer if request.selector == selector else honest


def flipped(selector: str, position: int = -1, mask: int = 0x01) -> Lie:
    """Change one byte."""

    def lie(request: Request, honest: Answer) -> Answer:
        if request.selector != selector or not honest.body:
            return honest
        body = bytearray(honest.body)
        body[position] ^= mask
        return replace(honest, body=bytes(body))

    return lie


def truncated(selector: str, missing: int, *, declared: bool) -> Lie:
    """Leave out the last bytes; with `declared`, announce them nevertheless and break off."""

    def lie(request: Request, honest: Answer) -> Answer:
        if request.selector != selector or honest.status not in (200, 206):
            return honest
        length = len(honest.body)
        return replace(honest, body=honest.body[: max(0, length - missing)], declared=length if declared else None)

    return lie


def endless(selector: str, padding: int = 1 << 30) -> Lie:
    """Never stop sending (for a gibibyte)."""
    return lambda request, honest: replace(honest, padding=padding) if request.selector == selector else honest


def silent(selector: str, seconds: float) -> Lie:
    """Send the headers and then nothing for a while."""
    return lambda request, honest: replace(honest, pause_seconds=seconds) if request.selector == selector else honest


def redirected(selector: str, location: str) -> Lie:
    """Send the client elsewhere."""
    away = Answer(status=307, headers={"Location": location})
    return lambda request, honest: away if request.selector == selector else honest


def absent(selector: str) -> Lie:
    """Say that there is no such thing."""
    return lambda request, honest: Answer(status=404) if request.selector == selector else honest


def answering(path: str, answer: Answer) -> Lie:
    """Answer every request for something else than a manifest or blob whose path begins with `path`."""

    def lie(request: Request, honest: Answer) -> Answer:
        return answer if request.kind == "other" and request.selector.startswith(path) else honest

    return lie


def challenging(realm: str) -> Lie:
    """Ask for a token that `realm` makes; `/token` itself is left alone."""
    challenge = Answer(status=401, headers={"WWW-Authenticate": f'Bearer realm="{realm}",service="evil"'})

    def lie(request: Request, honest: Answer) -> Answer:
        return honest if request.kind == "other" and request.selector.startswith("/token") else challenge

    return lie


def later(lie: Lie, turn: int = 1) -> Lie:
    """Be honest at first: lie from request number `turn` on, counted from 0."""
    return lambda request, honest: lie(request, honest) if request.turn >= turn else honest


class EvilRegistry:
    """Use in a `with` statement.

    Args:
        honest_port: of the registry on this machine whose answers are altered.
        lies: applied one after the other to every GET.

    Attributes:
        asked: how often each tag, digest or path was asked for.
        authorizations: path and value of every `Authorization` header that came.
    """

    def __init__(self, honest_port: int, lies: Sequence[Lie] = ()) -> None:
        self.lies = list(lies)
        self.asked: Counter[str] = Counter()
        self.authorizations: list[tuple[str, str]] = []
        self._honest_port = honest_port
        self._lock = threading.Lock()
        self._over = threading.Event()
        registry = self

        class Handler(_Handler):
            evil = registry

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Its address, as a host would suggest it to a guest on this machine."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> EvilRegistry:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, method: str, path: str, headers: Mapping[str, str]) -> Answer:
        """Ask the honest registry and lie about what it said."""
        match = _PATH.fullmatch(path)
        kinds: dict[str, Kind] = {"manifests": "manifest", "blobs": "blob"}
        kind: Kind = kinds[match["kind"]] if match else "other"
        selector = match["selector"] if match else path
        with self._lock:
            if "Authorization" in headers:
                self.authorizations.append((path, headers["Authorization"]))
            turn = self.asked[selector]
            self.asked[selector] += 1
        answer = self._ask_honest(method, path, headers)
        if method == "GET":
            request = Request(method=method, kind=kind, selector=selector, turn=turn)
            for lie in self.lies:
                answer = lie(request, answer)
        return answer

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond the end of the registry."""
        self._over.wait(seconds)

    def _ask_honest(self, method: str, path: str, headers: Mapping[str, str]) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self._honest_port, timeout=_HONEST_SECONDS)
        with contextlib.closing(connection):
            sent = {name: value for name, value in headers.items() if name.lower() in ("accept", "range")}
            connection.request(method, path, headers=sent)
            response = connection.getresponse()
            kept = {name: value for name, value in response.getheaders() if name.lower() in _KEPT}
            length = response.getheader("Content-Length", "")
            declared = int(length) if method == "HEAD" and length.isdigit() else None
            return Answer(status=response.status, headers=kept, body=response.read(), declared=declared)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    evil: EvilRegistry
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are sent apart

    def handle(self) -> None:
        """Serve until the client leaves, however it does."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        answer = self.evil.answer(self.command, self.path, dict(self.headers))
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.padding:
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(answer.body) if answer.declared is None else answer.declared))
        with contextlib.suppress(OSError):  # the client may leave when it has seen enough
            self.end_headers()
            if self.command == "HEAD":
                return
            self.evil.pause(answer.pause_seconds)
            for piece in _pieces(answer):
                self.wfile.write(piece)
        if answer.padding or answer.declared is not None:
            self.close_connection = True


def _pieces(answer: Answer) -> Iterator[bytes]:
    for start in range(0, len(answer.body), _CHUNK_BYTES):
        yield answer.body[start : start + _CHUNK_BYTES]
    deadline = time.monotonic() + _HONEST_SECONDS
    for _ in range(answer.padding // _CHUNK_BYTES):
        if time.monotonic() > deadline:
            return
        yield bytes(_CHUNK_BYTES)
