"""Policies by kind and name: every version is kept, the highest is in force. Texts are parsed before they come here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, insert, select

from cloister.errors import Refused
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.trust.store.database import Store, bump_configuration
from cloister.trust.store.schema import policies
from cloister.trust.store.times import from_micros, to_micros

APPRAISAL: Final = "appraisal"
RELEASE: Final = "release"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPolicy:
    """One version of one policy.

    Attributes:
        kind: `appraisal` or `release`.
        name: the policy's id.
        version: 1 for the first.
        digest: `sha256:` of the text.
        text: as stored.
        created_at: aware UTC.
    """

    kind: str
    name: str
    version: int
    digest: str
    text: bytes
    created_at: datetime


class PolicyStore:
    """Policies of one tenant.

    Args:
        store: the database.
        tenant: whose.
    """

    def __init__(self, store: Store, *, tenant: str = DEFAULT_TENANT) -> None:
        self._store = store
        self._tenant = tenant

    def put(self, kind: str, name: str, text: bytes, *, at: datetime, replaces: int | None = None) -> StoredPolicy:
        """Store the next version; the text in force again is no new version.

        Args:
            kind: `APPRAISAL` or `RELEASE`.
            name: the policy's id.
            text: as parsed and accepted by the caller.
            at: aware UTC.
            replaces: the version the caller read; None to replace whatever is in force.

        Raises:
            Refused: `replaces` is not in force any more (`trust.policy.conflict`).
            Unavailable: the store failed.
        """
        digest = "sha256:" + hashlib.sha256(text).hexdigest()

        def work(connection: Connection) -> StoredPolicy:
            row = connection.execute(self._history(kind, name).limit(1)).one_or_none()
            version = row.version if row is not None else 0
            if replaces is not None and replaces != version:
                raise _conflict(kind, name, replaces, version)
            if row is not None and row.digest == digest:
                return _stored(row)
            values = {"digest": digest, "text": text, "created_at": to_micros(at)}
            connection.execute(
                insert(policies).values(tenant=self._tenant, kind=kind, name=name, version=version + 1, **values)
            )
            bump_configuration(connection)
            return StoredPolicy(kind=kind, name=name, version=version + 1, digest=digest, text=text, created_at=at)

        return self._store.write(work)

    def current(self, kind: str, name: str) -> StoredPolicy | None:
        """Return the version in force, None when there is none."""
        row = self._store.read(lambda connection: connection.execute(self._history(kind, name).limit(1)).one_or_none())
        return None if row is None else _stored(row)

    def history(self, kind: str, name: str) -> tuple[StoredPolicy, ...]:
        """Return all versions, newest first."""
        rows = self._store.read(lambda connection: connection.execute(self._history(kind, name)).all())
        return tuple(_stored(row) for row in rows)

    def _history(self, kind: str, name: str) -> Select[Any]:  # Any: the table's row type
        columns = policies.c
        wanted = select(policies).where(columns.tenant == self._tenant, columns.kind == kind, columns.name == name)
        return wanted.order_by(columns.version.desc())


def _stored(row: Row[Any]) -> StoredPolicy:  # Any: the table's row type
    return StoredPolicy(
        kind=row.kind,
        name=row.name,
        version=row.version,
        digest=row.digest,
        text=row.text,
        created_at=from_micros(row.created_at),
    )


def _conflict(kind: str, name: str, replaces: int, version: int) -> Refused:
    return Refused(
        "trust.policy.conflict",
        "the policy was changed by somebody else",
        path=f"{kind} {name}",
        expected=f"version {replaces}",
        actual=f"version {version}",
        hint="read it again, then change it",
    )
