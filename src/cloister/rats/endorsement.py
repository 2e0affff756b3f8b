"""Endorsements: the roots and vendor statements a verifier is given. A verifier never fetches them itself.

Roots are trusted because the owner configured them or this build pins them; everything else here is trusted only as
far as a root vouches for it. Vendor roots are pinned by fingerprint: the certificate itself arrives with the evidence
or the collateral and is worth nothing until its fingerprint is found here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Final

from cloister.rats.claims import Level

_CACHED: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedRoot:
    """A root certificate or root key an owner trusts for one technology.

    Attributes:
        tee: wire name of the technology it endorses.
        level: the level that a chain to this root proves. A software TPM's CA is `measured`, never `hardware`.
        name: for findings and reports.
        der: certificate (X.509 DER) or public key (SubjectPublicKeyInfo DER).
        instance: the one device that a raw key speaks for, as `claims.instance_id`; empty for any.
    """

    tee: str
    level: Level
    name: str
    der: bytes
    instance: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedRoot:
    """A vendor's root certificate, known by fingerprint alone.

    Attributes:
        tee: wire name of the technology it endorses.
        level: the level that a chain to this root proves.
        name: for findings and reports.
        sha256: fingerprint of the DER certificate, 32 bytes.
    """

    tee: str
    level: Level
    name: str
    sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A vendor statement in a format of its own: DCAP collateral, a reference integrity manifest, an OCSP response."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Endorsements:
    """Everything a verifier may rely on for one appraisal.

    Attributes:
        roots: trusted because the owner said so.
        pins: trusted because this build knows the vendor's root by fingerprint.
        certificates: DER; not trusted by being given.
        revocation_lists: DER or PEM CRLs; not trusted by being given.
        documents: other vendor statements; not trusted by being given.
        grace: how long past its next update revocation data and collateral may still be used; its use is a warning.
    """

    roots: tuple[TrustedRoot, ...]
    pins: tuple[PinnedRoot, ...] = ()
    certificates: tuple[bytes, ...] = ()
    revocation_lists: tuple[bytes, ...] = ()
    documents: tuple[Document, ...] = ()
    grace: timedelta = timedelta()

    def roots_for(self, tee: str, carried: Iterable[bytes] = ()) -> tuple[TrustedRoot, ...]:
        """Return the roots of a technology: those configured, and those among `certificates` and `carried` (DER
        certificates that came with the evidence) whose fingerprint is pinned."""
        pins = {pin.sha256: pin for pin in self.pins if pin.tee == tee}
        found = [root for root in self.roots if root.tee == tee]
        known = {root.der for root in found}
        for der in (*self.certificates, *carried) if pins else ():
            pin = pins.get(_fingerprint(der))
            if pin is not None and der not in known:
                known.add(der)
                found.append(TrustedRoot(tee=tee, level=pin.level, name=pin.name, der=der))
        return tuple(found)


@lru_cache(maxsize=_CACHED)
def _fingerprint(der: bytes) -> bytes:
    """Return the SHA-256 of a certificate: the same few come with every piece of evidence."""
    return hashlib.sha256(der).digest()
