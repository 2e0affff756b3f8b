"""Keys of the SPIFFE trust domain."""

from __future__ import annotations

from typing import Final

from alembic import op
from sqlalchemy import BigInteger, Column, LargeBinary, PrimaryKeyConstraint, Text

from cloister.trust.store.migrations import chain

revision, down_revision = chain(__file__)

_INT64: Final = BigInteger()
_TEXT: Final = Text().with_variant(Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "identity_keys",
        Column("id", _TEXT, nullable=False),
        Column("trust_domain", _TEXT, nullable=False),
        Column("use", _TEXT, nullable=False),
        Column("sealed", LargeBinary, nullable=False),
        Column("certificate", LargeBinary, nullable=False),
        Column("created_at", _INT64, nullable=False),
        Column("active_at", _INT64, nullable=False),
        Column("expires_at", _INT64, nullable=False),
        Column("withdrawn_at", _INT64),
        PrimaryKeyConstraint("id", name="pk_identity_keys"),
    )


def downgrade() -> None:
    """Drop the table; the trust domain has new keys when it is made again."""
    op.drop_table("identity_keys")
