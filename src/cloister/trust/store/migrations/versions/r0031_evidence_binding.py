"""What evidence was bound to is kept beside it, so that it can be judged again."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, LargeBinary

from cloister.trust.store.migrations import chain

revision, down_revision = chain(__file__)


def upgrade() -> None:
    """Add the column; rows that are there stay without."""
    op.add_column("evidence", Column("binding", LargeBinary))


def downgrade() -> None:
    """Drop the column: the older version judges nothing again."""
    op.drop_column("evidence", "binding")
