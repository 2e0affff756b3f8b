"""The list of checks a verifier makes: each is recorded as a finding when it holds and raised when it does not.

House style, Security behaviour 17 and 20: no boolean verifiers, every check leaves a trace with expected and actual
value. A verifier walks its numbered steps through one `Checklist`; what comes out are only findings that hold, because
the first that does not ends the verification.
"""

from __future__ import annotations

from cloister.errors import EvidenceError, Refused
from cloister.rats.result import Finding, Question

_SHOWN_HEX = 16


class Checklist:
    """Collects the findings of one verification."""

    __slots__ = ("_findings",)

    def __init__(self) -> None:
        self._findings: list[Finding] = []

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The checks made so far, all of which held."""
        return tuple(self._findings)

    def add(self, finding: Finding) -> None:
        """Record a finding that was made elsewhere and does not refuse."""
        if finding.refuses:
            raise RuntimeError("a check that does not hold is raised, not recorded")
        self._findings.append(finding)

    def require(
        self,
        ok: bool,
        *,
        code: str,
        question: Question,
        message: str,
        otherwise: str,
        expected: str = "",
        actual: str = "",
        origin: str = "",
        hint: str = "",
        path: str = "",
        error: type[Refused] = EvidenceError,
    ) -> None:
        """Record the check, or refuse.

        Args:
            ok: whether the check holds.
            code: stable code, the same for the finding and for the refusal.
            question: which of the three questions it answers.
            message: what was checked, in words that are true when it holds.
            otherwise: message of the refusal.
            expected: shortened expected value.
            actual: shortened found value.
            origin: where the expected value comes from.
            hint: what to change when it does not hold.
            path: place in the evidence.
            error: class of the refusal.

        Raises:
            Refused: of class `error`, when `ok` is false.
        """
        if not ok:
            raise error(code, otherwise, path=path, expected=expected, actual=actual, hint=hint)
        self._findings.append(
            Finding(
                code=code,
                question=question,
                ok=True,
                message=message,
                expected=expected,
                actual=actual,
                origin=origin,
            )
        )


def shorten(value: bytes) -> str:
    """Return the first bytes of `value` as hex, for findings."""
    text = value.hex()
    return text if len(text) <= _SHOWN_HEX else text[:_SHOWN_HEX] + ".."
