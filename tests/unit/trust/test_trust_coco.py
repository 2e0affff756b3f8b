"""CoCo's administration by the shape of its requests."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from cloister.errors import CloisterError, FormatRefused, Refused
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.trust.access import LOCAL_OWNER
from cloister.trust.cocoadmin import CoCoAdministration, find_action
from cloister.trust.keybroker import error_answer
from trust_world import CANARY, MODEL, World, error_of

ALLOW_ALL = b"package policy\n\ndefault allow = true\n"
DIGEST = "ab" * 48


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def message(values: Any, **changes: Any) -> bytes:
    payload = base64.b64encode(json.dumps(values).encode()).decode()
    return json.dumps({"version": "0.1.0", "type": "sample", "payload": payload, **changes}).encode()


def do(world: World, method: str, path: str, body: bytes = b"", *, unsigned: bool = True) -> bytes:
    action = find_action(method, f"/kbs/v0/{path}")
    assert action is not None
    office = world.admin.administration.office(LOCAL_OWNER, DEFAULT_TENANT, action.permission)
    coco = CoCoAdministration(office, insecure_unsigned_reference_values=unsigned)
    answer = coco.handle(action, body)
    assert answer.status == 200
    return answer.body


@pytest.mark.parametrize(
    ("method", "path", "permission"),
    [
        ("POST", "resource/a/b/c", "resource:write"),
        ("DELETE", "resource/a/b/c", "resource:delete"),
        ("POST", "resource-policy", "policy:write"),
        ("GET", "resource-policy", "policy:read"),
        ("POST", "attestation-policy", "policy:write"),
        ("POST", "reference-value", "reference:add-unsigned"),
        ("GET", "reference-value/mr_td", "reference:read"),
    ],
)
def test_each_action_has_a_permission(method: str, path: str, permission: str) -> None:
    action = find_action(method, f"/kbs/v0/{path}")
    assert action is not None and action.permission == permission


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/kbs/v0/resource/a/b/c"),
        ("POST", "/kbs/v0/resource"),
        ("POST", "/kbs/v0/resource-policy/x"),
        ("PUT", "/kbs/v0/resource/a/b/c"),
        ("GET", "/kbs/v0/attestation-policy"),
        ("POST", "/kbs/v0/auth"),
        ("POST", "/kbs/v1/resource/a/b/c"),
        ("POST", "/resource/a/b/c"),
    ],
)
def test_what_is_none_of_them(method: str, path: str) -> None:
    assert find_action(method, path) is None


def test_resources(world: World) -> None:
    assert do(world, "POST", "resource/a/b/c", b"\x00octets") == b""
    assert world.admin.get_resource(type(MODEL)("a", "b", "c")) == b"\x00octets"
    assert do(world, "DELETE", "resource/a/b/c") == b""
    with pytest.raises(Refused) as caught:
        do(world, "DELETE", "resource/a/b/c")
    assert error_answer(caught.value, stage="resource").status == 404
    for path in ("resource/a/b", "resource/a/b/../c", "resource/a//c"):
        with pytest.raises(FormatRefused):
            do(world, "POST", path, b"x")


class TestResourcePolicy:
    def test_it_is_the_rule_of_every_path(self, world: World) -> None:
        pytest.importorskip("regopy", reason="the extra `rego` is not installed")
        assert do(world, "POST", "resource-policy", json.dumps({"policy": b64url(ALLOW_ALL)}).encode()) == b""
        assert world.admin.release_rules().rules["*"].rego == ALLOW_ALL.decode()
        assert json.loads(do(world, "GET", "resource-policy")) == ["resource-policy", "default/model/*"]

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{}",
            b'{"policy":1}',
            b'{"policy":"%%"}',
            json.dumps({"policy": b64url(ALLOW_ALL), "more": 1}).encode(),
            json.dumps({"policy": b64url(b"insecure_any_init_data = true")}).encode(),
            json.dumps({"policy": b64url(b"package policy\nallow = {")}).encode(),
        ],
    )
    def test_malformed(self, world: World, body: bytes) -> None:
        with pytest.raises(CloisterError) as caught:
            do(world, "POST", "resource-policy", body)
        assert error_answer(caught.value, stage="").status == 400
        assert "*" not in world.admin.release_rules().rules


class TestAttestationPolicy:
    def test_a_typed_one_is_stored(self, world: World) -> None:
        text = b'{"version":1,"id":"default","tees":["snp"]}'
        body = {"type": "rego", "policy_id": "default", "policy": b64url(text)}
        assert do(world, "POST", "attestation-policy", json.dumps(body).encode()) == b""
        stored = world.admin.appraisal_policy()
        assert stored is not None and stored.text == text

    @pytest.mark.parametrize(
        ("policy", "identity", "status"),
        [
            (b"package policy\n", "default_cpu", 400),
            (b'package policy\ntrust_claims := {"hardware": 2}', "default_gpu", 403),
            (b'package policy\ntrust_claims := {"nonsense": 2}', "default_cpu", 400),
            (b'package policy\ntrust_claims := {"hardware": 2}', "_/..", 400),
            (b'{"version":1,"id":"x","tees":["snp"]}', "default", 400),
            (b"{}", "default", 400),
        ],
    )
    def test_others_are_refused(self, world: World, policy: bytes, identity: str, status: int) -> None:
        body = {"type": "rego", "policy_id": identity, "policy": b64url(policy)}
        with pytest.raises(Refused) as caught:
            do(world, "POST", "attestation-policy", json.dumps(body).encode())
        assert error_answer(caught.value, stage="").status == status


class TestReferenceValues:
    def test_item_5_unsigned_ones_need_the_switch(self, world: World) -> None:
        body = message({"snp_launch_measurement": [DIGEST]})
        with pytest.raises(Refused) as caught:
            do(world, "POST", "reference-value", body, unsigned=False)
        assert caught.value.code == "trust.reference.unsigned"
        assert [entry.id for entry in world.admin.list_reference_entries()] == ["podvm"]
        assert do(world, "POST", "reference-value", body) == b""
        [entry] = [entry for entry in world.admin.list_reference_entries() if entry.tee == "snp"]
        assert entry.registers == {"measurement": bytes.fromhex(DIGEST)} and "unsigned" in entry.origin

    def test_they_read_back_until_they_expire(self, world: World) -> None:
        do(world, "POST", "reference-value", message({"snp_launch_measurement": [DIGEST, "cd" * 48]}))
        assert set(json.loads(do(world, "GET", "reference-value/snp_launch_measurement"))) == {DIGEST, "cd" * 48}
        with pytest.raises(Refused) as caught:
            do(world, "GET", "reference-value/mr_td")
        assert error_answer(caught.value, stage="").status == 404
        world.clock.advance(days=366)
        with pytest.raises(Refused):
            do(world, "GET", "reference-value/snp_launch_measurement")

    def test_one_technology_is_one_entry_per_combination(self, world: World) -> None:
        """However the values come: CoCo's tool sends one name per message."""
        do(world, "POST", "reference-value", message({"mr_td": ["aa" * 48, "bb" * 48]}))
        do(world, "POST", "reference-value", message({"rtmr_1": "cc" * 48}))
        assert [entry for entry in world.admin.list_reference_entries() if entry.tee == "tdx"] == []
        do(world, "POST", "reference-value", message({"rtmr_2": ["dd" * 48]}))
        entries = [entry for entry in world.admin.list_reference_entries() if entry.tee == "tdx"]
        assert [sorted(entry.registers) for entry in entries] == [["mrtd", "rtmr1", "rtmr2"]] * 2
        assert json.loads(do(world, "GET", "reference-value/rtmr_1")) == "cc" * 48

    def test_a_newer_value_of_a_name_ends_the_older(self, world: World) -> None:
        for digest in ("aa" * 48, "bb" * 48):
            do(world, "POST", "reference-value", message({"snp_launch_measurement": [digest]}))
        [entry] = [entry for entry in world.admin.list_reference_entries() if entry.tee == "snp"]
        assert entry.registers == {"measurement": bytes.fromhex("bb" * 48)}
        assert json.loads(do(world, "GET", "reference-value/snp_launch_measurement")) == ["bb" * 48]

    def test_any_name_is_kept_for_rego(self, world: World) -> None:
        values = {"launch_digest": ["abcde"], "major_version": 1, "snp_smt_enabled": True, "x": {"deep": [None]}}
        do(world, "POST", "reference-value", message(values))
        for name, value in values.items():
            assert json.loads(do(world, "GET", f"reference-value/{name}")) == value
        assert [entry.id for entry in world.admin.list_reference_entries()] == ["podvm"]

    def test_there_is_a_most_of_names(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("cloister.trust.administration.references.NAMED_MOST", 2)
        do(world, "POST", "reference-value", message({"a": 1, "b": 2}))
        do(world, "POST", "reference-value", message({"a": 3}))
        with pytest.raises(FormatRefused):
            do(world, "POST", "reference-value", message({"c": 1}))

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{}",
            message({}, version="0.2.0"),
            message({}, type="corim"),
            message({}, payload="%"),
            message([1]),
            message({"": 1}),
            message({"a b": 1}),
            message({"snp_launch_measurement": []}),
            message({"snp_launch_measurement": ["xyz"]}),
            message({"snp_launch_measurement": ["aa"]}),
            message({"snp_launch_measurement": ["aa" * 48] * 65}),
            message({"snp_launch_measurement": [7]}),
            message({name: [f"{index:096x}" for index in range(64)] for name in ("mr_td", "rtmr_1", "rtmr_2")}),
            message({"x": "y" * 300_000}),
        ],
    )
    def test_malformed(self, world: World, body: bytes) -> None:
        with pytest.raises(FormatRefused):
            do(world, "POST", "reference-value", body)


def test_a_resource_put_by_cocos_tool_is_released_like_any_other(world: World) -> None:
    do(world, "POST", f"resource/{MODEL}", b"new")
    guest = world.guest().handshake()
    assert guest.open(guest.resource()) == b"new" != CANARY
    answer = guest.resource("default/key/none")
    assert answer.status == 404 and error_of(answer)["type"].endswith("/PluginInternalError")
