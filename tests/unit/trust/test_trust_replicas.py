"""Replicas that share a database: a handshake goes from one to another, and what is counted is counted once for all."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection, func, select

from cloister.errors import CloisterError, Refused, Unavailable
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.rats.claims import Level
from cloister.testing.tpm import NOW
from cloister.tlog.checkpoint import verify_checkpoint
from cloister.tlog.merkle import leaf_hash
from cloister.tlog.note import parse_note
from cloister.tlog.receipt import LogPins, parse_receipt, verify_receipt
from cloister.tlog.tiles import ENTRIES, parse_entries, tiles_of
from cloister.tlog.tree import CompactRange
from cloister.trust.events import LogEvent
from cloister.trust.keybroker import Credentials
from cloister.trust.releaselog import PublicLog, ReleaseLog
from cloister.trust.releaselog.highwater import HighWater
from cloister.trust.rowseal import DataKey
from cloister.trust.service import TrustService
from cloister.trust.statedir import StateDirectory
from cloister.trust.statestore import open_store
from cloister.trust.store.database import Store
from cloister.trust.store.records import AuditRow, RecordStore, store_audit
from cloister.trust.store.schema import nonces, sessions
from cloister.trust.store.sessions import NONCE_KEPT, SESSION_KEPT, SessionStore
from store_places import Place
from trust_world import CANARY, World, error_of, make_world

LIFE = timedelta(minutes=5)
KEY = DataKey("11" * 8, bytes(32))
LIMIT = 4
LOG_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))


@pytest.fixture
def world(place: Place, quick: Path) -> Iterator[World]:
    made = make_world(quick, database=place.address if place.server is not None else "")
    yield made
    made.close()


@pytest.fixture
def replicas(world: World, place: Place) -> Iterator[list[TrustService]]:
    """Three services: of one state directory on SQLite, of three with the same root key on PostgreSQL."""
    with ExitStack() as stack:
        services = [world.service]
        for number in range(2):
            settings = world.settings
            if place.server is not None:
                state = world.state.with_name(f"replica{number}")
                state.mkdir(mode=0o700)
                shutil.copy2(world.state / "root.key", state)
                settings = replace(settings, state=state)
            services.append(stack.enter_context(TrustService(settings, clock=world.clock)))
        yield services


def test_a_handshake_goes_from_one_to_the_next(world: World, replicas: list[TrustService]) -> None:
    guest = world.guest()
    assert guest.auth().status == 200
    replicas[0].close()
    world.service = replicas[1]
    assert guest.send_attestation().status == 200
    replicas[1].close()
    world.service = replicas[2]
    assert guest.open(guest.resource(cookie=guest.cookie)) == CANARY
    assert guest.open(guest.resource()) == CANARY, "by its token"
    assert [row.level for row in world.admin.list_audit()] == [Level.MEASURED] * 2


def test_another_root_key_is_refused_at_the_start(world: World, place: Place) -> None:
    if place.server is None:
        (world.state / "root.key").unlink()
    settings = world.settings if place.server is None else replace(world.settings, state=world.state.with_name("new"))
    with pytest.raises(CloisterError) as caught:
        TrustService(settings, clock=world.clock)
    assert caught.value.code.startswith(("trust.keys.", "trust.state.", "crypto.keystore."))


def test_one_nonce_at_three_replicas_at_once(world: World, replicas: list[TrustService]) -> None:
    for _ in range(5):
        guest = world.guest()
        guest.auth()
        body = json.dumps(guest.attestation()).encode()
        together = threading.Barrier(3)
        with ThreadPoolExecutor(3) as threads:
            sent = [threads.submit(send, service, guest.cookie, body, together) for service in replicas]
            assert sorted(job.result() for job in sent) == [200, 401, 401]


def send(service: TrustService, cookie: str, body: bytes, together: threading.Barrier) -> int:
    together.wait()
    return service.broker.attest(body, Credentials(cookie=cookie)).status


def test_a_change_of_policy_is_seen_by_each_with_its_next_request(world: World, replicas: list[TrustService]) -> None:
    guests = []
    for service in replicas:
        world.service = service
        guests.append(world.guest().handshake())
        assert guests[-1].resource().status == 200
    world.admin.remove_release_rule("default/model/*")
    for service, guest in zip(replicas, guests, strict=True):
        world.service = service
        assert error_of(guest.resource())["code"].startswith("trust.release.")


class TestSessions:
    """Three session stores, as three replicas have them."""

    @pytest.fixture
    def stores(self, place: Place) -> list[SessionStore]:
        return [SessionStore(place.open(), KEY, limit=LIMIT) for _ in range(3)]

    @staticmethod
    def open_one(store: SessionStore, number: int, at: datetime = NOW) -> str:
        return store.open(tee="tpm", nonce=number.to_bytes(32), secret=b"", at=at, lifetime=LIFE)

    @staticmethod
    def rows(place: Place) -> tuple[int, int]:
        def count(connection: Connection) -> tuple[int, int]:
            ask = [select(func.count()).select_from(table) for table in (sessions, nonces)]
            live, kept = (int(connection.execute(statement).scalar_one()) for statement in ask)
            return live, kept

        return place.open().read(count)

    def test_the_limit_is_one_for_all(self, stores: list[SessionStore]) -> None:
        for number in range(LIMIT):
            self.open_one(stores[number % 3], number)
        for store in stores:
            with pytest.raises(Unavailable) as caught:
                self.open_one(store, 99)
            assert caught.value.code == "trust.session.overload"

    def test_it_is_never_passed_by_many_at_once(self, stores: list[SessionStore], place: Place) -> None:
        def attempt(number: int) -> bool:
            try:
                self.open_one(stores[number % 3], number)
            except Unavailable as err:
                assert err.code == "trust.session.overload"
                return False
            return True

        with ThreadPoolExecutor(12) as threads:
            assert sum(threads.map(attempt, range(40))) == LIMIT
        assert self.rows(place) == (LIMIT, LIMIT)

    def test_what_expired_makes_place_at_every_replica(self, place: Place, stores: list[SessionStore]) -> None:
        for number in range(LIMIT):
            self.open_one(stores[0], number)
        late = NOW + LIFE + timedelta(seconds=6)
        for number in range(LIMIT):
            self.open_one(stores[1 + number % 2], 10 + number, late)
        with pytest.raises(Unavailable):
            self.open_one(SessionStore(place.open(), KEY, limit=LIMIT), 99, late)

    def test_what_is_long_past_is_forgotten_by_whoever_comes(self, place: Place, stores: list[SessionStore]) -> None:
        self.open_one(stores[0], 1)
        self.open_one(stores[1], 2, NOW + LIFE + SESSION_KEPT + timedelta(seconds=1))
        assert self.rows(place) == (1, 2), "a nonce is kept for longer than its session"
        self.open_one(stores[2], 3, NOW + NONCE_KEPT + timedelta(hours=3))
        assert self.rows(place) == (1, 1)

    def test_a_clock_that_was_ahead_does_not_stop_the_others(self, place: Place, stores: list[SessionStore]) -> None:
        self.open_one(stores[0], 1, NOW + timedelta(days=400))
        for number in range(2, 2 + LIMIT - 1):
            self.open_one(stores[1], number)
        with pytest.raises(Unavailable):
            self.open_one(stores[1], 99)
        assert self.rows(place) == (LIMIT, LIMIT)

    def test_a_nonce_stays_spent_whatever_the_clocks_say(self, stores: list[SessionStore]) -> None:
        cookie = self.open_one(stores[0], 1)
        stores[1].accept_nonce(cookie, (1).to_bytes(32), at=NOW)
        self.open_one(stores[2], 2, NOW + timedelta(days=400))  # prunes by a clock that is wrong
        for store in stores:
            with pytest.raises(Refused) as caught:
                store.accept_nonce(cookie, (1).to_bytes(32), at=NOW)
            assert caught.value.code in ("trust.session.nonce_used", "trust.session.unknown")


def opened_log(place: Place, directory: Path) -> tuple[Store, ReleaseLog]:
    """A replica's store with the log in it."""
    directory.mkdir(mode=0o700, exist_ok=True)
    log = ReleaseLog(HighWater(directory), cosigner=None)
    store = place.open(batch_hook=log)
    log.open(store, LOG_KEY)
    return store, log


def test_replicas_write_one_release_log(place: Place, quick: Path) -> None:
    """No position twice, none left out, and every receipt holds, whichever replica gave it."""
    replicas = [opened_log(place, quick / f"replica{number}") for number in range(3)]

    def append(number: int) -> int:
        store, log = replicas[number % 3]
        event = LogEvent(kind="release", at=NOW, tenant=DEFAULT_TENANT, fields={"resource": f"default/key/{number}"})
        appended = store.write(lambda connection: log.append(connection, event))
        receipt = log.receipt(appended, deadline=time.monotonic() + 5)
        return verify_receipt(parse_receipt(receipt), LogPins(key=log.key)).index

    with ThreadPoolExecutor(9) as threads:
        assert sorted(threads.map(append, range(90))) == list(range(90))
    for _, log in replicas:
        log.close()
    store, log = opened_log(place, quick / "replica0")
    public = PublicLog(log, store)
    [bundle] = tiles_of(90, level=ENTRIES)
    tree = CompactRange()
    for entry in parse_entries(bundle, public.get(bundle.path()).body):
        tree.append(leaf_hash(entry))
    checkpoint = verify_checkpoint(parse_note(public.get("checkpoint").body.decode()), log.key)
    assert (checkpoint.size, checkpoint.root) == (90, tree.root())
    log.close()


def record_one(connection: Connection) -> None:
    store_audit(connection, DEFAULT_TENANT, AuditRow(at=NOW, decision="released", code="x"))


class TestStateDirectory:
    """Commands on a state directory find the database that its service uses."""

    @pytest.fixture
    def state(self, quick: Path) -> StateDirectory:
        return StateDirectory(quick / "state")

    def test_remembers_where_its_database_is(self, state: StateDirectory, place: Place) -> None:
        for address in (place.address, ""):
            store = open_store(state, database=address)
            store.write(record_one)
            store.close()
        assert RecordStore(place.open()).last_audit() == 2
        assert not state.database.exists()
        assert (state.path / "database").stat().st_mode & 0o077 == 0

    @pytest.mark.parametrize("address", ["postgresql://u:secret-word@127.0.0.1/db", "postgresql://u@127.0.0.1:1/db"])
    def test_forgets_what_did_not_work(self, state: StateDirectory, address: str) -> None:
        with pytest.raises(CloisterError):
            open_store(state, database=address, seconds=1)
        assert not (state.path / "database").exists()
        open_store(state).close()
        assert state.database.exists()

    def test_remembers_the_password_file(self, state: StateDirectory, place: Place, tmp_path: Path) -> None:
        password = tmp_path / "password"
        password.write_text("x")
        password.chmod(0o600)
        open_store(state, database=place.address, password_file=password).close()
        assert state.remembered("database") == f"{place.address}\n{password}"
        if place.server is not None:
            password.chmod(0o644)
            with pytest.raises(Refused, match="password"):
                open_store(state)
