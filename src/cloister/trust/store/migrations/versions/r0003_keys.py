"""Data keys, the ring that holds them together, and signing keys."""

from __future__ import annotations

from typing import Final

from alembic import op
from sqlalchemy import BigInteger, Column, LargeBinary, MetaData, PrimaryKeyConstraint, Table, Text, func, select

from cloister.errors import Refused
from cloister.trust.store.migrations import chain

revision, down_revision = chain(__file__)

_INT64: Final = BigInteger()
_TEXT: Final = Text().with_variant(Text(collation="C"), "postgresql")
metadata: Final = MetaData(naming_convention={"pk": "pk_%(table_name)s"})

data_keys: Final = Table(
    "data_keys",
    metadata,
    Column("id", _TEXT, nullable=False),
    Column("state", _TEXT, nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    Column("created_at", _INT64, nullable=False),
    Column("retired_at", _INT64),
    PrimaryKeyConstraint("id"),
)
Table(
    "key_ring",
    metadata,
    Column("name", _TEXT, nullable=False),
    Column("generation", _INT64, nullable=False),
    Column("root", _TEXT, nullable=False),
    Column("mac", LargeBinary, nullable=False),
    PrimaryKeyConstraint("name"),
)
Table(
    "signing_keys",
    metadata,
    Column("purpose", _TEXT, nullable=False),
    Column("kid", _TEXT, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("created_at", _INT64, nullable=False),
    Column("not_before", _INT64, nullable=False),
    Column("not_after", _INT64),
    PrimaryKeyConstraint("purpose", "kid"),
)


def upgrade() -> None:
    """Make the tables; the service fills them when it starts."""
    metadata.create_all(op.get_bind())


def downgrade() -> None:
    """Drop the tables, if nothing needs what is in them.

    Raises:
        Refused: there are keys, which the older version could not use (`trust.store.downgrade`).
    """
    connection = op.get_bind()
    if connection.execute(select(func.count()).select_from(data_keys)).scalar_one():
        raise Refused(
            "trust.store.downgrade",
            "the older version knows no data keys, and rows are sealed under some",
            path=data_keys.name,
            hint="restore the backup from before the upgrade",
        )
    metadata.drop_all(connection)
