"""What would change: a release rule that is not in force yet, tried on the decisions of the past."""

from __future__ import annotations

from dataclasses import dataclass

from cloister.protocol.resourceuri import parse_resource_path
from cloister.trust.access import Permission
from cloister.trust.administration.desk import Desk, TenantStores
from cloister.trust.approvals import ResourcePrefix
from cloister.trust.keybroker.policy import WITNESSES, ReleaseRules, prefixes_of
from cloister.trust.keybroker.rulebook import checked_rule
from cloister.trust.keybroker.whatif import Changed, recorded_decisions, what_if


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What came of one.

    Attributes:
        tried: how many decisions were made again.
        changed: those that would be others, oldest first.
    """

    tried: int
    changed: tuple[Changed, ...]


@dataclass(frozen=True, slots=True)
class Rehearsals:
    """Rehearsals of one tenant."""

    desk: Desk

    def rule(self, prefix: ResourcePrefix, text: bytes, *, last: int) -> Rehearsal:
        """Try a rule on the newest decisions about what lies under its prefix.

        Decisions whose evidence is not kept any more are left out; witnesses count as enough.

        Raises:
            FormatRefused: not a rule for the prefix.
            Unavailable: Rego, and this installation cannot run it.
        """
        candidate = checked_rule(str(prefix), text)
        at = self.desk.now()

        def work(stores: TenantStores) -> Rehearsal:
            now = stores.rules.rules()
            changed = ReleaseRules(rules={**now.rules, candidate.prefix: candidate}, revoked=now.revoked)
            decisions = [item for item in recorded_decisions(stores.records, last=last) if prefix.covers(item.path)]

            def approved_by(resource: str, init_data: str) -> frozenset[str]:
                return stores.proposals.approved_by(prefixes_of(parse_resource_path(resource)), init_data, at=at)

            found = what_if(changed, decisions, approved_by=approved_by, witnesses=WITNESSES)
            return Rehearsal(tried=len(decisions), changed=found)

        return self.desk.look(Permission.POLICY_READ, f"what if {prefix}", work)
