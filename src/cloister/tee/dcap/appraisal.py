"""Rules of an owner that SGX and TDX have in common: TCB status, evaluation number, advisories. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from cloister.rats.result import Finding, Question, Severity
from cloister.tee.dcap.tcb import REVOKED, UNSUPPORTED
from cloister.tee.dcap.verifier import VerifiedQuote

_NEVER: Final = frozenset({REVOKED, UNSUPPORTED})


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformFacts:
    """What these rules judge.

    Attributes:
        tcb_status: Intel's word, or `Unsupported`; None without collateral.
        advisories: that apply to the platform.
        evaluation_number: of the collateral; None without.
        foreign_bytes: bytes behind the quote that are no padding.
    """

    tcb_status: str | None
    advisories: tuple[str, ...]
    evaluation_number: int | None
    foreign_bytes: int


class _Rules(Protocol):
    @property
    def tcb_statuses(self) -> tuple[str, ...]: ...
    @property
    def minimum_evaluation_number(self) -> int: ...
    @property
    def denied_advisories(self) -> tuple[str, ...]: ...


def platform_facts(verified: VerifiedQuote) -> PlatformFacts:
    """Return the facts about the platform of a verified quote."""
    return PlatformFacts(
        tcb_status=verified.tcb.status if verified.tcb is not None else None,
        advisories=verified.tcb.advisories if verified.tcb is not None else (),
        evaluation_number=verified.evaluation_number,
        foreign_bytes=verified.quote.foreign_bytes,
    )


def appraise_common(facts: PlatformFacts, rules: _Rules, *, section: str, code: str) -> tuple[Finding, ...]:
    """Return one finding per rule.

    Args:
        facts: of the platform.
        rules: the owner's section.
        section: its name.
        code: prefix of the findings' codes.
    """
    return (
        _judge_status(facts, rules, section, code),
        _judge_evaluation(facts, rules, section, code),
        _judge_advisories(facts, rules, section, code),
        Finding(
            code=f"{code}.trailing_bytes",
            question=Question.ACCEPTABLE,
            ok=not facts.foreign_bytes,
            message="nothing but zero padding follows the quote",
            expected="zeros",
            actual="zeros" if not facts.foreign_bytes else f"{facts.foreign_bytes} bytes that are no part of the quote",
            hint="send the quote as the platform made it",
        ),
    )


def _judge_status(facts: PlatformFacts, rules: _Rules, section: str, code: str) -> Finding:
    origin = f"tcb_statuses of section {section}"
    expected = ", ".join(rules.tcb_statuses) or "no status is accepted"
    if facts.tcb_status is None:
        # That the status is not known leaves the verdict open already, where authenticity is judged.
        return Finding(
            code=f"{code}.tcb_status",
            question=Question.ACCEPTABLE,
            ok=False,
            severity=Severity.WARNING,
            message="TCB status of the platform was not judged: no collateral was given",
            expected=expected,
            actual="not known",
            origin=origin,
            hint="give the collateral for this platform",
        )
    unsupported = facts.tcb_status == UNSUPPORTED
    return Finding(
        code=f"{code}.tcb_unsupported" if unsupported else f"{code}.tcb_status",
        question=Question.ACCEPTABLE,
        ok=facts.tcb_status in rules.tcb_statuses and facts.tcb_status not in _NEVER,
        message="no level of the TCB info has this platform's versions"
        if unsupported
        else "TCB status of the platform",
        expected=expected,
        actual=facts.tcb_status + (f" ({', '.join(facts.advisories)})" if facts.advisories else ""),
        origin=origin,
        hint="update the platform's firmware and TDX module, or fetch newer collateral"
        if unsupported
        else "update the platform, or accept its status in `tcb_statuses`",
    )


def _judge_evaluation(facts: PlatformFacts, rules: _Rules, section: str, code: str) -> Finding:
    known = facts.evaluation_number
    return Finding(
        code=f"{code}.evaluation_number",
        question=Question.ACCEPTABLE,
        ok=(known if known is not None else 0) >= rules.minimum_evaluation_number,
        message="collateral is of a recent enough TCB evaluation",
        expected=f"at least {rules.minimum_evaluation_number}",
        actual=str(known) if known is not None else "no collateral",
        origin=f"minimum_evaluation_number of section {section}",
        hint="fetch newer collateral",
    )


def _judge_advisories(facts: PlatformFacts, rules: _Rules, section: str, code: str) -> Finding:
    denied = sorted(set(facts.advisories) & set(rules.denied_advisories))
    unknown = facts.tcb_status is None and bool(rules.denied_advisories)
    return Finding(
        code=f"{code}.advisories",
        question=Question.ACCEPTABLE,
        ok=not denied and not unknown,
        severity=Severity.UNAVAILABLE if unknown else Severity.ERROR,
        message="no denied advisory applies to the platform",
        expected=f"none of {', '.join(rules.denied_advisories)}" if rules.denied_advisories else "any",
        actual="not known" if unknown else ", ".join(denied or facts.advisories) or "none",
        origin=f"denied_advisories of section {section}",
        hint="update the platform's firmware, or the list",
    )
