"""The PostgreSQL side of the store: addresses, passwords, what each connection is set to, and whose turn it is."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Connection, text

from cloister.errors import CloisterError, Refused, Unavailable
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.testing.tpm import NOW
from cloister.trust.store.database import Store
from cloister.trust.store.deadlines import Deadlines
from cloister.trust.store.postgresql import PostgreSQLDatabase
from cloister.trust.store.records import DENIED, AuditRow, DenialRecord, RecordStore, store_audit
from postgres_process import USER, PostgreSQLServer
from store_places import Place

PASSWORD = "canary-password-51f0"


@pytest.fixture
def place(quick: Path, postgresql: PostgreSQLServer) -> Iterator[Place]:
    with Place(quick, postgresql) as made:
        yield made


@pytest.mark.parametrize(
    "address",
    [
        f"postgresql://u:{PASSWORD}@127.0.0.1/db",
        f"postgresql://u@127.0.0.1/db?password={PASSWORD}",
        "postgresql://u@127.0.0.1/db?options=-csynchronous_commit%3Doff",
        "postgresql://u@127.0.0.1/db?service=other",
        "postgresql://u@127.0.0.1/db?target_session_attrs=any",
        "postgresql://u@127.0.0.1/db?sslpassword=x",
        "postgresql:///db",
        "postgresql://u@127.0.0.1,/db",
        "postgresql://u@db.example/db?sslmode=require",
        "postgresql://u@db.example/db?sslmode=disable",
        "postgresql://u@127.0.0.1,db.example/db?sslmode=prefer",
        "postgresql://u@/db?hostaddr=192.0.2.7&sslmode=verify-ca",
        "postgresql://u@[::1/db",
        "postgres://u@127.0.0.1/db",
        "mysql://u@127.0.0.1/db",
        "trust.db",
        "postgresql://u@127.0.0.1/db?unknown=1",
    ],
)
def test_addresses_that_are_refused(address: str) -> None:
    with pytest.raises(Refused) as caught:
        Store(address)
    assert caught.value.code == "trust.settings.database"
    told = "".join(map(str, (caught.value, caught.value.hint, caught.value.__cause__)))
    assert PASSWORD not in told


@pytest.mark.parametrize(
    ("address", "mode"),
    [
        ("postgresql://u@127.0.0.1/db", None),
        ("postgresql://u@localhost:5433/db?sslmode=disable", "disable"),
        ("postgresql://u@/db?host=/run/postgresql", None),
        ("postgresql://u@db.example/db", "verify-full"),
        ("postgresql://u@a.example,b.example:5433/db?sslrootcert=/ca.pem", "verify-full"),
    ],
)
def test_a_server_elsewhere_is_authenticated(address: str, mode: str | None) -> None:
    database = PostgreSQLDatabase(address, seconds=1, password_file=None)
    assert database._parameters.get("sslmode") == mode
    database.close()


def test_every_connection_is_durable_and_limited(place: Place) -> None:
    store = place.open(seconds=4)

    def value(name: str, *, writing: bool) -> str:
        ask = text(f"SHOW {name}")
        run = store.write if writing else store.read
        return str(run(lambda connection: connection.execute(ask).scalar_one()))

    for writing in (False, True):
        assert value("synchronous_commit", writing=writing) == "on"
        assert value("transaction_isolation", writing=writing) == "read committed"
        assert value("lock_timeout", writing=writing) == "2s"
        assert value("statement_timeout", writing=writing) == "4s"
        assert value("idle_in_transaction_session_timeout", writing=writing) == "1s"
        assert value("default_transaction_read_only", writing=writing) == ("off" if writing else "on")


def test_a_database_that_loosens_durability_is_overruled(place: Place) -> None:
    assert place.server is not None
    place.server.execute(f"ALTER DATABASE {place.name} SET synchronous_commit = off")
    ask = text("SHOW synchronous_commit")
    assert place.open().write(lambda connection: connection.execute(ask).scalar_one()) == "on"


def record_one(connection: Connection) -> None:
    store_audit(connection, DEFAULT_TENANT, AuditRow(at=NOW, decision="released", code="x"))


def test_a_foreign_holder_of_the_lock_is_a_refusal_in_time(place: Place) -> None:
    """A transaction of ours that the server does not end, because it is never idle."""
    store = place.open(seconds=1)
    assert place.server is not None
    where = {"host": str(place.server.directory), "port": place.server.port, "user": USER, "dbname": place.name}
    with psycopg.connect(**where) as foreign:  # type: ignore[arg-type]  # of several types
        foreign.execute("SELECT pg_advisory_lock(%s)", [int.from_bytes(b"cloister")])
        begun = time.monotonic()
        with pytest.raises(Unavailable) as caught:
            store.write(record_one)
        assert time.monotonic() - begun < 2
        assert caught.value.code == "trust.store.locked"
        assert RecordStore(store).last_audit() == 0, "reading goes on"
    store.write(record_one)


def test_readers_go_on_when_the_server_ended_all_their_connections(place: Place) -> None:
    """A server that restarts leaves a pool of dead connections: the first that is found dead answers for all."""
    store = place.open()
    with ThreadPoolExecutor(8) as pool:  # so that several connections are there
        list(
            pool.map(
                lambda _: store.read(lambda connection: connection.execute(text("SELECT pg_sleep(0.1)"))), range(8)
            )
        )
    assert place.server is not None
    where = {"host": str(place.server.directory), "port": place.server.port, "user": USER, "dbname": place.name}
    with psycopg.connect(**where, autocommit=True) as other:  # type: ignore[arg-type]  # of several types
        ended = other.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = %s AND pid <> pg_backend_pid()",
            [place.name],
        ).fetchone()
    assert ended is not None and ended[0] >= 4
    for _ in range(8):
        store.configuration()
    store.write(record_one)


def test_another_encoding_is_refused(place: Place) -> None:
    assert place.server is not None
    place.server.drop_database(place.name)
    place.server.execute(f"CREATE DATABASE {place.name} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(Unavailable) as caught:
        place.open()
    assert caught.value.code == "trust.store.encoding"


class TestPassword:
    @pytest.fixture
    def guarded(self, place: Place) -> Iterator[str]:
        """An address at which a password is asked for."""
        server = place.server
        assert server is not None
        rules = server.directory / "data" / "pg_hba.conf"
        before = rules.read_text()
        server.execute(f"CREATE ROLE guarded LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
        rules.write_text(f"host all guarded 127.0.0.1/32 scram-sha-256\n{before}")
        server.execute("SELECT pg_reload_conf()")
        yield f"postgresql://guarded@127.0.0.1:{server.port}/{place.name}"
        rules.write_text(before)
        server.execute("SELECT pg_reload_conf()")
        server.execute("REASSIGN OWNED BY guarded TO cloister", place.name)
        server.execute("DROP ROLE guarded")

    def test_is_read_from_a_file_for_each_connection(self, guarded: str, tmp_path: Path) -> None:
        file = tmp_path / "password"
        file.write_text(PASSWORD + "\n")
        file.chmod(0o600)
        store = Store(guarded, password_file=file)
        assert store.configuration() == 1
        store.close()

    def test_is_found_by_the_driver(self, guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "pgpass"
        file.write_text(f"*:*:*:guarded:{PASSWORD}\n")
        file.chmod(0o600)
        monkeypatch.setenv("PGPASSFILE", str(file))
        Store(guarded).close()

    @pytest.mark.parametrize("content", ["wrong-" + PASSWORD, ""])
    def test_a_wrong_one_is_not_told(self, guarded: str, tmp_path: Path, content: str) -> None:
        file = tmp_path / "password"
        file.write_text(content)
        file.chmod(0o600)
        with pytest.raises(Unavailable) as caught:
            Store(guarded, password_file=file, seconds=2)
        assert caught.value.code == "trust.store.failed"
        assert PASSWORD not in told(caught.value) and "guarded" not in told(caught.value)

    def test_others_may_not_read_it(self, guarded: str, tmp_path: Path) -> None:
        file = tmp_path / "password"
        file.write_text(PASSWORD)
        file.chmod(0o644)
        with pytest.raises(Refused) as caught:
            Store(guarded, password_file=file)
        assert caught.value.code == "trust.state.permissions"
        with pytest.raises(Unavailable) as absent:
            Store(guarded, password_file=tmp_path / "none")
        assert absent.value.code == "trust.state.io"


def told(error: CloisterError) -> str:
    """Everything that a log of this error could show."""
    words, chain = [], error
    while chain is not None:
        words += [str(chain), repr(chain), json.dumps(getattr(chain, "hint", ""))]
        chain = chain.__cause__  # type: ignore[assignment]  # of any kind
    return "\n".join(words)


def test_words_of_a_guest_that_the_server_cannot_keep(place: Place) -> None:
    """A NUL in what a guest sent harms neither its own denial nor those that share its transaction."""
    store = place.open()
    record = DenialRecord(id="d-aaaaaaaaaa", at=NOW, stage="auth", code="x", message="no", resource="a\0b", tee="\0")
    RecordStore(store).record_denial(record, AuditRow(at=NOW, decision=DENIED, code="x", tee="t\0", denial=record.id))
    [row] = RecordStore(store).list_audit()
    assert row.tee == "t\ufffd"
    assert RecordStore(store).denial(record.id).resource == "a\0b"


def test_a_value_that_cannot_be_kept_fails_its_own_job_only(place: Place) -> None:
    store = place.open()
    gate = threading.Event()
    results: list[object] = []

    def run(word: str) -> None:
        ask = text("SELECT CAST(:word AS text)")
        try:
            results.append(store.write(lambda connection: connection.execute(ask, {"word": word}).scalar_one()))
        except Unavailable as err:
            results.append(err.code)

    threads = [threading.Thread(target=run, args=(word,)) for word in ("a", "\0", "b")]
    blocker = threading.Thread(target=lambda: store.write(lambda _: gate.wait(2) and None))
    blocker.start()
    time.sleep(0.05)
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    gate.set()
    for thread in (*threads, blocker):
        thread.join()
    assert sorted(map(str, results)) == ["a", "b", "trust.store.failed"]


class _Line:
    def __init__(self) -> None:
        self.was_cut = threading.Event()

    def cut(self) -> None:
        self.was_cut.set()


class TestDeadlines:
    def test_cut_what_is_too_late_and_say_so(self) -> None:
        deadlines, line = Deadlines(0.1, hint="h"), _Line()
        with pytest.raises(Unavailable) as caught, deadlines.limited():
            deadlines.attach(line)
            assert line.was_cut.wait(5)
            raise OSError("cut")
        assert caught.value.code == "trust.store.timeout"
        deadlines.close()

    def test_cut_what_comes_after_the_time(self) -> None:
        deadlines, first, second = Deadlines(0.1, hint="h"), _Line(), _Line()
        with deadlines.limited():
            deadlines.attach(first)
            assert first.was_cut.wait(5)
            deadlines.attach(second)
            assert second.was_cut.is_set()
            with pytest.raises(Unavailable):
                deadlines.require_time()
        deadlines.close()

    def test_leave_alone_what_is_in_time_and_errors_as_they_are(self) -> None:
        deadlines, line = Deadlines(30, hint="h"), _Line()
        with pytest.raises(OSError, match="other"), deadlines.limited():
            deadlines.attach(line)
            deadlines.require_time()
            raise OSError("other")
        deadlines.attach(line)  # outside of any limit
        deadlines.close()
        assert not line.was_cut.is_set()
