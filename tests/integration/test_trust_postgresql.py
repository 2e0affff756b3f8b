"""PostgreSQL goes away, comes back, says nothing; replicas die, stop, and hold what others need.

Each fault is a refusal in time, and its end needs no restart.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection, insert, select, text

import postgres_process
from cloister.crypto.jwe import EphemeralKey
from cloister.crypto.tlsca import CertificateAuthority
from cloister.errors import KeyReleaseDenied, Unavailable
from cloister.protocol.kbs import SealedResource
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.trust.store.database import Store
from cloister.trust.store.schema import nonces
from postgres_process import PostgreSQLServer
from store_places import Place
from trust_process import Owner, Running, attestation_body, enrolment, make_owner, prepared_attestation, running
from trust_world import CANARY, MODEL

pytestmark = pytest.mark.tool
T = TypeVar("T")
SECONDS = 1.0
RESOURCE = f"/kbs/v0/resource/{MODEL}"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQLServer]:
    """A server that these tests may harm."""
    with postgres_process.running(options={"log_statement": "none"}) as made:
        yield made


@pytest.fixture
def place(server: PostgreSQLServer, tmp_path: Path) -> Iterator[Place]:
    with Place(tmp_path, server) as made:
        yield made


@pytest.fixture(params=["socket", "tcp"])
def store(place: Place, server: PostgreSQLServer, request: pytest.FixtureRequest) -> Iterator[Store]:
    made = Store(server.url(place.name, tcp=request.param == "tcp"), seconds=SECONDS)
    put(made, "before")
    assert names(made) == {"before"}  # both connections are open
    yield made
    made.close()


def put(store: Store, name: str) -> None:
    store.write(lambda connection: insert_nonce(connection, name))


def insert_nonce(connection: Connection, name: str) -> None:
    connection.execute(insert(nonces).values(tenant=DEFAULT_TENANT, hash=name, issued_at=0))


def names(store: Store) -> set[str]:
    return set(store.read(lambda connection: connection.execute(select(nonces.c.hash)).scalars().all()))


def refused_in_time(store: Store) -> set[str]:
    """Return the codes of a refused write, read and health check."""
    codes = set()
    for work in (lambda: put(store, "lost"), lambda: names(store), store.check):
        begun = time.monotonic()
        with pytest.raises(Unavailable) as caught:
            work()
        codes.add(caught.value.code)
        assert time.monotonic() - begun < 2 * SECONDS + 1
        assert caught.value.hint and "cloister@" not in str(caught.value)
    assert not store.healthy
    return codes


def within(seconds: float, work: Callable[[], T]) -> T:
    """Return what `work` returns once it is not refused any more; a service asks its keys again after a second."""
    until = time.monotonic() + seconds
    while True:
        try:
            return work()
        except Unavailable:
            assert time.monotonic() < until
            time.sleep(0.05)


def recovered(store: Store) -> None:
    """Everything works again, within the time that a reconnection takes."""
    within(10, lambda: put(store, "after"))
    assert {"before", "after"} <= names(store)
    store.check()
    assert store.healthy


class TestServer:
    def test_restarts_between_two_requests(self, store: Store, server: PostgreSQLServer) -> None:
        """Nobody notices: the connections are found gone before anything was done with them."""
        server.end()
        server.start()
        put(store, "after")
        assert names(store) == {"before", "after"}
        assert store.healthy

    def test_is_down(self, store: Store, server: PostgreSQLServer) -> None:
        server.end()
        assert refused_in_time(store) == {"trust.store.failed"}
        server.start()
        recovered(store)
        assert names(store) == {"before", "after"}, "what was refused before it began is not written later"

    def test_is_killed_and_what_was_acknowledged_is_there(self, store: Store, server: PostgreSQLServer) -> None:
        with ThreadPoolExecutor(4) as threads:
            jobs = [threads.submit(put, store, f"n{number}") for number in range(400)]
            while sum(job.done() for job in jobs) < 40:
                time.sleep(0.001)
            server.end(signal.SIGKILL)
            kept = {f"n{number}" for number, job in enumerate(jobs) if job.exception() is None}
        assert 40 <= len(kept) < 400
        server.start()
        recovered(store)
        assert kept <= names(store)

    def test_cuts_its_connections(self, store: Store, server: PostgreSQLServer, place: Place) -> None:
        where = f"datname = '{place.name}' AND application_name = 'cloister'"
        ended = server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {where}")  # noqa: S608
        assert len(ended) >= 2
        put(store, "after")
        assert names(store) == {"before", "after"}

    def test_says_nothing(self, store: Store, server: PostgreSQLServer) -> None:
        with server.stopped():
            assert refused_in_time(store) == {"trust.store.timeout"}
        recovered(store)

    def test_says_nothing_and_is_replaced(self, store: Store, server: PostgreSQLServer) -> None:
        """No answer ever comes on the old connections: they are cut here, not waited for."""
        with server.stopped():
            refused_in_time(store)
            server.end(signal.SIGKILL)
        server.start()
        recovered(store)

    def test_is_absent_when_a_replica_starts(self, place: Place, server: PostgreSQLServer) -> None:
        server.end()
        begun = time.monotonic()
        with pytest.raises(Unavailable) as caught:
            place.open(seconds=SECONDS)
        assert caught.value.code == "trust.store.failed"
        assert time.monotonic() - begun < 3 * SECONDS
        server.start()
        place.open(seconds=SECONDS).check()


HOLDER = """
import sys, time
from cloister.trust.store.database import Store
from sqlalchemy import text
store = Store(sys.argv[1], seconds=2)
def hold(connection):
    print("holding", flush=True)
    for _ in range(600):
        connection.execute(text("SELECT 1"))
        time.sleep(0.05)
try:
    store.write(hold)
except Exception as err:
    print(type(err).__name__, getattr(err, "code", ""), flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(place: Place, server: PostgreSQLServer) -> Iterator[subprocess.Popen[str]]:
    """Another replica, in the middle of a transaction that holds the writers' lock."""
    command = [sys.executable, "-c", HOLDER, server.url(place.name)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        yield process
        process.kill()


class TestReplica:
    def test_is_stopped_while_it_writes(self, place: Place, holder: subprocess.Popen[str]) -> None:
        """The server ends its transaction; the others' requests are not even refused."""
        os.kill(holder.pid, signal.SIGSTOP)
        store = place.open()
        begun = time.monotonic()
        put(store, "others")
        assert time.monotonic() - begun < 3
        assert names(store) == {"others"}
        os.kill(holder.pid, signal.SIGCONT)
        assert holder.stdout is not None
        assert holder.stdout.readline().startswith("Unavailable trust.store."), "it learns that nothing was written"

    def test_is_killed_while_it_writes(self, place: Place, holder: subprocess.Popen[str]) -> None:
        store = place.open()
        holder.kill()
        begun = time.monotonic()
        put(store, "others")
        assert time.monotonic() - begun < 1

    def test_writes_for_too_long(self, place: Place, holder: subprocess.Popen[str]) -> None:
        """A waiter is refused in time; the writer's own limit ends it, and then others write."""
        store = place.open(seconds=SECONDS)
        with pytest.raises(Unavailable) as caught:
            put(store, "others")
        assert caught.value.code in ("trust.store.locked", "trust.store.timeout")
        assert holder.stdout is not None
        assert holder.stdout.readline().startswith("Unavailable trust.store.timeout")
        put(store, "after")


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    return CertificateAuthority.create("database CA", at=datetime.now(UTC))


@pytest.fixture(scope="module")
def guarded(authority: CertificateAuthority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQLServer]:
    issued = authority.issue_server(("localhost",), at=datetime.now(UTC))
    files = {"ssl_cert_file": issued.certificate_pem, "ssl_key_file": issued.key_pem}
    with postgres_process.running(options={"ssl": "on"}, files=files) as made:
        (made.directory / "data" / "pg_hba.conf").write_text("local all all trust\nhostssl all all all trust\n")
        made.execute("SELECT pg_reload_conf()")
        yield made


class TestAuthentication:
    """A server that offers TLS, under a CA of the test's own."""

    @staticmethod
    def address(server: PostgreSQLServer, ca: Path, host: str, **more: str) -> str:
        query = "&".join(f"{name}={value}" for name, value in {"sslrootcert": str(ca), **more}.items())
        return f"postgresql://cloister@{host}:{server.port}/postgres?{query}"

    @pytest.fixture
    def ca(self, authority: CertificateAuthority, tmp_path: Path) -> Path:
        (tmp_path / "ca.pem").write_bytes(authority.certificate_pem)
        return tmp_path / "ca.pem"

    def test_of_the_server_named(self, guarded: PostgreSQLServer, ca: Path) -> None:
        store = Store(self.address(guarded, ca, "localhost", sslmode="verify-full"))
        where = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        for run in (store.write, store.read):
            assert run(lambda connection: connection.execute(text(where)).scalar_one()) is True
        store.close()

    def test_by_another_name_is_refused(self, guarded: PostgreSQLServer, ca: Path) -> None:
        """127.0.0.2 is not in the certificate, and not taken for this machine's own: no mode has to be said."""
        with pytest.raises(Unavailable) as caught:
            Store(self.address(guarded, ca, "127.0.0.2"))
        assert caught.value.code == "trust.store.failed"

    def test_by_another_ca_is_refused(self, guarded: PostgreSQLServer, tmp_path: Path) -> None:
        other = tmp_path / "other.pem"
        other.write_bytes(CertificateAuthority.create("other CA", at=datetime.now(UTC)).certificate_pem)
        with pytest.raises(Unavailable):
            Store(self.address(guarded, other, "localhost", sslmode="verify-full"))


class TestService:
    """Three replicas as processes, each with a state directory of its own that holds the same root key."""

    @pytest.fixture
    def owner(self, tmp_path: Path, place: Place) -> Owner:
        return make_owner(tmp_path, place.address)

    @pytest.fixture
    def replicas(self, owner: Owner) -> Iterator[list[Running]]:
        with ExitStack() as stack:
            services = []
            for number in range(3):
                state = owner.state.with_name(f"replica{number}")
                state.mkdir(mode=0o700)
                shutil.copy2(owner.state / "root.key", state)
                options = ("--database", owner.database, "--store-seconds", "1", "--request-seconds", "3")
                services.append(stack.enter_context(running(state, *options)))
                assert not (state / "trust.db").exists()
            assert len({service.ca_pem for service in services}) == 1
            yield services

    def test_a_handshake_goes_on_when_its_replica_is_killed(self, owner: Owner, replicas: list[Running]) -> None:
        first, second, third = replicas
        tpm, key = owner.tpm(), EphemeralKey.generate()
        _, headers, body = first.request("POST", "/kbs/v0/auth", enrolment(tpm))
        cookie = headers["set-cookie"].split(";")[0]
        first.end(signal.SIGKILL)
        message = attestation_body(owner, tpm, key, json.loads(body))
        assert second.request("POST", "/kbs/v0/attest", message, Cookie=cookie)[0] == 200
        second.end(signal.SIGKILL)
        status, _, sealed = third.request("GET", RESOURCE, Cookie=cookie)
        assert (status, key.open(SealedResource(**json.loads(sealed)))) == (200, CANARY)

    def test_one_nonce_at_three_replicas_at_once(self, owner: Owner, replicas: list[Running]) -> None:
        cookie, attestation = prepared_attestation(owner, replicas[0])

        def send(index: int) -> tuple[int, Any]:
            status, _, body = replicas[index % 3].request("POST", "/kbs/v0/attest", attestation, Cookie=cookie)
            return status, json.loads(body).get("code")

        with ThreadPoolExecutor(12) as threads:
            answers = sorted(threads.map(send, range(12)), key=lambda answer: answer[0])
        assert answers == [(200, None), *[(401, "trust.session.nonce_used")] * 11]

    def test_a_change_of_policy_is_seen_by_all_with_the_next_request(
        self, owner: Owner, replicas: list[Running]
    ) -> None:
        clients = [service.client(owner) for service in replicas]
        assert [client.get_resource(MODEL) for client in clients] == [CANARY] * 3
        with owner.admin() as admin:
            admin.remove_release_rule("default/model/*")
        for client in clients:
            with pytest.raises(KeyReleaseDenied):
                client.get_resource(MODEL)
            client.wipe()

    def test_the_database_dies_and_comes_back(
        self, owner: Owner, replicas: list[Running], server: PostgreSQLServer
    ) -> None:
        server.end(signal.SIGKILL)
        for service in replicas:
            begun = time.monotonic()
            assert service.request("GET", f"/kbs/v0/resource/{MODEL}", Authorization="Bearer x")[0] == 503
            assert time.monotonic() - begun < 4
        server.start()
        for service in replicas:
            client = service.client(owner)
            assert within(3, lambda client=client: client.get_resource(MODEL)) == CANARY
            client.wipe()
        assert all(service.process.poll() is None for service in replicas)
