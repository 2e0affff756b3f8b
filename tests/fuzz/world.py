"""Good inputs to begin from, made by the fakes of `cloister.testing` and signed under test roots."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA512
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from cloister.crypto.signer import ECDSAP256Signer
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import Evidence
from cloister.tee.eventlog import Event
from cloister.tee.hygon_csv import abi as csv
from cloister.tee.ibm_se import abi as se
from cloister.tee.insecure.attester import SimulationAttester
from cloister.tee.insecure.endorsements import simulation_root
from cloister.tee.insecure.sample.attester import SampleAttester
from cloister.tee.nvidia_gpu import abi as spdm
from cloister.tee.sev_snp.abi import parse_report
from cloister.tee.sev_snp.cocoshape import encode_body
from cloister.tee.tpm import constants as c
from cloister.tee.tpm.abi import PCRSelection
from cloister.tee.tpm.gotpm import encode_attestation
from cloister.testing import azure, cca, dcap, nitro, nvidia, snp, tpm
from cloister.testing.eventlog import build_event_log, event, ovmf_events, seabios_events, startup_locality
from cloister.wire.base64 import encode_b64

AT: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)
PACKAGES: Final = (
    "azure",
    "cca",
    "dcap",
    "hygon_csv",
    "ibm_se",
    "insecure",
    "nitro",
    "nvidia_gpu",
    "sev_snp",
    "sgx",
    "tdx",
    "tpm",
)
LINES: Final = ("Milan", "Genoa", "Turin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Evidence of one technology, in the forms it is found in, and what makes it authentic."""

    files: Sequence[bytes]
    endorsements: Endorsements = field(default_factory=lambda: Endorsements(roots=()))
    at: datetime = AT
    session_secret: bytes = b""


def as_json(evidence: Evidence | Mapping[str, Any]) -> bytes:
    return json.dumps(evidence.body if isinstance(evidence, Evidence) else evidence).encode()


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(item.public_bytes(Encoding.PEM) for item in certificates)


@cache
def chips() -> tuple[snp.FakeChip, ...]:
    made = [snp.FakeChip.made_by(snp.FakeAMD(line)) for line in LINES]
    return (*made, snp.FakeChip.made_by(made[0].amd, kind=snp.VLEK))


@cache
def intel() -> dcap.FakeIntel:
    return dcap.FakeIntel()


@cache
def platforms() -> tuple[dcap.FakePlatform, dcap.FakePlatform]:
    return dcap.FakePlatform(intel()), dcap.FakePlatform(intel(), "SGX")


@cache
def ak() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@cache
def signer() -> ECDSAP256Signer:
    return ECDSAP256Signer.generate()


def ccel() -> bytes:
    return build_event_log(dcap.boot_log(), algorithms=("sha384",))


@cache
def scene(tee: str) -> Scene:
    return _SCENES[tee]()


def _snp() -> Scene:
    files = []
    for chip, version in zip(chips(), (2, 3, 5, 3), strict=True):
        report = chip.report(version=version)
        shape = encode_body(parse_report(report), (("VCEK", chip.vek),))
        files += [report, as_json(chip.evidence(report)), as_json(shape)]
    amd = [chip.amd.endorsements() for chip in chips()[:3]]
    return Scene(files=files, endorsements=_joined(*amd), at=snp.NOW)


def _joined(*parts: Endorsements) -> Endorsements:
    return Endorsements(
        roots=tuple(root for part in parts for root in part.roots),
        certificates=tuple(item for part in parts for item in part.certificates),
        revocation_lists=tuple(item for part in parts for item in part.revocation_lists),
        documents=tuple(item for part in parts for item in part.documents),
    )


def quotes() -> list[bytes]:
    tdx, sgx = platforms()
    return [
        tdx.quote(dcap.logged_report(dcap.boot_log())),
        tdx.quote(dcap.td_report(td15=True)),
        tdx.quote(dcap.td_report(), tail=bytes(9)),
        sgx.quote(dcap.enclave_report()),
    ]


def _tdx() -> Scene:
    raw = quotes()[:3]
    logged = as_json({"quote": encode_b64(raw[0]), "cc_eventlog": encode_b64(ccel())})
    files = [*raw, logged, as_json({"quote": encode_b64(raw[1])}), raw[0].hex().encode()]
    return Scene(files=files, endorsements=intel().endorsements("tdx"), at=dcap.NOW)


def _sgx() -> Scene:
    raw = quotes()[3]
    files = [raw, as_json({"quote": encode_b64(raw)}), raw.hex().encode()]
    return Scene(files=files, endorsements=intel().endorsements("sgx"), at=dcap.NOW)


def paravisors() -> tuple[azure.FakeParavisor, azure.FakeParavisor]:
    return azure.FakeParavisor(chips()[0], ak()), azure.FakeParavisor(platforms()[0], ak())


def _azure(index: int) -> Scene:
    machine = paravisors()[index]
    files = [as_json(machine.evidence(version=version)) for version in range(3)]
    return Scene(files=files, endorsements=machine.endorsements(), at=azure.NOW)


def instance_info() -> bytes:
    def field(tag: int, content: bytes) -> bytes:
        return bytes([tag, len(content)]) + content

    security = field(0xA0, field(0x02, b"\x05")) + field(0xA1, field(0x01, b"\xff")) + field(0xA2, field(0x02, b"\1"))
    return field(
        0x30,
        field(0x0C, b"zone-a")
        + field(0x02, b"\x01\x02")
        + field(0x0C, b"project")
        + field(0x02, b"\x00\x80\x01")
        + field(0x0C, b"name")
        + field(0xA0, field(0x30, security)),
    )


@cache
def tpm_machine() -> tuple[tpm.EndorsementCA, tpm.FakeTPM]:
    ca = tpm.EndorsementCA()
    return ca, tpm.FakeTPM(ca, events=(*seabios_events(), *ovmf_events()), ek=ak())


def _tpm() -> Scene:
    ca, machine = tpm_machine()
    session = tpm.run_session(machine, report_data=tpm.REPORT_DATA, init_data_digest=tpm.INIT_DATA_DIGEST)
    profile = replace(tpm.AK_PROFILE, instance_info=instance_info())
    certificate = ca.issue(machine.ak_key.public_key(), profile)
    foreign = machine.foreign_evidence(tpm.REPORT_DATA, certificate=certificate, intermediates=(der(ca.issuing),))
    bare = machine.foreign_evidence(tpm.REPORT_DATA, (0, 7, 11), key_only=True)
    files = [as_json(session.evidence), as_json(foreign), as_json(bare), attestation(certificate)]
    return Scene(files=files, endorsements=ca.endorsements(), at=tpm.NOW, session_secret=session.binding.session_secret)


def attestation(certificate: bytes) -> bytes:
    ca, machine = tpm_machine()
    values = {index: machine.read_pcrs()[index] for index in (4, 7, 8)}
    selection = (PCRSelection(algorithm=c.ALG_SHA256, bitmap=b"\x90\x01\x00"),)
    message, signature = machine.quote(
        b"nonce", tpm.QuoteFaults(selections=selection, quoted_values=list(values.values()))
    )
    return encode_attestation(
        ak_public=machine.ak_public[2:],
        message=message,
        signature=signature,
        values=values,
        event_log=build_event_log((*seabios_events(), *ovmf_events())),
        ak_certificate=certificate,
        intermediates=(der(ca.issuing),),
    )


def pcr_file(values: Sequence[bytes]) -> bytes:
    """Return registers as tpm2-tools write them."""
    lists = [values[start : start + 8] for start in range(0, len(values), 8)]
    out = (1).to_bytes(4, "little") + bytes(16 * 8) + len(lists).to_bytes(4, "little")
    for part in lists:
        digests = b"".join(len(item).to_bytes(2, "little") + item.ljust(64, b"\0") for item in part)
        out += len(part).to_bytes(4, "little") + digests.ljust(8 * 66, b"\0")
    return out


def spoken_events() -> list[Event]:
    """Return records whose data firmware and boot loaders write words into."""

    def node(kind: int, subtype: int, body: bytes) -> bytes:
        return struct.pack("<BBH", kind, subtype, len(body) + 4) + body

    disk = struct.pack("<IQQ", 2, 0x1800, 0x64000) + bytes(range(16)) + b"\x02\x02"
    nodes = (
        node(2, 1, struct.pack("<II", 0x0A0341D0, 0)),
        node(1, 1, b"\x00\x03"),
        node(4, 1, disk),
        node(4, 3, bytes(range(16))),
        node(4, 4, "kernel\0".encode("utf-16-le")),
        node(3, 23, b"\x01\x02"),
        b"\x7f\xff\x04\x00",
    )
    path = b"".join(nodes)
    pulled = b'coco.com pull {"image": "x", "n": [1, "\\u00e9"]}'
    data = {
        0x80000001: bytes(range(16)) + struct.pack("<QQ", 2, 1) + "db".encode("utf-16-le") + b"\x01",
        0x80000003: bytes(24) + struct.pack("<Q", len(path)) + path,
        0x80000004: bytes(24) + struct.pack("<Q", 4) + path[:4],
        0x8000000B: b"\x09TdxTable\x00rest",
        0x8000000A: b"\xff",
        0x0000000D: b"grub_cmd: boot\0l",
        0x0000000A: b"\xff\xfe",
        0x00000004: bytes(4),
    }
    tags = (
        (1, b"Linux initrd\0"),
        (2, b"LOADED_IMAGE::LoadOptions"),
        (0x4141454C, pulled),
        (0x4141454C, b'a b "\\ud800"'),
    )
    events = [event(2, kind, content) for kind, content in data.items()]
    return events + [event(3, 6, struct.pack("<II", tag, len(content)) + content) for tag, content in tags]


def event_logs() -> list[bytes]:
    both = ("sha1", "sha256")
    return [
        ccel(),
        build_event_log(spoken_events()),
        build_event_log(seabios_events(), fill=b"\xff" * 40),
        build_event_log((startup_locality(3), *ovmf_events()), fill=bytes(64)),
        build_event_log((startup_locality(3, algorithms=both),), algorithms=both),
    ]


@cache
def enclave() -> tuple[nitro.NitroCA, nitro.FakeNSM]:
    ca = nitro.NitroCA()
    return ca, nitro.FakeNSM(ca)


def _nitro() -> Scene:
    ca, module = enclave()
    document = module.document(nonce=nitro.REPORT_DATA, user_data=b"u", public_key=b"k")
    files = [document, as_json(module.evidence()), as_json(nitro.nitro_evidence(ca, indefinite=True))]
    return Scene(files=files, endorsements=ca.endorsements(), at=nitro.NOW)


@cache
def realms() -> tuple[cca.FakeCCA, cca.FakeCCA]:
    return cca.FakeCCA(), cca.FakeCCA(curve=ec.SECP256R1(), legacy=True)


def _cca() -> Scene:
    modern, legacy = realms()
    files = [modern.token(), legacy.token(), as_json(modern.evidence()), as_json(legacy.evidence())]
    return Scene(files=files, endorsements=_joined(modern.endorsements(), legacy.endorsements()), at=cca.NOW)


CSV_REPORT: Final = csv.encode_report(
    csv.Report(
        user_pubkey_digest=bytes(32),
        vm_id=bytes(16),
        vm_version=bytes(16),
        report_data=bytes(range(64)),
        mnonce=b"m" * 16,
        measurement=b"\xab" * 32,
        policy=0x45,
        signature_usage=0x1002,
        signature_algorithm=4,
        anonce=b"\x26\xd7\xc7\x5d",
        signature=b"s" * 144,
        pek=b"p" * csv.PEK_BYTES,
        serial_number="KPA00000000000",
        mac=b"c" * 32,
    )
)
CSV_ROOT: Final = b"".join(
    (
        (1).to_bytes(4, "little"),
        b"k" * 16 + b"i" * 16 + bytes(28),
        (3).to_bytes(4, "little"),
        bytes(144),
        (4).to_bytes(2, "little"),
        b"NAME".ljust(254, b"\0"),
        bytes(108) + b"s" * 144 + bytes(112),
    )
)


def _csv() -> Scene:
    signature = {"usage": 1, "algo": 4, "signature": {"r": [0] * 72, "s": [0] * 72}, "_reserved": [0] * 368}
    data = {
        "firmware": {"major": 1, "minor": 3},
        "reserved1": 0,
        "pubkey": {"usage": 4098, "algo": 4, "key": {"g": 3, "x": [0] * 72, "y": [0] * 72}},
        "uid_size": 3,
        "user_id": list(b"PEK".ljust(254, b"\0")),
        "sid": [0] * 16,
        "reserved2": [0] * 608,
    }
    body: dict[str, Any] = {
        "attestation_report": {"data": list(CSV_REPORT), "flags": 0, "magic": [0] * 16},
        "cert_chain": {"pek": {"body": {"ver": 1, "data": data}, "sigs": [signature, signature]}},
        "serial_number": list(b"KPA00000000000".ljust(64, b"\0")),
        "cc_eventlog": None,
    }
    second = {**body, "attestation_report": {**body["attestation_report"], "magic": list(csv.EXTENDED_MAGIC)}}
    chained = {**body, "cert_chain": {**body["cert_chain"], "hsk_cek": {"hsk": {}, "cek": {}}}}
    return Scene(files=[as_json(body), as_json(second), as_json(chained)])


def se_structures() -> list[bytes]:
    slot = se.KeySlot(host_key_hash=b"h" * 32, wrapped=b"w" * 32, tag=b"t" * 16)
    shared: dict[str, Any] = {"iv": b"i" * 12, "customer_key": b"c" * 160, "slots": (slot, slot), "tag": b"T" * 16}
    request = se.Request(flags=0x7, algorithm=1, encrypted=b"e" * 80, **shared)
    header = se.ImageHeader(
        pages=9,
        flags=1,
        page_digest=b"p" * 64,
        address_digest=b"a" * 64,
        tweak_digest=b"t" * 64,
        encrypted=b"e" * 128,
        **shared,
    )
    exchange = se.Exchange(
        request=b"r" * 16, measurement=b"m" * 64, additional=b"", user_data=b"u", configuration_id=b"c" * 16
    )
    return [
        se.encode_request(request),
        se.encode_image_header(header),
        se.encode_exchange(exchange),
        se.encode_key_slot(slot),
    ]


def _se() -> Scene:
    body = {
        "measurement": encode_b64(b"m" * 64),
        "additional_data": encode_b64(b"a" * 64),
        "user_data": encode_b64(b"u"),
        "cuid": encode_b64(b"c" * 16),
        "image_hdr_tags": encode_b64(bytes(208)),
    }
    return Scene(files=[as_json(body), se_structures()[2]])


@dataclass(frozen=True, slots=True, kw_only=True)
class HostKeyPKI:
    """A root, IBM's signing service and a host key document under it, with their lists."""

    root: bytes
    service: bytes
    document: bytes
    lists: tuple[bytes, ...]


@cache
def host_keys() -> HostKeyPKI:
    organisation = "International Business Machines Corporation"
    ibm = x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "New York"),
            x509.NameAttribute(NameOID.LOCALITY_NAME, "Poughkeepsie"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "IBM Z Host Key Signing Service"),
            x509.NameAttribute(NameOID.COMMON_NAME, organisation),
        ]
    )
    top = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Root")])
    key, service_key = ak(), rsa.generate_private_key(public_exponent=65537, key_size=2048)
    host_key = ec.generate_private_key(ec.SECP521R1())

    def issue(subject: x509.Name, public: Any, issuer: x509.Name, signing: rsa.RSAPrivateKey, usage: int) -> bytes:
        bits = [bit == usage for bit in range(9)]
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(7 + usage)
            .not_valid_before(AT - timedelta(days=9))
            .not_valid_after(AT + timedelta(days=900))
            .add_extension(x509.BasicConstraints(ca=usage == 5, path_length=None), critical=True)
        )
        if usage == 5:
            bits[6] = True
        return der(builder.add_extension(x509.KeyUsage(*bits), critical=True).sign(signing, SHA512()))

    def listed(issuer: x509.Name, signing: rsa.RSAPrivateKey) -> bytes:
        builder = x509.CertificateRevocationListBuilder().issuer_name(issuer).last_update(AT - timedelta(days=1))
        return builder.next_update(AT + timedelta(days=9)).sign(signing, SHA256()).public_bytes(Encoding.DER)

    host = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "host")])
    return HostKeyPKI(
        root=issue(top, key.public_key(), top, key, 5),
        service=issue(ibm, service_key.public_key(), top, key, 0),
        document=issue(host, host_key.public_key(), ibm, service_key, 4),
        lists=(listed(top, key), listed(ibm, service_key)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    pki: nvidia.DevicePKI
    manifests: nvidia.ManifestPKI
    devices: tuple[nvidia.FakeDevice, ...]
    endorsements: Endorsements


@cache
def devices() -> Devices:
    pki, manifests = nvidia.DevicePKI(), nvidia.ManifestPKI()
    both = replace(nvidia.GPU, dice="both")
    switch = replace(nvidia.GPU, chip="LS_10", core="BSE")
    made = tuple(pki.device(profile) for profile in (nvidia.GPU, nvidia.BLACKWELL, both, switch))
    gpu, linked = made[0], made[3]
    made = (
        replace(gpu, neighbours=(linked.profile.pdi,), mode=2),
        *made[1:3],
        replace(linked, neighbours=(gpu.profile.pdi,)),
    )
    return Devices(pki=pki, manifests=manifests, devices=made, endorsements=nvidia.endorse(pki, made, manifests))


def _nvidia() -> Scene:
    found = devices()
    reports = spdm_reports()
    listed = json.dumps([device.entry() for device in found.devices[:2]]).encode()
    files = [*reports, reports[0].hex().encode(), listed]
    files += [as_json(nvidia.evidence_of([device])) for device in found.devices]
    files += [as_json(nvidia.evidence_of(found.devices))]
    return Scene(files=files, endorsements=found.endorsements, at=nvidia.NOW)


def manifest_text() -> str:
    from cloister.testing.swid import manifest_body

    return manifest_body(
        version="1.2", active={0: [nvidia.measurement(0)], 3: [bytes(48), nvidia.measurement(3)]}, inactive=(7,)
    )


def _simulated() -> Scene:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as directory, SimulationAttester(str(Path(directory) / "key.pem")) as attester:
        attester.extend(8, bytes(32))
        body = attester.attest(bytes(range(48)))
    root = simulation_root(_b64(body["public_key"]), name="test")
    return Scene(files=[as_json(body)], endorsements=Endorsements(roots=(root,)))


def _sample() -> Scene:
    body = {**SampleAttester().attest(bytes(range(48))), "init_data": "AAAA"}
    return Scene(files=[as_json(body)], endorsements=Endorsements(roots=()))


def _b64(text: str) -> bytes:
    import base64

    return base64.b64decode(text)


def spki() -> bytes:
    return ak().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def collateral(kind: str = "TDX") -> bytes:
    return intel().collateral(kind)


def service_answers() -> list[bytes]:
    """Return what Intel's service answers: TCB info and identity, each with its signature."""
    members = json.loads(collateral())
    return [
        b'{"tcbInfo":%s,"signature":"%s"}' % (members["tcb_info"].encode(), members["tcb_info_signature"].encode()),
        b'{"enclaveIdentity":%s,"signature":"%s"}'
        % (members["qe_identity"].encode(), members["qe_identity_signature"].encode()),
    ]


def spdm_reports() -> list[bytes]:
    """Return reports, and one with an entry of every type that has a name."""
    made = [device.report() for device in devices().devices]
    report = spdm.parse_report(made[0])
    extra = dict.fromkeys((4, 13, 14, 19, 21, 23, 24, 25, 32, 33), b"\x01")
    extra |= {12: bytes(8), 16: b"sku", 26: bytes(72), 34: b"\x01", 35: b"GH100", 36: b"\0\0"}
    entries = tuple((dict(report.opaque) | extra).items())
    return [*made, spdm.encode_report(replace(report, opaque=entries))]


_SCENES: Final = {
    "snp": _snp,
    "tdx": _tdx,
    "sgx": _sgx,
    "az-snp-vtpm": lambda: _azure(0),
    "az-tdx-vtpm": lambda: _azure(1),
    "tpm": _tpm,
    "nitro": _nitro,
    "cca": _cca,
    "csv": _csv,
    "se": _se,
    "nvidia": _nvidia,
    "cloister-simulated": _simulated,
    "sample": _sample,
}
