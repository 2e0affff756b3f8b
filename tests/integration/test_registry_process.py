"""The embedded registry and the HTTP transport over real sockets, and how the registry's process begins and ends."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from cloister.crypto.tlsca import CertificateAuthority
from cloister.errors import CloisterError, Unavailable
from cloister.host.registry.__main__ import tls_files
from cloister.oci.digest import Digest
from cloister.oci.distribution import RegistryClient
from cloister.oci.manifest import OCI_INDEX, Descriptor
from cloister.oci.reference import parse_reference
from cloister.oci.session import Credentials
from cloister.oci.store import checked_blob, read_manifest
from cloister.oci.transport import HTTPTransport
from conformance.registry_process import RegistryProcess

INDEX = b'{"schemaVersion":2,"mediaType":"%s","manifests":[]}' % OCI_INDEX.encode()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[RegistryProcess]:
    with RegistryProcess(tmp_path / "registry") as process:
        yield process


def describe(content: bytes) -> Descriptor:
    return Descriptor(media_type="x", digest=Digest.of(content), size=len(content))


@pytest.mark.parametrize("size", [0, 1, 300_000, 20 << 20])
def test_push_and_pull_over_http(registry: RegistryProcess, size: int) -> None:
    content = os.urandom(size)
    client = registry.client("team/app")
    client.write_blob(content[i : i + 1_000_000] for i in range(0, size, 1_000_000))
    assert client.has_blob(Digest.of(content))
    assert b"".join(checked_blob(client, describe(content))) == content
    client.write_manifest(INDEX, OCI_INDEX, "v1")
    assert read_manifest(client, "v1").raw == INDEX
    assert client.get_manifest("none") is None


def test_one_connection_serves_many_requests(registry: RegistryProcess) -> None:
    connections = set()
    client = registry.client("a")
    client.write_manifest(INDEX, OCI_INDEX, "v1")
    for _ in range(5):
        client.get_manifest("v1")
        connections.add(id(next(iter(registry.transport._idle.values()))[0]))
    assert len(connections) == 1


def test_a_restarted_registry_still_has_its_images(tmp_path: Path) -> None:
    with RegistryProcess(tmp_path / "r") as first:
        first.client("a").write_manifest(INDEX, OCI_INDEX, "v1")
        transport = first.transport
        assert first.stop() == (0, "")
        with pytest.raises(Unavailable) as caught:
            transport.open("GET", f"http://{first.address}/v2/", {})
        assert caught.value.code == "oci.transport.unreachable"
    with RegistryProcess(tmp_path / "r") as second:
        assert read_manifest(second.client("a"), "v1").raw == INDEX


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_cleanly_with_open_connections(tmp_path: Path, number: int) -> None:
    with RegistryProcess(tmp_path / "r") as registry:
        idle = socket.create_connection(("127.0.0.1", registry.port))
        registry.client("a").get_manifest("v1")
        assert registry.stop(number) == (0, "")
        idle.close()


def test_it_is_reachable_on_the_loopback_address_only(registry: RegistryProcess) -> None:
    listening = subprocess.run(["cat", "/proc/net/tcp", "/proc/net/tcp6"], capture_output=True, text=True, check=True)
    lines = [line.split()[1] for line in listening.stdout.splitlines() if f":{registry.port:04X} " in line]
    assert {line.partition(":")[0] for line in lines if line.endswith(f":{registry.port:04X}")} == {"0100007F"}


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    """The parent is killed, so that it can do nothing about it."""
    script = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'cloister.host.registry', '--root', sys.argv[1],\n"
        "    '--parent', str(os.getpid())], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "r")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and is_running(child):
        time.sleep(0.02)
    assert not is_running(child)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--parent", "1"], "host.registry.parent_gone"), (["--port", "PORT"], "host.registry.port_taken")],
)
def test_it_says_why_it_does_not_start(tmp_path: Path, arguments: list[str], code: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = [word.replace("PORT", str(taken.getsockname()[1])) for word in arguments]
        command = [sys.executable, "-m", "cloister.host.registry", "--root", str(tmp_path), *words]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, code in result.stderr) == (3, True)


# -- the transport against servers that misbehave -----------------------------------------------------------------


class Server:
    """Answers each connection with the next of some raw answers, and then closes it."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = answers
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/x"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        for answer in self._answers:
            connection, _ = self._socket.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)


def attempt(server: Server, timeout: float = 5.0) -> str:
    transport = HTTPTransport(timeout_seconds=timeout)
    with pytest.raises(CloisterError) as caught:
        response = transport.open("GET", server.url, {})
        while response.read(1000):
            continue
    transport.close()
    return caught.value.code


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"", "oci.transport.unreachable"),
        (b"not http\r\n\r\n", "oci.transport.unreachable"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", "oci.transport.unreachable"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000 + b"\r\n\r\n", "oci.transport.unreachable"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "oci.transport.interrupted"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc", "oci.transport.interrupted"),
    ],
)
def test_broken_answers_are_unavailable(answer: bytes, code: str) -> None:
    with Server(answer) as server:
        assert attempt(server) == code


def test_silence_ends_at_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        transport = HTTPTransport(timeout_seconds=0.2)
        with pytest.raises(Unavailable) as caught:
            transport.open("GET", f"http://127.0.0.1:{silent.getsockname()[1]}/", {})
    assert caught.value.code == "oci.transport.unreachable"


def test_a_kept_connection_that_was_closed_meanwhile_is_made_anew() -> None:
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    with Server(good, good) as server:
        transport = HTTPTransport(timeout_seconds=5)
        for _ in range(2):
            response = transport.open("GET", server.url, {})
            assert response.read(10) == b"ok"
            response.close()
        transport.close()


def test_tls_is_made_once_and_only_for_a_server_that_speaks_it() -> None:
    made: list[ssl.SSLContext] = []

    def make() -> ssl.SSLContext:
        made.append(ssl.create_default_context())
        return made[-1]

    plain = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    with Server(plain, b"", b"") as server:
        transport = HTTPTransport(tls=make, timeout_seconds=5)
        transport.open("GET", server.url, {}).close()
        transport.close()
        assert made == []
        for _ in range(2):
            with pytest.raises(Unavailable) as caught:
                transport.open("GET", server.url.replace("http:", "https:"), {})
            assert caught.value.code == "oci.transport.unreachable"
        assert len(made) == 1


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/", "http://127.0.0.1:notaport/", "http://a\nb/", "http://127.0.0.1/\r\nX: y"]
)
def test_addresses_where_nobody_is(url: str) -> None:
    with pytest.raises(Unavailable) as caught:
        HTTPTransport(timeout_seconds=2).open("GET", url, {})
    assert caught.value.code.startswith("oci.transport.")


def test_people_start_one_by_a_command(tmp_path: Path) -> None:
    (tmp_path / "users").write_text("ann:word\n")
    command = [sys.executable, "-m", "cloister", "registry", "serve", "--data", str(tmp_path / "data")]
    command += ["--listen", "127.0.0.1:0", "--users", str(tmp_path / "users"), "--anonymous-pull"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            port = int(process.stderr.readline().partition("http://127.0.0.1:")[2].split()[0])
            reference = parse_reference(f"127.0.0.1:{port}/app")
            for credentials, taken in ((Credentials("ann", "word"), True), (None, False)):
                transport = HTTPTransport()
                client = RegistryClient(
                    transport, reference, plain_http=True, other_origins=False, credentials=credentials
                )
                if taken:
                    client.write_manifest(INDEX, OCI_INDEX, "v1")
                else:
                    with pytest.raises(Unavailable) as caught:
                        client.write_manifest(INDEX, OCI_INDEX, "v1")
                    assert caught.value.code == "oci.distribution.denied"
                assert read_manifest(client, "v1").raw == INDEX
                transport.close()
        finally:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 0


# -- TLS ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Files: CA, certificate for localhost, its key."""
    authority = CertificateAuthority.create("registry root", at=datetime.now(UTC))
    issued = authority.issue_server(("localhost",), at=datetime.now(UTC))
    files = tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem"
    for path, content in zip(files, (authority.certificate_pem, issued.certificate_pem, issued.key_pem), strict=True):
        path.write_bytes(content)
    return files


def test_push_and_pull_over_tls(tmp_path: Path, certificate: tuple[Path, Path, Path]) -> None:
    """With tokens, whose address is told to the client, and must be https as well."""
    ca, cert, key = certificate
    (tmp_path / "users").write_text("ann:word\n")
    options = ("--tls-cert", str(cert), "--tls-key", str(key), "--users", str(tmp_path / "users"), "--tokens")
    with RegistryProcess(tmp_path / "registry", *options) as registry:
        reference = parse_reference(f"localhost:{registry.port}/team/app")

        def client(transport: HTTPTransport, *, plain_http: bool = False) -> RegistryClient:
            ann = Credentials("ann", "word")
            return RegistryClient(
                transport, reference, plain_http=plain_http, other_origins=False, credentials=ann, sleep=lambda _: None
            )

        with closing(HTTPTransport(tls=lambda: ssl.create_default_context(cafile=str(ca)))) as transport:
            client(transport).write_manifest(INDEX, OCI_INDEX, "v1")
            assert read_manifest(client(transport), "v1").raw == INDEX
        with closing(HTTPTransport()) as transport:
            for plain in (False, True):  # a certificate that nobody vouches for; no TLS at all
                with pytest.raises(Unavailable):
                    read_manifest(client(transport, plain_http=plain), "v1")


@pytest.mark.parametrize("wrong", ["no key", "no certificate", "another key", "encrypted key", "text"])
def test_certificates_that_cannot_be_used_are_told(
    tmp_path: Path, certificate: tuple[Path, Path, Path], wrong: str
) -> None:
    _, cert, key = certificate
    other = ec.generate_private_key(ec.SECP256R1())
    if wrong in ("another key", "encrypted key"):
        lock = NoEncryption() if wrong == "another key" else BestAvailableEncryption(b"word")
        key.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock))
    if wrong == "text":
        cert.write_text("no certificate")
    with pytest.raises(Unavailable) as caught:
        tls_files(None if wrong == "no certificate" else cert, None if wrong == "no key" else key)
    assert caught.value.code == "host.registry.tls"
    assert tls_files(None, None) is None
