"""Keys of a trust domain at rest: private halves sealed under the root key, everything else in the clear."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, insert, select, update

from cloister.errors import Refused
from cloister.trust.rowseal import RowSealer, SealedColumn
from cloister.trust.store.database import Store, bump_configuration
from cloister.trust.store.schema import identity_keys
from cloister.trust.store.times import from_micros, to_micros

_PURPOSE: Final = "identity key"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class IdentityKeyRow:
    """One key.

    Attributes:
        id: RFC 7638 thumbprint.
        trust_domain: that it vouches for.
        use: `x509-svid` or `jwt-svid`.
        private_pem: PKCS #8.
        certificate: DER, empty for a key without.
        created_at: aware UTC.
        active_at: aware UTC.
        expires_at: aware UTC.
        withdrawn_at: aware UTC, None for a key in good standing.
    """

    id: str
    trust_domain: str
    use: str
    private_pem: bytes
    certificate: bytes
    created_at: datetime
    active_at: datetime
    expires_at: datetime
    withdrawn_at: datetime | None = None


class IdentityKeyStore:
    """The keys of one trust domain.

    Args:
        store: the database.
        sealer: seals private keys.
        trust_domain: whose; another one's keys are not seen.
    """

    def __init__(self, store: Store, sealer: RowSealer, trust_domain: str) -> None:
        self._store = store
        self._sealer = sealer
        self._trust_domain = trust_domain

    def list(self) -> tuple[IdentityKeyRow, ...]:
        """Return all keys, past ones too, oldest first.

        Raises:
            Unavailable: the store failed, or a key does not open.
        """
        return self._store.read(self._rows)

    def add(self, wanted: Callable[[Sequence[IdentityKeyRow]], Sequence[IdentityKeyRow]]) -> None:
        """Add the keys that `wanted` returns when shown those that are there, in one transaction.

        Raises:
            Unavailable: the store failed.
        """

        def work(connection: Connection) -> None:
            for row in wanted(self._rows(connection)):
                connection.execute(
                    insert(identity_keys).values(
                        id=row.id,
                        trust_domain=row.trust_domain,
                        use=row.use,
                        sealed=self._sealer.seal(_PURPOSE, row.id, row.private_pem),
                        certificate=row.certificate,
                        created_at=to_micros(row.created_at),
                        active_at=to_micros(row.active_at),
                        expires_at=to_micros(row.expires_at),
                    )
                )
                bump_configuration(connection)

        self._store.write(work)

    def withdraw(self, identity: str, *, at: datetime) -> None:
        """Mark a key as withdrawn; it neither signs nor is published any more.

        Raises:
            Refused: there is none in good standing (`trust.identity.key`).
            Unavailable: the store failed.
        """

        def work(connection: Connection) -> None:
            statement = update(identity_keys).where(
                identity_keys.c.id == identity,
                identity_keys.c.trust_domain == self._trust_domain,
                identity_keys.c.withdrawn_at.is_(None),
            )
            if connection.execute(statement.values(withdrawn_at=to_micros(at))).rowcount != 1:
                raise Refused(
                    "trust.identity.key",
                    "no such key of the trust domain",
                    actual=identity[:60],
                    hint="`cloister identity keys` lists them",
                )
            bump_configuration(connection)

        self._store.write(work)

    def _rows(self, connection: Connection) -> tuple[IdentityKeyRow, ...]:
        statement = select(identity_keys).where(identity_keys.c.trust_domain == self._trust_domain)
        rows = connection.execute(statement.order_by(identity_keys.c.created_at, identity_keys.c.id)).all()
        return tuple(
            IdentityKeyRow(
                id=row.id,
                trust_domain=row.trust_domain,
                use=row.use,
                private_pem=self._sealer.open(_PURPOSE, row.id, row.sealed),
                certificate=row.certificate,
                created_at=from_micros(row.created_at),
                active_at=from_micros(row.active_at),
                expires_at=from_micros(row.expires_at),
                withdrawn_at=None if row.withdrawn_at is None else from_micros(row.withdrawn_at),
            )
            for row in rows
        )


IDENTITY_KEY_ROWS: Final = SealedColumn(
    purpose=_PURPOSE, table=identity_keys, column="sealed", row_of=lambda row: str(row.id)
)
