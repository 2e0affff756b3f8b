"""A secrets server that speaks KV version 2 as HashiCorp Vault and OpenBao do, over real TLS, to be made fail.

https://openbao.org/api-docs/secret/kv/kv-v2/: read, write with check-and-set, delete of the latest version. What it
refuses has the status and the body of the real server; the test of the key store runs against both. A test drives it
by `sealed`, `token`, `delay` and `close`.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from cloister.crypto.tlsca import CertificateAuthority

_HOST: Final = "127.0.0.1"


@dataclass
class _Version:
    data: dict[str, Any] | None  # Any: JSON of the writer; None when deleted
    created: str


@dataclass
class FakeVault:
    """The server. Use as a context manager.

    Attributes:
        directory: where its CA certificate and the token file are written.
        mount: of the KV engine.
        token: the one accepted.
        sealed: answer 503, as a sealed server does.
        delay: seconds before each answer.
        log: method and path of each request.
    """

    directory: Path
    mount: str = "secret"
    token: str = "fake-token"  # noqa: S105  of a fake
    sealed: bool = False
    delay: float = 0.0
    port: int = 0
    log: list[str] = field(default_factory=list)
    _secrets: dict[str, list[_Version]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _server: _Server | None = None

    def __enter__(self) -> FakeVault:
        now = datetime.now(UTC)
        authority_file, key_file = self.directory / "vault-ca.pem", self.directory / "vault.key"
        if not authority_file.exists():
            authority = CertificateAuthority.create("fake vault", at=now)
            issued = authority.issue_server((_HOST,), at=now)
            authority_file.write_bytes(authority.certificate_pem)
            key_file.write_bytes(issued.key_pem + issued.certificate_pem)
            self.give_token(self.token)
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def uri(self) -> str:
        """Address of a key store in it."""
        files = f"token-file={self.directory}/vault-token&ca-file={self.directory}/vault-ca.pem"
        return f"vault://{_HOST}:{self.port}/{self.mount}/cloister/root?{files}"

    def give_token(self, token: str) -> None:
        """Write the token file, as an agent does."""
        place = self.directory / "vault-token"
        place.write_text(token + "\n")
        place.chmod(0o600)

    def open(self) -> None:
        """Answer, on the same port as before."""
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(*fake._handle("GET", self.path, self.headers.get("X-Vault-Token", ""), b""))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                self._answer(*fake._handle("POST", self.path, self.headers.get("X-Vault-Token", ""), body))

            def do_DELETE(self) -> None:
                self._answer(*fake._handle("DELETE", self.path, self.headers.get("X-Vault-Token", ""), b""))

            def log_message(self, format: str, *args: object) -> None:
                pass

            def _answer(self, status: int, body: object) -> None:
                text = b"" if body is None else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / "vault.key")
        server = _Server((_HOST, self.port), Handler)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = server.server_address[1]
        self._server = server
        threading.Thread(target=server.serve_forever, args=(0.02,), name="fake-vault", daemon=True).start()

    def close(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.drop()
            self._server = None

    def secret(self, path: str = "cloister/root") -> dict[str, Any] | None:  # Any: JSON of the writer
        """Return the latest version of a secret."""
        versions = self._secrets.get(path)
        return versions[-1].data if versions else None

    def _handle(self, method: str, path: str, token: str, body: bytes) -> tuple[int, object]:
        self.log.append(f"{method} {path}")
        time.sleep(self.delay)
        if self.sealed:
            return 503, {"errors": ["Vault is sealed"]}
        if token != self.token:
            return 403, {"errors": ["permission denied"]}
        route = f"/v1/{self.mount}/data/"
        if not path.startswith(route):
            return 404, {"errors": [f'no handler for route "{path.removeprefix("/v1/")}". route entry not found.']}
        with self._lock:
            return self._kv(method, self._secrets.setdefault(path.removeprefix(route), []), body)

    def _kv(self, method: str, versions: list[_Version], body: bytes) -> tuple[int, object]:
        if method == "DELETE":
            if versions:
                versions[-1].data = None
            return 204, None
        if method == "POST":
            request = json.loads(body)
            if request.get("options", {}).get("cas", len(versions)) != len(versions):
                return 400, {"errors": ["check-and-set parameter did not match the current version"]}
            versions.append(_Version(request["data"], datetime.now(UTC).isoformat()))
            return 200, _enveloped(_metadata(versions))
        if not versions:
            return 404, {"errors": []}
        latest = versions[-1]
        status = 200 if latest.data is not None else 404
        return status, _enveloped({"data": latest.data, "metadata": _metadata(versions)})


class _Server(ThreadingHTTPServer):
    """Remembers its connections, so that a closed server is gone for those who hold one, too."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *arguments: Any) -> None:  # Any: as socketserver takes them
        super().__init__(*arguments)
        self._held: list[Any] = []  # Any: sockets, as socketserver types them

    def process_request(self, request: Any, client_address: Any) -> None:  # Any: as socketserver types them
        self._held.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:  # Any: as socketserver types them
        """A client that went away is no news."""

    def drop(self) -> None:
        for held in self._held:
            held.close()


def _enveloped(data: object) -> dict[str, object]:
    return {
        "request_id": str(uuid.uuid4()),
        "lease_id": "",
        "renewable": False,
        "lease_duration": 0,
        "data": data,
        "wrap_info": None,
        "warnings": None,
        "auth": None,
    }


def _metadata(versions: list[_Version]) -> dict[str, object]:
    return {
        "created_time": versions[-1].created,
        "custom_metadata": None,
        "deletion_time": "" if versions[-1].data is not None else versions[-1].created,
        "destroyed": False,
        "version": len(versions),
    }
