"""CoCo's administration over HTTP: who may do what, in which tenant, and the same record as of our own tools.

The table is made from the actions themselves, and every row is asked without credentials and with each role.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from admin_world import OTHER, AdminWorld, admin_world
from cloister.protocol.resourceuri import parse_resource_path
from cloister.trust.access import PERMISSIONS, Permission, Role
from cloister.trust.approvals import parse_resource_prefix
from cloister.trust.cocoadmin import ACTIONS
from cloister.trust.store.calls import CallRow
from cloister.trust.web.coco import CoCoRoutes
from trust_edge import Edge
from trust_world import quick_directory

REGO = b"package policy\n\ndefault allow = false\n"
VECTOR = b'package policy\n\ntrust_claims := {"hardware": 2, "executables": 3, "configuration": 2}\n'


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def reference(**values: Any) -> bytes:
    payload = base64.b64encode(json.dumps(values).encode()).decode()
    return json.dumps({"version": "0.1.0", "type": "sample", "payload": payload}).encode()


def policy(text: bytes, **more: str) -> bytes:
    return json.dumps({"policy": b64url(text), **more}).encode()


# What follows the noun, and a body that is good.
REQUESTS = {
    "coco-resource-put": ("/a/b/c", b"octets"),
    "coco-resource-delete": ("/nothing/of/that", b""),
    "coco-release-put": ("", policy(REGO)),
    "coco-release-list": ("", b""),
    "coco-appraisal-put": ("", policy(VECTOR, policy_id="x_cpu")),
    "coco-reference-add": ("", reference(launch_digest=["abcde"])),
    "coco-reference-get": ("/launch_digest", b""),
}
TABLE = [
    (method, f"{noun}{REQUESTS[name][0]}", REQUESTS[name][1], permission)
    for (method, noun), (name, permission, _) in ACTIONS.items()
]


class Served:
    def __init__(self, made: AdminWorld) -> None:
        self.made = made
        settings = replace(made.world.settings, insecure_unsigned_reference_values=True)
        self.edge = Edge(made.world, besides=CoCoRoutes(made.administration, settings))

    def call(
        self, method: str, path: str, body: bytes = b"", *, token: str | None = None, tenant: str = ""
    ) -> tuple[int, dict[str, Any]]:
        text = self.made.root if token is None else token
        headers = {"authorization": f"Bearer {text}"} if text else {}
        place = f"/t/{tenant}/kbs/v0/{path}" if tenant else f"/kbs/v0/{path}"
        status, _, answer = asyncio.run(self.edge.call(method, place, body, headers))
        return status, json.loads(answer) if answer else {}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    pytest.importorskip("regopy", reason="the extra `rego` is not installed")
    with quick_directory() as directory, admin_world(directory / "world") as made:
        yield Served(made)


def last_call(served: Served) -> CallRow:
    """The newest row that is about no reading of rows."""
    rows = served.made.office().records.calls(after=0, limit=1000)
    return [row for row in rows if row.action != Permission.AUDIT_READ][-1]


def test_the_table_is_every_action() -> None:
    assert set(REQUESTS) == {name for name, _, _ in ACTIONS.values()} and len(TABLE) == 7


@pytest.mark.parametrize("tenant", ["", OTHER])
@pytest.mark.parametrize("token", ["", "x", "cat_" + "A" * 43])
def test_nobody_gets_in_without_a_token(served: Served, token: str, tenant: str) -> None:
    for method, path, body, _ in TABLE:
        status, answer = served.call(method, path, body, token=token, tenant=tenant)
        assert (status, answer["code"]) == (401, "trust.access.unauthenticated"), (method, path)
        assert answer["type"] == "https://github.com/confidential-containers/kbs/errors/AdminAuthAccess"
        assert "trust.access.unauthenticated" in answer["detail"]


def test_a_guests_token_is_no_access_token(served: Served) -> None:
    token = served.made.world.guest().handshake().token
    for method, path, body, _ in TABLE:
        assert served.call(method, path, body, token=token)[0] == 401, path


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("tenant", ["default", OTHER])
def test_each_role_may_what_its_permissions_say_and_nothing_else(served: Served, role: Role, tenant: str) -> None:
    token = served.made.token(role.value, tenant)
    for method, path, body, permission in TABLE:
        status, answer = served.call(method, path, body, token=token, tenant=tenant)
        if permission in PERMISSIONS[role]:
            assert status in (200, 404), (path, answer)
            assert (status == 404) <= (method == "DELETE" or "launch_digest" in path), (path, answer)
        else:
            assert (status, answer["code"]) == (403, "trust.access.forbidden"), path
            assert answer["denial-id"].startswith("d-") and answer["type"].endswith("/AdminAuthAccess")


@pytest.mark.parametrize("role", [Role.OWNER, Role.AUDITOR, Role.PUBLISHER])
def test_a_tenants_token_does_nothing_elsewhere_and_learns_nothing(served: Served, role: Role) -> None:
    token = served.made.token(role.value, OTHER)
    for method, path, body, _ in TABLE:
        answers = []
        for tenant in ("", "never-made"):
            status, answer = served.call(method, path, body, token=token, tenant=tenant)
            assert status == 403
            answers.append((answer["code"], answer["type"]))
        assert answers[0] == answers[1]


def test_a_change_is_one_call_on_record_with_its_log_entry(served: Served) -> None:
    office, log = served.made.office(), served.made.world.admin._log
    before = log.newest.text
    token = served.made.token("owner")
    assert served.call("POST", "resource/on/record/one", b"x", token=token)[0] == 200
    newest = last_call(served)
    assert (newest.action, newest.subject, newest.code) == (Permission.RESOURCE_WRITE, "on/record/one", "ok")
    assert newest.name == "owner-of-default" and log.newest.text != before
    assert office.resources.content(parse_resource_path("on/record/one")) == b"x"
    status, answer = served.call("DELETE", "resource/on/record/two", token=token)
    assert (status, answer["type"].rpartition("/")[2]) == (404, "PluginInternalError")
    assert last_call(served).code == "trust.resource.missing"


def test_a_refusal_is_explained_to_the_owner(served: Served) -> None:
    _, answer = served.call("POST", "resource/a/b/c", b"x", token=served.made.token("auditor"))
    record = served.made.office().records.denial(answer["denial-id"])
    assert (record.stage, record.code) == ("admin", "trust.access.forbidden") and "coco-resource-put" in record.path


def test_tenants_are_apart(served: Served) -> None:
    owner = served.made.token("owner", OTHER)
    assert served.call("POST", "resource/t/e/n", b"theirs", token=owner, tenant=OTHER)[0] == 200
    paths = [str(entry.path) for entry in served.made.office().resources.list()]
    assert "t/e/n" not in paths and "t/e/n" in [str(e.path) for e in served.made.office(OTHER).resources.list()]
    assert served.call("GET", "reference-value/x", tenant="never-made")[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "variant"),
    [
        ("POST", "resource/a/b", b"x", 400, "SerdeError"),
        ("POST", "resource/a/b/c", b"", 400, "SerdeError"),
        ("POST", "resource-policy", b"{}", 400, "SerdeError"),
        ("POST", "resource-policy", policy(b"package p\nallow = {"), 400, "ParsePolicyError"),
        ("POST", "attestation-policy", policy(b"package policy", policy_id="x"), 400, "ParsePolicyError"),
        ("POST", "attestation-policy", policy(VECTOR, policy_id="x_gpu"), 403, "PluginInternalError"),
        ("POST", "reference-value", b"{}", 400, "RvpsError"),
        ("GET", "reference-value/none", b"", 404, "RvpsError"),
        ("PUT", "resource/a/b/c", b"x", 405, "InvalidRequestPath"),
        ("DELETE", "resource-policy", b"", 404, "InvalidRequestPath"),
        ("PUT", "attestation-policy", b"", 404, "InvalidRequestPath"),
    ],
)  # fmt: skip
def test_what_is_refused_has_cocos_shape(
    served: Served, method: str, path: str, body: bytes, status: int, variant: str
) -> None:
    found, answer = served.call(method, path, body)
    assert (found, answer["type"].rpartition("/")[2]) == (status, variant), answer


def test_unsigned_values_need_the_switch(served: Served) -> None:
    made = served.made
    strict = Edge(made.world, besides=CoCoRoutes(made.administration, made.world.settings))
    headers = {"authorization": f"Bearer {made.root}"}
    body = reference(launch_digest=["x"])
    status, _, answer = asyncio.run(strict.call("POST", "/kbs/v0/reference-value", body, headers))
    assert (status, json.loads(answer)["code"]) == (403, "trust.reference.unsigned")


def test_where_several_must_approve_nothing_is_changed(served: Served) -> None:
    served.made.office().tenants.create("careful", "changes take two")
    office = served.made.office("careful")
    office.approvals.put_demand(parse_resource_prefix("*/*/*"), b'need = 1\nof = ["ann"]\n', replaces=None)
    body = policy(REGO)
    status, answer = served.call("POST", "resource-policy", body, tenant="careful")
    assert (status, answer["code"]) == (403, "trust.approval.needed") and not office.rules.list()


def test_guests_go_on_as_before(served: Served) -> None:
    """The method tells a guest's read from an owner's write."""
    status, answer = served.call("GET", "resource/default/model/one", token="")
    assert (status, answer["code"]) == (401, "trust.token.missing")
    status, answer = served.call("GET", "resource/default/model/one")
    assert status in (400, 401) and answer["code"].startswith("crypto.jwt.")
