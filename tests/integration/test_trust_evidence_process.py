"""The trust service as a process, guests of hardware with the real client, and collateral fetched by the command the
denial names."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from cloister.client.keybroker import KeyBrokerClient
from cloister.errors import AppraisalRefused, Unavailable
from cloister.protocol.initdata import BrokerAddress, InitData, build_initdata
from cloister.rats.endorsement import TrustedRoot
from cloister.rats.reference import ReferenceEntry
from cloister.tee.nitro.attester import INIT_DATA_PCR, NSMAttester
from cloister.tee.registry import Attester
from cloister.tee.sev_snp.attester import SNPAttester
from cloister.testing import nitro, snp
from cloister.testing.published import publish_amd
from cloister.testing.vendor import FakeVendor
from cloister.trust.admin import TrustAdmin
from cloister.trust.keybroker.policy import ReleaseRule
from trust_process import Running, running
from trust_world import CANARY, MODEL, now_utc


def furnish(state: Path, tee: str, root: TrustedRoot, data: InitData, register: str, value: bytes) -> None:
    with TrustAdmin(state) as admin:
        admin.add_root(root)
        admin.put_appraisal_policy(b'{"version":1,"id":"default","tees":["%s"]}' % tee.encode())
        entry = ReferenceEntry(
            id="image", tee=tee, registers={register: value}, not_after=now_utc() + timedelta(days=1), origin="test"
        )
        admin.add_reference_entries([entry])
        admin.put_resource(MODEL, CANARY)
        rule = ReleaseRule(prefix="default/model/*", init_data=(data.digest_text,), appraisal_policy="default")
        admin.add_release_rule(rule)


def client_of(service: Running, attester: Attester, data: InitData, tee: str) -> KeyBrokerClient:
    broker = BrokerAddress(url=service.report["url"], ca_pem=service.ca_pem, release_log=service.log_pins)
    return KeyBrokerClient(broker, attester, data.text.decode(), tee)


def test_an_enclave_gets_its_resource(tmp_path: Path) -> None:
    data = build_initdata({"pod-policy.json": "{}"})
    ca = nitro.NitroCA(now=now_utc())
    module = nitro.FakeNSM(ca)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nsm").touch()
    furnish(tmp_path / "state", "nitro", ca.roots()[0], data, "pcr00", module.registers[0])
    with running(tmp_path / "state") as service, NSMAttester(tmp_path, ioctl=module.ioctl) as attester:
        attester.extend(INIT_DATA_PCR, data.digest)
        client = client_of(service, attester, data, "nitro")
        assert client.get_resource(MODEL) == CANARY
        client.wipe()


def test_an_snp_guest_waits_for_collateral_and_the_denial_says_how_to_get_it(tmp_path: Path) -> None:
    data = build_initdata({"pod-policy.json": "{}"})
    now, days = now_utc(), timedelta(days=30)
    amd = snp.FakeAMD("Turin")
    chip = snp.FakeChip.made_by(amd, start=now - days, end=now + days)
    state = tmp_path / "state"
    furnish(state, "snp", amd.root(), data, "measurement", snp.MEASUREMENT)
    files = snp.fake_tsm(tmp_path / "tree", chip, auxblob=chip.certificate_table(), version=5, host_data=data.digest)
    attester = SNPAttester(tmp_path / "tree", files=files)
    with running(state) as service, FakeVendor() as vendor:
        publish_amd(vendor, amd, [chip], start=now - days, end=now + days)
        client = client_of(service, attester, data, "snp")
        with pytest.raises(Unavailable) as caught:
            client.get_resource(MODEL)
        assert caught.value.code == "tee.sev_snp.revocation"
        assert vendor.count() == 0, "the service asks nobody"
        with TrustAdmin(state) as admin:
            remedy = admin.get_denial(caught.value.path).hint
        setting, _, *words = shlex.split(remedy)
        name, _, value = setting.partition("=")
        subprocess.run(
            [sys.executable, "-m", "cloister", *words, "--service", f"amd-kds={vendor.address}"],
            env={**os.environ, "CLOISTER_HOME": str(tmp_path / "home"), name: value},
            check=True,
            timeout=60,
        )
        assert client.get_resource(MODEL) == CANARY
        client.wipe()
        files = snp.fake_tsm(tmp_path / "other", chip, auxblob=chip.certificate_table(), version=5, host_data=bytes(32))
        client = client_of(service, SNPAttester(tmp_path / "other", files=files), data, "snp")
        with pytest.raises(AppraisalRefused) as refused:
            client.get_resource(MODEL)
        assert refused.value.code == "evidence.init_data"
        client.wipe()
