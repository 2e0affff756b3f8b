"""Init data that an owner revoked: pods with it get nothing, by whatever rule they would."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, delete, select

from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.trust.store.database import Store, bump_configuration
from cloister.trust.store.dialects import upsert
from cloister.trust.store.schema import revocations
from cloister.trust.store.times import to_micros


class RevocationStore:
    """Revocations of one tenant.

    Args:
        store: the database.
        tenant: whose.
    """

    def __init__(self, store: Store, *, tenant: str = DEFAULT_TENANT) -> None:
        self._store = store
        self._tenant = tenant

    def list(self) -> frozenset[str]:
        """Return the digests of all revoked init data.

        Raises:
            Unavailable: the store failed.
        """
        statement = select(revocations.c.init_data).where(revocations.c.tenant == self._tenant)
        return frozenset(self._store.read(lambda connection: connection.execute(statement).scalars().all()))


def add_revocation(connection: Connection, tenant: str, init_data: str, at: datetime) -> None:
    """Revoke init data, within the caller's transaction; again is no change."""
    upsert(connection, revocations, {"tenant": tenant, "init_data": init_data}, {"at": to_micros(at)})
    bump_configuration(connection)


def withdraw_revocation(connection: Connection, tenant: str, init_data: str) -> None:
    """Forget a revocation, within the caller's transaction, where there is one."""
    ours = (revocations.c.tenant == tenant, revocations.c.init_data == init_data)
    if connection.execute(delete(revocations).where(*ours)).rowcount:
        bump_configuration(connection)
