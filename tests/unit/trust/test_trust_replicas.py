"""Replicas that share a database: a handshake goes from one to another, and what is counted is counted once for all."""

from __future__ import annotations

import json
import re
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

from cloister.errors import CloisterError, FormatRefused, Refused
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
from cloister.trust.store import sessions as module
from cloister.trust.store.database import Store
from cloister.trust.store.records import AuditRow, RecordStore, store_audit
from cloister.trust.store.schema import nonces, sessions
from cloister.trust.store.sessions import COOKIE_CHARS, NONCE_KEPT, SESSION_KEPT, Session, SessionStore
from store_places import Place
from trust_world import CANARY, World, error_of, make_world

LIFE = timedelta(minutes=5)
KEY = DataKey("11" * 8, bytes(32))
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
        return [SessionStore(place.open(), KEY) for _ in range(3)]

    @staticmethod
    def begin(store: SessionStore, at: datetime = NOW) -> tuple[str, bytes]:
        session = store.begin(tee="tpm", at=at, lifetime=LIFE)
        return store.cookie(session, activated=True), session.nonce

    @staticmethod
    def keep(place: Place, store: SessionStore, session: Session, at: datetime) -> None:
        place.open().write(lambda connection: store.keep(connection, session, "token", at=at))

    def attest(self, place: Place, store: SessionStore, cookie: str, nonce: bytes, at: datetime = NOW) -> None:
        self.keep(place, store, store.resume(cookie, nonce, at=at), at)

    @staticmethod
    def rows(place: Place) -> tuple[int, int]:
        def count(connection: Connection) -> tuple[int, int]:
            ask = [select(func.count()).select_from(table) for table in (sessions, nonces)]
            live, kept = (int(connection.execute(statement).scalar_one()) for statement in ask)
            return live, kept

        return place.open().read(count)

    def test_a_session_of_one_goes_on_at_another(self, place: Place, stores: list[SessionStore]) -> None:
        session = stores[0].begin(tee="tpm", at=NOW, lifetime=LIFE)
        cookie = stores[0].cookie(session, activated=True)
        assert self.rows(place) == (0, 0), "beginning writes nothing"
        again = stores[1].resume(cookie, session.nonce, at=NOW)
        assert again == session
        self.keep(place, stores[1], again, NOW)
        assert stores[2].token(cookie, at=NOW) == "token"
        assert self.rows(place) == (1, 1)

    def test_only_an_activated_session_has_a_secret(self, stores: list[SessionStore]) -> None:
        session = stores[0].begin(tee="tpm", at=NOW, lifetime=LIFE)
        assert len(session.secret) == 32 and session.secret != session.nonce
        assert stores[1].resume(stores[0].cookie(session, activated=False), session.nonce, at=NOW).secret == b""

    def test_the_cookie_is_one_that_all_clients_keep(self, stores: list[SessionStore]) -> None:
        session = stores[0].begin(tee="cloister-simulated", at=NOW, lifetime=LIFE)
        cookie = stores[0].cookie(session, activated=True)
        assert len(cookie) <= COOKIE_CHARS and re.fullmatch("[0-9A-Za-z_-]+", cookie)
        with pytest.raises(FormatRefused):
            stores[0].begin(tee="x" * 25, at=NOW, lifetime=LIFE)

    def test_of_many_that_verified_at_once_one_is_kept(self, place: Place, stores: list[SessionStore]) -> None:
        """The nonce is looked at before evidence is verified, and spent after: what counts is the second."""
        cookie, nonce = self.begin(stores[0])
        resumed = [(store, store.resume(cookie, nonce, at=NOW)) for store in stores for _ in range(4)]

        def attempt(pair: tuple[SessionStore, Session]) -> str:
            try:
                self.keep(place, *pair, NOW)
            except Refused as err:
                return err.code
            return ""

        with ThreadPoolExecutor(12) as threads:
            codes = sorted(threads.map(attempt, resumed))
        assert codes == ["", *["trust.session.nonce_used"] * 11]
        assert self.rows(place) == (1, 1)

    def test_what_is_long_past_is_forgotten_by_whoever_comes(self, place: Place, stores: list[SessionStore]) -> None:
        self.attest(place, stores[0], *self.begin(stores[0]))
        later = NOW + LIFE + SESSION_KEPT + timedelta(seconds=1)
        self.attest(place, stores[1], *self.begin(stores[1], later), later)
        assert self.rows(place) == (1, 2), "a nonce is kept for longer than its session"
        latest = NOW + NONCE_KEPT + timedelta(hours=3)
        self.attest(place, stores[2], *self.begin(stores[2], latest), latest)
        assert self.rows(place) == (1, 1)

    def test_a_nonce_stays_spent_whatever_the_clocks_say(self, place: Place, stores: list[SessionStore]) -> None:
        cookie, nonce = self.begin(stores[0])
        self.attest(place, stores[1], cookie, nonce)
        ahead = NOW + timedelta(days=400)
        self.attest(place, stores[2], *self.begin(stores[2], ahead), ahead)  # prunes by a clock that is wrong
        assert self.rows(place) == (1, 1), "the first nonce was forgotten"
        for store in [*stores, SessionStore(place.open(), KEY)]:
            with pytest.raises(Refused) as caught:
                store.resume(cookie, nonce, at=NOW)
            assert caught.value.code == "trust.session.expired"
        # Whoever had resumed it before that cannot spend it either.
        session = SessionStore(place.open(), KEY).begin(tee="tpm", at=NOW, lifetime=LIFE)
        with pytest.raises(Refused):
            self.keep(place, stores[0], session, NOW)
        # Nor does the clock that was wrong keep out who begins now.
        soon = NOW + timedelta(seconds=1)
        self.attest(place, stores[1], *self.begin(stores[1], soon), soon)

    def test_of_very_many_the_oldest_are_forgotten_and_stay_spent(
        self, place: Place, stores: list[SessionStore], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "NONCES_KEPT", 3)  # the number, not what is done with it
        monkeypatch.setattr(module, "_PRUNED_SECONDS", 0.0)
        begun = []
        for number in range(6):
            at = NOW + timedelta(seconds=number)
            cookie, nonce = self.begin(stores[0], at)
            session = stores[0].resume(cookie, nonce, at=at)
            spent = place.open().write(lambda connection, s=session, at=at: stores[0].spend(connection, s, at=at))  # type: ignore[misc]  # bound by default
            assert spent
            begun.append((cookie, nonce))
        assert self.rows(place)[1] == 3
        codes = []
        for cookie, nonce in begun:
            with pytest.raises(Refused) as caught:
                stores[1].resume(cookie, nonce, at=NOW + timedelta(seconds=6))
            codes.append(caught.value.code)
        assert codes == ["trust.session.expired"] * 3 + ["trust.session.nonce_used"] * 3


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
