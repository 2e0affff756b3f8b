"""The release log: its entries, the nodes of its tree, its checkpoints."""

from __future__ import annotations

from typing import Final

from alembic import op
from sqlalchemy import BigInteger, Column, LargeBinary, Text, text

from cloister.errors import Refused
from cloister.trust.store.migrations import chain

revision, down_revision = chain(__file__)

_INT64: Final = BigInteger()
_TEXT: Final = Text().with_variant(Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the tables of an empty log; what happened before has no entries."""
    op.create_table(
        "log_entries",
        Column("position", _INT64, primary_key=True, autoincrement=False),
        Column("leaf", LargeBinary, nullable=False),
        Column("hash", LargeBinary, nullable=False),
        Column("salt", LargeBinary, nullable=False),
        Column("tenant", _TEXT, nullable=False),
        Column("fields", LargeBinary, nullable=False),
    )
    op.create_index("ix_log_entries_tenant", "log_entries", ["tenant", "position"])
    op.create_table(
        "log_nodes",
        Column("level", _INT64, primary_key=True, autoincrement=False),
        Column("position", _INT64, primary_key=True, autoincrement=False),
        Column("hash", LargeBinary, nullable=False),
    )
    op.create_table(
        "log_checkpoints",
        Column("size", _INT64, primary_key=True, autoincrement=False),
        Column("note", _TEXT, nullable=False),
    )


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
