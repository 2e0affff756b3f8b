"""Host key documents of IBM Secure Execution: is this the key of a genuine machine?

A host key document is a certificate that IBM's host key signing service signed. That service's certificate is no CA
certificate (basicConstraints false, keyUsage digitalSignature) and chains to a root through a commercial CA, so two
rules apply: the usual path for the service, a direct signature for the document. Each level has a CRL; the service
signs its own without cRLSign in its keyUsage, which is let pass for it alone. After
s390-tools (`rust/pv`, `genprotimg`) and IBM's "Verifying the host key document".

Trusts: the roots it is given. Nothing is fetched. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.x509.oid import NameOID

from cloister.crypto.pem import split_pem
from cloister.crypto.revocation import load_revocation_list, revocation_finding, verify_not_revoked
from cloister.crypto.x509path import extension, load_certificate, verify_path
from cloister.errors import EndorsementError, FormatRefused
from cloister.rats.endorsement import PinnedRoot
from cloister.rats.result import Finding
from cloister.wire.limits import CERTIFICATE_BYTES

PINS: Final[tuple[PinnedRoot, ...]] = ()  # the root is that of the commercial CA IBM uses; the owner names it
_CODE: Final = "tee.ibm_se.host_key"
_SIGNER: Final = "tee.ibm_se.signer"
_REVOCATION: Final = "tee.ibm_se.revocation"
_ORGANISATION: Final = "International Business Machines Corporation"
_SUBJECT: Final = {
    NameOID.COUNTRY_NAME: ("US",),
    NameOID.STATE_OR_PROVINCE_NAME: ("New York",),
    NameOID.LOCALITY_NAME: ("Poughkeepsie", "Armonk"),  # the signing service moved
    NameOID.ORGANIZATION_NAME: (_ORGANISATION,),
    NameOID.COMMON_NAME: (_ORGANISATION,),
}
_UNIT_SUFFIX: Final = "Key Signing Service"
_HASHES: Final = (SHA256, SHA384, SHA512)
_RSA_BITS: Final = 2048
_COORDINATE_BYTES: Final = 80
_PEM: Final = b"-----BEGIN"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostKey:
    """A verified host key.

    Attributes:
        certificate: the host key document.
        key_hash: SHA-256 of the key's coordinates: how requests and headers name it.
        findings: what was checked; revocation that is not known is among them as unavailable.
    """

    certificate: x509.Certificate
    key_hash: bytes
    findings: tuple[Finding, ...]

    @property
    def usable(self) -> bool:
        """Whether nothing stayed open."""
        return not any(finding.refuses or finding.unknown for finding in self.findings)


def verify_host_key_document(
    document: bytes,
    *,
    certificates: Sequence[bytes],
    revocation_lists: Sequence[bytes],
    roots: Sequence[bytes],
    at: datetime,
    grace: timedelta = timedelta(),
) -> HostKey:
    """Verify a host key document.

    Steps:
      1 one of the certificates given is of IBM's signing service, and its name is the document's issuer
      2 it chains to a root at the given time, and may sign
      3 it signed the document
      4 the document is valid at the given time
      5 none of them is revoked: document, signing service, intermediate CAs
      6 the key is on P-521, for key agreement

    Args:
        document: certificate, PEM or DER.
        certificates: signing service and intermediate CAs, PEM or DER; not trusted by being given.
        revocation_lists: PEM or DER; not trusted by being given.
        roots: trusted CA certificates, PEM or DER.
        at: aware time.
        grace: how long past its next update a list may still be used.

    Raises:
        FormatRefused: something does not parse.
        EndorsementError: a step does not hold (`tee.ibm_se.host_key.*`, `tee.ibm_se.signer.*`). Revocation lists that
            are missing or stale are findings, not errors.
    """
    host = _load(document, _CODE, "host key document")
    given = [_load(data, _SIGNER, f"certificates[{index}]") for index, data in enumerate(certificates)]
    anchors = [_load(data, "tee.ibm_se.root", f"roots[{index}]") for index, data in enumerate(roots)]
    # 1
    signer = _signer_of(host, given)
    # 2
    path = verify_path(
        signer, anchors=anchors, intermediates=[item for item in given if item != signer], at=at, code=_SIGNER
    )
    usage = extension(signer, x509.KeyUsage)
    if usage is None or not usage.digital_signature:
        raise EndorsementError(
            f"{_SIGNER}.key_usage", "certificate of the signing service may not sign", expected="digitalSignature"
        )
    # 3
    _verify_signed(host, signer)
    # 4
    _verify_validity(host, at)
    # 5
    lists = [load_revocation_list(data, code=_REVOCATION) for data in revocation_lists]
    findings = tuple(
        revocation_finding(
            verify_not_revoked(
                item,
                issuer,
                lists,
                at=at,
                code=_REVOCATION,
                grace=grace,
                allow_issuer_without_crl_sign=issuer == signer,
            ),
            code=_REVOCATION,
        )
        for item, issuer in pairwise((host, *path))
    )
    # 6
    return HostKey(certificate=host, key_hash=_key_hash(host), findings=findings)


def _signer_of(host: x509.Certificate, given: Sequence[x509.Certificate]) -> x509.Certificate:
    """Step 1. The names must be equal whole, locality and all."""
    found = [item for item in given if _is_signing_service(item.subject) and item.subject == host.issuer]
    if not found:
        raise EndorsementError(
            f"{_SIGNER}.untrusted",
            "no certificate of IBM's host key signing service vouches for the document",
            expected=host.issuer.rfc4514_string()[:160],
            actual=", ".join(item.subject.rfc4514_string()[:80] for item in given)[:160] or "no certificate",
            hint="give the signing service's certificate that IBM publishes with the host key documents",
        )
    return found[0]


def _is_signing_service(name: x509.Name) -> bool:
    """Return whether a subject has exactly the attributes of the signing service, each once."""
    found = {attribute.oid: attribute.value for attribute in name}
    unit = found.pop(NameOID.ORGANIZATIONAL_UNIT_NAME, "")
    return (
        len(list(name)) == len(_SUBJECT) + 1
        and found.keys() == _SUBJECT.keys()
        and all(found[oid] in accepted for oid, accepted in _SUBJECT.items())
        and isinstance(unit, str)
        and unit.endswith(_UNIT_SUFFIX)
    )


def _verify_signed(host: x509.Certificate, signer: x509.Certificate) -> None:
    """Step 3."""
    key = signer.public_key()
    strong = isinstance(key, rsa.RSAPublicKey) and key.key_size >= _RSA_BITS
    try:
        if not strong or not isinstance(host.signature_hash_algorithm, _HASHES):
            raise EndorsementError(
                f"{_CODE}.algorithm",
                "document is signed with an algorithm or key that is not accepted",
                expected="RSA of 2048 bits or more, with SHA-256, SHA-384 or SHA-512",
                actual=host.signature_algorithm_oid.dotted_string,
            )
        host.verify_directly_issued_by(signer)
    except (InvalidSignature, UnsupportedAlgorithm, TypeError, ValueError) as err:
        raise EndorsementError(
            f"{_CODE}.signature", "document is not signed by the signing service whose name it bears"
        ) from err


def _verify_validity(host: x509.Certificate, at: datetime) -> None:
    """Step 4."""
    start, end = host.not_valid_before_utc, host.not_valid_after_utc
    if not start <= at <= end:
        raise EndorsementError(
            f"{_CODE}.expired" if at > end else f"{_CODE}.not_yet_valid",
            "host key document is not valid at this time",
            expected=f"{start.isoformat()} to {end.isoformat()}",
            actual=at.isoformat(timespec="seconds"),
            hint="fetch the machine's current host key document from IBM Resource Link",
        )


def _key_hash(host: x509.Certificate) -> bytes:
    """Step 6."""
    key, usage = host.public_key(), extension(host, x509.KeyUsage)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP521R1):
        raise EndorsementError(f"{_CODE}.key", "host key is of another kind", expected="P-521")
    if usage is None or not usage.key_agreement:
        raise EndorsementError(f"{_CODE}.key", "host key is for another use", expected="keyAgreement")
    numbers = key.public_numbers()
    point = b"".join(number.to_bytes(_COORDINATE_BYTES, "big") for number in (numbers.x, numbers.y))
    return hashlib.sha256(point).digest()


def _load(data: bytes, code: str, path: str) -> x509.Certificate:
    ders = [data]
    if data[: len(_PEM)] == _PEM:
        ders = split_pem(data, code=code, path=path, ceiling=CERTIFICATE_BYTES)
    if len(ders) != 1:
        raise FormatRefused(f"{code}.malformed", "not one certificate", path=path, expected="1", actual=str(len(ders)))
    return load_certificate(ders[0], code=code, path=path)
