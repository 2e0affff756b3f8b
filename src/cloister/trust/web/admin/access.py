"""Routes of tenants, access tokens, proposals, and the service itself."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta

from litestar.params import JSONBody

from cloister import __version__
from cloister.protocol.admin.access import (
    Approval,
    Key,
    KeyList,
    KeyRotation,
    NewToken,
    Proposal,
    ProposalList,
    ReleaseProposal,
    RotatedKey,
    Status,
    Tenant,
    TenantChange,
    TenantList,
    Token,
    TokenList,
    TokenRequest,
)
from cloister.protocol.admin.base import PAGE, Done
from cloister.protocol.admin.identities import IdentityKeyList
from cloister.trust.access import Permission, Role
from cloister.trust.approvals import parse_resource_prefix
from cloister.trust.web.admin import wire
from cloister.trust.web.admin.entrance import Admitted, deleting, posting, reading
from cloister.trust.web.admin.parameters import Limit, PathWord


@reading("/tenants", Permission.TENANT_READ, "Tenants")
def list_tenants(office: Admitted) -> TenantList:
    """Return tenants by id."""
    return TenantList(tenants=[wire.tenant(item) for item in office.tenants.list()])


@posting("/tenants", Permission.TENANT_WRITE, "Make a tenant")
def create_tenant(office: Admitted, data: JSONBody[TenantChange]) -> Tenant:
    """Make a tenant."""
    return wire.tenant(office.tenants.create(data.id, data.note))


@reading("/tenants/{name:str}", Permission.TENANT_READ, "A tenant")
def get_tenant(office: Admitted, name: PathWord) -> Tenant:
    """Return a tenant."""
    return wire.tenant(office.tenants.get(name))


@posting("/tenants/{name:str}/disable", Permission.TENANT_WRITE, "Disable a tenant; nothing of it is deleted")
def disable_tenant(office: Admitted, name: PathWord) -> Tenant:
    """Disable a tenant."""
    return wire.tenant(office.tenants.set_disabled(name, disabled=True))


@posting("/tenants/{name:str}/enable", Permission.TENANT_WRITE, "Let a disabled tenant work again")
def enable_tenant(office: Admitted, name: PathWord) -> Tenant:
    """Enable a tenant."""
    return wire.tenant(office.tenants.set_disabled(name, disabled=False))


@reading("/tokens", Permission.TOKEN_READ, "Access tokens, without their text")
def list_tokens(office: Admitted) -> TokenList:
    """Return tokens, the oldest first; dead ones too."""
    return TokenList(tokens=[wire.token(item) for item in office.tokens.list()])


@posting("/tokens", Permission.TOKEN_WRITE, "Make an access token")
def create_token(office: Admitted, data: JSONBody[TokenRequest]) -> NewToken:
    """Make a token; its text is in this answer only."""
    lifetime = None if data.days is None else timedelta(days=data.days)
    stored, text = office.tokens.create(data.name, Role(data.role), all_tenants=data.all_tenants, lifetime=lifetime)
    return NewToken(token=wire.token(stored), text=text)


@deleting("/tokens/{token:str}", Permission.TOKEN_WRITE, "Revoke an access token")
def revoke_token(office: Admitted, token: PathWord) -> Token:
    """End a token at once."""
    return wire.token(office.tokens.revoke(token))


@reading("/proposals", Permission.PROPOSAL_READ, "What waits for approvals, or waited")
def list_proposals(office: Admitted, limit: Limit = PAGE) -> ProposalList:
    """Return proposals, the newest first."""
    return ProposalList(proposals=[wire.proposal(item) for item in office.approvals.list(limit=limit)])


@posting("/proposals", Permission.PROPOSAL_APPROVE, "Ask for the release of what lies under a prefix to one pod")
def propose_release(office: Admitted, data: JSONBody[ReleaseProposal]) -> Proposal:
    """Propose a release to the approvers of its rule."""
    return wire.proposal(
        office.approvals.propose_release(parse_resource_prefix(data.prefix), data.init_data, days=data.days)
    )


@reading("/proposals/{proposal:str}", Permission.PROPOSAL_READ, "A proposal")
def get_proposal(office: Admitted, proposal: PathWord) -> Proposal:
    """Return a proposal as it stands."""
    return wire.proposal(office.approvals.get(proposal))


@posting("/proposals/{proposal:str}/approve", Permission.PROPOSAL_APPROVE, "Approve a proposal")
def approve_proposal(office: Admitted, proposal: PathWord, data: JSONBody[Approval]) -> Proposal:
    """Approve what was read; it is applied with the last approval that it needs."""
    return wire.proposal(office.approvals.approve(proposal, data.digest))


@posting("/proposals/{proposal:str}/reject", Permission.PROPOSAL_APPROVE, "End a proposal without applying it")
def reject_proposal(office: Admitted, proposal: PathWord) -> Proposal:
    """Reject a proposal."""
    return wire.proposal(office.approvals.reject(proposal))


@reading("/status", Permission.STATUS_READ, "What the service runs with, and how much is kept for the tenant")
def get_status(office: Admitted) -> Status:
    """Return counts and settings."""
    return Status(version=__version__, **office.status())


@reading("/keys", Permission.KEY_READ, "Keys of the service, without private halves")
def list_keys(office: Admitted) -> KeyList:
    """Return root, data and signing keys."""
    return KeyList(keys=[Key(**asdict(item)) for item in office.keys.list()])


@posting("/keys/{purpose:str}/rotate", Permission.KEY_WRITE, "A new root, data or token key")
def rotate_key(office: Admitted, purpose: PathWord, data: JSONBody[KeyRotation]) -> RotatedKey:
    """Rotate a key without a restart."""
    return RotatedKey(purpose=purpose, id=office.keys.rotate(purpose, revoke=data.revoke))


@reading("/identity-keys/{domain:str}", Permission.KEY_READ, "Keys of a SPIFFE trust domain, without private halves")
def list_identity_keys(office: Admitted, domain: PathWord) -> IdentityKeyList:
    """Return all keys there ever were, oldest first."""
    return IdentityKeyList(keys=[wire.identity_key(row) for row in office.identities.keys(domain)])


@posting("/identity-keys/{domain:str}/rotate", Permission.KEY_WRITE, "New keys for a SPIFFE trust domain")
def rotate_identity_keys(office: Admitted, domain: PathWord) -> Done:
    """Make new keys; they sign when relying parties know them."""
    office.identities.rotate(domain)
    return Done(subject=domain)


@posting("/identity-keys/{domain:str}/{key:str}/withdraw", Permission.KEY_WRITE, "Take a key out of a trust domain")
def withdraw_identity_key(office: Admitted, domain: PathWord, key: PathWord) -> Done:
    """Take a key out of the bundle at once."""
    office.identities.withdraw(domain, key)
    return Done(subject=key)


ROUTES = (
    list_identity_keys,
    rotate_identity_keys,
    withdraw_identity_key,
    list_keys,
    rotate_key,
    list_tenants,
    create_tenant,
    get_tenant,
    disable_tenant,
    enable_tenant,
    list_tokens,
    create_token,
    revoke_token,
    list_proposals,
    propose_release,
    get_proposal,
    approve_proposal,
    reject_proposal,
    get_status,
)
