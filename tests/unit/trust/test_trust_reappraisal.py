"""Kept evidence judged again, on fakes of real hardware: what fails tomorrow, and everything else unchanged."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import update

from cloister.cli.reappraise import parse_moment
from cloister.rats.evidence import Evidence
from cloister.rats.policy import parse_appraisal_policy
from cloister.rats.reference import ReferenceEntry
from cloister.tee.registry import claims_reader_for
from cloister.trust.store.evidence import EvidenceStore, StoredEvidence, seal_binding
from cloister.trust.store.records import appraisal_row, store_appraisal
from cloister.trust.store.schema import evidence
from cloister.trust.verifier.collateral import CollateralSource
from cloister.trust.verifier.reappraisal import Candidate, Outcome, newest_of_each, reappraise
from cloister.trust.verifier.survey import Survey, Surveyed, Wanted
from evidence_world import GPUs, Site, snp_machine, tdx_machine
from trust_world import Factory, World, quick_directory, rule


@pytest.fixture
def site() -> Iterator[Site]:
    """A site of one SNP machine whose pod got its model."""
    with quick_directory() as directory:
        made = Site(directory, snp_machine()).fetch()
        guest = made.guest()
        assert guest.attest().status == 200
        guest.open(guest.resource())
        yield made
        made.close()


def survey(site: Site, **changes: object) -> list[Surveyed]:
    wanted = Wanted(**{"source": CollateralSource(site.state), "at": site.clock.now, **changes})  # type: ignore[arg-type]  # the test's own words
    return list(Survey(site.service.store, site.service.keys.ring, policy_id="default").run(wanted))


def policy(**changes: object) -> object:
    return parse_appraisal_policy(json.dumps({"version": 1, "id": "tomorrow", "tees": ["snp"], **changes}).encode())


def failing(item: Surveyed) -> list[str]:
    assert item.result.fails
    return [change.code for change in item.result.changes if change.after is not None and not change.after.ok]


def test_under_the_same_inputs_nothing_changes(site: Site) -> None:
    [item] = survey(site)
    assert (item.result.before, item.result.after) == (Outcome.ACCEPTED, Outcome.ACCEPTED)
    assert item.result.changes == () and not item.result.fails
    assert [(row.resource, row.version) for row in item.releases] == [("default/model/one", 1)]
    assert item.lease_until is None


def test_a_raised_minimum_tcb_fails_the_pod_and_says_which_component(site: Site) -> None:
    [item] = survey(site, policy=policy(snp={"minimum_tcb": {"microcode": 255}}))
    assert item.result.after is Outcome.REFUSED
    assert failing(item) == ["appraisal.snp.minimum_tcb"] * 3
    for change, path in zip(item.result.changes, ("REPORTED_TCB", "CURRENT_TCB", "COMMITTED_TCB"), strict=True):
        assert change.before is None and change.after is not None and change.after.path == path
        assert change.after.expected == "at least microcode 255" and "microcode 97" in change.after.actual
    assert survey(site, policy=policy(snp={"minimum_tcb": {"microcode": 97}}))[0].result.changes == ()


def test_reference_values_that_expire_fail_the_pod_from_then_on(site: Site) -> None:
    [before] = survey(site, at=site.machine.at + timedelta(days=300))
    assert before.result.after is Outcome.ACCEPTED
    other = ReferenceEntry(
        id="next",
        tee="snp",
        registers={"measurement": b"\1" * 48},
        not_after=site.machine.at + timedelta(days=9),
        origin="next",
    )
    [replaced] = survey(site, references=(other,))
    assert replaced.result.after is Outcome.REFUSED and replaced.result.fails
    [mine] = site.admin.list_reference_entries()
    soon = replace(mine, not_after=site.machine.at + timedelta(days=1))
    [expired] = survey(site, references=(soon,), at=site.machine.at + timedelta(days=2))
    assert expired.result.after is Outcome.REFUSED
    assert any(code.startswith("appraisal.reference_values") for code in failing(expired))
    assert survey(site, references=(soon,))[0].result.changes == ()


def test_a_new_revocation_list_fails_the_pod(site: Site) -> None:
    assert not survey(site)[0].result.fails
    elsewhere = site.state.parent / "tomorrow"
    (elsewhere).mkdir()
    here = site.cache
    site.cache = type(here)(elsewhere / "collateral")
    site.fetch(revoked=True)
    site.cache = here
    [item] = survey(site, source=CollateralSource(elsewhere))
    assert item.result.after is Outcome.REFUSED and failing(item) == ["tee.sev_snp.revocation.revoked"]
    assert survey(site)[0].result.changes == ()


def test_stale_collateral_leaves_the_verdict_open_and_names_the_remedy(site: Site) -> None:
    [item] = survey(site, at=site.machine.at + site.machine.stale_after)
    assert item.result.after is Outcome.UNDECIDED and item.result.fails
    assert "cloister collateral fetch" in item.result.remedy


def test_a_policy_that_accepts_more_is_no_failure(site: Site) -> None:
    site.set_policy(snp={"minimum_tcb": {"microcode": 255}})
    guest = site.guest()
    assert guest.attest().status == 200
    refused, accepted = Outcome.REFUSED, Outcome.ACCEPTED
    assert [(item.result.before, item.result.after, item.result.fails) for item in survey(site)] == [
        (accepted, refused, True),
        (refused, refused, False),
    ]
    [first, second] = survey(site, policy=policy())
    assert (first.result.after, second.result.after, second.result.fails) == (accepted, accepted, False)
    changes = second.result.changes
    assert changes and all(change.before and not change.before.ok for change in changes)
    assert all(change.after is None or change.after.ok for change in changes)


def test_only_the_pod_below_the_minimum_fails() -> None:
    """Two machines of one owner: the one with older firmware fails, the other is unchanged."""
    with quick_directory() as directory:
        site = Site(directory, snp_machine(), policy={"tees": ["snp", "tdx"]}).fetch()
        assert site.guest().attest().status == 200
        other = tdx_machine()
        site.machine, first = other, site.machine
        for root in other.roots():
            site.admin.add_root(root)
        site.clock.now = max(first.at, other.at)
        site.fetch()
        body = other.evidence(bytes(48), bytes(48))
        value = claims_reader_for("tdx")(Evidence(tee="tdx", body=body)).claims.registers["mrtd"]
        site.admin.add_reference_entries(
            [
                ReferenceEntry(
                    id="tdx",
                    tee="tdx",
                    registers={"mrtd": value},
                    not_after=site.clock.now + timedelta(days=9),
                    origin="t",
                )
            ]
        )
        site.data = (
            site.data
            if other.algorithm == "sha256"
            else type(site.data)(
                text=site.data.text.replace(b"sha256", other.algorithm.encode()),
                algorithm=other.algorithm,
                entries=site.data.entries,
            )
        )
        assert site.guest().attest().status == 200
        tomorrow = policy(tees=["snp", "tdx"], snp={"minimum_tcb": {"microcode": 255}})
        results = {item.result.tee: item.result for item in survey(site, policy=tomorrow)}
        assert results["snp"].fails and not results["tdx"].fails
        assert results["tdx"].changes == () and results["tdx"].after is results["tdx"].before
        site.close()


def test_devices_are_judged_again_with_their_machine() -> None:
    with quick_directory() as directory:
        gpus = GPUs()
        site = Site(directory, snp_machine(), gpus=gpus).fetch()
        guest = site.guest().auth()
        assert guest.attest(additional=gpus.text(guest.device_digest())).status == 200
        [item] = survey(site)
        assert item.result.after is item.result.before and item.result.changes == ()
        [without] = survey(site, policy=policy(tees=["snp"]))
        assert without.result.after is Outcome.REFUSED
        site.close()


# --- what is kept ---


def kept(world: World | Site) -> list[StoredEvidence]:
    return list(EvidenceStore(world.service.store, world.service.keys.ring).list())


def test_tpm_evidence_can_be_judged_again_with_its_activated_credential(new_world: Factory) -> None:
    world = new_world()
    guest = world.guest().handshake()
    guest.open(guest.resource())
    wanted = Wanted(source=CollateralSource(world.state), at=world.clock.now)
    [item] = Survey(world.service.store, world.service.keys.ring, policy_id="default").run(wanted)
    assert item.result.after is Outcome.ACCEPTED and item.result.changes == ()
    assert len(item.releases) == 1


def bent(kept: StoredEvidence, **changes: object) -> StoredEvidence:
    assert kept.binding is not None
    return replace(kept, binding=msgspec.structs.replace(kept.binding, **changes))


def test_the_binding_is_checked_again_and_not_believed(site: Site, new_world: Factory) -> None:
    """Evidence moved to another session, key, pod or credential in the database is refused."""
    world = new_world()
    world.guest().handshake()
    [first] = kept(world)
    runtime = first.binding.runtime_data if first.binding else None
    assert runtime is not None and "Secret" not in repr(first.binding)
    [source] = [CollateralSource(world.state)]
    survey_ = Survey(world.service.store, world.service.keys.ring, policy_id="default")
    candidate: Candidate = survey_._candidate(Wanted(source=source, at=world.clock.now))  # the inputs in force
    bends: Sequence[tuple[dict[str, object], Outcome]] = (
        ({}, Outcome.ACCEPTED),
        ({"runtime_data": msgspec.structs.replace(runtime, nonce="AAAA")}, Outcome.REFUSED),
        ({"runtime_data": msgspec.structs.replace(runtime, tee_pubkey={"kty": "EC"})}, Outcome.REFUSED),
        ({"additional_evidence": "{}"}, Outcome.REFUSED),
        ({"init_data": "sha256:" + "00" * 32}, Outcome.REFUSED),
        ({"session_secret": bytes(32)}, Outcome.REFUSED),
        ({"init_data": "sha256:00"}, Outcome.UNKNOWN),
        ({"init_data": "md5:" + "00" * 16}, Outcome.UNKNOWN),
        ({"init_data": "sha256:" + "zz" * 32}, Outcome.UNKNOWN),
    )
    for changes, outcome in bends:
        result = reappraise(bent(first, **changes), candidate)
        assert (result.after, result.fails) == (outcome, outcome is not Outcome.ACCEPTED), changes
    for damaged in (b"", b"[]", b"{}", b"\xff", b"[" * 100_000):
        assert reappraise(replace(first, body=damaged), candidate).fails


def test_rows_of_older_versions_say_that_they_cannot_be_judged(site: Site) -> None:
    site.service.store.write(lambda connection: connection.execute(update(evidence).values(binding=None)))
    [item] = survey(site)
    assert item.result.after is Outcome.UNKNOWN and failing(item) == ["trust.verifier.reappraisal.not_kept"]


def test_of_a_pod_that_renews_the_newest_result_counts(site: Site) -> None:
    guest = site.guest()
    for _ in range(3):
        guest.cookie = ""
        assert guest.attest().status == 200
    assert site.guest().attest().status == 200
    everything = kept(site)
    newest = newest_of_each(everything)
    assert (len(everything), [item.sequence for item in newest]) == (5, [1, 4, 5])
    guest.open(guest.resource())  # under the newest result; the first got it too
    guest.open(guest.resource())
    found = survey(site)
    assert [item.result.attestation for item in found] == [item.record.id for item in newest]
    assert [[row.resource for row in item.releases] for item in found] == [
        ["default/model/one"],
        ["default/model/one"],
        [],
    ]
    wanted = Wanted(source=CollateralSource(site.state), at=site.clock.now)
    assert (
        len(list(Survey(site.service.store, site.service.keys.ring, policy_id="default").run(wanted, every=True))) == 5
    )


def test_another_tenant_sees_none_of_it_and_leases_are_asked_for(site: Site) -> None:
    wanted = Wanted(
        source=CollateralSource(site.state),
        at=site.clock.now,
        policy=parse_appraisal_policy(b'{"version":1,"id":"a","tees":["snp"]}'),
    )
    assert EvidenceStore(site.service.store, site.service.keys.ring, tenant="other").list() == ()
    end = site.clock.now + timedelta(minutes=5)
    [item] = Survey(
        site.service.store, site.service.keys.ring, policy_id="default", leases=lambda names: dict.fromkeys(names, end)
    ).run(wanted)
    assert item.lease_until == end


def test_a_thousand_results_take_bounded_time_and_report_each(site: Site) -> None:
    [one] = kept(site)
    assert one.binding is not None
    binding = one.binding

    def copies(start: int) -> Callable[..., None]:
        def work(connection) -> None:  # type: ignore[no-untyped-def]  # a job of the store
            for number in range(start, start + 111):
                record = msgspec.structs.replace(one.record, id=f"a-{number:010d}")
                key = {**binding.runtime_data.tee_pubkey, "copy": str(number)}
                runtime = msgspec.structs.replace(binding.runtime_data, tee_pubkey=key)
                sealed = seal_binding(
                    site.service.keys.ring, record.id, msgspec.structs.replace(binding, runtime_data=runtime)
                )
                store_appraisal(connection, appraisal_row(record, one.body, binding=sealed))

        return work

    for start in range(0, 999, 111):
        site.service.store.write(copies(start))
    began = time.monotonic()
    found = survey(site)
    took = time.monotonic() - began
    assert len(found) == 1000
    # Copies have a key of their own, which the evidence does not bind: all of them are verified and refused.
    assert [item.result.after for item in found].count(Outcome.ACCEPTED) == 1
    assert took < 20, took


def test_a_lease_that_runs_is_shown_with_its_end(new_world: Factory) -> None:
    world = new_world()
    world.admin.add_release_rule(rule(world.data, lease_seconds=60))
    guest = world.guest().handshake()
    guest.open(guest.resource())
    wanted = Wanted(source=CollateralSource(world.state), at=world.clock.now)
    [item] = world.admin.survey().run(wanted)
    assert item.lease_until == world.clock.now + timedelta(seconds=60)


@pytest.mark.parametrize(
    ("text", "hours"), [("", 0), ("+7d", 168), ("+2h", 2), ("2026-01-02", None), ("2026-01-01T12:00:00+00:00", None)]
)
def test_moments(text: str, hours: int | None, tmp_path: Path) -> None:
    from cloister.testing.tpm import NOW

    moment = parse_moment(text, now=NOW)
    assert moment.tzinfo is not None
    if hours is not None:
        assert moment == NOW + timedelta(hours=hours)
