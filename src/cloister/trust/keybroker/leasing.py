"""Leases of key release: what a rule with `lease_seconds` gives, and when a release is a renewal."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import Connection

from cloister.trust.keybroker.policy import ReleaseRule
from cloister.trust.keybroker.token import VerifiedToken
from cloister.trust.store.leases import Lease, find_lease, keep_lease


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A lease, and whether this release renewed it."""

    lease: Lease
    renewal: bool


def grant_lease(
    connection: Connection, tenant: str, rule: ReleaseRule | None, token: VerifiedToken, resource: str, *, at: datetime
) -> Grant | None:
    """Begin or renew a guest's lease, within the caller's transaction; None when the rule gives none.

    A renewal needs evidence that is newer than what the lease stands on; the same evidence again gets the resource, and
    of the lease what is left. A lease that ended is over: what follows is a release like the first.
    """
    if rule is None or not rule.lease_seconds:
        return None
    ends = at + timedelta(seconds=rule.lease_seconds)
    held = find_lease(connection, tenant, resource, token.guest_key_id)
    if held is not None and held.expires_at > at:
        if held.attestation == token.attestation:
            return Grant(lease=held, renewal=False)
        lease = replace(
            held,
            attestation=token.attestation,
            init_data=token.init_data,
            level=token.level.value,
            expires_at=ends,
            renewals=held.renewals + 1,
        )
        keep_lease(connection, tenant, lease)
        return Grant(lease=lease, renewal=True)
    lease = Lease(
        resource=resource,
        guest_key=token.guest_key_id,
        init_data=token.init_data,
        instance=token.instance,
        tee=token.tee,
        level=token.level.value,
        attestation=token.attestation,
        granted_at=at,
        expires_at=ends,
        renewals=0,
    )
    keep_lease(connection, tenant, lease)
    return Grant(lease=lease, renewal=False)
