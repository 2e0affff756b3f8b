"""Changes and releases that several people must agree to, and the ways around it that must not work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from admin_world import OTHER, AdminWorld, admin_world
from cloister.errors import FormatRefused, Refused
from cloister.trust.approvals import ApprovalDemand, parse_demand, parse_resource_prefix
from trust_world import MODEL, quick_directory

DEMAND = 'need = 2\nof = ["alice", "bob", "carol"]\n'
RULE = "insecure_any_init_data = true\n"
PATH = "/release-rules/shop/model/*"


@pytest.fixture
def served() -> Iterator[AdminWorld]:
    with quick_directory() as directory, admin_world(directory / "world") as made:
        yield made


class People:
    """Tokens of a few people who approve, and of an owner who changes rules."""

    def __init__(self, served: AdminWorld) -> None:
        self.served = served
        self.tokens = {name: served.token("approver", name=name) for name in ("alice", "bob", "carol", "mallory")}
        self.tokens["owner"] = served.token("owner")

    def call(self, name: str, method: str, path: str, body: Any = None, **query: Any) -> Any:
        return self.served.call(method, path, token=self.tokens[name], body=body, **query)

    def approve(self, name: str, proposal: dict[str, Any]) -> Any:
        body = {"digest": proposal["digest"]}
        return self.call(name, "POST", f"/proposals/{proposal['id']}/approve", body)


@pytest.fixture
def people(served: AdminWorld) -> People:
    made = People(served)
    assert served.call("PUT", "/approval-demands/shop/model/*", body={"text": DEMAND}).json()["applied"]["version"] == 1
    return made


def refused(answer: Any, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


def proposed(answer: Any) -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    assert answer.status_code == 200 and body["applied"] is None, answer.text
    found: dict[str, Any] = body["proposal"]
    assert found["state"] == "open"
    return found


def test_a_change_waits_for_enough_distinct_people(people: People) -> None:
    proposal = proposed(people.call("owner", "PUT", PATH, {"text": RULE}))
    assert proposal["demands"] == [{"prefix": "shop/model/*", "need": 2, "of": ["alice", "bob", "carol"]}]
    assert proposal["document"]["text"] == RULE
    refused(people.call("owner", "GET", PATH), 404, "trust.policy.missing")
    assert people.approve("alice", proposal).json()["state"] == "open"
    assert people.approve("alice", proposal).json()["approved_by"] == ["alice"], "a name counts once"
    refused(people.call("owner", "GET", PATH), 404, "trust.policy.missing")
    done = people.approve("carol", proposal).json()
    assert (done["state"], done["approved_by"]) == ("applied", ["alice", "carol"])
    assert people.call("owner", "GET", PATH).json()["text"] == RULE
    refused(people.approve("bob", proposal), 409, "trust.approval.closed")


def test_who_may_not_approve(people: People) -> None:
    proposal = proposed(people.call("owner", "PUT", PATH, {"text": RULE}))
    refused(people.approve("mallory", proposal), 403, "trust.approval.not_an_approver")
    refused(people.approve("owner", proposal), 403, "trust.approval.not_an_approver")
    auditor = people.served.token("auditor", name="dave")
    answer = people.served.call(
        "POST", f"/proposals/{proposal['id']}/approve", token=auditor, body={"digest": proposal["digest"]}
    )
    refused(answer, 403, "trust.access.forbidden")
    assert people.call("owner", "GET", f"/proposals/{proposal['id']}").json()["approved_by"] == []


def test_an_approval_is_of_what_was_read(people: People) -> None:
    one = proposed(people.call("owner", "PUT", PATH, {"text": RULE}))
    two = proposed(people.call("owner", "PUT", PATH, {"text": RULE + "lease_seconds = 5\n"}))
    refused(people.approve("alice", {**one, "digest": two["digest"]}), 409, "trust.approval.digest")
    refused(people.approve("alice", {**one, "digest": "sha256:x"}), 400, "trust.request.malformed")
    assert one["digest"] != two["digest"]


@pytest.mark.parametrize("path", ["shop/model/one", "shop/*/*", "*/*/*", "shop/model/*"])
def test_no_narrower_or_wider_prefix_is_a_way_around(people: People, path: str) -> None:
    proposed(people.call("owner", "PUT", f"/release-rules/{path}", {"text": RULE}))
    proposed(people.call("owner", "PUT", f"/approval-demands/{path}", {"text": 'need = 1\nof = ["mallory"]\n'}))


@pytest.mark.parametrize("path", ["shop/other/*", "tools/model/*", "tools/*/*"])
def test_a_demand_is_about_its_own_prefix(people: People, path: str) -> None:
    assert people.call("owner", "PUT", f"/release-rules/{path}", {"text": RULE}).json()["applied"]


def test_removing_and_rolling_back_wait_too(people: People) -> None:
    first = proposed(people.call("owner", "PUT", PATH, {"text": RULE}))
    for name in ("alice", "bob"):
        people.approve(name, first)
    proposed(people.call("owner", "DELETE", PATH))
    proposed(people.call("owner", "POST", f"{PATH}/rollback", {"version": 1}))
    assert people.call("owner", "GET", PATH).json()["version"] == 1


def test_a_demand_is_lifted_by_those_it_names_only(people: People) -> None:
    path = "/approval-demands/shop/model/*"
    proposal = proposed(people.call("owner", "DELETE", path))
    assert proposal["kind"] == "approvals"
    proposed(people.call("owner", "PUT", PATH, {"text": RULE}))
    for name in ("alice", "bob"):
        people.approve(name, proposal)
    refused(people.call("owner", "GET", path), 404, "trust.policy.missing")
    assert people.call("owner", "PUT", PATH, {"text": RULE}).json()["applied"]["version"] == 1


def test_the_demand_in_force_at_the_last_approval_decides(people: People) -> None:
    """A proposal made under an easy demand is not applied under a harder one."""
    change = proposed(people.call("owner", "PUT", PATH, {"text": RULE}))
    people.approve("alice", change)
    harder = proposed(people.call("owner", "PUT", "/approval-demands/shop/*/*", {"text": DEMAND.replace("2", "3")}))
    for name in ("alice", "bob"):
        assert people.approve(name, harder).json()["state"] in ("open", "applied")
    assert people.approve("bob", change).json()["state"] == "open"
    assert people.approve("carol", change).json()["state"] == "applied"


def test_a_change_that_does_not_fit_any_more_is_not_applied(people: People) -> None:
    proposals = [proposed(people.call("owner", "PUT", PATH, {"text": f"# {n}\n{RULE}", "replaces": 0})) for n in (1, 2)]
    for proposal in proposals:
        people.approve("alice", proposal)
    assert people.approve("bob", proposals[0]).json()["state"] == "applied"
    refused(people.approve("bob", proposals[1]), 409, "trust.policy.conflict")
    again = people.call("owner", "GET", f"/proposals/{proposals[1]['id']}").json()
    assert (again["state"], again["approved_by"]) == ("open", ["alice"]), "what failed left nothing"


def test_proposals_end(people: People) -> None:
    proposal = proposed(people.call("owner", "PUT", PATH, {"text": RULE}))
    people.approve("alice", proposal)
    people.served.world.clock.advance(days=7)
    refused(people.approve("bob", proposal), 409, "trust.approval.closed")
    assert people.call("owner", "GET", "/proposals").json()["proposals"][0]["state"] == "expired"


def test_an_approver_or_the_proposer_rejects(people: People) -> None:
    for name in ("owner", "bob"):
        proposal = proposed(people.call("owner", "PUT", PATH, {"text": RULE}))
        refused(
            people.call("mallory", "POST", f"/proposals/{proposal['id']}/reject"), 403, "trust.approval.not_an_approver"
        )
        assert people.call(name, "POST", f"/proposals/{proposal['id']}/reject").json()["state"] == "rejected"
        refused(people.approve("alice", proposal), 409, "trust.approval.closed")
    refused(people.call("alice", "POST", "/proposals/p-none/reject"), 404, "trust.approval.missing")


def test_a_tenants_owner_cannot_become_the_second_approver(people: People) -> None:
    tokens = people.served.call("GET", "/tokens").json()["tokens"]
    bob = next(token["id"] for token in tokens if token["name"] == "bob")
    people.call("owner", "DELETE", f"/tokens/{bob}")
    body = {"name": "bob", "role": "approver"}
    refused(people.call("owner", "POST", "/tokens", body), 403, "trust.access.name_reserved")
    assert people.served.call("POST", "/tokens", body=body).status_code == 200, "whoever runs the service may"


def test_the_owners_own_machine_is_told_to_ask(people: People) -> None:
    admin = people.served.world.admin
    with pytest.raises(Refused) as caught:
        admin.put_release_rule("shop/model/one", RULE.encode())
    assert caught.value.code == "trust.approval.needed"
    assert "shop/model/one" not in admin.release_rules().rules, "undone with its transaction"
    admin.put_release_rule("tools/model/one", RULE.encode())


def test_a_proposal_is_its_tenants(people: People) -> None:
    proposal = proposed(people.call("owner", "PUT", PATH, {"text": RULE}))
    alice = people.served.token("approver", OTHER, name="alice2")
    answer = people.served.call(
        "POST", f"/proposals/{proposal['id']}/approve", token=alice, body={"digest": proposal["digest"]}
    )
    refused(answer, 404, "trust.approval.missing")


# Releases


@pytest.fixture
def guarded(served: AdminWorld) -> People:
    """The model's rule asks for two approvals of every release."""
    made = People(served)
    digest = served.world.data.digest_text
    rule = (
        f'init_data = ["{digest}"]\ninsecure_allow_levels = ["measured"]\n'
        'approvals = {need = 2, of = ["alice", "bob"]}\n'
    )
    assert served.call("PUT", f"/release-rules/{MODEL}", body={"text": rule}).json()["applied"]
    return made


def test_a_release_needs_its_approvals_and_only_as_long_as_they_hold(guarded: People) -> None:
    served = guarded.served
    guest = served.world.guest().handshake()
    assert guest.resource().status == 403
    body = {"prefix": str(MODEL), "init_data": served.world.data.digest_text, "days": 2}
    proposal = guarded.call("alice", "POST", "/proposals", body).json()
    assert proposal["kind"] == "release" and proposal["demands"][0]["need"] == 2
    guarded.approve("alice", proposal)
    assert guest.resource().status == 403
    assert guarded.approve("bob", proposal).json()["state"] == "applied"
    assert guest.resource().status == 200
    served.world.clock.advance(days=2)
    assert served.world.guest().handshake().resource().status == 403


def test_an_approved_release_is_of_one_pod_and_one_prefix(guarded: People) -> None:
    served = guarded.served
    body = {"prefix": str(MODEL), "init_data": "sha256:" + "0" * 64}
    proposal = guarded.call("alice", "POST", "/proposals", body).json()
    for name in ("alice", "bob"):
        guarded.approve(name, proposal)
    assert served.world.guest().handshake().resource().status == 403
    elsewhere = guarded.call("alice", "POST", "/proposals", {**body, "prefix": "default/model/two"})
    refused(elsewhere, 400, "trust.approval.not_needed")


def test_a_rule_that_asks_for_approvals_is_not_loosened_by_one(guarded: People) -> None:
    proposed(guarded.call("owner", "PUT", f"/release-rules/{MODEL}", {"text": RULE}))
    proposed(guarded.call("owner", "DELETE", f"/release-rules/{MODEL}"))
    with pytest.raises(Refused) as caught:
        guarded.served.world.admin.remove_release_rule(str(MODEL))
    assert caught.value.code == "trust.approval.needed"


def test_revoking_waits_for_nobody(guarded: People) -> None:
    guarded.served.world.admin.revoke(guarded.served.world.data.digest_text)
    assert guarded.served.world.data.digest_text in guarded.served.world.admin.release_rules().revoked


# The words of a demand


def test_a_demand() -> None:
    prefix = parse_resource_prefix("a/b/*")
    expected = ApprovalDemand(prefix=prefix, need=2, of=("alice", "bob", "carol"))
    assert parse_demand(prefix, DEMAND.encode()) == expected
    assert parse_demand(prefix, b'{"need":2,"of":["alice","bob","carol"]}') == expected
    assert expected.met_by(["alice", "carol", "x"]) and not expected.met_by(["alice", "x", "y"])
    assert str(parse_resource_prefix("*/*/*")) == "*" == str(parse_resource_prefix("*"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "need = 0\nof = ['a']",
        "need = 2\nof = ['a']",
        "need = 1\nof = []",
        "need = 1\nof = ['a', 'a']",
        "need = 1\nof = ['']",
        "need = true\nof = ['a']",
        "need = 1\nof = ['a']\nmore = 1",
        "need = 1\nof = [" + ",".join(f"'n{n}'" for n in range(17)) + "]",
        "#" * 9000,
        "{",
    ],
)
def test_no_demand(text: str) -> None:
    with pytest.raises(FormatRefused):
        parse_demand(parse_resource_prefix("a/b/*"), text.encode())


@pytest.mark.parametrize("text", ["", "a", "a/b", "a/*/c", "*/b/c", "a/b/c/d", "*/b/*", "a//c", "../a/b", "a/b/**"])
def test_no_prefix(text: str) -> None:
    with pytest.raises(FormatRefused):
        parse_resource_prefix(text)
