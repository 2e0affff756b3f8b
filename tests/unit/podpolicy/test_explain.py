"""The explanation is the decision in words: verdict, rule, both values, fix."""

from __future__ import annotations

from cloister.podpolicy.enforce import Create, Decision, decide, initial_state
from cloister.podpolicy.explain import explain_decision
from cloister.podpolicy.model import PodPolicy


def test_refusal_says_rule_values_and_fix(policy: PodPolicy) -> None:
    text = explain_decision(decide(policy, initial_state(policy), Create(container="x", name="debug")))
    assert text.splitlines() == [
        "refused",
        "  no  podpolicy.create.undeclared at containers: container is not one the pod policy declares: "
        "expected migrate, web, side, got debug",
        "      fix: no container can be added to a running pod; declare it in the pod policy",
        "  ok  podpolicy.create.identifier at containers: identifier is not in use",
    ]


def test_allowed_says_what_held(policy: PodPolicy) -> None:
    lines = explain_decision(decide(policy, initial_state(policy), Create(container="m", name="migrate"))).splitlines()
    assert lines[0] == "allowed"
    assert len(lines) == 4
    assert all(line.startswith("  ok  podpolicy.create.") for line in lines[1:])


def test_nothing_checked_is_said(policy: PodPolicy) -> None:
    text = explain_decision(Decision(checks=(), state=initial_state(policy)))
    assert text == "refused\n  no rule allows this request"
