"""What may be done in a tenant, and which role may do it: one table, which the reference page repeats.

A permission is a verb and a noun, so that reading never implies writing. Secret content is a noun of its own. A role
is a fixed set of permissions; there is no way to deny a permission that a role has, and no role that has none.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final


class Permission(enum.StrEnum):
    """One verb on one noun."""

    RESOURCE_LIST = "resource:list"
    RESOURCE_WRITE = "resource:write"
    RESOURCE_DELETE = "resource:delete"
    SECRET_READ = "secret:read"  # noqa: S105  a permission's name
    POLICY_READ = "policy:read"
    POLICY_WRITE = "policy:write"
    REFERENCE_READ = "reference:read"
    REFERENCE_ADD = "reference:add"
    REFERENCE_ADD_UNSIGNED = "reference:add-unsigned"
    REFERENCE_DELETE = "reference:delete"
    PUBLISHER_WRITE = "publisher:write"
    ROOT_READ = "root:read"
    ROOT_WRITE = "root:write"
    AUDIT_READ = "audit:read"
    EVIDENCE_READ = "evidence:read"
    PROPOSAL_READ = "proposal:read"
    PROPOSAL_APPROVE = "proposal:approve"
    TOKEN_READ = "token:read"  # noqa: S105  a permission's name
    TOKEN_WRITE = "token:write"  # noqa: S105  a permission's name
    TENANT_READ = "tenant:read"
    TENANT_WRITE = "tenant:write"
    KEY_READ = "key:read"
    KEY_WRITE = "key:write"
    STATUS_READ = "status:read"


class Role(enum.StrEnum):
    """Who somebody is to a tenant."""

    ROOT = "root"
    OWNER = "owner"
    OPERATOR = "operator"
    AUDITOR = "auditor"
    APPROVER = "approver"
    PUBLISHER = "publisher"


_READ: Final = frozenset(
    {
        Permission.RESOURCE_LIST,
        Permission.POLICY_READ,
        Permission.REFERENCE_READ,
        Permission.ROOT_READ,
        Permission.AUDIT_READ,
        Permission.EVIDENCE_READ,
        Permission.PROPOSAL_READ,
        Permission.KEY_READ,
        Permission.STATUS_READ,
    }
)
# Of the whole service, never of one tenant.
_SERVICE: Final = frozenset({Permission.TENANT_READ, Permission.TENANT_WRITE, Permission.KEY_WRITE})

PERMISSIONS: Final[Mapping[Role, frozenset[Permission]]] = {
    Role.ROOT: frozenset(Permission),
    Role.OWNER: frozenset(Permission) - _SERVICE,
    # Keeps a service running: what it may change can only make less pass, or carries a publisher's signature.
    Role.OPERATOR: _READ | {Permission.REFERENCE_ADD, Permission.REFERENCE_DELETE},
    Role.AUDITOR: _READ | {Permission.TOKEN_READ},
    Role.APPROVER: _READ | {Permission.PROPOSAL_APPROVE},
    Role.PUBLISHER: frozenset({Permission.REFERENCE_READ, Permission.REFERENCE_ADD, Permission.STATUS_READ}),
}
