"""Plugins of the key broker: who is let in, what goes out sealed, what is recorded."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest

from cloister.errors import FormatRefused, Refused, Unavailable
from cloister.protocol.kbs import SealedResource
from cloister.rats.result import Finding, Question
from cloister.trust.keybroker import Answer, Credentials, KeyBroker
from cloister.trust.roles import AttestedGuest, PluginDenied
from trust_world import Guest, World, error_of


class Echo:
    """Says what it was asked."""

    def handle(self, path: str, query: str, body: bytes, token: AttestedGuest) -> bytes:
        if path == "denied":
            finding = Finding(code="trust.identity.no", question=Question.ACCEPTABLE, ok=False, message="not you")
            raise PluginDenied(finding, path=path, findings=[finding])
        if path == "malformed":
            raise FormatRefused("trust.identity.bad", "no")
        if path == "missing":
            raise Refused("trust.resource.missing", "no such thing")
        if path == "broken":
            raise Unavailable("trust.store.failed", "no")
        return json.dumps([path, query, body.decode(), token.level.value, token.init_data]).encode()


@pytest.fixture
def extended(world: World) -> World:
    world.service.broker = KeyBroker(replace(world.service.broker._parts, plugins={"echo": Echo()}))
    return world


def ask(guest: Guest, path: str = "a/b", *, name: str = "echo", seconds: float = 5, **credentials: str) -> Answer:
    given: Any = credentials or {"bearer": guest.token}
    deadline = time.monotonic() + seconds
    return guest.world.service.broker.plugin(name, path, "x=1", b"body", Credentials(**given), deadline=deadline)


def test_the_answer_is_sealed_to_the_guest(extended: World) -> None:
    guest = extended.guest().handshake()
    for credentials in ({"bearer": guest.token}, {"cookie": guest.cookie}):
        answer = ask(guest, **credentials)
        assert answer.status == 200 and b"a/b" not in answer.body
        opened = guest.key.open(SealedResource(**json.loads(answer.body)))
        assert json.loads(opened) == ["a/b", "x=1", "body", "measured", extended.data.digest_text]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("denied", 403, "trust.identity.no"),
        ("malformed", 400, "trust.identity.bad"),
        ("missing", 404, "trust.resource.missing"),
    ],
)
def test_refusals_are_recorded(extended: World, path: str, status: int, code: str) -> None:
    answer = ask(extended.guest().handshake(), path)
    assert (answer.status, error_of(answer)["code"]) == (status, code)
    record = extended.admin.get_denial(error_of(answer)["denial-id"])
    assert record.resource == f"echo/{path}"
    if path == "denied":
        assert "trust.identity.no" in {finding.code for finding in record.findings}


def test_a_failure_is_none_of_the_guests(extended: World) -> None:
    with pytest.raises(Unavailable):
        ask(extended.guest().handshake(), "broken")


def test_who_did_not_attest_is_not_let_in(extended: World) -> None:
    guest = extended.guest()
    guest.auth()
    assert error_of(ask(guest, bearer=""))["code"] == "trust.token.missing"
    assert error_of(ask(guest, bearer="x"))["code"] == "crypto.jwt.malformed"
    assert error_of(ask(guest, cookie=guest.cookie))["code"] == "trust.session.not_attested"


def test_revoked_guests_and_old_policies_are_not_let_in(extended: World) -> None:
    guest = extended.guest().handshake()
    extended.admin.put_appraisal_policy(
        b'{"version":1,"id":"default","tees":["tpm"],"insecure_accept_levels":["measured","simulated"]}'
    )
    assert error_of(ask(guest))["code"] == "trust.release.appraisal_policy_version"
    extended.admin.revoke(extended.data.digest_text)
    assert error_of(ask(extended.guest().handshake()))["code"] == "trust.release.revoked"


def test_an_unknown_plugin_is_no_address(extended: World) -> None:
    answer = ask(extended.guest().handshake(), name="nebula")
    assert (answer.status, error_of(answer)["code"]) == (404, "trust.request.path")


def test_past_the_deadline_nothing_is_asked(extended: World) -> None:
    with pytest.raises(Unavailable):
        ask(extended.guest().handshake(), seconds=0)
