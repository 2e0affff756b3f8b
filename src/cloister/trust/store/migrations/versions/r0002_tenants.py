"""Every row belongs to a tenant; what was there belongs to the default one. Sequence numbers count per tenant."""

from __future__ import annotations

from typing import Any, Final

from alembic import op
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    func,
    insert,
    literal,
    select,
)
from sqlalchemy.types import TypeEngine

from cloister.errors import Refused
from cloister.trust.store.migrations import chain
from cloister.trust.store.migrations.versions import r0001_first as first

revision, down_revision = chain(__file__)

_TENANT: Final = "default"
_INT64: Final = BigInteger()
_TEXT: Final = Text().with_variant(Text(collation="C"), "postgresql")
_NAMES: Final = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(referred_table_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
}
metadata: Final = MetaData(naming_convention=_NAMES)


def _tenants(name: str, *more: Any) -> Table:  # Any: constraints and indexes, as Table takes them
    """Return the table of that name as it was, with a tenant in front of its columns and of its primary key."""
    old = first.metadata.tables[name]
    key = [column.name for column in old.primary_key]
    return Table(
        name,
        metadata,
        Column("tenant", _TEXT, nullable=False),
        *_columns(old),
        PrimaryKeyConstraint("tenant", *key),
        *more,
    )


def _columns(old: Table) -> list[Column[Any]]:  # Any: each has its own type
    return [Column(column.name, _kind(column), nullable=column.nullable) for column in old.columns]


def _kind(column: Column[Any]) -> TypeEngine[Any]:  # Any: of whatever type
    if isinstance(column.type, LargeBinary):
        return LargeBinary()
    return _TEXT if isinstance(column.type, Text) else _INT64


Table("counters", metadata, *_columns(first.metadata.tables["counters"]), PrimaryKeyConstraint("name"))
_tenants(
    "sessions",
    ForeignKeyConstraint(["tenant", "nonce"], ["nonces.tenant", "nonces.hash"]),
    Index(None, "tenant", "expires_at"),
    Index(None, "tenant", "nonce"),
)
_tenants("nonces", Index(None, "tenant", "issued_at"))
for _plain in ("resources", "policies", "reference_entries", "roots"):
    _tenants(_plain)
_tenants("audit", Index(None, "tenant", "denial"))
for _with_id in ("denials", "evidence"):
    _tenants(_with_id, UniqueConstraint("tenant", "id"))
_session_gauges = Table(
    "session_gauges",
    metadata,
    Column("tenant", _TEXT, nullable=False),
    Column("live", _INT64, nullable=False),
    Column("pruned_at", _INT64, nullable=False),
    PrimaryKeyConstraint("tenant"),
)


def upgrade() -> None:
    """Give all rows to the default tenant."""
    connection = op.get_bind()
    op.drop_table("schema_version")
    _replace(connection, metadata)


def downgrade() -> None:
    """Take the tenant away again.

    Raises:
        Refused: there is more than one (`trust.store.downgrade`).
    """
    connection = op.get_bind()
    for table in metadata.sorted_tables:
        if "tenant" in table.c and table is not _session_gauges:
            others = select(func.count()).select_from(table).where(table.c.tenant != _TENANT)
            if connection.execute(others).scalar_one():
                raise Refused(
                    "trust.store.downgrade",
                    "the older version knows no tenants, and there are some",
                    path=table.name,
                    hint="delete the other tenants first, or restore the backup from before the upgrade",
                )
    op.drop_table("session_gauges")
    _replace(connection, first.metadata)
    connection.execute(insert(first.schema_version).values(version=first.SCHEMA_VERSION))


def _replace(connection: Connection, target: MetaData) -> None:
    """Make the tables of `target` beside those of the same names, move the rows over, drop what was."""
    shared = [table.name for table in first.metadata.sorted_tables if table is not first.schema_version]
    for name in shared:
        op.rename_table(name, f"old_{name}")
    target.create_all(connection)
    for name in shared:
        old, new = Table(f"old_{name}", MetaData(), autoload_with=connection), target.tables[name]
        names = [column.name for column in new.columns]
        values = [old.c[column] if column in old.c else literal(_TENANT) for column in names]
        connection.execute(insert(new).from_select(names, select(*values)))
    for name in reversed(shared):
        op.drop_table(f"old_{name}")
