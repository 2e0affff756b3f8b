"""NVIDIA without NVIDIA: devices whose reports are signed under a test root, manifests, OCSP responses.

`DevicePKI` has the chain of five with the real names, `FakeDevice` signs real SPDM messages of GPUs and switches,
`ManifestPKI` the reference manifests, with the chain of four. Nothing of it is secret; every deviation is a named
member or argument. The signed XML is `cloister.testing.swid`'s, the library in the guest `cloister.testing.nvml`'s.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import NameOID

from cloister.rats.claims import Level
from cloister.rats.endorsement import Document, Endorsements, TrustedRoot
from cloister.rats.evidence import Evidence
from cloister.tee.nvidia_gpu import abi, opaque
from cloister.tee.nvidia_gpu.certificate import COMPOSITE_DEVICE_ID, DICE_TCB_INFO
from cloister.tee.nvidia_gpu.endorsements import TEE, driver_rim_id, switch_rim_id, vbios_rim_id
from cloister.testing.swid import SignatureForm, manifest_body, sign_document, sign_raw
from cloister.wire.base64 import encode_b64

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
REPORT_DATA: Final = bytes(range(1, 49))
NONCE: Final = REPORT_DATA[: abi.NONCE_BYTES]
NO_END: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)  # what NVIDIA writes into chips
DRIVER: Final = "550.90.07"
VBIOS: Final = "96.00.9F.00.01"
SWITCH_BIOS: Final = "96.10.73.00.01"
_SHA384_OID: Final = bytes.fromhex("0609608648016503040202")


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(Encoding.DER)


def issue(
    common_name: str,
    issuer: Authority | None = None,
    *,
    ca: bool = True,
    start: datetime = NOW - timedelta(days=400),
    end: datetime = NO_END,
    serial_number: str = "",
    extensions: Sequence[x509.ExtensionType] = (),
    curve: ec.EllipticCurve | None = None,
) -> Authority:
    """Return a fresh key with a certificate by `issuer`, self-signed without one."""
    key = ec.generate_private_key(curve or ec.SECP384R1())
    names = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if serial_number:
        names.append(x509.NameAttribute(NameOID.SERIAL_NUMBER, serial_number))
    subject = x509.Name([*names, x509.NameAttribute(NameOID.ORGANIZATION_NAME, "NVIDIA Corporation")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(_key_usage(ca=ca), critical=True)
    )
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    for item in extensions:
        builder = builder.add_extension(item, critical=False)
    return Authority(certificate=builder.sign(issuer.key if issuer else key, SHA384()), key=key)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """What a device is and what its certificates say; the default is a Hopper GPU.

    Attributes:
        chip: as certificates write it.
        core: processor that runs the firmware.
        pdi: identifier, 8 bytes; a fresh one when empty.
        fwid: of the certificate.
        dice: `composite`, `tcb_info`, `both` or `none`.
        flags: DICE flags of `tcb_info`.
        leaf_name: common name of the leaf, when not the right one.
        leaf_end: end of its validity.
        curve: of the leaf's key.
    """

    chip: str = "GH100"
    core: str = "GSP"
    pdi: bytes = b""
    fwid: bytes = hashlib.sha384(b"firmware").digest()
    dice: str = "composite"
    flags: bytes | None = bytes.fromhex("80000001")
    leaf_name: str = ""
    leaf_end: datetime = NO_END
    curve: ec.EllipticCurve | None = None


GPU: Final = DeviceProfile()
BLACKWELL: Final = DeviceProfile(chip="GB100", dice="tcb_info")
SWITCH: Final = DeviceProfile(chip="LS_10", core="FSP")


class DevicePKI:
    """The root of all devices, and for each chip the CAs below it."""

    def __init__(self) -> None:
        self.root = issue("NVIDIA Device Identity CA")
        self.identity = issue("NVIDIA GH100 Identity", self.root)
        self._provisioners: dict[str, Authority] = {}

    def provisioner(self, chip: str) -> Authority:
        """Return the CA that certifies the burnt-in keys of one kind of chip."""
        if chip not in self._provisioners:
            self._provisioners[chip] = issue(f"NVIDIA {chip} Provisioner ICA 1", self.identity)
        return self._provisioners[chip]

    def device(self, profile: DeviceProfile = GPU) -> FakeDevice:
        """Return a device with a burnt-in key and, under it, the key of its firmware."""
        pdi = profile.pdi or secrets.token_bytes(8)
        stem = f"{profile.chip} A01 {profile.core}"
        provisioner = self.provisioner(profile.chip)
        brom = issue(f"{stem} BROM", provisioner, serial_number="41" + pdi.hex().upper())
        leaf = issue(
            profile.leaf_name or f"{stem} FMC LF",
            brom,
            ca=False,
            end=profile.leaf_end,
            extensions=_dice_extensions(profile, brom),
            curve=profile.curve,
        )
        return FakeDevice(profile=replace(profile, pdi=pdi), chain=(leaf, brom, provisioner, self.identity, self.root))

    def roots(self, level: Level = Level.HARDWARE) -> tuple[TrustedRoot, ...]:
        """Return the root as a trusted one."""
        return (TrustedRoot(tee=TEE, level=level, name="NVIDIA Device Identity CA (test)", der=self.root.der),)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFaults:
    """Deviations of one report; everything but `signature_flip` is signed as it stands.

    Attributes:
        fwid: in the record.
        opaque: entries instead of, or with None taken out of, the right ones.
        values: measurements by manifest index.
        pdi: what a switch calls itself.
        signature_flip: alter the signature.
        key: sign with another key.
    """

    fwid: bytes | None = None
    opaque: Mapping[int, bytes | None] = field(default_factory=dict)
    values: Mapping[int, bytes] = field(default_factory=dict)
    pdi: bytes | None = None
    signature_flip: bool = False
    key: ec.EllipticCurvePrivateKey | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeDevice:
    """A GPU or switch.

    Attributes:
        profile: what it is.
        chain: leaf, BROM, provisioner, identity, root.
        neighbours: identifiers at its links.
        measurements: how many there are.
        mode: of a GPU: 0 SPT, 1 MPT, 2 PPCIE; None of drivers that do not say.
    """

    profile: DeviceProfile
    chain: tuple[Authority, ...]
    neighbours: tuple[bytes, ...] = ()
    measurements: int = 3
    mode: int | None = None

    @property
    def switch(self) -> bool:
        """Whether it is a switch."""
        return self.profile.chip.startswith("LS")

    @property
    def arch(self) -> str:
        """As CoCo's attester writes it."""
        return "LS10" if self.switch else "Blackwell" if self.profile.chip.startswith("GB") else "Hopper"

    @property
    def board(self) -> tuple[str, str, str]:
        """Project, project SKU and chip SKU of a GPU."""
        return ("G525", "0220", "886") if self.arch == "Blackwell" else ("1010", "0200", "882")

    def report(self, nonce: bytes = NONCE, faults: ReportFaults | None = None) -> bytes:
        """Return a signed report of even length."""
        faults = faults or ReportFaults()
        entries = {**self._entries(faults), **faults.opaque}
        blocks = tuple(
            abi.Block(index=index + 1, kind=1, value=faults.values.get(index, measurement(index)))
            for index in range(self.measurements)
        )
        message = abi.Report(
            nonce=nonce,
            slot=0,
            blocks=blocks,
            responder_nonce=hashlib.sha256(b"responder" + nonce).digest(),
            opaque=tuple((kind, value) for kind, value in entries.items() if value is not None),
            signature=bytes(abi.SIGNATURE_BYTES),
        )
        if len(abi.encode_report(message)) % 2:  # an entry of odd length: nothing is padded then
            message = replace(message, opaque=(*message.opaque, (21, b"U")))
        key = faults.key or self.chain[0].key
        signature = sign_raw(key, abi.encode_signed(message))
        if faults.signature_flip:
            signature = bytes([signature[0] ^ 1]) + signature[1:]
        return abi.encode_report(replace(message, signature=signature))

    def certificates(self, *, root: bool = False) -> bytes:
        """Return the chain as PEM, without a line end behind it; `root` says whether the root comes with it."""
        chain = self.chain if root else self.chain[:-1]
        return b"".join(item.certificate.public_bytes(Encoding.PEM) for item in chain).rstrip(b"\n")

    def entry(self, nonce: bytes = NONCE, faults: ReportFaults | None = None) -> dict[str, str]:
        """Return what CoCo's attester sends of this device."""
        return {
            "arch": self.arch,
            "uuid": f"GPU-{self.profile.pdi.hex()}",
            "evidence": encode_b64(self.report(nonce, faults)),
            "certificate": encode_b64(self.certificates()),
        }

    def manifest_ids(self) -> tuple[str, ...]:
        """Return the ids of its manifests, driver first."""
        if self.switch:
            return (switch_rim_id(version=SWITCH_BIOS),)
        arch = self.arch.upper()
        project, project_sku, chip_sku = self.board
        return (
            driver_rim_id(arch=arch, chip=self.profile.chip, version=DRIVER),
            vbios_rim_id(project=project, project_sku=project_sku, chip_sku=chip_sku, version=VBIOS),
        )

    def _entries(self, faults: ReportFaults) -> dict[int, bytes]:
        if self.switch:
            gpus = b"".join(self.neighbours).ljust(8 * opaque.PDI_BYTES, b"\0")
            return {
                opaque.VBIOS_VERSION: SWITCH_BIOS.encode(),
                opaque.PDI: faults.pdi if faults.pdi is not None else self.profile.pdi,
                opaque.SWITCH_GPU_PDIS: gpus + bytes(16),
            }
        numbers = [int(part, 16) for part in VBIOS.split(".")]
        project, project_sku, chip_sku = self.board
        entries = {
            opaque.DRIVER_VERSION: DRIVER.encode() + b"\0",
            opaque.VBIOS_VERSION: bytes((*reversed(numbers[:4]), numbers[4], 0, 0, 0)),
            opaque.NVDEC0_STATUS: bytes((opaque.NVDEC0_DISABLED,)),
            opaque.CHIP_SKU: chip_sku.encode() + b"\0",
            opaque.PROJECT: project.encode() + b"\0",
            opaque.PROJECT_SKU: project_sku.encode() + b"\0",
            opaque.FWID: faults.fwid if faults.fwid is not None else self.profile.fwid,
        }
        if self.neighbours:
            entries[opaque.PDI] = b"".join(item[::-1] for item in self.neighbours)
        if self.mode is not None:
            entries[opaque.FEATURE_FLAG] = self.mode.to_bytes(2, "little")
        return entries


def evidence_of(devices: Sequence[FakeDevice], nonce: bytes = NONCE) -> Evidence:
    """Return the evidence of all `devices` under one nonce."""
    return Evidence(tee=TEE, body={"device_evidence_list": [device.entry(nonce) for device in devices]})


def measurement(index: int) -> bytes:
    """Return what a fake device measures at an index."""
    return hashlib.sha384(f"measurement {index}".encode()).digest()


class ManifestPKI:
    """The chain of four under which manifests are signed."""

    def __init__(self, *, signer_end: datetime = NOW + timedelta(days=300)) -> None:
        self.root = issue("NVIDIA CoRIM signing Root CA")
        self.ca = issue("NVIDIA Reference Value GH100 CA", self.root)
        self.issuing = issue("NVIDIA Reference Value L3 GH100 001", self.ca)
        self.signer = issue("HCC RIM L4 Signer", self.issuing, ca=False, end=signer_end)

    @property
    def chain(self) -> tuple[Authority, ...]:
        """Signer first, root last."""
        return (self.signer, self.issuing, self.ca, self.root)

    def roots(self, level: Level = Level.HARDWARE) -> tuple[TrustedRoot, ...]:
        """Return the root as a trusted one."""
        return (TrustedRoot(tee=TEE, level=level, name="NVIDIA CoRIM signing Root CA (test)", der=self.root.der),)

    def manifest(
        self,
        *,
        version: str,
        active: Mapping[int, Sequence[bytes]],
        product: str = "GH100",
        inactive: Sequence[int] = (),
        form: SignatureForm | None = None,
    ) -> bytes:
        """Return a signed manifest.

        Args:
            version: of driver or VBIOS.
            active: accepted values by index.
            product: the chip.
            inactive: indexes that are named, but belong to another manifest.
            form: of the signature, when not the accepted one.
        """
        body = manifest_body(version=version, active=active, product=product, inactive=inactive)
        return sign_document(body, [item.der for item in self.chain], self.signer.key, form)

    def for_device(
        self, device: FakeDevice, changed: Mapping[int, Sequence[bytes]] | None = None
    ) -> tuple[Document, ...]:
        """Return all manifests of a device: of two, even indexes are the driver's and odd ones the VBIOS'."""
        versions = (SWITCH_BIOS,) if device.switch else (DRIVER, VBIOS)
        golden = {index: [measurement(index)] for index in range(device.measurements)} | dict(changed or {})
        documents = []
        for part, (identity, version) in enumerate(zip(device.manifest_ids(), versions, strict=True)):
            mine = {index: values for index, values in golden.items() if index % len(versions) == part}
            data = self.manifest(
                version=version,
                active=mine,
                product=device.profile.chip,
                inactive=[index for index in golden if index not in mine],
            )
            documents.append(Document(name=identity, data=data))
        return tuple(documents)


def ocsp_response(
    certificate: x509.Certificate,
    issuer: Authority,
    *,
    status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD,
    reason: x509.ReasonFlags | None = None,
    this_update: datetime = NOW - timedelta(hours=1),
    next_update: datetime | None = NOW + timedelta(days=1),
    responder: Authority | None = None,
    by_name: bool = False,
    algorithm: HashAlgorithm | None = None,
    extension: x509.ExtensionType | None = None,
) -> bytes:
    """Return a response about one certificate, signed by its issuer, or by `responder` with its own beside it."""
    revoked = status is ocsp.OCSPCertStatus.REVOKED
    signer = responder or issuer
    encoding = ocsp.OCSPResponderEncoding.NAME if by_name else ocsp.OCSPResponderEncoding.HASH
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response(
            certificate,
            issuer.certificate,
            algorithm or SHA384(),
            status,
            this_update,
            next_update,
            this_update if revoked else None,
            reason if revoked else None,
        )
        .responder_id(encoding, signer.certificate)
    )
    if responder is not None:
        builder = builder.certificates([responder.certificate])
    if extension is not None:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(signer.key, SHA384()).public_bytes(Encoding.DER)


def good_responses(chain: Sequence[Authority], **arguments: Any) -> tuple[Document, ...]:  # Any: of `ocsp_response`
    """Return a response for each certificate of a chain but the last."""
    return tuple(
        Document(name=f"{number}.ocsp", data=ocsp_response(item.certificate, issuer, **arguments))
        for number, (item, issuer) in enumerate(pairwise(chain))
    )


def endorse(pki: DevicePKI, devices: Sequence[FakeDevice] = (), manifests: ManifestPKI | None = None) -> Endorsements:
    """Return everything that makes the evidence of `devices` whole: roots, OCSP responses, manifests."""
    documents: dict[bytes, Document] = {}
    for device in devices:
        found = list(good_responses(device.chain[1:]))
        if manifests is not None:
            found += [*manifests.for_device(device), *good_responses(manifests.chain)]
        documents.update({item.data: item for item in found})
    roots = (*pki.roots(), *(manifests.roots() if manifests is not None else ()))
    return Endorsements(roots=roots, documents=tuple(documents.values()))


def _dice_extensions(profile: DeviceProfile, brom: Authority) -> list[x509.ExtensionType]:
    found: list[x509.ExtensionType] = []
    fwid = _tlv(0x30, _SHA384_OID + _tlv(0x04, profile.fwid))
    if profile.dice in ("composite", "both"):
        key = brom.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        found.append(x509.UnrecognizedExtension(COMPOSITE_DEVICE_ID, _tlv(0x30, b"\x02\x01\x01" + key + fwid)))
    if profile.dice in ("tcb_info", "both"):
        empty = _tlv(0x30, _SHA384_OID + _tlv(0x04, bytes(48)))
        members = _tlv(0x80, b"NVIDIA") + _tlv(0x81, profile.chip.encode()) + _tlv(0xA6, fwid + empty)
        if profile.flags is not None:
            members += _tlv(0x87, b"\0" + profile.flags)
        found.append(x509.UnrecognizedExtension(DICE_TCB_INFO, _tlv(0x30, members)))
    return found


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    head = bytes((tag, size)) if size < 0x80 else bytes((tag, 0x81, size)) if size < 0x100 else b""
    return (head or bytes((tag, 0x82)) + size.to_bytes(2, "big")) + content


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )
