"""Audit rows name the request they belong to."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Text

from cloister.trust.store.migrations import chain

revision, down_revision = chain(__file__)


def upgrade() -> None:
    """Add the correlation id; rows from before have none."""
    text = Text().with_variant(Text(collation="C"), "postgresql")
    op.add_column("audit", Column("request", text, nullable=False, server_default=""))


def downgrade() -> None:
    """Drop it: the older version does not read it."""
    op.drop_column("audit", "request")
