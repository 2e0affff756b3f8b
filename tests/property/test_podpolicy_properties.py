"""Single-field mutation of claims and policies, and the policy parser over arbitrary bytes."""

from __future__ import annotations

import contextlib
import json
import string

from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from cloister.errors import FormatRefused
from cloister.podpolicy.enforce import decide_claim
from cloister.podpolicy.explain import explain_decision
from cloister.podpolicy.model import (
    ContainerPolicy,
    ImageDefaults,
    PodPolicy,
    StreamsPolicy,
    encode_pod_policy,
    parse_pod_policy,
    resolve_process,
)
from cloister.protocol.resourceuri import ResourcePath
from cloister.wire.limits import LEASE_SECONDS

VALUE = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12)
WORD = VALUE.filter(bool)
VARIABLE = st.from_regex(r"[A-Z_][A-Z0-9_]{0,6}", fullmatch=True)
USER = st.sampled_from(["0", "root", "1000", "1000:1000", "www-data", "app:app"])
DIRECTORY = VALUE.map(lambda text: "/" + text)
PLACE = st.from_regex(r"/[a-c]{1,3}(/[a-c]{1,3})?", fullmatch=True)
SEGMENT = st.text(string.ascii_lowercase, min_size=1, max_size=5)
RESOURCE = st.builds(ResourcePath, SEGMENT, SEGMENT, SEGMENT)
IMAGES = st.builds(
    ImageDefaults,
    entrypoint=st.lists(WORD, min_size=1, max_size=3).map(tuple),
    cmd=st.lists(VALUE, max_size=3).map(tuple),
    env=st.dictionaries(VARIABLE, VALUE, max_size=3).map(lambda env: tuple(f"{k}={v}" for k, v in env.items())),
    cwd=st.just("") | DIRECTORY,
    user=st.just("") | USER,
)


def containers(name: str = "app", kind: str = "app") -> st.SearchStrategy[ContainerPolicy]:
    return st.builds(
        ContainerPolicy,
        name=st.just(name),
        kind=st.just(kind),
        image_digest=st.binary(min_size=32, max_size=32).map(lambda data: "sha256:" + data.hex()),
        repository=WORD,
        signature_keys=st.lists(WORD, min_size=1, max_size=2).map(tuple),
        command=st.none() | st.lists(WORD, min_size=1, max_size=3).map(tuple),
        args=st.none() | st.lists(VALUE, max_size=3).map(tuple),
        env=st.dictionaries(VARIABLE, VALUE, max_size=3),
        cwd=st.none() | DIRECTORY,
        user=st.none() | USER,
        terminal=st.booleans(),
        stdin=st.booleans(),
        exec=st.lists(st.lists(VALUE, min_size=1, max_size=2).map(tuple), max_size=2).map(tuple),
        signals=st.frozensets(st.integers(1, 64), max_size=4),
        resources=st.lists(RESOURCE, max_size=2).map(tuple),
        env_resource=st.none() | RESOURCE,
        files=st.dictionaries(
            PLACE,
            RESOURCE.map(lambda path: path.uri) | VALUE.map("sealed.".__add__),
            max_size=2,
        ),
        sealing_keys=st.dictionaries(RESOURCE.map(lambda path: path.uri), VALUE, max_size=2),
        unseal=st.lists(RESOURCE, max_size=2).map(tuple),
    )


POLICIES = st.builds(
    PodPolicy,
    pod=st.just("pod"),
    containers=st.tuples(containers("first", "init"), containers("second"), containers("third")),
    streams=st.builds(StreamsPolicy, mode=st.sampled_from(["host", "none"])),
) | st.builds(
    PodPolicy,
    pod=st.just("pod"),
    containers=st.tuples(containers("only")),
    streams=st.builds(StreamsPolicy, mode=st.just("sealed"), key=RESOURCE),
    lease_seconds=st.just(0) | st.integers(2, LEASE_SECONDS),
)


def mutated(values: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    """One change of a list: an item added, removed, changed, or two exchanged."""
    places = st.integers(0, max(0, len(values) - 1))
    changes = [
        st.builds(lambda place, item: (*values[:place], item, *values[place:]), st.integers(0, len(values)), VALUE),
        st.builds(lambda place, item: (*values[:place], item, *values[place + 1 :]), places, VALUE),
        st.builds(lambda place: (*values[:place], *values[place + 1 :]), places),
        st.builds(lambda one, two: _exchanged(values, one, two), places, places),
    ]
    return st.one_of(changes).filter(lambda changed: changed != values)


def _exchanged(values: tuple[str, ...], one: int, two: int) -> tuple[str, ...]:
    items = list(values)
    if items:
        items[one], items[two] = items[two], items[one]
    return tuple(items)


@given(containers(), IMAGES, st.data())
def test_any_single_change_of_a_true_claim_is_refused(container, image, data):
    resolved = resolve_process(container, image)
    assert decide_claim(container, resolved, resolved).allowed
    field = data.draw(st.sampled_from(["args", "env", "cwd", "user"]))
    value = getattr(resolved, field)
    if isinstance(value, tuple):
        changed = data.draw(mutated(value))
        assume(field != "env" or sorted(changed) != sorted(value))  # the order of variables means nothing
    else:
        changed = data.draw(VALUE.filter(lambda text: text != value))
    decision = decide_claim(container, resolved, replace(resolved, **{field: changed}))
    failed = [check for check in decision.checks if not check.ok]
    assert [check.code for check in failed] == [f"podpolicy.claim.{field}"]
    assert failed[0].path == f"containers.app.{field}"
    assert failed[0].expected != failed[0].actual
    words = explain_decision(decision)
    assert words.startswith("refused\n") and failed[0].code in words


@given(containers(), IMAGES, VARIABLE, VALUE)
def test_any_injected_variable_is_refused(container, image, name, value):
    resolved = resolve_process(container, image)
    claim = replace(resolved, env=(*resolved.env, f"{name}={value}"))
    assert not decide_claim(container, resolved, claim).allowed


@given(containers(), IMAGES)
def test_the_derived_process_is_complete(container, image):
    process = resolve_process(container, image)
    assert process.args and process.args[0] and process.cwd and process.user
    names = [item.partition("=")[0] for item in process.env]
    assert len(set(names)) == len(names)
    assert "PATH" in names
    for name, value in container.env.items():
        assert f"{name}={value}" in process.env


@given(POLICIES)
def test_policy_round_trip(policy):
    text = encode_pod_policy(policy)
    assert parse_pod_policy(text) == policy
    assert encode_pod_policy(parse_pod_policy(text)) == text


@given(POLICIES, st.data())
def test_any_single_change_of_a_policy_changes_its_digest(policy, data):
    other = data.draw(POLICIES)
    if other != policy:
        assert other.digest != policy.digest
    wire = json.loads(encode_pod_policy(policy))
    place = data.draw(st.sampled_from(wire["containers"]))
    member = data.draw(st.sampled_from(sorted(place)))
    place[member] = data.draw(
        st.none() | st.integers() | st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=2)
    )
    with contextlib.suppress(FormatRefused):
        changed = parse_pod_policy(json.dumps(wire).encode())
        assert (changed == policy) == (changed.digest == policy.digest)


@given(POLICIES, st.text(max_size=8), st.data())
def test_policies_refuse_any_further_member(policy, name, data):
    wire = json.loads(encode_pod_policy(policy))
    place = data.draw(st.sampled_from([wire, wire["streams"], *wire["containers"]]))
    assume(name not in place)
    place[name] = data.draw(st.none() | st.integers() | st.text(max_size=3))
    try:
        parse_pod_policy(json.dumps(wire).encode())
    except FormatRefused as refusal:
        assert refusal.code == "podpolicy.malformed"
    else:
        raise AssertionError("accepted")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.binary(max_size=200) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_policy_or_a_refusal(data):
    with contextlib.suppress(FormatRefused):
        parse_pod_policy(data)
