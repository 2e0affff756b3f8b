"""Tenants and access tokens: who may administer what."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from cloister.errors import Refused
from cloister.trust.access import AccessControl, Permission, Role, new_token
from cloister.trust.administration.demands import live_demands
from cloister.trust.administration.desk import Desk, TenantStores
from cloister.trust.store.access import StoredToken
from cloister.trust.store.tenants import StoredTenant


@dataclass(frozen=True, slots=True)
class Tenants:
    """The tenants of the service, as one principal may handle them."""

    desk: Desk

    def create(self, identity: str, note: str) -> StoredTenant:
        """Make a tenant.

        Raises:
            FormatRefused: not an id (`protocol.tenant.malformed`).
            Refused: there is one already (`trust.tenant.exists`), or there are too many (`trust.tenant.too_many`).
        """
        at = self.desk.now()
        return self.desk.change(
            Permission.TENANT_WRITE, identity, lambda stores: stores.tenants.add(identity, note, at=at)
        )

    def list(self) -> tuple[StoredTenant, ...]:
        """Return all tenants by id."""
        return self.desk.look(Permission.TENANT_READ, "", lambda stores: stores.tenants.list())

    def get(self, identity: str) -> StoredTenant:
        """Return a tenant.

        Raises:
            Refused: there is none (`trust.tenant.missing`).
        """
        return self.desk.look(Permission.TENANT_READ, identity, lambda stores: stores.tenants.get(identity))

    def set_disabled(self, identity: str, *, disabled: bool) -> StoredTenant:
        """Disable a tenant, or let it work again; nothing of it is deleted.

        Raises:
            Refused: there is none (`trust.tenant.missing`), or it is the default one (`trust.tenant.default`).
        """
        at = self.desk.now()
        return self.desk.change(
            Permission.TENANT_WRITE,
            identity,
            lambda stores: stores.tenants.set_disabled(identity, disabled=disabled, at=at),
            detail={"disabled": str(disabled).lower()},
        )


@dataclass(frozen=True, slots=True)
class Tokens:
    """Access tokens of one tenant, as one principal may handle them."""

    desk: Desk
    access: AccessControl

    def create(
        self, name: str, role: Role, *, all_tenants: bool, lifetime: timedelta | None
    ) -> tuple[StoredToken, str]:
        """Make a token; return what is stored of it, and its text.

        Raises:
            FormatRefused: not a name (`trust.access.name`).
            Refused: more than this principal has (`trust.access.escalation`), a name that is in use
                (`trust.access.name_taken`) or that approvals count (`trust.access.name_reserved`).
        """
        tenant = None if all_tenants else self.desk.tenant
        text, at = new_token(), self.desk.now()
        token = self.access.describe(
            text,
            name=name,
            role=role,
            tenant=tenant,
            created_by=self.desk.principal.id,
            expires_at=None if lifetime is None else at + lifetime,
        )

        def work(stores: TenantStores) -> None:
            self.desk.principal.require_at_least(role, tenant)
            if self.desk.principal.tenant is not None:
                _require_free(stores, name)
            stores.tokens.add(token, at=at)

        detail = {"role": role.value, "token": token.id, "scope": tenant or "every tenant"}
        self.desk.change(Permission.TOKEN_WRITE, name, work, detail=detail)
        return token, text

    def list(self) -> tuple[StoredToken, ...]:
        """Return tokens, the oldest first, dead ones too; those of all tenants to whoever has such a token."""
        tenant = self.desk.tenant
        everywhere = self.desk.principal.tenant is None
        return self.desk.look(
            Permission.TOKEN_READ,
            "",
            lambda stores: tuple(
                token
                for token in stores.tokens.list(None)
                if token.tenant == tenant or (everywhere and token.tenant is None)
            ),
        )

    def revoke(self, identity: str) -> StoredToken:
        """End a token.

        Raises:
            Refused: there is none that this principal could have made (`trust.access.token_missing`).
        """
        at = self.desk.now()

        def work(stores: TenantStores) -> StoredToken:
            known = {token.id: token for token in stores.tokens.list(None)}
            token = known.get(identity)
            scopes = {self.desk.tenant, None} if self.desk.principal.tenant is None else {self.desk.tenant}
            if token is None or token.tenant not in scopes:
                raise Refused("trust.access.token_missing", "no such token", actual=identity[:40])
            return stores.tokens.revoke(identity, None, at=at)

        return self.desk.change(Permission.TOKEN_WRITE, identity, work)


def _require_free(stores: TenantStores, name: str) -> None:
    """Who administers a tenant must not make themselves the second approver."""
    if any(name in demand.of for demand in live_demands(stores)):
        raise Refused(
            "trust.access.name_reserved",
            "approvals count this name, so only a token for every tenant may give it out",
            path="name",
            actual=name,
            hint="ask whoever runs the service to make this token",
        )
