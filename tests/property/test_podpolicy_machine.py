"""Random lives of a pod against a small reference model of the rules, written without looking at the evaluator.

The model keeps, per container of the policy, a history of what was allowed to happen to it. Every verdict of the
evaluator must equal the model's, and the invariants of the specification are asserted over the history itself.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cloister.errors import PodPolicyRefused
from cloister.podpolicy.enforce import (
    Create,
    Delete,
    Exec,
    Exited,
    FetchResource,
    Inspect,
    Resize,
    Signal,
    Start,
    decide,
    initial_state,
)
from cloister.podpolicy.explain import explain_decision
from cloister.podpolicy.model import ContainerPolicy, PodPolicy, StreamsPolicy
from cloister.protocol.resourceuri import ResourcePath

NAMES = ["a", "b", "c", "d"]
IDENTIFIERS = [f"id{number}" for number in range(5)]
COMMANDS = [("check",), ("check", "-v"), ("sh",)]
PATHS = [ResourcePath("r", "t", tag) for tag in ("one", "two")]
EXTRAS: list[dict[str, object]] = [{}, {}, {}, {"env": ("A=1",)}, {"cwd": "/"}, {"user": "0"}, {"terminal": True}]
STATUSES = st.sampled_from([0, 0, 0, 1, 137])


@st.composite
def policies(draw: st.DrawFn) -> PodPolicy:
    """One to four containers, init containers first."""
    names = draw(st.permutations(NAMES))[: draw(st.integers(1, 4))]
    inits = draw(st.integers(0, len(names)))
    containers = tuple(
        ContainerPolicy(
            name=name,
            kind="init" if index < inits else "app",
            image_digest="sha256:" + "ab" * 32,
            repository="r",
            signature_keys=("k",),
            terminal=draw(st.booleans()),
            exec=tuple(draw(st.lists(st.sampled_from(COMMANDS), max_size=2, unique=True))),
            signals=draw(st.frozensets(st.sampled_from([2, 9, 15]))),
            resources=tuple(draw(st.lists(st.sampled_from(PATHS), max_size=2, unique=True))),
        )
        for index, name in enumerate(names)
    )
    return PodPolicy(pod="p", containers=containers, streams=StreamsPolicy(mode="none"))


class PodLife(RuleBasedStateMachine):
    """A hostile host: any request, any order, any identifier."""

    @initialize(policy=policies())
    def begin(self, policy: PodPolicy) -> None:
        self.policy = policy
        self.state = initial_state(policy)
        self.rank = {container.name: index for index, container in enumerate(policy.containers)}
        self.rules = {container.name: container for container in policy.containers}
        self.history: dict[str, list[str]] = {name: [] for name in self.rank}  # what happened, oldest first
        self.owner: dict[str, str] = {}  # identifier -> name, for ever
        self.log: list[tuple[str, str]] = []  # every allowed event of any container

    # --- the reference model ---

    def happened(self, name: str, *events: str) -> bool:
        return any(event in self.history[name] for event in events)

    def alive(self, identifier: str) -> str | None:
        """The container an identifier means, unless it was never created or is deleted."""
        name = self.owner.get(identifier)
        return None if name is None or self.happened(name, "delete") else name

    def running(self, name: str) -> bool:
        return name in self.rank and self.history[name][-1:] == ["start"]

    def may_create(self, identifier: str, name: str) -> bool:
        if name not in self.rank or identifier in self.owner or self.history[name]:
            return False
        for earlier in self.policy.containers[: self.rank[name]]:
            past = self.history[earlier.name]
            if earlier.kind == "init":
                if past[:3] != ["create", "start", "exit 0"]:
                    return False
            elif not past:
                return False
        return True

    def may_start(self, name: str | None) -> bool:
        if name is None or self.history[name] != ["create"]:
            return False
        return all(self.happened(item.name, "start") for item in self.policy.containers[: self.rank[name]])

    # --- one request: compare, check what every decision promises, move on ---

    def ask(self, request: object, expected: bool, event: tuple[str, str] | None = None) -> None:
        before = self.state
        decision = decide(self.policy, before, request)
        assert decision.allowed == expected, (request, self.history, decision.checks)
        words = explain_decision(decision)
        assert words.splitlines()[0] == ("allowed" if expected else "refused")
        failed = [check for check in decision.checks if not check.ok]
        assert bool(failed) == (not expected)
        for check in decision.checks:
            assert check.code.startswith("podpolicy.") and check.path and check.message
            assert check.code in words
        for check in failed:
            assert check.expected and check.actual
            assert f"no  {check.code} " in words
        if expected:
            self.state = decision.require()
            if event:
                self.history[event[0]].append(event[1])
                self.log.append(event)
            else:
                assert self.state == before
        else:
            assert decision.state == before
            with pytest.raises(PodPolicyRefused) as refused:
                decision.require()
            assert refused.value.code == failed[0].code
        assert decide(self.policy, before, request) == decision

    @rule(identifier=st.sampled_from(IDENTIFIERS), name=st.sampled_from([*NAMES, "debug"]))
    def create(self, identifier: str, name: str) -> None:
        expected = self.may_create(identifier, name)
        self.ask(Create(container=identifier, name=name), expected, (name, "create"))
        if expected:
            self.owner[identifier] = name

    # Honest steps and near misses, so that random lives get far and the hostile step differs in one thing only.

    def creatable(self) -> list[str]:
        free = [identifier for identifier in IDENTIFIERS if identifier not in self.owner]
        return [name for name in self.rank if free and self.may_create(free[0], name)]

    @precondition(lambda self: self.creatable())
    @rule(used=st.booleans())
    def create_next(self, used: bool) -> None:
        identifiers = [identifier for identifier in IDENTIFIERS if (identifier in self.owner) == used]
        if identifiers:
            self.create(identifiers[0], self.creatable()[0])

    @precondition(lambda self: any(self.may_start(name) for name in self.rank))
    @rule()
    def start_next(self) -> None:
        self.start(next(key for key, name in self.owner.items() if self.may_start(name)))

    @precondition(lambda self: any(self.running(name) for name in self.rank))
    @rule(delete=st.booleans(), status=STATUSES)
    def end_or_delete_running(self, delete: bool, status: int) -> None:
        identifier = next(key for key, name in self.owner.items() if self.running(name))
        if delete:
            self.delete(identifier)
        else:
            self.end(identifier, status)

    @precondition(lambda self: any(rules.exec for rules in self.rules.values()))
    @rule(listed=st.booleans(), extra=st.sampled_from(EXTRAS))
    def run_in_container_with_exec(self, listed: bool, extra: dict[str, object]) -> None:
        for identifier, name in self.owner.items():
            if commands := self.rules[name].exec:
                args = commands[-1] if listed else (*commands[-1], "more")
                self.run_further_process(identifier, args, extra)

    @rule(identifier=st.sampled_from(IDENTIFIERS))
    def start(self, identifier: str) -> None:
        name = self.alive(identifier)
        self.ask(Start(container=identifier), self.may_start(name), (name or "", "start"))

    @rule(identifier=st.sampled_from(IDENTIFIERS), status=STATUSES)
    def end(self, identifier: str, status: int) -> None:
        name = self.alive(identifier)
        expected = name is not None and self.history[name][-1] in ("create", "start")
        self.ask(Exited(container=identifier, status=status), expected, (name or "", f"exit {status}"))

    @rule(identifier=st.sampled_from(IDENTIFIERS))
    def delete(self, identifier: str) -> None:
        name = self.alive(identifier)
        self.ask(Delete(container=identifier), name is not None and not self.running(name), (name or "", "delete"))

    @rule(identifier=st.sampled_from(IDENTIFIERS))
    def inspect(self, identifier: str) -> None:
        self.ask(Inspect(container=identifier), self.alive(identifier) is not None)

    @rule(identifier=st.sampled_from(IDENTIFIERS), number=st.sampled_from([0, 2, 9, 15, 19]))
    def signal(self, identifier: str, number: int) -> None:
        name = self.alive(identifier)
        expected = name is not None and number in self.rules[name].signals
        self.ask(Signal(container=identifier, signal=number), expected)

    @rule(identifier=st.sampled_from(IDENTIFIERS))
    def resize(self, identifier: str) -> None:
        name = self.alive(identifier)
        self.ask(Resize(container=identifier), name is not None and self.rules[name].terminal)

    @rule(
        identifier=st.sampled_from(IDENTIFIERS),
        args=st.sampled_from([*COMMANDS, ("check -v",), ()]),
        extra=st.sampled_from(EXTRAS),
    )
    def run_further_process(self, identifier: str, args: tuple[str, ...], extra: dict[str, object]) -> None:
        name = self.alive(identifier)
        expected = name is not None and self.running(name) and args in self.rules[name].exec and not extra
        self.ask(Exec(container=identifier, args=args, **extra), expected)

    @rule(name=st.sampled_from([*NAMES, "debug"]), path=st.sampled_from(PATHS))
    def fetch(self, name: str, path: ResourcePath) -> None:
        self.ask(FetchResource(name=name, path=path), self.running(name) and path in self.rules[name].resources)

    # --- what the specification promises, over the whole history ---

    @invariant()
    def nothing_happens_twice(self) -> None:
        counts = Counter(self.log)
        assert all(count == 1 for count in counts.values()), counts
        ends = Counter(name for name, event in self.log if event.startswith("exit"))
        assert all(count == 1 for count in ends.values())

    @invariant()
    def only_declared_containers_exist(self) -> None:
        assert {name for name, _ in self.log} <= set(self.rank)
        assert set(self.state.life) == set(self.rank)
        assert dict(self.state.bound) == self.owner

    @invariant()
    def creation_and_start_follow_the_order_of_the_policy(self) -> None:
        for event in ("create", "start"):
            ranks = [self.rank[name] for name, what in self.log if what == event]
            assert ranks == sorted(ranks)
            assert ranks == list(range(len(ranks))), "a container was skipped"

    @invariant()
    def app_containers_wait_for_every_init_container(self) -> None:
        done: set[str] = set()
        started: set[str] = set()
        inits = {name for name, container in self.rules.items() if container.kind == "init"}
        for name, event in self.log:
            if self.rules[name].kind == "app":
                assert done == inits
            if event == "start":
                started.add(name)
            if event == "exit 0" and name in inits and name in started:
                done.add(name)


TestPodLife = PodLife.TestCase
TestPodLife.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
