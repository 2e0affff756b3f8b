"""The owner's rules for TPM evidence (section `tpm` of the appraisal policy), one finding each. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cloister.rats.result import Finding, Question
from cloister.rats.rules import PlatformRules


@dataclass(frozen=True, slots=True, kw_only=True)
class TPMFacts:
    """What the rules judge.

    Attributes:
        event_log: whether a log came with the evidence and replayed to the quoted registers.
        firmware_version: of the TPM, as it reports it.
        nonce: whether the quote binds anything at all.
    """

    event_log: bool
    firmware_version: int
    nonce: bool = True


def appraise_platform(facts: object, rules: PlatformRules, *, at: datetime) -> tuple[Finding, ...]:
    """Judge the facts of authentic TPM evidence; `at` is not needed.

    Raises:
        TypeError: facts of another technology.
    """
    if not isinstance(facts, TPMFacts):
        raise TypeError("facts of another technology")
    return (
        Finding(
            code="appraisal.tpm.event_log",
            question=Question.ACCEPTABLE,
            ok=facts.event_log or not rules.tpm.require_event_log,
            message="an event log explains the registers" if facts.event_log else "no event log explains the registers",
            expected="a log" if rules.tpm.require_event_log else "any",
            actual="a log" if facts.event_log else "none",
            origin="require_event_log of section tpm",
            hint="send the event log with the evidence, or do not require one",
        ),
        Finding(
            code="appraisal.tpm.firmware_version",
            question=Question.ACCEPTABLE,
            ok=facts.firmware_version >= rules.tpm.minimum_firmware_version,
            message="firmware version of the TPM",
            expected=f"at least {rules.tpm.minimum_firmware_version:#x}",
            actual=f"{facts.firmware_version:#x}",
            origin="minimum_firmware_version of section tpm",
            hint="update the TPM's firmware",
        ),
        Finding(
            code="appraisal.tpm.nonce",
            question=Question.ACCEPTABLE,
            ok=facts.nonce or rules.tpm.insecure_accept_empty_nonce,
            message="quote answers a nonce" if facts.nonce else "quote answers no nonce: it may be of any time",
            expected="any" if rules.tpm.insecure_accept_empty_nonce else "extraData that is not empty",
            actual="not empty" if facts.nonce else "empty",
            origin="insecure_accept_empty_nonce of section tpm",
            hint="have the attester quote with the nonce it was given",
        ),
    )
