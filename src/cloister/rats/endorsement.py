"""Endorsements: the roots and vendor statements a verifier is given. A verifier never fetches them itself."""

from __future__ import annotations

from dataclasses import dataclass

from cloister.rats.claims import Level


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedRoot:
    """A root certificate or root key an owner trusts for one technology.

    Attributes:
        tee: wire name of the technology it endorses.
        level: the level that a chain to this root proves. A software TPM's CA is `measured`, never `hardware`.
        name: for findings and reports.
        der: certificate (X.509 DER) or public key (SubjectPublicKeyInfo DER).
    """

    tee: str
    level: Level
    name: str
    der: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Endorsements:
    """Everything a verifier may rely on for one appraisal."""

    roots: tuple[TrustedRoot, ...]
