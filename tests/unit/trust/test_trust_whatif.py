"""Past decisions made again under other rules."""

from __future__ import annotations

from dataclasses import replace

from cloister.rats.result import Tier
from cloister.trust.keybroker.policy import ReleaseRules, parse_release_rule
from cloister.trust.keybroker.whatif import Changed, RecordedDecision, Verdict, recorded_decisions, what_if
from cloister.trust.store.records import RecordStore
from trust_world import MODEL, World, init_data, rule

HERE = "default/model/*"
MEASURED = b'insecure_allow_levels = ["measured"]\n'


def history(world: World) -> tuple[RecordedDecision, ...]:
    """A release, a denial for another pod, a denial by verdict, and denials that no rule made."""
    world.guest().handshake().resource()
    world.guest(init_data(pod="two")).handshake().resource()
    world.guest(launch=b"another").handshake().resource()
    world.guest().resource(token="nonsense")
    world.guest().handshake().resource("default/model/missing")
    return recorded_decisions(RecordStore(world.service.store))


def candidate(text: bytes, prefix: str = HERE) -> ReleaseRules:
    return ReleaseRules(rules={prefix: parse_release_rule(prefix, text)})


def told(changed: tuple[Changed, ...]) -> list[tuple[str, str, str]]:
    return [(item.decision.was.value, item.would.value, item.why[0].code.rpartition(".")[2]) for item in changed]


def test_which_decisions_are_looked_at(world: World) -> None:
    assert [(item.was.value, item.code) for item in history(world)] == [
        ("released", "trust.released"),
        ("denied", "trust.release.init_data"),
        ("denied", "appraisal.reference_values.pcr00"),
    ]


def test_the_rules_in_force_change_nothing(world: World) -> None:
    decisions = history(world)
    assert what_if(world.admin.release_rules(), decisions) == ()


def test_a_stricter_rule(world: World) -> None:
    decisions = history(world)
    changed = what_if(candidate(b"note = 'nobody'"), decisions)
    assert told(changed) == [("released", "denied", "level")]
    assert changed[0].rule == HERE and changed[0].decision.path == MODEL


def test_a_wider_rule_and_why(world: World) -> None:
    decisions = history(world)
    changed = what_if(candidate(MEASURED + b"insecure_any_init_data = true"), decisions)
    assert told(changed) == [("denied", "released", "fresh")]
    assert changed[0].decision.guest.init_data == init_data(pod="two").digest_text


def test_without_a_rule(world: World) -> None:
    assert told(what_if(ReleaseRules(), history(world))) == [("released", "denied", "no_rule")]


def test_revoking(world: World) -> None:
    decisions = history(world)
    rules = replace(world.admin.release_rules(), revoked=frozenset({world.data.digest_text}))
    assert told(what_if(rules, decisions)) == [("released", "denied", "revoked")]


def test_rego_cannot_be_told(world: World) -> None:
    """Measured guests fall at the floor, which is told; what Rego would say of others is not."""
    decisions = history(world)
    rego = candidate(b"package policy\ndefault allow = true\n")
    assert told(what_if(rego, decisions)) == [("released", "denied", "level")]
    from cloister.rats.claims import Level

    [first, *_] = decisions
    hardware = replace(first, guest=replace(first.guest, level=Level.HARDWARE))
    [changed] = what_if(rego, [hardware])
    assert changed.would is Verdict.UNKNOWN


def test_another_verdict_on_the_same_evidence(world: World) -> None:
    """What a candidate appraisal policy says of kept evidence comes in here."""
    decisions = [replace(item, guest=replace(item.guest, tier=Tier.CONTRAINDICATED)) for item in history(world)]
    assert told(what_if(world.admin.release_rules(), decisions)) == [("released", "denied", "tier")]


def test_approvals_are_asked_for(world: World) -> None:
    text = MEASURED + b'init_data = ["%s"]\napprovals = {need = 1, of = ["ann"]}' % world.data.digest_text.encode()
    decisions = history(world)
    assert told(what_if(candidate(text), decisions)) == [("released", "denied", "approvals")]
    assert what_if(candidate(text), decisions, approved_by=lambda *_: frozenset({"ann"})) == ()


def test_only_the_newest(world: World) -> None:
    guest = world.guest().handshake()
    for _ in range(5):
        guest.resource()
    records = RecordStore(world.service.store)
    assert [item.sequence for item in recorded_decisions(records, last=2)] == [4, 5]
    assert recorded_decisions(records, last=0) == ()
    world.admin.add_release_rule(rule(world.data, lease_seconds=60))
    guest.resource()
    guest.handshake()
    guest.resource()
    assert [item.was for item in recorded_decisions(records, last=1)] == [Verdict.RELEASED], "a renewal is a release"
