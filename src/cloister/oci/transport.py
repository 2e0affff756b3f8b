"""How registry requests reach a server: the interface, and its one implementation over sockets.

Synchronous and small, so that the guest and the owner's tools use the same one. No redirects, no retries, no
cookies: `oci.distribution` decides about those. `socket` and `ssl` are imported on first use. Trusts nobody: a
server can only send bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Protocol

from cloister.errors import FormatRefused, Unavailable
from cloister.wire.http1 import Answer, encode_request
from cloister.wire.limits import REGISTRY_IDLE_CONNECTIONS, REGISTRY_SECONDS

if TYPE_CHECKING:
    import socket
    import ssl

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_LAST_PORT: Final = 65535
_IPV4_BYTES: Final = 4
_MAPPED: Final = bytes(10) + b"\xff\xff"  # an IPv4 address written as an IPv6 one
_IPV6_METADATA: Final = b"\xfd\x00\x0e\xc2" + bytes(10) + b"\x02\x54"  # fd00:ec2::254


class Response(Protocol):
    """An answer whose body is read as a stream."""

    status: int

    def header(self, name: str) -> str:
        """Return a header's value, empty when absent."""
        ...

    def read(self, count: int) -> bytes:
        """Return up to `count` bytes, empty at the end of the body.

        Raises:
            Unavailable: `oci.transport.interrupted`.
        """
        ...

    def close(self) -> None:
        """Give up what was not read."""
        ...


class Transport(Protocol):
    """Sends one request and returns as soon as the answer's headers are there."""

    def open(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Response:
        """Send a request.

        Raises:
            Unavailable: `oci.transport.unreachable`.
        """
        ...


class HTTPTransport:
    """A `Transport` that keeps connections. Threads may share one.

    Args:
        tls: makes what authenticates servers, once the first is asked by https; by default the machine's own CA
            store. A registry is not trusted with anything, so this protects credentials and privacy, not the image.
        timeout_seconds: longest silence on a connection.
        forbid_self: refuse servers on this very machine, whatever name or address leads there.
    """

    def __init__(
        self,
        *,
        tls: Callable[[], ssl.SSLContext] | None = None,
        timeout_seconds: float = REGISTRY_SECONDS,
        forbid_self: bool = False,
    ) -> None:
        self._make_tls = tls
        self._tls: ssl.SSLContext | None = None
        self._timeout = timeout_seconds
        self._forbid_self = forbid_self
        self._idle: dict[str, list[socket.socket]] = {}

    def open(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Response:
        """Send a request, see `Transport.open`."""
        origin, path = split_origin(url)
        try:
            request = encode_request(method, self._target(origin, path), origin.partition("://")[2], headers, body)
            kept = self._take_idle(origin)
            if kept is not None:
                try:
                    return self._exchange(kept, origin, method, request)
                except (OSError, FormatRefused):
                    kept.close()  # the server may have closed it meanwhile, so once more on a fresh one
            connection = self._connect(origin)
            try:
                if self._forbid_self:
                    _require_elsewhere(connection, origin)
                return self._exchange(connection, origin, method, request)
            except BaseException:
                connection.close()
                raise
        except (OSError, FormatRefused, ValueError) as err:  # ValueError: a name that no address can have
            raise _unreachable(origin, err) from err

    def _exchange(self, connection: socket.socket, origin: str, method: str, request: bytes) -> Response:
        connection.sendall(request)
        return _HTTPResponse(self, origin, connection, Answer(connection.recv, method))

    def close(self) -> None:
        """Close kept connections."""
        for origin in list(self._idle):
            while (connection := self._take_idle(origin)) is not None:
                connection.close()

    def keep(self, origin: str, connection: socket.socket) -> None:
        """Take back a connection whose answer was read to its end."""
        idle = self._idle.setdefault(origin, [])
        if len(idle) < REGISTRY_IDLE_CONNECTIONS:
            idle.append(connection)
        else:
            connection.close()

    def _take_idle(self, origin: str) -> socket.socket | None:
        try:
            return self._idle.get(origin, []).pop()  # one step, so that two threads never get the same
        except IndexError:
            return None

    def _connect(self, origin: str) -> socket.socket:
        scheme, _, authority = origin.partition("://")
        host, port = split_authority(authority, _DEFAULT_PORTS[scheme])
        plain = self._dial(scheme, host, port)
        try:
            return plain if scheme == "http" else self._secure(plain, host, port)
        except BaseException:
            plain.close()
            raise

    # What an owner's transport does otherwise: `cloister.oci.network`.

    def _target(self, _: str, path: str) -> str:
        """Return what is asked for, in the first line of a request to the server at an origin."""
        return path

    def _dial(self, _: str, host: str, port: int) -> socket.socket:
        """Return a connection to `host`, without TLS."""
        import socket

        plain = socket.create_connection((host, port), self._timeout)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return plain

    def _secure(self, plain: socket.socket, host: str, _: int) -> ssl.SSLSocket:
        """Return the same connection with TLS."""
        import ssl

        if self._tls is None:
            self._tls = (self._make_tls or ssl.create_default_context)()
        return self._tls.wrap_socket(plain, server_hostname=host)


class _HTTPResponse:
    """One answer; hands its connection back once the body was read."""

    __slots__ = ("_answer", "_connection", "_origin", "_transport", "status")

    def __init__(self, transport: HTTPTransport, origin: str, connection: socket.socket, answer: Answer) -> None:
        self._transport = transport
        self._origin = origin
        self._connection: socket.socket | None = connection
        self._answer = answer
        self.status = answer.status
        self._release_if_done()

    def header(self, name: str) -> str:
        return self._answer.headers.get(name.lower(), "")

    def read(self, count: int) -> bytes:
        try:
            data = self._answer.read(count)
        except (OSError, FormatRefused) as err:
            self.close()
            raise Unavailable("oci.transport.interrupted", "registry broke off its answer", path=self._origin) from err
        self._release_if_done()
        return data

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _release_if_done(self) -> None:
        if self._connection is not None and self._answer.ended:
            if self._answer.reusable:
                self._transport.keep(self._origin, self._connection)
            else:
                self._connection.close()
            self._connection = None


def split_origin(url: str) -> tuple[str, str]:
    """Return `scheme://host[:port]` in lower case, and the rest of an HTTP URL.

    Raises:
        Unavailable: `oci.transport.bad_url`; a server named it, so it is no fault of the input.
    """
    scheme, mark, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    if not mark or scheme.lower() not in _DEFAULT_PORTS or not authority or set(authority) & set("@?# \\"):
        raise Unavailable("oci.transport.bad_url", "not an HTTP address without user name", path=url[:200])
    scheme, authority = scheme.lower(), authority.lower()
    return f"{scheme}://{authority.removesuffix(f':{_DEFAULT_PORTS[scheme]}')}", f"{slash or '/'}{path}"


def split_authority(authority: str, default_port: int) -> tuple[str, int]:
    """Return host and port of `host`, `host:port`, `[v6]` or `[v6]:port`; ValueError where it is none of them."""
    host, bracket, rest = authority.removeprefix("[").partition("]")
    if not authority.startswith("["):
        host, colon, rest = authority.partition(":")
        rest = colon + rest
    elif not bracket:
        raise ValueError("an address without its closing bracket")
    port = rest.removeprefix(":")
    if not rest:
        return host, default_port
    if rest == port or not (port.isascii() and port.isdigit() and int(port) <= _LAST_PORT):
        raise ValueError("not a port")
    return host, int(port)


def host_of(origin: str) -> str:
    """Return the host of an origin, an IPv6 address without its brackets, empty where there is none."""
    scheme, _, authority = origin.partition("://")
    try:
        return split_authority(authority, _DEFAULT_PORTS.get(scheme, 0))[0]
    except ValueError:
        return ""


def is_address(host: str) -> bool:
    """Whether `host` is an IP address, in any form that resolvers take for one (`127.1`, `2130706433`)."""
    return _packed(host) is not None


def is_inside_address(host: str) -> bool:
    """Whether `host` is written as an address of this machine itself, or of the metadata service of its cloud.

    A name may lead there as well; what is fetched from it is checked by its digest, and gets no credentials.
    """
    name = host.rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    packed = _packed(host)
    if packed is None:
        return False
    if len(packed) == _IPV4_BYTES:
        return packed[0] in (0, 127) or packed[:2] == b"\xa9\xfe"
    link_local = packed[0] == 0xFE and packed[1] & 0xC0 == 0x80
    return link_local or packed in (bytes(16), bytes(15) + b"\x01") or packed == _IPV6_METADATA


def _packed(host: str) -> bytes | None:
    import socket

    try:
        packed = socket.inet_pton(socket.AF_INET6, host) if ":" in host else socket.inet_aton(host)
    except (OSError, ValueError):  # ValueError: a NUL, or letters that no address has
        return None
    mapped = len(packed) > _IPV4_BYTES and packed.startswith(_MAPPED)
    return packed[-_IPV4_BYTES:] if mapped else packed


def _require_elsewhere(connection: socket.socket, origin: str) -> None:
    """Compare both ends: only a connection to this machine itself has one address at both, or is on loopback."""
    peer, own = connection.getpeername()[0], connection.getsockname()[0]
    if peer == own or peer.removeprefix("::ffff:").startswith("127."):
        raise Unavailable("oci.transport.own_address", "registry address leads back to this machine", path=origin)


def _unreachable(origin: str, err: Exception) -> Unavailable:
    return Unavailable(
        "oci.transport.unreachable",
        "registry does not answer",
        path=origin,
        actual=str(err)[:200] or type(err).__name__,
        hint="check the address and that the registry is up; a registry without TLS has to be named as such",
    )
