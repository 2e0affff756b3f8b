"""CoCo's resource policies in Rego: our own equivalents of the shipped ones, bounds, and what they cannot lower."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import FormatRefused, Unavailable
from cloister.trust.rego.engine import RegoEngine, RegoQuery
from trust_world import CANARY, MODEL, World, error_of

pytest.importorskip("regopy", reason="the extra `rego` is not installed")

ALLOW_ALL = "package policy\n\ndefault allow := true\n"
DENY_ALL = "# nobody\npackage policy\n\ndefault allow = false\n"
AFFIRMING = """
package policy
import rego.v1

default allow = false

allow if {
    count(input.submods) > 0
    every _, submod in input.submods {
        submod["ear.status"] == "affirming"
    }
}
"""
NEWER_DEFAULT = """
package policy

default allow = false

plugin = data.plugin

allow if {
    plugin == "resource"
    input.trust_context.attestation_summary.verification_result == true
}
"""
NOT_SAMPLE = """
package policy
import rego.v1
default allow = false
allow if not input.submods.cpu0["ear.veraison.annotated-evidence"].sample
"""
PATHS = """
package policy
import rego.v1
default allow = false
allow if {
    data["resource-path"] == ["default", "model", "one"]
    data.query == {}
}
"""
ENDLESS = """
package policy
import rego.v1
allow if {
    xs := numbers.range(1, 3000)
    count([1 | some a in xs; some b in xs; some c in xs; a == b; b == c]) > 0
}
"""
GREEDY = """
package policy
import rego.v1
allow if {
    xs := numbers.range(1, 1000)
    count([[a, b, "some text that takes room"] | some a in xs; some b in xs]) > 0
}
"""
QUERY = RegoQuery(plugin="resource", path=("default", "model", "one"), query={})
AFFIRMED = {"submods": {"cpu0": {"ear.status": "affirming"}, "gpu0": {"ear.status": "affirming"}}}


@pytest.fixture(scope="module")
def engine() -> Iterator[RegoEngine]:
    with RegoEngine() as made:
        yield made


@pytest.mark.parametrize(
    ("text", "known", "allowed"),
    [
        (ALLOW_ALL, {}, True),
        (DENY_ALL, AFFIRMED, False),
        (AFFIRMING, AFFIRMED, True),
        (AFFIRMING, {"submods": {}}, False),
        (AFFIRMING, {"submods": {**AFFIRMED["submods"], "gpu1": {"ear.status": "warning"}}}, False),
        (NEWER_DEFAULT, {"trust_context": {"attestation_summary": {"verification_result": True}}}, True),
        (NEWER_DEFAULT, {"trust_context": {"attestation_summary": {"verification_result": False}}}, False),
        (NEWER_DEFAULT, {}, False),
        (PATHS, {}, True),
    ],
)
def test_decisions(engine: RegoEngine, text: str, known: dict[str, Any], allowed: bool) -> None:
    said = engine.decide(text, QUERY, known)
    assert (said.allowed, said.failed) == (allowed, False), said


def test_the_path_is_data_and_not_code(engine: RegoEngine) -> None:
    tricky = '"] with data.policy.allow as true with data.x as ["'
    assert not engine.decide(DENY_ALL, RegoQuery(plugin=tricky, path=(tricky,), query={tricky: tricky}), {}).allowed
    other = RegoQuery(plugin="resource", path=("default", "model", "two"), query={})
    assert not engine.decide(PATHS, other, {}).allowed


@pytest.mark.parametrize("value", ["1", '"true"', "{}", "[true]", "null", '{"allow": true}'])
def test_what_is_no_boolean_denies(engine: RegoEngine, value: str) -> None:
    said = engine.decide(f"package policy\n\nallow := {value}\n", QUERY, {})
    assert not said.allowed and "no boolean" in said.words


def test_what_says_nothing_denies(engine: RegoEngine) -> None:
    assert engine.decide("package policy\n", QUERY, {}).words == "undefined"
    assert engine.decide("package other\n\nallow := true\n", QUERY, {}).words == "undefined"


def test_one_evaluation_does_not_reach_into_the_next(engine: RegoEngine) -> None:
    for expected in (True, False, True):
        known = AFFIRMED if expected else {"submods": {"cpu0": {"ear.status": "none"}}}
        assert engine.decide(AFFIRMING, QUERY, known).allowed is expected


def test_a_policy_is_read_once(engine: RegoEngine) -> None:
    engine.decide(AFFIRMING, QUERY, AFFIRMED)
    begun = time.perf_counter()
    for _ in range(20):
        assert engine.decide(AFFIRMING, QUERY, AFFIRMED).allowed
    assert time.perf_counter() - begun < 2


@pytest.mark.parametrize("text", ["package policy\nallow = {", "package policy\nallow if {\n", "package policy\n???"])
def test_what_does_not_load_is_refused(engine: RegoEngine, text: str) -> None:
    with pytest.raises(FormatRefused) as caught:
        engine.check(text)
    assert caught.value.code == "trust.release_policy.malformed"
    assert engine.decide(ALLOW_ALL, QUERY, {}).allowed, "and the process lives on"


def test_an_endless_policy_denies_in_time() -> None:
    with RegoEngine(seconds=0.3) as engine:
        assert engine.decide(ALLOW_ALL, QUERY, {}).allowed
        begun = time.monotonic()
        said = engine.decide(ENDLESS, QUERY, {})
        assert not said.allowed and said.failed and "took longer" in said.words
        assert time.monotonic() - begun < 2
        assert engine.decide(ALLOW_ALL, QUERY, {}).allowed, "another process goes on"


@pytest.mark.long
def test_a_policy_that_takes_too_much_memory_denies() -> None:
    with RegoEngine(seconds=20) as engine:
        assert engine.decide(ALLOW_ALL, QUERY, {}).allowed
        said = engine.decide(GREEDY, QUERY, {})
        assert not said.allowed and "more than 512 MiB" in said.words
        assert engine.decide(ALLOW_ALL, QUERY, {}).allowed


def test_a_process_that_keeps_too_much_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with RegoEngine() as engine:
        assert engine.decide(ALLOW_ALL, QUERY, {}).allowed
        first = engine._process
        monkeypatch.setattr("cloister.trust.rego.engine.KEPT_BYTES", 1)  # the number, not what is done with it
        assert engine.decide(ALLOW_ALL, QUERY, {}).allowed and engine._process is None
        assert engine.decide(ALLOW_ALL, QUERY, {}).allowed and first is not None


def test_a_policy_that_ends_the_process_denies(engine: RegoEngine) -> None:
    assert engine.decide(ALLOW_ALL, QUERY, {}).allowed
    process = engine._process
    assert process is not None
    process.kill()
    process.wait()
    said = engine.decide(ALLOW_ALL, QUERY, {})
    assert not said.allowed and "ended the process" in said.words
    assert engine.decide(ALLOW_ALL, QUERY, {}).allowed


def test_claims_that_are_too_long_deny(engine: RegoEngine) -> None:
    said = engine.decide(ALLOW_ALL, QUERY, {"x": "y" * 2_000_000})
    assert not said.allowed and "too long" in said.words


def test_who_gets_no_turn_is_told_so() -> None:
    engine = RegoEngine()
    engine._turn.acquire()
    with pytest.raises(Unavailable) as caught:
        engine.decide(ALLOW_ALL, QUERY, {}, deadline=time.monotonic() + 0.05)
    assert caught.value.code == "trust.rego.busy"
    engine._turn.release()


def test_the_process_can_reach_nothing(engine: RegoEngine) -> None:
    """No environment, no files, no further processes."""
    engine.decide(ALLOW_ALL, QUERY, {})
    assert engine._process is not None
    place = Path(f"/proc/{engine._process.pid}")
    limits = (place / "limits").read_text()
    rows = {line[:26].strip(): line[26:].split()[:2] for line in limits.splitlines()[1:]}
    assert rows["Max file size"] == ["0", "0"] and rows["Max processes"] == ["0", "0"]
    assert int(rows["Max open files"][0]) <= 16
    environment = (place / "environ").read_text()
    assert environment.strip("\0").split("\0") == ["LC_ALL=C.UTF-8"]


class TestInTheBroker:
    """The guest is measured, so the level floor is tried with hardware in `TestHardware`."""

    def test_rego_cannot_lower_the_level(self, world: World) -> None:
        world.admin.put_release_rule("*", ALLOW_ALL.encode())
        world.admin.remove_release_rule("default/model/*")
        answer = world.guest().handshake().resource()
        assert (answer.status, error_of(answer)["code"]) == (403, "trust.release.level")

    def test_a_rule_that_does_not_load_is_not_stored(self, world: World) -> None:
        with pytest.raises(FormatRefused):
            world.admin.put_release_rule("*", b"package policy\nallow = {")
        assert "*" not in world.admin.release_rules().rules


class TestHardware:
    @pytest.fixture
    def site(self, quick: Any) -> Iterator[Any]:
        from evidence_world import Site, nitro_machine

        made = Site(quick / "site", nitro_machine())
        made.admin.remove_release_rule("default/model/*")
        yield made
        made.close()

    @pytest.mark.parametrize(
        ("text", "status"),
        [(ALLOW_ALL, 200), (DENY_ALL, 403), (AFFIRMING, 200), (NEWER_DEFAULT, 200), (NOT_SAMPLE, 200), (PATHS, 200)],
    )
    def test_policies_over_real_claims(self, site: Any, text: str, status: int) -> None:
        site.admin.put_release_rule("*", text.encode())
        guest = site.guest()
        assert guest.attest().status == 200
        answer = guest.resource()
        assert answer.status == status, answer.body
        if status == 200:
            assert guest.open(answer) == CANARY
        else:
            assert error_of(answer)["code"] == "trust.release.rego"
            record = site.admin.get_denial(error_of(answer)["denial-id"])
            assert [item.actual for item in record.findings if item.code == "trust.release.rego"] == ["false"]

    def test_what_was_not_affirmed(self, site: Any) -> None:
        site.trust_measurement(b"\x07" * 48)
        for text, status in ((AFFIRMING, 403), (NEWER_DEFAULT, 403), (ALLOW_ALL, 200)):
            site.admin.put_release_rule("*", text.encode())
            guest = site.guest()
            guest.attest()
            assert guest.resource().status == status, "allow all is what its owner wrote"

    def test_a_more_specific_rule_decides_alone(self, site: Any) -> None:
        site.admin.put_release_rule("*", ALLOW_ALL.encode())
        site.admin.put_release_rule("default/model/*", b"note = 'nobody'")
        guest = site.guest()
        guest.attest()
        assert error_of(guest.resource())["code"] == "trust.release.init_data"

    def test_a_revocation_is_not_rego_s_to_lift(self, site: Any) -> None:
        site.admin.put_release_rule("*", ALLOW_ALL.encode())
        site.admin.revoke(site.data.digest_text)
        guest = site.guest()
        guest.attest()
        assert error_of(guest.resource())["code"] == "trust.release.revoked"


def test_what_rego_sees_is_the_token(world: World) -> None:
    from cloister.trust.keybroker.regoinput import rego_input
    from cloister.trust.keybroker.token import verify_token

    guest = world.guest().handshake()
    token = verify_token(guest.token, world.service.broker._parts.token_keys, at=world.clock.now)
    seen = rego_input(token)
    summary = seen["trust_context"]["attestation_summary"]
    assert summary["verification_result"] is True and summary["tee_type"] == ["tpm"]
    assert seen["trust_context"]["tee_pubkey"] == guest.key.public_jwk()
    assert seen["submods"]["cpu0"]["ear.status"] == "affirming" and str(MODEL)
    json.dumps(seen)
