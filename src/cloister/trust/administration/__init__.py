"""Administration of the trust service: one set of functions for the state directory and for the network.

`Administration` is the service's; `office` gives what one principal may do in one tenant. Nothing here knows HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cloister.errors import Refused
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.trust.access import AccessControl, Permission, Principal
from cloister.trust.administration.approvals import Approvals
from cloister.trust.administration.desk import AdministrationParts, Desk, TenantStores
from cloister.trust.administration.identities import Identities
from cloister.trust.administration.keys import Keys
from cloister.trust.administration.policies import AppraisalPolicies
from cloister.trust.administration.records import Records
from cloister.trust.administration.references import References
from cloister.trust.administration.rehearsal import Rehearsals
from cloister.trust.administration.resources import Resources
from cloister.trust.administration.roots import Roots
from cloister.trust.administration.rules import ReleaseRules
from cloister.trust.administration.surveys import Surveys
from cloister.trust.administration.tenants import Tenants, Tokens
from cloister.trust.keys import KeyAdministration
from cloister.trust.store.tenants import TenantStore

__all__ = ["Administration", "AdministrationParts", "Office"]


class Office:
    """What one principal does in one tenant, by subject."""

    def __init__(self, desk: Desk, access: AccessControl, keys: KeyAdministration, settings: Mapping[str, str]) -> None:
        self.desk = desk
        self.settings = settings
        self.resources = Resources(desk)
        self.appraisal = AppraisalPolicies(desk)
        self.rules = ReleaseRules(desk)
        self.rehearsals = Rehearsals(desk)
        self.surveys = Surveys(desk)
        self.identities = Identities(desk)
        self.references = References(desk)
        self.roots = Roots(desk)
        self.records = Records(desk)
        self.approvals = Approvals(desk)
        self.tenants = Tenants(desk)
        self.tokens = Tokens(desk, access)
        self.keys = Keys(desk, keys)

    def status(self) -> dict[str, Any]:  # Any: texts, numbers, and the settings
        """Return what the service runs with, and how much is kept for the tenant.

        Raises:
            Refused: not permitted (`trust.access.forbidden`).
        """
        at = self.desk.now()

        def work(stores: TenantStores) -> dict[str, Any]:  # Any: as above
            entries = stores.references.list()
            return {
                "tenant": self.desk.tenant,
                "principal": self.desk.principal.name,
                "role": self.desk.principal.role.value,
                "configuration": self.desk.configuration(),
                "audit": stores.records.last_audit(),
                "resources": len(stores.resources.list()),
                "reference_values": len(entries),
                "expired_reference_values": sum(1 for entry in entries if entry.not_after <= at),
                "settings": dict(self.settings),
            }

        return self.desk.look(Permission.STATUS_READ, "", work)


@dataclass(frozen=True, slots=True, kw_only=True)
class Administration:
    """Administration of one service.

    Attributes:
        parts: what it works with.
        access: recognises principals.
        keys: of the service.
        settings: of the service, for people to read; none of them secret.
    """

    parts: AdministrationParts
    access: AccessControl
    keys: KeyAdministration
    settings: Mapping[str, str] = field(default_factory=dict)

    def desk(self, principal: Principal, tenant: str, *, record_reading: bool = True) -> Desk:
        """Return the desk of a principal in a tenant, whether or not there is such a tenant."""
        return Desk(self.parts, principal, tenant, record_reading=record_reading)

    def admit(
        self, bearer: str, tenant: str | None, permission: Permission, subject: str, *, denied: Callable[[str], None]
    ) -> Office:
        """Return what whoever shows this token does in a tenant, for one call. A refusal is recorded.

        Args:
            bearer: access token as received.
            tenant: where; None for the token's own, or the default one.
            permission: that the call takes.
            subject: what it is about, for the record; no secret.
            denied: told the id of the record of a refusal for want of permission.

        Raises:
            Refused: `trust.access.unauthenticated`, `trust.access.forbidden`, `trust.tenant.missing`.
            Unavailable: the store failed.
        """
        principal = self.access.authenticate(bearer)
        home = principal.tenant or DEFAULT_TENANT
        try:
            return self.office(principal, tenant or home, permission)
        except Refused as err:
            if err.code.startswith("trust.access."):
                named = f"{subject} of tenant {tenant or home}"
                denied(self.desk(principal, home).deny(err, permission.value, named))
            raise

    def office(
        self, principal: Principal, tenant: str, permission: Permission | None, *, record_reading: bool = True
    ) -> Office:
        """Return what a principal does in a tenant. Whether there is such a tenant is told to who may know.

        Args:
            principal: who asks.
            tenant: where.
            permission: that the call takes; None for what anybody with a token may do in their own tenant.
            record_reading: whether calls that only read leave a row.

        Raises:
            Refused: not permitted there (`trust.access.forbidden`), or no such tenant (`trust.tenant.missing`).
        """
        if permission is not None:
            principal.require(permission, tenant)
        elif principal.tenant not in (None, tenant):
            raise Refused("trust.access.forbidden", "this token does not permit that here")
        TenantStore(self.parts.store).get(tenant)
        return Office(
            self.desk(principal, tenant, record_reading=record_reading), self.access, self.keys, self.settings
        )
