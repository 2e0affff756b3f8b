"""The pod policy's text: strict, bounded, one meaning; and the process it derives."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

import pytest

from cloister.errors import FormatRefused
from cloister.podpolicy.model import (
    DEFAULT_SIGNALS,
    ContainerPolicy,
    ImageDefaults,
    PodPolicy,
    encode_pod_policy,
    parse_pod_policy,
    resolve_process,
    with_secret_env,
)
from cloister.wire.limits import LEASE_SECONDS, POLICY_BYTES, POLICY_CONTAINERS, POLICY_LIST_ITEMS, POLICY_VALUE_BYTES

DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def image(
    entrypoint: tuple[str, ...] = (),
    cmd: tuple[str, ...] = (),
    env: tuple[str, ...] = (),
    cwd: str = "",
    user: str = "",
) -> ImageDefaults:
    return ImageDefaults(entrypoint=entrypoint, cmd=cmd, env=env, cwd=cwd, user=user)


IMAGE = image(entrypoint=("/entry",), cmd=("serve",), env=("PATH=/bin", "MODE=image"), cwd="/srv", user="1000:1000")


def parse(value: object) -> PodPolicy:
    return parse_pod_policy(json.dumps(value).encode())


def change(wire: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """Return a copy of `wire` with the member at `path` (`containers.0.name`) set."""
    changed = copy.deepcopy(wire)
    *parents, last = path.split(".")
    place: Any = changed
    for step in parents:
        place = place[int(step)] if step.isdigit() else place[step]
    place[last] = value
    return changed


# --- text ---


def test_round_trip_is_canonical(wire: dict[str, Any]) -> None:
    policy = parse(wire)
    text = encode_pod_policy(policy)
    assert parse_pod_policy(text) == policy
    assert encode_pod_policy(parse_pod_policy(text)) == text
    assert policy.digest == "sha256:" + hashlib.sha256(text).hexdigest()


def test_digest_is_of_the_meaning_not_of_the_spelling(wire: dict[str, Any]) -> None:
    spaced = json.dumps(wire, indent=4, sort_keys=True).encode()
    assert parse_pod_policy(spaced).digest == parse(wire).digest


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("pod", "other"),
        ("containers.0.name", "other"),
        ("containers.0.image_digest", "sha256:" + "00" * 32),
        ("containers.1.repository", "example.test/other"),
        ("containers.1.signature_keys", ["other"]),
        ("containers.1.command", ["/bin/sh"]),
        ("containers.1.command", []),
        ("containers.1.args", ["x"]),
        ("containers.1.args", []),
        ("containers.1.env", {"A": "1"}),
        ("containers.1.cwd", "/tmp"),
        ("containers.1.user", "0"),
        ("containers.1.terminal", False),
        ("containers.1.stdin", True),
        ("containers.1.exec", []),
        ("containers.1.signals", [9]),
        ("containers.1.resources", []),
        ("streams", {"mode": "host"}),
        ("streams", {"mode": "none"}),
        ("streams.key", "kbs:///default/streams/other"),
        ("lease_seconds", 60),
        ("containers.1.files", {"/run/secrets/db": "kbs:///default/file/db", "/etc/key": "sealed.a.b.c"}),
        ("containers.1.sealing_keys", {"kbs:///default/sealing-key/1": "", "own": "PEM"}),
        ("containers.1.unseal", ["kbs:///default/password/1"]),
        ("containers.1.env_resource", "kbs:///default/env/web"),
    ],
)
def test_every_member_is_part_of_the_digest(wire: dict[str, Any], path: str, value: object) -> None:
    """Init data carries this digest: a member outside it could be changed after the owner approved."""
    assert parse(change(wire, path, value)).digest != parse(wire).digest


def test_defaults_grant_nothing(wire: dict[str, Any]) -> None:
    plain = parse(wire).containers[0]
    assert (plain.files, plain.sealing_keys, plain.unseal, plain.prepared) == ({}, {}, (), ())
    assert (plain.exec, plain.resources, plain.terminal, plain.stdin) == ((), (), False, False)
    assert (plain.command, plain.args, plain.cwd, plain.user, plain.env) == (None, None, None, None, {})
    assert plain.signals == DEFAULT_SIGNALS


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("version", 0),
        ("version", 2),
        ("version", "1"),
        ("unknown", 1),
        ("pod", ""),
        ("pod", "Shop"),
        ("pod", "shop\n"),
        ("pod", "-shop"),
        ("pod", "s" * 64),
        ("containers", []),
        ("containers", {}),
        ("containers.0.unknown", 1),
        ("containers.0.privileged", True),
        ("containers.0.mounts", []),
        ("containers.0.hooks", {}),
        ("containers.0.name", ""),
        ("containers.0.name", "../up"),
        ("containers.0.name", "a/b"),
        ("containers.0.name", "web"),
        ("containers.0.kind", "sidecar"),
        ("containers.0.kind", ""),
        ("containers.1.kind", "init "),
        ("containers.2.kind", "init"),
        ("containers.0.image_digest", ""),
        ("containers.0.image_digest", "latest"),
        ("containers.0.image_digest", "sha256:" + "AB" * 32),
        ("containers.0.image_digest", "sha256:" + "ab" * 31),
        ("containers.0.image_digest", "sha256:" + "ab" * 32 + "\n"),
        ("containers.0.image_digest", "sha512:" + "ab" * 64),
        ("containers.0.signature_keys", []),
        ("containers.0.signature_keys", "key"),
        ("containers.0.signature_keys", [""]),
        ("containers.0.repository", ""),
        ("containers.0.repository", "a\0b"),
        ("containers.0.command", "sh -c"),
        ("containers.0.command", ["a\0b"]),
        ("containers.0.args", ["x"] * (POLICY_LIST_ITEMS + 1)),
        ("containers.0.args", ["x" * (POLICY_VALUE_BYTES + 1)]),
        ("containers.0.env", {"A=B": "1"}),
        ("containers.0.env", {"": "1"}),
        ("containers.0.env", {"1A": "1"}),
        ("containers.0.env", {"A\n": "1"}),
        ("containers.0.env", {"A": "a\0b"}),
        ("containers.0.env", ["A=1"]),
        ("containers.0.cwd", ""),
        ("containers.0.cwd", "relative"),
        ("containers.0.cwd", "/a\0b"),
        ("containers.0.user", ""),
        ("containers.0.user", "root\0"),
        ("containers.0.user", "root\n"),
        ("containers.0.user", "x" * 300),
        ("containers.0.signals", [0]),
        ("containers.0.signals", [65]),
        ("containers.0.signals", [-9]),
        ("containers.0.signals", ["9"]),
        ("containers.0.exec", [[]]),
        ("containers.0.exec", ["sh"]),
        ("containers.0.exec", [["a\0b"]]),
        ("containers.0.exec", [["x"]] * (POLICY_LIST_ITEMS + 1)),
        ("containers.0.resources", ["default/type/tag"]),
        ("containers.0.resources", ["kbs://host/default/type/tag"]),
        ("containers.0.resources", ["kbs:///a/b/c"] * (POLICY_LIST_ITEMS + 1)),
        ("containers.0.terminal", 1),
        ("streams", {}),
        ("streams", {"mode": "sealed"}),
        ("streams", {"mode": "host", "key": "kbs:///a/b/c"}),
        ("streams", {"mode": "none", "key": "kbs:///a/b/c"}),
        ("streams", {"mode": "file"}),
        ("streams", {"mode": "none", "unknown": 1}),
        ("streams.key", "kbs:///a/b"),
        ("containers.0.files", {"run/db": "kbs:///default/file/db"}),
        ("containers.0.files", {"/": "kbs:///default/file/db"}),
        ("containers.0.files", {"//run/db": "kbs:///default/file/db"}),
        ("containers.0.files", {"/run/../db": "kbs:///default/file/db"}),
        ("containers.0.files", {"/run/db/": "kbs:///default/file/db"}),
        ("containers.0.files", {"/proc/db": "kbs:///default/file/db"}),
        ("containers.0.files", {"/sys": "kbs:///default/file/db"}),
        ("containers.0.files", {"/dev/shm/db": "kbs:///default/file/db"}),
        ("containers.0.files", {"/run/d\0b": "kbs:///default/file/db"}),
        ("containers.0.files", {"/run/db": "plain"}),
        ("containers.0.files", {"/run/db": ""}),
        ("containers.0.files", {f"/run/{number}": "sealed." for number in range(POLICY_LIST_ITEMS + 1)}),
        ("containers.0.sealing_keys", {"": "PEM"}),
        ("containers.0.sealing_keys", {"own": ""}),
        ("containers.0.sealing_keys", {"own": "P\0M"}),
        ("containers.0.unseal", ["default/password/1"]),
        ("containers.0.env_resource", "default/env/web"),
        ("containers.0.env_resource", "kbs://host/default/env/web"),
        ("containers.0.env_resource", None),
        ("lease_seconds", -1),
        ("lease_seconds", 1),
        ("lease_seconds", LEASE_SECONDS + 1),
        ("lease_seconds", 2.5),
        ("lease_seconds", "60"),
        ("lease_seconds", True),
        ("lease_seconds", None),
    ],
    ids=lambda item: str(item)[:40],
)
def test_other_policies_are_refused(wire: dict[str, Any], path: str, value: object) -> None:
    with pytest.raises(FormatRefused) as refusal:
        parse(change(wire, path, value))
    assert refusal.value.code in ("podpolicy.malformed", "protocol.resource.malformed")


@pytest.mark.parametrize("name", ["name", "kind", "image_digest", "repository", "signature_keys"])
def test_members_that_decide_what_runs_are_required(wire: dict[str, Any], name: str) -> None:
    changed = copy.deepcopy(wire)
    del changed["containers"][1][name]
    with pytest.raises(FormatRefused):
        parse(changed)


@pytest.mark.parametrize("seconds", [0, 2, LEASE_SECONDS])
def test_lease_is_kept(wire: dict[str, Any], seconds: int) -> None:
    assert parse({**wire, "lease_seconds": seconds}).lease_seconds == seconds


@pytest.mark.parametrize("mode", ["host", "none"])
def test_lease_needs_the_stream_key_it_is_renewed_by(wire: dict[str, Any], mode: str) -> None:
    with pytest.raises(FormatRefused) as refusal:
        parse({**wire, "streams": {"mode": mode}, "lease_seconds": 60})
    assert refusal.value.path == "lease_seconds"


def test_number_of_containers_has_a_ceiling(wire: dict[str, Any]) -> None:
    one = wire["containers"][1]
    many = [{**one, "name": f"c{number}"} for number in range(POLICY_CONTAINERS + 1)]
    assert len(parse({**wire, "containers": many[:-1]}).containers) == POLICY_CONTAINERS
    with pytest.raises(FormatRefused):
        parse({**wire, "containers": many})


@pytest.mark.parametrize(
    "text",
    [b"", b"null", b"[]", b"{}", b"\xff", b"[" * 100_000, b" " * (POLICY_BYTES + 1)],
    ids=["empty", "null", "list", "no members", "not utf-8", "deep", "too long"],
)
def test_text_that_is_no_policy_is_refused(text: bytes) -> None:
    with pytest.raises(FormatRefused) as refusal:
        parse_pod_policy(text)
    assert refusal.value.code == "podpolicy.malformed"


def test_truncation_at_every_offset_is_refused(wire: dict[str, Any]) -> None:
    text = encode_pod_policy(parse(wire))
    for length in range(len(text)):
        with pytest.raises(FormatRefused):
            parse_pod_policy(text[:length])


# --- process ---


def container(**fields: Any) -> ContainerPolicy:
    return ContainerPolicy(
        name="app", kind="app", image_digest="sha256:" + "ab" * 32, repository="r", signature_keys=("k",), **fields
    )


@pytest.mark.parametrize(
    ("fields", "args"),
    [
        ({}, ("/entry", "serve")),
        ({"args": ("once",)}, ("/entry", "once")),
        ({"args": ()}, ("/entry",)),
        ({"command": ("/bin/sh",)}, ("/bin/sh",)),
        ({"command": ("/bin/sh",), "args": ("-c", "x")}, ("/bin/sh", "-c", "x")),
    ],
)
def test_arguments_follow_the_rules_of_kubernetes(fields: dict[str, Any], args: tuple[str, ...]) -> None:
    assert resolve_process(container(**fields), IMAGE).args == args


def test_image_defaults_fill_what_the_policy_leaves_open() -> None:
    process = resolve_process(container(), IMAGE)
    assert process.env == ("PATH=/bin", "MODE=image")
    assert (process.cwd, process.user, process.terminal) == ("/srv", "1000:1000", False)


def test_policy_overrides_image() -> None:
    process = resolve_process(container(env={"MODE": "policy", "NEW": "="}, cwd="/", user="0", terminal=True), IMAGE)
    assert process.env == ("PATH=/bin", "MODE=policy", "NEW==")
    assert (process.cwd, process.user, process.terminal) == ("/", "0", True)


def test_bare_image_gets_named_defaults() -> None:
    process = resolve_process(container(command=("/x",)), image())
    assert (process.env, process.cwd, process.user) == ((DEFAULT_PATH,), "/", "0")


@pytest.mark.parametrize(
    ("fields", "defaults"),
    [
        ({}, image()),
        ({"args": ()}, image((), ("serve",))),
        ({"command": ()}, IMAGE),
        ({"command": ("",)}, IMAGE),
        ({}, image(("",))),
        ({}, image(("/x",), (), ("NOVALUE",))),
        ({}, image(("/x",), (), ("=value",))),
        ({}, image(("/x",), (), ("",))),
    ],
)
def test_a_process_that_is_not_fully_said_is_refused(fields: dict[str, Any], defaults: ImageDefaults) -> None:
    with pytest.raises(FormatRefused) as refusal:
        resolve_process(container(**fields), defaults)
    assert refusal.value.code == "podpolicy.process"


# --- variables that the host cannot read ---


def test_secret_variables_are_set_over_the_policys_own() -> None:
    whole = with_secret_env(container(env={"A": "1", "B": "2"}), b'{"B": "secret", "C": ""}')
    assert dict(whole.env) == {"A": "1", "B": "secret", "C": ""}
    assert whole.env_resource is None


def test_secret_variables_are_not_in_the_policys_text(wire: dict[str, Any]) -> None:
    policy = parse(change(wire, "containers.1.env_resource", "kbs:///default/env/web"))
    assert b"secret" not in encode_pod_policy(policy)
    with_secret_env(policy.containers[1], b'{"TOKEN": "secret"}')
    assert b"secret" not in encode_pod_policy(policy)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"\xff",
        b'{"A": 1}',
        b'{"A": null}',
        b'{"A": ["x"]}',
        b'{"A=B": "1"}',
        b'{"": "1"}',
        b'{"A\\n": "1"}',
        b'{"A": "x\\u0000y"}',
        b'{"A": "1"} x',
        b"[" * 100_000,
        json.dumps({f"V{number}": "" for number in range(POLICY_LIST_ITEMS + 1)}).encode(),
        json.dumps({"A": "x" * (POLICY_VALUE_BYTES + 1)}).encode(),
    ],
    ids=range(15),
)
def test_other_secret_variables_are_refused_without_showing_them(data: bytes) -> None:
    with pytest.raises(FormatRefused) as refusal:
        with_secret_env(container(), data)
    assert refusal.value.code == "podpolicy.env_resource"
    assert refusal.value.path == "containers.app.env_resource"
    assert not refusal.value.actual
