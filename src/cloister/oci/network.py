"""How the owner's tools reach registries on this machine's network: proxies, certificate directories, and what the
files of credentials and mirrors say.

Proxies are those of the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`), plain HTTP proxies only; this machine
itself is never asked for through one. `certs.d/HOST[:PORT]` in `/etc/containers`, `/etc/docker` and
`~/.config/containers` holds further CA certificates (`*.crt`) and a client's certificate (`*.cert` with `*.key`), as
containers-certs.d(5) says. Not in the pod VM.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from cloister.errors import FormatRefused, Unavailable
from cloister.oci.credentials import find_credentials
from cloister.oci.location import ImageLocation, RegistryAccess, RegistryPlace
from cloister.oci.mirrors import Place, read_rules, rule_files
from cloister.oci.session import Credentials
from cloister.oci.transport import HTTPTransport, Response, is_inside_address, split_authority
from cloister.wire.http1 import Answer
from cloister.wire.limits import REGISTRY_SECONDS

if TYPE_CHECKING:
    import socket

_CODE: Final = "oci.network"
_CERTIFICATES: Final = 64


class OwnerTransport(HTTPTransport):
    """A transport that knows proxies and certificate directories.

    Args:
        environment: says which proxies there are, and where the user's directories.
        system: where the machine's directories are.
        timeout_seconds: longest silence on a connection.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        system: Path = Path("/etc"),
        timeout_seconds: float = REGISTRY_SECONDS,
    ) -> None:
        super().__init__(timeout_seconds=timeout_seconds)
        self._seconds = timeout_seconds
        self._proxies = _proxies(environment)
        config = Path(environment.get("XDG_CONFIG_HOME") or Path(environment.get("HOME") or "/") / ".config")
        self._certificates = [
            config / "containers" / "certs.d",
            system / "containers" / "certs.d",
            system / "docker" / "certs.d",
        ]
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._unchecked: set[str] = set()

    def accept_any_certificate(self, authority: str) -> None:
        """Do not check who answers as `authority` (`host[:port]`): its owner wrote `insecure`."""
        self._unchecked.add(authority.lower().removesuffix(":443"))

    def open(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Response:
        """Send a request, see `Transport.open`; one for plain HTTP may go to a proxy."""
        if url.lower().startswith("http://"):
            proxy = self._proxy_for("http", urlsplit(url).hostname or "")
            if proxy is not None and proxy.authorization:
                headers = {**headers, "Proxy-Authorization": proxy.authorization}
        return super().open(method, url, headers, body)

    def _target(self, origin: str, path: str) -> str:
        scheme, _, authority = origin.partition("://")
        host, _ = split_authority(authority, 0)
        return f"{origin}{path}" if scheme == "http" and self._proxy_for("http", host) else path

    def _dial(self, scheme: str, host: str, port: int) -> socket.socket:
        proxy = self._proxy_for(scheme, host)
        if proxy is None:
            return super()._dial(scheme, host, port)
        connection = super()._dial("http", proxy.host, proxy.port)
        if scheme == "http":
            return connection
        try:
            _tunnel(connection, proxy, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _secure(self, plain: socket.socket, host: str, port: int) -> ssl.SSLSocket:
        name = f"[{host}]" if ":" in host else host
        authority = name if port == 443 else f"{name}:{port}"
        if authority not in self._contexts:
            self._contexts[authority] = self._context(authority)
        return self._contexts[authority].wrap_socket(plain, server_hostname=host)

    def _context(self, authority: str) -> ssl.SSLContext:
        context = ssl.create_default_context()
        if authority in self._unchecked:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        for directory in self._certificates:
            _load_certificates(context, directory / authority)
        return context

    def _proxy_for(self, scheme: str, host: str) -> _Proxy | None:
        text = self._proxies.get(scheme) or self._proxies.get("all", "")
        if not text or is_inside_address(host) or _goes_past(host, self._proxies.get("no", "")):
            return None
        return _parse_proxy(text)


def owner_access(location: ImageLocation, transport: OwnerTransport, environment: Mapping[str, str]) -> RegistryAccess:
    """Return how to reach the registry of a location: by the rules, certificates and credentials of this machine.

    Plain HTTP is spoken to this machine itself, and to a registry that its rule calls insecure if it answers no TLS.

    Raises:
        ImageRefused: `oci.mirrors.*`, `oci.credentials.*`.
        Unavailable: `oci.mirrors.unreadable`, `oci.credentials.*`.
    """
    if location.reference is None:
        return RegistryAccess(transport=transport, plain_http=False, other_origins=True)
    places = read_rules(rule_files(environment)).places(location.reference)
    reached = tuple(_reach(place, transport, find_credentials(place.reference, environment)) for place in places)
    own = reached[-1]
    return RegistryAccess(
        transport=transport, plain_http=own.plain_http, other_origins=own.other_origins, places=reached
    )


def _reach(place: Place, transport: OwnerTransport, credentials: Credentials | None) -> RegistryPlace:
    registry = place.reference.registry
    local = _is_local(registry)
    plain = local
    if place.insecure and not local:
        transport.accept_any_certificate(registry)
        plain = not _answers_tls(transport, registry)
    return RegistryPlace(
        reference=place.reference,
        plain_http=plain,
        other_origins=not local,
        credentials=credentials,
        token_services=place.token_services,
    )


def _is_local(registry: str) -> bool:
    host, _ = split_authority(registry, 0)
    return host == "localhost" or host.startswith("127.") or host == "::1"


def _answers_tls(transport: OwnerTransport, registry: str) -> bool:
    try:
        transport.open("GET", f"https://{registry}/v2/", {}).close()
    except Unavailable:
        return False
    return True


# -- proxies --------------------------------------------------------------------------------------------------------


class _Proxy:
    """A plain HTTP proxy; `authorization` is empty where it wants none."""

    __slots__ = ("authorization", "host", "port")

    def __init__(self, host: str, port: int, authorization: str) -> None:
        self.host = host
        self.port = port
        self.authorization = authorization


def _proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the proxies by scheme, and what goes past them under `no`."""
    found: dict[str, str] = {}
    for name, value in environment.items():
        if name.lower().endswith("_proxy") and value:
            found.setdefault(name.lower().removesuffix("_proxy"), value)
    for name, value in environment.items():  # lower case wins, as with curl
        if name.endswith("_proxy") and value:
            found[name.removesuffix("_proxy")] = value
    return found


def _goes_past(host: str, exceptions: str) -> bool:
    """Whether `NO_PROXY` names `host`: by itself, by a domain above it, by its network, or all by `*`."""
    for text in exceptions.split(","):
        name = text.strip().lower().removeprefix("*.").removeprefix(".")
        if name == "*" or (name and (host == name or host.endswith(f".{name}"))):
            return True
        with contextlib.suppress(ValueError):
            if ip_address(host) in ip_network(name, strict=False):
                return True
    return False


def _parse_proxy(text: str) -> _Proxy:
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port or 80
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme != "http" or not parts.hostname:
        raise Unavailable(
            f"{_CODE}.proxy",
            "proxy of this machine cannot be used",
            expected="http://HOST:PORT",
            actual=f"{parts.scheme}://{parts.hostname or ''}"[:80],
            hint="set HTTPS_PROXY to a plain HTTP proxy, or NO_PROXY for this registry",
        )
    authorization = ""
    if parts.username is not None:
        authorization = Credentials(unquote(parts.username), unquote(parts.password or "")).basic
    return _Proxy(parts.hostname, port, authorization)


def _tunnel(connection: socket.socket, proxy: _Proxy, authority: str) -> None:
    """Have the proxy connect us (RFC 9110, section 9.3.6)."""
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
    try:
        status = Answer(lambda _: connection.recv(1), "CONNECT").status  # not a byte of what comes behind
    except FormatRefused as err:
        raise OSError("proxy answers no HTTP") from err
    if status != 200:
        raise OSError(f"proxy refuses with status {status}")


# -- certificates ---------------------------------------------------------------------------------------------------


def _load_certificates(context: ssl.SSLContext, directory: Path) -> None:
    """Add the CA certificates and the client's own from one directory.

    Raises:
        Unavailable: `oci.network.certificates`.
    """
    try:
        for path in sorted(directory.glob("*.crt"))[:_CERTIFICATES]:
            context.load_verify_locations(cafile=path)
        for path in sorted(directory.glob("*.cert"))[:_CERTIFICATES]:
            context.load_cert_chain(path, path.with_suffix(".key"))
    except OSError as err:  # also what ssl says of a file without a certificate
        raise Unavailable(
            f"{_CODE}.certificates", "cannot use a certificate", path=str(directory), actual=str(err)[:120]
        ) from err
