"""Revocation by OCSP: does a response that was collected before say that this certificate of that CA is good?

RFC 6960. Responses arrive with the collateral and are worth nothing until their signature holds: by the CA itself, or
by a delegate whose certificate that CA issued for nothing but this purpose. `revoked` is refused whatever the age of
the response, `certificateHold` (revoked, but perhaps not for ever) when the newest response says it, with a code of
its own. That there is no response, none in force, or one that does not know the certificate is no refusal but a state:
the caller reports it as in `cloister.crypto.revocation`, and a policy decides.

Not done: nonces (a collected response answers many), revocation of the delegate (RFC 6960 4.2.2.2.1 lets the CA waive
it, and its certificate is short-lived), fetching. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from cloister.crypto.revocation import RevocationState, RevocationStatus
from cloister.crypto.x509path import PARSE_ERRORS, load_certificate, verify_path
from cloister.errors import EndorsementError, FormatRefused
from cloister.wire.limits import OCSP_BYTES

# Of a response without nextUpdate RFC 6960 4.2.2.1 says that a newer one can be had at any time; it is taken for a day.
WITHOUT_NEXT_UPDATE: Final = timedelta(days=1)
_CACHED: Final = 256
_HASHES: Final = (SHA256, SHA384, SHA512)
_ID_HASHES: Final = {"sha1": hashlib.sha1, "sha256": hashlib.sha256, "sha384": hashlib.sha384, "sha512": hashlib.sha512}
_PROCESSED: Final = frozenset({x509.OCSPNonce.oid})  # a nonce that nobody asked for says nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class OCSPResponse:
    """A response that parses and says `successful`, with one answer; nothing of it is verified."""

    der: bytes
    parsed: ocsp.OCSPResponse = field(compare=False)


def load_ocsp_response(der: bytes, *, code: str, path: str = "") -> OCSPResponse:
    """Parse one response.

    Raises:
        FormatRefused: too long, not well-formed, or an error message of the responder (`<code>.malformed`).
    """
    if len(der) > OCSP_BYTES:
        raise FormatRefused(
            f"{code}.malformed",
            "OCSP response too long",
            path=path,
            expected=f"at most {OCSP_BYTES} bytes",
            actual=str(len(der)),
        )
    try:
        parsed = _parse(der)
    except PARSE_ERRORS as err:
        raise FormatRefused(f"{code}.malformed", f"not an OCSP response: {err}"[:160], path=path) from err
    for certificate in parsed.certificates:  # the library parses their keys and extensions late
        load_certificate(certificate.public_bytes(Encoding.DER), code=code, path=path)
    return OCSPResponse(der=der, parsed=parsed)


def verify_not_revoked(
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    responses: Sequence[OCSPResponse],
    *,
    at: datetime,
    code: str,
    grace: timedelta = timedelta(),
) -> RevocationStatus:
    """Return what `responses` say of `certificate`.

    Steps: 1 the answers about that certificate of that issuer; 2 each response is signed by the issuer or its
    delegate and has no critical extension that is not understood; 3 none says revoked; 4 the newest is in force, and
    says good.

    Raises:
        EndorsementError: revoked (`<code>.revoked`), on hold (`<code>.on_hold`), not signed by the issuer or its
            delegate (`<code>.ocsp_signature`, `<code>.ocsp_responder.*`), or with parts that are not understood
            (`<code>.ocsp_extension`).
    """
    # 1
    name = certificate.subject.rfc4514_string()[:120] or "certificate without a subject"
    mine = [item for item in responses if _is_about(item.parsed, certificate, issuer)]
    # 2
    for response in mine:
        _verify_response(response, issuer, at=at, code=code)
    answers = [item.parsed for item in mine]
    # 3
    for item in answers:
        if item.certificate_status is ocsp.OCSPCertStatus.REVOKED and not _on_hold(item):
            raise _withdrawn(item, name, f"{code}.revoked", "certificate is revoked")
    # 4
    started = [item for item in answers if item.this_update_utc <= at]
    if not started:
        first = min(answers, key=lambda item: item.this_update_utc, default=None)
        if first is None:
            return RevocationStatus(state=RevocationState.MISSING, subject=name)
        return _status(RevocationState.STALE, name, first)
    newest = max(started, key=lambda item: item.this_update_utc)
    if newest.certificate_status is ocsp.OCSPCertStatus.REVOKED:
        raise _withdrawn(newest, name, f"{code}.on_hold", "certificate is on hold")
    if newest.certificate_status is ocsp.OCSPCertStatus.UNKNOWN:
        return _status(RevocationState.UNKNOWN, name, newest)
    end = _end(newest)
    state = RevocationState.GOOD if at <= end else RevocationState.GRACE
    return _status(state if at <= end + grace else RevocationState.STALE, name, newest)


def _is_about(item: ocsp.OCSPResponse, certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Return whether the CertID names this certificate: serial number, issuer's name and issuer's key."""
    digests = _issuer_digests(issuer).get(item.hash_algorithm.name)
    return (
        item.serial_number == certificate.serial_number
        and certificate.issuer == issuer.subject
        and digests == (item.issuer_name_hash, item.issuer_key_hash)
    )


@lru_cache(maxsize=_CACHED)
def _issuer_digests(issuer: x509.Certificate) -> dict[str, tuple[bytes, bytes]]:
    name, key = issuer.subject.public_bytes(), _key_bits(issuer)
    return {label: (make(name).digest(), make(key).digest()) for label, make in _ID_HASHES.items()}


def _key_bits(certificate: x509.Certificate) -> bytes:
    """Return the content of the subjectPublicKey bit string, which RFC 6960 hashes: without the algorithm."""
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        return key.public_bytes(Encoding.DER, PublicFormat.PKCS1)
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return b""


def _verify_response(response: OCSPResponse, issuer: x509.Certificate, *, at: datetime, code: str) -> None:
    """Step 2. A delegate must have been valid when the response was used, or last could be."""
    signer = _signer(response.parsed, issuer)
    where = issuer.subject.rfc4514_string()[:120]
    if signer is None or not _is_signed_by(response, signer):
        raise EndorsementError(
            f"{code}.ocsp_signature",
            "OCSP response is not signed by the CA it speaks for, nor by a delegate of it",
            path=where,
            hint="fetch the response from the vendor again",
        )
    if signer is not issuer:
        start, end = response.parsed.this_update_utc, _end(response.parsed)
        verify_path(
            signer,
            anchors=(issuer,),
            at=min(max(at, start), end),
            code=f"{code}.ocsp_responder",
            purpose=ExtendedKeyUsageOID.OCSP_SIGNING,
        )
    extensions = (*response.parsed.extensions, *response.parsed.single_extensions)
    unknown = next((item.oid.dotted_string for item in extensions if item.critical and item.oid not in _PROCESSED), "")
    if unknown:
        raise EndorsementError(
            f"{code}.ocsp_extension",
            "OCSP response has a critical extension that is not understood",
            path=where,
            actual=unknown,
        )


def _signer(parsed: ocsp.OCSPResponse, issuer: x509.Certificate) -> x509.Certificate | None:
    """Return the certificate the responder names itself by: the issuer, or one that came with the response."""
    for candidate in (issuer, *parsed.certificates):
        if parsed.responder_name is not None and parsed.responder_name == candidate.subject:
            return candidate
        if parsed.responder_key_hash is not None and parsed.responder_key_hash == _key_hash(candidate):
            return candidate
    return None


def _key_hash(certificate: x509.Certificate) -> bytes:
    return hashlib.sha1(_key_bits(certificate), usedforsecurity=False).digest()  # RFC 6960 4.2.1 KeyHash


@lru_cache(maxsize=_CACHED)
def _is_signed_by(response: OCSPResponse, signer: x509.Certificate) -> bool:
    """Same bytes, same key, same answer."""
    parsed, key = response.parsed, signer.public_key()
    try:
        algorithm = parsed.signature_hash_algorithm
        if not isinstance(algorithm, _HASHES):
            return False
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(parsed.signature, parsed.tbs_response_bytes, ec.ECDSA(algorithm))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(parsed.signature, parsed.tbs_response_bytes, padding.PKCS1v15(), algorithm)
        else:
            return False
    except (InvalidSignature, ValueError, UnsupportedAlgorithm):
        return False
    return True


def _end(item: ocsp.OCSPResponse) -> datetime:
    return item.next_update_utc or item.this_update_utc + WITHOUT_NEXT_UPDATE


def _on_hold(item: ocsp.OCSPResponse) -> bool:
    return item.revocation_reason is x509.ReasonFlags.certificate_hold


def _status(state: RevocationState, name: str, item: ocsp.OCSPResponse) -> RevocationStatus:
    return RevocationStatus(state=state, subject=name, this_update=item.this_update_utc, next_update=_end(item))


def _withdrawn(item: ocsp.OCSPResponse, name: str, code: str, message: str) -> EndorsementError:
    since = item.revocation_time_utc
    return EndorsementError(
        code,
        message,
        path=name,
        expected="good",
        actual=f"since {since.isoformat(timespec='seconds')}" if since else "no date",
        hint="the vendor withdrew this device, CA or signer",
    )


@lru_cache(maxsize=_CACHED)
def _parse(der: bytes) -> ocsp.OCSPResponse:
    """Parse and touch every part that parses late."""
    parsed = ocsp.load_der_ocsp_response(der)
    if parsed.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
        raise ValueError(f"the responder answered {parsed.response_status.name}")
    # The library shows the extensions of an answer only where it is alone; unseen critical ones could not be refused.
    if len(list(parsed.responses)) != 1:
        raise ValueError("not exactly one answer")
    _ = (parsed.extensions, parsed.single_extensions, parsed.certificates, parsed.responder_name)
    _ = (parsed.hash_algorithm, parsed.this_update_utc, parsed.next_update_utc, parsed.certificate_status)
    _ = (parsed.revocation_time_utc, parsed.revocation_reason, parsed.responder_key_hash)
    return parsed
