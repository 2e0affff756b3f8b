"""Verifier of CoCo's `sample` TEE. Pure.

There is nothing to verify: no signature, no key, no roots. What is done:
  1 parse, strictly
  2 say that nobody signed it, as a finding that no policy can turn into an acceptance

Reported for binding: the report data, whole. Init data is compared where the evidence names some; where it does not,
that is said, because CoCo's attester leaves it out and nothing would be proved by it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from cloister.rats.claims import Claims, Level
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import AuthenticEvidence, Evidence, Slot, UnverifiedClaims
from cloister.rats.result import UNSIGNED, Finding, Question, Severity, Unchecked
from cloister.tee.insecure.sample import abi

_UNCHECKED: Final = (Unchecked(reason="anything: evidence of the sample TEE is unsigned"),)
_NO_FIELD: Final = "evidence of the sample TEE names no init data"


def authenticate(
    evidence: Evidence, endorsements: Endorsements, *, at: datetime, session_secret: bytes = b""
) -> AuthenticEvidence:
    """Return what the evidence says, with the finding that nobody signed it.

    Raises:
        FormatRefused: a member does not parse.
        EvidenceError: evidence of another technology.
    """
    # 1
    wire = abi.parse_evidence(evidence)
    claims = _claims(wire)
    # 2
    unsigned = Finding(
        code=UNSIGNED,
        question=Question.AUTHENTIC,
        ok=False,
        severity=Severity.WARNING,
        message="the evidence is unsigned: anybody can write it, and it proves nothing",
        expected="a signature",
        actual="none",
        hint="use the sample TEE only to try things out, with resources that are no secrets",
    )
    return AuthenticEvidence(
        claims=claims,
        findings=(unsigned,),
        unchecked=_UNCHECKED,
        freshness=Slot(name="report_data", value=claims.report_data, path="report_data"),
        init_data=Slot(
            name="init_data",
            value=claims.init_data,
            path="init_data",
            insecure_unchecked="" if claims.init_data else _NO_FIELD,
        ),
    )


def read_claims(evidence: Evidence) -> UnverifiedClaims:
    """Return what the evidence says.

    Raises:
        FormatRefused, EvidenceError: it does not parse.
    """
    return UnverifiedClaims(claims=_claims(abi.parse_evidence(evidence)))


def _claims(wire: abi.SampleEvidence) -> Claims:
    raw = abi.coco_claims(wire)
    return Claims(
        tee=abi.TEE,
        level=Level.SIMULATED,
        debug=False,
        registers={},
        report_data=abi.decode_member(wire.report_data, "report_data", abi.REPORT_DATA_BYTES),
        init_data=abi.decode_member(wire.init_data or "", "init_data", abi.INIT_DATA_BYTES),
        instance_id="",
        raw=raw,
        platform="sample TEE of CoCo, no TEE",
        native={"svn": wire.svn, "launch_digest": abi.LAUNCH_DIGEST},
    )
