"""Policies by kind and name: every version is kept, the highest is in force. Texts are parsed before they come here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, and_, func, insert, select

from cloister.errors import Refused
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.trust.events import NO_EVENTS, Events, LogEvent
from cloister.trust.store.database import Store, bump_configuration
from cloister.trust.store.schema import policies
from cloister.trust.store.times import from_micros, to_micros

APPRAISAL: Final = "appraisal"
RELEASE: Final = "release"
IDENTITY: Final = "identity"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPolicy:
    """One version of one policy.

    Attributes:
        kind: `appraisal`, `release` or `identity`.
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
        events: told of every new version, in its transaction.
    """

    def __init__(self, store: Store, *, tenant: str = DEFAULT_TENANT, events: Events = NO_EVENTS) -> None:
        self._store = store
        self._tenant = tenant
        self._events = events

    def put(self, kind: str, name: str, text: bytes, *, at: datetime, replaces: int | None = None) -> StoredPolicy:
        """Store the next version; the text in force again is no new version.

        Args:
            kind: `APPRAISAL`, `RELEASE` or `IDENTITY`.
            name: the policy's id.
            text: as parsed and accepted by the caller.
            at: aware UTC.
            replaces: the version the caller read; None to replace whatever is in force.

        Raises:
            Refused: `replaces` is not in force any more (`trust.policy.conflict`).
            Unavailable: the store failed.
        """

        def work(connection: Connection) -> StoredPolicy:
            row = connection.execute(self._history(kind, name).limit(1)).one_or_none()
            version = row.version if row is not None else 0
            if replaces is not None and replaces != version:
                raise _conflict(kind, name, replaces, version)
            if row is not None and row.text == text:
                return _stored(row)
            return self._insert(connection, kind, name, version + 1, text, at)

        return self._store.write(work)

    def change(
        self,
        kind: str,
        change: Callable[[Mapping[str, bytes]], Mapping[str, bytes]],
        *,
        at: datetime,
        besides: Callable[[Connection], None] | None = None,
    ) -> tuple[StoredPolicy, ...]:
        """Change several policies of a kind in one transaction; return the versions it made.

        Args:
            kind: which.
            change: texts in force by name to the texts that shall be; names it does not return stay as they are.
            at: aware UTC.
            besides: what else belongs to the change.

        Raises:
            Refused: what `change` raised; nothing was changed.
            Unavailable: the store failed.
        """

        def work(connection: Connection) -> tuple[StoredPolicy, ...]:
            before = {row.name: row for row in connection.execute(self._current_all(kind)).all()}
            wanted = change({name: row.text for name, row in before.items()})
            made = []
            for name, text in wanted.items():
                row = before.get(name)
                if row is None or row.text != text:
                    made.append(self._insert(connection, kind, name, row.version + 1 if row else 1, text, at))
            if besides is not None:
                besides(connection)
            return tuple(made)

        return self._store.write(work)

    def current_all(self, kind: str) -> tuple[StoredPolicy, ...]:
        """Return the versions in force of all policies of a kind."""
        rows = self._store.read(lambda connection: connection.execute(self._current_all(kind)).all())
        return tuple(_stored(row) for row in rows)

    def current(self, kind: str, name: str) -> StoredPolicy | None:
        """Return the version in force, None when there is none."""
        row = self._store.read(lambda connection: connection.execute(self._history(kind, name).limit(1)).one_or_none())
        return None if row is None else _stored(row)

    def history(self, kind: str, name: str) -> tuple[StoredPolicy, ...]:
        """Return all versions, newest first."""
        rows = self._store.read(lambda connection: connection.execute(self._history(kind, name)).all())
        return tuple(_stored(row) for row in rows)

    def _insert(
        self, connection: Connection, kind: str, name: str, version: int, text: bytes, at: datetime
    ) -> StoredPolicy:
        digest = "sha256:" + hashlib.sha256(text).hexdigest()
        values = {"digest": digest, "text": text, "created_at": to_micros(at)}
        connection.execute(
            insert(policies).values(tenant=self._tenant, kind=kind, name=name, version=version, **values)
        )
        bump_configuration(connection)
        fields = {"kind": kind, "name": name, "version": str(version), "digest": digest}
        self._events.append(connection, LogEvent(kind="policy", at=at, tenant=self._tenant, fields=fields))
        return StoredPolicy(kind=kind, name=name, version=version, digest=digest, text=text, created_at=at)

    def _current_all(self, kind: str) -> Select[Any]:  # Any: the table's row type
        ours = (policies.c.tenant == self._tenant, policies.c.kind == kind)
        newest = select(policies.c.name, func.max(policies.c.version).label("version")).where(*ours)
        found = newest.group_by(policies.c.name).subquery()
        same = and_(policies.c.name == found.c.name, policies.c.version == found.c.version)
        return select(policies).join(found, same).where(*ours).order_by(policies.c.name)

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
