"""Verifier of IBM Secure Execution evidence: it reads, and says why it cannot verify. Accepts nothing. Pure.

There is no quote: the measurement is an HMAC under a key that the requester encrypted to chosen host keys inside the
attestation request. Only whoever made that request can check the answer, with the request's key and nonce and the
image header. What is here already is the first half, the verification of host key documents (`endorsements`).
"""

from __future__ import annotations

from datetime import datetime

from cloister.errors import Unavailable
from cloister.rats.claims import Claims, Level
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import AuthenticEvidence, Evidence, UnverifiedClaims
from cloister.tee.ibm_se.abi import TAG_BYTES
from cloister.tee.ibm_se.evidence import TEE, parse_evidence


def authenticate(
    evidence: Evidence, endorsements: Endorsements, *, at: datetime, session_secret: bytes = b""
) -> AuthenticEvidence:
    """Parse Secure Execution evidence, and say that it cannot be verified.

    Raises:
        FormatRefused: a member does not parse.
        EvidenceError: another technology.
        Unavailable: otherwise, always (`tee.ibm_se.cannot_verify`).
    """
    parsed = parse_evidence(evidence)
    raise Unavailable(
        "tee.ibm_se.cannot_verify",
        "Secure Execution evidence cannot be verified: this build makes no attestation requests",
        path="measurement",
        expected="key and nonce of the attestation request that the guest answered",
        actual=f"answer of guest {parsed.configuration_id.hex()}, without them",
        hint="verify it with `pvattest verify` where the request was made, or use another TEE",
    )


def read_claims(evidence: Evidence) -> UnverifiedClaims:
    """Return what Secure Execution evidence says; nobody here can check its measurement.

    Raises:
        FormatRefused, EvidenceError: it does not parse.
    """
    parsed = parse_evidence(evidence)
    native = {
        "cuid": parsed.configuration_id.hex(),
        "measurement": parsed.measurement.hex(),
        "user_data": parsed.user_data.hex(),
        "additional_data": parsed.additional.hex(),
        "image_tag": parsed.image_tags[-TAG_BYTES:].hex(),
    }
    return UnverifiedClaims(
        claims=Claims(
            tee=TEE,
            level=Level.SIMULATED,
            debug=False,
            registers={},
            report_data=parsed.user_data,
            init_data=b"",
            instance_id=parsed.configuration_id.hex(),
            raw=native,
            platform="IBM Secure Execution",
            native=native,
        )
    )
