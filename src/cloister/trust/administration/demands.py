"""Who must approve what: stored demands on changes, a kind of policy of their own, and the rules' own approvals."""

from __future__ import annotations

from typing import Final

from cloister.protocol.resourceuri import parse_resource_path
from cloister.trust.administration.desk import TenantStores
from cloister.trust.approvals import ApprovalDemand, ResourcePrefix, parse_demand, parse_resource_prefix
from cloister.trust.keybroker.policy import ReleaseRule
from cloister.trust.store.policies import StoredPolicy

DEMAND: Final = "approvals"


def stored_demands(stores: TenantStores) -> tuple[StoredPolicy, ...]:
    """Return every demand on changes in force, by prefix."""
    return tuple(item for item in stores.policies.current_all(DEMAND) if item.text)


def live_demands(stores: TenantStores) -> tuple[ApprovalDemand, ...]:
    """Return what changes have to meet: stored demands, and those of rules that ask for approvals of releases."""
    stored = [parse_demand(parse_resource_prefix(item.name), item.text) for item in stored_demands(stores)]
    of_rules = [_of_rule(rule) for rule in stores.rules.rules().rules.values()]
    return (*stored, *(demand for demand in of_rules if demand is not None))


def release_demand(stores: TenantStores, prefix: ResourcePrefix) -> ApprovalDemand | None:
    """Return whose approvals the rule that decides about `prefix` asks for a release; None when it asks for none."""
    rules, text = stores.rules.rules(), str(prefix)
    rule = rules.rules.get(text) if text.endswith("*") else rules.rule_for(parse_resource_path(text))
    return _of_rule(rule) if rule is not None else None


def _of_rule(rule: ReleaseRule) -> ApprovalDemand | None:
    if rule.approvals is None:
        return None
    return ApprovalDemand(
        prefix=parse_resource_prefix(rule.prefix), need=rule.approvals.need, of=tuple(rule.approvals.of)
    )
