"""Verifier of Hygon CSV evidence: it reads, and says why it cannot verify. Accepts nothing. Pure.

What would be needed, in order: SM2 and SM3 from a library that is kept (the one used here has SM3 alone); the chip's
certificates HSK and CEK, which Hygon hands out by serial number and which the root HRK signs; the report's signature
by the PEK below them. None of this is approximated: evidence that does not parse is refused, all other is "cannot
tell".
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from cloister.errors import Unavailable
from cloister.rats.claims import Claims, Level, Role
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import AuthenticEvidence, Evidence, UnverifiedClaims
from cloister.tee.hygon_csv.evidence import TEE, parse_evidence

_NO_DEBUG: Final = 1  # bit of the guest policy


def authenticate(
    evidence: Evidence, endorsements: Endorsements, *, at: datetime, session_secret: bytes = b""
) -> AuthenticEvidence:
    """Parse CSV evidence, and say that it cannot be verified.

    Raises:
        FormatRefused: a member does not parse.
        EvidenceError: another technology.
        Unavailable: otherwise, always (`tee.hygon_csv.cannot_verify`).
    """
    parsed = parse_evidence(evidence)
    chain = "HSK and CEK came with it" if parsed.has_chain else "HSK and CEK of the chip are missing"
    raise Unavailable(
        "tee.hygon_csv.cannot_verify",
        "Hygon CSV evidence cannot be verified: this build has no SM2 signatures",
        path="attestation_report",
        expected="an SM2 signature that chains to Hygon's root HRK",
        actual=f"chip {parsed.serial_number}, {chain}",
        hint="have it verified by a service that has SM2 (CoCo's attestation service does), or use another TEE",
    )


def read_claims(evidence: Evidence) -> UnverifiedClaims:
    """Return what CSV evidence says; nobody here can tell who signed it. A report of version 2 is not read.

    Raises:
        FormatRefused, EvidenceError: it does not parse.
    """
    parsed = parse_evidence(evidence)
    report = parsed.report
    native: dict[str, Any] = {"serial_number": parsed.serial_number, "report_version": 1 if report else 2}
    if report is not None:
        native |= {
            "measure": report.measurement.hex(),
            "report_data": report.report_data.hex(),
            "policy": report.policy,
            "vm_id": report.vm_id.hex(),
            "vm_version": report.vm_version.hex(),
            "user_pubkey_digest": report.user_pubkey_digest.hex(),
        }
    return UnverifiedClaims(
        claims=Claims(
            tee=TEE,
            level=Level.SIMULATED,
            debug=report is not None and not report.policy & _NO_DEBUG,
            registers={"measure": report.measurement} if report is not None else {},
            report_data=report.report_data if report is not None else b"",
            init_data=b"",
            instance_id=parsed.serial_number,
            raw=native,
            platform="Hygon CSV",
            measurements={Role.LAUNCH: report.measurement} if report is not None else {},
            native=native,
        )
    )
