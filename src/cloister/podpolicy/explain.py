"""Words for a decision of `enforce.decide`: the same checks that gave the verdict, never a second copy of the
rules."""

from __future__ import annotations

from cloister.podpolicy.enforce import Check, Decision


def explain_decision(decision: Decision) -> str:
    """Return a few lines for a person: the verdict, then each check with its rule, expected and actual value.

    Failed checks come first; they carry the hint.
    """
    verdict = "allowed" if decision.allowed else "refused"
    failed = [check for check in decision.checks if not check.ok]
    passed = [check for check in decision.checks if check.ok]
    lines = [verdict, *(_failed_line(check) for check in failed), *(_passed_line(check) for check in passed)]
    if not decision.checks:
        lines.append("  no rule allows this request")
    return "\n".join(lines)


def _failed_line(check: Check) -> str:
    text = f"  no  {check.code} at {check.path}: {check.otherwise}: expected {check.expected}, got {check.actual}"
    return f"{text}\n      fix: {check.hint}" if check.hint else text


def _passed_line(check: Check) -> str:
    return f"  ok  {check.code} at {check.path}: {check.message}"
