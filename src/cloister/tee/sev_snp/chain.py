"""From the certificate of a VEK to a root of AMD: step 4 of the checklist, and what of it may be remembered.

VEK < ASK or ASVK < ARK, all valid at the given time, and the list of the ARK says nothing of its CA. Only ARKs of the
VEK's own product line are anchors; CAs that came in the same file are endorsements. A chain that held is kept by
everything that led to it, with the time in which it holds: verifying many reports of a fleet costs one signature each.
Pure but for that memory, which changes no answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

from cryptography import x509

from cloister.crypto.remembered import Remembered
from cloister.crypto.revocation import (
    RevocationList,
    RevocationState,
    RevocationStatus,
    load_revocation_list,
    revocation_finding,
    verify_not_revoked,
)
from cloister.crypto.x509path import load_certificate, validity, verify_path
from cloister.errors import EndorsementError
from cloister.rats.claims import Window
from cloister.rats.endorsement import TrustedRoot
from cloister.rats.result import Finding, Question, Unchecked
from cloister.tee.sev_snp.endorsements import ark_line
from cloister.tee.sev_snp.vek import CODE, VEK, VLEK_NAME, common_name

REVOCATION: Final = "tee.sev_snp.revocation"
_PATH_LENGTH: Final = 3  # VEK, ASK or ASVK, ARK
_CACHED: Final = 256
_NO_VEK_LIST: Final = Unchecked(
    reason="revocation of the VCEK or VLEK: AMD publishes lists for its CAs only, and all VEKs share one serial number"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain that holds.

    Attributes:
        root: where it ends.
        window: validity of the certificates and of the revocation lists relied on.
        findings: the chain, and its revocation.
        unchecked: what was deliberately not checked.
    """

    root: TrustedRoot
    window: Window
    findings: tuple[Finding, ...]
    unchecked: tuple[Unchecked, ...]


# Chains by everything that led to them but the time. Kept are those whose revocation is answered, and those for which
# no list was given: that, too, follows from the inputs alone. A list that is not in force may be so at another time, so
# such a chain is looked at anew. Within the window a second look would come to the same: certificates stay valid, the
# same list is the newest in force, and what is on a list is so always.
_KNOWN: Final[Remembered[Chain]] = Remembered(_CACHED)
_LASTING: Final = frozenset({RevocationState.GOOD, RevocationState.MISSING})


def verify_chain(
    vek: VEK,
    *,
    roots: tuple[TrustedRoot, ...],
    certificates: tuple[bytes, ...],
    lists: tuple[bytes, ...],
    at: datetime,
    grace: timedelta,
) -> Chain:
    """Return the chain of `vek`.

    Args:
        vek: the certificate of the key that signed.
        roots: trusted.
        certificates: DER, not trusted by being given; CAs among them.
        lists: revocation lists, not trusted by being given.
        at: aware time.
        grace: how long past its next update a list may still be used.

    Raises:
        FormatRefused: a certificate or list does not parse.
        EndorsementError: no path (`tee.sev_snp.vek.*`), revoked, or a list that does not hold
            (`tee.sev_snp.revocation.*`).
    """
    key = (vek.der, roots, certificates, lists)
    known = _KNOWN.get(key, at)
    if known is not None:
        return known
    path, root = _find_path(vek, roots, certificates, at)
    parsed = [load_revocation_list(item, code="tee.sev_snp.crl") for item in lists]
    of_ca, of_vek = _judge_revocation(path, parsed, at, grace)
    start, end = _window(path, (of_ca, of_vek))
    listed = of_vek.state is not RevocationState.MISSING
    chain = Chain(
        root=root,
        window=Window(not_before=start, not_after=end),
        findings=(
            Finding(
                code=CODE,
                question=Question.AUTHENTIC,
                ok=True,
                message=f"certificate chains to a trusted root of {vek.product.line}, level {root.level.value}",
                expected=root.name,
                actual=" < ".join(common_name(item) for item in path),
                origin="pinned and configured roots",
            ),
            revocation_finding(of_ca, code=REVOCATION),
            *((revocation_finding(of_vek, code=REVOCATION),) if listed else ()),
        ),
        unchecked=() if listed else (_NO_VEK_LIST,),
    )
    if {of_ca.state, of_vek.state} <= _LASTING:
        _KNOWN.put(key, chain, start, _next_change(path, parsed, at, end))
    return chain


def _find_path(
    vek: VEK, roots: Sequence[TrustedRoot], certificates: Sequence[bytes], at: datetime
) -> tuple[tuple[x509.Certificate, ...], TrustedRoot]:
    line = vek.product.line
    of_line = [root for root in roots if ark_line(root.der) == line]
    anchors = [load_certificate(root.der, code="tee.sev_snp.root", path=root.name) for root in of_line]
    issuer = ("SEV-VLEK-" if subject_of(vek.der) == VLEK_NAME else "SEV-") + line
    named = [der for der in dict.fromkeys((*certificates, *(root.der for root in roots))) if subject_of(der) == issuer]
    path = verify_path(
        vek.certificate,
        anchors=anchors,
        intermediates=[load_certificate(der, code="tee.sev_snp.ca") for der in named],
        at=at,
        code=CODE,
    )
    if len(path) != _PATH_LENGTH or common_name(path[1]) != issuer:
        raise EndorsementError(
            f"{CODE}.untrusted",
            "certificate was not issued by the CA for its kind",
            path=common_name(vek.certificate),
            expected=f"issued by {issuer} below ARK-{line}",
            actual=" < ".join(common_name(item) for item in path),
        )
    return path, of_line[anchors.index(path[-1])]


@lru_cache(maxsize=_CACHED)
def subject_of(der: bytes) -> str:
    """Return the common name of a certificate's subject.

    Raises:
        FormatRefused: not a certificate (`tee.sev_snp.certificate.malformed`).
    """
    return common_name(load_certificate(der, code="tee.sev_snp.certificate"))


def _judge_revocation(
    path: tuple[x509.Certificate, ...],
    lists: Sequence[RevocationList],
    at: datetime,
    grace: timedelta,
) -> tuple[RevocationStatus, RevocationStatus]:
    """The lists: of the ARK for the ASK or ASVK, and of that one for the VEK when there is any.

    The trap is the serial number: all VEKs have zero. A VEK must not be looked up on the list of the ARK, which did not
    issue it; an entry of serial zero there would be about something else, and could not be about one chip.
    """
    vek, ca, ark = path
    return (
        verify_not_revoked(ca, ark, lists, at=at, code=REVOCATION, grace=grace),
        verify_not_revoked(vek, ca, lists, at=at, code=REVOCATION, grace=grace),
    )


def _window(path: Sequence[x509.Certificate], statuses: Sequence[RevocationStatus]) -> tuple[datetime, datetime]:
    start, end = validity(path)
    for status in statuses:
        if status.state is RevocationState.GOOD and status.this_update and status.next_update:
            start, end = max(start, status.this_update), min(end, status.next_update)
    return start, end


def _next_change(
    path: Sequence[x509.Certificate], lists: Sequence[RevocationList], at: datetime, end: datetime
) -> datetime:
    """Return when a list that was given comes into force and takes the place of the one relied on; else `end`."""
    issuers = [item.subject for item in path[1:]]
    ours = [item.parsed for item in lists if item.parsed.issuer in issuers]
    coming = [item.last_update_utc for item in ours if item.last_update_utc > at]
    return min([end, *coming])
