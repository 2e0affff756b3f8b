"""The verifier of NVIDIA evidence: every step of its checklist seen failing, several devices, revocation, manifests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from cloister.errors import FormatRefused, Refused
from cloister.rats.claims import Level
from cloister.rats.endorsement import Document, Endorsements
from cloister.rats.evidence import AuthenticEvidence, Evidence, ExpectedBinding
from cloister.rats.policy import AppraisalPolicy
from cloister.rats.result import Bound, Examination, Finding, Severity, Unchecked, Verdict
from cloister.rats.rules import Handling, NVIDIARules, PlatformRules
from cloister.tee.nvidia_gpu import opaque
from cloister.tee.nvidia_gpu.appraisal import appraise_platform
from cloister.tee.nvidia_gpu.evidence import read_evidence
from cloister.tee.nvidia_gpu.topology import Node, topology_findings
from cloister.tee.nvidia_gpu.verifier import authenticate, read_claims
from cloister.tee.verification import examine_evidence
from cloister.testing import nvidia
from cloister.testing.nvidia import NONCE, NOW, DevicePKI, FakeDevice, ManifestPKI, ReportFaults, evidence_of
from cloister.wire.base64 import decode_b64, encode_b64
from cloister.wire.limits import GPU_DEVICES

NOT_ASKED = Unchecked(reason="not asked for here")
LISTED = "device_evidence_list"
NO_EVIDENCE = [b"", b"hello", b"11e", b"[", b"[]{}", b'[1],"x":[2', b"\x00", b"[" * 9999, b"\xff" * 9]


@dataclass(frozen=True, slots=True)
class World:
    """NVIDIA, and one device of each kind."""

    pki: DevicePKI
    manifests: ManifestPKI
    gpu: FakeDevice
    blackwell: FakeDevice
    switch: FakeDevice

    def endorse(self, *devices: FakeDevice) -> Endorsements:
        return nvidia.endorse(self.pki, devices, self.manifests)

    def authenticate(
        self,
        *devices: FakeDevice,
        body: dict[str, Any] | None = None,
        endorsements: Endorsements | None = None,
        at: datetime = NOW,
    ) -> AuthenticEvidence:
        evidence = Evidence(tee="nvidia", body=body) if body is not None else evidence_of(devices)
        return authenticate(evidence, endorsements or self.endorse(*devices), at=at)

    def refusal(self, *devices: FakeDevice, **arguments: Any) -> str:
        with pytest.raises(Refused) as caught:
            self.authenticate(*devices, **arguments)
        return caught.value.code.removeprefix("tee.nvidia_gpu.")

    def examine(
        self,
        *devices: FakeDevice,
        endorsements: Endorsements | None = None,
        rules: NVIDIARules | None = None,
        **policy: Any,
    ) -> Examination:
        return examine_evidence(
            evidence_of(devices),
            ExpectedBinding(report_data=nvidia.REPORT_DATA, init_data_digest=NOT_ASKED),
            endorsements or self.endorse(*devices),
            AppraisalPolicy(
                id="test",
                tees=frozenset({"nvidia"}),
                levels=frozenset({Level.HARDWARE}),
                accept_debug=False,
                digest="",
                rules=PlatformRules(nvidia=rules or NVIDIARules()),
                **policy,
            ),
            NOT_ASKED,
            at=NOW,
        )


@pytest.fixture(scope="module")
def world() -> World:
    pki = DevicePKI()
    return World(pki, ManifestPKI(), pki.device(), pki.device(nvidia.BLACKWELL), pki.device(nvidia.SWITCH))


def wrong(findings: Sequence[Finding]) -> dict[str, Severity]:
    """The findings that do not hold, without those about what was not asked for."""
    return {item.code: item.severity for item in findings if not item.ok and "not_requested" not in item.code}


def body_with(entry: dict[str, str], **members: str | None) -> dict[str, Any]:
    """Evidence of one device with some members changed; None takes one out."""
    return {LISTED: [{name: text for name, text in (entry | members).items() if text is not None}]}


# Acceptance


def test_each_kind_of_device_is_accepted(world: World) -> None:
    for device in (world.gpu, world.blackwell, world.switch):
        examination = world.examine(device)
        absent = {"appraisal.nvidia.topology.absent": Severity.WARNING} if device.switch else {}
        assert wrong(examination.findings) == absent
        assert (examination.verdict, examination.bound, examination.authentic) == (Verdict.ACCEPT, Bound.YES, True)


def test_claims_of_one_device(world: World) -> None:
    claims = world.authenticate(world.gpu).claims
    assert (claims.tee, claims.level, claims.debug) == ("nvidia", Level.HARDWARE, False)
    assert claims.report_data == NONCE
    assert claims.instance_id == world.gpu.profile.pdi.hex()
    assert (claims.platform, claims.product) == ("NVIDIA GH100 (Hopper), 1 device", "nvidia-hopper")
    assert claims.native["driver_version"] == nvidia.DRIVER
    assert claims.native["vbios_version"] == nvidia.VBIOS
    assert (claims.native["manifests"], claims.native["secboot"]) == ("match", True)
    assert claims.registers["measurement_1"] == nvidia.measurement(1)
    assert claims.raw["measurements"]["2"] == nvidia.measurement(1).hex()
    assert (claims.raw["arch"], claims.raw["config"]["chip_sku"]) == ("Hopper", "882")
    assert claims.window is not None
    assert claims.window.not_after == NOW + timedelta(days=1)  # the OCSP responses end first


def test_claims_of_several_devices(world: World) -> None:
    claims = world.authenticate(world.blackwell, world.gpu).claims
    assert [item["arch"] for item in claims.native["devices"]] == ["BLACKWELL", "HOPPER"]
    assert [item["arch"] for item in claims.raw["devices"]] == ["Blackwell", "Hopper"]
    assert claims.registers[f"{world.gpu.profile.pdi.hex()}_measurement_0"] == nvidia.measurement(0)
    assert claims.platform == "NVIDIA GB100 (Blackwell), GH100 (Hopper), 2 devices"
    turned = world.authenticate(world.gpu, world.blackwell).claims
    assert claims.instance_id == turned.instance_id != ""


def test_what_is_not_checked_is_said(world: World) -> None:
    def reasons(device: FakeDevice, endorsements: Endorsements) -> str:
        return " | ".join(item.reason for item in world.authenticate(device, endorsements=endorsements).unchecked)

    whole, bare = world.endorse(world.gpu), nvidia.endorse(world.pki, [world.gpu])
    assert "leaf" in reasons(world.gpu, whole)
    assert "uuid" in reasons(world.gpu, whole)
    assert "debug state" not in reasons(world.gpu, whole)
    assert "debug state" in reasons(world.gpu, bare)
    assert "debug state" not in reasons(world.blackwell, nvidia.endorse(world.pki, [world.blackwell]))


def test_claims_can_be_read_without_verifying(world: World) -> None:
    found = read_claims(evidence_of([world.gpu, world.switch])).claims
    assert found.level is Level.SIMULATED
    assert [item["arch"] for item in found.native["devices"]] == ["HOPPER", "LS10"]
    assert "pdi" not in found.native["devices"][0]
    assert found.registers["device1_measurement_0"] == nvidia.measurement(0)
    alone = body_with(world.switch.entry(), arch=None, certificate=None)
    assert read_claims(Evidence(tee="nvidia", body=alone)).claims.native["vbios_version"] == nvidia.SWITCH_BIOS


# 1 parse


@pytest.mark.parametrize(
    "body",
    [
        {},
        {LISTED: []},
        {LISTED: {}},
        {LISTED: [{}]},
        {LISTED: ["x"]},
        {LISTED: [{"evidence": "EeAB/w=="}], "more": 1},
        {LISTED: [{"evidence": "!"}]},
        {LISTED: [{"evidence": "11e0f"}]},
        {LISTED: [{"evidence": "11e0zz"}]},
        {LISTED: [{"evidence": "11e0" * 100_000}]},
    ],
)
def test_other_shapes_refuse(world: World, body: dict[str, Any]) -> None:
    assert world.refusal(world.gpu, body=body) == "malformed"


def test_too_many_devices_refuse(world: World) -> None:
    entry = world.gpu.entry()
    assert world.refusal(world.gpu, body={LISTED: [entry] * (GPU_DEVICES + 1)}) == "malformed"


def test_chains_that_do_not_parse(world: World) -> None:
    entry, pem = world.gpu.entry(), world.gpu.certificates()
    for text in ("!", "AAAA", encode_b64(b"-----BEGIN CERTIFICATE-----"), encode_b64(pem * 2)):
        assert world.refusal(world.gpu, body=body_with(entry, certificate=text)) in ("malformed", "chain.malformed")
    assert world.authenticate(world.gpu, body=body_with(entry, certificate=pem.decode()))  # plain PEM text


def test_reports_come_as_base64_or_hex(world: World) -> None:
    report = world.gpu.report()
    for text in (report.hex(), report.hex().upper(), encode_b64(report)):
        assert world.authenticate(world.gpu, body=body_with(world.gpu.entry(), evidence=text))


def test_forms_of_files(world: World) -> None:
    entry, report = world.gpu.entry(), world.gpu.report()
    whole = json.dumps({LISTED: [entry]}).encode()
    forms = {
        report: "raw report of one device",
        report.hex().encode() + b"\n": "hex text of one report",
        whole: "JSON as CoCo's guest sends it",
        json.dumps({"primary_evidence": {LISTED: [entry]}}).encode(): "JSON as CoCo's guest sends it",
        b" " + json.dumps([entry]).encode(): "JSON list as NVIDIA's tools write it",
    }
    certificates = tuple(item.der for item in world.gpu.chain)
    endorsements = replace(world.endorse(world.gpu), certificates=certificates)
    for data, form in forms.items():
        found = read_evidence(data, tee="nvidia")
        assert found.form == form
        assert authenticate(Evidence(tee="nvidia", body=found.body), endorsements, at=NOW)


@pytest.mark.parametrize("data", NO_EVIDENCE)
def test_files_of_no_form_refuse(data: bytes) -> None:
    with pytest.raises(FormatRefused) as caught:
        read_evidence(data, tee="nvidia")
    assert caught.value.code.startswith(("tee.nvidia_gpu.malformed", "tee.file."))


# 2 chain


def test_chain_failures(world: World) -> None:
    leaf, brom, provisioner, identity, root = world.gpu.chain
    entry = world.gpu.entry()

    def chain(*items: nvidia.Authority) -> dict[str, Any]:
        pem = b"".join(item.certificate.public_bytes(Encoding.PEM) for item in items)
        return body_with(entry, certificate=encode_b64(pem))

    assert world.authenticate(world.gpu, body=chain(leaf, brom, provisioner, identity, root))
    assert world.authenticate(world.gpu, body=chain(leaf, identity, provisioner, brom))
    assert world.refusal(world.gpu, body=chain(leaf, brom, identity)) == "chain.untrusted"
    assert world.refusal(world.gpu, body=chain(root)) == "chain.leaf_is_ca"
    assert world.refusal(world.gpu, body=chain(brom, provisioner, identity)) == "chain.leaf_is_ca"
    assert world.refusal(world.gpu, body=body_with(entry, certificate=None)) == "chain.no_leaf"
    assert world.refusal(world.gpu, endorsements=Endorsements(roots=())) == "chain.no_root"
    assert world.refusal(world.gpu, endorsements=Endorsements(roots=DevicePKI().roots())) == "chain.untrusted"
    manifest_root = Endorsements(roots=world.manifests.roots())
    assert world.refusal(world.gpu, endorsements=manifest_root) == "chain.no_root"
    bad_root = Endorsements(roots=(replace(world.pki.roots()[0], der=b"\x30"),))
    assert world.refusal(world.gpu, endorsements=bad_root) == "root.malformed"


@pytest.mark.parametrize("place", range(4))
def test_a_flipped_bit_in_any_certificate_refuses(world: World, place: int) -> None:
    ders = [item.der for item in world.gpu.chain[:-1]]
    for offset in range(0, len(ders[place]), 5):
        changed = bytearray(ders[place])
        changed[offset] ^= 1 << offset % 8
        pem = b"".join(
            b"-----BEGIN CERTIFICATE-----\n"
            + encode_b64(bytes(changed) if index == place else der).encode()
            + b"\n-----END CERTIFICATE-----\n"
            for index, der in enumerate(ders)
        )
        code = world.refusal(world.gpu, body=body_with(world.gpu.entry(), certificate=encode_b64(pem)))
        assert code.startswith("chain.")


def test_validity_and_roles(world: World) -> None:
    ended = world.pki.device(replace(nvidia.GPU, leaf_end=NOW - timedelta(days=1)))
    assert world.refusal(ended) == "chain.expired"
    assert world.refusal(world.gpu, at=NOW - timedelta(days=500)) == "chain.not_yet_valid"
    other = world.pki.device(replace(nvidia.GPU, leaf_name="CONNECTX-7 A01 DEVICE"))
    assert world.refusal(other) == "chain.role"


def test_a_lone_report_finds_its_leaf_among_many(world: World) -> None:
    second = world.pki.device()
    certificates = tuple(item.der for device in (second, world.gpu) for item in device.chain)
    body = {LISTED: [{"evidence": encode_b64(device.report())} for device in (world.gpu, second)]}
    endorsements = replace(world.endorse(world.gpu, second), certificates=certificates)
    found = world.authenticate(body=body, endorsements=endorsements).claims
    assert [item["pdi"] for item in found.native["devices"]] == [
        world.gpu.profile.pdi.hex(),
        second.profile.pdi.hex(),
    ]
    without = replace(endorsements, certificates=certificates[5:])
    assert world.refusal(body=body, endorsements=without) == "signature"


# 3 signature


def test_signature_failures(world: World) -> None:
    def refuse(faults: ReportFaults) -> str:
        return world.refusal(world.gpu, body={LISTED: [world.gpu.entry(faults=faults)]})

    assert refuse(ReportFaults(signature_flip=True)) == "signature"
    assert refuse(ReportFaults(key=ec.generate_private_key(ec.SECP384R1()))) == "signature"
    foreign = world.pki.device().entry() | {"certificate": world.gpu.entry()["certificate"]}
    assert world.refusal(world.gpu, body={LISTED: [foreign]}) == "signature"
    other_curve = world.pki.device(replace(nvidia.GPU, curve=ec.SECP256R1()))
    entry = other_curve.entry(faults=ReportFaults(key=ec.generate_private_key(ec.SECP384R1())))
    assert world.refusal(other_curve, body={LISTED: [entry]}) == "signature"
    report = bytearray(world.gpu.report())
    report[-96:] = bytes(96)
    assert (
        world.refusal(world.gpu, body=body_with(world.gpu.entry(), evidence=encode_b64(bytes(report)))) == "signature"
    )


# 4 firmware id


def test_firmware_id_failures(world: World) -> None:
    def refuse(device: FakeDevice, faults: ReportFaults) -> str:
        return world.refusal(device, body={LISTED: [device.entry(faults=faults)]})

    for device in (world.gpu, world.blackwell):
        assert refuse(device, ReportFaults(fwid=b"x" * 48)) == "fwid"
        assert refuse(device, ReportFaults(fwid=bytes(48))) == "fwid"
        assert refuse(device, ReportFaults(opaque={opaque.FWID: None})) == "fwid"
    assert refuse(world.switch, ReportFaults(opaque={opaque.FWID: b"x" * 48})) == "fwid"
    zero = world.pki.device(replace(nvidia.BLACKWELL, fwid=bytes(48)))
    assert world.refusal(zero) == "fwid"  # what the chip did not measure matches nothing


# 5 contents, and what travels beside them


def test_content_failures(world: World) -> None:
    def refuse(device: FakeDevice, faults: ReportFaults) -> str:
        return world.refusal(device, body={LISTED: [device.entry(faults=faults)]})

    assert refuse(world.gpu, ReportFaults(opaque={opaque.DRIVER_VERSION: None})) == "versions"
    assert refuse(world.gpu, ReportFaults(opaque={opaque.VBIOS_VERSION: None})) == "versions"
    assert refuse(world.gpu, ReportFaults(opaque={opaque.DRIVER_VERSION: b"a b"})) == "opaque.malformed"
    assert refuse(world.switch, ReportFaults(opaque={opaque.DRIVER_VERSION: b"550.1\0"})) == "versions"
    assert refuse(world.switch, ReportFaults(pdi=b"another!")) == "pdi"
    assert refuse(world.switch, ReportFaults(opaque={opaque.PDI: None})) == "pdi"


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("arch", "HOPPER", "BLACKWELL"),
        ("nonce", NONCE.hex(), bytes(32).hex()),
        ("driver_version", nvidia.DRIVER, "550.90.08"),
        ("vbios_version", nvidia.VBIOS, "96.00.9F.00.02"),
    ],
)
def test_unsigned_companions_must_agree(world: World, name: str, good: str, bad: str) -> None:
    entry = world.gpu.entry()
    assert world.authenticate(world.gpu, body=body_with(entry, **{name: good}))
    assert world.authenticate(world.gpu, body=body_with(entry, **{name: good.lower()}))
    assert world.refusal(world.gpu, body=body_with(entry, **{name: bad})) == "unsigned"


def test_version_and_uuid_have_a_form(world: World) -> None:
    entry = world.gpu.entry()
    assert world.authenticate(world.gpu, body=body_with(entry, version="1.0", uuid="GPU-0a-1"))
    assert world.refusal(world.gpu, body=body_with(entry, version="2.0")) == "malformed"
    assert world.refusal(world.gpu, body=body_with(entry, uuid="<script>")) == "malformed"


# 6 one session


def test_devices_of_different_sessions_refuse(world: World) -> None:
    second = world.pki.device()
    body = {LISTED: [world.gpu.entry(), second.entry(bytes(32))]}
    assert world.refusal(world.gpu, second, body=body) == "nonces"


def test_one_device_twice_refuses(world: World) -> None:
    assert world.refusal(world.gpu, world.gpu) == "device_twice"


def test_all_devices_must_hold(world: World) -> None:
    second = world.pki.device()
    body = {LISTED: [world.gpu.entry(), second.entry(faults=ReportFaults(signature_flip=True))]}
    assert world.refusal(world.gpu, second, body=body) == "signature"


def test_a_longer_digest_is_cut_to_the_nonce(world: World) -> None:
    slot = world.authenticate(world.gpu).freshness
    assert (slot.value, slot.size, slot.cut) == (NONCE, 32, True)
    assert slot.fit(nvidia.REPORT_DATA) == NONCE
    assert world.authenticate(world.gpu).init_data is None


# 7 revocation


def documents_without(endorsements: Endorsements, *indexes: int) -> Endorsements:
    kept = tuple(item for number, item in enumerate(endorsements.documents) if number not in indexes)
    return replace(endorsements, documents=kept)


def test_without_responses_the_answer_is_open(world: World) -> None:
    whole = nvidia.endorse(world.pki, [world.gpu])
    for number in range(3):
        examination = world.examine(world.gpu, endorsements=documents_without(whole, number))
        assert examination.verdict is Verdict.UNAVAILABLE
        assert wrong(examination.findings)["tee.nvidia_gpu.revocation"] is Severity.UNAVAILABLE
        accepted = world.examine(
            world.gpu, endorsements=documents_without(whole, number), accept_unchecked_revocation=True
        )
        assert accepted.verdict is Verdict.ACCEPT
    assert world.examine(world.gpu, endorsements=whole).verdict is Verdict.ACCEPT


def test_shared_certificates_are_asked_about_once(world: World) -> None:
    second = world.pki.device()
    findings = world.authenticate(world.gpu, second).findings
    asked = [item.path for item in findings if item.code == "tee.nvidia_gpu.revocation"]
    assert len(asked) == len(set(asked)) == 4  # two BROMs, one provisioner, one identity


@pytest.mark.parametrize(
    ("status", "reason", "code"),
    [
        (ocsp.OCSPCertStatus.REVOKED, None, "revocation.revoked"),
        (ocsp.OCSPCertStatus.REVOKED, x509.ReasonFlags.certificate_hold, "revocation.on_hold"),
    ],
)
@pytest.mark.parametrize("place", [1, 2, 3])
def test_revoked_and_held_certificates_refuse(
    world: World, place: int, status: ocsp.OCSPCertStatus, reason: x509.ReasonFlags | None, code: str
) -> None:
    data = nvidia.ocsp_response(
        world.gpu.chain[place].certificate, world.gpu.chain[place + 1], status=status, reason=reason, this_update=NOW
    )
    whole = world.endorse(world.gpu)
    endorsements = replace(whole, documents=(*whole.documents, Document(name="x", data=data)))
    assert world.refusal(world.gpu, endorsements=endorsements) == code


def test_forged_responses_refuse(world: World) -> None:
    purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING])
    stranger = nvidia.issue("responder", nvidia.issue("stranger"), ca=False, extensions=[purpose])
    data = nvidia.ocsp_response(world.gpu.chain[1].certificate, world.gpu.chain[2], responder=stranger)
    endorsements = Endorsements(roots=world.pki.roots(), documents=(Document(name="x", data=data),))
    assert world.refusal(world.gpu, endorsements=endorsements) == "revocation.ocsp_responder.untrusted"


def test_stale_responses_and_grace(world: World) -> None:
    old = nvidia.good_responses(world.gpu.chain[1:], next_update=NOW - timedelta(minutes=5))
    endorsements = Endorsements(roots=world.pki.roots(), documents=old)
    assert world.examine(world.gpu, endorsements=endorsements).verdict is Verdict.UNAVAILABLE
    graced = world.examine(world.gpu, endorsements=endorsements, grace=timedelta(minutes=5))
    assert graced.verdict is Verdict.ACCEPT
    assert wrong(graced.findings)["tee.nvidia_gpu.revocation"] is Severity.WARNING


def revocation_list(issuer: nvidia.Authority, *revoked: nvidia.Authority) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(NOW - timedelta(hours=1))
        .next_update(NOW + timedelta(hours=1))
    )
    for item in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(item.certificate.serial_number).revocation_date(NOW)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(issuer.key, SHA384()).public_bytes(Encoding.DER)


def test_revocation_lists_serve_as_well(world: World) -> None:
    provisioner, identity, root = world.gpu.chain[2:]
    lists = tuple(revocation_list(issuer) for issuer in (provisioner, identity, root))
    by_list = Endorsements(roots=world.pki.roots(), revocation_lists=lists)
    assert world.examine(world.gpu, endorsements=by_list).verdict is Verdict.ACCEPT
    mixed = Endorsements(
        roots=world.pki.roots(),
        revocation_lists=lists[1:],
        documents=nvidia.good_responses(world.gpu.chain[1:3]),
    )
    assert world.examine(world.gpu, endorsements=mixed).verdict is Verdict.ACCEPT
    bad = replace(world.endorse(world.gpu), revocation_lists=(revocation_list(root, identity),))
    assert world.refusal(world.gpu, endorsements=bad) == "revocation.revoked"
    assert (
        world.refusal(world.gpu, endorsements=replace(by_list, revocation_lists=(b"\x30",))) == "revocation.malformed"
    )


# 8 manifests


def test_measurements_that_differ_refuse(world: World) -> None:
    body = evidence_of([world.gpu]).body
    changed = world.manifests.for_device(world.gpu, {1: [nvidia.measurement(7), nvidia.measurement(8)]})
    base = nvidia.endorse(world.pki, [world.gpu])
    signers = nvidia.good_responses(world.manifests.chain)
    endorsements = replace(
        base, roots=(*base.roots, *world.manifests.roots()), documents=(*base.documents, *changed, *signers)
    )
    examination = world.examine(world.gpu, endorsements=endorsements)
    assert wrong(examination.findings) == {"appraisal.nvidia.measurement": Severity.ERROR}
    assert (examination.verdict, examination.authentic) == (Verdict.REFUSE, True)
    [finding] = [item for item in examination.findings if not item.ok and item.severity is Severity.ERROR]
    assert finding.message.startswith("measurement 1 (Measurement_1)")
    assert finding.expected == " or ".join(nvidia.measurement(index).hex()[:16] + ".." for index in (7, 8))
    assert finding.actual == nvidia.measurement(1).hex()[:16] + ".."
    assert finding.origin == world.gpu.manifest_ids()[1]
    assert examination.claims is not None
    assert examination.claims.native["manifests"] == "differ"
    assert "secboot" not in examination.claims.native
    assert body


def test_alternatives_and_missing_measurements(world: World) -> None:
    def judge(changed: dict[int, list[bytes]]) -> dict[str, Severity]:
        base = world.endorse(world.gpu)
        others = tuple(item for item in base.documents if not item.name.startswith("NV_"))
        documents = (*others, *world.manifests.for_device(world.gpu, changed))
        return wrong(world.examine(world.gpu, endorsements=replace(base, documents=documents)).findings)

    assert judge({0: [bytes(48), nvidia.measurement(0)]}) == {}
    assert judge({9: [nvidia.measurement(9)]}) == {"appraisal.nvidia.measurement": Severity.ERROR}  # not in the report
    assert judge({35: [nvidia.measurement(9)]}) == {}  # the video decoder is off
    many = {index: [nvidia.measurement(99)] for index in range(3, 30)}
    assert judge(many) == {"appraisal.nvidia.measurement": Severity.ERROR}


def test_index_35_counts_while_the_decoder_is_on(world: World) -> None:
    on = ReportFaults(opaque={opaque.NVDEC0_STATUS: b"\xaa"})
    base = world.endorse(world.gpu)
    others = tuple(item for item in base.documents if not item.name.startswith("NV_"))
    manifests = world.manifests.for_device(world.gpu, {35: [nvidia.measurement(9)]})
    endorsements = replace(base, documents=(*others, *manifests))
    found = world.authenticate(body={LISTED: [world.gpu.entry(faults=on)]}, endorsements=endorsements)
    judged = appraise_platform(found.facts, PlatformRules(), at=NOW)
    assert wrong(judged) == {"appraisal.nvidia.measurement": Severity.ERROR}


def test_missing_manifests_are_what_the_policy_says(world: World) -> None:
    bare = nvidia.endorse(world.pki, [world.gpu])
    warned = world.examine(world.gpu, endorsements=bare)
    assert warned.verdict is Verdict.ACCEPT
    assert wrong(warned.findings) == {"appraisal.nvidia.reference": Severity.WARNING}
    [finding] = [item for item in warned.findings if item.code == "appraisal.nvidia.reference"]
    assert finding.expected == "NV_GPU_DRIVER_GH100_550.90.07, NV_GPU_VBIOS_1010_0200_882_96009F0001"
    refused = world.examine(world.gpu, endorsements=bare, rules=NVIDIARules(missing_reference=Handling.REFUSE))
    assert refused.verdict is Verdict.REFUSE
    accepted = world.examine(world.gpu, endorsements=bare, rules=NVIDIARules(missing_reference=Handling.ACCEPT))
    assert wrong(accepted.findings) == {}
    assert any(item.code == "appraisal.nvidia.reference" for item in accepted.findings)


def test_one_of_two_manifests_is_compared_and_the_other_missed(world: World) -> None:
    whole = world.endorse(world.gpu)
    documents = tuple(item for item in whole.documents if not item.name.startswith("NV_GPU_VBIOS"))
    examination = world.examine(world.gpu, endorsements=replace(whole, documents=documents))
    assert wrong(examination.findings) == {"appraisal.nvidia.reference": Severity.WARNING}
    [compared] = [item for item in examination.findings if item.code == "appraisal.nvidia.measurement"]
    assert compared.message.startswith("2 measurements are those NVIDIA published, 1 are in no manifest")
    assert examination.claims is not None
    assert examination.claims.native["manifests"] == "not all given"


def test_manifests_are_found_by_content_when_names_say_nothing(world: World) -> None:
    whole = world.endorse(world.gpu)
    renamed = tuple(
        replace(item, name=f"file{number}.xml") if item.name.startswith("NV_") else item
        for number, item in enumerate(whole.documents)
    )
    assert wrong(world.examine(world.gpu, endorsements=replace(whole, documents=renamed)).findings) == {}


def test_answers_of_the_rim_service(world: World) -> None:
    whole = world.endorse(world.gpu)

    def answers(template: str) -> Endorsements:
        return replace(
            whole,
            documents=tuple(
                replace(item, data=(template % (item.name, encode_b64(item.data))).encode())
                if item.name.startswith("NV_")
                else item
                for item in whole.documents
            ),
        )

    good = answers('{"id": "%s", "rim": "%s", "rim_format": "TCG"}')
    assert wrong(world.examine(world.gpu, endorsements=good).findings) == {}
    other_id = answers('{"id": "NV_OTHER_%s", "rim": "%s"}')
    assert world.refusal(world.gpu, endorsements=other_id) == "rim.answer.malformed"
    assert world.refusal(world.gpu, endorsements=answers('{"id": "%s", "rim": "!%s"}')) == "rim.answer.malformed"
    assert world.refusal(world.gpu, endorsements=answers('{"%s": "%s"}')) == "rim.answer.malformed"
    assert world.refusal(world.gpu, endorsements=answers('{"id": "%s", "rim": "%s"')) == "rim.answer.not_json"


def test_manifests_of_something_else_under_the_right_name_refuse(world: World) -> None:
    driver = world.gpu.manifest_ids()[0]
    base = world.endorse(world.gpu)
    others = tuple(item for item in base.documents if item.name != driver)

    def refuse(**changed: Any) -> str:
        arguments: dict[str, Any] = {"version": nvidia.DRIVER, "active": {0: [nvidia.measurement(0)]}, **changed}
        document = Document(name=driver, data=world.manifests.manifest(**arguments))
        return world.refusal(world.gpu, endorsements=replace(base, documents=(document, *others)))

    assert refuse(version="550.90.08") == "rim.subject"
    assert refuse(product="GB100") == "rim.subject"
    garbage = replace(base, documents=(Document(name=driver, data=b"<x/>"), *others))
    assert world.refusal(world.gpu, endorsements=garbage) == "rim.profile"


def test_manifests_under_another_root_refuse(world: World) -> None:
    base = nvidia.endorse(world.pki, [world.gpu])
    foreign = ManifestPKI()
    documents = (*base.documents, *foreign.for_device(world.gpu))
    endorsements = replace(base, roots=(*base.roots, *world.manifests.roots()), documents=documents)
    assert world.refusal(world.gpu, endorsements=endorsements) == "rim.chain.untrusted"
    assert world.refusal(world.gpu, endorsements=replace(endorsements, roots=base.roots)) == "rim.no_roots"


def test_a_manifest_whose_signer_has_ended_leaves_the_answer_open(world: World) -> None:
    ended = ManifestPKI(signer_end=NOW - timedelta(days=1))
    endorsements = nvidia.endorse(world.pki, [world.gpu], ended)
    examination = world.examine(world.gpu, endorsements=endorsements)
    assert wrong(examination.findings) == {"appraisal.nvidia.reference.stale": Severity.UNAVAILABLE}
    assert examination.verdict is Verdict.UNAVAILABLE


def test_revocation_of_the_signer(world: World) -> None:
    base = world.endorse(world.gpu)
    signer, issuing = world.manifests.chain[:2]
    hold = nvidia.ocsp_response(
        signer.certificate,
        issuing,
        status=ocsp.OCSPCertStatus.REVOKED,
        reason=x509.ReasonFlags.certificate_hold,
        this_update=NOW,
    )
    held = replace(base, documents=(*base.documents, Document(name="x", data=hold)))
    assert world.refusal(world.gpu, endorsements=held) == "rim.revocation.on_hold"
    bare = nvidia.endorse(world.pki, [world.gpu])
    unknown = replace(
        bare,
        roots=(*bare.roots, *world.manifests.roots()),
        documents=(*bare.documents, *world.manifests.for_device(world.gpu)),
    )
    assert wrong(world.authenticate(world.gpu, endorsements=unknown).findings) == {
        "tee.nvidia_gpu.rim.revocation": Severity.UNAVAILABLE
    }


def test_two_manifests_that_claim_one_index_refuse(world: World) -> None:
    base = world.endorse(world.gpu)
    others = tuple(item for item in base.documents if not item.name.startswith("NV_"))
    golden = {index: [nvidia.measurement(index)] for index in range(3)}
    documents = tuple(
        Document(name=identity, data=world.manifests.manifest(version=version, active=golden))
        for identity, version in zip(world.gpu.manifest_ids(), (nvidia.DRIVER, nvidia.VBIOS), strict=True)
    )
    examination = world.examine(world.gpu, endorsements=replace(base, documents=(*others, *documents)))
    assert wrong(examination.findings) == {"appraisal.nvidia.measurement.conflict": Severity.ERROR}
    assert examination.claims is not None
    assert "secboot" not in examination.claims.native


# The owner's rules


def test_allow_lists(world: World) -> None:
    good = NVIDIARules(driver_versions=(nvidia.DRIVER,), vbios_versions=(nvidia.VBIOS.lower(), nvidia.SWITCH_BIOS))
    assert wrong(world.examine(world.gpu, rules=good).findings) == {}
    assert "appraisal.nvidia.vbios_version" not in wrong(world.examine(world.switch, rules=good).findings)
    driver = world.examine(world.gpu, rules=NVIDIARules(driver_versions=("1.2",)))
    assert wrong(driver.findings) == {"appraisal.nvidia.driver_version": Severity.ERROR}
    vbios = world.examine(world.gpu, rules=NVIDIARules(vbios_versions=("1.2",)))
    assert wrong(vbios.findings) == {"appraisal.nvidia.vbios_version": Severity.ERROR}


def test_facts_of_another_technology_are_a_fault_of_the_caller() -> None:
    with pytest.raises(TypeError):
        appraise_platform(None, PlatformRules(), at=NOW)


def test_debug_is_refused(world: World) -> None:
    debug = world.pki.device(replace(nvidia.BLACKWELL, flags=bytes.fromhex("10000000")))
    examination = world.examine(debug)
    assert wrong(examination.findings) == {"appraisal.debug": Severity.ERROR}
    assert examination.claims is not None
    assert examination.claims.native["debug"] is True
    both = world.examine(world.gpu, debug)
    assert wrong(both.findings) == {"appraisal.debug": Severity.ERROR}


# Topology


def machine(world: World, gpus: int = 3, switches: int = 2) -> list[FakeDevice]:
    """A machine in which all GPUs are wired to all switches."""
    gpu_devices = [world.pki.device() for _ in range(gpus)]
    switch_devices = [world.pki.device(nvidia.SWITCH) for _ in range(switches)]
    switch_pdis = tuple(item.profile.pdi for item in switch_devices)
    gpu_pdis = tuple(item.profile.pdi for item in gpu_devices)
    return [
        *(replace(item, neighbours=switch_pdis, mode=2) for item in gpu_devices),
        *(replace(item, neighbours=gpu_pdis) for item in switch_devices),
    ]


def test_a_whole_machine_is_accepted(world: World) -> None:
    devices = machine(world, 8, 4)
    examination = world.examine(*devices)
    assert wrong(examination.findings) == {}
    assert examination.verdict is Verdict.ACCEPT
    assert [item.ok for item in examination.findings if item.code == "appraisal.nvidia.topology"] == [True, True]


def test_incomplete_or_mixed_machines_refuse(world: World) -> None:
    devices, others = machine(world), machine(world)
    topology = {"appraisal.nvidia.topology": Severity.ERROR}
    for chosen in (
        devices[1:],  # a GPU less
        devices[:-1],  # a switch less
        [*devices[:3], *others[3:]],  # switches of another machine
        [*devices, others[0]],
        [*devices, others[-1]],
        [replace(devices[0], neighbours=devices[0].neighbours[:1]), *devices[1:]],
        [replace(devices[0], neighbours=()), *devices[1:]],
        [*devices[:-1], replace(devices[-1], neighbours=())],
    ):
        examination = world.examine(*chosen)
        assert wrong(examination.findings) == topology
        assert examination.verdict is Verdict.REFUSE


def test_one_kind_alone_is_a_warning_where_links_are_plain(world: World) -> None:
    devices = machine(world)
    absent = {"appraisal.nvidia.topology.absent": Severity.WARNING}
    assert wrong(world.examine(*devices[:3]).findings) == absent
    assert wrong(world.examine(*devices[3:]).findings) == absent
    encrypted = [replace(item, mode=1) for item in devices[:3]]
    assert wrong(world.examine(*encrypted).findings) == {}


def test_topology_as_a_function() -> None:
    gpu = Node(switch=False, pdi=b"g", neighbours=frozenset({b"s"}))
    switch = Node(switch=True, pdi=b"s", neighbours=frozenset({b"g"}))
    assert topology_findings([]) == ()
    assert topology_findings([gpu]) == ()
    assert [item.ok for item in topology_findings([gpu, switch])] == [True, True]
    assert [item.ok for item in topology_findings([gpu, replace(switch, pdi=b"t")])] == [False, True]


def test_every_bit_of_a_two_device_report_counts(world: World) -> None:
    second = world.pki.device()
    entries = [world.gpu.entry(), second.entry()]
    endorsements = world.endorse(world.gpu, second)
    report = decode_b64(entries[1]["evidence"], ceiling=1 << 16)
    for offset in range(0, len(report), 3):
        changed = report[:offset] + bytes([report[offset] ^ 0x10]) + report[offset + 1 :]
        body = {LISTED: [entries[0], entries[1] | {"evidence": encode_b64(changed)}]}
        assert world.refusal(body=body, endorsements=endorsements)
