"""HTTPS to exactly one party: TLS 1.3 pinned to one CA, over `http.client`.

RFC 8446, RFC 9110. The system's certificate store is not consulted, proxies and redirects do not exist, and answers
are bounded. The channel authenticates the server to us; what authenticates us to the server is the evidence inside
the messages, not the channel.

Loaded inside the pod VM: `ssl` and `http.client` are imported when the channel is used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final

from cloister.errors import FormatRefused, Refused, Unavailable
from cloister.wire.limits import KBS_RESPONSE_BYTES

if TYPE_CHECKING:
    from http.client import HTTPSConnection
    from ssl import SSLContext

_HTTPS: Final = "https://"
_PORT: Final = 443
_AUTHORITY: Final = re.compile(r"(?:\[(?P<ip6>[0-9a-fA-F:.]+)\]|(?P<host>[A-Za-z0-9.-]+))(?::(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Response:
    """One answer, read whole.

    Attributes:
        status: HTTP status.
        headers: lower-case names; of repeated headers the last.
        body: at most `KBS_RESPONSE_BYTES`.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


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
        self._ca_pem = ca_pem
        self._timeout = timeout
        self._connection: HTTPSConnection | None = None

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
        from http.client import HTTPException
        from ssl import SSLCertVerificationError

        try:
            connection = self._connected()
            connection.request(method, self._base + path, body=body, headers=dict(headers or {}))
            response = connection.getresponse()
            try:
                data = response.read(KBS_RESPONSE_BYTES + 1)
            finally:
                response.close()
            if len(data) > KBS_RESPONSE_BYTES:
                raise Refused(
                    "client.answer_too_long", "the answer is too long", expected=f"at most {KBS_RESPONSE_BYTES} bytes"
                )
            if response.will_close:
                self.close()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Response(status=response.status, headers=names, body=data)
        except SSLCertVerificationError as err:
            self.close()
            raise Refused(
                "client.server_untrusted",
                f"the server is not the one the pinned CA certifies: {err.verify_message}",
                path=self.peer,
                hint="something answers in the service's place, or the init data holds another CA",
            ) from err
        except (OSError, HTTPException) as err:
            self.close()
            raise Unavailable(
                "client.unreachable",
                f"no connection to the server: {getattr(err, 'strerror', None) or type(err).__name__}",
                path=self.peer,
                hint="check that the trust service runs and that its address is reachable from here",
            ) from err
        except Refused:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> HTTPSConnection:
        from http.client import HTTPSConnection

        if self._connection is None:
            self._connection = HTTPSConnection(
                self._host, self._port, timeout=self._timeout, context=_pinned_context(self._ca_pem)
            )
        return self._connection


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
