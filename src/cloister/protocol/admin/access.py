"""Tenants, tokens, approvals, and the service itself."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from msgspec import Meta

from cloister.protocol.admin.base import (
    Answer,
    Body,
    Days,
    InitDataDigest,
    Name,
    Note,
    TenantName,
    TextDigest,
    WaitDays,
)
from cloister.protocol.admin.policies import PolicyVersion


class TenantChange(Body, frozen=True):
    """A new tenant."""

    id: TenantName
    note: Note = ""


class Tenant(Answer, frozen=True):
    """A tenant; one that is disabled answers no guest."""

    id: str
    note: str
    created_at: datetime | None
    disabled: bool


class TenantList(Answer, frozen=True):
    """Tenants by id."""

    tenants: list[Tenant]


class TokenRequest(Body, frozen=True):
    """A token to be made.

    Attributes:
        name: of its holder; approvals count names.
        role: `root`, `owner`, `operator`, `auditor`, `approver` or `publisher`.
        all_tenants: whether it holds everywhere instead of in the tenant of the request.
        days: for how long; a token that never expires must be asked for with null.
    """

    name: Name
    role: Annotated[str, Meta(pattern="^(root|owner|operator|auditor|approver|publisher)$")]
    all_tenants: bool = False
    days: Days | None = 90


class Token(Answer, frozen=True):
    """A token, without its text. `tenant` is null for one that holds everywhere."""

    id: str
    name: str
    role: str
    tenant: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    created_by: str


class NewToken(Answer, frozen=True):
    """A fresh token; its text is shown this once."""

    token: Token
    text: str

    def __repr__(self) -> str:
        return "NewToken()"


class TokenList(Answer, frozen=True):
    """Tokens, the oldest first; dead ones too."""

    tokens: list[Token]


class ReleaseProposal(Body, frozen=True):
    """Ask the approvers of a rule to let one pod have what lies under a prefix.

    Attributes:
        prefix: of resources; the rule that decides about it demands approvals.
        init_data: digest of the pod's init data.
        days: for how long the release shall be allowed.
    """

    prefix: Annotated[str, Meta(min_length=1, max_length=400)]
    init_data: InitDataDigest
    days: WaitDays = 1


class Revocation(Body, frozen=True):
    """Take away whatever a pod was approved for.

    Attributes:
        init_data: digest of the pod's init data.
    """

    init_data: InitDataDigest


class Approval(Body, frozen=True):
    """An approval of exactly what was read.

    Attributes:
        digest: of the proposal that was read.
    """

    digest: TextDigest


class Demand(Answer, frozen=True):
    """How many of whom must approve what lies under a prefix.

    Attributes:
        prefix: of resources.
        need: how many.
        of: names of principals.
    """

    prefix: str
    need: int
    of: list[str]


class Proposal(Answer, frozen=True):
    """A change or release that waits for its approvals.

    Attributes:
        id: `p-` and ten characters.
        kind: `rule` or `approvals` for a change of the prefix's rule or demand, `release` for a release.
        prefix: of resources.
        state: `open`, `applied`, `rejected` or `expired`.
        demands: what must be met, all of it.
        approved_by: who did.
        created_by: name of whoever proposed.
        created_at: when.
        expires_at: when it ends unless enough approve.
        digest: of the whole proposal; an approval repeats it.
        document: what is proposed.
    """

    id: str
    kind: str
    prefix: str
    state: str
    demands: list[Demand]
    approved_by: list[str]
    created_by: str
    created_at: datetime
    expires_at: datetime
    digest: str
    document: Any  # Any: JSON, by kind


class ProposalList(Answer, frozen=True):
    """Proposals, the newest first."""

    proposals: list[Proposal]


class Status(Answer, frozen=True):
    """What the service runs with, for this tenant.

    Attributes:
        version: of Cloister.
        tenant: whose counts these are.
        principal: name of whoever asks.
        role: of whoever asks.
        configuration: grows with each change of policy, root or reference value.
        audit: number of the newest audit row.
        resources: how many there are.
        reference_values: how many there are.
        expired_reference_values: how many of them match nothing any more.
        settings: of the service, none of them secret.
    """

    version: str
    tenant: str
    principal: str
    role: str
    configuration: int
    audit: int
    resources: int
    reference_values: int
    expired_reference_values: int
    settings: dict[str, str]


class Key(Answer, frozen=True):
    """A key of the service, without its private half; members as `cloister.trust.keys.KeyEntry`."""

    purpose: str
    id: str
    state: str
    created_at: datetime | None
    not_before: datetime | None
    not_after: datetime | None
    place: str


class KeyList(Answer, frozen=True):
    """Keys: root, data keys, signing keys."""

    keys: list[Key]


class KeyRotation(Body, frozen=True):
    """Ask for a new key.

    Attributes:
        revoke: for a token key that leaked: let no token of an older key count from now on.
    """

    revoke: bool = False


class RotatedKey(Answer, frozen=True):
    """The new key."""

    purpose: str
    id: str


class Changed(Answer, frozen=True):
    """What became of a change of a rule.

    Attributes:
        applied: the new version, null when it waits for approvals.
        proposal: what waits, null when it was applied.
    """

    applied: PolicyVersion | None = None
    proposal: Proposal | None = None
