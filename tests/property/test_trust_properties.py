"""The trust service under arbitrary input and arbitrary order of requests.

A small model says what must happen: a nonce is accepted once, a session once, and a resource leaves only to a guest
whose rule is in force now; every release is on record, in order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from cloister.errors import FormatRefused
from cloister.rats.reference import parse_reference_entries
from cloister.trust.keybroker import Credentials
from cloister.trust.keybroker.policy import encode_release_rule, parse_legacy_policy, parse_release_rule
from cloister.trust.store.records import RELEASED
from trust_world import CANARY, MODEL, Guest, World, error_of, make_world, quick_directory
from trust_world import rule as release_rule


@contextmanager
def in_memory() -> Iterator[World]:
    with quick_directory() as directory:
        world = make_world(directory)
        try:
            yield world
        finally:
            world.close()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with in_memory() as made:
        yield made


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@given(body=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_request_is_answered(world: World, body: bytes) -> None:
    answer = world.service.broker.auth(body)
    assert answer.status in (400, 401, 403) and error_of(answer)["denial-id"]


@given(body=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_attestation_is_answered(world: World, body: bytes) -> None:
    guest = world.guest()
    guest.auth()
    answer = world.service.broker.attest(body, Credentials(cookie=guest.cookie))
    assert answer.status in (400, 401, 403)


@given(
    evidence=JSON, data=st.text(max_size=40), key=st.dictionaries(st.text(max_size=4), st.text(max_size=8), max_size=5)
)
@settings(max_examples=60)
def test_any_content_of_an_attestation_is_answered(world: World, evidence: Any, data: str, key: dict[str, str]) -> None:
    guest = world.guest()
    guest.auth()
    body = guest.attestation(evidence=evidence)
    body["init-data"]["body"] = data
    assert guest.send_attestation(body).status in (400, 403)
    guest.auth()
    body = guest.attestation(evidence=evidence)
    body["runtime-data"]["tee-pubkey"] = key
    assert guest.send_attestation(body).status in (400, 403)
    guest.auth()
    assert guest.send_attestation(guest.attestation(evidence=evidence)).status in (400, 403)


@given(path=st.text(max_size=60), token=st.text(max_size=60), cookie=st.text(max_size=40))
@settings(max_examples=60)
def test_any_resource_request_is_answered(world: World, path: str, token: str, cookie: str) -> None:
    guest = world.guest()
    assert guest.resource(path, token=token or "x").status in (400, 401)
    assert guest.resource(MODEL, cookie=cookie or "x").status == 401


@given(st.binary(max_size=120) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_policy_text_is_refused_or_reads_back(text: bytes) -> None:
    for parse in (parse_legacy_policy, parse_reference_entries):
        try:
            parse(text)
        except FormatRefused:
            continue
        assert text.strip() == b"[]"


@given(st.binary(max_size=120) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_rule_text_is_refused_or_reads_back(text: bytes) -> None:
    try:
        rule = parse_release_rule("a/b/*", text)
    except FormatRefused as err:
        assert err.code == "trust.release_policy.malformed"
        return
    again = parse_release_rule("a/b/*", encode_release_rule(rule))
    assert replace(again, digest="") == replace(rule, digest="")


SEGMENT = st.from_regex(r"[a-zA-Z0-9_\-]{1,9}", fullmatch=True)


@given(st.tuples(SEGMENT, SEGMENT | st.just("*"), SEGMENT), st.integers(0, 86400), st.booleans())
def test_rules_round_trip(world: World, path: tuple[str, str, str], lease: int, free: bool) -> None:
    prefix = "/".join(path if path[1] != "*" else (path[0], "*", "*"))
    changes = {"insecure_any_init_data": True, "init_data": ()} if free else {}
    rule = release_rule(world.data, prefix, lease_seconds=lease, **changes)
    assert replace(parse_release_rule(prefix, encode_release_rule(rule)), digest="") == rule


class Handshakes(RuleBasedStateMachine):
    """Guests, owner, clock and restarts in any order."""

    @initialize()
    def start(self) -> None:
        self.directory = in_memory()
        self.world = self.directory.__enter__()
        self.guests: list[Guest] = []
        self.opened: dict[int, float] = {}
        self.spent: set[int] = set()
        self.attested: dict[int, float] = {}
        self.allowed = True
        self.clock = 0.0
        self.released = 0

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            self.directory.__exit__(None, None, None)

    @rule()
    def open_session(self) -> None:
        guest = self.world.guest()
        assert guest.auth().status == 200
        self.opened[len(self.guests)] = self.clock
        self.guests.append(guest)

    @precondition(lambda self: self.guests)
    @rule(data=st.data(), fault=st.sampled_from(["none", "none", "nonce", "evidence"]))
    def attest(self, data: st.DataObject, fault: str) -> None:
        index = data.draw(st.integers(0, len(self.guests) - 1))
        guest = self.guests[index]
        changes = {"nonce": {"nonce": "A" * 43 + "="}, "evidence": {"evidence": {"x": 1}}}.get(fault, {})
        answer = guest.send_attestation(guest.attestation(**changes))
        if not self.clock - self.opened[index] < 300:
            assert answer.code in ("trust.session.expired", "trust.session.unknown")
        elif fault == "nonce":
            assert answer.code == "trust.session.nonce_mismatch"
        elif index in self.spent:
            assert answer.code == "trust.session.nonce_used"
        else:
            self.spent.add(index)
            assert answer.status == (400 if fault == "evidence" else 200)
            if fault == "none":
                self.attested[index] = self.clock

    @precondition(lambda self: self.guests)
    @rule(data=st.data(), cookie=st.booleans())
    def fetch(self, data: st.DataObject, cookie: bool) -> None:
        index = data.draw(st.integers(0, len(self.guests) - 1))
        guest = self.guests[index]
        answer = guest.resource(cookie=guest.cookie) if cookie else guest.resource(token=guest.token or "none")
        token_lives = index in self.attested and self.clock - self.attested[index] < 300
        session_lives = self.clock - self.opened[index] < 300
        if token_lives and (session_lives or not cookie) and self.allowed:
            assert guest.open(answer) == CANARY
            self.released += 1
        else:
            assert answer.status in (401, 403) and CANARY not in answer.body

    @rule()
    def allow(self) -> None:
        self.world.admin.add_release_rule(release_rule(self.world.data))
        self.allowed = True

    @rule()
    def forbid(self) -> None:
        self.world.admin.add_release_rule(release_rule(self.world.data, init_data=()))
        self.allowed = False

    @rule(seconds=st.sampled_from([1, 100, 250, 4000]))
    def wait(self, seconds: int) -> None:
        self.world.clock.advance(seconds=seconds)
        self.clock += seconds

    @rule()
    def restart(self) -> None:
        self.world.restart()

    @invariant()
    def each_release_is_on_record(self) -> None:
        if hasattr(self, "world"):
            rows = [row for row in self.world.admin.list_audit() if row.decision == RELEASED]
            assert len(rows) == self.released
            assert all(row.init_data == self.world.data.digest_text for row in rows)


TestHandshakes = pytest.mark.filterwarnings("error")(Handshakes.TestCase)
TestHandshakes.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
