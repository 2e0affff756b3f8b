"""A TPM 2.0 made of `cryptography`: signs real structures under a test root, and lies where it is told to.

`FakeTPM` has the methods of `cloister.tee.tpm.attester.TPMAttester`; its EK certificate has the profile of
`swtpm_localca`, its quotes parse and verify, its credential activation decrypts what `TPM2_MakeCredential` made.
`foreign_evidence` is what attesters that do not enrol send. Nothing of it is secret or fast. Every deviation a test may
want is a named member of `EKProfile` or `QuoteFaults`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from cloister.errors import EvidenceError
from cloister.rats.claims import Level
from cloister.rats.endorsement import Endorsements, TrustedRoot
from cloister.rats.evidence import Evidence, ExpectedBinding
from cloister.tee.tpm import abi, commands
from cloister.tee.tpm import constants as c
from cloister.tee.tpm.credential import ak_name, challenge_for, credential_keys, identity_cipher
from cloister.tee.tpm.eventlog import EV_NO_ACTION, Event, hcrtm_start
from cloister.tee.tpm.quote import qualified_name
from cloister.testing.eventlog import build_event_log
from cloister.wire.base64 import encode_b64

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
REPORT_DATA: Final = bytes(range(48))
INIT_DATA_DIGEST: Final = hashlib.sha256(b"init data of the test pod").digest()
LAUNCH_BLOB: Final = b'{"version":1}'
EK_PURPOSE: Final = x509.ObjectIdentifier("2.23.133.8.1")
AK_PURPOSE: Final = x509.ObjectIdentifier("2.23.133.8.3")
INSTANCE_INFO: Final = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.1.21")
_TPM_ATTRIBUTES: Final = (("2.23.133.2.1", "id:00001014"), ("2.23.133.2.2", "fake"), ("2.23.133.2.3", "id:00000001"))
_COORDINATE_BYTES: Final = 32
_DRTM_PCRS: Final = range(17, 23)  # start as ones: no dynamic launch took place


@dataclass(frozen=True, slots=True, kw_only=True)
class EKProfile:
    """What the CA writes into a certificate; the default is what `swtpm_localca` writes for an EK.

    Attributes:
        crl_url: where the CA says its revocation list is; empty says nothing.
        instance_info: value of Google's extension; empty leaves it out.
    """

    not_before: datetime = NOW - timedelta(days=1)
    not_after: datetime = NOW + timedelta(days=365)
    purposes: tuple[x509.ObjectIdentifier, ...] = (EK_PURPOSE,)
    key_encipherment: bool = True
    digital_signature: bool = False
    ca: bool = False
    unknown_critical: bool = False
    key_agreement: bool = False
    crl_url: str = ""
    instance_info: bytes = b""


AK_PROFILE: Final = EKProfile(purposes=(AK_PURPOSE,), key_encipherment=False, digital_signature=True)


class EndorsementCA:
    """A root and an issuing CA, as `swtpm_localca` makes them.

    Args:
        name: part of both names, so that CAs of the same name can be told apart by key only.
        now: begin of validity is a day before.
        path_length: of the root; zero forbids the issuing CA that follows.
    """

    def __init__(self, name: str = "swtpm-localca", *, now: datetime = NOW, path_length: int | None = None) -> None:
        self._start, self._end = now - timedelta(days=1), now + timedelta(days=3650)
        self.root_key = ec.generate_private_key(ec.SECP256R1())
        self.issuing_key = ec.generate_private_key(ec.SECP256R1())
        root_name, issuing_name = _common_name(f"{name}-rootca"), _common_name(name)
        self.root = self._ca(root_name, root_name, self.root_key, path_length)
        self.issuing = self._ca(issuing_name, root_name, self.issuing_key, None)

    def roots(self, level: Level = Level.MEASURED) -> tuple[TrustedRoot, ...]:
        """Return both certificates as trusted roots for technology `tpm`."""
        return tuple(
            TrustedRoot(
                tee="tpm",
                level=level,
                name=certificate.subject.rfc4514_string(),
                der=certificate.public_bytes(Encoding.DER),
            )
            for certificate in (self.issuing, self.root)
        )

    def endorsements(self, level: Level = Level.MEASURED) -> Endorsements:
        """Return `roots` as endorsements."""
        return Endorsements(roots=self.roots(level))

    def revocation_list(
        self,
        revoked: Iterable[bytes] = (),
        *,
        this_update: datetime = NOW - timedelta(days=1),
        next_update: datetime = NOW + timedelta(days=30),
        signing_key: ec.EllipticCurvePrivateKey | None = None,
    ) -> bytes:
        """Return a CRL (DER) of the issuing CA that names the DER certificates `revoked`."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.issuing.subject)
            .last_update(this_update)
            .next_update(next_update)
        )
        for der in revoked:
            serial = x509.load_der_x509_certificate(der).serial_number
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(this_update).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(signing_key or self.issuing_key, SHA256()).public_bytes(Encoding.DER)

    def issue(self, ek: rsa.RSAPublicKey | ec.EllipticCurvePublicKey, profile: EKProfile | None = None) -> bytes:
        """Return a certificate (DER), of an EK unless `profile` says otherwise."""
        profile = profile or EKProfile()
        names = x509.Name([x509.NameAttribute(x509.ObjectIdentifier(oid), text) for oid, text in _TPM_ATTRIBUTES])
        builder = (
            x509.CertificateBuilder()
            .subject_name(_common_name("unknown"))
            .issuer_name(self.issuing.subject)
            .public_key(ek)
            .serial_number(x509.random_serial_number())
            .not_valid_before(profile.not_before)
            .not_valid_after(profile.not_after)
            .add_extension(x509.SubjectAlternativeName([x509.DirectoryName(names)]), critical=True)
            .add_extension(x509.BasicConstraints(ca=profile.ca, path_length=None), critical=True)
            .add_extension(
                _key_usage(
                    key_encipherment=profile.key_encipherment,
                    digital_signature=profile.digital_signature,
                    key_agreement=profile.key_agreement,
                ),
                critical=True,
            )
        )
        if profile.crl_url:
            point = x509.DistributionPoint([x509.UniformResourceIdentifier(profile.crl_url)], None, None, None)
            builder = builder.add_extension(x509.CRLDistributionPoints([point]), critical=False)
        if profile.instance_info:
            instance = x509.UnrecognizedExtension(INSTANCE_INFO, profile.instance_info)
            builder = builder.add_extension(instance, critical=False)
        if profile.purposes:
            builder = builder.add_extension(x509.ExtendedKeyUsage(profile.purposes), critical=False)
        if profile.unknown_critical:
            unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
            builder = builder.add_extension(unknown, critical=True)
        return builder.sign(self.issuing_key, SHA256()).public_bytes(Encoding.DER)

    def _ca(
        self, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, path_length: int | None
    ) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._start)
            .not_valid_after(self._end)
            .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
            .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .sign(self.root_key, SHA256())
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteFaults:
    """Deviations of one quote; None means the truth. Everything but `values` and `append_*` is signed as it stands."""

    magic: int | None = None
    kind: int | None = None
    qualified_signer: bytes | None = None
    extra_data: bytes | None = None
    selections: tuple[abi.PCRSelection, ...] | None = None
    quoted_values: Sequence[bytes] | None = None
    values: Sequence[bytes] | None = None
    hash_algorithm: int | None = None
    signing_key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None
    append_to_message: bytes = b""
    append_to_signature: bytes = b""
    safe: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One finished challenge and answer: what a verifier has in its hands."""

    evidence: Evidence
    binding: ExpectedBinding


@dataclass(slots=True, kw_only=True)
class _Registers:
    values: list[bytes] = field(
        default_factory=lambda: [
            b"\xff" * c.SHA256_BYTES if index in _DRTM_PCRS else bytes(c.SHA256_BYTES) for index in range(c.PCRS)
        ]
    )

    def extend(self, index: int, digest: bytes) -> None:
        self.values[index] = hashlib.sha256(self.values[index] + digest).digest()


class FakeTPM:
    """A TPM with one EK and one AK.

    Args:
        ca: who certifies the EK.
        profile: of the EK certificate.
        ak_attributes: TPMA_OBJECT bits of the AK.
        ak_scheme: (scheme, hash) of the AK.
        launch_blob: measured as H-CRTM before start-up, as Cloister's launcher does.
        events: what firmware measured and logged.
        ek: an RSA key to use instead of a fresh one.
        ak: the AK to use instead of a fresh P-256 one; an RSA key signs with RSASSA.
    """

    def __init__(
        self,
        ca: EndorsementCA,
        *,
        profile: EKProfile | None = None,
        ak_attributes: int = commands.AK_ATTRIBUTES,
        ak_scheme: tuple[int, int] | None = None,
        launch_blob: bytes | None = None,
        events: Iterable[Event] = (),
        ek: rsa.RSAPrivateKey | None = None,
        ak: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
    ) -> None:
        self._ek = ek or rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.ek_certificate = ca.issue(self._ek.public_key(), profile)
        self.ak_key = ak or ec.generate_private_key(ec.SECP256R1())
        scheme = ak_scheme or (
            c.ALG_RSASSA if isinstance(self.ak_key, rsa.RSAPrivateKey) else c.ALG_ECDSA,
            c.ALG_SHA256,
        )
        self.ak_public = abi.encode_public(
            abi.Public(
                name_algorithm=c.ALG_SHA256,
                attributes=ak_attributes,
                policy=b"",
                symmetric=None,
                scheme=scheme[0],
                scheme_hash=scheme[1],
                unique=_unique(self.ak_key),
            )
        )
        self._registers = _Registers()
        if launch_blob is not None:
            self._registers.values[0] = hcrtm_start(launch_blob)
        self._events = tuple(events)
        for item in self._events:
            if item.kind != EV_NO_ACTION:
                self._registers.extend(item.register, item.digests["sha256"])

    def __enter__(self) -> FakeTPM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    @property
    def name(self) -> bytes:
        """Name of the AK."""
        return ak_name(self.ak_public)

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extend register `pcr`; a real TPM takes 32 bytes and no other number."""
        if len(digest) != c.SHA256_BYTES:
            raise RuntimeError("a SHA-256 register is extended with 32 bytes")
        self._registers.extend(pcr, digest)

    def read_pcrs(self) -> dict[int, bytes]:
        """Return all 24 registers."""
        return dict(enumerate(self._registers.values))

    def enrol(self) -> tuple[bytes, bytes]:
        """Return (EK certificate DER, AK TPM2B_PUBLIC)."""
        return self.ek_certificate, self.ak_public

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """Recover a credential as TPM2_ActivateCredential does.

        Raises:
            EvidenceError: it was made for another EK or AK, or altered (`tee.tpm.credential_refused`).
        """
        refusal = EvidenceError("tee.tpm.credential_refused", "the credential is for another TPM or key")
        oaep = padding.OAEP(mgf=padding.MGF1(SHA256()), algorithm=SHA256(), label=b"IDENTITY\x00")
        try:
            seed = self._ek.decrypt(_unsized(encrypted_secret), oaep)
        except ValueError as err:
            raise refusal from err
        blob = _unsized(credential_blob)
        tag, identity = blob[2:34], blob[34:]
        storage_key, integrity_key = credential_keys(seed, self.name)
        if not hmac.compare_digest(tag, hmac.digest(integrity_key, identity + self.name, "sha256")):
            raise refusal
        decryptor = identity_cipher(storage_key).decryptor()
        return _unsized(decryptor.update(identity) + decryptor.finalize())

    def attest(
        self, report_data: bytes, secret: bytes, faults: QuoteFaults | None = None
    ) -> dict[str, Any]:  # Any: JSON object of texts and lists
        """Return an evidence body that binds `report_data` and carries `secret`, with `faults`."""
        faults = faults or QuoteFaults()
        message, signature = self.quote(report_data[: c.REPORT_DATA_BYTES], faults)
        values = self._registers.values if faults.values is None else faults.values
        return {
            "ak_public": encode_b64(self.ak_public),
            "ek_certificate": encode_b64(self.ek_certificate),
            "activation": encode_b64(secret),
            "tpm_quote": {
                "signature": encode_b64(signature),
                "message": encode_b64(message),
                "pcrs": [value.hex() for value in values],
            },
            "event_log": encode_b64(build_event_log(self._events)) if self._events else "",
        }

    def quote(self, extra_data: bytes, faults: QuoteFaults) -> tuple[bytes, bytes]:
        """Return (TPMS_ATTEST, TPMT_SIGNATURE) of a quote over all registers, with `faults`."""
        quoted = self._registers.values if faults.quoted_values is None else faults.quoted_values
        attest = abi.QuoteAttest(
            qualified_signer=qualified_name(c.RH_ENDORSEMENT, self.name),
            extra_data=extra_data,
            clock=1_000,
            reset_count=1,
            restart_count=0,
            safe=faults.safe,
            firmware_version=1,
            selections=(abi.PCRSelection(algorithm=c.ALG_SHA256, bitmap=b"\xff\xff\xff"),),
            pcr_digest=hashlib.sha256(b"".join(quoted)).digest(),
        )
        for name in ("qualified_signer", "extra_data", "selections"):
            if (value := getattr(faults, name)) is not None:
                attest = replace(attest, **{name: value})
        message = abi.encode_quote_attest(attest)
        magic = c.GENERATED if faults.magic is None else faults.magic
        kind = c.ST_ATTEST_QUOTE if faults.kind is None else faults.kind
        message = magic.to_bytes(4, "big") + kind.to_bytes(2, "big") + message[6:] + faults.append_to_message
        signature = _sign(faults.signing_key or self.ak_key, message)
        if faults.hash_algorithm is not None:
            signature = replace(signature, hash_algorithm=faults.hash_algorithm)
        return message, abi.encode_signature(signature) + faults.append_to_signature

    def foreign_evidence(
        self,
        extra_data: bytes,
        registers: Sequence[int] = range(c.PCRS),
        *,
        certificate: bytes = b"",
        intermediates: Sequence[bytes] = (),
        key_only: bool = False,
        faults: QuoteFaults | None = None,
    ) -> Evidence:
        """Return evidence as an attester sends it that does not enrol.

        Args:
            extra_data: of the quote.
            registers: what is quoted, ascending.
            certificate: of the AK.
            intermediates: DER certificates that go along.
            key_only: send SubjectPublicKeyInfo, as CoCo's attester does, and not the public area.
            faults: of the quote; its `values` are those of `registers` then.
        """
        faults = faults or QuoteFaults()
        own = [self._registers.values[index] for index in registers]
        bitmap = sum(1 << index for index in registers).to_bytes(3, "little")
        selections = (abi.PCRSelection(algorithm=c.ALG_SHA256, bitmap=bitmap),)
        changed = replace(
            faults,
            selections=selections if faults.selections is None else faults.selections,
            quoted_values=own if faults.quoted_values is None else faults.quoted_values,
        )
        message, signature = self.quote(extra_data, changed)
        spki = self.ak_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        body: dict[str, Any] = {  # Any: JSON object of texts and lists
            "ak_public": encode_b64(spki if key_only else self.ak_public),
            "tpm_quote": {
                "signature": encode_b64(signature),
                "message": encode_b64(message),
                "pcrs": [value.hex() for value in (own if faults.values is None else faults.values)],
            },
        }
        if self._events:
            body["event_log"] = encode_b64(build_event_log(self._events))
        if certificate:
            body["ak_certificate"] = encode_b64(certificate)
            body["ak_intermediates"] = [encode_b64(der) for der in intermediates]
        return Evidence(tee="tpm", body=body)


def run_session(
    tpm: FakeTPM, *, report_data: bytes, init_data_digest: bytes, faults: QuoteFaults | None = None
) -> Session:
    """Play challenge and answer with `tpm`, whose register 8 the caller has extended."""
    ek_certificate, ak_public = tpm.enrol()
    blob, encrypted, session_secret = challenge_for(ek_certificate, ak_public)
    body = tpm.attest(report_data, tpm.activate(blob, encrypted), faults)
    return Session(
        evidence=Evidence(tee="tpm", body=body),
        binding=ExpectedBinding(
            report_data=report_data, init_data_digest=init_data_digest, session_secret=session_secret
        ),
    )


def _unique(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> abi.RSAUnique | abi.ECCUnique:
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.public_key().public_numbers()
        return abi.RSAUnique(
            bits=key.key_size, exponent=numbers.e, modulus=numbers.n.to_bytes(key.key_size // 8, "big")
        )
    point = key.public_key().public_numbers()
    return abi.ECCUnique(
        curve=c.CURVE_P256,
        x=point.x.to_bytes(_COORDINATE_BYTES, "big"),
        y=point.y.to_bytes(_COORDINATE_BYTES, "big"),
    )


def _sign(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, message: bytes) -> abi.Signature:
    if isinstance(key, rsa.RSAPrivateKey):
        algorithm, values = c.ALG_RSASSA, (key.sign(message, padding.PKCS1v15(), SHA256()),)
        return abi.Signature(algorithm=algorithm, hash_algorithm=c.ALG_SHA256, values=values)
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(SHA256())))
    pair = (r.to_bytes(_COORDINATE_BYTES, "big"), s.to_bytes(_COORDINATE_BYTES, "big"))
    return abi.Signature(algorithm=c.ALG_ECDSA, hash_algorithm=c.ALG_SHA256, values=pair)


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _key_usage(
    *,
    key_encipherment: bool = False,
    digital_signature: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
    key_agreement: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=key_encipherment,
        data_encipherment=False,
        key_agreement=key_agreement,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _unsized(data: bytes) -> bytes:
    """Return the content of a TPM2B."""
    return data[2 : 2 + int.from_bytes(data[:2], "big")]
