"""The tables as they were before databases had revisions (their `schema_version` 2)."""

from __future__ import annotations

from typing import Any, Final

from alembic import op
from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    insert,
)
from sqlalchemy.types import TypeEngine

from cloister.trust.store.migrations import chain

revision, down_revision = chain(__file__)

SCHEMA_VERSION: Final = 2
NUMBER: Final = BigInteger().with_variant(Integer(), "sqlite")
metadata: Final = MetaData()


def _table(name: str, *columns: str, key: str = "", autoincrement: bool = False) -> Table:
    """Return a table of columns given as `name`, `name:number` or `name:bytes`, with `?` behind if it may be empty."""
    kinds: dict[str, TypeEngine[Any]] = {"": Text(), "number": NUMBER, "bytes": LargeBinary()}  # Any: of each its own
    made = []
    for column in columns:
        title, _, kind = column.removesuffix("?").partition(":")
        made.append(Column(title, kinds[kind], nullable=column.endswith("?")))
    keys = [PrimaryKeyConstraint(*key.split())] if key else []
    return Table(name, metadata, *made, *keys, sqlite_autoincrement=autoincrement)


schema_version = _table("schema_version", "version:number")
_table("counters", "name", "value:number", key="name")
_table(
    "sessions",
    *("key", "tee", "nonce", "secret:bytes?", "issued_at:number", "expires_at:number", "token?"),
    key="key",
)
_table("nonces", "hash", "issued_at:number", "used_at:number?", key="hash")
_table("resources", "path", "version:number", "sealed:bytes", "updated_at:number", key="path")
_table(
    "policies",
    *("kind", "name", "version:number", "digest", "text:bytes", "created_at:number"),
    key="kind name version",
)
_table("reference_entries", "id", "tee", "entry:bytes", "created_at:number", key="id")
_table("roots", "id", "tee", "level", "name", "der:bytes", "created_at:number", "instance", key="id")
_table(
    "audit",
    *("sequence:number", "at:number", "decision", "code", "resource", "resource_version:number", "tee", "level"),
    *("instance", "init_data", "pcr00", "guest_key", "appraisal_policy", "appraisal_policy_digest"),
    *("release_policy_digest", "attestation", "denial"),
    key="sequence",
    autoincrement=True,
)
_table(
    "denials",
    *("sequence:number", "id", "at:number", "stage", "code", "resource", "attestation", "record:bytes"),
    key="sequence",
    autoincrement=True,
)
_table(
    "evidence",
    *("sequence:number", "id", "at:number", "tee", "body:bytes", "result:bytes"),
    key="sequence",
    autoincrement=True,
)
_columns = {name: table.c for name, table in metadata.tables.items()}
_columns["sessions"].nonce.append_foreign_key(ForeignKey("nonces.hash"))
Index("ix_sessions_expires_at", _columns["sessions"].expires_at)
Index("ix_nonces_issued_at", _columns["nonces"].issued_at)
Index("audit_denial", _columns["audit"].denial)
Index("denials_id", _columns["denials"].id, unique=True)
Index("evidence_id", _columns["evidence"].id, unique=True)


def upgrade() -> None:
    """Make the tables."""
    connection = op.get_bind()
    metadata.create_all(connection)
    connection.execute(insert(schema_version).values(version=SCHEMA_VERSION))
    counters = metadata.tables["counters"]
    connection.execute(insert(counters), [{"name": name, "value": 1} for name in ("configuration", "probes")])


def downgrade() -> None:
    """Drop the tables."""
    metadata.drop_all(op.get_bind())
