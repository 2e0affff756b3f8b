"""What administration does, through the API: resources, policies, reference values, tokens, keys, and its records."""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from admin_world import OTHER, AdminWorld, admin_world
from cloister.crypto.references import sign_reference_set
from cloister.crypto.signer import ECDSAP256Signer
from cloister.errors import Refused, Unavailable
from cloister.rats.reference import ReferenceEntry, encode_reference_entry
from cloister.rats.referenceset import ReferenceSet, parse_reference_set
from cloister.testing.tpm import NOW
from cloister.trust.access import LOCAL_OWNER, TOKEN_FILE, AccessControl, Permission, Role, is_token
from cloister.trust.admin import TrustAdmin
from cloister.trust.administration import Administration
from cloister.trust.events import LogEvent
from trust_world import APPRAISAL, CANARY, MODEL, all_bytes, quick_directory

SECRET = b"secret-9c1f77aa-of-the-administration"


@pytest.fixture
def served() -> Iterator[AdminWorld]:
    with quick_directory() as directory, admin_world(directory / "world") as made:
        yield made


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def refused(answer: Any, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


# The first token


def test_the_first_start_writes_one_token_to_a_private_file(quick: Path) -> None:
    with TrustAdmin(quick / "state") as admin:
        access, file = admin.administration.access, quick / TOKEN_FILE
        assert access.bootstrap(file)
        text = file.read_text().strip()
        assert is_token(text) and stat.S_IMODE(file.stat().st_mode) == 0o600
        assert access.authenticate(text).role is Role.ROOT
        assert not access.bootstrap(file) and file.read_text().strip() == text
        file.unlink()
        assert not access.bootstrap(file) and not file.exists(), "a lost file is no reason for another token"
    assert text.encode() not in all_bytes(quick / "state")


def test_a_start_that_was_killed_goes_on_with_the_token_it_wrote(quick: Path) -> None:
    with TrustAdmin(quick / "state") as admin:
        (quick / TOKEN_FILE).write_text("cat_" + "k" * 43 + "\n")
        assert admin.administration.access.bootstrap(quick / TOKEN_FILE)
        assert admin.administration.access.authenticate("cat_" + "k" * 43).name == "first"


def test_a_file_that_holds_no_token_is_not_overwritten(quick: Path) -> None:
    with TrustAdmin(quick / "state") as admin:
        (quick / TOKEN_FILE).write_text("something else")
        with pytest.raises(Refused) as caught:
            admin.administration.access.bootstrap(quick / TOKEN_FILE)
        assert caught.value.code == "trust.access.first_file"


def test_a_second_replica_removes_the_file_it_wrote_in_vain(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TrustAdmin(quick / "state") as admin:
        access = admin.administration.access
        assert access.bootstrap(quick / "one")
        monkeypatch.setattr(access._tokens, "list", lambda tenant: ())  # as it was when both began
        assert not access.bootstrap(quick / "two")
        assert not (quick / "two").exists()


# Resources


def test_a_resource_is_stored_listed_read_by_who_may_and_deleted(served: AdminWorld) -> None:
    owner, operator = served.token("owner"), served.token("operator")
    stored = served.call("PUT", "/resources/a/b/c", token=owner, body={"content": b64(SECRET)})
    assert stored.json()["version"] == 1 and stored.headers["cache-control"] == "no-store"
    again = served.call("PUT", "/resources/a/b/c", token=owner, body={"content": b64(SECRET)})
    assert again.json()["version"] == 2
    assert served.call("GET", "/resources/a/b/c", token=operator).json() == again.json()
    content = served.call("GET", "/resources/a/b/c/content", token=owner)
    assert base64.b64decode(content.json()["content"]) == SECRET
    refused(served.call("GET", "/resources/a/b/c/content", token=operator), 403, "trust.access.forbidden")
    assert served.call("DELETE", "/resources/a/b/c", token=owner).json() == {"subject": "a/b/c"}
    refused(served.call("GET", "/resources/a/b/c", token=owner), 404, "trust.resource.missing")


def test_resources_come_in_pages(served: AdminWorld) -> None:
    for tag in "abc":
        served.office().resources.put(replace_tag(tag), b"x")
    first = served.call("GET", "/resources", limit=3).json()
    assert [item["path"] for item in first["resources"]] == ["a/b/a", "a/b/b", "a/b/c"] and first["next"] == "a/b/c"
    rest = served.call("GET", "/resources", limit=3, after=first["next"]).json()
    assert [item["path"] for item in rest["resources"]] == [str(MODEL)] and rest["next"] == ""


def replace_tag(tag: str) -> Any:
    from cloister.protocol.resourceuri import parse_resource_path

    return parse_resource_path(f"a/b/{tag}")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"content": ""}, "trust.resource.size"),
        ({"content": "YQ"}, "wire.base64.malformed"),
        ({"content": "YR=="}, "wire.base64.malformed"),
        ({"content": "YQ==", "more": 1}, "trust.request.malformed"),
        ({}, "trust.request.malformed"),
        ([], "trust.request.malformed"),
    ],
)
def test_what_is_no_content_is_refused(served: AdminWorld, body: Any, code: str) -> None:
    refused(served.call("PUT", "/resources/a/b/c", body=body), 400, code)


def test_a_resource_replaces_the_version_that_was_read_and_no_other(served: AdminWorld) -> None:
    place, body = "/resources/a/b/once", {"content": b64(SECRET), "replaces": 0}
    assert served.call("PUT", place, body=body).json()["version"] == 1
    refused(served.call("PUT", place, body=body), 409, "trust.resource.conflict")
    assert served.call("PUT", place, body={**body, "replaces": 1}).json()["version"] == 2
    refused(served.call("PUT", place, body={**body, "replaces": 1}), 409, "trust.resource.conflict")
    assert served.call("PUT", place, body={"content": b64(SECRET)}).json()["version"] == 3


def test_bodies_are_bounded(served: AdminWorld) -> None:
    answer = served.call("PUT", "/resources/a/b/c", body={"content": "A" * (17 * 1024 * 1024)})
    assert answer.status_code == 413 and answer.json()["code"] == "trust.request.too_long"


# Appraisal policies and release rules


def test_policies_have_versions_that_only_grow(served: AdminWorld) -> None:
    path = "/appraisal-policies/default"
    old = served.call("GET", path).json()
    assert (old["version"], old["text"].encode()) == (1, APPRAISAL)
    strict = '{"version":1,"id":"default","tees":["snp"]}'
    assert served.call("PUT", path, body={"text": strict, "replaces": 1}).json()["version"] == 2
    refused(served.call("PUT", path, body={"text": strict + " ", "replaces": 1}), 409, "trust.policy.conflict")
    refused(served.call("PUT", path, body={"text": "{}"}), 400, "rats.policy.malformed")
    refused(served.call("PUT", "/appraisal-policies/other", body={"text": strict}), 400, "trust.policy.name")
    back = served.call("POST", f"{path}/rollback", body={"version": 1, "replaces": 2}).json()
    assert (back["version"], back["text"]) == (3, old["text"])
    refused(served.call("POST", f"{path}/rollback", body={"version": 9}), 404, "trust.policy.missing")
    history = served.call("GET", f"{path}/history").json()["policies"]
    assert [item["version"] for item in history] == [3, 2, 1]
    refused(served.call("GET", "/appraisal-policies/none/history"), 404, "trust.policy.missing")


def test_release_rules_have_versions_per_prefix(served: AdminWorld) -> None:
    path = "/release-rules/shop/model/*"
    body = {"text": "insecure_any_init_data = true\n"}
    assert served.call("PUT", path, body=body).json()["applied"]["version"] == 1
    assert (
        served.call("PUT", path, body={"text": "lease_seconds = 60\n", "replaces": 1}).json()["applied"]["version"] == 2
    )
    refused(served.call("PUT", path, body={**body, "replaces": 1}), 409, "trust.policy.conflict")
    refused(served.call("PUT", path, body={"text": "leese_seconds = 60"}), 400, "trust.release_policy.malformed")
    refused(served.call("PUT", "/release-rules/*/model/x", body=body), 400, "trust.release_policy.malformed")
    back = served.call("POST", f"{path}/rollback", body={"version": 1}).json()["applied"]
    assert (back["version"], back["text"]) == (3, body["text"])
    refused(served.call("DELETE", path, replaces=2), 409, "trust.policy.conflict")
    gone = served.call("DELETE", path, replaces=3).json()["applied"]
    assert (gone["version"], gone["text"]) == (4, "")
    refused(served.call("GET", path), 404, "trust.policy.missing")
    refused(served.call("DELETE", path), 404, "trust.policy.missing")
    assert [item["version"] for item in served.call("GET", f"{path}/history").json()["policies"]] == [4, 3, 2, 1]
    everything = served.call("PUT", "/release-rules/*/*/*", body=body).json()["applied"]
    assert everything["name"] == "*"
    assert {item["name"] for item in served.call("GET", "/release-rules").json()["policies"]} >= {"*"}


def test_a_pod_revoked_over_the_network_gets_nothing_more() -> None:
    with quick_directory() as directory, admin_world(directory / "world") as made:
        guest, digest = made.world.guest().handshake(), made.world.data.digest_text
        assert guest.resource().status == 200
        body = {"init_data": digest}
        for role in ("auditor", "operator", "publisher", "approver"):
            refused(made.call("POST", "/revocations", token=made.token(role), body=body), 403, "trust.access.forbidden")
        refused(made.call("POST", "/revocations", body={"init_data": "sha256:short"}), 400, "trust.request.malformed")
        assert guest.resource().status == 200
        assert made.call("POST", "/revocations", body=body).json() == {"subject": digest}
        assert guest.resource().status == 403
        assert made.world.admin.list_audit()[-1].code == "trust.release.revoked"


def test_a_rule_set_over_the_network_decides_about_the_next_guest(served: AdminWorld) -> None:
    guest = served.world.guest().handshake()
    assert guest.resource().status == 200
    served.call("PUT", f"/release-rules/{MODEL}", body={"text": 'tees = ["snp"]\n'})
    assert guest.resource().status == 403
    served.call("DELETE", f"/release-rules/{MODEL}")
    assert guest.resource().status == 200


# Reference values


def entry(identity: str = "one", **changes: Any) -> ReferenceEntry:
    made = ReferenceEntry(
        id=identity, tee="tpm", registers={"pcr00": bytes(32)}, not_after=NOW + timedelta(days=9), origin="here"
    )
    return replace(made, **changes)


def signed(signer: ECDSAP256Signer, *, version: int = 1, entries: tuple[ReferenceEntry, ...] = ()) -> str:
    values = ReferenceSet(
        id="podvm/tpm",
        version=version,
        issued_at=NOW - timedelta(days=1),
        not_after=NOW + timedelta(days=10),
        entries=entries or (entry(),),
    )
    return sign_reference_set(values, signer).decode()


def test_a_registered_publishers_set_is_accepted_from_who_may_add_no_other(served: AdminWorld) -> None:
    signer, publisher = ECDSAP256Signer.generate(), served.token("publisher")
    document = {"document": signed(signer)}
    refused(served.call("POST", "/reference-values", token=publisher, body=document), 400, "crypto.dsse.unknown_key")
    pem = signer.public_key.pem().decode()
    refused(
        served.call("PUT", "/publishers", token=publisher, body={"name": "build", "pem": pem}),
        403,
        "trust.access.forbidden",
    )
    key = served.call("PUT", "/publishers", body={"name": "build", "pem": pem}).json()["key_id"]
    added = served.call("POST", "/reference-values", token=publisher, body=document).json()["values"]
    assert [(value["signed"], value["publisher"], value["key_id"]) for value in added] == [(True, "build", key)]
    assert (added[0]["reference_set"], added[0]["set_version"], added[0]["expired"]) == ("podvm/tpm", 1, False)
    served.call("POST", "/reference-values", token=publisher, body={"document": signed(signer, version=2)})
    refused(
        served.call("POST", "/reference-values", token=publisher, body=document), 400, "rats.reference.set.rollback"
    )
    served.call("DELETE", f"/publishers/{key}")
    later = {"document": signed(signer, version=3)}
    refused(served.call("POST", "/reference-values", token=publisher, body=later), 400, "crypto.dsse.unknown_key")
    assert served.call("GET", "/reference-values/entry", id="one").json()["signed"] is True


def test_unsigned_values_need_a_permission_and_are_marked(served: AdminWorld) -> None:
    document = {"document": encode_reference_entry(entry()).decode()}
    for role in ("publisher", "operator"):
        refused(
            served.call("POST", "/reference-values", token=served.token(role), body=document),
            403,
            "trust.access.forbidden",
        )
    assert served.call("POST", "/reference-values", body=document).json()["values"][0]["signed"] is False
    signer = ECDSAP256Signer.generate()
    served.call("PUT", "/publishers", body={"name": "build", "pem": signer.public_key.pem().decode()})
    served.call("POST", "/reference-values", body={"document": signed(signer)})
    assert served.call("GET", "/reference-values/entry", id="one").json()["signed"] is True
    served.call("POST", "/reference-values", body=document)
    assert served.call("GET", "/reference-values/entry", id="one").json()["signed"] is False
    served.call("DELETE", "/reference-values/entry", id="one")
    history = served.call("GET", "/reference-values/history", id="one").json()["events"]
    assert [event["change"] for event in history] == ["deleted", "replaced", "replaced", "added"]
    assert [bool(event["key_id"]) for event in history] == [False, False, True, False]
    refused(served.call("GET", "/reference-values/entry", id="one"), 404, "trust.reference.missing")


def test_an_expired_value_is_not_registered_and_one_that_expires_is_told(served: AdminWorld) -> None:
    late = encode_reference_entry(entry(not_after=NOW)).decode()
    refused(served.call("POST", "/reference-values", body={"document": late}), 400, "trust.refvalues.expired")
    served.call("POST", "/reference-values", body={"document": encode_reference_entry(entry()).decode()})
    served.world.clock.advance(days=20)
    assert served.call("GET", "/reference-values/entry", id="one").json()["expired"] is True
    assert served.call("GET", "/status").json()["expired_reference_values"] == 1


def test_an_altered_set_changes_nothing(served: AdminWorld) -> None:
    signer = ECDSAP256Signer.generate()
    served.call("PUT", "/publishers", body={"name": "build", "pem": signer.public_key.pem().decode()})
    envelope = json.loads(signed(signer))
    payload = base64.b64decode(envelope["payload"]).replace(b'"one"', b'"two"')
    envelope["payload"] = b64(payload)
    answer = served.call("POST", "/reference-values", body={"document": json.dumps(envelope)})
    refused(answer, 400, "crypto.dsse.bad_signature")
    assert {value["entry"]["id"] for value in served.call("GET", "/reference-values").json()["values"]} == {"podvm"}


def test_a_proposal_from_evidence_is_a_file_and_nothing_else(served: AdminWorld) -> None:
    served.world.guest().handshake().resource()
    attestation = served.call("GET", "/audit").json()["rows"][0]["attestation"]
    before = served.call("GET", "/reference-values").json()
    made = served.call("POST", "/reference-values/proposal", body={"attestation": attestation, "days": 30}).json()
    assert served.call("GET", "/reference-values").json() == before
    values = parse_reference_set(made["document"].encode())
    [observed] = values.entries
    assert "pcr08" not in observed.registers and "pcr00" in observed.registers and attestation in observed.origin
    refused(
        served.call("POST", "/reference-values/proposal", body={"attestation": "a-none"}), 404, "trust.evidence.missing"
    )
    signer = ECDSAP256Signer.generate()
    served.call("PUT", "/publishers", body={"name": "me", "pem": signer.public_key.pem().decode()})
    answer = served.call("POST", "/reference-values", body={"document": sign_reference_set(values, signer).decode()})
    assert answer.json()["values"][0]["signed"] is True


# Roots, tenants, tokens, keys


def test_roots(served: AdminWorld) -> None:
    body = {"tee": "snp", "level": "hardware", "name": "vendor", "der": b64(b"0123456789")}
    identity = served.call("POST", "/roots", body=body).json()["id"]
    assert identity in {root["id"] for root in served.call("GET", "/roots").json()["roots"]}
    assert served.call("DELETE", f"/roots/{identity}").status_code == 200
    refused(served.call("DELETE", f"/roots/{identity}"), 404, "trust.root.missing")
    refused(served.call("POST", "/roots", body={**body, "level": "best"}), 400, "trust.request.malformed")


def test_tenants_are_made_once_and_can_be_disabled(served: AdminWorld) -> None:
    refused(served.call("POST", "/tenants", body={"id": OTHER}), 409, "trust.tenant.exists")
    refused(served.call("POST", "/tenants", body={"id": "default"}), 409, "trust.tenant.exists")
    refused(served.call("POST", "/tenants", body={"id": "Not"}), 400, "trust.request.malformed")
    assert served.call("POST", f"/tenants/{OTHER}/disable").json()["disabled"] is True
    assert served.call("POST", f"/tenants/{OTHER}/enable").json()["disabled"] is False
    refused(served.call("POST", "/tenants/default/disable"), 409, "trust.tenant.default")
    refused(served.call("POST", "/tenants/none/disable"), 404, "trust.tenant.missing")
    assert [item["id"] for item in served.call("GET", "/tenants").json()["tenants"]] == ["default", OTHER]


def test_what_one_tenant_has_no_other_has(served: AdminWorld) -> None:
    served.call("PUT", "/resources/a/b/c", tenant=OTHER, body={"content": b64(SECRET)})
    served.call("PUT", "/release-rules/a/b/*", tenant=OTHER, body={"text": "insecure_any_init_data = true"})
    refused(served.call("GET", "/resources/a/b/c"), 404, "trust.resource.missing")
    refused(served.call("GET", "/release-rules/a/b/*"), 404, "trust.policy.missing")
    refused(served.call("GET", f"/resources/{MODEL}", tenant=OTHER), 404, "trust.resource.missing")


def test_nobody_gives_more_than_they_have(served: AdminWorld) -> None:
    owner, body = served.token("owner"), {"name": "mine", "role": "owner"}
    made = served.call("POST", "/tokens", token=owner, body=body).json()
    assert is_token(made["text"]) and made["token"]["tenant"] == "default"
    for changes in ({"role": "root"}, {"all_tenants": True}):
        answer = served.call("POST", "/tokens", token=owner, body={**body, "name": "more", **changes})
        refused(answer, 403, "trust.access.escalation")
    refused(served.call("POST", "/tokens", token=owner, body=body), 409, "trust.access.name_taken")
    assert (
        served.call("POST", "/tokens", body={"name": "all", "role": "auditor", "all_tenants": True}).json()["token"][
            "tenant"
        ]
        is None
    )
    refused(served.call("POST", "/tokens", token=served.token("auditor"), body=body), 403, "trust.access.forbidden")


def test_a_tenants_owner_ends_no_token_of_the_service(served: AdminWorld) -> None:
    first = next(token for token in served.call("GET", "/tokens").json()["tokens"] if token["name"] == "first")
    owner = served.token("owner")
    assert first["id"] not in {token["id"] for token in served.call("GET", "/tokens", token=owner).json()["tokens"]}
    refused(served.call("DELETE", f"/tokens/{first['id']}", token=owner), 404, "trust.access.token_missing")
    assert served.call("GET", "/status").status_code == 200


def test_keys_are_listed_and_rotated_without_a_restart(served: AdminWorld) -> None:
    before = {key["id"]: key for key in served.call("GET", "/keys").json()["keys"]}
    assert {"root", "data", "token"} <= {key["purpose"] for key in before.values()}
    made = served.call("POST", "/keys/data/rotate", body={}).json()
    assert made["id"] not in before
    assert served.world.guest().handshake().resource().status == 200
    refused(served.call("POST", "/keys/ca/rotate", body={}), 400, "trust.request.malformed")
    refused(served.call("POST", "/keys/data/rotate", body={"revoke": True}), 400, "trust.request.malformed")
    refused(
        served.call("POST", "/keys/data/rotate", token=served.token("owner"), body={}), 403, "trust.access.forbidden"
    )


# Records


def test_every_call_leaves_a_row_and_no_secret(served: AdminWorld) -> None:
    owner = served.token("owner")
    served.call("PUT", "/resources/a/b/c", token=owner, body={"content": b64(SECRET)})
    served.call("GET", "/resources/a/b/c/content", token=owner)
    served.call(
        "PUT", "/appraisal-policies/default", token=owner, body={"text": APPRAISAL.decode() + " ", "replaces": 7}
    )
    calls = served.call("GET", "/calls", limit=1000).json()["calls"]
    mine = [(call["action"], call["subject"], call["code"]) for call in calls if call["name"] == "owner-of-default"]
    assert mine == [
        ("resource:write", "a/b/c", "ok"),
        ("secret:read", "a/b/c", "ok"),
        ("policy:write", "appraisal default", "trust.policy.conflict"),
    ]
    assert SECRET not in all_bytes(served.world.state)
    page = served.call("GET", "/calls", limit=2).json()
    rest = served.call("GET", "/calls", limit=1000, after=page["next"]).json()["calls"]
    assert rest[0]["sequence"] == page["next"] + 1


def test_audit_and_denials_are_filtered_and_paged(served: AdminWorld) -> None:
    guest = served.world.guest().handshake()
    assert guest.resource().status == 200 and guest.resource("default/other/one").status == 404
    rows = served.call("GET", "/audit").json()["rows"]
    assert [row["decision"] for row in rows] == ["released", "denied"]
    for words, expected in (
        ({"decision": "denied"}, [rows[1]]),
        ({"resource": str(MODEL)}, [rows[0]]),
        ({"resource": "default/*"}, rows),
        ({"resource": "default%"}, []),
        ({"init_data": rows[0]["init_data"]}, rows),
        ({"code": "trust.released"}, [rows[0]]),
        ({"level": "hardware"}, []),
        ({"since": "2040-01-01T00:00:00Z"}, []),
        ({"until": "2040-01-01T00:00:00Z"}, rows),
        ({"after": 1}, [rows[1]]),
        ({"limit": 1}, [rows[0]]),
    ):
        assert served.call("GET", "/audit", **words).json()["rows"] == expected, words
    assert served.call("GET", "/audit", after=2).json() == {"rows": [], "next": 2}
    refused(served.call("GET", "/audit", since="2040-01-01T00:00:00"), 400, "trust.request.malformed")
    [denial] = served.call("GET", "/denials", stage="resource").json()["denials"]
    record = served.call("GET", f"/denials/{denial['id']}").json()
    assert record["resource"] == "default/other/one" and record["findings"]
    evidence = served.call("GET", f"/evidence/{rows[0]['attestation']}").json()
    assert evidence["init_data"] == rows[0]["init_data"] and evidence["evidence"]


class Recording:
    """A release log that keeps what it is told, and can fail."""

    def __init__(self) -> None:
        self.events: list[LogEvent] = []
        self.fails = False

    def append(self, connection: Connection, event: LogEvent) -> object:
        assert connection.in_transaction()
        if self.fails:
            raise Unavailable("trust.releaselog.planted", "the log must not be written now")
        self.events.append(event)
        return None


def logged(served: AdminWorld) -> tuple[Administration, Recording]:
    log = Recording()
    administration = served.administration
    return replace(administration, parts=replace(administration.parts, events=log)), log


def test_each_change_is_an_entry_of_the_release_log_in_its_transaction(served: AdminWorld) -> None:
    administration, log = logged(served)
    office = administration.office(LOCAL_OWNER, "default", None)
    office.resources.put(MODEL, b"new")
    office.rules.revoke("sha256:" + "0" * 64)
    office.appraisal.put(APPRAISAL + b" ")
    office.tenants.create("third", "")
    office.resources.content(MODEL)
    assert [event.kind for event in log.events] == ["resource", "revocation", "policy", "tenant", "access"]
    assert all(event.fields["name"] == "state directory" for event in log.events)
    assert log.events[2].fields["digest"].startswith("sha256:")
    log.fails = True
    with pytest.raises(Unavailable):
        office.resources.put(MODEL, b"newer")
    with pytest.raises(Unavailable):
        office.resources.content(MODEL)
    log.fails = False
    assert office.resources.content(MODEL) == b"new", "what the log cannot hold was not done"


def test_the_state_directory_and_the_network_are_one_way(served: AdminWorld) -> None:
    """What the owner does on the directory is seen, with its maker, over the network."""
    served.world.admin.put_resource(MODEL, CANARY)
    served.world.admin.add_reference_entries([entry()])
    calls = served.call("GET", "/calls", limit=1000).json()["calls"]
    assert ("local", "resource:write") in {(call["principal"], call["action"]) for call in calls}
    assert served.call("GET", "/reference-values/entry", id="one").json()["signed"] is False


def test_permissions_hold_below_the_routes_too(served: AdminWorld) -> None:
    """Planted: a route that asked for the wrong permission would still be refused where the work is done."""
    auditor = served.administration.access.authenticate(served.token("auditor"))
    office = served.administration.office(auditor, "default", Permission.STATUS_READ)
    with pytest.raises(Refused) as caught:
        office.resources.put(MODEL, b"x")
    assert caught.value.code == "trust.access.forbidden"
    with pytest.raises(Refused):
        served.administration.office(auditor, OTHER, None)


def test_a_service_that_stores_nothing_answers_503(served: AdminWorld) -> None:
    served.world.admin.close()
    answer = served.call("GET", "/status")
    assert answer.status_code == 503 and answer.headers["retry-after"]
    assert answer.headers["content-type"] == "application/problem+json"


def test_names_of_tokens_are_bounded(served: AdminWorld) -> None:
    access: AccessControl = served.administration.access
    for name in ("", "x" * 65, "a b", "-a", "a\n"):
        with pytest.raises(Refused) as caught:
            access.describe("cat_x", name=name, role=Role.AUDITOR, tenant=None, created_by="")
        assert caught.value.code == "trust.access.name"


# What would change


def test_what_a_rule_would_change_is_told_and_nothing_is_changed(served: AdminWorld) -> None:
    guest = served.world.guest().handshake()
    assert guest.resource().status == 200
    served.office().resources.put(MODEL, b"again")
    before = served.call("GET", "/release-rules").json()
    path = f"/release-rules/{MODEL}/dry-run"
    stricter = served.call("POST", path, body={"text": 'tees = ["snp"]\n'}).json()
    [case] = stricter["changes"]
    assert (stricter["tried"], case["was"], case["would"], case["rule"]) == (1, "released", "denied", str(MODEL))
    assert {"trust.release.tees", "trust.release.level"} <= {finding["code"] for finding in case["findings"]}
    digest = served.world.data.digest_text
    same = f'init_data = ["{digest}"]\ninsecure_allow_levels = ["measured"]\n'
    assert served.call("POST", path, body={"text": same}).json() == {"tried": 1, "changes": []}
    served.call("PUT", f"/release-rules/{MODEL}", body={"text": 'tees = ["snp"]\n'})
    assert guest.resource().status == 403
    looser = served.call("POST", path, body={"text": same}).json()
    assert looser["tried"] == 2 and [case["would"] for case in looser["changes"]] == ["released"]
    elsewhere = served.call("POST", "/release-rules/other/*/*/dry-run", body={"text": same}).json()
    assert elsewhere == {"tried": 0, "changes": []}
    refused(served.call("POST", path, body={"text": "nonsense = 1"}), 400, "trust.release_policy.malformed")
    assert [item["name"] for item in before["policies"]] == ["default/model/*"]
