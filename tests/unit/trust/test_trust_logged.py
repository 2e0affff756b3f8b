"""What the trust service logs: releases, denials of those who proved something, changes; and what it does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from cloister.protocol.resourceuri import parse_resource_path
from cloister.tlog.entry import encode_leaf, field_salt, open_field, parse_leaf
from cloister.tlog.receipt import LogPins, parse_receipt, verify_receipt
from cloister.trust.events import loggable
from cloister.trust.store.schema import log_entries
from trust_world import CANARY, MODEL, World, error_of, make_world, quick_directory, rule


@pytest.fixture
def world() -> Iterator[World]:
    with quick_directory() as directory:
        made = make_world(directory)
        yield made
        made.close()


def logged(world: World, after: int = 0) -> list[tuple[str, dict[str, str]]]:
    """Kind and opened fields of the entries from an index on; each commitment is checked."""
    rows = world.service.store.read(
        lambda connection: connection.execute(select(log_entries).order_by(log_entries.c.position)).all()
    )
    found = []
    for row in rows[after:]:
        leaf, fields = parse_leaf(row.leaf), json.loads(row.fields)
        assert leaf.commitments.keys() == fields.keys()
        for name, value in fields.items():
            open_field(leaf, name, field_salt(row.salt, name), value)
        found.append((leaf.kind, fields))
    return found


def test_a_release_is_logged_with_whom_what_and_by_which_rules(world: World) -> None:
    before = len(logged(world))
    guest = world.guest().handshake()
    answer = guest.resource()
    ((kind, fields),) = logged(world, before)
    assert kind == "release"
    assert fields["resource"] == str(MODEL)
    assert fields["init_data"] == world.data.digest_text
    assert fields["tenant"] == "default"
    assert {"guest_key", "release_policy_digest", "appraisal_policy_digest", "attestation"} <= fields.keys()
    receipt = dict(answer.headers)[b"cloister-receipt"].decode()
    entry = verify_receipt(parse_receipt(receipt), LogPins(key=world.service.log.key))
    assert (entry.index, dict(entry.fields)) == (before, fields)
    assert CANARY.hex() not in receipt


def test_the_owner_can_show_a_past_release(world: World) -> None:
    before = len(logged(world))
    world.guest().handshake().resource()
    world.guest().handshake().resource()
    first, second = [row for row in world.admin.list_audit() if row.decision == "released"]
    for index, row in enumerate((first, second), before):
        receipt = world.admin.release_receipt(row)
        assert receipt is not None
        entry = verify_receipt(receipt, LogPins(key=world.service.log.key))
        assert (entry.index, entry.kind) == (index, "release")
        assert entry.fields["attestation"] == row.attestation


def test_what_is_not_in_the_log_has_no_receipt(world: World) -> None:
    world.guest().handshake().resource()
    row = world.admin.list_audit()[-1]
    assert world.admin.release_receipt(replace(row, guest_key="another")) is None


def test_a_denial_of_an_attested_guest_is_logged_and_carries_no_receipt(world: World) -> None:
    guest = world.guest().handshake()
    before = len(logged(world))
    answer = guest.resource(parse_resource_path("default/other/one"))
    ((kind, fields),) = logged(world, before)
    assert kind == "denial"
    assert fields["denial"] == error_of(answer)["denial-id"]
    assert fields["resource"] == "default/other/one"
    assert not any(name == b"cloister-receipt" for name, _ in answer.headers)


def test_a_denial_in_an_accepted_session_is_logged(world: World) -> None:
    guest = world.guest()
    guest.auth()
    before = len(logged(world))
    assert guest.send_attestation(guest.attestation(evidence={})).status != 200
    assert [kind for kind, _ in logged(world, before)] == ["denial"]


def test_denials_that_anybody_can_cause_are_not_logged(world: World) -> None:
    before = len(logged(world))
    broker = world.service.broker
    guest = world.guest()
    attestation: dict[str, Any] = guest.attestation(nonce="AAAA")
    for answer in (
        broker.auth(b"{}"),
        broker.auth(json.dumps({"version": "9", "tee": "tpm", "extra-params": ""}).encode()),
        guest.send_attestation(attestation),
        guest.resource(),
    ):
        assert answer.status >= 400
        assert error_of(answer)["denial-id"]
    assert logged(world, before) == []


def test_changes_of_policies_are_logged(world: World) -> None:
    before = len(logged(world))
    world.admin.add_release_rule(rule(world.data, "default/changed/*"))
    assert {kind for kind, _ in logged(world, before)} == {"policy"}


@pytest.mark.parametrize("path", ["x" * 399, "\N{EM DASH}" * 399, "\0"])
def test_no_path_keeps_a_denial_from_being_recorded(world: World, path: str) -> None:
    """What is no path is refused before the token is looked at: nobody has proved anything then."""
    guest = world.guest().handshake()
    before = len(logged(world))
    answer = guest.resource(path)
    assert answer.status in (400, 403, 404)
    assert error_of(answer)["denial-id"]
    assert logged(world, before) == []


@pytest.mark.parametrize("text", ["", "plain", "\ud800", "\N{EM DASH}" * 400, "x" * 5000])
def test_texts_of_others_fit_into_an_entry(text: str) -> None:
    fitting = loggable(text)
    encode_leaf("denial", "2026-11-26T19:06:53.000000Z", bytes(32), {"resource": fitting})
    assert text.startswith(fitting) or fitting == "\\ud800"
