"""What a verification relied on, and for how long it holds: paths of certificates, and that none was revoked. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

from cryptography import x509

from cloister.crypto.revocation import (
    RevocationList,
    load_revocation_list,
    revocation_finding,
    verify_not_revoked,
)
from cloister.crypto.x509path import validity
from cloister.rats.result import Finding

_CACHED: Final = 1024


class Reliance:
    """Collects findings and windows while a verification goes on.

    Args:
        lists: revocation lists, DER or PEM, not trusted by being given.
        at: aware time.
        grace: how long past its next update a list may still be used.

    Attributes:
        findings: that a certificate is not revoked, or that this is not known.
        starts: from when what was relied on holds.
        ends: until when.
    """

    def __init__(self, lists: tuple[bytes, ...], *, at: datetime, grace: timedelta) -> None:
        self._lists = lists
        self._at = at
        self._grace = grace
        self._told: set[x509.Certificate] = set()
        self.findings: list[Finding] = []
        self.starts: list[datetime] = []
        self.ends: list[datetime] = []

    def on_path(self, path: Sequence[x509.Certificate]) -> None:
        """Add the validity of a path that was verified."""
        self.between(*validity(path))

    def between(self, start: datetime, end: datetime) -> None:
        """Add a window."""
        self.starts.append(start)
        self.ends.append(end)

    def on_lists(self, certificate: x509.Certificate, issuer: x509.Certificate) -> None:
        """Add what the lists of `issuer` say of `certificate`, once.

        Raises:
            FormatRefused: a list does not parse (`tee.dcap.crl.malformed`).
            EndorsementError: revoked, or a list that does not hold (`tee.dcap.certificate.*`).
        """
        if certificate in self._told:
            return
        self._told.add(certificate)
        lists = lists_of(issuer, self._lists)
        status = verify_not_revoked(
            certificate, issuer, lists, at=self._at, code="tee.dcap.certificate", grace=self._grace
        )
        self.findings.append(revocation_finding(status, code="tee.dcap.revocation"))
        if status.this_update is not None:
            self.starts.append(status.this_update)
        if status.next_update is not None:
            self.ends.append(status.next_update)
        # At another time another list would be the newest: what is found now holds until then.
        self.ends += [item.parsed.last_update_utc for item in lists if item.parsed.last_update_utc > self._at]


@lru_cache(maxsize=_CACHED)
def lists_of(issuer: x509.Certificate, lists: tuple[bytes, ...]) -> tuple[RevocationList, ...]:
    """Return the lists that bear the name of `issuer`.

    Raises:
        FormatRefused: a list does not parse (`tee.dcap.crl.malformed`).
    """
    parsed = (load_revocation_list(item, code="tee.dcap.crl") for item in lists)
    return tuple(item for item in parsed if item.parsed.issuer == issuer.subject)
