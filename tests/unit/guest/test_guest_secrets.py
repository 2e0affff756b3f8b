"""Secrets over loopback: only a process of the right container, by the kernel's word, gets anything."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import KeyReleaseDenied, PodPolicyRefused, Unavailable
from cloister.guest import secrets
from cloister.guest.secrets import SecretsServer, find_peer_inode, holds_socket
from cloister.protocol.resourceuri import ResourcePath

SECRET = b"\0\1secret bytes"


class Pod:
    """Containers as sets of process ids."""

    def __init__(self) -> None:
        self.members: dict[str, set[int]] = {"app": {os.getpid()}}
        self.fetched: list[tuple[str, ResourcePath]] = []
        self.error: Exception | None = None

    def running_processes(self) -> list[int]:
        return [pid for pids in self.members.values() for pid in pids]

    def containers_of_process(self, pid: int) -> list[str]:
        return [name for name, pids in self.members.items() if pid in pids]

    def fetch(self, name: str, path: ResourcePath) -> bytes:
        if self.error is not None:
            raise self.error
        self.fetched.append((name, path))
        return SECRET


@pytest.fixture
def pod() -> Pod:
    return Pod()


@pytest.fixture
def server(pod: Pod) -> Iterator[SecretsServer]:
    made = SecretsServer(pod, lambda: "a.b.c", ("127.0.0.1", 0))
    made.start()
    yield made
    made.close()


Ask = Callable[[bytes], bytes]


@pytest.fixture
def ask(server: SecretsServer) -> Ask:
    def send(raw: bytes) -> bytes:
        with socket.create_connection(server.address, 20) as connection:
            connection.sendall(raw)
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
            return answer

    return send


def get(target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_resource_is_given_as_bytes(ask: Ask, pod: Pod) -> None:
    answer = ask(get("/cdh/resource/repo/type/tag"))
    assert status(answer) == 200
    head, _, body = answer.partition(b"\r\n\r\n")
    assert body == SECRET
    assert b"Content-Type: application/octet-stream" in head
    assert f"Content-Length: {len(SECRET)}".encode() in head
    assert pod.fetched == [("app", ResourcePath("repo", "type", "tag"))]


def test_query_of_a_resource_is_dropped_as_in_coco(ask: Ask, pod: Pod) -> None:
    assert status(ask(get("/cdh/resource/repo/type/tag?x=1"))) == 200
    assert pod.fetched == [("app", ResourcePath("repo", "type", "tag"))]


def test_token_has_no_private_key(ask: Ask) -> None:
    answer = ask(get("/aa/token?token_type=kbs"))
    assert answer.endswith(b'\r\n\r\n{"token":"a.b.c","tee_keypair":""}')


@pytest.mark.parametrize("query", ["", "?token_type=", "?token_type=other", "?token_type=kbs&x=1"])
def test_other_token_types_are_refused(ask: Ask, query: str) -> None:
    assert status(ask(get(f"/aa/token{query}"))) == 400


@pytest.mark.parametrize(
    "target",
    ["/", "/cdh", "/aa/evidence?runtime_data=x", "/aa/aael", "/info", "/cdh/resource", "/aa/token/", "/metrics"],
)
def test_other_paths_do_not_exist(ask: Ask, pod: Pod, target: str) -> None:
    assert status(ask(get(target))) == 404
    assert not pod.fetched


@pytest.mark.parametrize(
    "path",
    ["", "a", "a/b", "a/b/c/d", "../b/c", "a/../c", "a/b/..", "a/b/.", "a//c", "a/b/%2e%2e", "a/b/c\\d", "a/b/c%00",
     ".hidden/b/c", "a/b/" + "x" * 200],
)  # fmt: skip
def test_paths_are_three_plain_segments(ask: Ask, pod: Pod, path: str) -> None:
    assert status(ask(get(f"/cdh/resource/{path}"))) in (400, 404)
    assert not pod.fetched


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"POST /cdh/resource/a/b/c HTTP/1.1\r\n\r\n", 405),
        (b"PUT /aa/token HTTP/1.1\r\n\r\n", 405),
        (b"GET /cdh/resource/a/b/c\r\n\r\n", 400),
        (b"GET  /cdh/resource/a/b/c HTTP/1.1\r\n\r\n", 400),
        (b"GET http://x/cdh/resource/a/b/c HTTP/1.1\r\n\r\n", 400),
        (b"GET /cdh/resource/a/b/c HTTP/2\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"x" * 9_000, 400),
    ],
)
def test_other_requests_are_refused(ask: Ask, pod: Pod, raw: bytes, expected: int) -> None:
    assert status(ask(raw)) == expected
    assert not pod.fetched


def test_process_outside_every_container_gets_nothing(ask: Ask, pod: Pod) -> None:
    pod.members = {"app": {1}, "other": set()}
    for target in ("/cdh/resource/a/b/c", "/aa/token?token_type=kbs", "/nothing"):
        answer = ask(get(target))
        assert status(answer) == 403
        assert SECRET not in answer
    assert not pod.fetched


def test_process_in_two_containers_gets_nothing(ask: Ask, pod: Pod) -> None:
    pod.members = {"app": {os.getpid()}, "other": {os.getpid()}}
    assert status(ask(get("/cdh/resource/a/b/c"))) == 403


def test_socket_held_by_two_containers_gets_nothing(server: SecretsServer, pod: Pod) -> None:
    with socket.create_connection(server.address, 20) as connection:
        connection.set_inheritable(True)
        other = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"],
            stdin=subprocess.PIPE,
            pass_fds=(connection.fileno(),),
        )
        try:
            pod.members = {"app": {os.getpid()}, "other": {other.pid}}
            connection.sendall(get("/cdh/resource/a/b/c"))
            assert status(connection.recv(4096)) == 403
        finally:
            other.communicate()


def test_another_process_is_told_apart(server: SecretsServer, pod: Pod) -> None:
    """The connection of a process that is in no container is not lent the rights of one that is."""
    host, port = server.address
    script = (
        f"import socket; c = socket.create_connection(({host!r}, {port})); "
        "c.sendall(b'GET /cdh/resource/a/b/c HTTP/1.1\\r\\n\\r\\n'); print(c.recv(100).split()[1].decode())"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert result.stdout.strip() == "403"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PodPolicyRefused("podpolicy.resource", "canary a container may not see"), 403),
        (KeyReleaseDenied("trust.denied", "canary"), 403),
        (Unavailable("client.unreachable", "canary"), 503),
        (ValueError("canary of a key"), 500),
    ],
)
def test_refusals_are_a_status_and_a_code(ask: Ask, pod: Pod, error: Exception, expected: int) -> None:
    pod.error = error
    answer = ask(get("/cdh/resource/a/b/c"))
    assert status(answer) == expected
    assert b"canary" not in answer


def test_ipv6_socket_to_the_mapped_address_is_the_same_peer(server: SecretsServer) -> None:
    try:
        connection = socket.socket(socket.AF_INET6)
        connection.connect((f"::ffff:{server.address[0]}", server.address[1]))
    except OSError:
        pytest.skip("this machine has no IPv6")
    with connection:
        connection.settimeout(20)
        connection.sendall(get("/cdh/resource/a/b/c"))
        assert status(connection.recv(4096)) == 200


def test_connections_beyond_the_limit_are_closed(server: SecretsServer) -> None:
    server._slots = threading.BoundedSemaphore(1)
    with socket.create_connection(server.address, 20) as first:
        first.sendall(b"GET /")
        while server._slots._value:
            pass
        with socket.create_connection(server.address, 20) as second:
            assert second.recv(10) == b""
        first.sendall(b" HTTP/1.1\r\n\r\n")
        assert status(first.recv(4096)) == 404


def test_slow_client_is_not_waited_for_forever(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_SECONDS", 0.05)
    made = SecretsServer(pod, lambda: "", ("127.0.0.1", 0))
    made.start()
    with socket.create_connection(made.address, 20) as connection:
        connection.sendall(b"GET /")
        assert connection.recv(10) == b""
    made.close()


def test_address_in_use_is_told(server: SecretsServer, pod: Pod) -> None:
    with pytest.raises(Unavailable) as caught:
        SecretsServer(pod, lambda: "", server.address)
    assert caught.value.code == "guest.secrets.address_in_use"


def test_closed_server_answers_nobody(pod: Pod) -> None:
    made = SecretsServer(pod, lambda: "", ("127.0.0.1", 0))
    made.start()
    address = made.address
    made.close()
    with pytest.raises(OSError):  # refused or reset, by the kernel's choice
        socket.create_connection(address, 1).recv(1)


def test_inode_is_of_the_connected_pair_only() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as connection:
            inode = find_peer_inode(connection.getsockname()[1], port)
            assert holds_socket(os.getpid(), inode)
            assert not holds_socket(os.getpid(), inode + 10**6)
            assert not holds_socket(2**22 - 1, inode)
            assert find_peer_inode(connection.getsockname()[1], port + 1) == 0
            assert find_peer_inode(1, port) == 0
    assert find_peer_inode(1, 2, tables=("no-such-table",)) == 0


@given(raw=st.binary(max_size=120))
def test_any_request_is_answered_and_fetches_nothing(raw: bytes) -> None:
    pod = Pod()
    made = SecretsServer(pod, lambda: "", ("127.0.0.1", 0))
    made.start()
    try:
        with socket.create_connection(made.address, 20) as connection:
            connection.sendall(raw + b"\r\n\r\n")
            answer = connection.recv(4096)
        assert status(answer) in (400, 403, 404, 405)
        assert not pod.fetched
    finally:
        made.close()
