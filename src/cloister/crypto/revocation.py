"""Revocation by CRL: is this certificate, issued by that CA, on a list that the CA signed and that is in force?

RFC 5280 section 5. Lists arrive with the collateral and are worth nothing until their signature by the issuer holds.
A certificate on a list is refused even when the list is old. That no list was given, or only one past its next
update, is no refusal but a state: the caller reports it, and a policy decides. Not done: delta and indirect lists,
lists that cover only some reasons (refused by their critical extensions), fetching. Pure.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtensionOID

from cloister.crypto.x509path import PARSE_ERRORS, extension, serial_number
from cloister.errors import EndorsementError, FormatRefused
from cloister.rats.result import Finding, Question, Severity
from cloister.wire.limits import REVOCATION_LIST_BYTES, REVOCATION_LIST_ENTRIES

_PEM: Final = b"-----BEGIN"
_CACHED: Final = 256
_PROCESSED: Final = frozenset({ExtensionOID.CRL_NUMBER, ExtensionOID.AUTHORITY_KEY_IDENTIFIER})


class RevocationState(enum.StrEnum):
    """What lists or responses say of a certificate that they do not call revoked."""

    GOOD = "good"
    GRACE = "grace"  # the list is past its next update, within the grace the owner gave
    STALE = "stale"
    MISSING = "missing"
    UNKNOWN = "unknown"  # the vendor's responder answers that it does not know the certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationStatus:
    """State of one certificate, and the window of the list it was found in (None when there was none)."""

    state: RevocationState
    subject: str
    this_update: datetime | None = None
    next_update: datetime | None = None


@dataclass(frozen=True, slots=True)
class RevocationList:
    """A list that was parsed, and verified by nobody. Same fingerprint, same bytes; the library's own has no hash."""

    fingerprint: bytes
    parsed: x509.CertificateRevocationList = field(compare=False)


def load_revocation_list(data: bytes, *, code: str, path: str = "") -> RevocationList:
    """Parse one CRL, DER or PEM.

    Raises:
        FormatRefused: too long, or not one well-formed list (`<code>.malformed`).
    """
    if len(data) > REVOCATION_LIST_BYTES:
        raise FormatRefused(
            f"{code}.malformed",
            "revocation list too long",
            path=path,
            expected=f"at most {REVOCATION_LIST_BYTES} bytes",
            actual=str(len(data)),
        )
    try:
        return _parse(data)
    except PARSE_ERRORS as err:
        raise FormatRefused(f"{code}.malformed", f"not a revocation list: {err}"[:160], path=path) from err


def verify_not_revoked(
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    lists: Sequence[RevocationList],
    *,
    at: datetime,
    code: str,
    grace: timedelta = timedelta(),
    allow_issuer_without_crl_sign: bool = False,
) -> RevocationStatus:
    """Return what the lists of `issuer` say of `certificate`.

    `allow_issuer_without_crl_sign` is for vendors whose issuer is no CA by its own certificate and publishes lists
    all the same, because their documents say so.

    Steps: 1 lists of that issuer's name, which may sign lists; 2 each is signed by the issuer and has no critical
    extension that is not understood; 3 the certificate is on none of them; 4 the newest is in force.

    Raises:
        EndorsementError: on a list (`<code>.revoked`), a list not signed by the issuer whose name it bears, or by one
            that may not sign lists (`<code>.crl_signature`), or one with parts not understood
            (`<code>.crl_extension`).
    """
    # 1
    name = _subject(certificate)
    problems = [(item.parsed, problem) for item in lists if (problem := _problem(item, issuer)) is not None]
    if problems and not allow_issuer_without_crl_sign:
        _verify_may_sign(issuer, code)
    for item, problem in problems:
        # 2
        _require_sound(problem, issuer, code)
        # 3
        entry = item.get_revoked_certificate_by_serial_number(serial_number(certificate))
        if entry is not None:
            raise EndorsementError(
                f"{code}.revoked",
                "certificate is revoked",
                path=name,
                expected="not on the revocation list",
                actual=f"revoked {entry.revocation_date_utc.isoformat(timespec='seconds')}",
                hint="the vendor withdrew this platform, CA or signer; it cannot be trusted again",
            )
    # 4
    return _newest([item for item, _ in problems], name, at, grace)


def revocation_finding(status: RevocationStatus, *, code: str) -> Finding:
    """Return the finding for a certificate that is on no list: held, a warning within grace, else unavailable."""
    good = status.state is RevocationState.GOOD
    actual = {
        RevocationState.GOOD: "not on the list",
        RevocationState.GRACE: f"list past its next update ({_day(status.next_update)}), within the grace",
        RevocationState.STALE: f"list in force {_day(status.this_update)} to {_day(status.next_update)} only",
        RevocationState.MISSING: "no list of its issuer was given",
        RevocationState.UNKNOWN: "the vendor's responder does not know the certificate",
    }[status.state]
    return Finding(
        code=code,
        question=Question.AUTHENTIC,
        ok=good,
        severity=Severity.WARNING if status.state is RevocationState.GRACE else Severity.UNAVAILABLE,
        message="certificate is not revoked" if good else "revocation of the certificate is not known",
        expected="a revocation list of its issuer, in force",
        actual=actual,
        path=status.subject,
        hint="" if good else "fetch the vendor's current revocation lists (`cloister collateral fetch`)",
    )


def _verify_may_sign(issuer: x509.Certificate, code: str) -> None:
    """RFC 5280 6.3.3 (f): where an issuer's key usage is limited, signing lists must be among it."""
    usage = extension(issuer, x509.KeyUsage)
    if usage is not None and not usage.crl_sign:
        raise EndorsementError(
            f"{code}.crl_signature",
            "revocation list bears the name of a CA that may not sign lists",
            path=issuer.subject.rfc4514_string()[:120],
            expected="key usage cRLSign",
            hint="fetch the list from the vendor again",
        )


def _newest(
    lists: Sequence[x509.CertificateRevocationList], name: str, at: datetime, grace: timedelta
) -> RevocationStatus:
    started = [item for item in lists if item.last_update_utc <= at]
    if not started:
        state = RevocationState.STALE if lists else RevocationState.MISSING
        first = min(lists, key=lambda item: item.last_update_utc) if lists else None
        return RevocationStatus(
            state=state,
            subject=name,
            this_update=first.last_update_utc if first else None,
            next_update=first.next_update_utc if first else None,
        )
    newest = max(started, key=lambda item: item.last_update_utc)
    end = newest.next_update_utc
    if end is None:  # RFC 5280 5.1.2.5 asks for one; a list without could be replayed for ever
        state = RevocationState.STALE
    elif at <= end:
        state = RevocationState.GOOD
    else:
        state = RevocationState.GRACE if at <= end + grace else RevocationState.STALE
    return RevocationStatus(state=state, subject=name, this_update=newest.last_update_utc, next_update=end)


def _require_sound(problem: str, issuer: x509.Certificate, code: str) -> None:
    if problem == "signature":
        raise EndorsementError(
            f"{code}.crl_signature",
            "revocation list is not signed by the CA whose name it bears",
            path=issuer.subject.rfc4514_string()[:120],
            hint="fetch the list from the vendor again",
        )
    if problem:
        raise EndorsementError(
            f"{code}.crl_extension",
            "revocation list has a critical extension that is not understood",
            path=issuer.subject.rfc4514_string()[:120],
            actual=problem,
        )


@lru_cache(maxsize=_CACHED)
def _subject(certificate: x509.Certificate) -> str:
    """Return the subject as text, which the library takes longer to write than a signature of RSA to verify."""
    return certificate.subject.rfc4514_string()[:120] or "certificate without a subject"


@lru_cache(maxsize=_CACHED)
def _problem(given: RevocationList, issuer: x509.Certificate) -> str | None:
    """Return what is wrong with a list, as far as that does not depend on the time; None when it bears another name
    than the issuer's. Same bytes, same answer."""
    item, key = given.parsed, issuer.public_key()
    if item.issuer != issuer.subject:
        return None
    try:
        if not isinstance(key, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey)) or not item.is_signature_valid(key):
            return "signature"
    except (InvalidSignature, UnsupportedAlgorithm, TypeError, ValueError):
        return "signature"
    return next((ext.oid.dotted_string for ext in item.extensions if ext.critical and ext.oid not in _PROCESSED), "")


@lru_cache(maxsize=_CACHED)
def _parse(data: bytes) -> RevocationList:
    load = x509.load_pem_x509_crl if data[: len(_PEM)] == _PEM else x509.load_der_x509_crl
    parsed = load(data)
    if len(parsed) > REVOCATION_LIST_ENTRIES:
        raise ValueError(f"more than {REVOCATION_LIST_ENTRIES} entries")
    _ = (parsed.extensions, parsed.issuer, parsed.last_update_utc, parsed.next_update_utc)
    return RevocationList(parsed.fingerprint(SHA256()), parsed)


def _day(moment: datetime | None) -> str:
    return moment.isoformat(timespec="seconds") if moment is not None else "no date"
