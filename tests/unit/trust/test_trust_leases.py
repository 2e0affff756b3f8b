"""Leases: what a rule gives, when a release is a renewal, and what ends it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection

from cloister.trust.keybroker import Answer, KeyBroker
from cloister.trust.roles import LogEvent
from cloister.trust.store.leases import LeaseStore
from trust_world import CANARY, MODEL, World, error_of, rule


def lease_of(answer: Answer) -> int:
    [value] = [value for name, value in answer.headers if name == b"cloister-lease"]
    return int(value)


@pytest.fixture
def leased(world: World) -> World:
    world.admin.add_release_rule(rule(world.data, lease_seconds=600))
    return world


def running(world: World) -> list[Any]:
    return list(LeaseStore(world.service.store).running(at=world.clock.now))


def test_without_a_lease_there_is_none(world: World) -> None:
    answer = world.guest().handshake().resource()
    assert answer.status == 200 and b"cloister-lease" not in dict(answer.headers) and running(world) == []


def test_a_release_begins_one(leased: World) -> None:
    guest = leased.guest().handshake()
    answer = guest.resource()
    assert guest.open(answer) == CANARY and lease_of(answer) == 600
    [lease] = running(leased)
    assert (lease.resource, lease.init_data, lease.renewals) == (str(MODEL), leased.data.digest_text, 0)
    assert lease.expires_at == leased.clock.now + timedelta(seconds=600)
    [row] = leased.admin.list_audit()
    assert (row.decision, row.code) == ("released", "trust.released")


def test_fresh_evidence_renews_it(leased: World) -> None:
    guest = leased.guest().handshake()
    guest.resource()
    leased.clock.advance(seconds=400)
    guest.handshake()
    answer = guest.resource()
    assert lease_of(answer) == 600
    [lease] = running(leased)
    assert lease.renewals == 1 and lease.granted_at == leased.clock.now - timedelta(seconds=400)
    assert [(row.decision, row.code) for row in leased.admin.list_audit()] == [
        ("released", "trust.released"),
        ("renewed", "trust.renewed"),
    ]


def test_the_same_evidence_does_not(leased: World) -> None:
    guest = leased.guest().handshake()
    guest.resource()
    leased.clock.advance(seconds=100)
    assert lease_of(guest.resource()) == 500
    assert [row.decision for row in leased.admin.list_audit()] == ["released", "released"]


def test_another_guest_has_its_own(leased: World) -> None:
    leased.guest().handshake().resource()
    leased.guest().handshake().resource()
    assert [lease.renewals for lease in running(leased)] == [0, 0]


def test_what_ended_is_not_renewed(leased: World) -> None:
    guest = leased.guest().handshake()
    guest.resource()
    leased.clock.advance(seconds=600)
    assert running(leased) == []
    guest.handshake()
    guest.resource()
    assert [row.decision for row in leased.admin.list_audit()] == ["released", "released"]
    assert [lease.renewals for lease in running(leased)] == [0]


def test_revocation_takes_effect_with_the_next_renewal(leased: World) -> None:
    guest = leased.guest().handshake()
    guest.resource()
    leased.admin.revoke(leased.data.digest_text)
    leased.clock.advance(seconds=300)
    guest.handshake()
    answer = guest.resource()
    assert (answer.status, error_of(answer)["code"]) == (403, "trust.release.revoked")
    [lease] = running(leased)
    assert lease.expires_at == leased.clock.now + timedelta(seconds=300), "not moved"
    leased.clock.advance(seconds=300)
    assert running(leased) == []


def test_leases_of_one_pod(leased: World) -> None:
    leased.guest().handshake().resource()
    store = LeaseStore(leased.service.store)
    assert len(store.running(at=leased.clock.now, init_data=leased.data.digest_text)) == 1
    assert store.running(at=leased.clock.now, init_data="sha256:" + "0" * 64) == ()


class Log:
    """Keeps what it is told, as the release log does."""

    def __init__(self) -> None:
        self.events: list[LogEvent] = []

    def append(self, connection: Connection, event: LogEvent) -> object:
        assert connection.in_transaction()
        self.events.append(event)
        return len(self.events)

    def receipt(self, appended: object, *, cosignatures: int = 0, deadline: float) -> str:
        return f"receipt-{appended}-{cosignatures}"


def logged(world: World, **parts: Any) -> Log:
    from dataclasses import replace

    log = Log()
    world.service.broker = KeyBroker(replace(world.service.broker._parts, events=log, receipts=log, **parts))
    return log


def test_the_release_log_is_told_and_its_receipt_travels_with_the_key(leased: World) -> None:
    log = logged(leased)
    guest = leased.guest().handshake()
    answer = guest.resource()
    assert dict(answer.headers)[b"cloister-receipt"] == b"receipt-1-0"
    leased.clock.advance(seconds=10)
    guest.handshake()
    guest.resource()
    guest.resource("no/such/thing")
    assert [event.kind for event in log.events] == ["release", "renewal", "denial"]
    fields = log.events[0].fields
    [row, *_] = leased.admin.list_audit()
    assert fields["resource"] == str(MODEL) and fields["guest_key"] == row.guest_key
    assert fields["init_data"] == leased.data.digest_text and fields["attestation"] == row.attestation
    assert log.events[2].fields["code"] and log.events[2].fields["denial"].startswith("d-")
    assert CANARY.decode() not in repr(log.events)


def test_as_many_witnesses_as_the_rule_asks_for(leased: World) -> None:
    leased.admin.add_release_rule(rule(leased.data, witnesses=2))
    answer = leased.guest().handshake().resource()
    assert (answer.status, error_of(answer)["code"]) == (403, "trust.release.witnesses"), "there is no log"
    logged(leased, witnesses=1)
    answer = leased.guest().handshake().resource()
    assert (answer.status, error_of(answer)["code"]) == (403, "trust.release.witnesses")
    logged(leased, witnesses=2)
    answer = leased.guest().handshake().resource()
    assert dict(answer.headers)[b"cloister-receipt"].endswith(b"-2")


def test_nothing_leaves_when_the_log_must_not_be_written(leased: World) -> None:
    from cloister.errors import Unavailable

    log = logged(leased)
    guest = leased.guest().handshake()

    def refuse(connection: Connection, event: LogEvent) -> object:
        raise Unavailable("trust.releaselog.behind", "no")

    log.append = refuse  # type: ignore[method-assign]  # of this test's own class
    with pytest.raises(Unavailable):
        guest.resource()
    assert running(leased) == [] and leased.admin.list_audit() == ()


def test_approvals_come_from_whoever_keeps_them(leased: World) -> None:
    asked = []

    def approved(resource: str, init_data: str) -> frozenset[str]:
        asked.append((resource, init_data))
        return frozenset({"ann"})

    rule_text = b'approvals = {need = 1, of = ["ann", "ben"]}\ninit_data = ["%s"]\ninsecure_allow_levels = ["measured"]'
    leased.admin.put_release_rule("default/model/*", rule_text % leased.data.digest_text.encode())
    answer = leased.guest().handshake().resource()
    assert (answer.status, error_of(answer)["code"]) == (403, "trust.release.approvals")
    logged(leased, approved_by=approved)
    assert leased.guest().handshake().resource().status == 200
    assert asked == [(str(MODEL), leased.data.digest_text)]
