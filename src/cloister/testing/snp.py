"""A fake AMD: roots and CAs of any product line, chips and clouds with their keys, reports of any version, CRLs.

Everything is signed for real under keys made here, so a verifier cannot tell it from AMD's but by the root. The fake
devices answer an attester as the kernel does: a configfs with generations, and the ioctls of /dev/sev-guest.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloister.crypto.x509path import load_certificate
from cloister.rats.claims import Level
from cloister.rats.endorsement import Endorsements, TrustedRoot
from cloister.rats.evidence import Evidence
from cloister.tee.sev_snp import attester as device
from cloister.tee.sev_snp.abi import SIGNED_BYTES, VCEK, VLEK, Report, encode_report
from cloister.tee.sev_snp.certtable import encode_certificate_table
from cloister.tee.sev_snp.products import CHIP_ID_BYTES, PRODUCTS, Product
from cloister.tee.tsmreport import TSM
from cloister.testing.tsm import FakeTSM
from cloister.wire.base64 import encode_b64

NOW: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)
REPORT_DATA: Final = bytes(range(48))
INIT_DATA_DIGEST: Final = bytes(range(100, 132))
MEASUREMENT: Final = bytes([0xAB]) * 48
CPUS: Final[Mapping[str, tuple[int, int, int]]] = {"Milan": (25, 1, 1), "Genoa": (25, 17, 1), "Turin": (26, 2, 1)}
TCBS: Final[Mapping[str, Mapping[str, int]]] = {
    "Milan": {"bootloader": 4, "tee": 0, "snp": 29, "microcode": 222},
    "Genoa": {"bootloader": 10, "tee": 0, "snp": 28, "microcode": 90},
    "Turin": {"fmc": 1, "bootloader": 3, "tee": 2, "snp": 5, "microcode": 97},
}
_LIFE: Final = timedelta(days=3650)
_OID: Final = "1.3.6.1.4.1.3704.1."
_COMPONENT_OIDS: Final = {"bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8", "fmc": "3.9"}
_PSS: Final = padding.PSS(mgf=padding.MGF1(SHA384()), salt_length=48)
_PLACEHOLDER: Final = 77  # stands for serial number zero until the library has written the rest
_RSA_BITS: Final = 2048  # AMD's have 4096, which take seconds to make
_POLICY: Final = 0x30000
_NO_AGENT: Final = bytes([0xFF]) * 32
_KINDS: Final = {VCEK: "SEV-VCEK", VLEK: "SEV-VLEK"}


@cache
def _rsa_key(name: str) -> rsa.RSAPrivateKey:
    """Return the key of that name; a few are enough for all tests, and each costs a tenth of a second."""
    return rsa.generate_private_key(public_exponent=65537, key_size=_RSA_BITS)


def amd_name(common_name: str) -> x509.Name:
    """Return a subject as AMD writes it."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "Engineering"),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.LOCALITY_NAME, "Santa Clara"),
            x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "CA"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Advanced Micro Devices"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def der_integer(value: int) -> bytes:
    """Return a small INTEGER in DER."""
    return bytes([2, 1, value]) if value < 0x80 else bytes([2, 2, 0, value])


def der_ia5(text: str) -> bytes:
    """Return an IA5String in DER."""
    return bytes([0x16, len(text)]) + text.encode("ascii")


def _sign_again(der: bytes, signed: bytes, changed: bytes, signature: bytes, key: rsa.RSAPrivateKey) -> bytes:
    """Return a certificate or list with `signed` changed and signed again: the library writes no serial number zero."""
    start = der.index(signed)
    head = len(b"\x03\x82\x01\x01\x00")  # BIT STRING of an RSA signature
    algorithm = der[start + len(signed) : len(der) - len(signature) - head]
    tail = der[len(der) - len(signature) - head : len(der) - len(signature)]
    return der[:start] + changed + algorithm + tail + key.sign(changed, _PSS, SHA384())


class FakeAMD:
    """AMD for one product line: an ARK, and the ASK and ASVK below it.

    Args:
        line: product line.
        name: of its keys; another name is a stranger with the same subjects.
        start: validity of its certificates.
        end: validity of its certificates.
        cas_sign_lists: whether ASK and ASVK may sign revocation lists; AMD's may not.
    """

    def __init__(
        self,
        line: str = "Genoa",
        *,
        name: str = "amd",
        start: datetime = NOW - _LIFE,
        end: datetime = NOW + _LIFE,
        cas_sign_lists: bool = False,
    ) -> None:
        self._cas_sign_lists = cas_sign_lists
        self.product: Product = next(item for item in PRODUCTS if item.line == line)
        self.line = line
        self._keys = {kind: _rsa_key(f"{name}-{kind}") for kind in ("ark", "ask", "asvk")}
        self._start, self._end = start, end
        self.ark = self._ca(f"ARK-{line}", "ark", 65536)
        self.ask = self._ca(f"SEV-{line}", "ask", 65537)
        self.asvk = self._ca(f"SEV-VLEK-{line}", "asvk", 65793)

    def _ca(self, common_name: str, kind: str, serial: int) -> x509.Certificate:
        root = kind == "ark"
        usage = x509.KeyUsage(False, False, False, False, False, True, root or self._cas_sign_lists, False, False)
        builder = (
            x509.CertificateBuilder()
            .subject_name(amd_name(common_name))
            .issuer_name(amd_name(f"ARK-{self.line}"))
            .public_key(self._keys[kind].public_key())
            .serial_number(serial)
            .not_valid_before(self._start)
            .not_valid_after(self._end)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None if root else 0), critical=True)
            .add_extension(usage, critical=True)
        )
        return builder.sign(self._keys["ark"], SHA384(), rsa_padding=_PSS)

    def issue(
        self,
        key: ec.EllipticCurvePublicKey,
        *,
        kind: int = VCEK,
        tcb: Mapping[str, int] | None = None,
        hwid: bytes = b"",
        changes: Mapping[str, bytes | None] | None = None,
        subject: str = "",
        by: str = "",
        serial: int = 0,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> x509.Certificate:
        """Return the certificate of a VEK.

        Args:
            key: the VEK.
            kind: `VCEK` or `VLEK`.
            tcb: that the key is of.
            hwid: of the chip, as written in the extension.
            changes: extensions below AMD's arc to write otherwise, or None to leave out.
            subject: another common name.
            by: name of the CA (`ask`, `asvk`, `ark`) that signs instead of the right one.
            serial: AMD's is always zero.
            start: validity.
            end: validity.
        """
        layout = self.product.layout
        extensions: dict[str, bytes | None] = {
            "1": der_integer(layout.struct_version),
            "2": der_ia5(self.line if kind == VLEK or self.line == "Turin" else f"{self.line}-B0"),
        }
        for name, version in (tcb or TCBS[self.line]).items():
            extensions[_COMPONENT_OIDS[name]] = der_integer(version)
        extensions |= {"5": der_ia5("CN=cloud.example")} if kind == VLEK else {"4": hwid}
        extensions |= changes or {}
        ca = by or ("asvk" if kind == VLEK else "ask")
        issuer: x509.Certificate = getattr(self, ca)
        builder = (
            x509.CertificateBuilder()
            .subject_name(amd_name(subject or _KINDS[kind]))
            .issuer_name(issuer.subject)
            .public_key(key)
            .serial_number(serial or _PLACEHOLDER)
            .not_valid_before(start or NOW - timedelta(days=30))
            .not_valid_after(end or NOW + timedelta(days=365))
        )
        for oid, value in extensions.items():
            if value is not None:
                builder = builder.add_extension(
                    x509.UnrecognizedExtension(x509.ObjectIdentifier(_OID + oid), value), critical=False
                )
        made = builder.sign(self._keys[ca], SHA384(), rsa_padding=_PSS)
        if serial:
            return made
        signed = made.tbs_certificate_bytes
        changed = signed.replace(b"\x02\x01\x02" + der_integer(_PLACEHOLDER), b"\x02\x01\x02\x02\x01\x00", 1)
        der = _sign_again(made.public_bytes(Encoding.DER), signed, changed, made.signature, self._keys[ca])
        return load_certificate(der, code="tee.sev_snp.vek")

    def revocation_list(
        self,
        *revoked: int,
        start: datetime = NOW - timedelta(days=30),
        end: datetime = NOW + timedelta(days=335),
        by: str = "ark",
        issuer: str = "",
    ) -> bytes:
        """Return a list with these serial numbers, DER.

        Args:
            revoked: serial numbers.
            start: thisUpdate.
            end: nextUpdate.
            by: whose key signs.
            issuer: common name it bears, that of `by` when absent.
        """
        signer: x509.Certificate = getattr(self, by)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(amd_name(issuer) if issuer else signer.subject)
            .last_update(start)
            .next_update(end)
        )
        for serial in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder().serial_number(serial or _PLACEHOLDER).revocation_date(start).build()
            )
        made = builder.sign(self._keys[by], SHA384(), rsa_padding=_PSS)
        der = made.public_bytes(Encoding.DER)
        if 0 not in revoked:
            return der
        signed = made.tbs_certlist_bytes
        changed = signed.replace(der_integer(_PLACEHOLDER) + b"\x17", b"\x02\x01\x00\x17", 1)
        return _sign_again(der, signed, changed, made.signature, self._keys[by])

    def endorsements(self, *certificates: bytes, lists: tuple[bytes, ...] | None = None) -> Endorsements:
        """Return endorsements that trust this ARK and hold the CAs below it, and a list that is in force."""
        cas = (self.ask.public_bytes(Encoding.DER), self.asvk.public_bytes(Encoding.DER))
        return Endorsements(
            roots=(self.root(),),
            certificates=(*cas, *certificates),
            revocation_lists=(self.revocation_list(),) if lists is None else lists,
        )

    def root(self, *, tee: str = "snp") -> TrustedRoot:
        """Return the ARK as an owner configures it."""
        return TrustedRoot(
            tee=tee, level=Level.HARDWARE, name=f"ARK-{self.line} (test)", der=self.ark.public_bytes(Encoding.DER)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeChip:
    """A chip with its VCEK, or a machine of a cloud with a VLEK.

    Attributes:
        amd: who certified it.
        key: the VEK.
        chip_id: as reported.
        kind: `VCEK` or `VLEK`.
        tcb: that the key is of.
        vek: the certificate, DER.
        cpuid: of the CPU.
    """

    amd: FakeAMD
    key: ec.EllipticCurvePrivateKey
    chip_id: bytes
    kind: int
    tcb: Mapping[str, int]
    vek: bytes
    cpuid: tuple[int, int, int] = field(default=(0, 0, 0))

    @classmethod
    def made_by(
        cls,
        amd: FakeAMD,
        *,
        kind: int = VCEK,
        tcb: Mapping[str, int] | None = None,
        first: int = 0x41,
        wrapped: bool = False,
        **issue: Any,  # Any: what `FakeAMD.issue` takes
    ) -> FakeChip:
        """Return a new chip.

        Args:
            amd: who makes it.
            kind: `VCEK` or `VLEK`.
            tcb: that it runs.
            first: first byte of its id.
            wrapped: write the hardware id inside an OCTET STRING.
            **issue: handed to `FakeAMD.issue`.
        """
        key = ec.generate_private_key(ec.SECP384R1())
        size = amd.product.hwid_bytes
        hwid = bytes([first]) + os.urandom(size - 1)
        tcb = dict(tcb or TCBS[amd.line])
        written = bytes([4, size]) + hwid if wrapped else hwid
        certificate = amd.issue(key.public_key(), kind=kind, hwid=written, **{"tcb": tcb, **issue})
        return cls(
            amd=amd,
            key=key,
            chip_id=bytes(CHIP_ID_BYTES) if kind == VLEK else hwid.ljust(CHIP_ID_BYTES, b"\0"),
            kind=kind,
            tcb=tcb,
            vek=certificate.public_bytes(Encoding.DER),
            cpuid=CPUS[amd.line],
        )

    def report(self, *, version: int = 3, **changes: Any) -> bytes:  # Any: fields of `Report`
        """Return a signed report, 1184 bytes; `changes` are made before it is signed."""
        tcb = self.amd.product.layout.encode(self.tcb)
        report = Report(
            version=version,
            guest_svn=2,
            policy=_POLICY,
            family_id=bytes(16),
            image_id=bytes(16),
            vmpl=0,
            signature_algorithm=1,
            current_tcb=tcb,
            platform_info=0x25,
            key_info=self.kind << 2,
            report_data=REPORT_DATA.ljust(64, b"\0"),
            measurement=MEASUREMENT,
            host_data=INIT_DATA_DIGEST,
            id_key_digest=bytes(48),
            author_key_digest=bytes(48),
            report_id=bytes(range(32)),
            report_id_ma=_NO_AGENT,
            reported_tcb=tcb,
            cpuid=self.cpuid if version >= 3 else None,
            chip_id=self.chip_id,
            committed_tcb=tcb,
            current=(1, 58, 1),
            committed=(1, 58, 1),
            launch_tcb=tcb,
            launch_mitigations=0x1F if version >= 5 else 0,
            current_mitigations=0x1F if version >= 5 else 0,
            r=1,
            s=1,
        )
        return self.sign(encode_report(replace(report, **changes)))

    def sign(self, report: bytes) -> bytes:
        """Return `report` with a signature of this chip over whatever its first part holds."""
        r, s = decode_dss_signature(self.key.sign(report[:SIGNED_BYTES], ec.ECDSA(SHA384())))
        signature = r.to_bytes(72, "little") + s.to_bytes(72, "little")
        return report[:SIGNED_BYTES] + signature + report[SIGNED_BYTES + len(signature) :]

    def evidence(self, report: bytes | None = None, *, version: int = 3, **changes: Any) -> Evidence:
        """Return evidence with a report and the VEK's certificate beside it."""
        entry = {"cert_type": _KINDS[self.kind].removeprefix("SEV-"), "data": list(self.vek)}
        report = report if report is not None else self.report(version=version, **changes)
        return Evidence(tee="snp", body={"attestation_report": encode_b64(report), "cert_chain": [entry]})

    def certificate_table(self) -> bytes:
        """Return the table a host hands out: VEK, ASK or ASVK, ARK."""
        ca = self.amd.asvk if self.kind == VLEK else self.amd.ask
        return encode_certificate_table(
            (
                (_KINDS[self.kind].removeprefix("SEV-"), self.vek),
                ("ASK", ca.public_bytes(Encoding.DER)),
                ("ARK", self.amd.ark.public_bytes(Encoding.DER)),
            )
        )


def fake_tsm(
    root: Path, chip: FakeChip, *, version: int = 3, host_data: bytes = INIT_DATA_DIGEST, **options: Any
) -> FakeTSM:
    """Return configfs-tsm of a guest on `chip`, with the arguments of `FakeTSM`; its directory is made in `root`."""
    (root / TSM).mkdir(parents=True)
    return FakeTSM(
        lambda data, level: chip.report(version=version, report_data=data, vmpl=level, host_data=host_data),
        **{"provider": device.PROVIDER, **options},
    )


class FakeSEVGuest:
    """/dev/sev-guest: reads and writes the structures at the addresses it is given, as the driver does.

    Args:
        root: of the device tree; the device is made there.
        chip: who answers.
        table: the host's certificates.
        busy: how many requests the host throttles first.
        status: of the secure processor's answer.
        extended: whether the host answers extended requests at all.
    """

    def __init__(
        self,
        root: Path,
        chip: FakeChip,
        *,
        table: bytes = b"",
        busy: int = 0,
        status: int = 0,
        extended: bool = True,
        fault: int = 0,
    ) -> None:
        self._chip, self._table, self._busy, self._status = chip, table, busy, status
        self._extended, self._fault = extended, fault
        self.requests: list[int] = []
        self.vmpl = -1
        (root / "dev").mkdir(parents=True, exist_ok=True)
        (root / device.DEVICE).write_bytes(b"")

    def ioctl(self, descriptor: int, request: int, argument: bytearray) -> int:
        """Answer one request.

        Raises:
            OSError: as the driver says no.
        """
        os.fstat(descriptor)
        self.requests.append(request)
        version, question, answer, _ = device.REQUEST.unpack(argument)
        if version != 1:
            raise OSError(errno.EINVAL, "message version")
        if self._busy:
            self._busy -= 1
            self._fail(argument, errno.EAGAIN, 2 << 32)
        if self._fault:
            self._fail(argument, self._fault, 0x16)
        plain = ctypes.string_at(question, device.REPORT_REQUEST.size)
        if request == device.SNP_GET_EXT_REPORT:
            self._put_table(argument, question)
        elif request != device.SNP_GET_REPORT:
            raise OSError(errno.ENOTTY, "no such request")
        data, self.vmpl = device.REPORT_REQUEST.unpack(plain)
        report = self._chip.report(report_data=data, vmpl=self.vmpl)
        response = device.RESPONSE_HEAD.pack(self._status, 0 if self._status else len(report)) + report
        ctypes.memmove(answer, response, len(response))
        return 0

    def _put_table(self, argument: bytearray, question: int) -> None:
        plain, address, space = device.EXT_REQUEST.unpack(ctypes.string_at(question, device.EXT_REQUEST.size))
        needed = -(-len(self._table) // 4096) * 4096 if self._extended else 0
        if not self._extended or needed > space:
            changed = device.EXT_REQUEST.pack(plain, address, needed)
            ctypes.memmove(question, changed, len(changed))
            self._fail(argument, errno.EIO, 1 << 32)
        ctypes.memmove(address, self._table, len(self._table))

    def _fail(self, argument: bytearray, code: int, exit_information: int) -> None:
        fields = device.REQUEST.unpack(argument)
        device.REQUEST.pack_into(argument, 0, *fields[:3], exit_information)
        raise OSError(code, os.strerror(code))


def no_sleep(seconds: float) -> None:
    """Stand for `time.sleep`."""
