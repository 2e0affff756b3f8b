"""The one evaluator of pod policy: a state machine over the whole life of the pod.

A decision depends on the request *and* on what happened before, so that a container cannot start twice, an init
container cannot be skipped, an order cannot be changed, and a container outside the policy cannot be added, in
whatever order the hostile host asks. `decide` is pure: it returns the verdict, every check it made (the
explanation), and the state that follows. A refused request leaves the state unchanged.

Life of a container: declared -> created -> running -> exited -> deleted. No edge leads back.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

import msgspec
from msgspec.structs import replace

from cloister.errors import PodPolicyRefused
from cloister.podpolicy.model import ContainerPolicy, PodPolicy, ProcessSpec
from cloister.protocol.resourceuri import ResourcePath

_SHOWN: Final = 120


class Life(enum.StrEnum):
    """Where a container of the policy stands."""

    DECLARED = "declared"
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"
    DELETED = "deleted"


class Create(msgspec.Struct, frozen=True, kw_only=True):
    """Bind the host's identifier `container` to the policy container `name`."""

    container: str
    name: str


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Start the first process."""

    container: str


class Exec(msgspec.Struct, frozen=True, kw_only=True):
    """Run an additional process."""

    container: str
    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = ""
    user: str = ""
    terminal: bool = False


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """Deliver a signal."""

    container: str
    signal: int


class Resize(msgspec.Struct, frozen=True, kw_only=True):
    """Resize the terminal."""

    container: str


class Delete(msgspec.Struct, frozen=True, kw_only=True):
    """Remove an exited container."""

    container: str


class Inspect(msgspec.Struct, frozen=True, kw_only=True):
    """Read state, pids or statistics, wait, pause, resume or close standard input: needs a known container, nothing
    more."""

    container: str


class FetchResource(msgspec.Struct, frozen=True, kw_only=True):
    """A process of the policy container `name` asks the guest for a resource of the key broker."""

    name: str
    path: ResourcePath


class Exited(msgspec.Struct, frozen=True, kw_only=True):
    """Not a request: the guest saw the first process end. One that ends before it was started has no status, so an
    init container that never ran can never count as done."""

    container: str
    status: int


PodRequest = Create | Start | Exec | Signal | Resize | Delete | Inspect | FetchResource | Exited


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One comparison of a decision.

    Attributes:
        code: stable dotted code.
        ok: whether it held.
        path: the rule, as a place in the pod policy.
        message: what was compared, in words that are true when it holds.
        otherwise: the message of the refusal.
        expected: what the policy allows.
        actual: what was asked.
        hint: what to change.
    """

    code: str
    ok: bool
    path: str
    message: str
    otherwise: str
    expected: str = ""
    actual: str = ""
    hint: str = ""


class PodState(msgspec.Struct, frozen=True, kw_only=True):
    """State of all containers. `bound` maps the host's identifiers to policy names; `life` and `status` are by
    policy name. Only a container that ran has a status."""

    life: Mapping[str, Life]
    bound: Mapping[str, str] = msgspec.field(default_factory=lambda: MappingProxyType({}))
    status: Mapping[str, int] = msgspec.field(default_factory=lambda: MappingProxyType({}))


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict, its whole explanation, and the state that follows."""

    checks: tuple[Check, ...]
    state: PodState

    @property
    def allowed(self) -> bool:
        """True when every check held; no check at all is a refusal."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    def require(self) -> PodState:
        """Return the next state.

        Raises:
            PodPolicyRefused: with the code, place, expected and actual value of the first check that failed.
        """
        for check in self.checks:
            if not check.ok:
                raise PodPolicyRefused(
                    check.code,
                    check.otherwise,
                    path=check.path,
                    expected=check.expected,
                    actual=check.actual,
                    hint=check.hint,
                )
        if not self.checks:
            raise PodPolicyRefused("podpolicy.no_rule", "no rule allows this request")
        return self.state


def initial_state(policy: PodPolicy) -> PodState:
    """Return the state of a pod in which nothing has happened."""
    return PodState(life=MappingProxyType({item.name: Life.DECLARED for item in policy.containers}))


def decide(policy: PodPolicy, state: PodState, request: PodRequest) -> Decision:
    """Judge `request` in `state`."""
    match request:
        case Create():
            return _decide_create(policy, state, request)
        case Start():
            return _decide_start(policy, state, request)
        case Exited():
            return _note_exit(state, request)
        case FetchResource():
            return Decision(checks=_fetch_checks(policy, state, request), state=state)
        case Delete():
            return _decide_delete(state, request)
        case Exec() | Signal() | Resize() | Inspect():
            return _decide_on_bound(policy, state, request)


def decide_claim(container: ContainerPolicy, resolved: ProcessSpec, claim: ProcessSpec) -> Decision:
    """Compare what the host believes will run with what the guest derived. The claim never changes what runs."""
    path = f"containers.{container.name}"
    pairs = (
        ("args", resolved.args, claim.args),
        ("env", tuple(sorted(resolved.env)), tuple(sorted(claim.env))),
        ("cwd", resolved.cwd, claim.cwd),
        ("user", resolved.user, claim.user),
    )
    checks = []
    for name, expected, actual in pairs:
        checks.append(
            Check(
                code=f"podpolicy.claim.{name}",
                ok=expected == actual,
                path=f"{path}.{name}",
                message=f"{name} the host asked for is what the verified image and the pod policy give",
                otherwise=f"{name} the host asked for is not that of the verified image and the pod policy",
                expected=_difference(expected, actual),
                actual=_difference(actual, expected),
                hint=f"only the owner can change {name}: generate a new pod policy",
            )
        )
    return Decision(checks=tuple(checks), state=PodState(life=MappingProxyType({})))


def decide_unseal(container: ContainerPolicy, place: str, kid: str, resource: ResourcePath | None) -> Decision:
    """Judge a sealed secret found at `place` of a container: the key it names, and once that is known, by its
    verified payload, the resource it needs.

    Args:
        container: whose secret it is.
        place: `env.NAME` or `files.PATH`.
        kid: the sealing key it claims, or was verified with.
        resource: what it names, verified; None before that.
    """
    path = f"containers.{container.name}"
    checks = [
        Check(
            code="podpolicy.unseal.key",
            ok=kid in container.sealing_keys,
            path=f"{path}.sealing_keys",
            message=f"{place} is sealed under a key the pod policy accepts for this container",
            otherwise=f"{place} is sealed under a key the pod policy does not accept for this container",
            expected=_words(sorted(container.sealing_keys))[:_SHOWN] or "no sealed secret at all",
            actual=kid[:_SHOWN],
            hint="add the key to `sealing_keys` of the container in the pod policy",
        )
    ]
    if resource is not None:
        checks.append(
            Check(
                code="podpolicy.unseal.resource",
                ok=resource in container.unseal,
                path=f"{path}.unseal",
                message=f"{place} names a resource that sealed secrets of this container may have",
                otherwise=f"{place} names a resource that no sealed secret of this container may have",
                expected=" ".join(item.uri for item in container.unseal)[:_SHOWN] or "no resource",
                actual=resource.uri,
                hint="add the resource to `unseal` of the container in the pod policy",
            )
        )
    return Decision(checks=tuple(checks), state=PodState(life=MappingProxyType({})))


def _decide_create(policy: PodPolicy, state: PodState, request: Create) -> Decision:
    index = next((i for i, item in enumerate(policy.containers) if item.name == request.name), -1)
    declared = ", ".join(item.name for item in policy.containers)
    checks = [
        Check(
            code="podpolicy.create.undeclared",
            ok=index >= 0,
            path="containers",
            message="container is one the pod policy declares",
            otherwise="container is not one the pod policy declares",
            expected=declared,
            actual=request.name,
            hint="no container can be added to a running pod; declare it in the pod policy",
        ),
        Check(
            code="podpolicy.create.identifier",
            ok=request.container not in state.bound,
            path="containers",
            message="identifier is not in use",
            otherwise="identifier is in use",
            expected="a fresh identifier",
            actual=request.container,
        ),
    ]
    if index < 0:
        return Decision(checks=tuple(checks), state=state)
    path = f"containers[{index}]"
    life = state.life[request.name]
    checks.append(
        Check(
            code="podpolicy.create.twice",
            ok=life is Life.DECLARED,
            path=path,
            message="container was not created before",
            otherwise="container was created before",
            expected=Life.DECLARED.value,
            actual=life.value,
            hint="a container runs once per pod; start a new pod",
        )
    )
    for earlier in policy.containers[:index]:
        checks.append(_order_check(state, earlier, path))
    next_state = replace(
        state,
        life=MappingProxyType({**state.life, request.name: Life.CREATED}),
        bound=MappingProxyType({**state.bound, request.container: request.name}),
    )
    return _decision(checks, state, next_state)


def _order_check(state: PodState, earlier: ContainerPolicy, path: str) -> Check:
    """An earlier init container must have ended with 0; an earlier app container must at least have been created."""
    life = state.life[earlier.name]
    if earlier.kind == "init":
        status = state.status.get(earlier.name)
        ok = life in (Life.EXITED, Life.DELETED) and status == 0
        expected = "exited with status 0"
        actual = f"exited with status {status}" if status is not None else life.value
    else:
        ok = life is not Life.DECLARED
        expected = "created"
        actual = life.value
    return Check(
        code="podpolicy.create.order",
        ok=ok,
        path=path,
        message=f"container {earlier.name}, which comes first, is {expected}",
        otherwise=f"container {earlier.name}, which comes first, is not {expected}",
        expected=expected,
        actual=actual,
        hint="create containers in the order of the pod policy",
    )


def _decide_start(policy: PodPolicy, state: PodState, request: Start) -> Decision:
    known = _known(state, request.container)
    if not known.ok:
        return Decision(checks=(known,), state=state)
    name = state.bound[request.container]
    life = state.life[name]
    checks = [
        known,
        Check(
            code="podpolicy.start.twice",
            ok=life is Life.CREATED,
            path=f"containers.{name}",
            message="container is created and was not started before",
            otherwise="container was started before",
            expected=Life.CREATED.value,
            actual=life.value,
            hint="a container starts once per pod; start a new pod",
        ),
    ]
    for earlier in policy.containers:
        if earlier.name == name:
            break
        checks.append(
            Check(
                code="podpolicy.start.order",
                ok=state.life[earlier.name] is Life.RUNNING or earlier.name in state.status,
                path=f"containers.{name}",
                message=f"container {earlier.name}, which comes first, was started",
                otherwise=f"container {earlier.name}, which comes first, was not started",
                expected="started",
                actual=state.life[earlier.name].value,
                hint="start containers in the order of the pod policy",
            )
        )
    return _decision(checks, state, replace(state, life=MappingProxyType({**state.life, name: Life.RUNNING})))


def _decide_delete(state: PodState, request: Delete) -> Decision:
    known = _known(state, request.container)
    if not known.ok:
        return Decision(checks=(known,), state=state)
    name = state.bound[request.container]
    checks = [
        known,
        Check(
            code="podpolicy.delete.running",
            ok=state.life[name] in (Life.CREATED, Life.EXITED),
            path=f"containers.{name}",
            message="container is not running",
            otherwise="container is running",
            expected="created or exited",
            actual=state.life[name].value,
            hint="stop it first",
        ),
    ]
    return _decision(checks, state, replace(state, life=MappingProxyType({**state.life, name: Life.DELETED})))


def _note_exit(state: PodState, request: Exited) -> Decision:
    known = _known(state, request.container)
    if not known.ok:
        return Decision(checks=(known,), state=state)
    name = state.bound[request.container]
    life = state.life[name]
    alive = Check(
        code="podpolicy.exit.not_running",
        ok=life in (Life.CREATED, Life.RUNNING),
        path=f"containers.{name}",
        message="container has not exited before",
        otherwise="container has exited before",
        expected="created or running",
        actual=life.value,
    )
    ran = {name: request.status} if life is Life.RUNNING else {}
    next_state = replace(
        state,
        life=MappingProxyType({**state.life, name: Life.EXITED}),
        status=MappingProxyType({**state.status, **ran}),
    )
    return _decision([known, alive], state, next_state)


def _decide_on_bound(policy: PodPolicy, state: PodState, request: Exec | Signal | Resize | Inspect) -> Decision:
    known = _known(state, request.container)
    if not known.ok:
        return Decision(checks=(known,), state=state)
    name = state.bound[request.container]
    container = policy.container(name)
    if container is None:
        raise RuntimeError("a bound container is not in its policy")
    checks = [known]
    path = f"containers.{name}"
    match request:
        case Exec():
            checks += _exec_checks(container, state.life[name], request, path)
        case Signal():
            checks.append(
                Check(
                    code="podpolicy.signal",
                    ok=request.signal in container.signals,
                    path=f"{path}.signals",
                    message="signal is one the pod policy allows",
                    otherwise="signal is not one the pod policy allows",
                    expected=" ".join(str(number) for number in sorted(container.signals)) or "no signal",
                    actual=str(request.signal),
                    hint="add the signal to the pod policy",
                )
            )
        case Resize():
            checks.append(
                Check(
                    code="podpolicy.resize",
                    ok=container.terminal,
                    path=f"{path}.terminal",
                    message="container has a terminal",
                    otherwise="container has no terminal",
                    expected="terminal",
                    actual="no terminal",
                )
            )
        case Inspect():
            pass
    return Decision(checks=tuple(checks), state=state)


def _exec_checks(container: ContainerPolicy, life: Life, request: Exec, path: str) -> list[Check]:
    listed = request.args in container.exec
    extras = bool(request.env or request.cwd or request.user or request.terminal)
    return [
        Check(
            code="podpolicy.exec",
            ok=listed,
            path=f"{path}.exec",
            message="command is one the pod policy lists for exec",
            otherwise="command is not one the pod policy lists for exec",
            expected=" | ".join(_words(argv) for argv in container.exec)[:_SHOWN] or "no exec at all",
            actual=_words(request.args)[:_SHOWN] or "nothing",
            hint="exec is off unless the pod policy lists the exact command",
        ),
        Check(
            code="podpolicy.exec.process",
            ok=not extras,
            path=f"{path}.exec",
            message="exec runs with the container's own environment, directory and user, without a terminal",
            otherwise="exec was asked for with its own environment, directory, user or terminal",
            expected="no env, cwd, user, terminal",
            actual="given" if extras else "none",
        ),
        Check(
            code="podpolicy.exec.not_running",
            ok=life is Life.RUNNING,
            path=path,
            message="container is running",
            otherwise="container is not running",
            expected=Life.RUNNING.value,
            actual=life.value,
        ),
    ]


def _fetch_checks(policy: PodPolicy, state: PodState, request: FetchResource) -> tuple[Check, ...]:
    container = policy.container(request.name)
    allowed = container.resources if container else ()
    return (
        Check(
            code="podpolicy.resource",
            ok=request.path in allowed and state.life.get(request.name) is Life.RUNNING,
            path=f"containers.{request.name}.resources",
            message="resource is one the pod policy gives to this running container",
            otherwise="resource is not one the pod policy gives to this running container",
            expected=" ".join(str(path) for path in allowed)[:_SHOWN] or "no resources",
            actual=str(request.path),
            hint="add the resource to this container in the pod policy",
        ),
    )


def _known(state: PodState, container: str) -> Check:
    name = state.bound.get(container)
    ok = name is not None and state.life[name] is not Life.DELETED
    return Check(
        code="podpolicy.unknown_container",
        ok=ok,
        path="containers",
        message="container was created in this pod and not deleted",
        otherwise="container was not created in this pod, or was deleted",
        expected="a created container",
        actual=container,
        hint="create it first",
    )


def _decision(checks: list[Check], before: PodState, after: PodState) -> Decision:
    allowed = all(check.ok for check in checks)
    return Decision(checks=tuple(checks), state=after if allowed else before)


def _difference(value: str | tuple[str, ...], other: str | tuple[str, ...]) -> str:
    """Return what `value` has and `other` lacks, shortened: what a person needs to see of two long lists."""
    if isinstance(value, str) or isinstance(other, str):
        return _around(str(value), str(other))
    only = _words(item for item in value if item not in other)
    if only:
        return _around(only, _words(item for item in other if item not in value))
    return _around(_words(value), _words(other)) or "nothing"


def _words(items: Iterable[str]) -> str:
    """Join for reading; an item with a blank, a control character or nothing in it is quoted, so that two lists
    never read the same."""
    return " ".join(item if item.isprintable() and item and " " not in item else repr(item) for item in items)


def _around(text: str, other: str) -> str:
    """Shorten `text` so that the place where it begins to differ from `other` stays in sight."""
    same = next(
        (i for i, pair in enumerate(zip(text, other, strict=False)) if pair[0] != pair[1]), min(len(text), len(other))
    )
    start = max(0, same - _SHOWN // 2) if len(text) > _SHOWN else 0
    return (".." if start else "") + text[start : start + _SHOWN]
