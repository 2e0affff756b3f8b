"""The hardware's half of Azure evidence: whose CPU runs the paravisor, and which JSON it vouches for. Pure.

The hardware's packages verify and claim; here they are only called, with the roots of the Azure technology. The SNP
report is the one inside the paravisor's report. Of TDX that is the TD report, which only the same machine could check:
the quote that was made of it travels beside, and counts alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from cloister.rats.claims import Claims
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import Evidence
from cloister.rats.result import Finding, Unchecked
from cloister.tee.azure.evidence import AZ_SNP, ParsedEvidence
from cloister.tee.sev_snp.verifier import claims_of, facts_of, verify_report
from cloister.tee.tdx import verifier as tdx
from cloister.tee.tdx.abi import TEE as TDX
from cloister.wire.base64 import encode_b64


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What the hardware proves.

    Attributes:
        claims: of the hardware alone.
        report_data: its 64 bytes.
        facts: what the owner's rules for the hardware judge.
        findings: checks of its signature chain.
        unchecked: what was deliberately not checked.
    """

    claims: Claims
    report_data: bytes
    facts: object
    findings: tuple[Finding, ...]
    unchecked: tuple[Unchecked, ...]


def verify_hardware(parsed: ParsedEvidence, endorsements: Endorsements, *, at: datetime) -> Hardware:
    """Verify the signature chain of the hardware's report.

    Raises:
        FormatRefused, EndorsementError, EvidenceError: it does not hold, with the codes of the hardware's technology.
    """
    return (_verify_snp if parsed.tee == AZ_SNP else _verify_tdx)(parsed, endorsements, at)


def _verify_snp(parsed: ParsedEvidence, endorsements: Endorsements, at: datetime) -> Hardware:
    verified = verify_report(parsed.hcl.hardware, (parsed.vcek,), endorsements, at=at, tee=parsed.tee)
    return Hardware(
        claims=claims_of(verified, tee=parsed.tee),
        report_data=verified.report.report_data,
        facts=facts_of(verified),
        findings=verified.findings,
        unchecked=verified.unchecked,
    )


def _verify_tdx(parsed: ParsedEvidence, endorsements: Endorsements, at: datetime) -> Hardware:
    renamed = replace(
        endorsements,
        roots=tuple(replace(root, tee=TDX) for root in endorsements.roots if root.tee == parsed.tee),
        pins=tuple(replace(pin, tee=TDX) for pin in endorsements.pins if pin.tee == parsed.tee),
    )
    authentic = tdx.authenticate(Evidence(tee=TDX, body={"quote": encode_b64(parsed.td_quote)}), renamed, at=at)
    return Hardware(
        claims=replace(authentic.claims, tee=parsed.tee),
        report_data=authentic.freshness.value,
        facts=authentic.facts,
        findings=authentic.findings,
        unchecked=(),  # that no event log came with the quote is no gap: on Azure all run-time registers are zero
    )
