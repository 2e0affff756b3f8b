"""Composite evidence: a CPU and its GPUs, each a submodule, judged alone and together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509.ocsp import OCSPCertStatus

from cloister.crypto.jwt import TOKEN_BYTES
from cloister.rats.claims import Level
from cloister.rats.reference import ReferenceEntry
from cloister.tee.collateral.collector import checked_entry
from cloister.tee.collateral.item import Kind
from cloister.tee.collateral.nvidia import ocsp_item
from cloister.testing import nvidia
from cloister.wire.base64 import decode_b64url
from evidence_world import EvidenceGuest, GPUs, Machine, Site, refusal, snp_machine
from trust_world import CANARY, report_data

Open = Callable[..., Site]
Submodules = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def machine() -> Machine:
    """One SNP machine."""
    return snp_machine()


@pytest.fixture
def open_site(quick: Path, machine: Machine) -> Iterator[Open]:
    """Open sites with GPUs: two, unless some are given."""
    sites: list[Site] = []

    def make(gpus: GPUs | None = None, **options: Any) -> Site:
        sites.append(Site(quick / f"site{len(sites)}", machine, gpus=gpus or GPUs(), **options))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


def gpus_of(site: Site) -> GPUs:
    assert site.gpus is not None
    return site.gpus


def attested(site: Site, faults: dict[int, nvidia.ReportFaults] | None = None) -> EvidenceGuest:
    """Return a guest that got a token with its devices."""
    guest = site.guest().auth()
    answer = guest.attest(additional=gpus_of(site).text(guest.device_digest(), faults))
    assert answer.status == 200, json.loads(answer.body)["detail"]
    return guest


def submodules(guest: EvidenceGuest) -> Submodules:
    payload = decode_b64url(guest.token.split(".")[1], path="token", ceiling=TOKEN_BYTES)
    found: Submodules = json.loads(payload)["submods"]
    return found


def server(count: int = 2, switches: int = 1) -> GPUs:
    """Return GPUs and switches that are wired to each other."""
    pki = nvidia.DevicePKI()
    gpus = [pki.device() for _ in range(count)]
    found = [pki.device(nvidia.SWITCH) for _ in range(switches)]
    gpu_ids, switch_ids = (tuple(item.profile.pdi for item in devices) for devices in (gpus, found))
    wired = [replace(item, neighbours=switch_ids, mode=2) for item in gpus]
    wired += [replace(item, neighbours=gpu_ids) for item in found]
    return GPUs(pki=pki, devices=wired)


class TestAccepted:
    def test_snp_with_two_gpus(self, open_site: Open) -> None:
        site = open_site().fetch()
        guest = attested(site)
        found = submodules(guest)
        assert list(found) == ["cpu0", "gpu0", "gpu1"]
        assert {item["ear.status"] for item in found.values()} == {"affirming"}
        evidence = [item["ear.veraison.annotated-evidence"] for item in found.values()]
        assert [next(iter(item)) for item in evidence] == ["snp", "nvidia", "nvidia"]
        assert [item["init_data"] for item in evidence] == [site.data.digest_text, "", ""]
        pdis = [device.profile.pdi.hex() for device in gpus_of(site).devices]
        assert [found[name]["ear.cloister.instance"] for name in ("gpu0", "gpu1")] == pdis
        assert found["gpu0"]["ear.trustworthiness-vector"]["executables"] == 2, "NVIDIA's manifests count"
        assert guest.open(guest.resource()) == CANARY

    def test_classes_are_numbered_apart(self, open_site: Open) -> None:
        site = open_site(server()).fetch()
        guest = attested(site)
        assert list(submodules(guest)) == ["cpu0", "gpu0", "gpu1", "switch0"]
        for name in ("gpu0", "gpu1", "switch0"):
            codes = [finding["code"] for finding in submodules(guest)[name]["ear.cloister.findings"]]
            assert codes.count("appraisal.nvidia.topology") == 2, "each says that all links are accounted for"
        assert guest.open(guest.resource()) == CANARY

    def test_the_record_says_whose_each_finding_is(self, open_site: Open) -> None:
        site = open_site().fetch()
        guest = attested(site)
        guest.resource()
        [row] = site.admin.list_audit()
        record = site.admin.get_appraisal(row.attestation)
        assert record is not None
        assert {finding.origin.split(":")[0] for finding in record.findings} == {"cpu0", "gpu0", "gpu1"}
        fresh = [finding.origin for finding in record.findings if finding.code == "evidence.freshness"]
        assert [origin.split(":")[0] for origin in fresh] == ["cpu0", "gpu0", "gpu1"]

    def test_the_largest_machine_fits_into_a_token(self, open_site: Open) -> None:
        whole = server(8, 4)
        whole.devices = [replace(item, measurements=31 if item.switch else 64) for item in whole.devices]
        site = open_site(whole).fetch()
        guest = attested(site)
        assert len(submodules(guest)) == 13
        assert len(guest.token) < TOKEN_BYTES * 2 // 3, len(guest.token)
        assert guest.open(guest.resource()) == CANARY

    def test_no_devices_is_no_composite(self, open_site: Open) -> None:
        site = open_site().fetch()
        guest = site.guest().auth()
        assert guest.attest(additional="{}").status == 200
        assert list(submodules(guest)) == ["cpu0"]

    def test_the_owners_reference_values_come_before_the_vendors(self, open_site: Open) -> None:
        site = open_site().fetch()
        value = nvidia.measurement(1)
        entry = ReferenceEntry(
            id="fleet",
            tee="nvidia",
            registers={"measurement_1": value},
            not_after=site.machine.at + timedelta(days=9),
            origin="our own firmware",
        )
        site.admin.add_reference_entries([entry])
        guest = attested(site)
        assert guest.open(guest.resource()) == CANARY
        site.admin.add_reference_entries([replace(entry, registers={"measurement_1": bytes(48)})])
        guest = attested(site)
        assert refusal(guest.resource(), 403) == "appraisal.reference_values.measurement_1"


class TestRefused:
    def test_one_bad_device_refuses_all(self, open_site: Open) -> None:
        site = open_site().fetch()
        guest = site.guest().auth()
        text = gpus_of(site).text(guest.device_digest(), {1: nvidia.ReportFaults(signature_flip=True)})
        answer = guest.attest(additional=text)
        assert refusal(answer, 403) == "tee.nvidia_gpu.signature"
        record = site.admin.get_denial(json.loads(answer.body)["denial-id"])
        assert record.path == "tee-evidence.additional_evidence.nvidia.device_evidence_list[1].evidence"

    def test_one_device_with_other_firmware(self, open_site: Open) -> None:
        """The worst device decides, and the answer says which it is."""
        site = open_site().fetch()
        guest = attested(site, {1: nvidia.ReportFaults(values={1: bytes(48)})})
        found = submodules(guest)
        assert [item["ear.status"] for item in found.values()] == ["affirming", "affirming", "contraindicated"]
        answer = guest.resource()
        assert refusal(answer, 403) == "appraisal.nvidia.measurement"
        assert json.loads(answer.body)["detail"].startswith("gpu1: ")

    def test_a_text_that_was_swapped(self, open_site: Open) -> None:
        """Both texts hold good devices of this session; the CPU's evidence binds only one."""
        site = open_site().fetch()
        guest = site.guest().auth()
        gpus = gpus_of(site)
        one = json.dumps({"nvidia": {"device_evidence_list": [gpus.devices[0].entry(guest.device_digest()[:32])]}})
        both = gpus.text(guest.device_digest())
        assert refusal(guest.attest(additional=both, sent=one), 403) == "evidence.freshness"
        guest = site.guest().auth()
        assert refusal(guest.attest(additional="", sent=gpus.text(guest.device_digest())), 403) == "evidence.freshness"
        guest = site.guest().auth()
        assert refusal(guest.attest(additional=gpus.text(guest.device_digest()), sent=""), 403) == "evidence.freshness"

    def test_devices_of_another_session(self, open_site: Open) -> None:
        site = open_site().fetch()
        guest, other = site.guest().auth(), site.guest().auth()
        answer = guest.attest(additional=gpus_of(site).text(other.device_digest()))
        assert refusal(answer, 403) == "evidence.freshness"
        record = site.admin.get_denial(json.loads(answer.body)["denial-id"])
        assert record.path.startswith("tee-evidence.additional_evidence.nvidia.")

    def test_devices_bound_as_the_cpu_is(self, open_site: Open) -> None:
        """The digest of a device has no text of devices in it; that of the CPU is not accepted in its place."""
        site = open_site().fetch()
        guest = site.guest().auth()
        bound = report_data(guest.nonce, guest.key.public_jwk())
        assert refusal(guest.attest(additional=gpus_of(site).text(bound)), 403) == "evidence.freshness"

    def test_one_device_twice(self, open_site: Open) -> None:
        gpus = GPUs()
        gpus.devices = [gpus.devices[0], gpus.devices[0]]
        site = open_site(gpus).fetch()
        guest = site.guest().auth()
        assert refusal(guest.attest(additional=gpus.text(guest.device_digest())), 403) == "tee.nvidia_gpu.device_twice"

    def test_a_switch_of_another_machine(self, open_site: Open) -> None:
        """Every device is good by itself; together they are not one machine."""
        gpus = server()
        stranger = replace(gpus.pki.device(nvidia.SWITCH), neighbours=gpus.devices[2].neighbours)
        gpus.devices[2] = stranger
        site = open_site(gpus).fetch()
        guest = attested(site)
        assert {item["ear.status"] for name, item in submodules(guest).items() if name != "cpu0"} == {"contraindicated"}
        assert refusal(guest.resource(), 403) == "appraisal.nvidia.topology"

    def test_a_revoked_device(self, open_site: Open) -> None:
        site = open_site().fetch()
        chain = gpus_of(site).devices[1].chain
        certificate, issuer = chain[1].certificate, chain[2]
        data = nvidia.ocsp_response(certificate, issuer, status=OCSPCertStatus.REVOKED)
        item = ocsp_item(certificate, issuer.certificate)
        site.cache.put(checked_entry(item, data, "", fetched=site.machine.at, origin="test"))
        guest = site.guest().auth()
        answer = guest.attest(additional=gpus_of(site).text(guest.device_digest()))
        assert refusal(answer, 403) == "tee.nvidia_gpu.revocation.revoked"

    def test_a_device_of_a_lower_level_lowers_the_guests(self, open_site: Open) -> None:
        policy = {"insecure_accept_levels": ["simulated"]}
        site = open_site(policy=policy).fetch()
        for root in site.admin.list_roots():
            if root.tee == "nvidia":
                site.admin.add_root(replace(root, level=Level.SIMULATED))
        guest = attested(site)
        assert {item["ear.status"] for item in submodules(guest).values()} == {"affirming"}
        assert refusal(guest.resource(), 403) == "trust.release.level"

    def test_devices_that_the_policy_does_not_accept(self, open_site: Open) -> None:
        site = open_site().fetch()
        site.set_policy(tees=["snp"])
        guest = attested(site)
        assert refusal(guest.resource(), 403) == "appraisal.technology"

    @pytest.mark.parametrize("text", ['{"nvidia":{"device_evidence_list":[]}}', '{"nvidia":{}}', '{"snp":{}}'])
    def test_evidence_that_is_none(self, open_site: Open, text: str) -> None:
        site = open_site().fetch()
        answer = site.guest().attest(additional=text)
        assert answer.status in (400, 403)


class TestCollateral:
    def test_nothing_is_had_of_the_devices(self, open_site: Open) -> None:
        site = open_site().fetch()
        for entry in site.kept():
            if entry.item.kind in (Kind.RIM, Kind.OCSP):
                site.cache.remove(entry.item)
        guest = site.guest().auth()
        answer = guest.attest(additional=gpus_of(site).text(guest.device_digest()))
        assert refusal(answer, 503) == "tee.nvidia_gpu.revocation"
        record = site.admin.get_denial(json.loads(answer.body)["denial-id"])
        assert "--item 'rim id=NV_GPU_DRIVER_GH100_550.90.07'" in record.hint
        assert "--item 'ocsp request=" in record.hint
        assert any(finding.origin.startswith("gpu0") for finding in record.findings)

    def test_a_manifest_that_is_missing(self, open_site: Open) -> None:
        """The vendor offers it, so that the answer is open; with values of the owner's own it is a warning."""
        site = open_site().fetch()
        rims = [entry.item for entry in site.kept() if entry.item.kind is Kind.RIM]
        site.cache.remove(rims[0])
        guest = site.guest().auth()
        answer = guest.attest(additional=gpus_of(site).text(guest.device_digest()))
        assert refusal(answer, 503) == "appraisal.reference_values.empty"
        record = site.admin.get_denial(json.loads(answer.body)["denial-id"])
        assert f"--item '{rims[0].text}'" in record.hint
        entry = ReferenceEntry(
            id="fleet",
            tee="nvidia",
            registers={"measurement_1": nvidia.measurement(1)},
            not_after=site.machine.at + timedelta(days=9),
            origin="our own firmware",
        )
        site.admin.add_reference_entries([entry])
        guest = attested(site)
        assert guest.open(guest.resource()) == CANARY

    def test_stale_answers_of_the_responder(self, open_site: Open) -> None:
        site = open_site().fetch()
        site.clock.advance(days=2)
        guest = site.guest().auth()
        answer = guest.attest(additional=gpus_of(site).text(guest.device_digest()))
        assert refusal(answer, 503) == "tee.nvidia_gpu.revocation"
