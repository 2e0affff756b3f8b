"""The owner's rules for Azure evidence: section `azure` of the appraisal policy, and the hardware's section besides.

One rule of the hardware's is judged here instead: that a TD cannot be made to take exceptions by unmapping its pages
(SEPT_VE_DISABLE). Azure starts every TD with that attribute clear, and not the guest but the paravisor is what takes
such an exception first. So it is a warning unless section `azure` says otherwise, where section `tdx` would refuse
every VM there is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from cloister.rats.result import Finding, Question, Severity
from cloister.rats.rules import Handling, PlatformRules
from cloister.tee.sev_snp import appraisal as sev_snp
from cloister.tee.sev_snp.appraisal import SNPFacts
from cloister.tee.tdx import appraisal as tdx

_SEPT_VE: Final = "appraisal.tdx.sept_ve_disable"


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureFacts:
    """What the rules judge.

    Attributes:
        hardware: facts of the hardware's own technology.
        console: whether the serial console is on; None when the paravisor does not say.
        secure_boot: likewise.
        nonce: whether the quote answers a nonce at all.
        fresh_hardware: whether the hardware's report was made for that nonce too.
    """

    hardware: object
    console: bool | None
    secure_boot: bool | None
    nonce: bool
    fresh_hardware: bool


def appraise_platform(facts: object, rules: PlatformRules, *, at: datetime) -> tuple[Finding, ...]:
    """Judge the facts of authentic Azure evidence.

    Raises:
        TypeError: facts of another technology.
    """
    if not isinstance(facts, AzureFacts):
        raise TypeError("facts of another technology")
    return (*_judge_hardware(facts.hardware, rules, at), *_judge_paravisor(facts, rules))


def _judge_hardware(facts: object, rules: PlatformRules, at: datetime) -> tuple[Finding, ...]:
    if isinstance(facts, SNPFacts):
        return sev_snp.appraise_platform(facts, rules, at=at)
    findings = tdx.appraise_platform(facts, rules, at=at)
    return tuple(_handle_sept_ve(item, rules.azure.sept_ve) if item.code == _SEPT_VE else item for item in findings)


def _handle_sept_ve(finding: Finding, handling: Handling) -> Finding:
    if finding.ok:
        return finding
    return replace(
        finding,
        ok=handling is Handling.ACCEPT,
        severity=_SEVERITIES[handling],
        origin="sept_ve of section azure",
        hint="Azure does not offer TDs with SEPT_VE_DISABLE",
    )


def _judge_paravisor(facts: AzureFacts, rules: PlatformRules) -> tuple[Finding, ...]:
    azure = rules.azure
    return (
        Finding(
            code="appraisal.azure.console",
            question=Question.ACCEPTABLE,
            ok=facts.console is False or azure.console is Handling.ACCEPT,
            severity=_SEVERITIES[azure.console],
            message="the serial console is off" if facts.console is False else "the serial console may be read",
            expected="off" if azure.console is not Handling.ACCEPT else "any",
            actual=_told(facts.console),
            origin="console of section azure",
            hint="switch the serial console off, or see to it that the guest writes no secret to it and lets nobody in",
        ),
        Finding(
            code="appraisal.azure.secure_boot",
            question=Question.ACCEPTABLE,
            ok=facts.secure_boot is True or not azure.require_secure_boot,
            message="secure boot is on" if facts.secure_boot is True else "secure boot is off",
            expected="on" if azure.require_secure_boot else "any",
            actual=_told(facts.secure_boot),
            origin="require_secure_boot of section azure",
            hint="create the VM with secure boot, or judge the boot by reference values alone",
        ),
        Finding(
            code="appraisal.azure.nonce",
            question=Question.ACCEPTABLE,
            ok=facts.nonce or azure.insecure_accept_empty_nonce,
            message="quote answers a nonce" if facts.nonce else "quote answers no nonce: it may be of any time",
            expected="any" if azure.insecure_accept_empty_nonce else "extraData that is not empty",
            actual="not empty" if facts.nonce else "empty",
            origin="insecure_accept_empty_nonce of section azure",
            hint="have the attester quote with the nonce it was given",
        ),
        Finding(
            code="appraisal.azure.fresh_hardware",
            question=Question.ACCEPTABLE,
            ok=facts.fresh_hardware or not azure.require_fresh_hardware,
            message="hardware's report was made for this nonce"
            if facts.fresh_hardware
            else "hardware's report is of any time since the VM was started",
            expected="made for this nonce" if azure.require_fresh_hardware else "any",
            actual="made for this nonce" if facts.fresh_hardware else "not bound to it",
            origin="require_fresh_hardware of section azure",
            hint="use an attester that writes the report data to the paravisor first (evidence version 2)",
        ),
    )


_SEVERITIES: Final = {
    Handling.ACCEPT: Severity.WARNING,
    Handling.WARN: Severity.WARNING,
    Handling.REFUSE: Severity.ERROR,
}


def _told(value: bool | None) -> str:
    if value is None:
        return "the paravisor does not say"
    return "on" if value else "off"
