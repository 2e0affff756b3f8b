"""Administration over the network: tokens, tenants, calls, publishers, proposals."""

from __future__ import annotations

from typing import Any, Final

from alembic import op
from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.types import TypeEngine

from cloister.trust.store.migrations import chain

revision, down_revision = chain(__file__)

_KINDS: Final[dict[str, TypeEngine[Any]]] = {  # Any: of each its own
    "": Text().with_variant(Text(collation="C"), "postgresql"),
    "number": BigInteger(),
    "bytes": LargeBinary(),
}
metadata: Final = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


def _table(name: str, columns: str, key: str, *more: Any) -> None:  # Any: constraints and indexes
    """Define a table of a tenant and `name`, `name:number` or `name:bytes`, with `?` behind if it may be empty."""
    made: list[Column[Any]] = [Column("tenant", _KINDS[""], nullable=False)]  # Any: of each its own
    for column in columns.split():
        title, _, kind = column.removesuffix("?").partition(":")
        made.append(Column(title, _KINDS[kind], nullable=column.endswith("?")))
    Table(name, metadata, *made, PrimaryKeyConstraint("tenant", *key.split()), *more)


_table(
    "access_tokens",
    "id hash role name created_at:number expires_at:number? revoked_at:number? created_by",
    "id",
    UniqueConstraint("hash"),
)
_table("tenants", "note created_at:number disabled_at:number?", "")
_table("administration", "sequence:number at:number principal name role action subject code denial", "sequence")
_table("publishers", "key_id name pem:bytes created_at:number", "key_id")
_table("reference_sets", "id version:number digest", "id")
_table(
    "reference_history",
    "sequence:number id at:number change name publisher reference_set set_version:number entry:bytes",
    "sequence",
    Index(None, "tenant", "id"),
)
_table("proposals", "id kind prefix document:bytes digest created_at:number expires_at:number created_by state", "id")
_table(
    "approvals",
    "proposal name principal at:number",
    "proposal name",
    ForeignKeyConstraint(["tenant", "proposal"], ["proposals.tenant", "proposals.id"]),
)
_table("approved_releases", "prefix subject expires_at:number proposal", "prefix subject")


def upgrade() -> None:
    """Make the tables."""
    metadata.create_all(op.get_bind())


def downgrade() -> None:
    """Drop them: an older version has no administration over the network."""
    metadata.drop_all(op.get_bind())
