"""Who says that an AK lives in a TPM: the three ways, each ending at a root the owner configured. Pure.

- The owner does: the key itself is configured as a root (what CoCo's verifier calls a trusted AK).
- The maker of the TPM does, by the certificate of its EK. That says nothing of the AK yet: credential activation, the
  verifier's next step, ties the two.
- A cloud does, by a certificate of the AK itself, as Google's does for its virtual TPMs.

TCG EK Credential Profile for TPM 2.0 (rev. 2.5) and AK Certificate Profile; RFC 5280. A certificate is for a purpose:
an EK's for encrypting, an AK's for signing, told by keyUsage; the purposes of extKeyUsage are not enough, because
Google's AK certificates bear that of EKs. Revocation is judged wherever a CA offers lists, of every certificate of the
path: a missing or stale list leaves the question open, which is a finding and never silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtensionOID

from cloister.crypto.revocation import load_revocation_list, revocation_finding, verify_not_revoked
from cloister.crypto.x509path import extension, load_certificate, validity, verify_path
from cloister.errors import EndorsementError, EvidenceError
from cloister.rats.claims import Level, Window
from cloister.rats.endorsement import Endorsements, TrustedRoot
from cloister.rats.result import Finding, Question, Unchecked
from cloister.tee.checklist import Checklist, shorten
from cloister.tee.tpm.instanceinfo import InstanceInfo, read_instance_info

TEE: Final = "tpm"
EK_PURPOSE: Final = x509.ObjectIdentifier("2.23.133.8.1")  # tcg-kp-EKCertificate, EK Credential Profile 3.2.16
AK_PURPOSE: Final = x509.ObjectIdentifier("2.23.133.8.3")  # tcg-kp-AIKCertificate
_AK_PURPOSES: Final = frozenset({AK_PURPOSE, EK_PURPOSE})
_CACHED: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Vouched:
    """What a root says of the TPM.

    Attributes:
        level: the root's.
        certificate: of the EK or the AK; None when the owner trusts the key itself.
        window: in which everything relied on is valid; None when nothing expires.
        instance: which cloud instance the TPM belongs to, None when nobody says.
        findings: of revocation.
        unchecked: what was deliberately not checked.
    """

    level: Level
    certificate: x509.Certificate | None = None
    window: Window | None = None
    instance: InstanceInfo | None = None
    findings: tuple[Finding, ...] = ()
    unchecked: tuple[Unchecked, ...] = ()


def verify_trusted_key(checks: Checklist, key_der: bytes, roots: Sequence[TrustedRoot]) -> Vouched | None:
    """Return what a configured key that equals `key_der` (SubjectPublicKeyInfo) proves; None when there is none."""
    root = next((root for root in roots if is_key(root) and root.der == key_der), None)
    if root is None:
        return None
    checks.require(
        True,
        code="tee.tpm.ak_trusted",
        question=Question.AUTHENTIC,
        message=f"AK is a configured root itself, level {root.level.value}",
        otherwise="",
        expected=root.name,
        origin="configured roots",
    )
    return Vouched(
        level=root.level,
        unchecked=(Unchecked(reason="revocation of the AK: the owner trusts the key itself, which has no issuer"),),
    )


def verify_ek(
    checks: Checklist, der: bytes, roots: Sequence[TrustedRoot], endorsements: Endorsements, at: datetime
) -> Vouched:
    """Verify an EK certificate.

    Raises:
        FormatRefused, EndorsementError: it does not hold (`tee.tpm.ek_certificate.*`, `tee.tpm.no_roots`).
    """
    code = "tee.tpm.ek_certificate"
    certificate = load_certificate(der, code=code, path="ek_certificate")
    # An EK certificate with an empty subject must have its subjectAltName critical (EK Credential Profile 3.2.9): TPM
    # manufacturer, model and version as a directoryName. They are recorded, not judged.
    vouched = _verify_chain(checks, certificate, (), roots, endorsements, at, code=code, purpose=EK_PURPOSE)
    usage = extension(certificate, x509.KeyUsage)
    if usage is None or not usage.key_encipherment or usage.digital_signature or usage.key_cert_sign:
        raise EndorsementError(
            f"{code}.key_usage",
            "certificate is not for a storage key",
            path="ek_certificate",
            expected="keyEncipherment",
        )
    return vouched


def verify_ak_certificate(
    checks: Checklist,
    der: bytes,
    key_der: bytes,
    carried: Sequence[bytes],
    roots: Sequence[TrustedRoot],
    endorsements: Endorsements,
    at: datetime,
) -> Vouched:
    """Verify an AK certificate, and that it is of this key.

    Args:
        checks: of the verification.
        der: the certificate.
        key_der: SubjectPublicKeyInfo of the AK.
        carried: DER certificates that came with the evidence.
        roots: configured for TPMs.
        endorsements: further certificates and revocation lists.
        at: aware time.

    Raises:
        FormatRefused, EndorsementError: it does not hold (`tee.tpm.ak_certificate.*`, `tee.tpm.no_roots`).
        EvidenceError: it is of another key (`tee.tpm.ak_certificate.key`).
    """
    code = "tee.tpm.ak_certificate"
    certificate = load_certificate(der, code=code, path="ak_certificate")
    vouched = _verify_chain(checks, certificate, carried, roots, endorsements, at, code=code, purpose=None)
    usage = extension(certificate, x509.KeyUsage)
    purposes = extension(certificate, x509.ExtendedKeyUsage)
    if (
        usage is None
        or not usage.digital_signature
        or usage.key_encipherment
        or usage.key_agreement
        or usage.key_cert_sign
        or (purposes is not None and not set(purposes) <= _AK_PURPOSES)
    ):
        raise EndorsementError(
            f"{code}.key_usage",
            "certificate is not for an attestation key",
            path="ak_certificate",
            expected="digitalSignature alone, no purpose outside those of TPMs",
        )
    certified = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    checks.require(
        certified == key_der,
        code=f"{code}.key",
        question=Question.AUTHENTIC,
        message="AK certificate is of this AK",
        otherwise="AK certificate is of another key",
        expected=shorten(certified[-16:]),
        actual=shorten(key_der[-16:]),
        path="ak_certificate",
        hint="certificate and AK must be those of one TPM",
        error=EvidenceError,
    )
    return vouched


def is_key(root: TrustedRoot) -> bool:
    """Return whether a root is a key (SubjectPublicKeyInfo) and not a certificate."""
    return _is_key(root.der)


def _verify_chain(
    checks: Checklist,
    certificate: x509.Certificate,
    carried: Sequence[bytes],
    roots: Sequence[TrustedRoot],
    endorsements: Endorsements,
    at: datetime,
    *,
    code: str,
    purpose: x509.ObjectIdentifier | None,
) -> Vouched:
    certified = [root for root in roots if not is_key(root)]
    if not certified:
        raise EndorsementError(
            "tee.tpm.no_roots",
            "no CA for keys of TPMs is configured",
            expected="at least one CA certificate",
            actual="none",
            hint="configure the certificate of the CA that certifies the TPMs you trust",
        )
    anchors = [load_certificate(root.der, code="tee.tpm.root", path=root.name) for root in certified]
    path = verify_path(
        certificate,
        anchors=anchors,
        intermediates=[
            load_certificate(item, code="tee.tpm.intermediate") for item in (*carried, *endorsements.certificates)
        ],
        at=at,
        code=code,
        purpose=purpose,
        leaf_critical=frozenset({ExtensionOID.SUBJECT_ALTERNATIVE_NAME, ExtensionOID.EXTENDED_KEY_USAGE}),
    )
    root = certified[anchors.index(path[-1])]
    checks.require(
        True,
        code=code,
        question=Question.AUTHENTIC,
        message=f"certificate chains to a configured root, level {root.level.value}",
        otherwise="",
        expected=root.name,
        actual=" < ".join(item.subject.rfc4514_string()[:60] or "no subject" for item in path),
        origin="configured roots",
    )
    findings, unchecked, end = _verify_revocation(path, endorsements, at, code)
    start, last = validity(path)
    return Vouched(
        level=root.level,
        certificate=certificate,
        window=Window(not_before=start, not_after=min(last, end or last)),
        instance=read_instance_info(certificate),
        findings=findings,
        unchecked=unchecked,
    )


def _verify_revocation(
    path: Sequence[x509.Certificate], endorsements: Endorsements, at: datetime, code: str
) -> tuple[tuple[Finding, ...], tuple[Unchecked, ...], datetime | None]:
    """Return the findings, what nobody offers to check, and the earliest end of a list in force."""
    lists = [load_revocation_list(data, code="tee.tpm.crl") for data in endorsements.revocation_lists]
    findings: list[Finding] = []
    unchecked: list[Unchecked] = []
    ends: list[datetime] = []
    for certificate, issuer in pairwise(path):
        if not _offers_revocation(certificate) and all(item.parsed.issuer != issuer.subject for item in lists):
            name = certificate.subject.rfc4514_string()[:80] or "the certificate without a subject"
            unchecked.append(Unchecked(reason=f"revocation of {name}: its CA offers none"))
            continue
        status = verify_not_revoked(certificate, issuer, lists, at=at, code=code, grace=endorsements.grace)
        finding = revocation_finding(status, code=f"{code}.revocation")
        findings.append(finding)
        if finding.ok and status.next_update is not None:
            ends.append(status.next_update)
    return tuple(findings), tuple(unchecked), min(ends, default=None)


def _offers_revocation(certificate: x509.Certificate) -> bool:
    """Return whether the issuer says where its lists or its responder are."""
    if extension(certificate, x509.CRLDistributionPoints) is not None:
        return True
    access = extension(certificate, x509.AuthorityInformationAccess)
    return access is not None and any(item.access_method == AuthorityInformationAccessOID.OCSP for item in access)


@lru_cache(maxsize=_CACHED)
def _is_key(der: bytes) -> bool:
    try:
        load_der_public_key(der)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True
