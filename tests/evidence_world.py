"""Guests of every hardware technology, with fakes that sign real structures, and the vendors' caches of a service."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa

from cloister.crypto.jwe import EphemeralKey
from cloister.protocol.initdata import InitData, build_initdata
from cloister.protocol.kbs import RuntimeData, SealedResource, device_report_data
from cloister.rats.claims import Level
from cloister.rats.endorsement import TrustedRoot
from cloister.rats.evidence import Evidence
from cloister.rats.reference import ReferenceEntry
from cloister.tee.collateral.cache import CollateralCache
from cloister.tee.collateral.collector import Collector
from cloister.tee.collateral.content import Entry
from cloister.tee.collateral.gate import HostGate
from cloister.tee.collateral.needs import follow_up, needs_of
from cloister.tee.collateral.sources import ServiceSource
from cloister.tee.collateral.transport import HTTPTransport
from cloister.tee.registry import claims_reader_for
from cloister.tee.sev_snp.endorsements import crl_url
from cloister.testing import azure, cca, dcap, nitro, nvidia, snp
from cloister.testing.published import addresses_of, publish_amd, publish_intel, publish_nvidia
from cloister.testing.vendor import FakeVendor
from cloister.trust.admin import TrustAdmin
from cloister.trust.keybroker import Answer, Credentials
from cloister.trust.keybroker.policy import ReleaseRule
from cloister.trust.service import TrustService
from cloister.trust.settings import TrustSettings
from trust_world import CANARY, MODEL, Clock, b64, copy_empty_state, report_data

_LIST_END = snp.NOW + timedelta(days=335, hours=1)


@dataclass
class Machine:
    """One machine of a technology.

    Attributes:
        tee: wire name.
        at: time at which its fakes are valid.
        algorithm: of init data whose digest fits its field.
        register: one that the owner knows the value of.
        roots: that an owner configures.
        evidence: body that binds report data and init data digest; `debug` makes it a debug guest.
        publish: puts its vendors' statements into a fake service; `revoked` names its key there.
        revoked: code when it is.
        stale_after: when what its vendors say now is stale, and its certificates are still good.
    """

    tee: str
    at: datetime
    algorithm: str
    register: str
    roots: Callable[[], Sequence[TrustedRoot]]
    evidence: Callable[..., Mapping[str, Any]]
    publish: Callable[..., None] = lambda service, revoked=False: None
    revoked: str = ""
    stale_after: timedelta = timedelta()


def snp_machine(line: str = "Turin") -> Machine:
    amd = snp.FakeAMD(line)
    chip = snp.FakeChip.made_by(amd)

    def evidence(bound: bytes, digest: bytes, *, debug: bool = False) -> Mapping[str, Any]:
        report: dict[str, Any] = {
            "report_data": bound.ljust(64, b"\0"),
            "host_data": digest,
            "policy": 0xB0000 if debug else 0x30000,
        }
        return chip.evidence(version=5, **report).body

    return Machine(
        tee="snp",
        at=snp.NOW,
        algorithm="sha256",
        register="measurement",
        roots=lambda: [amd.root()],
        evidence=evidence,
        publish=lambda service, revoked=False: _publish_amd(service, amd, [chip], revoked=revoked),
        revoked="tee.sev_snp.revocation.revoked",
        stale_after=_LIST_END - snp.NOW,
    )


def _publish_amd(service: FakeVendor, amd: snp.FakeAMD, chips: Sequence[snp.FakeChip], *, revoked: bool) -> None:
    publish_amd(service, amd, chips)
    if revoked:
        serials = [amd.ask.serial_number]
        service.serve(crl_url(amd.line, vlek=False, base=""), amd.revocation_list(*serials), "application/octet-stream")


def tdx_machine() -> Machine:
    intel = dcap.FakeIntel()
    platform = dcap.FakePlatform(intel)

    def evidence(bound: bytes, digest: bytes, *, debug: bool = False) -> Mapping[str, Any]:
        attributes = (1 << 28 | int(debug)).to_bytes(8, "little")
        body = dcap.td_report(
            report_data=bound.ljust(64, b"\0"), mr_config_id=digest.ljust(48, b"\0"), td_attributes=attributes
        )
        return {"quote": b64(platform.quote(body)), "cc_eventlog": None}

    return Machine(
        tee="tdx",
        at=dcap.NOW,
        algorithm="sha384",
        register="mrtd",
        roots=lambda: [intel.trusted("tdx")],
        evidence=evidence,
        publish=lambda service, revoked=False: publish_intel(
            service, intel, "TDX", pccs=True, revoked=[platform.pck] if revoked else []
        ),
        revoked="tee.dcap.certificate.revoked",
        stale_after=dcap.NEXT_UPDATE - dcap.NOW,
    )


def azure_machine(ak: rsa.RSAPrivateKey) -> Machine:
    amd = snp.FakeAMD("Turin")
    chip = snp.FakeChip.made_by(amd)

    def evidence(bound: bytes, digest: bytes, *, debug: bool = False) -> Mapping[str, Any]:
        paravisor = azure.FakeParavisor(chip, ak, nv_bytes=0)
        paravisor.tpm.extend(8, digest)
        hardware = {"version": 5, "launch_mitigations": 0x1F, "current_mitigations": 0x1F}
        faults = azure.AzureFaults(hardware={**hardware, "policy": 0xB0000 if debug else 0x30000})
        return paravisor.evidence(bound, faults=faults).body

    return Machine(
        tee="az-snp-vtpm",
        at=azure.NOW,
        algorithm="sha256",
        register="pcr04",
        roots=lambda: [amd.root(tee="az-snp-vtpm")],
        evidence=evidence,
        publish=lambda service, revoked=False: _publish_amd(service, amd, [chip], revoked=revoked),
        revoked="tee.sev_snp.revocation.revoked",
        stale_after=_LIST_END - azure.NOW,
    )


def cca_machine() -> Machine:
    realm = cca.FakeCCA()

    def evidence(bound: bytes, digest: bytes, *, debug: bool = False) -> Mapping[str, Any]:
        realm.realm = replace(realm.realm, personalization=digest)
        platform = {2395: 0x5000} if debug else None
        return realm.evidence(challenge=bound.ljust(64, b"\0"), platform=platform).body

    return Machine(
        tee="cca",
        at=cca.NOW,
        algorithm="sha512",
        register="rim",
        roots=lambda: [realm.root(instance=cca.INSTANCE_ID.hex())],
        evidence=evidence,
    )


def nitro_machine() -> Machine:
    ca = nitro.NitroCA()

    def evidence(bound: bytes, digest: bytes, *, debug: bool = False, **faults: Any) -> Mapping[str, Any]:
        module = nitro.FakeNSM(ca, nitro.NitroFaults(debug=debug, **faults))
        return module.evidence(nonce=bound, user_data=digest).body

    return Machine(
        tee="nitro",
        at=nitro.NOW,
        algorithm="sha384",
        register="pcr00",
        roots=lambda: list(ca.roots()),
        evidence=evidence,
    )


@dataclass
class GPUs:
    """Two GPUs and no switch, unless told otherwise."""

    pki: nvidia.DevicePKI = field(default_factory=nvidia.DevicePKI)
    manifests: nvidia.ManifestPKI = field(default_factory=nvidia.ManifestPKI)
    devices: list[nvidia.FakeDevice] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.devices = self.devices or [self.pki.device(), self.pki.device()]

    def publish(self, service: FakeVendor) -> None:
        publish_nvidia(service, self.devices, self.manifests, at=nvidia.NOW)

    def evidence(self, nonce: bytes, faults: Mapping[int, nvidia.ReportFaults] | None = None) -> dict[str, Any]:
        faults = faults or {}
        return {
            "device_evidence_list": [
                device.entry(nonce, faults.get(index)) for index, device in enumerate(self.devices)
            ]
        }

    def text(self, bound: bytes, faults: Mapping[int, nvidia.ReportFaults] | None = None) -> str:
        return json.dumps({"nvidia": self.evidence(bound[:32], faults)})


@dataclass
class Site:
    """An owner, a service with a cache of collateral, one machine, and its vendors."""

    directory: Path
    machine: Machine
    gpus: GPUs | None = None
    policy: Mapping[str, Any] = field(default_factory=dict)
    level: Level = Level.HARDWARE
    accepted: tuple[Level, ...] = ()

    def __post_init__(self) -> None:
        self.clock = Clock(self.machine.at)
        self.data = build_initdata({"pod-policy.json": "{}"}, algorithm=self.machine.algorithm)
        self.state = self.directory / "state"
        copy_empty_state(self.state, self.machine.at)
        self.admin = TrustAdmin(self.state, clock=self.clock)
        self.service = TrustService(TrustSettings(state=self.state), clock=self.clock)
        self.cache = CollateralCache(self.state / "collateral")
        for root in self.machine.roots():
            self.admin.add_root(replace(root, level=self.level))
        if self.gpus is not None:
            for root in (*self.gpus.pki.roots(), *self.gpus.manifests.roots()):
                self.admin.add_root(root)
        self.set_policy()
        self.trust_measurement()
        self.admin.put_resource(MODEL, CANARY)
        self.admin.add_release_rule(
            ReleaseRule(
                prefix="default/model/*",
                init_data=(self.data.digest_text,),
                appraisal_policy="default",
                insecure_allow_levels=self.accepted,
            )
        )

    def set_policy(self, **changes: Any) -> None:
        tees = [self.machine.tee, *(["nvidia"] if self.gpus is not None else [])]
        policy = {"version": 1, "id": "default", "tees": tees, **self.policy, **changes}
        self.admin.put_appraisal_policy(json.dumps(policy).encode())

    def trust_measurement(self, value: bytes | None = None) -> None:
        body = self.machine.evidence(bytes(48), self.data.digest)
        claims = claims_reader_for(self.machine.tee)(Evidence(tee=self.machine.tee, body=body)).claims
        entry = ReferenceEntry(
            id="image",
            tee=self.machine.tee,
            registers={self.machine.register: value or claims.registers[self.machine.register]},
            not_after=self.machine.at + timedelta(days=365),
            origin="test",
        )
        self.admin.add_reference_entries([entry])

    def kept(self) -> list[Entry]:
        """What the cache has; nothing of it is damaged."""
        found = list(self.cache.entries())
        assert all(isinstance(item, Entry) for item in found)
        return [item for item in found if isinstance(item, Entry)]

    def fetch(self, *, revoked: bool = False) -> Site:
        """Do what `cloister collateral fetch` does for this machine."""
        with FakeVendor() as vendor:
            self.machine.publish(vendor, revoked=revoked)
            if self.gpus is not None:
                self.gpus.publish(vendor)
            gate = HostGate(self.cache.directory / "hosts", clock=lambda: 0.0, sleep=lambda seconds: None)
            source = ServiceSource(HTTPTransport(gate), addresses_of(vendor))
            collector = Collector(self.cache, [source], now=self.clock)
            roots = [self.gpus.pki.root.der] if self.gpus is not None else []
            for evidence in self._samples():
                given = roots if evidence.tee == "nvidia" else []
                for outcome in collector.obtain_all(needs_of(evidence, certificates=given)):
                    assert outcome.error is None, outcome.error
                    assert outcome.entry is not None
                    assert all(more.error is None for more in collector.obtain_all(follow_up(outcome.entry)))
        return self

    def _samples(self) -> list[Evidence]:
        body = self.machine.evidence(bytes(48), self.data.digest)
        samples = [Evidence(tee=self.machine.tee, body=body)]
        if self.gpus is not None:
            samples.append(Evidence(tee="nvidia", body=self.gpus.evidence(bytes(32))))
        return samples

    def guest(self, **options: Any) -> EvidenceGuest:
        return EvidenceGuest(self, **options)

    def close(self) -> None:
        self.service.close()
        self.admin.close()


class EvidenceGuest:
    """A guest that writes its messages by hand."""

    def __init__(self, site: Site, **faults: Any) -> None:
        self.site = site
        self.faults = faults
        self.key = EphemeralKey.generate()
        self.cookie = self.nonce = self.token = ""

    def auth(self) -> EvidenceGuest:
        body = {"version": "0.4.0", "tee": self.site.machine.tee, "extra-params": ""}
        answer = self.site.service.broker.auth(json.dumps(body).encode())
        assert answer.status == 200, answer.body
        challenge = json.loads(answer.body)
        assert challenge["extra-params"] == ""
        self.cookie, self.nonce = answer.cookie, challenge["nonce"]
        return self

    def device_digest(self) -> bytes:
        """What the evidence of a further device of this session carries."""
        return device_report_data(RuntimeData(nonce=self.nonce, tee_pubkey=self.key.public_jwk()))

    def attest(
        self,
        *,
        additional: str = "",
        sent: str | None = None,
        nonce: str = "",
        key: EphemeralKey | None = None,
        digest: bytes = b"",
        data: InitData | None = None,
    ) -> Answer:
        """Attest; what is named is put into the evidence, and `sent` and `data` into the message, instead."""
        if not self.cookie:
            self.auth()
        bound = report_data(nonce or self.nonce, (key or self.key).public_jwk(), additional)
        body = {
            "init-data": {"format": "toml", "body": (data or self.site.data).text.decode()},
            "runtime-data": {"nonce": self.nonce, "tee-pubkey": self.key.public_jwk()},
            "tee-evidence": {
                "primary_evidence": self.site.machine.evidence(bound, digest or self.site.data.digest, **self.faults),
                "additional_evidence": additional if sent is None else sent,
            },
        }
        answer = self.site.service.broker.attest(json.dumps(body).encode(), Credentials(cookie=self.cookie))
        if answer.status == 200:
            self.token = json.loads(answer.body)["token"]
        return answer

    def resource(self) -> Answer:
        return self.site.service.broker.resource(
            str(MODEL), Credentials(bearer=self.token), deadline=time.monotonic() + 5
        )

    def open(self, answer: Answer) -> bytes:
        assert answer.status == 200, answer.body
        return self.key.open(SealedResource(**json.loads(answer.body)))


def refusal(answer: Answer, status: int) -> str:
    """Return the code of an answer that must have this status and name a denial."""
    body = json.loads(answer.body)
    assert answer.status == status, body.get("detail", "a token")
    assert body["denial-id"], body
    code: str = body["code"]
    return code
