"""Who may call which route of the administration API: tables made from the routes themselves.

Every route, without credentials and with each role; and a tenant's token on every route of another tenant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta

import pytest

from admin_world import OTHER, PREFIX, AdminWorld, admin_world
from cloister.trust.access import PERMISSIONS, Permission, Role
from cloister.trust.store.queries import RecordFilter
from cloister.trust.web.admin.application import ROUTES, admin_application, routes_of
from cloister.trust.web.admin.entrance import PERMISSION
from trust_world import CANARY, MODEL, quick_directory

# One value for each parameter of a path: of things that are there, so that a leak would show.
VALUES = {"repository": "default", "kind": "model", "tag": "one", "name": "default", "sequence": "1"}


@pytest.fixture(scope="module")
def served() -> Iterator[AdminWorld]:
    with quick_directory() as directory, admin_world(directory / "world") as made:
        made.world.guest().handshake().resource()
        made.world.guest().handshake().resource("default/other/one")
        yield made


def table(served: AdminWorld) -> list[tuple[str, str, Permission]]:
    found = []
    for method, path, permission in routes_of(served.client.app):  # type: ignore[arg-type]  # the client's own name
        filled = re.sub(r"\{(\w+)\}", lambda match: VALUES.get(match[1], "x-none"), path)
        found.append((method, filled.removeprefix(PREFIX), permission))
    return found


def test_the_table_holds_every_route_and_each_names_its_permission(served: AdminWorld) -> None:
    assert len(table(served)) == len(ROUTES) > 50
    assert all(isinstance(route.opt[PERMISSION], Permission) for route in ROUTES)
    assert {permission for _, _, permission in table(served)} >= set(Permission) - {
        Permission.REFERENCE_ADD_UNSIGNED,  # asked for by what is submitted, not by the route
    }


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer cat_" + "A" * 43, "Bearer x", "Basic Zm9vOmJhcg=="])
def test_no_route_answers_without_a_valid_token(served: AdminWorld, header: str) -> None:
    for method, path, _ in table(served):
        headers = {"authorization": header} if header else {}
        answer = served.client.request(method, PREFIX + path, headers=headers)
        assert answer.status_code == 401, (method, path, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.json()["code"] == "trust.access.unauthenticated"


def test_revoked_and_expired_tokens_are_none(served: AdminWorld) -> None:
    tokens = served.office().tokens
    revoked, first = tokens.create("gone", Role.OWNER, all_tenants=False, lifetime=None)
    _, second = tokens.create("late", Role.OWNER, all_tenants=False, lifetime=timedelta(days=1))
    assert {served.call("GET", "/status", token=text).status_code for text in (first, second)} == {200}
    tokens.revoke(revoked.id)
    served.world.clock.advance(days=1)
    try:
        answers = [served.call("GET", "/status", token=text) for text in (first, second)]
    finally:
        served.world.clock.advance(days=-1)
    assert [answer.status_code for answer in answers] == [401, 401]
    assert answers[0].json() == answers[1].json()


@pytest.mark.parametrize("role", list(Role))
def test_each_role_may_what_the_table_says_and_nothing_else(served: AdminWorld, role: Role) -> None:
    token = served.token(role.value)
    for method, path, permission in table(served):
        if method == "DELETE":
            path = path.replace("/default/", "/nothing/")  # permitted or not, the others' things stay
        status = served.call(method, path, token=token).status_code
        if permission in PERMISSIONS[role]:
            assert status not in (401, 403), (method, path, status)
        else:
            assert status == 403, (method, path, status)


def test_roles_are_as_told() -> None:
    reads = {item for item in Permission if item.value.endswith((":read", ":list"))}
    assert PERMISSIONS[Role.ROOT] == set(Permission)
    assert PERMISSIONS[Role.AUDITOR] <= reads - {Permission.SECRET_READ}
    for role in (Role.OPERATOR, Role.APPROVER, Role.PUBLISHER):
        may = PERMISSIONS[role]
        assert not may & {Permission.SECRET_READ, Permission.POLICY_WRITE, Permission.TOKEN_WRITE}
        assert Permission.REFERENCE_ADD_UNSIGNED not in may
    assert not PERMISSIONS[Role.OWNER] & {Permission.TENANT_WRITE, Permission.KEY_WRITE}


@pytest.mark.parametrize("role", [Role.OWNER, Role.AUDITOR, Role.OPERATOR, Role.APPROVER, Role.PUBLISHER])
def test_a_tenants_token_is_refused_on_every_route_of_another(served: AdminWorld, role: Role) -> None:
    """And learns nothing by it: the answer is the same for a tenant that is there and for one that is not."""
    token = served.token(role.value, OTHER)
    for method, path, _ in table(served):
        bodies = []
        for tenant in ("default", "never-made"):
            answer = served.call(method, path, token=token, tenant=tenant)
            assert answer.status_code == 403, (method, path, answer.text)
            body = answer.json()
            assert body.pop("denial").startswith("d-")
            bodies.append(body)
        assert bodies[0] == bodies[1]
        assert CANARY.decode() not in str(bodies) and "default" not in str(bodies)


def test_ids_of_one_tenant_mean_nothing_in_another(served: AdminWorld) -> None:
    office = served.office()
    rows = office.records.audit(RecordFilter(), after=0, limit=100)
    denial = next(row.denial for row in rows if row.denial)
    attestation = next(row.attestation for row in rows if row.attestation)
    token, _ = office.tokens.create("there", Role.AUDITOR, all_tenants=False, lifetime=None)
    owner = served.token("owner", OTHER)
    for path in (f"/denials/{denial}", f"/evidence/{attestation}", f"/resources/{MODEL}"):
        assert served.call("GET", path).status_code == 200, path
        assert served.call("GET", path, token=owner).status_code == 404, path
    assert served.call("GET", f"/resources/{MODEL}/content", token=owner).status_code == 404
    theirs = served.call("GET", f"/audit/{rows[0].sequence}", token=owner).json()  # numbers count per tenant
    assert theirs.get("attestation", "") != rows[0].attestation
    assert served.call("DELETE", f"/tokens/{token.id}", token=owner).status_code == 404
    assert served.call("DELETE", "/tokens/none", token=owner).json()["code"] == "trust.access.token_missing"
    for path, name in (
        ("/audit", "rows"),
        ("/denials", "denials"),
        ("/resources", "resources"),
        ("/release-rules", "policies"),
        ("/appraisal-policies", "policies"),
        ("/reference-values", "values"),
        ("/roots", "roots"),
        ("/publishers", "publishers"),
        ("/proposals", "proposals"),
    ):
        listed = served.call("GET", path, token=served.token("owner", OTHER), stage=None).json()[name]
        assert [item for item in listed if item.get("stage") != "admin" and item.get("code", "") not in _ADMIN] == []
    names = {item["name"] for item in served.call("GET", "/tokens", token=owner).json()["tokens"]}
    assert names and all(name.endswith(OTHER) for name in names)


_ADMIN = {"trust.access.forbidden"}


def test_a_refusal_is_recorded_where_its_caller_belongs(served: AdminWorld) -> None:
    token = served.token("auditor", OTHER)
    answer = served.call("PUT", "/resources/a/b/c", token=token, tenant="default", body={"content": "YQ=="})
    denial = answer.json()["denial"]
    assert served.call("GET", f"/denials/{denial}").status_code == 404
    record = served.call("GET", f"/denials/{denial}", token=token).json()
    assert (record["stage"], record["code"]) == ("admin", "trust.access.forbidden")
    calls = served.call("GET", "/calls", token=token, limit=1000).json()["calls"]
    refused = next(call for call in calls if call["denial"] == denial)
    assert (refused["name"], refused["action"], refused["code"]) == (
        "auditor-of-other",
        "resource:write",
        "trust.access.forbidden",
    )


def test_a_route_without_a_permission_lets_nobody_in(served: AdminWorld) -> None:
    """Planted: the guard does not take silence for consent."""
    from litestar import Router, get
    from litestar.testing import TestClient

    from cloister.trust.web.admin.entrance import enter

    @get("/planted", sync_to_thread=True)
    def planted() -> str:
        return "in"

    application = admin_application(served.administration)
    application.register(Router(PREFIX, route_handlers=[planted], guards=[enter]))
    with TestClient(application, raise_server_exceptions=False) as client:
        answer = client.get(f"{PREFIX}/planted", headers={"authorization": f"Bearer {served.root}"})
    assert answer.status_code == 500 and "in" not in answer.text.split()


def test_the_tenant_is_named_once_and_well(served: AdminWorld) -> None:
    headers = {"authorization": f"Bearer {served.root}"}
    twice = served.client.get(f"{PREFIX}/status?tenant=default&tenant={OTHER}", headers=headers)
    assert (twice.status_code, twice.json()["code"]) == (400, "trust.request.malformed")
    assert served.call("GET", "/status", tenant="No!").json()["code"] == "protocol.tenant.malformed"
    assert served.call("GET", "/status", tenant="never-made").json()["code"] == "trust.tenant.missing"
    assert served.call("GET", "/status", tenant=OTHER).json()["tenant"] == OTHER
    assert served.call("GET", "/status", token=served.token("owner", OTHER)).json()["tenant"] == OTHER
