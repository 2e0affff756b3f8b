"""A vendor's web service on 127.0.0.1 that can misbehave: what clients of AMD's, Intel's and NVIDIA's services meet.

A real HTTP server, with TLS where a test wants it. It serves the answers it was given, by path and query, and puts each
through a personality: honest, slow, throttling, redirecting, broken in this way or that. It counts what it was asked,
so that a test can say that nothing was. One thread per connection. Nothing here is trusted by anything.
"""

from __future__ import annotations

import contextlib
import ssl
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final
from urllib.parse import quote

from cloister.crypto.tlsca import CertificateAuthority
from cloister.wire.limits import COLLATERAL_BYTES

_HONEST_SECONDS: Final = 10.0
_PIECE_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request: its method, its path with query, its body, and how often the same was asked before."""

    method: str
    path: str
    body: bytes
    turn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What is sent.

    Attributes:
        status: HTTP status.
        body: the bytes.
        headers: without `Content-Length`.
        declared: what `Content-Length` says; None says the truth.
        pause_seconds: silence before the status line.
        drip: send the body byte by byte with pauses.
        hang_up: close the connection instead of answering.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    declared: int | None = None
    pause_seconds: float = 0.0
    drip: bool = False
    hang_up: bool = False


Personality = Callable[[Call, Reply], Reply]
"""Turns the honest reply into the one that is sent."""


def honest(call: Call, reply: Reply) -> Reply:
    """Send what is served."""
    return reply


def slow(seconds: float) -> Personality:
    """Say nothing for so long."""
    return lambda call, reply: replace(reply, pause_seconds=seconds)


def dripping(call: Call, reply: Reply) -> Reply:
    """Send the body so slowly that no single read times out."""
    return replace(reply, drip=True)


def throttling(times: int, retry_after: str | None = None, status: int = 429) -> Personality:
    """Refuse the first `times` of each request with 429 (or 503)."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return lambda call, reply: Reply(status=status, headers=headers) if call.turn < times else reply


def failing(status: int) -> Personality:
    """Answer with an error status only."""
    return lambda call, reply: Reply(status=status, body=b"error", headers={"Content-Type": "text/plain"})


def down(call: Call, reply: Reply) -> Reply:
    """Close every connection without a word."""
    return Reply(hang_up=True)


def truncating(call: Call, reply: Reply) -> Reply:
    """Break off in the middle of the body."""
    return replace(reply, body=reply.body[: len(reply.body) // 2], declared=len(reply.body))


def shortening(call: Call, reply: Reply) -> Reply:
    """Leave out the end, and say that this is all."""
    return replace(reply, body=reply.body[: len(reply.body) // 2])


def flipping(call: Call, reply: Reply) -> Reply:
    """Change one bit near the end of the body, where signatures are."""
    place = len(reply.body) - 20
    changed = bytes([reply.body[place] ^ 1]) if place >= 0 else b""
    return replace(reply, body=reply.body[:place] + changed + reply.body[place + 1 :])


def oversized(call: Call, reply: Reply) -> Reply:
    """Send more than anyone should keep."""
    return replace(reply, body=reply.body + bytes(COLLATERAL_BYTES))


def portal(call: Call, reply: Reply) -> Reply:
    """Answer with a login page and status 200, as networks of hotels do."""
    return Reply(body=b"<html>please log in</html>", headers={"Content-Type": "text/html"})


def redirecting(location: str) -> Personality:
    """Send everyone to `location`."""
    return lambda call, reply: Reply(status=302, headers={"Location": location})


def mixing(path: str, service: FakeVendor) -> Personality:
    """Answer every request with what is served at `path`."""
    return lambda call, reply: service.answers[path]


class FakeVendor:
    """The server. Use as a context manager.

    Args:
        tls: serve HTTPS, with a certificate of `ca`, for `localhost`.

    Attributes:
        answers: replies by path with query; set it as the test needs.
        responders: replies that depend on the request, by path with query.
        personality: how they are sent.
        calls: every request, in order.
        most_at_once: the most requests that were waiting for their reply at one time.
        ca: whose certificate the server has; None without TLS.
    """

    def __init__(self, *, tls: bool = False) -> None:
        self.answers: dict[str, Reply] = {}
        self.responders: dict[str, Callable[[Call], Reply]] = {}
        self.personality: Personality = honest
        self.calls: list[Call] = []
        self.most_at_once = 0
        self.ca = CertificateAuthority.create("test vendor", at=datetime.now(UTC)) if tls else None
        self._active = 0
        self._turns: Counter[tuple[str, str, bytes]] = Counter()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        if self.ca is not None:
            self._server.socket = _tls_context(self.ca).wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> FakeVendor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self.close()

    def close(self) -> None:
        """Give up the port, also of a server that was never started."""
        self._server.server_close()

    @property
    def address(self) -> str:
        """Base address: `http://127.0.0.1:PORT`, or `https://localhost:PORT`."""
        port = self._server.server_address[1]
        return f"https://localhost:{port}" if self.ca else f"http://127.0.0.1:{port}"

    def count(self, path: str = "") -> int:
        """Return how many requests there were, for `path` or at all."""
        return sum(1 for call in self.calls if path in ("", call.path))

    def serve(self, path: str, body: bytes, content_type: str, headers: Mapping[str, str] | None = None) -> None:
        """Answer `path` with `body` from now on."""
        self.answers[path] = Reply(body=body, headers={"Content-Type": content_type, **(headers or {})})

    @contextlib.contextmanager
    def answering(self, method: str, path: str, body: bytes) -> Iterator[Reply]:
        """Record a request and return the reply to it; for the server's own threads."""
        with self._lock:
            key = (method, path, body)
            call = Call(method=method, path=path, body=body, turn=self._turns[key])
            self._turns[key] += 1
            self.calls.append(call)
            self._active += 1
            self.most_at_once = max(self.most_at_once, self._active)
        try:
            made = self.responders.get(path)
            plain = made(call) if made else self.answers.get(path, Reply(status=404, body=b"no such thing"))
            yield self.personality(call, plain)
        finally:
            with self._lock:
                self._active -= 1


def _tls_context(ca: CertificateAuthority) -> ssl.SSLContext:
    issued = ca.issue_server(["localhost"], at=datetime.now(UTC))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as directory:  # the library takes certificates from files only
        certificate, key = Path(directory, "certificate.pem"), Path(directory, "key.pem")
        certificate.write_bytes(issued.certificate_pem)
        key.write_bytes(issued.key_pem)
        context.load_cert_chain(certificate, key)
    return context


def issuer_chain(pem: str) -> str:
    """Return a chain as Intel's services put it into a header."""
    return quote(pem, safe="")


def _handler_of(service: FakeVendor) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = _HONEST_SECONDS

        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers.get("Content-Length", "0"))))

        def log_message(self, *_: object) -> None:
            """Say nothing: tests read `calls`."""

        def _answer(self, body: bytes) -> None:
            self.close_connection = True
            with service.answering(self.command, self.path, body) as reply:
                time.sleep(reply.pause_seconds)
            with contextlib.suppress(OSError):  # who asked may have gone
                self._send(reply)

        def _send(self, reply: Reply) -> None:
            if reply.hang_up:
                return
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body) if reply.declared is None else reply.declared))
            self.end_headers()
            for piece in [reply.body[n : n + 1] for n in range(len(reply.body))] if reply.drip else [reply.body]:
                self.wfile.write(piece)
                if reply.drip:
                    time.sleep(_PIECE_SECONDS)

    return Handler
