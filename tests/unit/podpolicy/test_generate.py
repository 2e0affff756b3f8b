"""The generator writes down what was asked and grants nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from cloister.errors import FormatRefused
from cloister.podpolicy.generate import generate_pod_policy, pod_label
from cloister.podpolicy.model import ImageDefaults, PodPolicy, encode_pod_policy, parse_pod_policy
from cloister.protocol.resourceuri import ResourcePath

IMAGE = ImageDefaults(entrypoint=("/entry",), cmd=("serve",), env=("A=1",), cwd="/srv", user="1000")
KEY = ResourcePath("default", "streams", "x")


def generate(**changes: Any) -> PodPolicy:
    fields: dict[str, Any] = {
        "pod": "My App_1",
        "image_digest": "sha256:" + "ab" * 32,
        "repository": "example.test/app",
        "signature_key": "PEM",
        "image": IMAGE,
    }
    return generate_pod_policy(**{**fields, **changes})


def test_plain_policy_grants_nothing() -> None:
    policy = generate()
    (app,) = policy.containers
    assert (app.name, app.kind, app.exec, app.resources, app.stdin, app.terminal) == (
        "app",
        "app",
        (),
        (),
        False,
        False,
    )
    assert policy.streams.mode == "none"
    assert policy.pod == "my-app-1"


def test_stream_key_seals_the_streams() -> None:
    policy = generate(stream_key=KEY)
    assert (policy.streams.mode, policy.streams.key) == ("sealed", KEY)
    assert KEY not in policy.containers[0].resources


def test_streams_in_clear_are_never_generated() -> None:
    assert {generate().streams.mode, generate(stream_key=KEY).streams.mode} == {"none", "sealed"}


def test_words_of_the_command_line_are_kept_exactly() -> None:
    policy = generate(
        args=["--x", "a b", ""], env={"B": "=2"}, cwd="/tmp", user="0:0", terminal=True, stdin=True, resources=[KEY]
    )
    (app,) = policy.containers
    assert app.args == ("--x", "a b", "")
    assert (dict(app.env), app.cwd, app.user) == ({"B": "=2"}, "/tmp", "0:0")
    assert (app.terminal, app.stdin, app.resources) == (True, True, (KEY,))


def test_generated_text_is_canonical_and_stable() -> None:
    policy = generate(env={"Z": "1", "A": "2"})
    assert encode_pod_policy(policy) == encode_pod_policy(generate(env={"A": "2", "Z": "1"}))
    assert parse_pod_policy(encode_pod_policy(policy)) == policy


@pytest.mark.parametrize(
    "changes",
    [
        {"image_digest": "latest"},
        {"repository": ""},
        {"signature_key": ""},
        {"env": {"A=B": "1"}},
        {"cwd": "tmp"},
        {"user": ""},
        {"args": ["a\0b"]},
        {"image": ImageDefaults(entrypoint=(), cmd=(), env=(), cwd="", user="")},
    ],
    ids=str,
)
def test_what_the_guest_would_refuse_is_refused_now(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatRefused):
        generate(**changes)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("web", "web"),
        ("My App", "my-app"),
        ("--", "pod"),
        ("", "pod"),
        ("é", "pod"),
        ("a" * 80, "a" * 63),
        ("-a-", "a"),
    ],
)
def test_pod_names_become_labels(text: str, label: str) -> None:
    assert pod_label(text) == label
