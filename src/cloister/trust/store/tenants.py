"""Which tenants there are. The default one always is, and cannot be disabled."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, func, insert, select, update

from cloister.errors import Refused
from cloister.protocol.tenants import DEFAULT_TENANT, parse_tenant
from cloister.trust.store.database import Store, bump_configuration
from cloister.trust.store.schema import tenants
from cloister.trust.store.times import from_micros, to_micros

TENANTS_KEPT: Final = 1024  # each live one has a broker and a verifier in memory


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTenant:
    """A tenant. `created_at` is None for the default one, which nobody made."""

    id: str
    note: str = ""
    created_at: datetime | None = None
    disabled_at: datetime | None = None


class TenantStore:
    """The tenants of one database."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(self, identity: str, note: str, *, at: datetime) -> StoredTenant:
        """Make a tenant.

        Raises:
            FormatRefused: not an id (`protocol.tenant.malformed`).
            Refused: there is one already (`trust.tenant.exists`), or there are too many (`trust.tenant.too_many`).
            Unavailable: the store failed.
        """
        name = parse_tenant(identity)

        def work(connection: Connection) -> StoredTenant:
            if name == DEFAULT_TENANT or _row(connection, name) is not None:
                raise Refused("trust.tenant.exists", "there is such a tenant already", actual=name)
            if connection.execute(select(func.count()).select_from(tenants)).scalar_one() >= TENANTS_KEPT:
                raise Refused("trust.tenant.too_many", "too many tenants", expected=f"at most {TENANTS_KEPT}")
            connection.execute(insert(tenants).values(tenant=name, note=note, created_at=to_micros(at)))
            bump_configuration(connection)
            return StoredTenant(id=name, note=note, created_at=at)

        return self._store.write(work)

    def list(self) -> tuple[StoredTenant, ...]:
        """Return all tenants by id."""
        statement = select(tenants).order_by(tenants.c.tenant)
        rows = self._store.read(lambda connection: connection.execute(statement).all())
        found = [StoredTenant(id=DEFAULT_TENANT), *map(_stored, rows)]
        return tuple(sorted(found, key=lambda item: item.id))

    def get(self, identity: str) -> StoredTenant:
        """Return a tenant, disabled ones too.

        Raises:
            Refused: there is none (`trust.tenant.missing`).
            Unavailable: the store failed.
        """
        if identity == DEFAULT_TENANT:
            return StoredTenant(id=DEFAULT_TENANT)
        row = self._store.read(lambda connection: _row(connection, identity))
        if row is None:
            raise _missing(identity)
        return _stored(row)

    def serves(self, identity: str) -> bool:
        """Return whether guests of this tenant are answered: there is one, and it is not disabled.

        Raises:
            Unavailable: the store failed.
        """
        if identity == DEFAULT_TENANT:
            return True
        row = self._store.read(lambda connection: _row(connection, identity))
        return row is not None and row.disabled_at is None

    def set_disabled(self, identity: str, *, disabled: bool, at: datetime) -> StoredTenant:
        """Disable a tenant, or let it work again; nothing of it is deleted.

        Raises:
            Refused: there is none (`trust.tenant.missing`), or it is the default one (`trust.tenant.default`).
            Unavailable: the store failed.
        """
        if identity == DEFAULT_TENANT:
            raise Refused(
                "trust.tenant.default", "the default tenant cannot be disabled", hint="stop the service instead"
            )

        def work(connection: Connection) -> StoredTenant:
            value = to_micros(at) if disabled else None
            statement = update(tenants).where(tenants.c.tenant == identity).values(disabled_at=value)
            connection.execute(statement)
            row = _row(connection, identity)
            if row is None:
                raise _missing(identity)
            bump_configuration(connection)
            return _stored(row)

        return self._store.write(work)


def _row(connection: Connection, identity: str) -> Row[Any] | None:  # Any: the table's row type
    return connection.execute(select(tenants).where(tenants.c.tenant == identity)).one_or_none()


def _stored(row: Row[Any]) -> StoredTenant:  # Any: the table's row type
    return StoredTenant(
        id=row.tenant,
        note=row.note,
        created_at=from_micros(row.created_at),
        disabled_at=None if row.disabled_at is None else from_micros(row.disabled_at),
    )


def _missing(identity: str) -> Refused:
    return Refused(
        "trust.tenant.missing",
        "no such tenant",
        actual=identity[:63],
        hint="`cloister tenant list` shows which there are",
    )
