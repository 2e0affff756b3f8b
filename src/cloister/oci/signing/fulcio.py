"""Certificates of a keyless signature: chain, certificate transparency, identity (Fulcio's certificate specification).

A Fulcio certificate says "at this moment, whoever held this key was logged in as X at issuer Y", and lives ten minutes.
So it is judged at the time of the signature, which a log or a timestamp authority vouches for, never at the present.
Pure: no clock, no network. Trusts the trusted root it is given.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.certificate_transparency import SignedCertificateTimestamp
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from cloister.crypto.x509path import PARSE_ERRORS, extension, load_certificate, verify_path
from cloister.errors import EndorsementError, ImageRefused, Refused
from cloister.oci.signing.trustedroot import TransparencyLog, TrustedRoot

_CODE: Final = "oci.signing.fulcio"
_ISSUER_V1: Final = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_ISSUER_V2: Final = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
_OTHER_NAME: Final = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.7")
_UTF8: Final = 0x0C
_PRECERTIFICATE_ENTRY: Final = 1  # RFC 6962, section 3.4


class CertificateIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Who must have signed: subject alternative name and OIDC issuer, both compared whole."""

    subject: str
    issuer: str

    def __str__(self) -> str:
        return f"{self.subject} by {self.issuer}"


def load_leaf(der: bytes) -> x509.Certificate:
    """Parse a signer's certificate.

    Raises:
        ImageRefused: `oci.signing.fulcio.malformed`.
    """
    try:
        return load_certificate(der, code=_CODE)
    except Refused as err:
        raise ImageRefused(f"{_CODE}.malformed", err.message) from err


def verify_chain(
    leaf: x509.Certificate, root: TrustedRoot, at: datetime, intermediates: Sequence[x509.Certificate] = ()
) -> x509.Certificate:
    """Return the issuer of `leaf` if a trusted authority stood behind it at the time of the signature.

    Raises:
        ImageRefused: `oci.signing.fulcio.untrusted`, `.expired` and the other codes of `x509path.verify_path`.
    """
    refusal = ImageRefused(f"{_CODE}.untrusted", "no certificate authority is trusted at the time of the signature")
    for authority in root.authorities:
        if at not in authority.period:
            continue
        try:
            path = verify_path(
                leaf,
                anchors=authority.chain[-1:],
                intermediates=(*authority.chain[:-1], *intermediates),
                at=at,
                code=_CODE,
                purpose=ExtendedKeyUsageOID.CODE_SIGNING,
                leaf_critical=frozenset({ExtensionOID.SUBJECT_ALTERNATIVE_NAME}),
            )
        except EndorsementError as err:
            refusal = ImageRefused(err.code, err.message, path=err.path, expected=err.expected, actual=err.actual)
        else:
            return path[1]
    raise refusal


def verify_transparency(leaf: x509.Certificate, issuer: x509.Certificate, logs: Sequence[TransparencyLog]) -> None:
    """Return if a trusted certificate-transparency log promised to publish `leaf` (RFC 6962, section 3.2).

    Raises:
        ImageRefused: `oci.signing.fulcio.no_sct`, `oci.signing.fulcio.sct`.
    """
    try:
        stamps = extension(leaf, x509.PrecertificateSignedCertificateTimestamps)
    except PARSE_ERRORS as err:
        raise ImageRefused(f"{_CODE}.sct", "signed certificate timestamps do not parse") from err
    if not stamps:
        raise ImageRefused(f"{_CODE}.no_sct", "certificate has no signed certificate timestamp")
    for stamp in stamps:
        try:
            at = stamp.timestamp.replace(tzinfo=UTC)
        except (ValueError, OverflowError) as err:  # its 64 bits go beyond the calendar
            raise ImageRefused(f"{_CODE}.sct", "signed certificate timestamps do not parse") from err
        for log in logs:
            if log.log_id == stamp.log_id and at in log.period and _sct_holds(leaf, issuer, stamp, log):
                return
    raise ImageRefused(f"{_CODE}.sct", "no trusted certificate-transparency log vouches for the certificate")


def _sct_holds(
    leaf: x509.Certificate, issuer: x509.Certificate, stamp: SignedCertificateTimestamp, log: TransparencyLog
) -> bool:
    try:
        log.key.verify(sct_message(leaf, issuer, stamp), stamp.signature)
    except Refused:
        return False
    return True


def sct_message(leaf: x509.Certificate, issuer: x509.Certificate, stamp: SignedCertificateTimestamp) -> bytes:
    """Return what a log signs of a certificate that holds the timestamp itself: the certificate without it."""
    key = issuer.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    body = leaf.tbs_precertificate_bytes
    extensions = stamp.extension_bytes
    milliseconds = round(stamp.timestamp.replace(tzinfo=UTC).timestamp() * 1000)
    head = struct.pack(">BBQH", 0, 0, milliseconds, _PRECERTIFICATE_ENTRY)  # version 1, certificate_timestamp
    length = len(body).to_bytes(3, "big")
    return head + hashlib.sha256(key).digest() + length + body + struct.pack(">H", len(extensions)) + extensions


def read_identity(leaf: x509.Certificate) -> tuple[tuple[str, ...], str]:
    """Return the certificate's subject names and OIDC issuer (empty if it has none).

    Raises:
        ImageRefused: `oci.signing.fulcio.identity_malformed`.
    """
    try:
        names = extension(leaf, x509.SubjectAlternativeName)
        subjects = tuple(_name_text(name) for name in names or ())
        return tuple(text for text in subjects if text), _issuer(leaf)
    except (*PARSE_ERRORS, ImageRefused) as err:
        raise ImageRefused(f"{_CODE}.identity_malformed", "certificate's identity does not parse") from err


def require_identity(leaf: x509.Certificate, identities: Sequence[CertificateIdentity]) -> CertificateIdentity:
    """Return which of `identities` the certificate is for.

    Raises:
        ImageRefused: `oci.signing.fulcio.identity`.
    """
    subjects, issuer = read_identity(leaf)
    for identity in identities:
        if identity.subject in subjects and identity.issuer == issuer:
            return identity
    raise ImageRefused(
        f"{_CODE}.identity",
        "certificate is for another identity",
        expected=" or ".join(map(str, identities))[:300] or "no identity at all",
        actual=f"{', '.join(subjects) or 'no name'} by {issuer or 'no issuer'}"[:300],
    )


def _name_text(name: x509.GeneralName) -> str:
    if isinstance(name, (x509.RFC822Name, x509.UniformResourceIdentifier)):
        return name.value
    if isinstance(name, x509.OtherName) and name.type_id == _OTHER_NAME:
        return _utf8_string(name.value)
    return ""


def _issuer(leaf: x509.Certificate) -> str:
    """Where a certificate has both extensions they must agree, or two verifiers would see two issuers."""
    found = {
        item.oid: item.value.value for item in leaf.extensions if isinstance(item.value, x509.UnrecognizedExtension)
    }
    old = found[_ISSUER_V1].decode("utf-8") if _ISSUER_V1 in found else None
    new = _utf8_string(found[_ISSUER_V2]) if _ISSUER_V2 in found else None
    if old is not None and new is not None and old != new:
        raise ImageRefused(f"{_CODE}.identity_malformed", "certificate names two issuers")
    return new or old or ""


def _utf8_string(der: bytes) -> str:
    """Return the text of one DER UTF8String."""
    if len(der) < 2 or der[0] != _UTF8:
        raise ImageRefused(f"{_CODE}.identity_malformed", "not a UTF8String")
    start = 2
    length = der[1]
    if length > 0x80:
        start = 2 + (length & 0x7F)
        length = int.from_bytes(der[2:start], "big")
    if len(der) != start + length or length == 0x80:
        raise ImageRefused(f"{_CODE}.identity_malformed", "UTF8String of another length")
    return der[start:].decode("utf-8")
