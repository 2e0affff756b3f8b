"""Sessions remember the version of their protocol; revoked init data; leases."""

from __future__ import annotations

from typing import Any, Final

from alembic import op
from sqlalchemy import BigInteger, Column, Index, MetaData, PrimaryKeyConstraint, Table, Text
from sqlalchemy.types import TypeEngine

from cloister.trust.store.migrations import chain
from cloister.trust.store.migrations.versions.r0002_tenants import _NAMES

revision, down_revision = chain(__file__)

_TEXT: Final = Text().with_variant(Text(collation="C"), "postgresql")
_NUMBER: Final = BigInteger()
metadata: Final = MetaData(naming_convention=_NAMES)


def _columns(kind: TypeEngine[Any], *names: str) -> list[Column[Any]]:  # Any: text or number
    return [Column(name, kind, nullable=False) for name in names]


Table(
    "revocations",
    metadata,
    *_columns(_TEXT, "tenant", "init_data"),
    *_columns(_NUMBER, "at"),
    PrimaryKeyConstraint("tenant", "init_data"),
)
Table(
    "leases",
    metadata,
    *_columns(_TEXT, "tenant", "resource", "guest_key", "init_data", "instance", "tee", "level", "attestation"),
    *_columns(_NUMBER, "granted_at", "expires_at", "renewals"),
    PrimaryKeyConstraint("tenant", "resource", "guest_key"),
    Index(None, "tenant", "expires_at"),
)


def upgrade() -> None:
    """Sessions that are open speak the one version there was."""
    metadata.create_all(op.get_bind())
    op.add_column("sessions", Column("version", _TEXT, nullable=False, server_default="0.4.0"))


def downgrade() -> None:
    """Forget all of it."""
    op.drop_column("sessions", "version")
    metadata.drop_all(op.get_bind())
