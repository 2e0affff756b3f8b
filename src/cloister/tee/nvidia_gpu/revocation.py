"""Revocation along the chains of devices and manifest signers, by whatever NVIDIA's statements are at hand.

NVIDIA answers by OCSP for every certificate and publishes CRLs for some. A certificate for which either says good is
good; one for which either says revoked, or on hold, refuses. Each certificate is asked about once, however many
devices share it. Pure.
"""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from typing import Final

from cryptography import x509

from cloister.crypto import ocsp, revocation
from cloister.crypto.ocsp import OCSPResponse, load_ocsp_response
from cloister.crypto.revocation import RevocationState, RevocationStatus, load_revocation_list, revocation_finding
from cloister.errors import FormatRefused
from cloister.rats.endorsement import Document, Endorsements
from cloister.rats.result import Finding

_DER_SEQUENCE: Final = b"\x30"
_CODE: Final = "tee.nvidia_gpu.revocation"
_BEST_FIRST: Final = (
    RevocationState.GOOD,
    RevocationState.GRACE,
    RevocationState.STALE,
    RevocationState.UNKNOWN,
    RevocationState.MISSING,
)


class ChainRevocation:
    """Collects what is known of the certificates of all chains of one appraisal.

    Args:
        endorsements: CRLs among `revocation_lists`, OCSP responses among `documents`.
        at: aware time.
    """

    def __init__(self, endorsements: Endorsements, *, at: datetime) -> None:
        self._at = at
        self._grace = endorsements.grace
        self._lists = tuple(
            load_revocation_list(data, code=_CODE, path=f"revocation list {number}")
            for number, data in enumerate(endorsements.revocation_lists)
        )
        self._responses = tuple(
            response for document in endorsements.documents if (response := _response(document)) is not None
        )
        self._known: dict[x509.Certificate, Finding] = {}
        self.findings: list[Finding] = []
        self.windows: list[tuple[datetime, datetime]] = []

    def check(self, path: tuple[x509.Certificate, ...], *, code: str) -> tuple[Finding, ...]:
        """Return a finding for every certificate of a verified path but its root; new ones are added to `findings`.

        Args:
            path: subordinate first, root last.
            code: of the findings.

        Raises:
            EndorsementError: revoked, on hold, or a statement that is forged (`<code>.*`).
        """
        for certificate, issuer in pairwise(path):
            if certificate in self._known:
                continue
            status = self._ask(certificate, issuer, code)
            self._known[certificate] = revocation_finding(status, code=code)
            self.findings.append(self._known[certificate])
            if status.state is RevocationState.GOOD and status.this_update and status.next_update:
                self.windows.append((status.this_update, status.next_update))
        return tuple(self._known[certificate] for certificate in path[:-1])

    def _ask(self, certificate: x509.Certificate, issuer: x509.Certificate, code: str) -> RevocationStatus:
        at, grace = self._at, self._grace
        listed = revocation.verify_not_revoked(certificate, issuer, self._lists, at=at, code=code, grace=grace)
        answered = ocsp.verify_not_revoked(certificate, issuer, self._responses, at=at, code=code, grace=grace)
        return min(answered, listed, key=lambda status: _BEST_FIRST.index(status.state))


def _response(document: Document) -> OCSPResponse | None:
    """Return a document that is a usable OCSP response; others leave the certificates without an answer, and a finding
    says so."""
    if document.data[:1] != _DER_SEQUENCE:
        return None
    try:
        return load_ocsp_response(document.data, code=_CODE, path=document.name)
    except FormatRefused:
        return None
