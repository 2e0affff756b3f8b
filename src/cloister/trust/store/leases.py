"""Leases: until when which guest may use what was released to it, and how often it renewed.

A guest is known by the key it made at its boot and bound to its evidence. What it was given once it may ask again; the
release after fresh evidence within the lease is a renewal, and moves the lease's end. A release on the same evidence
as before does not: it says nothing new about the guest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, delete, func, select

from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.trust.store.database import Store
from cloister.trust.store.dialects import upsert
from cloister.trust.store.schema import leases
from cloister.trust.store.times import from_micros, to_micros

LEASES_LISTED: Final = 10_000
LEASES_KEPT: Final = timedelta(days=7)  # after their end

_OF_GUEST: Final = select(leases).where(
    leases.c.tenant == bindparam("of_tenant"),
    leases.c.resource == bindparam("wanted"),
    leases.c.guest_key == bindparam("guest"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One guest's lease of one resource.

    Attributes:
        resource: path.
        guest_key: thumbprint of the key it is sealed to.
        init_data: digest of the guest's init data, empty when it names none.
        instance: identity of the chip or vTPM.
        tee: technology.
        level: what the evidence proved.
        attestation: id of the newest Attestation Result.
        granted_at: first release, aware UTC.
        expires_at: end, aware UTC.
        renewals: how many.
    """

    resource: str
    guest_key: str
    init_data: str
    instance: str
    tee: str
    level: str
    attestation: str
    granted_at: datetime
    expires_at: datetime
    renewals: int


class LeaseStore:
    """Leases of one tenant.

    Args:
        store: the database.
        tenant: whose.
    """

    def __init__(self, store: Store, *, tenant: str = DEFAULT_TENANT) -> None:
        self._store = store
        self._tenant = tenant

    def ends(self, guest_keys: Sequence[str]) -> dict[str, datetime]:
        """Return when the last lease of each guest ends, or ended; guests without any are not in it.

        Args:
            guest_keys: thumbprints of their keys.

        Raises:
            Unavailable: the store failed.
        """
        theirs = (leases.c.tenant == self._tenant, leases.c.guest_key.in_(guest_keys))
        ends = select(leases.c.guest_key, func.max(leases.c.expires_at).label("end")).where(*theirs)
        statement = ends.group_by(leases.c.guest_key)
        rows = self._store.read(lambda connection: connection.execute(statement).all())
        return {row.guest_key: from_micros(row.end) for row in rows}

    def running(self, *, at: datetime, init_data: str = "") -> tuple[Lease, ...]:
        """Return the leases that hold at `at`, hence which pods run, of one pod's init data if it is given.

        Raises:
            Unavailable: the store failed.
        """
        wanted = select(leases).where(leases.c.tenant == self._tenant, leases.c.expires_at > to_micros(at))
        if init_data:
            wanted = wanted.where(leases.c.init_data == init_data)
        wanted = wanted.order_by(leases.c.resource, leases.c.guest_key).limit(LEASES_LISTED)
        rows = self._store.read(lambda connection: connection.execute(wanted).all())
        return tuple(_lease(row) for row in rows)


def find_lease(connection: Connection, tenant: str, resource: str, guest_key: str) -> Lease | None:
    """Return a guest's lease of a resource, ended or not, within the caller's transaction."""
    found = connection.execute(_OF_GUEST, {"of_tenant": tenant, "wanted": resource, "guest": guest_key})
    row = found.one_or_none()
    return None if row is None else _lease(row)


def keep_lease(connection: Connection, tenant: str, lease: Lease) -> None:
    """Store a lease, within the caller's transaction; those long ended go."""
    key = {"tenant": tenant, "resource": lease.resource, "guest_key": lease.guest_key}
    changes = {
        "init_data": lease.init_data,
        "instance": lease.instance,
        "tee": lease.tee,
        "level": lease.level,
        "attestation": lease.attestation,
        "granted_at": to_micros(lease.granted_at),
        "expires_at": to_micros(lease.expires_at),
        "renewals": lease.renewals,
    }
    upsert(connection, leases, key, changes)
    long_past = to_micros(lease.granted_at - LEASES_KEPT)
    connection.execute(delete(leases).where(leases.c.tenant == tenant, leases.c.expires_at < long_past))


def _lease(row: Row[Any]) -> Lease:  # Any: the table's row type
    return Lease(
        resource=row.resource,
        guest_key=row.guest_key,
        init_data=row.init_data,
        instance=row.instance,
        tee=row.tee,
        level=row.level,
        attestation=row.attestation,
        granted_at=from_micros(row.granted_at),
        expires_at=from_micros(row.expires_at),
        renewals=row.renewals,
    )
