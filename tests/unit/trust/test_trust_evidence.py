"""Every hardware technology over the key broker's routes: what is released, and what is refused for its own reason."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from cloister.crypto.jwe import EphemeralKey
from cloister.protocol.initdata import build_initdata
from cloister.rats.claims import Level
from cloister.tee.collateral.item import Kind, parse_item
from cloister.testing import cca
from cloister.trust.service import TrustService
from cloister.trust.settings import TrustSettings
from cloister.trust.store.endorsers import root_id
from evidence_world import (
    Machine,
    Site,
    azure_machine,
    cca_machine,
    nitro_machine,
    refusal,
    snp_machine,
    tdx_machine,
)
from trust_world import CANARY, b64

Open = Callable[..., Site]
ALL = ("snp", "tdx", "az-snp-vtpm", "cca", "nitro")
WITH_COLLATERAL = ("snp", "tdx", "az-snp-vtpm")


@pytest.fixture(scope="module")
def ak() -> rsa.RSAPrivateKey:
    """One key for all virtual TPMs of clouds."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="module")
def machines(ak: rsa.RSAPrivateKey) -> dict[str, Machine]:
    """One machine of each technology."""
    made = [snp_machine(), tdx_machine(), azure_machine(ak), cca_machine(), nitro_machine()]
    return {machine.tee: machine for machine in made}


@pytest.fixture
def open_site(quick: Path, machines: dict[str, Machine]) -> Iterator[Open]:
    """Open sites; `machine` is a technology's name, or a machine."""
    sites: list[Site] = []

    def make(machine: str | Machine, **options: Any) -> Site:
        chosen = machines[machine] if isinstance(machine, str) else machine
        sites.append(Site(quick / f"site{len(sites)}", chosen, **options))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


@pytest.mark.parametrize("tee", ALL)
class TestEveryTechnology:
    def test_a_good_guest_gets_its_resource(self, open_site: Open, tee: str) -> None:
        guest = open_site(tee).fetch().guest()
        assert guest.attest().status == 200
        assert guest.open(guest.resource()) == CANARY

    def test_evidence_of_another_nonce(self, open_site: Open, tee: str) -> None:
        assert refusal(open_site(tee).fetch().guest().attest(nonce=b64(bytes(32))), 403) == "evidence.freshness"

    def test_evidence_of_another_key(self, open_site: Open, tee: str) -> None:
        answer = open_site(tee).fetch().guest().attest(key=EphemeralKey.generate())
        assert refusal(answer, 403) == "evidence.freshness"

    def test_evidence_of_other_init_data(self, open_site: Open, tee: str) -> None:
        site = open_site(tee).fetch()
        other = build_initdata({"pod-policy.json": '{"other":1}'}, algorithm=site.machine.algorithm)
        assert refusal(site.guest().attest(data=other), 403) == "evidence.init_data"
        assert refusal(site.guest().attest(digest=other.digest), 403) == "evidence.init_data"

    def test_a_debug_guest(self, open_site: Open, tee: str) -> None:
        guest = open_site(tee).fetch().guest(debug=True)
        assert guest.attest().status == 200, "its token says that it is not acceptable"
        assert refusal(guest.resource(), 403) == "appraisal.debug"

    def test_an_unknown_measurement(self, open_site: Open, tee: str) -> None:
        site = open_site(tee).fetch()
        site.trust_measurement(bytes(48))
        guest = site.guest()
        assert guest.attest().status == 200
        register = site.machine.register
        assert refusal(guest.resource(), 403) == f"appraisal.reference_values.{register}"

    def test_no_reference_values_at_all(self, open_site: Open, tee: str) -> None:
        site = open_site(tee).fetch()
        site.admin.remove_reference_entry("image")
        guest = site.guest()
        assert guest.attest().status == 200
        assert refusal(guest.resource(), 403) == "appraisal.reference_values.empty"

    def test_a_root_that_the_owner_removed(self, open_site: Open, tee: str) -> None:
        site = open_site(tee).fetch()
        assert site.guest().attest().status == 200
        [root] = site.admin.list_roots()
        site.admin.remove_root(root_id(root))
        assert refusal(site.guest().attest(), 403).startswith("tee.")

    def test_a_technology_the_policy_does_not_accept(self, open_site: Open, tee: str) -> None:
        site = open_site(tee).fetch()
        site.set_policy(tees=["tpm"])
        guest = site.guest()
        assert guest.attest().status == 200
        assert refusal(guest.resource(), 403) == "appraisal.technology"

    def test_a_root_of_a_lower_level_is_refused_twice(self, open_site: Open, tee: str) -> None:
        """By the appraisal policy, and where that accepts it, by the release rule."""
        site = open_site(tee, level=Level.MEASURED).fetch()
        guest = site.guest()
        assert guest.attest().status == 200
        assert refusal(guest.resource(), 403) == "appraisal.level"
        site.set_policy(insecure_accept_levels=["measured"])
        guest = site.guest()
        assert guest.attest().status == 200
        assert refusal(guest.resource(), 403) == "trust.release.level"

    def test_a_lower_level_that_both_accept(self, open_site: Open, tee: str) -> None:
        policy = {"insecure_accept_levels": ["measured"]}
        site = open_site(tee, level=Level.MEASURED, policy=policy, accepted=(Level.MEASURED,)).fetch()
        guest = site.guest()
        guest.attest()
        assert guest.open(guest.resource()) == CANARY


@pytest.mark.parametrize("tee", WITH_COLLATERAL)
class TestCollateral:
    def test_a_revoked_platform(self, open_site: Open, tee: str) -> None:
        site = open_site(tee).fetch(revoked=True)
        assert refusal(site.guest().attest(), 403) == site.machine.revoked

    def test_what_is_missing_is_named_and_once_fetched_used(self, open_site: Open, tee: str) -> None:
        site = open_site(tee)
        answer = site.guest().attest()
        refusal(answer, 503)
        body = json.loads(answer.body)
        record = site.admin.get_denial(body["denial-id"])
        assert (record.code, record.stage, record.tee) == (body["code"], "attest", tee)
        words = shlex.split(record.hint)
        assert words[:4] == [f"CLOISTER_CACHE={site.state}", "cloister", "collateral", "fetch"]
        named = {parse_item(word) for word in words[5::2]}
        assert named and set(words[4::2]) == {"--item"}
        assert "--item" not in answer.body.decode(), "the command is the owner's, not the guest's"
        site.fetch()
        assert {entry.item for entry in site.kept()} == named
        assert site.guest().attest().status == 200, "without a restart"

    def test_what_is_removed_is_missed(self, open_site: Open, tee: str) -> None:
        site = open_site(tee).fetch()
        assert site.guest().attest().status == 200
        kinds = (Kind.AMD_CRL, Kind.TCB_INFO)
        [item] = [entry.item for entry in site.kept() if entry.item.kind in kinds]
        site.cache.remove(item)
        refusal(site.guest().attest(), 503)

    def test_what_is_stale_is_not_enough(self, open_site: Open, tee: str) -> None:
        site = open_site(tee).fetch()
        site.clock.now += site.machine.stale_after
        answer = site.guest().attest()
        refusal(answer, 503)
        record = site.admin.get_denial(json.loads(answer.body)["denial-id"])
        assert "cloister collateral fetch --item" in record.hint
        assert any(finding.severity == "unavailable" for finding in record.findings)

    def test_a_grace_of_the_policy_is_kept(self, open_site: Open, tee: str) -> None:
        site = open_site(tee, policy={"collateral_grace_seconds": 10 * 86400}).fetch()
        site.clock.now += site.machine.stale_after
        site.clock.advance(days=9)
        guest = site.guest()
        guest.attest()
        assert guest.open(guest.resource()) == CANARY
        site.clock.advance(days=2)
        refusal(site.guest().attest(), 503)

    def test_a_damaged_file_is_missing(self, open_site: Open, tee: str) -> None:
        site = open_site(tee).fetch()
        for path in site.cache.directory.glob("*/*"):
            if len(path.name) == 64:
                path.write_bytes(b"nonsense")
        refusal(site.guest().attest(), 503)

    def test_a_definite_fault_wins_over_what_is_not_known(self, open_site: Open, tee: str) -> None:
        """Asking again would not help: the guest is told the fault, not "later"."""
        site = open_site(tee).fetch()
        site.clock.now += site.machine.stale_after
        guest = site.guest(debug=True)
        assert guest.attest().status == 200
        assert refusal(guest.resource(), 403) == "appraisal.debug"
        assert refusal(site.guest(debug=True).attest(nonce=b64(bytes(32))), 403) == "evidence.freshness"


def test_the_setting_names_another_directory(open_site: Open, quick: Path) -> None:
    site = open_site("snp").fetch()
    elsewhere = quick / "with a blank"
    site.service.close()
    site.service = TrustService(TrustSettings(state=site.state, collateral=elsewhere), clock=site.clock)
    answer = site.guest().attest()
    assert refusal(answer, 503) == "tee.sev_snp.vek.untrusted"
    record = site.admin.get_denial(json.loads(answer.body)["denial-id"])
    assert shlex.split(record.hint)[0] == f"CLOISTER_CACHE={elsewhere}"


def test_a_vcek_that_comes_with_no_evidence_is_had_from_the_cache(open_site: Open) -> None:
    machine = snp_machine("Genoa")
    whole = machine.evidence
    machine.evidence = lambda *arguments, **faults: {
        "attestation_report": whole(*arguments, **faults)["attestation_report"]
    }
    site = open_site(machine)
    site.set_policy(acknowledged_advisories=["CVE-2024-21944"])
    assert refusal(site.guest().attest(), 503) == "tee.sev_snp.no_vek"
    site.fetch()
    assert site.guest().attest().status == 200


def test_a_critical_advisory_refuses_until_the_owner_acknowledges_it(open_site: Open) -> None:
    site = open_site(snp_machine("Milan")).fetch()
    guest = site.guest()
    assert guest.attest().status == 200
    assert refusal(guest.resource(), 403) == "appraisal.advisory"
    body = json.loads(guest.resource().body)
    findings = site.admin.get_denial(body["denial-id"]).findings
    critical = [finding for finding in findings if finding.code == "appraisal.advisory" and finding.refuses]
    assert critical
    site.set_policy(acknowledged_advisories=sorted({finding.message.split()[0] for finding in critical}))
    guest = site.guest()
    guest.attest()
    assert guest.open(guest.resource()) == CANARY


def test_a_document_of_an_enclave_that_is_too_old(open_site: Open) -> None:
    guest = open_site("nitro").guest(age=timedelta(hours=4))
    guest.attest()
    assert refusal(guest.resource(), 403) == "appraisal.nitro.age"


def test_evidence_of_another_technology_than_announced(open_site: Open) -> None:
    site = open_site("nitro")
    site.machine = replace(site.machine, evidence=snp_machine().evidence)
    guest = site.guest()
    assert refusal(guest.attest(), 400) == "tee.nitro.malformed"


def test_evidence_that_says_nothing_of_its_needs_is_judged_by_the_verifier(open_site: Open) -> None:
    machine = snp_machine()
    machine.evidence = lambda *arguments, **faults: {"attestation_report": "AA=="}
    site = open_site("snp")
    site.machine = machine
    assert refusal(site.guest().attest(), 400).startswith("tee.sev_snp.")


def test_a_key_that_speaks_for_one_device_speaks_for_no_other(open_site: Open) -> None:
    """The store keeps which device a raw key is of; it would speak for any, if it did not."""
    site = open_site("cca")
    [root] = site.admin.list_roots()
    assert root.instance == cca.INSTANCE_ID.hex()
    assert site.guest().attest().status == 200
    site.admin.add_root(replace(root, instance="00" * 33))
    assert refusal(site.guest().attest(), 403).startswith("tee.cca.")


def test_a_technology_that_cannot_be_verified_says_so(open_site: Open) -> None:
    texts = {"measurement": 64, "additional_data": 32, "user_data": 48, "cuid": 16}
    body = {name: b64(bytes(size)) for name, size in texts.items()}
    site = open_site("nitro")
    site.machine = replace(site.machine, tee="se", evidence=lambda *_, **__: body)
    answer = site.guest().attest()
    assert refusal(answer, 503) == "tee.ibm_se.cannot_verify"
    assert site.admin.get_denial(json.loads(answer.body)["denial-id"]).hint.startswith("verify it with")
