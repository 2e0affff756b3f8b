"""What would change: a release rule that is not in force yet, tried on the decisions of the past."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cloister.protocol.resourceuri import ResourcePath
from cloister.rats.result import Finding
from cloister.trust.access import Permission
from cloister.trust.administration.desk import Desk, TenantStores
from cloister.trust.approvals import ResourcePrefix
from cloister.trust.keybroker.policy import ReleaseRule, ReleaseRules, parse_release_rule, prefixes_of
from cloister.trust.keybroker.rehearsal import rehearse_release
from cloister.trust.store.records import RELEASED, AuditRow


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsedDecision:
    """A decision of the past, and what it would be.

    Attributes:
        row: of the audit.
        after: whether it would be released.
        failures: checks that would not hold.
    """

    row: AuditRow
    after: bool
    failures: tuple[Finding, ...]

    @property
    def before(self) -> bool:
        """Whether it was released."""
        return self.row.decision == RELEASED


@dataclass(frozen=True, slots=True)
class Rehearsals:
    """Rehearsals of one tenant."""

    desk: Desk

    def rule(self, prefix: ResourcePrefix, text: bytes, *, limit: int) -> tuple[RehearsedDecision, ...]:
        """Try a rule on the newest decisions about what lies under its prefix, the newest first.

        Decisions whose evidence is not kept any more are left out.

        Raises:
            FormatRefused: not a rule for the prefix; one in Rego (`trust.release_policy.rehearsal`).
        """
        candidate = parse_release_rule(str(prefix), text)

        def work(stores: TenantStores) -> tuple[RehearsedDecision, ...]:
            now = stores.rules.rules()
            rules: Mapping[str, ReleaseRule] = {**now.rules, candidate.prefix: candidate}
            changed = ReleaseRules(rules=rules, revoked=now.revoked)
            found = []
            for row in stores.queries.newest_decisions(limit):
                if row.resource.count("/") != 2 or not row.attestation:
                    continue
                path = ResourcePath(*row.resource.split("/"))
                record = stores.records.appraisal(row.attestation) if prefix.covers(path) else None
                if record is None:
                    continue
                approved = stores.proposals.approved_by(prefixes_of(path), record.init_data, at=row.at)
                decision = rehearse_release(changed, row, record, approved_by=approved)
                found.append(RehearsedDecision(row=row, after=decision.allowed, failures=decision.failures))
            return tuple(found)

        return self.desk.look(Permission.POLICY_READ, f"what if {prefix}", work)
