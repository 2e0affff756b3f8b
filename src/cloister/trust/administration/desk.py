"""Where administration happens: one principal, one tenant, every call permitted first and recorded with its change.

A change, the row that says who made it and the release log's entry are one transaction: none is durable without the
others. A call that only reads is recorded before it reads. Refusals of a permitted call are recorded too; a refusal for
want of permission gets a record of its own that `cloister explain` shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeVar

from sqlalchemy import Connection

from cloister.errors import Refused
from cloister.trust.access import Permission, Principal
from cloister.trust.events import Events, LogEvent
from cloister.trust.identity import StoredAuthorities
from cloister.trust.keybroker.rulebook import RuleBook
from cloister.trust.rowseal import RowSealer
from cloister.trust.store.access import TokenStore
from cloister.trust.store.calls import CallRow, CallStore
from cloister.trust.store.database import Store
from cloister.trust.store.endorsers import RootStore
from cloister.trust.store.leases import LeaseStore
from cloister.trust.store.policies import PolicyStore
from cloister.trust.store.proposals import ProposalStore
from cloister.trust.store.publishers import PublisherStore
from cloister.trust.store.queries import RecordQueries
from cloister.trust.store.records import DENIED, AuditRow, DenialRecord, RecordStore, new_denial_id
from cloister.trust.store.references import ReferenceStore
from cloister.trust.store.resources import ResourceStore
from cloister.trust.store.tenants import TenantStore
from cloister.trust.store.transaction import Transaction
from cloister.trust.verifier.collateral import CollateralSource
from cloister.trust.verifier.inputs import AskRego
from cloister.trust.verifier.survey import Survey

_T = TypeVar("_T")

OK: Final = "ok"
_SUBJECT_CHARS: Final = 400
_ACCESS: Final = "access"
# Kinds of the release log's entries by the noun of a permission; reading anything is an access.
_KINDS: Final[Mapping[str, str]] = {
    "resource": "resource",
    "policy": "policy",
    "proposal": "policy",
    "reference": "reference",
    "publisher": "reference",
    "root": "root",
    "tenant": "tenant",
    "key": "key",
}
_CHANGING: Final = ("write", "delete", "add", "add-unsigned", "approve")


class TenantStores:
    """Everything that is kept for one tenant, over the whole store or within one transaction."""

    def __init__(self, store: Store, keys: RowSealer, tenant: str) -> None:
        self.resources = ResourceStore(store, keys, tenant=tenant)
        self.policies = PolicyStore(store, tenant=tenant)
        self.rules = RuleBook(store, tenant=tenant)
        self.references = ReferenceStore(store, tenant=tenant)
        self.publishers = PublisherStore(store, tenant=tenant)
        self.roots = RootStore(store, tenant=tenant)
        self.records = RecordStore(store, tenant=tenant)
        self.queries = RecordQueries(store, tenant=tenant)
        self.proposals = ProposalStore(store, tenant=tenant)
        self.calls = CallStore(store, tenant=tenant)
        self.tenants = TenantStore(store)
        self.tokens = TokenStore(store)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdministrationParts:
    """What administration works with.

    Attributes:
        store: the database.
        keys: seal resources.
        clock: aware UTC now.
        events: the release log.
        collateral: what vendors publish.
        ask_rego: asks appraisal policies in Rego.
    """

    store: Store
    keys: RowSealer
    clock: Callable[[], datetime]
    events: Events
    collateral: CollateralSource
    ask_rego: AskRego


class Desk:
    """What one principal does in one tenant.

    Args:
        parts: what to work with.
        principal: who asks.
        tenant: where.
        record_reading: whether calls that only read leave a row; changes always do.
    """

    def __init__(
        self, parts: AdministrationParts, principal: Principal, tenant: str, *, record_reading: bool = True
    ) -> None:
        self.principal = principal
        self.tenant = tenant
        self.stores = TenantStores(parts.store, parts.keys, tenant)
        self._parts = parts
        self._record_reading = record_reading

    def now(self) -> datetime:
        """Return the time, aware UTC."""
        return self._parts.clock()

    def configuration(self) -> int:
        """Return the number that grows with each change of policy, root or reference value."""
        return self._parts.store.configuration()

    @property
    def collateral(self) -> CollateralSource:
        """What vendors publish, as the service has it."""
        return self._parts.collateral

    def survey(self, policy_id: str) -> Survey:
        """Return what judges this tenant's kept evidence again."""
        parts = self._parts
        leases = LeaseStore(parts.store, tenant=self.tenant).ends
        return Survey(
            parts.store, parts.keys, policy_id=policy_id, leases=leases, tenant=self.tenant, ask_rego=parts.ask_rego
        )

    def authorities(self, trust_domain: str) -> StoredAuthorities:
        """Return the keys of a trust domain."""
        return StoredAuthorities(self._parts.store, self._parts.keys, trust_domain)

    def look(self, permission: Permission, subject: str, work: Callable[[TenantStores], _T]) -> _T:
        """Permit and record, then read.

        Raises:
            Refused: not permitted (`trust.access.forbidden`), or what `work` raises.
            Unavailable: the store failed; nothing was read.
        """
        self.principal.require(permission, self.tenant)
        if self._record_reading:
            self._parts.store.write(
                lambda connection: self._note(connection, permission, subject, OK, detail={}),
            )
        return work(self.stores)

    def change(
        self,
        permission: Permission,
        subject: str,
        work: Callable[[TenantStores], _T],
        *,
        code: Callable[[_T], str] = lambda _: OK,
        detail: Mapping[str, str] | None = None,
        kind: str = "",
    ) -> _T:
        """Permit, then change and record in one transaction.

        Args:
            permission: that it takes.
            subject: what it is about; no secret.
            work: makes the change with the stores it is given, and with nothing else.
            code: how the call ended, from its result.
            detail: more fields for the release log; no secret.
            kind: of the release log's entry; by the permission's noun when empty.

        Raises:
            Refused: not permitted (`trust.access.forbidden`), or what `work` raises; that is recorded.
            Unavailable: the store failed; nothing was changed.
        """
        self.principal.require(permission, self.tenant)

        def transaction(connection: Connection) -> _T:
            stores = TenantStores(Transaction(connection), self._parts.keys, self.tenant)
            result = work(stores)
            self._note(connection, permission, subject, code(result), detail=detail or {}, kind=kind)
            return result

        try:
            return self._parts.store.write(transaction)
        except Refused as err:
            refusal = err.code
            self._parts.store.write(
                lambda connection: self._note(connection, permission, subject, refusal, detail={}),
            )
            raise

    def deny(self, error: Refused, action: str, subject: str) -> str:
        """Record that a call was not permitted; return the id of the record.

        The record is the caller's own tenant's: in the other one, which may not exist, a stranger leaves nothing.

        Raises:
            Unavailable: the store failed.
        """
        denial, at, home = new_denial_id(), self.now(), self.principal.tenant or self.tenant
        record = DenialRecord(
            id=denial,
            at=at,
            stage="admin",
            code=error.code,
            message=error.message,
            path=subject[:_SUBJECT_CHARS],
            expected=error.expected,
            actual=error.actual,
            hint=error.hint,
        )

        def work(connection: Connection) -> None:
            stores = TenantStores(Transaction(connection), self._parts.keys, home)
            stores.records.record_denial(record, AuditRow(at=at, decision=DENIED, code=error.code, denial=denial))
            self._row(stores, at, action, subject, error.code, denial)
            self._parts.events.append(connection, self._event(_ACCESS, home, at, action, subject, error.code, {}))

        self._parts.store.write(work)
        return denial

    def _note(
        self,
        connection: Connection,
        permission: Permission,
        subject: str,
        code: str,
        *,
        detail: Mapping[str, str],
        kind: str = "",
    ) -> None:
        at = self.now()
        noun, _, verb = permission.value.partition(":")
        kind = kind or (_KINDS.get(noun, _ACCESS) if verb in _CHANGING else _ACCESS)
        stores = TenantStores(Transaction(connection), self._parts.keys, self.tenant)
        self._row(stores, at, permission.value, subject, code, "")
        event = self._event(kind, self.tenant, at, permission.value, subject, code, detail)
        self._parts.events.append(connection, event)

    def _row(self, stores: TenantStores, at: datetime, action: str, subject: str, code: str, denial: str) -> None:
        stores.calls.add(
            CallRow(
                at=at,
                principal=self.principal.id,
                name=self.principal.name,
                role=self.principal.role.value,
                action=action,
                subject=subject[:_SUBJECT_CHARS],
                code=code,
                denial=denial,
            )
        )

    def _event(
        self,
        kind: str,
        tenant: str,
        at: datetime,
        action: str,
        subject: str,
        code: str,
        detail: Mapping[str, str],
    ) -> LogEvent:
        fields = {
            **detail,
            "principal": self.principal.id,
            "name": self.principal.name,
            "action": action,
            "subject": subject[:_SUBJECT_CHARS],
            "outcome": code,
        }
        return LogEvent(kind=kind, at=at, tenant=tenant, fields=fields)
