"""A Nitro hypervisor made of `cryptography`: a root, its intermediate CAs, and a security module that signs documents.

`NitroCA` has the shape of the real hierarchy (root, region, zone, instance, leaf; P-384 throughout). `FakeNSM` answers
the requests of `cloister.tee.nitro.attester` through the same ioctl as the kernel's driver. Every deviation a test may
want is a named member of `NitroFaults`. Nothing of it is secret.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloister.rats.claims import Level
from cloister.rats.endorsement import Endorsements, TrustedRoot
from cloister.rats.evidence import Evidence, ExpectedBinding
from cloister.tee.nitro.abi import REGISTER_BYTES, REGISTERS, Document, encode_document
from cloister.tee.nitro.attester import IOCTL_RAW, IOVECS
from cloister.testing.cose import sign1
from cloister.wire.base64 import encode_b64
from cloister.wire.cbor import CBOR, decode_cbor, encode_cbor

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
REPORT_DATA: Final = bytes(range(48))
INIT_DATA_DIGEST: Final = hashlib.sha384(b"init data of the test enclave").digest()
MODULE_ID: Final = "i-0123456789abcdef0-enc0123456789abcdef"
TEE: Final = "nitro"
RANDOM_BYTES: Final = 256
_LOCKED: Final = frozenset(range(5)) | {8}


@dataclass(frozen=True, slots=True, kw_only=True)
class NitroFaults:
    """What is wrong with a document; the default is nothing.

    Attributes:
        debug: PCR 0 to 2 are zero.
        age: how long ago the module says it made the document.
        leaf_lifetime: of the leaf certificate.
        leaf_starts: how long before `now` the leaf begins; negative for the future.
        leaf_ca: the leaf is a CA certificate.
        leaf_signs: the leaf's keyUsage has digitalSignature.
        region_path_length: pathLenConstraint of the first intermediate.
        signing_key: key that signs instead of the leaf's.
        header: protected header instead of ES384.
        unprotected: unprotected header.
        extra_certificate: a certificate that is not part of the chain is added to the bundle.
        drop: certificates left out of the bundle, by index.
        members: members of the payload to replace; None removes one.
        indefinite: the payload is a map of indefinite length.
    """

    debug: bool = False
    age: timedelta = timedelta(seconds=5)
    leaf_lifetime: timedelta = timedelta(hours=3)
    leaf_starts: timedelta = timedelta(seconds=10)
    leaf_ca: bool = False
    leaf_signs: bool = True
    region_path_length: int | None = None
    signing_key: ec.EllipticCurvePrivateKey | None = None
    header: Mapping[int, CBOR] | None = None
    unprotected: Mapping[int, CBOR] | None = None
    extra_certificate: bool = False
    drop: frozenset[int] = frozenset()
    members: Mapping[str, CBOR] = field(default_factory=dict)
    indefinite: bool = False


class NitroCA:
    """A root that has the name of the real one, and the CAs below it.

    Args:
        now: the hierarchy is valid around it.

    Attributes:
        region_serial: serial number of the first intermediate, which the root's revocation list may name.
    """

    def __init__(self, *, now: datetime = NOW) -> None:
        self.now = now
        self.root_key, self._region_key, self._zone_key, self._instance_key, self.leaf_key = (
            ec.generate_private_key(ec.SECP384R1()) for _ in range(5)
        )
        name = _name("aws.nitro-enclaves")
        self.root = self._issue(name, name, self.root_key, self.root_key, days=3650, ca=True)
        self.region_serial = x509.random_serial_number()

    def roots(self, level: Level = Level.HARDWARE) -> tuple[TrustedRoot, ...]:
        """Return the root as a trusted root."""
        der = self.root.public_bytes(Encoding.DER)
        return (TrustedRoot(tee=TEE, level=level, name="test root of Nitro", der=der),)

    def endorsements(self) -> Endorsements:
        """Return `roots` as endorsements."""
        return Endorsements(roots=self.roots())

    def chain(self, faults: NitroFaults | None = None) -> tuple[bytes, tuple[bytes, ...]]:
        """Return (leaf, bundle), DER, the bundle root first."""
        faults = faults or NitroFaults()
        names = [_name(text) for text in ("region.test", "zone.test", "instance.test", MODULE_ID)]
        region = self._issue(
            names[0],
            self.root.subject,
            self._region_key,
            self.root_key,
            ca=True,
            path_length=faults.region_path_length,
            serial=self.region_serial,
        )
        zone = self._issue(names[1], names[0], self._zone_key, self._region_key, ca=True)
        instance = self._issue(names[2], names[1], self._instance_key, self._zone_key, ca=True)
        start = self.now - faults.leaf_starts
        leaf = self._issue(
            names[3],
            names[2],
            self.leaf_key,
            self._instance_key,
            ca=faults.leaf_ca,
            signs=faults.leaf_signs,
            window=(start, start + faults.leaf_lifetime),
        )
        bundle = [self.root, region, zone, instance]
        if faults.extra_certificate:
            bundle.append(self._issue(_name("unused.test"), names[2], self.leaf_key, self._instance_key, ca=True))
        ders = [item.public_bytes(Encoding.DER) for index, item in enumerate(bundle) if index not in faults.drop]
        return leaf.public_bytes(Encoding.DER), tuple(ders)

    def revocation_list(self, *serials: int, lifetime: timedelta = timedelta(days=1)) -> bytes:
        """Return a CRL of the root that lists `serials`, in force from two days ago until `lifetime` from now."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.root.subject)
            .last_update(self.now - timedelta(days=2))
            .next_update(self.now + lifetime)
        )
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(self.now)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self.root_key, SHA384()).public_bytes(Encoding.DER)

    def _issue(
        self,
        subject: x509.Name,
        issuer: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        signer: ec.EllipticCurvePrivateKey,
        *,
        ca: bool,
        days: int = 20,
        signs: bool = True,
        path_length: int | None = None,
        window: tuple[datetime, datetime] | None = None,
        serial: int = 0,
    ) -> x509.Certificate:
        start, end = window or (self.now - timedelta(days=1), self.now + timedelta(days=days))
        usage = x509.KeyUsage(
            digital_signature=signs and not ca,
            content_commitment=False,
            key_encipherment=not signs,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=ca,
            crl_sign=ca,
            encipher_only=False,
            decipher_only=False,
        )
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(serial or x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
            .add_extension(usage, critical=True)
            .sign(signer, SHA384())
        )


class FakeNSM:
    """A security module: registers, documents under `ca`, and the kernel's ioctl.

    Args:
        ca: whose leaf key signs.
        faults: what is wrong with the documents.
        answer: what the module answers instead of what it should, encoded; None for the truth.
    """

    def __init__(self, ca: NitroCA, faults: NitroFaults | None = None, *, answer: bytes | None = None) -> None:
        self.ca = ca
        self.faults = faults or NitroFaults()
        self.answer = answer
        self.requests: list[CBOR] = []
        self.registers = {index: bytes(REGISTER_BYTES) for index in range(REGISTERS)}
        if not self.faults.debug:
            for index in (0, 1, 2, 4):
                self.registers[index] = hashlib.sha384(b"measured %d" % index).digest()

    def ioctl(self, _descriptor: int, request: int, message: bytearray) -> int:
        """Answer one request as the driver does: read and write the caller's memory through two iovecs."""
        if request != IOCTL_RAW or len(message) != IOVECS.size:
            raise OSError(25, "Inappropriate ioctl for device")
        sent, sent_length, received, room = IOVECS.unpack(message)
        answer = self.answer
        if answer is None:
            answer = encode_cbor(
                self.reply(decode_cbor(ctypes.string_at(sent, sent_length), ceiling=4096, code="tee.nitro.document"))
            )
        if len(answer) > room:
            raise OSError(90, "Message too long")
        ctypes.memmove(received, answer, len(answer))
        IOVECS.pack_into(message, 0, sent, sent_length, received, len(answer))
        return 0

    def reply(self, request: CBOR) -> CBOR:
        """Return the module's answer to one request."""
        self.requests.append(request)
        if request == "GetRandom":
            return {"GetRandom": {"random": os.urandom(RANDOM_BYTES)}}
        if not isinstance(request, dict) or len(request) != 1:
            return {"Error": "InvalidOperation"}
        name, arguments = next(iter(request.items()))
        index = arguments.get("index", 0)
        if index not in self.registers:
            return {"Error": "InvalidIndex"}
        if name == "DescribePCR":
            return {name: {"lock": index in _LOCKED, "data": self.registers[index]}}
        if name == "ExtendPCR":
            if index in _LOCKED:
                return {"Error": "ReadOnlyIndex"}
            self.registers[index] = hashlib.sha384(self.registers[index] + arguments["data"]).digest()
            return {name: {"data": self.registers[index]}}
        if name == "Attestation":
            return {name: {"document": self.document(**arguments)}}
        return {"Error": "InvalidOperation"}

    def document(
        self, *, nonce: bytes | None = None, user_data: bytes | None = None, public_key: bytes | None = None
    ) -> bytes:
        """Return a signed attestation document."""
        faults = self.faults
        certificate, bundle = self.ca.chain(faults)
        document = Document(
            module_id=MODULE_ID,
            timestamp=int((self.ca.now - faults.age).timestamp() * 1000),
            registers={index: value for index, value in self.registers.items() if index < 16},
            certificate=certificate,
            bundle=bundle,
            public_key=public_key or b"",
            user_data=user_data or b"",
            nonce=nonce or b"",
        )
        payload = encode_document(document)
        if faults.members:
            members = decode_cbor(payload, ceiling=1 << 20, code="tee.nitro.document") | dict(faults.members)
            payload = encode_cbor({name: value for name, value in members.items() if value is not None})
        if faults.indefinite:
            payload = b"\xbf" + payload[1:] + b"\xff"
        return sign1(
            payload,
            faults.signing_key or self.ca.leaf_key,
            tagged=False,
            header=faults.header,
            unprotected=faults.unprotected,
        )

    def evidence(self, *, nonce: bytes = REPORT_DATA, user_data: bytes = INIT_DATA_DIGEST) -> Evidence:
        """Return evidence bound to `nonce` and `user_data`."""
        return Evidence(tee=TEE, body={"document": encode_b64(self.document(nonce=nonce, user_data=user_data))})


def nitro_evidence(ca: NitroCA, **faults: object) -> Evidence:
    """Return evidence with named faults (members of `NitroFaults`), bound to `BINDING`."""
    return FakeNSM(ca, replace(NitroFaults(), **faults)).evidence()  # type: ignore[arg-type]  # names are checked by it


BINDING: Final = ExpectedBinding(report_data=REPORT_DATA, init_data_digest=INIT_DATA_DIGEST)


def _name(text: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Amazon"),
            x509.NameAttribute(NameOID.COMMON_NAME, text),
        ]
    )
