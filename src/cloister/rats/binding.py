"""Is it bound? The one place that compares evidence with the session it must belong to.

CoCo's rule for fitting a digest into a field of another size: pad with zeros on the right, or cut. Cutting is done
only where a field says so (an SPDM nonce is 32 bytes); an init data digest is never cut, because a shorter digest than
its owner chose would be a weaker promise than the owner made.
"""

from __future__ import annotations

import hmac
from typing import Final

from cloister.errors import EvidenceError
from cloister.rats.evidence import AuthenticEvidence, ExpectedBinding, Slot
from cloister.rats.result import Finding, Question, Severity, Unchecked

FRESHNESS: Final = "evidence.freshness"
INIT_DATA: Final = "evidence.init_data"
_SHOWN_HEX: Final = 16


def judge_binding(authentic: AuthenticEvidence, expected: ExpectedBinding) -> tuple[Finding, ...]:
    """Return a finding for freshness and one for the init data."""
    return (_judge_freshness(authentic.freshness, expected), _judge_init_data(authentic.init_data, expected))


def verify_binding(authentic: AuthenticEvidence, expected: ExpectedBinding) -> tuple[Finding, ...]:
    """Return the findings of `judge_binding`, or refuse with the first that does not hold.

    Raises:
        EvidenceError: the evidence is of another session or other init data (`evidence.freshness`,
            `evidence.freshness.no_session`, `evidence.init_data`, `evidence.init_data.no_field`,
            `evidence.init_data.length`).
    """
    findings = judge_binding(authentic, expected)
    for finding in findings:
        if finding.refuses:
            raise EvidenceError(
                finding.code,
                finding.message,
                path=finding.path,
                expected=finding.expected,
                actual=finding.actual,
                hint=finding.hint,
            )
    return findings


def _judge_freshness(slot: Slot, expected: ExpectedBinding) -> Finding:
    if isinstance(expected.report_data, Unchecked):
        return _not_requested(
            FRESHNESS, expected.report_data, "any session's evidence passes; give the nonce or report data you expect"
        )
    fitted = expected.report_data if expected.exact else slot.fit(expected.report_data)
    if not fitted:
        return Finding(
            code=f"{FRESHNESS}.no_session",
            question=Question.BOUND,
            ok=False,
            message="there is no session that the evidence could be bound to",
            expected=f"a value that fits {slot.name}",
            actual=f"{len(expected.report_data)} bytes",
            hint="evidence is verified against a nonce that was issued for it",
            path=slot.path,
        )
    ok = hmac.compare_digest(slot.value, fitted)
    return Finding(
        code=FRESHNESS,
        question=Question.BOUND,
        ok=ok,
        message=f"{slot.name} binds {'the nonce and key of this session' if ok else 'another nonce or key'}",
        expected=_show(fitted),
        actual=_show(slot.value) or "empty",
        origin="nonce issued by this verifier, key the guest sent",
        hint="evidence is good for one session only: start a new one",
        path=slot.path,
    )


def _judge_init_data(slot: Slot | None, expected: ExpectedBinding) -> Finding:
    digest = expected.init_data_digest
    if isinstance(digest, Unchecked):
        return _not_requested(
            INIT_DATA, digest, "whatever init data the guest was started with passes; give the value you expect"
        )
    if slot is None:
        return Finding(
            code=f"{INIT_DATA}.no_field",
            question=Question.BOUND,
            ok=False,
            message="the technology has no field that could hold init data",
            expected=_show(digest),
            actual="no field",
            hint="do not ask for init data with this technology, or bind it to evidence of the CPU",
        )
    if slot.insecure_unchecked:
        return _not_requested(INIT_DATA, Unchecked(reason=slot.insecure_unchecked), "believe nothing that it names")
    fitted = digest if expected.exact else slot.fit(digest)
    if not fitted:
        return Finding(
            code=f"{INIT_DATA}.length",
            question=Question.BOUND,
            ok=False,
            message=f"the init data digest does not fit {slot.name}",
            expected=_sizes(slot),
            actual=f"{len(digest)} bytes",
            hint=(
                "name another `algorithm` in the init data: sha256 fits everywhere"
                if slot.padded
                else "name an `algorithm` in the init data whose digest has that length"
            ),
            path=slot.path,
        )
    ok = hmac.compare_digest(slot.value, fitted)
    return Finding(
        code=INIT_DATA,
        question=Question.BOUND,
        ok=ok,
        message=f"{slot.name} {'holds this init data and nothing else' if ok else 'does not hold this init data'}",
        expected=_show(fitted),
        actual=_show(slot.value) or "empty",
        origin="digest of the init data that was sent",
        hint="the pod VM was started with other init data, or something was measured into the register besides",
        path=slot.path,
    )


def _sizes(slot: Slot) -> str:
    if slot.extended:
        return "32 bytes"
    return f"1 to {slot.size or 'any'} bytes" if slot.padded else f"{slot.size} bytes"


def _not_requested(code: str, unchecked: Unchecked, hint: str) -> Finding:
    return Finding(
        code=f"{code}.not_requested",
        question=Question.BOUND,
        ok=False,
        severity=Severity.WARNING,
        message=f"not checked: {unchecked.reason}",
        hint=hint,
    )


def _show(value: bytes) -> str:
    text = value.hex()
    return text if len(text) <= _SHOWN_HEX else text[:_SHOWN_HEX] + ".."
