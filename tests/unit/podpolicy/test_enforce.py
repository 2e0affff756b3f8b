"""The one evaluator: what a hostile host may ask in which state, case by case."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from cloister.errors import PodPolicyRefused
from cloister.podpolicy.enforce import (
    Check,
    Create,
    Decision,
    Delete,
    Exec,
    Exited,
    FetchResource,
    Inspect,
    Life,
    PodState,
    Resize,
    Signal,
    Start,
    decide,
    decide_claim,
    initial_state,
)
from cloister.podpolicy.model import PodPolicy, ProcessSpec
from cloister.protocol.resourceuri import ResourcePath

WEB_MODEL = ResourcePath("default", "model", "web")
UP_TO_MIGRATED = [
    Create(container="m1", name="migrate"),
    Start(container="m1"),
    Exited(container="m1", status=0),
]
WEB_RUNS = [*UP_TO_MIGRATED, Create(container="w1", name="web"), Start(container="w1")]
ALL_RUN = [*WEB_RUNS, Create(container="s1", name="side"), Start(container="s1")]


def play(policy: PodPolicy, requests: list[Any]) -> PodState:
    """Return the state after requests that must all be allowed."""
    state = initial_state(policy)
    for request in requests:
        state = decide(policy, state, request).require()
    return state


def refusal(policy: PodPolicy, before: list[Any], request: Any) -> PodPolicyRefused:
    """Return the refusal of `request` after `before`; it must leave the state as it was and explain itself."""
    state = play(policy, before)
    decision = decide(policy, state, request)
    assert not decision.allowed
    assert decision.state == state
    with pytest.raises(PodPolicyRefused) as refused:
        decision.require()
    error = refused.value
    assert error.code and error.path and error.expected and error.actual
    return error


def test_a_whole_pod_runs_in_order(policy: PodPolicy) -> None:
    state = play(policy, [*ALL_RUN, Exited(container="w1", status=3), Delete(container="w1")])
    assert state.life == {"migrate": Life.EXITED, "web": Life.DELETED, "side": Life.RUNNING}
    assert state.status == {"migrate": 0, "web": 3}


def test_container_cannot_start_twice(policy: PodPolicy) -> None:
    assert refusal(policy, WEB_RUNS, Start(container="w1")).code == "podpolicy.start.twice"


def test_exited_container_cannot_start_again(policy: PodPolicy) -> None:
    before = [*WEB_RUNS, Exited(container="w1", status=0)]
    assert refusal(policy, before, Start(container="w1")).code == "podpolicy.start.twice"


@pytest.mark.parametrize("identifier", ["w1", "w2"])
def test_container_cannot_be_created_twice(policy: PodPolicy, identifier: str) -> None:
    error = refusal(policy, WEB_RUNS, Create(container=identifier, name="web"))
    assert error.code == ("podpolicy.create.identifier" if identifier == "w1" else "podpolicy.create.twice")


def test_deleted_container_cannot_come_back(policy: PodPolicy) -> None:
    before = [*WEB_RUNS, Exited(container="w1", status=0), Delete(container="w1")]
    assert refusal(policy, before, Create(container="w2", name="web")).code == "podpolicy.create.twice"
    assert refusal(policy, before, Start(container="w1")).code == "podpolicy.unknown_container"


def test_identifier_of_another_container_cannot_be_taken(policy: PodPolicy) -> None:
    assert refusal(policy, WEB_RUNS, Create(container="w1", name="side")).code == "podpolicy.create.identifier"


@pytest.mark.parametrize("name", ["debug", "WEB", "web ", "", "migrate/../web"])
def test_container_outside_the_policy_cannot_be_added(policy: PodPolicy, name: str) -> None:
    error = decide(policy, initial_state(policy), Create(container="x", name=name))
    assert [check.code for check in error.checks if not check.ok] == ["podpolicy.create.undeclared"]


def test_init_container_cannot_be_skipped(policy: PodPolicy) -> None:
    assert refusal(policy, [], Create(container="w1", name="web")).code == "podpolicy.create.order"


@pytest.mark.parametrize(
    "before",
    [
        UP_TO_MIGRATED[:1],
        UP_TO_MIGRATED[:2],
        [*UP_TO_MIGRATED[:2], Exited(container="m1", status=1)],
        [*UP_TO_MIGRATED[:2], Exited(container="m1", status=137), Delete(container="m1")],
        [UP_TO_MIGRATED[0], Delete(container="m1")],
        [UP_TO_MIGRATED[0], Exited(container="m1", status=0)],
        [UP_TO_MIGRATED[0], Exited(container="m1", status=0), Delete(container="m1")],
    ],
    ids=["created", "running", "failed", "failed, deleted", "deleted unstarted", "ended unstarted", "both"],
)
def test_app_container_needs_an_init_container_that_ran_and_succeeded(policy: PodPolicy, before: list[Any]) -> None:
    error = refusal(policy, before, Create(container="w1", name="web"))
    assert error.code == "podpolicy.create.order"
    assert "migrate" in error.message


def test_deleted_successful_init_container_still_counts(policy: PodPolicy) -> None:
    play(policy, [*UP_TO_MIGRATED, Delete(container="m1"), Create(container="w1", name="web")])


def test_app_containers_are_created_in_order(policy: PodPolicy) -> None:
    assert refusal(policy, UP_TO_MIGRATED, Create(container="s1", name="side")).code == "podpolicy.create.order"


def test_app_containers_start_in_order(policy: PodPolicy) -> None:
    both = [*UP_TO_MIGRATED, Create(container="w1", name="web"), Create(container="s1", name="side")]
    assert refusal(policy, both, Start(container="s1")).code == "podpolicy.start.order"
    deleted = [*both, Delete(container="w1")]
    assert refusal(policy, deleted, Start(container="s1")).code == "podpolicy.start.order"
    play(policy, [*both, Start(container="w1"), Start(container="s1")])


def test_earlier_app_container_may_have_ended(policy: PodPolicy) -> None:
    play(
        policy,
        [*WEB_RUNS, Exited(container="w1", status=1), Create(container="s1", name="side"), Start(container="s1")],
    )


@pytest.mark.parametrize(
    "request_",
    [
        Start(container="w9"),
        Delete(container="w9"),
        Inspect(container="w9"),
        Signal(container="w9", signal=9),
        Resize(container="w9"),
        Exec(container="w9", args=("/bin/check", "--now")),
        Exited(container="w9", status=0),
        Start(container="web"),
    ],
    ids=lambda item: type(item).__name__,
)
def test_unknown_identifiers_are_refused(policy: PodPolicy, request_: Any) -> None:
    assert refusal(policy, WEB_RUNS, request_).code == "podpolicy.unknown_container"


def test_exit_is_noted_once(policy: PodPolicy) -> None:
    """A second exit must not turn a failed init container into a successful one."""
    before = [*UP_TO_MIGRATED[:2], Exited(container="m1", status=1)]
    assert refusal(policy, before, Exited(container="m1", status=0)).code == "podpolicy.exit.not_running"


def test_running_container_cannot_be_deleted(policy: PodPolicy) -> None:
    assert refusal(policy, WEB_RUNS, Delete(container="w1")).code == "podpolicy.delete.running"


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (Exec(container="w1", args=("/bin/sh",)), "podpolicy.exec"),
        (Exec(container="w1", args=("/bin/check",)), "podpolicy.exec"),
        (Exec(container="w1", args=("/bin/check", "--now", "--more")), "podpolicy.exec"),
        (Exec(container="w1", args=("/bin/check --now",)), "podpolicy.exec"),
        (Exec(container="w1", args=()), "podpolicy.exec"),
        (Exec(container="w1", args=("/bin/check", "--now"), env=("LD_PRELOAD=/x",)), "podpolicy.exec.process"),
        (Exec(container="w1", args=("/bin/check", "--now"), cwd="/tmp"), "podpolicy.exec.process"),
        (Exec(container="w1", args=("/bin/check", "--now"), user="0"), "podpolicy.exec.process"),
        (Exec(container="w1", args=("/bin/check", "--now"), terminal=True), "podpolicy.exec.process"),
        (Exec(container="s1", args=("/bin/check", "--now")), "podpolicy.exec"),
        (Signal(container="w1", signal=19), "podpolicy.signal"),
        (Signal(container="w1", signal=0), "podpolicy.signal"),
        (Signal(container="s1", signal=9), "podpolicy.signal"),
        (Resize(container="s1"), "podpolicy.resize"),
    ],
)
def test_only_what_the_policy_lists_reaches_a_running_container(policy: PodPolicy, request_: Any, code: str) -> None:
    assert refusal(policy, ALL_RUN, request_).code == code


@pytest.mark.parametrize(
    "request_",
    [
        Exec(container="w1", args=("/bin/check", "--now")),
        Signal(container="w1", signal=15),
        Resize(container="w1"),
        Inspect(container="s1"),
        FetchResource(name="web", path=WEB_MODEL),
    ],
    ids=lambda item: type(item).__name__,
)
def test_what_the_policy_lists_is_allowed_and_changes_nothing(policy: PodPolicy, request_: Any) -> None:
    state = play(policy, ALL_RUN)
    assert decide(policy, state, request_).require() == state


def test_exec_needs_a_running_container(policy: PodPolicy) -> None:
    listed = Exec(container="w1", args=("/bin/check", "--now"))
    assert refusal(policy, WEB_RUNS[:-1], listed).code == "podpolicy.exec.not_running"
    assert refusal(policy, [*WEB_RUNS, Exited(container="w1", status=0)], listed).code == "podpolicy.exec.not_running"


@pytest.mark.parametrize(
    ("before", "name", "path"),
    [
        (ALL_RUN, "side", WEB_MODEL),
        (ALL_RUN, "web", ResourcePath("default", "model", "other")),
        (ALL_RUN, "nobody", WEB_MODEL),
        (ALL_RUN, "web", ResourcePath("default", "streams", "shop")),
        (WEB_RUNS[:-1], "web", WEB_MODEL),
        ([*WEB_RUNS, Exited(container="w1", status=0)], "web", WEB_MODEL),
    ],
    ids=["other container", "other tag", "no container", "stream key", "not started", "exited"],
)
def test_resources_go_only_to_the_running_container_they_are_for(
    policy: PodPolicy, before: list[Any], name: str, path: ResourcePath
) -> None:
    assert refusal(policy, before, FetchResource(name=name, path=path)).code == "podpolicy.resource"


# --- the host's claim ---

RESOLVED = ProcessSpec(args=("/entry", "serve"), env=("PATH=/bin", "A=1"), cwd="/srv", user="1000", terminal=False)


def claim_refusals(policy: PodPolicy, claim: ProcessSpec) -> list[Check]:
    decision = decide_claim(policy.containers[1], RESOLVED, claim)
    assert decision.allowed == (not [check for check in decision.checks if not check.ok])
    return [check for check in decision.checks if not check.ok]


def test_true_claim_is_allowed_whatever_the_order_of_variables(policy: PodPolicy) -> None:
    assert claim_refusals(policy, RESOLVED) == []
    assert claim_refusals(policy, replace(RESOLVED, env=("A=1", "PATH=/bin"))) == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"args": ("/entry",)}, "podpolicy.claim.args"),
        ({"args": ("serve", "/entry")}, "podpolicy.claim.args"),
        ({"args": ("/entry serve",)}, "podpolicy.claim.args"),
        ({"env": (*RESOLVED.env, "LD_PRELOAD=/evil.so")}, "podpolicy.claim.env"),
        ({"env": (*RESOLVED.env, "A=1")}, "podpolicy.claim.env"),
        ({"env": RESOLVED.env[:1]}, "podpolicy.claim.env"),
        ({"env": ("PATH=/bin", "A=2")}, "podpolicy.claim.env"),
        ({"cwd": "/"}, "podpolicy.claim.cwd"),
        ({"cwd": ""}, "podpolicy.claim.cwd"),
        ({"user": "0"}, "podpolicy.claim.user"),
    ],
)
def test_false_claim_is_refused_by_the_member_that_differs(policy: PodPolicy, changes: Any, code: str) -> None:
    (check,) = claim_refusals(policy, replace(RESOLVED, **changes))
    assert check.code == code
    assert check.path == "containers.web." + code.rpartition(".")[2]
    assert check.expected != check.actual


def test_injected_variable_is_what_the_refusal_shows(policy: PodPolicy) -> None:
    (check,) = claim_refusals(policy, replace(RESOLVED, env=(*RESOLVED.env, "LD_PRELOAD=/evil.so")))
    assert check.actual == "LD_PRELOAD=/evil.so"


def test_late_difference_in_a_long_value_is_still_seen(policy: PodPolicy) -> None:
    long = "A=" + "x" * 5000
    resolved = replace(RESOLVED, env=(long + "1",))
    decision = decide_claim(policy.containers[1], resolved, replace(resolved, env=(long + "2",)))
    (check,) = [check for check in decision.checks if not check.ok]
    assert check.expected != check.actual
    assert max(len(check.expected), len(check.actual)) < 200


# --- decisions ---


def test_no_check_at_all_is_a_refusal(policy: PodPolicy) -> None:
    decision = Decision(checks=(), state=initial_state(policy))
    assert not decision.allowed
    with pytest.raises(PodPolicyRefused) as refused:
        decision.require()
    assert refused.value.code == "podpolicy.no_rule"


def test_states_cannot_be_edited(policy: PodPolicy) -> None:
    state = play(policy, WEB_RUNS)
    with pytest.raises(TypeError):
        state.life["side"] = Life.RUNNING  # type: ignore[index]  # the point of the test
    with pytest.raises(TypeError):
        initial_state(policy).bound["x"] = "web"  # type: ignore[index]  # the point of the test
