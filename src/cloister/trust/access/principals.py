"""Somebody who was recognised, and what they may do where."""

from __future__ import annotations

from dataclasses import dataclass

from cloister.errors import Refused
from cloister.trust.access.permissions import PERMISSIONS, Permission, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Somebody with a role, in one tenant or in all.

    Attributes:
        id: of the token that proved it; `local` for whoever holds the state directory.
        name: as the token's maker called it; unique among live tokens, and what approvals count.
        role: decides the permissions.
        tenant: where they hold; None for every tenant and the service itself.
    """

    id: str
    name: str
    role: Role
    tenant: str | None

    def may(self, permission: Permission, tenant: str) -> bool:
        """Return whether the role has the permission there."""
        return permission in PERMISSIONS[self.role] and self.tenant in (None, tenant)

    def require(self, permission: Permission, tenant: str) -> None:
        """Return if `may`. Says the same whether or not there is such a tenant.

        Raises:
            Refused: `trust.access.forbidden`.
        """
        if not self.may(permission, tenant):
            raise Refused(
                "trust.access.forbidden",
                "this token does not permit that here",
                expected=permission.value,
                actual=f"role {self.role.value} in {self.tenant or 'every tenant'}",
                hint="use a token whose role has the permission, and that is for this tenant",
            )

    def require_at_least(self, role: Role, tenant: str | None) -> None:
        """Return if everything that `role` may do in `tenant` (None: in all) this principal may do as well.

        Raises:
            Refused: `trust.access.escalation`.
        """
        wider = self.tenant is not None and self.tenant != tenant
        if wider or not PERMISSIONS[role] <= PERMISSIONS[self.role]:
            raise Refused(
                "trust.access.escalation",
                "nobody gives more than they have",
                expected=f"at most role {self.role.value} in {self.tenant or 'every tenant'}",
                actual=f"role {role.value} in {tenant or 'every tenant'}",
                hint="ask somebody with more rights to make this token",
            )


LOCAL_OWNER = Principal(id="local", name="state directory", role=Role.ROOT, tenant=None)
