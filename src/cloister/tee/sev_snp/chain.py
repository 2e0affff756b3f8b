"""From the certificate of a VEK to a root of AMD: step 4 of the checklist, and what of it may be remembered.

VEK < ASK or ASVK < ARK, all valid at the given time, and the list of the ARK says nothing of its CA. Only ARKs of the
VEK's own product line are anchors; CAs that came in the same file are endorsements. A chain that held is kept by
everything that led to it, with the time in which it holds: verifying many reports of a fleet costs one signature each.
Pure but for that memory, which changes no answer.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

from cryptography import x509

from cloister.crypto.revocation import (
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


class _Known:
    """Chains that held and were not revoked, by everything that led to them but the time. Bounded: the oldest goes.

    Only complete answers are kept: a chain whose revocation stayed open is looked at anew. Within its window a second
    look would come to the same: certificates stay valid, the list stays in force, and what is on a list is so always.
    """

    def __init__(self) -> None:
        self._chains: OrderedDict[Hashable, Chain] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, at: datetime) -> Chain | None:
        with self._lock:
            known = self._chains.get(key)
            if known is None or not known.window.not_before <= at <= known.window.not_after:
                return None
            self._chains.move_to_end(key)
            return known

    def put(self, key: Hashable, chain: Chain) -> None:
        with self._lock:
            self._chains[key] = chain
            while len(self._chains) > _CACHED:
                self._chains.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._chains.clear()


_KNOWN: Final = _Known()


def forget_chains() -> None:
    """Forget the chains that held, for measurements of the first verification; no answer depends on it."""
    _KNOWN.clear()


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
    window, unchecked, revocation = _judge_revocation(path, lists, at, grace)
    chain = Chain(
        root=root,
        window=window,
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
            *revocation,
        ),
        unchecked=unchecked,
    )
    if all(finding.ok for finding in chain.findings):
        _KNOWN.put(key, chain)
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
    path: tuple[x509.Certificate, ...], data: Sequence[bytes], at: datetime, grace: timedelta
) -> tuple[Window, tuple[Unchecked, ...], tuple[Finding, ...]]:
    """The lists: of the ARK for the ASK or ASVK, and of that one for the VEK when there is any.

    The trap is the serial number: all VEKs have zero. A VEK must not be looked up on the list of the ARK, which did not
    issue it; an entry of serial zero there would be about something else, and could not be about one chip.
    """
    vek, ca, ark = path
    lists = [load_revocation_list(item, code="tee.sev_snp.crl") for item in data]
    of_ca = verify_not_revoked(ca, ark, lists, at=at, code=REVOCATION, grace=grace)
    of_vek = verify_not_revoked(vek, ca, lists, at=at, code=REVOCATION, grace=grace)
    findings = [revocation_finding(of_ca, code=REVOCATION)]
    listed = of_vek.state is not RevocationState.MISSING
    if listed:
        findings.append(revocation_finding(of_vek, code=REVOCATION))
    return _window(path, (of_ca, of_vek)), () if listed else (_NO_VEK_LIST,), tuple(findings)


def _window(path: Sequence[x509.Certificate], statuses: Sequence[RevocationStatus]) -> Window:
    start, end = validity(path)
    for status in statuses:
        if status.state is RevocationState.GOOD and status.this_update and status.next_update:
            start, end = max(start, status.this_update), min(end, status.next_update)
    return Window(not_before=start, not_after=end)
