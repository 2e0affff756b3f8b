"""The release log: its entries, the nodes of its tree, its checkpoints."""

from __future__ import annotations

from typing import Final

from alembic import op
from sqlalchemy import BigInteger, Column, Index, LargeBinary, MetaData, PrimaryKeyConstraint, Table, Text, text

from cloister.errors import Refused
from cloister.trust.store.migrations import chain

revision, down_revision = chain(__file__)

_INT64: Final = BigInteger()
_TEXT: Final = Text().with_variant(Text(collation="C"), "postgresql")
metadata: Final = MetaData(naming_convention={"pk": "pk_%(table_name)s", "ix": "ix_%(table_name)s_%(column_0_N_name)s"})

Table(
    "log_entries",
    metadata,
    Column("position", _INT64, nullable=False, autoincrement=False),
    Column("leaf", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("salt", LargeBinary, nullable=False),
    Column("tenant", _TEXT, nullable=False),
    Column("fields", LargeBinary, nullable=False),
    PrimaryKeyConstraint("position"),
    Index(None, "tenant", "position"),
)
Table(
    "log_nodes",
    metadata,
    Column("level", _INT64, nullable=False),
    Column("position", _INT64, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    PrimaryKeyConstraint("level", "position"),
)
Table(
    "log_checkpoints",
    metadata,
    Column("size", _INT64, nullable=False, autoincrement=False),
    Column("note", _TEXT, nullable=False),
    PrimaryKeyConstraint("size"),
)


def upgrade() -> None:
    """Make the tables of an empty log; what happened before has no entries."""
    metadata.create_all(op.get_bind())


def downgrade() -> None:
    """Drop an empty log.

    Raises:
        Refused: the log has entries, which the older version would not go on with (`trust.store.downgrade`).
    """
    if op.get_bind().execute(text("SELECT count(*) FROM log_entries")).scalar_one():
        raise Refused(
            "trust.store.downgrade",
            "the older version keeps no release log, and there is one",
            path="log_entries",
            hint="restore the backup from before the upgrade",
        )
    for table in ("log_entries", "log_nodes", "log_checkpoints"):
        op.drop_table(table)
