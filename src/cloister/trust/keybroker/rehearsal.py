"""A release rule tried on what was decided before: the same evaluator, over Attestation Results that are kept.

Nothing is released by it: what stands in for the guest's key is a key that nobody holds.
"""

from __future__ import annotations

from datetime import timedelta
from functools import cache

from cloister.crypto.jwe import EphemeralKey, Recipient, parse_recipient
from cloister.errors import FormatRefused
from cloister.protocol.resourceuri import ResourcePath
from cloister.rats.claims import Level
from cloister.rats.result import REFERENCED, Tier
from cloister.trust.keybroker.policy import ReleaseDecision, ReleaseFacts, ReleaseRules, evaluate_release
from cloister.trust.keybroker.token import VerifiedToken
from cloister.trust.store.records import AppraisalRecord, AuditRow


def rehearse_release(
    rules: ReleaseRules, row: AuditRow, record: AppraisalRecord, *, approved_by: frozenset[str]
) -> ReleaseDecision:
    """Decide again what `row` says was decided, by other rules, as if it were asked at that time.

    The appraisal policy of then counts as the one in force, and witnesses as enough: the question is what the rules do.

    Args:
        rules: to try.
        row: a decision about a resource.
        record: the Attestation Result it was made on.
        approved_by: who approved that release.

    Raises:
        FormatRefused: the rule that would decide is Rego, which is not run here (`trust.release_policy.rehearsal`).
    """
    path = ResourcePath(*row.resource.split("/"))
    rule = rules.rule_for(path)
    if rule is not None and rule.rego:
        raise FormatRefused(
            "trust.release_policy.rehearsal",
            "a rule in Rego cannot be tried on past decisions",
            path=rule.prefix,
            hint="run it with `opa eval` on the input that CoCo's documents describe",
        )
    token = VerifiedToken(
        attestation=record.id,
        tee=record.tee,
        tier=Tier(record.tier),
        level=Level(row.level or record.level),
        instance=record.instance,
        init_data=record.init_data,
        policy_id=record.policy_id,
        policy_digest=record.policy_digest,
        pcr00=row.pcr00,
        guest_key=_nobodys_key(),
        guest_key_id=row.guest_key,
        failures=(),
        issued_at=row.at,
        expires_at=row.at + timedelta(seconds=1),
        init_data_referenced=any(finding.code == REFERENCED and finding.ok for finding in record.findings),
    )
    facts = ReleaseFacts(
        appraisal_policy_digest=record.policy_digest,
        approved_by=approved_by,
        witnesses=rule.witnesses if rule is not None else 0,
    )
    return evaluate_release(rules, path, token, facts, at=row.at)


@cache
def _nobodys_key() -> Recipient:
    return parse_recipient(EphemeralKey.generate().public_jwk())
