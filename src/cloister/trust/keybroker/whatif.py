"""What would be different under other release rules: past decisions, made again by the same evaluator. Pure.

A decision is made again from what was recorded of it: the guest as its Attestation Result described it, at the time it
asked. Other verdicts on evidence (a candidate appraisal policy, another TCB) come in by replacing what the record says
of a guest with what re-appraisal of its kept evidence says. Rules in Rego see a whole token, which is not kept; about
them this says that it cannot tell.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cloister.errors import FormatRefused
from cloister.protocol.resourceuri import ResourcePath, parse_resource_path
from cloister.rats.claims import Level
from cloister.rats.policy import RESULT_LIFETIME
from cloister.rats.result import REFERENCED, Finding, Tier
from cloister.trust.keybroker.decision import ReleaseFacts, evaluate_release
from cloister.trust.keybroker.policy import ReleaseRules
from cloister.trust.store.records import DENIED, RELEASED, RENEWED, AppraisalRecord, AuditRow, RecordStore

DECISIONS: Final = 1000  # looked at, at most
_REGO: Final = "trust.release.rego"
_RULES_ASKED: Final = ("trust.release.", "appraisal.")  # denials that rules and verdicts made; others stay


class Verdict(enum.StrEnum):
    """What a decision was, or would be."""

    RELEASED = "released"
    DENIED = "denied"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedGuest:
    """A guest as its Attestation Result described it, from the record."""

    tee: str
    tier: Tier
    level: Level
    init_data: str
    init_data_referenced: bool
    policy_id: str
    policy_digest: str
    issued_at: datetime
    expires_at: datetime
    verifier: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedDecision:
    """A decision of the past.

    Attributes:
        sequence: of its audit row.
        at: when, aware UTC.
        path: what was asked for.
        attestation: id of the result it stood on.
        was: what was decided.
        code: of the row.
        guest: who asked.
    """

    sequence: int
    at: datetime
    path: ResourcePath
    attestation: str
    was: Verdict
    code: str
    guest: RecordedGuest


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """A decision that would be another one, or of which that cannot be told.

    Attributes:
        decision: as it was.
        would: what it would be.
        rule: prefix of the rule that would decide; empty for the default.
        why: the findings that would deny; of one that would be released, those that were asked.
    """

    decision: RecordedDecision
    would: Verdict
    rule: str
    why: tuple[Finding, ...]


def recorded_decision(row: AuditRow, appraisal: AppraisalRecord | None) -> RecordedDecision | None:
    """Return a decision about a resource by rule and verdict; None for others, and where the result is not kept."""
    by_rule = row.decision in (RELEASED, RENEWED) or (row.decision == DENIED and row.code.startswith(_RULES_ASKED))
    if appraisal is None or not by_rule:
        return None
    try:
        path = parse_resource_path(row.resource)
        tier, level = Tier(appraisal.tier), Level(appraisal.level)
    except (FormatRefused, ValueError):
        return None
    return RecordedDecision(
        sequence=row.sequence,
        at=row.at,
        path=path,
        attestation=appraisal.id,
        was=Verdict.DENIED if row.decision == DENIED else Verdict.RELEASED,
        code=row.code,
        guest=RecordedGuest(
            tee=appraisal.tee,
            tier=tier,
            level=level,
            init_data=appraisal.init_data,
            init_data_referenced=any(item.code == REFERENCED and item.ok for item in appraisal.findings),
            policy_id=appraisal.policy_id,
            policy_digest=appraisal.policy_digest,
            issued_at=appraisal.at,
            expires_at=appraisal.at + RESULT_LIFETIME,
        ),
    )


def recorded_decisions(records: RecordStore, *, last: int = DECISIONS) -> tuple[RecordedDecision, ...]:
    """Return the decisions among the newest audit rows, oldest first.

    Raises:
        Unavailable: the store failed.
    """
    last = min(max(last, 0), DECISIONS)
    rows = records.list_audit(after=max(0, records.last_audit() - last), limit=last)
    results: dict[str, AppraisalRecord | None] = {}
    found = []
    for row in rows:
        if row.attestation and row.attestation not in results:
            results[row.attestation] = records.appraisal(row.attestation)
        decision = recorded_decision(row, results.get(row.attestation))
        if decision is not None:
            found.append(decision)
    return tuple(found)


def what_if(
    rules: ReleaseRules,
    decisions: Sequence[RecordedDecision],
    *,
    approved_by: Callable[[str, str], frozenset[str]] = lambda resource, init_data: frozenset(),
    witnesses: int = 0,
) -> tuple[Changed, ...]:
    """Return the decisions that would be others under `rules`.

    Args:
        rules: the candidate, with whatever else is in force.
        decisions: of the past.
        approved_by: who approved the release of a resource (first) to guests with init data (second).
        witnesses: how many cosign the release log.
    """
    changed = []
    for decision in decisions:
        guest = decision.guest
        facts = ReleaseFacts(
            appraisal_policy_digest=guest.policy_digest,
            approved_by=approved_by(str(decision.path), guest.init_data),
            witnesses=witnesses,
        )
        again = evaluate_release(rules, decision.path, guest, facts, at=decision.at)
        would = Verdict.RELEASED if again.allowed else Verdict.DENIED
        if again.rule is not None and again.rule.rego and {item.code for item in again.failures} == {_REGO}:
            would = Verdict.UNKNOWN
        if would is not decision.was:
            rule = again.rule.prefix if again.rule is not None else ""
            why = again.failures or again.findings
            changed.append(Changed(decision=decision, would=would, rule=rule, why=why))
    return tuple(changed)
