"""A fake Intel: its attestation PKI and platforms that sign real SGX and TDX quotes under a test root.

Layouts, names and statements are Intel's, keys are made here. Everything can be changed one at a time, so that a test
can have a correctly signed quote with any fault. The counterpart of `cloister.tee.dcap`.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from cloister.rats.claims import Level
from cloister.rats.endorsement import Document, Endorsements, TrustedRoot
from cloister.tee.dcap import abi
from cloister.tee.dcap.chain import PCK, PCK_CAS, TCB_SIGNING
from cloister.tee.dcap.pck import COMPONENTS, EXTENSION
from cloister.tee.eventlog import EV_NO_ACTION, Event, replay_digests
from cloister.testing.eventlog import (
    EV_EFI_ACTION,
    EV_EFI_BOOT_SERVICES_APPLICATION,
    EV_EVENT_TAG,
    EV_SEPARATOR,
    event,
)

NOW: Final = datetime(2026, 7, 1, tzinfo=UTC)
ISSUED: Final = NOW - timedelta(days=10)
NEXT_UPDATE: Final = NOW + timedelta(days=20)
FMSPC: Final = bytes.fromhex("90c06f0000ff")
QE_SIGNERS: Final = {  # signers of Intel's quoting enclaves
    "TDX": bytes.fromhex("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5"),
    "SGX": bytes.fromhex("8c4f5775d796503e96137f77c68a829a0056ac8ded70140b081b094490c57bff"),
}
REPORT_DATA: Final = bytes(range(48))
CONFIG_ID: Final = hashlib.sha384(b"init data of the test").digest()
_YEARS: Final = timedelta(days=3650)
_QE_IDS: Final = {"TDX": ("TD_QE", 2), "SGX": ("QE", 1)}
_QE_ATTRIBUTES: Final = bytes.fromhex("15000000000000000700000000000000")


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def _integer(value: int) -> bytes:
    return _der(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a PCK certificate says of its platform."""

    components: tuple[int, ...] = (5,) * COMPONENTS
    pce_svn: int = 11
    fmspc: bytes = FMSPC
    pce_id: bytes = bytes(2)
    ppid: bytes = b"\x77" * 16
    platform_instance: bytes = b"\x66" * 16
    configuration: Mapping[int, bool] = field(default_factory=lambda: {1: True, 2: False, 3: True})

    def extension(self) -> bytes:
        """Return the DER of the SGX extension."""
        prefix = bytes.fromhex("2a864886f84d010d01")

        def pair(oid: bytes, value: bytes) -> bytes:
            return _der(0x30, _der(0x06, prefix + oid) + value)

        tcb = [pair(bytes([2, index]), _integer(value)) for index, value in enumerate(self.components, 1)]
        tcb += [pair(b"\x02\x11", _integer(self.pce_svn)), pair(b"\x02\x12", _der(0x04, bytes(self.components)))]
        members = [
            pair(b"\x01", _der(0x04, self.ppid)),
            pair(b"\x02", _der(0x30, b"".join(tcb))),
            pair(b"\x03", _der(0x04, self.pce_id)),
            pair(b"\x04", _der(0x04, self.fmspc)),
            pair(b"\x05", _der(0x0A, b"\x01" if self.platform_instance else b"\x00")),
        ]
        if self.platform_instance:
            flags = [
                pair(bytes([7, index]), _der(0x01, b"\xff" if value else b"\x00"))
                for index, value in self.configuration.items()
            ]
            members += [pair(b"\x06", _der(0x04, self.platform_instance)), pair(b"\x07", _der(0x30, b"".join(flags)))]
        return _der(0x30, b"".join(members))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Authority:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


class FakeIntel:
    """Root, PCK CAs and the signer of collateral. All certificates are valid ten years around `NOW`."""

    def __init__(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        self.root: Final = _Authority(key=key, certificate=_certificate("Intel SGX Root CA", key, None, path_length=1))
        self.cas: Final = {name: self.authority(name, path_length=0) for name in PCK_CAS}
        self.tcb_signing: Final = self.authority(TCB_SIGNING)

    def authority(self, name: str, *, path_length: int | None = None, under: _Authority | None = None) -> _Authority:
        """Return a certificate below the root (or `under`) with a key of its own; a CA when `path_length` is given."""
        key = ec.generate_private_key(ec.SECP256R1())
        return _Authority(key=key, certificate=_certificate(name, key, under or self.root, path_length=path_length))

    @property
    def root_der(self) -> bytes:
        """The root certificate."""
        return self.root.certificate.public_bytes(Encoding.DER)

    def trusted(self, tee: str) -> TrustedRoot:
        """Return the root as an owner configures it, of level `hardware`."""
        return TrustedRoot(tee=tee, level=Level.HARDWARE, name="Intel SGX Root CA of the test", der=self.root_der)

    def endorsements(self, tee: str, collateral: bytes | None = None) -> Endorsements:
        """Return root and collateral; the usual collateral for `tee` when none is given, none when it is empty."""
        if collateral is None:
            collateral = self.collateral(tee.upper())
        documents = (Document(name="collateral.json", data=collateral),) if collateral else ()
        return Endorsements(roots=(self.trusted(tee),), documents=documents)

    def sign(self, text: bytes, signer: _Authority | None = None) -> bytes:
        """Return r and s over `text`, by the signer of collateral."""
        return _raw_signature((signer or self.tcb_signing).key, text)

    def revocation_list(
        self,
        issuer: _Authority,
        revoked: Sequence[x509.Certificate] = (),
        *,
        next_update: datetime = NEXT_UPDATE,
        key: ec.EllipticCurvePrivateKey | None = None,
    ) -> bytes:
        """Return a CRL of `issuer`, DER; signed by `key` when given."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(issuer.certificate.subject)
            .last_update(ISSUED)
            .next_update(next_update)
            .add_extension(x509.CRLNumber(1), critical=False)
        )
        for certificate in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number).revocation_date(ISSUED)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(key or issuer.key, SHA256()).public_bytes(Encoding.DER)

    def collateral_members(
        self,
        kind: str,
        *,
        tcb_info: Mapping[str, Any] | None = None,
        qe_identity: Mapping[str, Any] | None = None,
        revoked: Sequence[x509.Certificate] = (),
        signer: _Authority | None = None,
        ca: str = PCK_CAS[0],
    ) -> dict[str, str]:
        """Return the nine members of collateral for `TDX` or `SGX`.

        Args:
            kind: `TDX` or `SGX`.
            tcb_info: members to change in the TCB info.
            qe_identity: members to change in the enclave identity.
            revoked: certificates on both revocation lists.
            signer: of the two statements, instead of the right one; its certificate goes into the chains.
            ca: whose list is the second.
        """
        info = json.dumps({**tcb_info_of(kind), **(tcb_info or {})}, separators=(",", ":"))
        identity = json.dumps({**qe_identity_of(kind), **(qe_identity or {})}, separators=(",", ":"))
        signer = signer or self.tcb_signing
        chain = pem(signer.certificate, self.root.certificate)
        return {
            "pck_crl_issuer_chain": pem(self.cas[ca].certificate, self.root.certificate),
            "root_ca_crl": self.revocation_list(self.root, revoked).hex(),
            "pck_crl": self.revocation_list(self.cas[ca], revoked).hex(),
            "tcb_info_issuer_chain": chain,
            "tcb_info": info,
            "tcb_info_signature": self.sign(info.encode(), signer).hex(),
            "qe_identity_issuer_chain": chain,
            "qe_identity": identity,
            "qe_identity_signature": self.sign(identity.encode(), signer).hex(),
        }

    def collateral(self, kind: str, **changes: Any) -> bytes:  # Any: arguments of collateral_members
        """Return collateral as one JSON document; see `collateral_members`."""
        return json.dumps(self.collateral_members(kind, **changes)).encode()


class FakePlatform:
    """One machine: a PCK certificate, a quoting enclave, an attestation key.

    Args:
        intel: who certifies it.
        kind: `TDX` or `SGX`: which quoting enclave.
        machine: what its certificate says.
        ca: which PCK CA certifies it.
        qe: members to change in the report of the quoting enclave.
    """

    def __init__(
        self,
        intel: FakeIntel,
        kind: str = "TDX",
        *,
        machine: Machine | None = None,
        ca: str = PCK_CAS[0],
        name: str = PCK,
        qe: Mapping[str, Any] | None = None,
    ) -> None:
        self.intel = intel
        self.kind = kind
        self.key: Final = ec.generate_private_key(ec.SECP256R1())
        self.attestation_key: Final = ec.generate_private_key(ec.SECP256R1())
        issuer = intel.cas[ca]
        self.pck: Final = _certificate(name, self.key, issuer, extension=(machine or Machine()).extension())
        self.chain = (self.pck, issuer.certificate, intel.root.certificate)
        self._qe = qe or {}
        self._qe_signatures: dict[bytes, bytes] = {}  # a platform certifies its quoting enclave once

    def signature_data(self, signed: bytes) -> abi.SignatureData:
        """Return signature data over `signed`."""
        key = _point(self.attestation_key)
        authentication = bytes(range(32))
        report = replace(
            enclave_report(),
            mr_signer=QE_SIGNERS[self.kind],
            attributes=_QE_ATTRIBUTES,
            isv_prod_id=_QE_IDS[self.kind][1],
            isv_svn=8,
            report_data=hashlib.sha256(key + authentication).digest() + bytes(32),
        )
        qe_report = replace(report, **self._qe).encode()
        return abi.SignatureData(
            signature=_raw_signature(self.attestation_key, signed),
            attestation_key=key,
            qe_report=qe_report,
            qe_signature=self._qe_signatures.setdefault(qe_report, _raw_signature(self.key, qe_report)),
            authentication=authentication,
            certification_type=abi.PCK_CHAIN,
            certification=pem(*self.chain).encode() + b"\0",
        )

    def quote(
        self,
        body: abi.TDReport | abi.EnclaveReport,
        *,
        version: int = 0,
        vendor: bytes = abi.INTEL_QE,
        data: Mapping[str, Any] | None = None,
        tail: bytes = b"",
    ) -> bytes:
        """Return a quote over `body`.

        Args:
            body: what is attested.
            version: of the quote; the usual one for the body when zero.
            vendor: of the quoting enclave.
            data: members to change in the signature data, after signing.
            tail: what follows the quote.
        """
        td = isinstance(body, abi.TDReport)
        if not version:
            version = 3 if not td else 5 if len(body.encode()) == abi.TD15_BYTES else 4
        header = abi.QuoteHeader(version, abi.ECDSA_P256, abi.TDX if td else abi.SGX, bytes(4), vendor, bytes(20))
        body_type = None
        encoded = body.encode()
        if version == 5:
            body_type = {abi.REPORT_BYTES: 1, abi.TD10_BYTES: 2, abi.TD15_BYTES: 3}[len(encoded)]
            encoded = struct.pack("<HI", body_type, len(encoded)) + encoded
        signed = header.encode() + encoded
        return abi.Quote(
            header=header,
            body_type=body_type,
            body=body,
            signed=signed,
            data=replace(self.signature_data(signed), **(data or {})),
            tail=tail,
        ).encode()


def td_report(*, td15: bool = False, **changes: Any) -> abi.TDReport:  # Any: members of TDReport
    """Return a TD's report that the strict default accepts, but for the members in `changes`."""
    report = abi.TDReport(
        tee_tcb_svn=bytes([5, 1, 2]) + bytes(13),
        mr_seam=b"\x5e" * 48,
        mr_signer_seam=bytes(48),
        seam_attributes=bytes(8),
        td_attributes=(1 << 28).to_bytes(8, "little"),
        xfam=bytes.fromhex("e702060000000000"),
        mr_td=b"\xab" * 48,
        mr_config_id=CONFIG_ID,
        mr_owner=bytes(48),
        mr_owner_config=bytes(48),
        rtmr0=b"\xc0" * 48,
        rtmr1=b"\xc1" * 48,
        rtmr2=b"\xc2" * 48,
        rtmr3=bytes(48),
        report_data=REPORT_DATA.ljust(64, b"\0"),
    )
    if td15:
        report = replace(report, tee_tcb_svn2=report.tee_tcb_svn, mr_service_td=bytes(48))
    return replace(report, **changes)


def boot_log(*, initrd: bytes = b"initrd", options: str = "root=/dev/dm-0") -> tuple[Event, ...]:
    """Return what firmware and kernel of a TD record of a direct boot, in the numbers of a CC event log."""
    banks = ("sha384",)

    def tagged(tag: int, name: str, measured: bytes) -> Event:
        data = struct.pack("<II", tag, len(name) + 1) + name.encode() + b"\0"
        digest = hashlib.sha384(measured).digest()
        return Event(register=3, kind=EV_EVENT_TAG, digests={"sha384": digest}, data=data)

    return (
        event(1, EV_EFI_ACTION, b"TdxTable", algorithms=banks),
        event(1, EV_SEPARATOR, bytes(4), algorithms=banks),
        event(2, EV_EFI_BOOT_SERVICES_APPLICATION, b"kernel", algorithms=banks),
        event(0, EV_NO_ACTION, b"a remark", algorithms=banks),
        tagged(0x8F3B22ED, "LOADED_IMAGE::LoadOptions", options.encode("utf-16-le")),
        tagged(0x8F3B22EC, "Linux initrd", initrd),
        event(2, EV_EFI_ACTION, b"Exit Boot Services Returned with Success", algorithms=banks),
    )


def logged_report(events: Sequence[Event], **changes: Any) -> abi.TDReport:  # Any: members of TDReport
    """Return a TD's report whose registers are those that `events` replay to."""
    values = [
        replay_digests(
            [item.digests["sha384"] for item in events if item.register == index + 1 and item.kind != EV_NO_ACTION],
            bytes(48),
            algorithm="sha384",
        )
        for index in range(4)
    ]
    return replace(td_report(**changes), rtmr0=values[0], rtmr1=values[1], rtmr2=values[2], rtmr3=values[3])


def enclave_report(**changes: Any) -> abi.EnclaveReport:  # Any: members of EnclaveReport
    """Return an enclave's report that the strict default accepts, but for the members in `changes`."""
    report = abi.EnclaveReport(
        cpu_svn=b"\x05" * 16,
        misc_select=0,
        reserved1=bytes(12),
        isv_ext_prod_id=bytes(16),
        attributes=bytes.fromhex("05000000000000000700000000000000"),
        mr_enclave=b"\x99" * 32,
        reserved2=bytes(32),
        mr_signer=b"\x88" * 32,
        reserved3=bytes(32),
        config_id=CONFIG_ID.ljust(64, b"\0"),
        isv_prod_id=1,
        isv_svn=3,
        config_svn=0,
        reserved4=bytes(42),
        isv_family_id=bytes(16),
        report_data=REPORT_DATA.ljust(64, b"\0"),
    )
    return replace(report, **changes)


def tcb_info_of(kind: str) -> dict[str, Any]:  # Any: JSON
    """Return a TCB info (version 3) with a newest, an older and a revoked level."""
    info: dict[str, Any] = {
        "id": kind,
        "version": 3,
        "issueDate": _date(ISSUED),
        "nextUpdate": _date(NEXT_UPDATE),
        "fmspc": FMSPC.hex().upper(),
        "pceId": "0000",
        "tcbType": 0,
        "tcbEvaluationDataNumber": 19,
        "tcbLevels": [
            platform_level(kind, sgx=5, pce=11, tdx=(5, 0, 2)),
            platform_level(kind, sgx=3, pce=9, tdx=(3, 0, 1), status="OutOfDate", advisories=("INTEL-SA-01036",)),
            platform_level(kind, sgx=1, pce=5, tdx=(0, 0, 0), status="Revoked", advisories=("INTEL-SA-00220",)),
        ],
    }
    if kind == "TDX":
        signer = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
        levels = [isv_level(5), isv_level(2, status="OutOfDate", advisories=("INTEL-SA-01099",))]
        info["tdxModule"] = signer
        info["tdxModuleIdentities"] = [{"id": "TDX_01", **signer, "tcbLevels": levels}]
    return info


def qe_identity_of(kind: str) -> dict[str, Any]:  # Any: JSON
    """Return the identity (version 2) of the quoting enclave that `FakePlatform` has."""
    name, product = _QE_IDS[kind]
    return {
        "id": name,
        "version": 2,
        "issueDate": _date(ISSUED),
        "nextUpdate": _date(NEXT_UPDATE),
        "tcbEvaluationDataNumber": 19,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": QE_SIGNERS[kind].hex().upper(),
        "isvprodid": product,
        "tcbLevels": [isv_level(6), isv_level(4, status="OutOfDate", advisories=("INTEL-SA-00615",))],
    }


def platform_level(
    kind: str,
    *,
    sgx: int,
    pce: int,
    tdx: Sequence[int] = (),
    status: str = "UpToDate",
    advisories: Sequence[str] = (),
) -> dict[str, Any]:  # Any: JSON
    """Return a level of a TCB info: every SGX component at least `sgx`, the first TDX components at least `tdx`."""
    tcb: dict[str, Any] = {"sgxtcbcomponents": [{"svn": sgx}] * COMPONENTS, "pcesvn": pce}
    if kind == "TDX":
        tcb["tdxtcbcomponents"] = [{"svn": value} for value in (*tdx, *(0,) * (COMPONENTS - len(tdx)))]
    return _level(tcb, status, advisories)


def isv_level(isv_svn: int, *, status: str = "UpToDate", advisories: Sequence[str] = ()) -> dict[str, Any]:
    """Return a level of an enclave or of the TDX module."""
    return _level({"isvsvn": isv_svn}, status, advisories)


def pem(*certificates: x509.Certificate) -> str:
    """Return the certificates as PEM text, in order."""
    return "".join(item.public_bytes(Encoding.PEM).decode() for item in certificates)


def _level(tcb: Mapping[str, Any], status: str, advisories: Sequence[str]) -> dict[str, Any]:
    level: dict[str, Any] = {"tcb": tcb, "tcbDate": "2026-01-01T00:00:00Z", "tcbStatus": status}
    if advisories:
        level["advisoryIDs"] = list(advisories)
    return level


def _date(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _point(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def _raw_signature(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: _Authority | None,
    *,
    path_length: int | None = None,
    extension: bytes = b"",
) -> x509.Certificate:
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Intel")]
    )
    ca = path_length is not None
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - _YEARS)
        .not_valid_after(NOW + _YEARS)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, decipher_only=False, **usage),
            critical=True,
        )
    )
    if extension:
        builder = builder.add_extension(x509.UnrecognizedExtension(EXTENSION, extension), critical=False)
    return builder.sign(key if issuer is None else issuer.key, SHA256())
