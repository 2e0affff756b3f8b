"""Certification paths (RFC 5280 section 6) for certificates of devices, which no web profile fits.

Why not `cryptography.x509.verification`: its profile is that of TLS servers. Device certificates carry a critical
subjectAltName with a directoryName, extended key usages of other registries, validity to the year 9999.

What is checked, in this order, from the leaf upwards:
 1 the leaf is of version 3, not a CA, for the purpose asked; no certificate has a critical extension not processed
 2 an issuer of that name is known, and the signature is by its key, with an algorithm of the list below
 3 every certificate of the path, the anchor too, is valid at the given time
 4 every issuer is a CA (basicConstraints) that may sign certificates (keyUsage); pathLenConstraint and purpose hold
 5 the path ends at a given anchor, within `CERTIFICATE_CHAIN` certificates

The path ends at the *first* anchor met: whoever lists an intermediate CA as an anchor trusts it by itself. Not done:
name constraints (a critical one is refused), policies, revocation (the caller's, with vendor data). Pure: no clock,
no network. Trusts the anchors it is given.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from cloister.crypto.remembered import Remembered
from cloister.errors import EndorsementError, FormatRefused
from cloister.wire.limits import CERTIFICATE_BYTES, CERTIFICATE_CHAIN

_HASHES: Final = (SHA256, SHA384, SHA512)
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_RSA_BITS: Final = range(2048, 8193)
_SIGNATURE_CHECKS: Final = 64  # a path of six needs five; the rest is room for CAs that share a name
_PROCESSED: Final = frozenset({ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE})
# What the library raises while it parses certificates, lists and responses, or later a part of one.
PARSE_ERRORS: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)

_CACHED: Final = 256  # certificates and paths kept: a fleet's chips share their CAs
_WARNINGS: Final = threading.Lock()  # the filters that `_parse` changes for a moment belong to the whole process
_E = TypeVar("_E", bound=x509.ExtensionType)


def load_certificate(der: bytes, *, code: str, path: str = "") -> x509.Certificate:
    """Parse one DER certificate.

    Args:
        der: exactly one certificate.
        code: prefix of the error's code.
        path: place in the input, for the error.

    Raises:
        FormatRefused: too long, or not one well-formed certificate (`<code>.malformed`).
    """
    if len(der) > CERTIFICATE_BYTES:
        raise FormatRefused(
            f"{code}.malformed",
            "certificate too long",
            path=path,
            expected=f"at most {CERTIFICATE_BYTES} bytes",
            actual=str(len(der)),
        )
    try:
        return _parse(der)
    except PARSE_ERRORS as err:
        raise FormatRefused(f"{code}.malformed", f"not a certificate: {err}"[:160], path=path) from err


def extension(certificate: x509.Certificate, kind: type[_E]) -> _E | None:
    """Return the value of one extension, None when the certificate has none."""
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


@contextmanager
def warnings_refused() -> Iterator[None]:
    """Raise ValueError for what the library only warns of, as of a serial number that is not positive, and for versions
    that there are not (RFC 5280, section 4.1.2)."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("error", CryptographyDeprecationWarning)
        try:
            yield
        except (CryptographyDeprecationWarning, x509.InvalidVersion) as err:
            raise ValueError("certificate that RFC 5280 forbids") from err


def serial_number(certificate: x509.Certificate) -> int:
    """Return the serial number, also the zero that some vendors give all certificates, of which the library warns."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return certificate.serial_number


def verify_path(
    leaf: x509.Certificate,
    *,
    anchors: Sequence[x509.Certificate],
    intermediates: Sequence[x509.Certificate] = (),
    at: datetime,
    code: str,
    purpose: x509.ObjectIdentifier | None = None,
    leaf_critical: frozenset[x509.ObjectIdentifier] = frozenset(),
) -> tuple[x509.Certificate, ...]:
    """Return the path from `leaf` to one of `anchors`, both included.

    Args:
        leaf: the certificate to verify.
        anchors: trusted CA certificates.
        intermediates: CA certificates that are not trusted by being given.
        at: aware time of the verification.
        code: prefix of the errors' codes.
        purpose: extended key usage that the leaf must have, and every CA that has any.
        leaf_critical: critical extensions of the leaf which the caller processes itself.

    Raises:
        EndorsementError: no path (`<code>.untrusted`), `.expired`, `.not_yet_valid`, `.not_a_ca`, `.path_length`,
            `.purpose`, `.critical_extension`, `.algorithm`, `.leaf_is_ca`.
    """
    if at.tzinfo is None:
        raise RuntimeError("the time of a verification must be aware")
    key = (leaf, tuple(anchors), tuple(intermediates), code, purpose, leaf_critical)
    known = _KNOWN_PATHS.get(key, at)
    if known is not None:
        return known
    path = _PathSearch(anchors, intermediates, at, code, purpose, leaf_critical).run(leaf)
    _KNOWN_PATHS.put(key, path, *validity(path))
    return path


# Paths that held, by everything that led to them but the time. The search looks at the time only to compare it with
# validity periods, so within the intersection of those of the path it would hold again.
_KNOWN_PATHS: Final[Remembered[tuple[x509.Certificate, ...]]] = Remembered(_CACHED)


def validity(certificates: Sequence[x509.Certificate]) -> tuple[datetime, datetime]:
    """Return the time in which all `certificates` are valid: latest start, earliest end."""
    return (
        max(item.not_valid_before_utc for item in certificates),
        min(item.not_valid_after_utc for item in certificates),
    )


@lru_cache(maxsize=_CACHED)
def _parse(der: bytes) -> x509.Certificate:
    """Parse and touch every part that parses late. The library keeps what it parsed.

    Vendors write what it warns about (names over 64 characters, serial number zero): no reason to refuse, and whoever
    turns warnings into errors must not thereby change a verdict.
    """
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        certificate = x509.load_der_x509_certificate(der)
        _ = (certificate.extensions, certificate.public_key(), certificate.subject, certificate.issuer)
    # The signature's BIT STRING may call some of its last bits unused, which the library lets pass where they are zero:
    # bytes that nobody signed, and so a second certificate with the same signature.
    if not der.endswith(b"\0" + certificate.signature):
        raise ValueError("signature is not a whole number of octets")
    return certificate


class _PathSearch:
    """One depth-first search with a bounded number of signature checks."""

    def __init__(
        self,
        anchors: Sequence[x509.Certificate],
        intermediates: Sequence[x509.Certificate],
        at: datetime,
        code: str,
        purpose: x509.ObjectIdentifier | None,
        leaf_critical: frozenset[x509.ObjectIdentifier],
    ) -> None:
        self._anchors = anchors
        self._intermediates = intermediates
        self._at = at
        self._code = code
        self._purpose = purpose
        self._processed = _PROCESSED | ({ExtensionOID.EXTENDED_KEY_USAGE} if purpose else frozenset())
        self._leaf_critical = leaf_critical
        self._checks = 0

    def run(self, leaf: x509.Certificate) -> tuple[x509.Certificate, ...]:
        # 1
        if leaf.version is not x509.Version.v3:
            raise self._error("malformed", "certificate is not of version 3", leaf)
        if _basic_constraints(leaf).ca:
            raise self._error("leaf_is_ca", "the certificate to verify is a CA certificate", leaf)
        self._check_one(leaf, self._leaf_critical)
        usage = extension(leaf, x509.ExtendedKeyUsage)
        if self._purpose and (usage is None or self._purpose not in usage):
            raise self._error(
                "purpose",
                "certificate is for another purpose",
                leaf,
                expected=f"extended key usage {self._purpose.dotted_string}",
                actual=", ".join(oid.dotted_string for oid in usage or ())[:120] or "none",
            )
        return self._extend((leaf,))

    def _extend(self, path: tuple[x509.Certificate, ...]) -> tuple[x509.Certificate, ...]:
        """Return `path` continued to an anchor; anchors are tried before intermediates."""
        current = path[-1]
        failure: EndorsementError | None = None
        # 5
        if len(path) >= CERTIFICATE_CHAIN:
            raise self._untrusted(current)
        candidates = [(anchor, True) for anchor in self._anchors] + [(other, False) for other in self._intermediates]
        for issuer, anchored in candidates:
            try:
                if issuer in path or not self._signed_by(current, issuer):
                    continue
                self._check_issuer(issuer, below=path)
                return (*path, issuer) if anchored else self._extend((*path, issuer))
            except EndorsementError as err:
                failure = err
        raise failure or self._untrusted(current)

    def _untrusted(self, certificate: x509.Certificate) -> EndorsementError:
        return self._error(
            "untrusted",
            "no trusted CA signed the certificate",
            certificate,
            expected="a signature by one of " + (", ".join(map(_name, self._anchors)) or "no CA at all"),
            actual=certificate.issuer.rfc4514_string()[:120],
            hint="add the certificate of the issuing CA to the trusted roots, if you trust it",
        )

    def _signed_by(self, certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
        # 2
        if certificate.issuer != issuer.subject:
            return False
        self._checks += 1
        if self._checks > _SIGNATURE_CHECKS:
            raise self._error("untrusted", "too many CAs share the issuer's name", certificate)
        key = issuer.public_key()
        if not (
            (isinstance(key, rsa.RSAPublicKey) and key.key_size in _RSA_BITS)
            or (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES))
        ):
            raise self._error(
                "algorithm",
                "CA key is of a kind or size that is not accepted",
                issuer,
                expected="RSA of 2048 to 8192 bits, or P-256, P-384, P-521",
            )
        try:
            if not isinstance(certificate.signature_hash_algorithm, _HASHES):
                raise self._bad_algorithm(certificate)
            _verify_signature(certificate, issuer)
        except (UnsupportedAlgorithm, ValueError) as err:  # unknown, or not the one inside the signed part
            raise self._bad_algorithm(certificate) from err
        except (InvalidSignature, TypeError):  # not by this key, or by a key of another kind
            return False
        return True

    def _bad_algorithm(self, certificate: x509.Certificate) -> EndorsementError:
        return self._error(
            "algorithm",
            "certificate is signed with an algorithm that is not accepted",
            certificate,
            expected="RSA or ECDSA with SHA-256, SHA-384 or SHA-512",
            actual=certificate.signature_algorithm_oid.dotted_string,
        )

    def _check_issuer(self, issuer: x509.Certificate, *, below: tuple[x509.Certificate, ...]) -> None:
        self._check_one(issuer, frozenset())
        # 4
        constraints = _basic_constraints(issuer)
        usage = extension(issuer, x509.KeyUsage)
        if not constraints.ca or (usage is not None and not usage.key_cert_sign):
            raise self._error("not_a_ca", "issuer is not a CA that may sign certificates", issuer)
        purposes = extension(issuer, x509.ExtendedKeyUsage)
        accepted = {self._purpose, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
        if self._purpose and purposes is not None and accepted.isdisjoint(purposes):
            raise self._error("purpose", "CA is for another purpose", issuer, expected=self._purpose.dotted_string)
        # RFC 5280 4.2.1.9: intermediates that follow this one, self-issued ones not counted, the leaf not counted.
        following = sum(1 for certificate in below[1:] if certificate.subject != certificate.issuer)
        if constraints.path_length is not None and following > constraints.path_length:
            raise self._error(
                "path_length",
                "more CAs follow than the certificate allows",
                issuer,
                expected=f"at most {constraints.path_length}",
                actual=str(following),
            )

    def _check_one(self, certificate: x509.Certificate, processed_by_caller: frozenset[x509.ObjectIdentifier]) -> None:
        for item in certificate.extensions:
            if item.critical and item.oid not in self._processed | processed_by_caller:
                raise self._error(
                    "critical_extension",
                    "certificate has a critical extension that is not understood",
                    certificate,
                    actual=item.oid.dotted_string,
                )
        # 3
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if self._at < start:
            raise self._error(
                "not_yet_valid",
                "certificate is not valid yet",
                certificate,
                expected=f"from {start.isoformat()}",
                actual=self._at.isoformat(timespec="seconds"),
                hint="check the clock of the verifier",
            )
        if self._at > end:
            raise self._error(
                "expired",
                "certificate has expired",
                certificate,
                expected=f"until {end.isoformat()}",
                actual=self._at.isoformat(timespec="seconds"),
            )

    def _error(
        self,
        reason: str,
        message: str,
        certificate: x509.Certificate,
        *,
        expected: str = "",
        actual: str = "",
        hint: str = "",
    ) -> EndorsementError:
        return EndorsementError(
            f"{self._code}.{reason}", message, path=_name(certificate), expected=expected, actual=actual, hint=hint
        )


@lru_cache(maxsize=_CACHED)
def _verify_signature(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    """Raise unless the issuer's key signed the certificate. What held is kept: a new leaf below known CAs costs one
    check. What did not is not kept, so an attacker fills nothing."""
    certificate.verify_directly_issued_by(issuer)


def _basic_constraints(certificate: x509.Certificate) -> x509.BasicConstraints:
    return extension(certificate, x509.BasicConstraints) or x509.BasicConstraints(ca=False, path_length=None)


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string()[:120] or "certificate without a subject"
