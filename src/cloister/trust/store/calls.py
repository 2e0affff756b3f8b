"""Administrative calls: who did what to what, and how it ended. Only ever added to."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, select

from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.trust.store.database import Store
from cloister.trust.store.numbering import OF_TENANT, insert_numbered, number_of
from cloister.trust.store.schema import administration
from cloister.trust.store.times import from_micros, to_micros

_INSERT: Final = insert_numbered(administration)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRow:
    """One administrative call.

    Attributes:
        at: aware UTC.
        principal: id of the token.
        name: of its holder.
        role: of the token.
        action: the permission it took.
        subject: what it was about, shortened.
        code: `ok`, `proposed`, or the code of a refusal.
        denial: id of the record of a refusal for want of permission.
        sequence: position, 0 before it is stored.
    """

    at: datetime
    principal: str
    name: str
    role: str
    action: str
    subject: str
    code: str
    denial: str = ""
    sequence: int = 0


class CallStore:
    """Administrative calls about one tenant."""

    def __init__(self, store: Store, *, tenant: str = DEFAULT_TENANT) -> None:
        self._store = store
        self._tenant = tenant

    def add(self, row: CallRow) -> None:
        """Store a call.

        Raises:
            Unavailable: the store failed.
        """
        values = {
            "tenant": self._tenant,
            OF_TENANT: self._tenant,
            "at": to_micros(row.at),
            "principal": row.principal,
            "name": row.name,
            "role": row.role,
            "action": row.action,
            "subject": row.subject,
            "code": row.code,
            "denial": row.denial,
        }
        self._store.write(lambda connection: number_of(_INSERT.row(connection, values)))

    def list(self, *, after: int, limit: int) -> tuple[CallRow, ...]:
        """Return calls in order, after a sequence number."""
        columns = administration.c
        statement = select(administration).where(columns.tenant == self._tenant, columns.sequence > after)
        statement = statement.order_by(columns.sequence).limit(limit)

        def work(connection: Connection) -> tuple[CallRow, ...]:
            return tuple(
                CallRow(
                    at=from_micros(row.at),
                    principal=row.principal,
                    name=row.name,
                    role=row.role,
                    action=row.action,
                    subject=row.subject,
                    code=row.code,
                    denial=row.denial,
                    sequence=row.sequence,
                )
                for row in connection.execute(statement).all()
            )

        return self._store.read(work)
