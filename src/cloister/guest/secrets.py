"""The workload's way to its own secrets: CoCo's REST conventions on 127.0.0.1:8006, with authorisation per container.

    GET /cdh/resource/<repository>/<type>/<tag>   the resource's bytes
    GET /aa/token?token_type=kbs                  {"token": "<JWT>", "tee_keypair": ""}

In CoCo every process that reaches loopback may read everything that was released to the pod. Here the peer's socket
is looked up in the kernel's table, then the process that holds it, then the container that process is in; the
measured policy says what that container may have. Whoever is in no container, or in two, gets 403. The key pair is
always empty: with it a container could open the answers to others.

A tiny HTTP/1.1 server (RFC 9112): one request per connection, GET only, bounded in size, time and number. Its clients
are the containers, which are trusted with their own secrets and nothing else.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from cloister.errors import CloisterError, FormatRefused, KeyReleaseDenied, PodPolicyRefused, Unavailable
from cloister.protocol.resourceuri import ResourcePath, parse_resource_path

if TYPE_CHECKING:
    import socket

ADDRESS: Final = ("127.0.0.1", 8006)
_REQUEST_BYTES: Final = 8 * 1024
_SECONDS: Final = 10.0
_CONNECTIONS: Final = 16
_RESOURCE: Final = "/cdh/resource/"
_TOKEN: Final = "/aa/token"  # noqa: S105  # a path
_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class SecretsOfPod(Protocol):
    """What is used of `cloister.guest.pod.Pod`."""

    def running_processes(self) -> list[int]:
        """Return the ids of all processes of all running containers."""
        ...

    def containers_of_process(self, pid: int) -> list[str]:
        """Return the names of the running containers that process `pid` is in."""
        ...

    def fetch(self, name: str, path: ResourcePath) -> bytes:
        """Return a resource for container `name`."""
        ...


class Token(Protocol):
    """Gives the attestation token."""

    def __call__(self) -> str:
        """Return the token, a JWT."""
        ...


class _Answer(Exception):
    """An answer other than 200: status and a text without secrets."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class SecretsServer:
    """Serves the containers of one pod.

    Args:
        pod: decides and fetches.
        token: gives the attestation token.
        address: where to listen.

    Raises:
        Unavailable: the address is in use (`guest.secrets.address_in_use`).
    """

    def __init__(self, pod: SecretsOfPod, token: Token, address: tuple[str, int] = ADDRESS) -> None:
        import socket

        self._pod = pod
        self._token = token
        self._slots = threading.BoundedSemaphore(_CONNECTIONS)
        self._listener: socket.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(address)
            self._listener.listen(_CONNECTIONS)
        except OSError as err:
            self._listener.close()
            raise Unavailable(
                "guest.secrets.address_in_use",
                "the secrets service cannot listen",
                path=f"{address[0]}:{address[1]}",
                hint="at the simulated level only one pod with resources runs on a machine at a time",
            ) from err

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    def start(self) -> None:
        """Serve on a thread of its own."""
        threading.Thread(target=self._serve, name="secrets", daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        import socket
        from contextlib import suppress

        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if not self._slots.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(_SECONDS)
                status, kind, body = self._respond(connection)
                connection.sendall(_encode(status, kind, body))
        except OSError:
            return
        finally:
            self._slots.release()

    def _respond(self, connection: socket.socket) -> tuple[int, str, bytes]:
        try:
            target = _parse_request(_read_head(connection))
            container = self._identify(connection)
            return 200, "application/octet-stream", self._serve_target(container, target)
        except _Answer as answer:
            return answer.status, "text/plain", answer.text.encode()
        except (PodPolicyRefused, KeyReleaseDenied) as err:
            return 403, "text/plain", err.code.encode()
        except FormatRefused as err:
            return 400, "text/plain", err.code.encode()
        except Unavailable as err:
            return 503, "text/plain", err.code.encode()
        except CloisterError as err:
            return 500, "text/plain", err.code.encode()
        except OSError:
            raise  # the connection itself
        except Exception as err:  # noqa: BLE001  # process edge: the text may hold a secret
            return 500, "text/plain", type(err).__name__.encode()

    def _serve_target(self, container: str, target: str) -> bytes:
        path, _, query = target.partition("?")
        if path.startswith(_RESOURCE):
            return self._pod.fetch(container, parse_resource_path(path[len(_RESOURCE) :]))
        if path == _TOKEN:
            if query not in ("token_type=kbs", "token_type=coco_as"):
                raise _Answer(400, "token_type is kbs")
            return msgspec.json.encode({"token": self._token(), "tee_keypair": ""})
        raise _Answer(404, "no such path")

    def _identify(self, connection: socket.socket) -> str:
        """Return the one container whose process holds the other end of `connection`."""
        inode = find_peer_inode(connection.getpeername()[1], self.address[1])
        if inode:
            holders = [pid for pid in self._pod.running_processes() if holds_socket(pid, inode)]
            names = {name for pid in holders for name in self._pod.containers_of_process(pid)}
            if len(names) == 1:
                return names.pop()
        raise _Answer(403, "the peer is not a process of one container")


def find_peer_inode(peer_port: int, our_port: int, *, tables: tuple[str, ...] = ("tcp", "tcp6")) -> int:
    """Return the inode of the loopback socket bound to `peer_port` and connected to `our_port`, or 0.

    Format: proc(5), `/proc/net/tcp`; addresses are hexadecimal in host byte order.
    """
    loopback = "0100007F"
    for table in tables:
        prefix = "" if table == "tcp" else "0000000000000000FFFF0000"
        local = f"{prefix}{loopback}:{peer_port:04X}"
        remote = f"{prefix}{loopback}:{our_port:04X}"
        try:
            with open(f"/proc/self/net/{table}", encoding="ascii") as file:
                lines = file.readlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if len(fields) > 9 and fields[1] == local and fields[2] == remote:
                return int(fields[9])
    return 0


def holds_socket(pid: int, inode: int) -> bool:
    """Return whether process `pid` has the socket open."""
    wanted = f"socket:[{inode}]"
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for descriptor in descriptors:
        try:
            if os.readlink(f"/proc/{pid}/fd/{descriptor}") == wanted:
                return True
        except OSError:
            continue
    return False


def _read_head(connection: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        if len(head) > _REQUEST_BYTES:
            raise _Answer(400, "request too long")
        chunk = connection.recv(_REQUEST_BYTES)
        if not chunk:
            raise _Answer(400, "request ends early")
        head += chunk
    return head


def _parse_request(head: bytes) -> str:
    """Return the target of a GET request."""
    line = head.partition(b"\r\n")[0]
    words = line.split(b" ")
    if len(words) != 3 or words[2] not in (b"HTTP/1.1", b"HTTP/1.0") or not words[1].isascii():
        raise _Answer(400, "not an HTTP request")
    if words[0] != b"GET":
        raise _Answer(405, "only GET")
    target = words[1].decode()
    if not target.startswith("/"):
        raise _Answer(400, "not a path")
    return target


def _encode(status: int, kind: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body
