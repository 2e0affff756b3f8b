"""Sessions that only began are not stored any more; of those that were, guests begin again."""

from __future__ import annotations

from typing import Final

from alembic import op
from sqlalchemy import BigInteger, Column, LargeBinary, PrimaryKeyConstraint, Text, text

from cloister.trust.store.migrations import chain

revision, down_revision = chain(__file__)

_INT64: Final = BigInteger()
_TEXT: Final = Text().with_variant(Text(collation="C"), "postgresql")
# The statements know all tenants: a schema is of all of them.
_ENDED: Final = "DELETE FROM sessions WHERE token IS NULL"
_UNSPENT: Final = "DELETE FROM nonces WHERE used_at IS NULL"


def upgrade() -> None:
    """Forget what only began; what was spent stays spent."""
    op.execute(text(_ENDED))
    op.execute(text(_UNSPENT))
    op.drop_table("session_gauges")
    op.create_table(
        "nonce_marks",
        Column("tenant", _TEXT, nullable=False),
        Column("forgotten", _INT64, nullable=False),
        PrimaryKeyConstraint("tenant", name="pk_nonce_marks"),
    )
    op.drop_column("sessions", "secret")


def downgrade() -> None:
    """Go back to stored sessions; the older version knows none of the cookies of this one."""
    op.add_column("sessions", Column("secret", LargeBinary))
    op.drop_table("nonce_marks")
    op.create_table(
        "session_gauges",
        Column("tenant", _TEXT, nullable=False),
        Column("live", _INT64, nullable=False),
        Column("pruned_at", _INT64, nullable=False),
        PrimaryKeyConstraint("tenant", name="pk_session_gauges"),
    )
