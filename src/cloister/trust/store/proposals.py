"""Changes and releases that several people approve: proposals, approvals, and the releases that enough approved."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, func, insert, select, update

from cloister.errors import Refused
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.trust.store.database import Store, bump_configuration
from cloister.trust.store.dialects import upsert
from cloister.trust.store.schema import approvals, approved_releases, proposals
from cloister.trust.store.times import from_micros, to_micros

OPEN: Final = "open"
APPLIED: Final = "applied"
REJECTED: Final = "rejected"
OPEN_CEILING: Final = 256  # proposals that wait in one tenant


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredProposal:
    """What waits for approvals, or waited.

    Attributes:
        id: `p-` and ten characters.
        kind: `rule`, `approvals` or `release`.
        prefix: of resources.
        document: what is proposed, JSON.
        digest: `sha256:` of kind, prefix and document.
        created_at: aware UTC.
        expires_at: aware UTC.
        created_by: name of whoever proposed.
        state: `open`, `applied` or `rejected`.
        approved_by: names, in order of their approval.
    """

    id: str
    kind: str
    prefix: str
    document: bytes
    digest: str
    created_at: datetime
    expires_at: datetime
    created_by: str
    state: str = OPEN
    approved_by: tuple[str, ...] = ()


class ProposalStore:
    """Proposals of one tenant."""

    def __init__(self, store: Store, *, tenant: str = DEFAULT_TENANT) -> None:
        self._store = store
        self._tenant = tenant

    def add(self, proposal: StoredProposal, *, at: datetime) -> None:
        """Store an open proposal.

        Raises:
            Refused: too many wait already (`trust.approval.too_many`).
            Unavailable: the store failed.
        """
        columns = proposals.c

        def work(connection: Connection) -> None:
            waiting = select(func.count()).where(
                columns.tenant == self._tenant, columns.state == OPEN, columns.expires_at > to_micros(at)
            )
            if connection.execute(waiting).scalar_one() >= OPEN_CEILING:
                raise Refused(
                    "trust.approval.too_many",
                    "too many proposals wait",
                    expected=f"at most {OPEN_CEILING}",
                    hint="approve or reject some of them",
                )
            connection.execute(
                insert(proposals).values(
                    tenant=self._tenant,
                    id=proposal.id,
                    kind=proposal.kind,
                    prefix=proposal.prefix,
                    document=proposal.document,
                    digest=proposal.digest,
                    created_at=to_micros(proposal.created_at),
                    expires_at=to_micros(proposal.expires_at),
                    created_by=proposal.created_by,
                    state=OPEN,
                )
            )

        self._store.write(work)

    def get(self, identity: str) -> StoredProposal:
        """Return a proposal.

        Raises:
            Refused: there is none (`trust.approval.missing`).
            Unavailable: the store failed.
        """
        columns = proposals.c
        statement = select(proposals).where(columns.tenant == self._tenant, columns.id == identity)

        def work(connection: Connection) -> StoredProposal:
            row = connection.execute(statement).one_or_none()
            if row is None:
                raise Refused("trust.approval.missing", "no such proposal", actual=identity[:40])
            return _stored(row, self._names(connection, identity))

        return self._store.read(work)

    def list(self, *, limit: int) -> tuple[StoredProposal, ...]:
        """Return proposals, the newest first."""
        columns = proposals.c
        statement = select(proposals).where(columns.tenant == self._tenant)
        statement = statement.order_by(columns.created_at.desc(), columns.id).limit(limit)

        def work(connection: Connection) -> tuple[StoredProposal, ...]:
            rows = connection.execute(statement).all()
            return tuple(_stored(row, self._names(connection, row.id)) for row in rows)

        return self._store.read(work)

    def approve(self, identity: str, *, name: str, principal: str, at: datetime) -> None:
        """Add an approval; the same name again adds nothing.

        Raises:
            Unavailable: the store failed.
        """
        key = {"tenant": self._tenant, "proposal": identity, "name": name}
        row = {"principal": principal}
        self._store.write(lambda connection: upsert(connection, approvals, key, row, at=to_micros(at)))

    def settle(self, identity: str, state: str) -> None:
        """Give a proposal its last state.

        Raises:
            Unavailable: the store failed.
        """
        columns = proposals.c
        statement = update(proposals).where(columns.tenant == self._tenant, columns.id == identity).values(state=state)
        self._store.write(lambda connection: connection.execute(statement).rowcount)

    def allow(self, prefix: str, subject: str, *, until: datetime, proposal: str) -> None:
        """Let init data have what lies under a prefix until a time, as far as approvals go.

        Raises:
            Unavailable: the store failed.
        """
        key = {"tenant": self._tenant, "prefix": prefix, "subject": subject}
        row = {"expires_at": to_micros(until), "proposal": proposal}

        def work(connection: Connection) -> None:
            upsert(connection, approved_releases, key, row)
            bump_configuration(connection)

        self._store.write(work)

    def approved_by(self, prefixes: Collection[str], subject: str, *, at: datetime) -> frozenset[str]:
        """Return who approved that this init data may have what lies under one of these prefixes, for longer than `at`.

        Args:
            prefixes: those that are about a resource.
            subject: digest of init data.
            at: aware UTC.

        Raises:
            Unavailable: the store failed.
        """
        allowed = approved_releases.c
        statement = (
            select(approvals.c.name)
            .join(
                approved_releases,
                and_(allowed.tenant == approvals.c.tenant, allowed.proposal == approvals.c.proposal),
            )
            .where(
                approvals.c.tenant == self._tenant,
                allowed.tenant == self._tenant,
                allowed.subject == subject,
                allowed.prefix.in_(prefixes),
                allowed.expires_at > to_micros(at),
            )
        )
        return frozenset(self._store.read(lambda connection: connection.execute(statement).scalars().all()))

    def _names(self, connection: Connection, identity: str) -> tuple[str, ...]:
        columns = approvals.c
        statement = select(columns.name).where(columns.tenant == self._tenant, columns.proposal == identity)
        return tuple(connection.execute(statement.order_by(columns.at, columns.name)).scalars())


def _stored(row: Row[Any], names: tuple[str, ...]) -> StoredProposal:  # Any: the table's row type
    return StoredProposal(
        id=row.id,
        kind=row.kind,
        prefix=row.prefix,
        document=row.document,
        digest=row.digest,
        created_at=from_micros(row.created_at),
        expires_at=from_micros(row.expires_at),
        created_by=row.created_by,
        state=row.state,
        approved_by=names,
    )
