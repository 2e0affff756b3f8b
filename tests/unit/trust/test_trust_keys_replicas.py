"""Keys of replicas: two services, each with a state directory of its own, over one database on SQLite or PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path

import pytest

from cloister.errors import CloisterError
from cloister.protocol.resourceuri import parse_resource_path
from cloister.testing.tpm import NOW
from cloister.testing.vault import FakeVault
from cloister.trust.keys import KeyAdministration, ServiceKeys
from cloister.trust.rowseal import data_key_of
from cloister.trust.statedir import StateDirectory
from cloister.trust.store.database import Store
from cloister.trust.store.resources import ResourceStore
from cloister.trust.store.sessions import SessionStore
from postgres_process import PostgreSQLServer
from store_places import Place


class Replica:
    """Store, keys and resources of one replica."""

    def __init__(self, state: Path, store: Store, key_store: str) -> None:
        self.store = store
        self.keys = ServiceKeys(StateDirectory(state), store, key_store=key_store, clock=lambda: NOW)
        self.admin = KeyAdministration(store, self.keys)

    def resources(self, tenant: str = "default") -> ResourceStore:
        return ResourceStore(self.store, self.keys.ring, tenant=tenant)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.tool)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    server: PostgreSQLServer | None = None
    if request.param == "postgresql":
        server = request.getfixturevalue("postgresql")
    with Place(tmp_path, server) as made:
        yield made


@pytest.fixture
def replicas(place: Place, tmp_path: Path) -> Iterator[list[Replica]]:
    """Two that start for the first time at the same instant."""
    with FakeVault(tmp_path) as vault, ExitStack() as stack:
        made: list[Replica] = []
        stores = [place.open() for _ in range(2)]
        at_once([lambda n=n: made.append(Replica(tmp_path / f"state{n}", stores[n], vault.uri)) for n in range(2)])
        assert len(made) == 2
        for replica in made:
            stack.enter_context(closing(replica.keys))
        yield made


def at_once(jobs: list[Callable[[], object]]) -> list[object]:
    results: list[object] = []

    def run(job: Callable[[], object]) -> None:
        try:
            results.append(job())
        except CloisterError as err:
            results.append(err)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_started_at_once_they_have_the_same_keys(replicas: list[Replica]) -> None:
    one, two = replicas
    assert one.keys.ring.root == two.keys.ring.root
    assert [key.id for key in one.admin.list_keys()] == [key.id for key in two.admin.list_keys()]
    assert one.keys.authority().certificate_pem == two.keys.authority().certificate_pem
    assert one.keys.token_issuer().signer.public_key.spki == two.keys.token_issuer().signer.public_key.spki
    one.admin.rotate_root()  # what the one that came second had made goes
    assert one.keys._keystore.identities() == (one.keys.ring.root,)


@pytest.mark.long
def test_rotated_at_once_every_row_of_every_tenant_opens(replicas: list[Replica]) -> None:
    one, two = replicas
    paths = [parse_resource_path(f"default/model/r{number}") for number in range(12)]
    for tenant in ("default", "other"):
        for path in paths:
            one.resources(tenant).put(path, f"{tenant} {path}".encode(), at=NOW)
    results = at_once([replica.admin.rotate_root for replica in replicas] + [r.admin.rotate_data_key for r in replicas])
    assert sum(isinstance(result, str) for result in results) >= 2, results
    two.admin.reseal()
    for replica in replicas:
        for tenant in ("default", "other"):
            for path in paths:
                assert replica.resources(tenant).get(path).content == f"{tenant} {path}".encode()
    active = [key.id for key in one.admin.list_keys() if key.purpose == "data" and key.state == "active"]
    assert len(active) == 1
    assert active == [key.id for key in two.admin.list_keys() if key.purpose == "data" and key.state == "active"]


def test_signing_keys_are_sealed_anew_too_and_sessions_go_on(replicas: list[Replica]) -> None:
    one, two = replicas
    from cloister.trust.keys.reseal import data_keys_in_use

    sessions = SessionStore(one.store, one.keys.ring)
    session = sessions.begin(tee="tpm", at=NOW, lifetime=timedelta(minutes=1))
    cookie = sessions.cookie(session, activated=True)
    new = two.admin.rotate_data_key()
    assert one.store.write(data_keys_in_use) == {new}
    other = SessionStore(two.store, two.keys.ring)
    assert other.resume(cookie, session.nonce, at=NOW) == session
    # One that begins under the new key, at a replica that knows it already, is known by the other at once.
    later = other.begin(tee="tpm", at=NOW, lifetime=timedelta(minutes=1))
    assert later.data_key == new
    assert sessions.resume(other.cookie(later, activated=True), later.nonce, at=NOW) == later
    assert one.keys.token_issuer().chain


def test_a_token_key_of_one_is_accepted_by_the_other_before_it_signs(replicas: list[Replica]) -> None:
    one, two = replicas
    new = one.admin.rotate_token_key()
    assert new in two.keys.signing.token_keys()
    assert two.keys.signing.signing_key("token").kid != new


def test_what_one_seals_the_other_opens_at_once(replicas: list[Replica]) -> None:
    one, two = replicas
    path = parse_resource_path("default/model/x")
    for number in range(3):
        one.keys.ring.rotate_data_key()
        one.resources().put(path, b"%d" % number, at=NOW)
        assert two.resources().get(path).content == b"%d" % number
        two.resources().put(path, b"back", at=NOW)  # may still be under the key before
        assert one.resources().get(path).content == b"back"
    two.keys.ring._looked -= 1.05  # as if it had looked so long ago
    sealed = two.keys.ring.seal("p", "r", b"x")
    assert data_key_of(sealed) == one.keys.ring.current().active.identity
