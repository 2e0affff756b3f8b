"""The owner's administration, and what the catalogue of settings promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloister.errors import FormatRefused, Refused
from cloister.rats.claims import Level
from cloister.rats.endorsement import TrustedRoot
from cloister.rats.reference import ReferenceEntry, encode_reference_entry, parse_reference_entries
from cloister.testing.tpm import NOW
from cloister.trust.admin import TrustAdmin
from cloister.trust.keybroker.policy import ReleaseRule
from cloister.trust.store import records
from cloister.trust.store.endorsers import root_id
from trust_world import MODEL, World, rule

ENTRY = ReferenceEntry(
    id="one", tee="tpm", registers={"pcr00": bytes(32)}, not_after=NOW + timedelta(days=1), origin="here"
)


def test_a_fresh_directory_is_ready_and_releases_nothing(tmp_path: Path) -> None:
    with TrustAdmin(tmp_path / "new") as admin:
        assert admin.ca_pem().startswith("-----BEGIN CERTIFICATE-----")
        assert (
            admin.list_resources() == admin.list_roots() == admin.list_reference_entries() == admin.list_audit() == ()
        )
        assert admin.release_rules().rules == {} and admin.appraisal_policy() is None


def test_reference_entries(world: World) -> None:
    world.admin.add_reference_entries([ENTRY, replace(ENTRY, id="two")])
    assert [entry.id for entry in world.admin.list_reference_entries()] == ["one", "podvm", "two"]
    world.admin.add_reference_entries([replace(ENTRY, origin="elsewhere")])
    assert world.admin.list_reference_entries()[0].origin == "elsewhere"
    world.admin.remove_reference_entry("one")
    assert [entry.id for entry in world.admin.list_reference_entries()] == ["podvm", "two"]


@pytest.mark.parametrize("entries", [[], [ENTRY, ENTRY]])
def test_no_entries_or_two_of_one_id_are_refused(world: World, entries: list[ReferenceEntry]) -> None:
    with pytest.raises(FormatRefused) as caught:
        world.admin.add_reference_entries(entries)
    assert caught.value.code == "trust.reference.malformed"


def test_reference_files() -> None:
    one = encode_reference_entry(ENTRY)
    assert parse_reference_entries(one) == (ENTRY,)
    assert parse_reference_entries(b"[%s]" % one) == (ENTRY,)


@pytest.mark.parametrize("text", [b"", b"x", b"[", b"[]", b"[1]", b"{}", b"[{}]", b" " * (8 * 1024 * 1024 + 1)])
def test_malformed_reference_files(text: bytes) -> None:
    with pytest.raises(FormatRefused):
        parse_reference_entries(text)


def test_roots(world: World) -> None:
    root = TrustedRoot(tee="snp", level=Level.HARDWARE, name="vendor", der=b"der")
    identity = world.admin.add_root(root)
    assert identity == root_id(root) and root in world.admin.list_roots()
    world.admin.add_root(replace(root, name="renamed"))
    assert [item.name for item in world.admin.list_roots() if item.tee == "snp"] == ["renamed"]
    world.admin.remove_root(identity)
    assert all(item.tee != "snp" for item in world.admin.list_roots())


@pytest.mark.parametrize(
    ("act", "code"),
    [
        (lambda admin: admin.remove_root("tpm:00"), "trust.root.missing"),
        (lambda admin: admin.remove_reference_entry("no"), "trust.reference.missing"),
        (lambda admin: admin.get_denial("d-aaaaaaaaaa"), "trust.denial.missing"),
        (lambda admin: admin.get_denial("' OR 1=1 --"), "trust.denial.missing"),
        (lambda admin: admin.delete_resource(MODEL.__class__("a", "b", "c")), "trust.resource.missing"),
    ],
)
def test_what_is_not_there(world: World, act: Callable[[TrustAdmin], object], code: str) -> None:
    with pytest.raises(Refused) as caught:
        act(world.admin)
    assert caught.value.code == code


def test_appraisal_policies_are_versioned_by_id(world: World) -> None:
    first = world.admin.put_appraisal_policy(b'{"version":1,"id":"x","tees":["tpm"]}')
    second = world.admin.put_appraisal_policy(b'{"version":1,"id":"x","tees":["snp"]}')
    assert (first.version, second.version) == (1, 2)
    stored = world.admin.appraisal_policy("x")
    assert stored == second and world.admin.policy_history("appraisal", "x") == (second, first)
    with pytest.raises(FormatRefused):
        world.admin.put_appraisal_policy(b"{}")


def test_audit_pages(world: World) -> None:
    guest = world.guest().handshake()
    for _ in range(5):
        guest.resource()
    rows = world.admin.list_audit(limit=2)
    assert [row.sequence for row in rows] == [1, 2]
    assert [row.sequence for row in world.admin.list_audit(after=2)] == [3, 4, 5]


def test_ids_are_of_the_promised_shape() -> None:
    seen = {records.new_denial_id() for _ in range(1000)}
    assert len(seen) == 1000
    for identity in seen:
        assert (
            identity[:2] == "d-"
            and len(identity) == 12
            and set(identity[2:]) <= set("abcdefghijklmnopqrstuvwxyz234567")
        )


def test_denials_are_bounded_and_releases_are_not(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "DENIALS_KEPT", 3)  # the ceiling, not the behaviour, is set by the test
    guest = world.guest().handshake()
    guest.resource()
    denials = [guest.resource(f"no/such/x{index}").denial for index in range(5)]
    rows = world.admin.list_audit()
    assert [row.decision for row in rows] == ["released", "denied", "denied", "denied"]
    assert [row.denial for row in rows[1:]] == denials[2:]
    with pytest.raises(Refused):
        world.admin.get_denial(denials[0])


def test_evidence_is_bounded_and_denials_outlive_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = world.guest(launch=b"x").handshake()
    denial = guest.resource().denial
    assert len(world.admin.get_denial(denial).findings) > 3
    monkeypatch.setattr(records, "EVIDENCE_KEPT", 1)
    world.guest().handshake()
    record = world.admin.get_denial(denial)
    assert record.attestation and [finding.code for finding in record.findings if not finding.ok] == [
        "trust.release.tier"
    ]


def test_a_record_can_be_written_as_json(world: World) -> None:
    answer = world.guest(launch=b"x").handshake().resource()
    record = world.admin.get_denial(answer.denial)
    assert msgspec.json.decode(msgspec.json.encode(record), type=records.DenialRecord) == record


def test_two_admins_and_a_service_agree(world: World) -> None:
    with TrustAdmin(world.state, clock=world.clock) as other:
        other.add_release_rule(rule(world.data, "a/b/c"))
    assert set(world.admin.release_rules().rules) == {"a/b/c", "default/model/*"}


def test_approving_at_other_levels_does_not_change_them_for_others(world: World) -> None:
    first, second = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    world.admin.approve(first, [MODEL])
    with pytest.raises(Refused) as caught:
        world.admin.approve(second, [MODEL], insecure_accept_levels=[Level.MEASURED])
    assert caught.value.code == "trust.release_policy.levels_differ"
    world.admin.forget(first)
    world.admin.approve(second, [MODEL], insecure_accept_levels=[Level.MEASURED])


@pytest.mark.parametrize("asks", [{"witnesses": 2}, {}])
def test_what_a_rule_asks_for_outlives_its_pods(world: World, asks: dict[str, Any]) -> None:
    pod = "sha256:" + "1" * 64
    world.admin.add_release_rule(ReleaseRule(prefix=str(MODEL), **asks))
    world.admin.approve(pod, [MODEL])
    approved = world.admin.release_rules().rules[str(MODEL)]
    assert approved.init_data == (pod,)
    world.admin.forget(pod)
    left = world.admin.release_rules().rules.get(str(MODEL))
    if not asks:
        assert left is None
    else:
        assert left is not None and left.init_data == ()
        assert {name: getattr(left, name) for name in asks} == asks


def test_revoking_never_runs_out_of_room(world: World) -> None:
    for number in range(70):
        digest = f"sha256:{number:064x}"
        world.admin.approve(digest, [MODEL])
        world.admin.revoke(digest)
    rules = world.admin.release_rules()
    rule = rules.rules[str(MODEL)]
    assert len(rules.revoked) == 70 and len(rule.revoked) == 64 and digest in rule.revoked
