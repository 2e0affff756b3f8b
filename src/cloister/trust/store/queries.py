"""Reading what happened, page by page and by its parts: audit rows, denials, evidence."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, Table, select

from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.trust.store.database import Store
from cloister.trust.store.records import AuditRow, audit_row_of
from cloister.trust.store.schema import audit, denials, policies
from cloister.trust.store.times import from_micros, to_micros

_WORDS: Final = ("decision", "code", "resource", "init_data", "stage", "attestation", "level")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFilter:
    """Which rows are wanted; empty members ask for nothing.

    Attributes:
        decision: `released` or `denied`.
        code: dotted code.
        resource: path; with a trailing `*`, what begins like that.
        init_data: digest.
        stage: of a denial.
        attestation: id of evidence.
        level: what was proved.
        since: not before, aware UTC.
        until: before, aware UTC.
    """

    decision: str = ""
    code: str = ""
    resource: str = ""
    init_data: str = ""
    stage: str = ""
    attestation: str = ""
    level: str = ""
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DenialRow:
    """One line of a list of denials."""

    sequence: int
    id: str
    at: datetime
    stage: str
    code: str
    resource: str
    attestation: str


class RecordQueries:
    """Queries over the records of one tenant."""

    def __init__(self, store: Store, *, tenant: str = DEFAULT_TENANT) -> None:
        self._store = store
        self._tenant = tenant

    def audit(self, wanted: RecordFilter, *, after: int, limit: int) -> tuple[AuditRow, ...]:
        """Return audit rows in order, after a sequence number."""
        statement = select(audit).where(*self._conditions(audit, wanted, after)).order_by(audit.c.sequence).limit(limit)
        rows = self._store.read(lambda connection: connection.execute(statement).all())
        return tuple(map(audit_row_of, rows))

    def denials(self, wanted: RecordFilter, *, after: int, limit: int) -> tuple[DenialRow, ...]:
        """Return denials in order, after a sequence number, without their findings."""
        conditions = self._conditions(denials, wanted, after)
        statement = select(denials).where(*conditions).order_by(denials.c.sequence).limit(limit)
        rows = self._store.read(lambda connection: connection.execute(statement).all())
        return tuple(
            DenialRow(
                sequence=row.sequence,
                id=row.id,
                at=from_micros(row.at),
                stage=row.stage,
                code=row.code,
                resource=row.resource,
                attestation=row.attestation,
            )
            for row in rows
        )

    def policy_names(self, kind: str) -> tuple[str, ...]:
        """Return the names of the policies of one kind."""
        columns = policies.c
        statement = select(columns.name).where(columns.tenant == self._tenant, columns.kind == kind)
        statement = statement.distinct().order_by(columns.name)
        return tuple(self._store.read(lambda connection: connection.execute(statement).scalars().all()))

    def _conditions(self, table: Table, wanted: RecordFilter, after: int) -> list[ColumnElement[bool]]:
        found: list[ColumnElement[bool]] = [table.c.tenant == self._tenant, table.c.sequence > after]
        for name in _WORDS:
            value = getattr(wanted, name)
            if not value or name not in table.c:
                continue
            column = table.c[name]
            if name == "resource" and value.endswith("*"):
                found.append(column.startswith(value[:-1], autoescape=True))
            else:
                found.append(column == value)
        if wanted.since is not None:
            found.append(table.c.at >= to_micros(wanted.since))
        if wanted.until is not None:
            found.append(table.c.at < to_micros(wanted.until))
        return found
