"""HTTPS to exactly one party: TLS 1.3 pinned to one CA.

RFC 8446, RFC 9110. The system's certificate store is not consulted, proxies and redirects do not exist, and answers
are bounded. The channel authenticates the server to us; what authenticates us to the server is the evidence inside
the messages, not the channel.

Loaded inside the pod VM: `socket` and `ssl` are imported when the channel is used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Final

import msgspec

from cloister.errors import FormatRefused, Refused, Unavailable
from cloister.wire.http1 import Answer, encode_request
from cloister.wire.limits import KBS_RESPONSE_BYTES

if TYPE_CHECKING:
    from ssl import SSLContext, SSLSocket

_HTTPS: Final = "https://"
_PORT: Final = 443
_READ_BYTES: Final = 64 * 1024
_AUTHORITY: Final = re.compile(r"(?:\[(?P<ip6>[0-9a-fA-F:.]+)\]|(?P<host>[A-Za-z0-9.-]+))(?::(?P<port>[0-9]{1,5}))?")


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """One answer, read whole.

    Attributes:
        status: HTTP status.
        headers: lower-case names; values of a repeated name are joined by a comma.
        body: at most `KBS_RESPONSE_BYTES`.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"Response(status={self.status})"  # the body may be a secret


class PinnedChannel:
    """A connection to one server, kept open between requests. Use as a context manager, or `close` it.

    Args:
        url: `https://host:port`, optionally with a path that goes before every request's path.
        ca_pem: the one CA whose certificates are accepted.
        timeout: seconds of silence after which the server counts as unreachable.

    Raises:
        FormatRefused: not an https address (`client.address`).
    """

    def __init__(self, url: str, ca_pem: str, *, timeout: float = 30.0) -> None:
        host, port, self._base = _split(url)
        self._host, self._port = host, port
        named = f"[{host}]" if ":" in host else host
        self._authority = named if port == _PORT else f"{named}:{port}"
        self._ca_pem = ca_pem
        self._timeout = timeout
        self._trace = os.urandom(16).hex()
        self._context: SSLContext | None = None
        self._connection: SSLSocket | None = None

    def __enter__(self) -> PinnedChannel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def peer(self) -> str:
        """Where the channel leads, for errors."""
        return f"{self._host}:{self._port}"

    def request(
        self, method: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        """Send one request and read its answer. Never repeats a request by itself.

        Raises:
            Refused: the server is not certified by the pinned CA for this name (`client.server_untrusted`), or its
                answer is too long (`client.answer_too_long`).
            Unavailable: no connection, a broken one, or silence (`client.unreachable`).
        """
        from ssl import SSLCertVerificationError

        # W3C Trace Context: all requests of one channel are one trace, so the owner finds a handshake as a whole.
        traced = {"traceparent": f"00-{self._trace}-{os.urandom(8).hex()}-00", **(headers or {})}
        request = encode_request(method, self._base + path, self._authority, traced, body)
        try:
            connection = self._connected()
            connection.sendall(request)
            answer = Answer(connection.recv, method)
            data = _read_whole(answer)
            if not answer.reusable:
                self.close()
            return Response(status=answer.status, headers=answer.headers, body=data)
        except SSLCertVerificationError as err:
            self.close()
            raise Refused(
                "client.server_untrusted",
                f"the server is not the one the pinned CA certifies: {err.verify_message}",
                path=self.peer,
                hint="something answers in the service's place, or the init data holds another CA",
            ) from err
        except OSError as err:
            self.close()
            raise self._unreachable(err.strerror or type(err).__name__) from err
        except Refused as err:
            self.close()
            if err.code.startswith("wire.http1."):
                raise self._unreachable(err.message) from err
            raise

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> SSLSocket:
        import socket

        if self._connection is None:
            self._context = self._context or _pinned_context(self._ca_pem)
            plain = socket.create_connection((self._host, self._port), self._timeout)
            try:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._connection = self._context.wrap_socket(plain, server_hostname=self._host)
            except BaseException:
                plain.close()
                raise
        return self._connection

    def _unreachable(self, reason: str) -> Unavailable:
        return Unavailable(
            "client.unreachable",
            f"no connection to the server: {reason}",
            path=self.peer,
            hint="check that the trust service runs and that its address is reachable from here",
        )


def _read_whole(answer: Answer) -> bytes:
    parts, left = [], KBS_RESPONSE_BYTES
    while data := answer.read(_READ_BYTES):
        left -= len(data)
        if left < 0:
            raise Refused(
                "client.answer_too_long", "the answer is too long", expected=f"at most {KBS_RESPONSE_BYTES} bytes"
            )
        parts.append(data)
    return b"".join(parts)


def _pinned_context(ca_pem: str) -> SSLContext:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cadata=ca_pem)
    except (ssl.SSLError, ValueError) as err:
        raise FormatRefused("client.ca", "not a CA certificate in PEM", path="ca_pem") from err
    return context


def _split(url: str) -> tuple[str, int, str]:
    rest = url.removeprefix(_HTTPS)
    authority, slash, path = rest.partition("/")
    parts = _AUTHORITY.fullmatch(authority)
    if rest == url or parts is None:
        raise FormatRefused(
            "client.address", "not an address of a server", expected="https://host:port", actual=url[:80]
        )
    port = int(parts["port"]) if parts["port"] else _PORT
    return parts["ip6"] or parts["host"], port, (slash + path).rstrip("/")
