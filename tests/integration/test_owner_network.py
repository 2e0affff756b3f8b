"""The owner's transport over real sockets: proxies, certificate directories, registries that rules call insecure."""

from __future__ import annotations

import contextlib
import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cloister.crypto.tlsca import CertificateAuthority
from cloister.errors import CloisterError, Unavailable
from cloister.oci.location import open_source, parse_location
from cloister.oci.manifest import OCI_INDEX
from cloister.oci.network import OwnerTransport, owner_access
from cloister.oci.store import read_manifest

INDEX = b'{"schemaVersion":2,"mediaType":"%s","manifests":[]}' % OCI_INDEX.encode()
NOW = datetime.now(UTC)


class Registry(http.server.BaseHTTPRequestHandler):
    """Serves one index; keeps the request lines."""

    protocol_version = "HTTP/1.1"
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path} {self.headers.get('Proxy-Authorization', '')}".strip())
        self.send_response(200)
        self.send_header("Content-Type", OCI_INDEX)
        self.send_header("Content-Length", str(len(INDEX)))
        self.end_headers()
        self.wfile.write(INDEX)

    def log_message(self, format: str, *args: object) -> None:
        return


class Proxy(Registry):
    """Leads every tunnel to one port, and answers what is asked for in the open by itself."""

    target = 0
    status = 200

    def do_CONNECT(self) -> None:
        self.asked.append(f"CONNECT {self.path} {self.headers.get('Proxy-Authorization', '')}".strip())
        self.send_response(self.status)
        self.end_headers()
        if self.status != 200:
            return
        with socket.create_connection(("127.0.0.1", self.target)) as far:
            back = threading.Thread(target=relay, args=(far, self.connection))
            back.start()
            relay(self.connection, far)
            back.join()


def relay(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


class Server:
    """One of the handlers on a port of its own."""

    def __init__(self, handler: type[Any], context: ssl.SSLContext | None = None, **values: Any) -> None:
        self.asked: list[str] = []
        self._server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (handler,), {"asked": self.asked, **values})
        )
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that refuses our certificate
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def authority() -> CertificateAuthority:
    return CertificateAuthority.create("test root", at=NOW)


@pytest.fixture
def tls(tmp_path: Path, authority: CertificateAuthority) -> Iterator[Server]:
    issued = authority.issue_server(("images.test", "localhost"), at=NOW)
    (tmp_path / "server.pem").write_bytes(issued.certificate_pem + issued.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    server = Server(Registry, context)
    yield server
    server.close()


@pytest.fixture
def trusted(tmp_path: Path, authority: CertificateAuthority) -> Path:
    """A system directory in which images.test has a CA of its own."""
    directory = tmp_path / "etc" / "containers" / "certs.d" / "images.test"
    directory.mkdir(parents=True)
    (directory / "ca.crt").write_bytes(authority.certificate_pem)
    return tmp_path / "etc"


def fetch(transport: OwnerTransport, url: str) -> bytes:
    response = transport.open("GET", url, {})
    with contextlib.closing(response), contextlib.closing(transport):
        return response.read(1 << 20)


def refused(transport: OwnerTransport, url: str) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        fetch(transport, url)
    return caught.value


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_tls_goes_through_a_tunnel(tls: Server, trusted: Path, variable: str) -> None:
    proxy = Server(Proxy, target=tls.port)
    environment = {variable: f"http://ann:wo%3Ard@127.0.0.1:{proxy.port}"}
    assert fetch(OwnerTransport(environment, system=trusted), "https://images.test/v2/") == INDEX
    assert proxy.asked == ["CONNECT images.test:443 Basic YW5uOndvOnJk"]
    assert tls.asked == ["GET /v2/"]  # the proxy's password stays with the proxy
    proxy.close()


def test_the_tunnels_other_end_is_checked(tls: Server, tmp_path: Path) -> None:
    proxy = Server(Proxy, target=tls.port)
    environment = {"HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}"}
    error = refused(OwnerTransport(environment, system=tmp_path), "https://images.test/v2/")
    assert (error.code, tls.asked) == ("oci.transport.unreachable", [])
    proxy.close()


def test_a_proxy_that_refuses_is_told(tls: Server, trusted: Path) -> None:
    proxy = Server(Proxy, target=tls.port, status=403)
    environment = {"HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}"}
    error = refused(OwnerTransport(environment, system=trusted), "https://images.test/v2/")
    assert (error.code, "status 403" in error.actual) == ("oci.transport.unreachable", True)
    proxy.close()


def test_plain_http_is_asked_for_by_its_whole_address(tmp_path: Path) -> None:
    proxy = Server(Proxy)
    environment = {"HTTP_PROXY": f"http://ann:word@127.0.0.1:{proxy.port}"}
    assert fetch(OwnerTransport(environment, system=tmp_path), "http://images.test:5000/v2/") == INDEX
    assert proxy.asked == ["GET http://images.test:5000/v2/ Basic YW5uOndvcmQ="]
    proxy.close()


@pytest.mark.parametrize(
    ("exceptions", "past"),
    [
        ("", False),
        ("*", True),
        ("localhost,images.test", True),
        (".test", True),
        ("*.test", True),
        ("mages.test", False),
    ],
)
def test_what_goes_past_the_proxy(tmp_path: Path, exceptions: str, past: bool) -> None:
    proxy = Server(Proxy)
    environment = {"HTTP_PROXY": f"http://127.0.0.1:{proxy.port}", "NO_PROXY": exceptions}
    transport = OwnerTransport(environment, system=tmp_path, timeout_seconds=2)
    assert (transport._proxy_for("http", "images.test") is None) is past
    assert transport._proxy_for("http", "127.0.0.1") is None
    proxy.close()


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "https://proxy.test", "http://", "http://[x", "http://p:x"])
def test_other_proxies_are_refused(tmp_path: Path, proxy: str) -> None:
    assert refused(OwnerTransport({"ALL_PROXY": proxy}, system=tmp_path), "https://images.test/").code == (
        "oci.network.proxy"
    )


def test_a_certificate_that_is_none_is_told(tls: Server, trusted: Path) -> None:
    (trusted / "containers" / "certs.d" / "images.test" / "ca.crt").write_text("no certificate")
    proxy = Server(Proxy, target=tls.port)
    environment = {"HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}"}
    error = refused(OwnerTransport(environment, system=trusted), "https://images.test/v2/")
    assert error.code == "oci.network.certificates"
    proxy.close()


def test_a_clients_certificate_needs_its_key(tmp_path: Path, authority: CertificateAuthority) -> None:
    directory = tmp_path / "docker" / "certs.d" / "images.test:5000"
    directory.mkdir(parents=True)
    one, other = (authority.issue_server(("client.test",), at=NOW) for _ in range(2))
    (directory / "client.cert").write_bytes(one.certificate_pem)
    for key, taken in ((one.key_pem, True), (other.key_pem, False)):
        (directory / "client.key").write_bytes(key)
        transport = OwnerTransport({}, system=tmp_path)
        if taken:
            assert transport._context("images.test:5000")
            continue
        with pytest.raises(Unavailable) as caught:
            transport._context("images.test:5000")
        assert caught.value.code == "oci.network.certificates"


@pytest.mark.parametrize("secure", [True, False])
def test_an_insecure_registry_is_asked_by_tls_first(
    tmp_path: Path, tls: Server, secure: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As containers' tools do: its certificate is not checked, and where there is none plain HTTP is spoken."""
    plain = Server(Registry)
    server = tls if secure else plain
    registry = f"images.test:{server.port}"
    rules = tmp_path / "registries.conf"
    environment = {"CONTAINERS_REGISTRIES_CONF": str(rules), "HOME": str(tmp_path)}
    resolve = socket.create_connection

    def to_this_machine(address: tuple[str, int], *rest: Any) -> socket.socket:
        return resolve(("127.0.0.1", address[1]), *rest)

    monkeypatch.setattr(socket, "create_connection", to_this_machine)
    location = parse_location(f"docker://{registry}/app:v1")

    def read() -> bytes:
        with (
            contextlib.closing(OwnerTransport(environment, timeout_seconds=5)) as transport,
            open_source(location, owner_access(location, transport, environment)) as source,
        ):
            return read_manifest(source, "v1").raw

    rules.write_text(f'[[registry]]\nlocation = "{registry}"\n')
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(Unavailable) as caught:
        read()
    assert caught.value.code == "oci.transport.unreachable"
    assert server.asked == []
    rules.write_text(f'[[registry]]\nlocation = "{registry}"\ninsecure = true\n')
    assert read() == INDEX
    plain.close()
