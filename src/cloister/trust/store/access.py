"""Access tokens at rest: who may administer which tenant until when. Of a token's text only the hash is here."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, func, insert, select, update

from cloister.errors import Refused
from cloister.trust.store.database import Store
from cloister.trust.store.schema import access_tokens
from cloister.trust.store.times import from_micros, to_micros
from cloister.trust.store.transaction import Transaction

TOKENS_LIVE: Final = 1024  # of one tenant; more are forgotten ones
_BY_HASH: Final = select(access_tokens).where(access_tokens.c.hash == bindparam("wanted"))
_EVERY_TENANT: Final = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredToken:
    """What is known of a token.

    Attributes:
        id: `t-` and ten characters.
        hash: SHA-256 of its text, hex.
        tenant: where it holds, None for all.
        role: name of a role.
        name: of its holder.
        created_at: aware UTC.
        expires_at: aware UTC, None for never.
        revoked_at: aware UTC, None while it holds.
        created_by: id of the token that made it.
    """

    id: str
    hash: str
    tenant: str | None
    role: str
    name: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    created_by: str

    def live(self, at: datetime) -> bool:
        """Return whether it is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or at < self.expires_at)


class TokenStore:
    """Access tokens of all tenants of one database."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def find(self, digest: str) -> StoredToken | None:
        """Return the token of a hash, dead ones too; None when there is none.

        Raises:
            Unavailable: the store failed.
        """
        row = self._store.read(lambda connection: connection.execute(_BY_HASH, {"wanted": digest}).one_or_none())
        return None if row is None else _stored(row)

    def add(self, token: StoredToken, *, at: datetime) -> None:
        """Store a token.

        Raises:
            Refused: a live token of that tenant has the name (`trust.access.name_taken`), or it has too many
                (`trust.access.too_many`).
            Unavailable: the store failed.
        """

        def work(connection: Connection) -> None:
            tenant = token.tenant or _EVERY_TENANT
            rows = connection.execute(select(access_tokens)).all()
            live = [item for item in map(_stored, rows) if item.live(at)]
            # Approvals count names: whoever holds in every tenant shares their names with each.
            if any(item.name == token.name and _meet(item.tenant, token.tenant) for item in live):
                raise Refused("trust.access.name_taken", "a live token has this name", actual=token.name[:80])
            if sum(1 for item in live if item.tenant == token.tenant) >= TOKENS_LIVE:
                raise Refused(
                    "trust.access.too_many", "too many live tokens", expected=f"at most {TOKENS_LIVE} of one tenant"
                )
            connection.execute(
                insert(access_tokens).values(
                    id=token.id,
                    hash=token.hash,
                    tenant=tenant,
                    role=token.role,
                    name=token.name,
                    created_at=to_micros(token.created_at),
                    expires_at=None if token.expires_at is None else to_micros(token.expires_at),
                    created_by=token.created_by,
                )
            )

        self._store.write(work)

    def add_first(self, token: StoredToken) -> bool:
        """Store a token unless there ever was one; return whether it was stored.

        Raises:
            Unavailable: the store failed.
        """

        def work(connection: Connection) -> bool:
            if connection.execute(select(func.count()).select_from(access_tokens)).scalar_one():
                return False
            TokenStore(Transaction(connection)).add(token, at=token.created_at)
            return True

        return self._store.write(work)

    def list(self, tenant: str | None) -> tuple[StoredToken, ...]:
        """Return the tokens of one tenant, or all tokens when it is None; dead ones too, oldest first."""
        statement = select(access_tokens).order_by(access_tokens.c.created_at, access_tokens.c.id)
        if tenant is not None:
            statement = statement.where(access_tokens.c.tenant == tenant)
        return tuple(map(_stored, self._store.read(lambda connection: connection.execute(statement).all())))

    def revoke(self, identity: str, tenant: str | None, *, at: datetime) -> StoredToken:
        """End a token of one tenant (None: any); one that was revoked stays so.

        Raises:
            Refused: there is none (`trust.access.token_missing`).
            Unavailable: the store failed.
        """

        def work(connection: Connection) -> StoredToken:
            wanted = select(access_tokens).where(access_tokens.c.id == identity)
            if tenant is not None:
                wanted = wanted.where(access_tokens.c.tenant == tenant)
            if connection.execute(wanted).one_or_none() is None:
                raise Refused("trust.access.token_missing", "no such token", actual=identity[:40])
            open_ones = (access_tokens.c.id == identity) & access_tokens.c.revoked_at.is_(None)
            connection.execute(update(access_tokens).where(open_ones).values(revoked_at=to_micros(at)))
            return _stored(connection.execute(wanted).one())

        return self._store.write(work)


def _meet(one: str | None, other: str | None) -> bool:
    return one is None or other is None or one == other


def _stored(row: Row[Any]) -> StoredToken:  # Any: the table's row type
    return StoredToken(
        id=row.id,
        hash=row.hash,
        tenant=row.tenant or None,
        role=row.role,
        name=row.name,
        created_at=from_micros(row.created_at),
        expires_at=None if row.expires_at is None else from_micros(row.expires_at),
        revoked_at=None if row.revoked_at is None else from_micros(row.revoked_at),
        created_by=row.created_by,
    )
