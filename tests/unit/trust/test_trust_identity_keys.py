"""Keys of a trust domain in the store, on both databases: replicas agree, data keys rotate underneath."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier

import pytest
from sqlalchemy import update

from cloister.errors import Unavailable
from cloister.testing.tpm import NOW
from cloister.trust.identity import StoredAuthorities
from cloister.trust.identity.authorities import OVERLAP, ROTATED_AFTER, Use
from cloister.trust.rowseal import DataKey
from cloister.trust.store import schema
from store_places import Place
from trust_world import World

KEY = DataKey("11" * 8, bytes(32))
DOMAIN = "prod.example.org"


def test_replicas_that_need_a_key_at_once_make_one(place: Place) -> None:
    replicas = [StoredAuthorities(place.open(), KEY, DOMAIN) for _ in range(4)]
    for at, keys in ((NOW, 2), (NOW + ROTATED_AFTER, 4)):
        together = Barrier(len(replicas))

        def sign(replica: StoredAuthorities, barrier: Barrier = together, moment: object = at) -> tuple[str, ...]:
            barrier.wait()
            return tuple(replica.signing(use, at=moment).key_id for use in Use)  # type: ignore[arg-type]  # the loop's own

        with ThreadPoolExecutor(len(replicas)) as pool:
            assert len(set(pool.map(sign, replicas))) == 1
        assert {len(replica.published(at=at)) for replica in replicas} == {keys}
        assert {replica.sequence(at=at) for replica in replicas} == {keys}


def test_a_rotation_by_hand_is_seen_by_all_and_signs_after_the_overlap(place: Place) -> None:
    one, other = (StoredAuthorities(place.open(), KEY, DOMAIN) for _ in range(2))
    before = one.signing(Use.X509, at=NOW).key_id
    other.rotate(at=NOW)
    assert one.signing(Use.X509, at=NOW).key_id == before and len(one.published(at=NOW)) == 4
    later = NOW + OVERLAP
    assert one.signing(Use.X509, at=later).key_id == other.signing(Use.X509, at=later).key_id != before
    assert len(one.published(at=later)) == 4  # rotated once, not again by age


def test_a_clock_behind_the_keys_refuses(place: Place) -> None:
    ring = StoredAuthorities(place.open(), KEY, DOMAIN)
    ring.rotate(at=NOW)
    first = ring.signing(Use.JWT, at=NOW).key_id  # made beside those that wait
    assert ring.signing(Use.JWT, at=NOW + OVERLAP - timedelta(seconds=1)).key_id == first


def test_a_key_that_was_moved_to_another_row_does_not_open(place: Place) -> None:
    store = place.open()
    ring = StoredAuthorities(store, KEY, DOMAIN)
    ring.signing(Use.X509, at=NOW)
    table = schema.identity_keys
    store.write(lambda connection: connection.execute(update(table).values(sealed=b"\0" * 80)) and None)
    with pytest.raises(Unavailable):
        StoredAuthorities(store, KEY, DOMAIN).signing(Use.X509, at=NOW)


def test_rotating_the_data_key_seals_identity_keys_and_bindings_anew(world: World) -> None:
    ring = StoredAuthorities(world.service.store, world.service.keys.ring, DOMAIN)
    before = ring.signing(Use.X509, at=world.clock.now).key_id
    world.guest().handshake()
    header = world.admin.keys.list_keys()
    old = next(key.id for key in header if key.purpose == "data" and key.state == "active")
    world.admin.keys.rotate_data_key()
    while world.admin.keys.reseal():
        pass
    sealed = [row.sealed for row in world.service.store.read(lambda c: c.execute(schema.identity_keys.select()).all())]
    sealed += [row.binding for row in world.service.store.read(lambda c: c.execute(schema.evidence.select()).all())]
    assert len(sealed) == 3 and all(bytes.fromhex(old) not in row[:12] for row in sealed)
    fresh = StoredAuthorities(world.service.store, world.service.keys.ring, DOMAIN)
    assert fresh.signing(Use.X509, at=world.clock.now).key_id == before
