"""Verifier (RFC 9334): challenges, verification, appraisal, signed Attestation Results.

Knows technologies, roots, reference values and appraisal policies; knows nothing of resources or releases.
"""

from __future__ import annotations

from cloister.trust.verifier.collateral import CollateralSource
from cloister.trust.verifier.service import VerifierService

__all__ = ["CollateralSource", "VerifierService"]
