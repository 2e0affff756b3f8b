"""Tables of the trust service, as SQLAlchemy Core metadata.

Times are integers: microseconds since 1970, UTC. Secrets (`resources.sealed`) are sealed under a
data key before they come here. A session cookie and a nonce are kept as SHA-256 only: whoever reads the database
cannot continue a session with it.

Every table of what belongs to a tenant begins with the column `tenant`, which is the first of its primary key.
Sequence numbers count per tenant (`cloister.trust.store.numbering`), so that one tenant cannot count what another does.

Both databases know these tables, so columns are of these types only: `TEXT`, which compares by code point everywhere,
`INT64`, and `LargeBinary`. Whoever changes a table adds a revision in `migrations/versions`.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
)

INT64: Final = BigInteger()
TEXT: Final = Text().with_variant(Text(collation="C"), "postgresql")

metadata: Final = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


def tenant_column() -> Column[str]:
    """Return the first column of a table that holds what belongs to tenants."""
    return Column("tenant", TEXT, nullable=False)


# The revision of this database; the table is Alembic's, as it makes it.
alembic_version: Final = Table(
    "alembic_version",
    metadata,
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)

# One row per counter, of the whole service. `configuration` grows with each change of policy, root or reference value.
counters: Final = Table(
    "counters",
    metadata,
    Column("name", TEXT, nullable=False),
    Column("value", INT64, nullable=False),
    PrimaryKeyConstraint("name"),
)

sessions: Final = Table(
    "sessions",
    metadata,
    tenant_column(),
    Column("key", TEXT, nullable=False),
    Column("tee", TEXT, nullable=False),
    Column("nonce", TEXT, nullable=False),
    Column("issued_at", INT64, nullable=False),
    Column("expires_at", INT64, nullable=False),
    Column("token", TEXT),
    Column("version", TEXT, nullable=False, server_default="0.4.0"),
    PrimaryKeyConstraint("tenant", "key"),
    ForeignKeyConstraint(["tenant", "nonce"], ["nonces.tenant", "nonces.hash"]),
    Index(None, "tenant", "expires_at"),
    Index(None, "tenant", "nonce"),
)

# Spent nonces; those of sessions that only began are nowhere. A nonce outlives its session.
nonces: Final = Table(
    "nonces",
    metadata,
    tenant_column(),
    Column("hash", TEXT, nullable=False),
    Column("issued_at", INT64, nullable=False),
    Column("used_at", INT64),
    PrimaryKeyConstraint("tenant", "hash"),
    Index(None, "tenant", "issued_at"),
)

# No session of a tenant that began at `forgotten` or before is accepted any more: its nonce may have been spent.
nonce_marks: Final = Table(
    "nonce_marks",
    metadata,
    tenant_column(),
    Column("forgotten", INT64, nullable=False),
    PrimaryKeyConstraint("tenant"),
)

resources: Final = Table(
    "resources",
    metadata,
    tenant_column(),
    Column("path", TEXT, nullable=False),
    Column("version", INT64, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("updated_at", INT64, nullable=False),
    PrimaryKeyConstraint("tenant", "path"),
)

# Every version of every policy is kept; the highest is in force.
policies: Final = Table(
    "policies",
    metadata,
    tenant_column(),
    Column("kind", TEXT, nullable=False),
    Column("name", TEXT, nullable=False),
    Column("version", INT64, nullable=False),
    Column("digest", TEXT, nullable=False),
    Column("text", LargeBinary, nullable=False),
    Column("created_at", INT64, nullable=False),
    PrimaryKeyConstraint("tenant", "kind", "name", "version"),
)

reference_entries: Final = Table(
    "reference_entries",
    metadata,
    tenant_column(),
    Column("id", TEXT, nullable=False),
    Column("tee", TEXT, nullable=False),
    Column("entry", LargeBinary, nullable=False),
    Column("created_at", INT64, nullable=False),
    PrimaryKeyConstraint("tenant", "id"),
)

roots: Final = Table(
    "roots",
    metadata,
    tenant_column(),
    Column("id", TEXT, nullable=False),
    Column("tee", TEXT, nullable=False),
    Column("level", TEXT, nullable=False),
    Column("name", TEXT, nullable=False),
    Column("der", LargeBinary, nullable=False),
    Column("created_at", INT64, nullable=False),
    Column("instance", TEXT, nullable=False),
    PrimaryKeyConstraint("tenant", "id"),
)

audit: Final = Table(
    "audit",
    metadata,
    tenant_column(),
    Column("sequence", INT64, nullable=False),
    Column("at", INT64, nullable=False),
    Column("decision", TEXT, nullable=False),
    Column("code", TEXT, nullable=False),
    Column("resource", TEXT, nullable=False),
    Column("resource_version", INT64, nullable=False),
    Column("tee", TEXT, nullable=False),
    Column("level", TEXT, nullable=False),
    Column("instance", TEXT, nullable=False),
    Column("init_data", TEXT, nullable=False),
    Column("pcr00", TEXT, nullable=False),
    Column("guest_key", TEXT, nullable=False),
    Column("appraisal_policy", TEXT, nullable=False),
    Column("appraisal_policy_digest", TEXT, nullable=False),
    Column("release_policy_digest", TEXT, nullable=False),
    Column("attestation", TEXT, nullable=False),
    Column("denial", TEXT, nullable=False),
    Column("request", TEXT, nullable=False, server_default=""),
    PrimaryKeyConstraint("tenant", "sequence"),
    Index(None, "tenant", "denial"),
)

denials: Final = Table(
    "denials",
    metadata,
    tenant_column(),
    Column("sequence", INT64, nullable=False),
    Column("id", TEXT, nullable=False),
    Column("at", INT64, nullable=False),
    Column("stage", TEXT, nullable=False),
    Column("code", TEXT, nullable=False),
    Column("resource", TEXT, nullable=False),
    Column("attestation", TEXT, nullable=False),
    Column("record", LargeBinary, nullable=False),
    PrimaryKeyConstraint("tenant", "sequence"),
    UniqueConstraint("tenant", "id"),
)

evidence: Final = Table(
    "evidence",
    metadata,
    tenant_column(),
    Column("sequence", INT64, nullable=False),
    Column("id", TEXT, nullable=False),
    Column("at", INT64, nullable=False),
    Column("tee", TEXT, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("result", LargeBinary, nullable=False),
    Column("binding", LargeBinary),  # NULL in rows of versions that did not keep it
    PrimaryKeyConstraint("tenant", "sequence"),
    UniqueConstraint("tenant", "id"),
)

# Init data that was revoked for every resource.
revocations: Final = Table(
    "revocations",
    metadata,
    tenant_column(),
    Column("init_data", TEXT, nullable=False),
    Column("at", INT64, nullable=False),
    PrimaryKeyConstraint("tenant", "init_data"),
)

leases: Final = Table(
    "leases",
    metadata,
    tenant_column(),
    Column("resource", TEXT, nullable=False),
    Column("guest_key", TEXT, nullable=False),
    Column("init_data", TEXT, nullable=False),
    Column("instance", TEXT, nullable=False),
    Column("tee", TEXT, nullable=False),
    Column("level", TEXT, nullable=False),
    Column("attestation", TEXT, nullable=False),
    Column("granted_at", INT64, nullable=False),
    Column("expires_at", INT64, nullable=False),
    Column("renewals", INT64, nullable=False),
    PrimaryKeyConstraint("tenant", "resource", "guest_key"),
    Index(None, "tenant", "expires_at"),
)

# The release log, one for all tenants: what it publishes tells none from another. A leaf's node is the entry's own row;
# `log_nodes` holds the complete subtrees above, `log_checkpoints` one signed statement per batch of writes.
log_entries: Final = Table(
    "log_entries",
    metadata,
    Column("position", INT64, nullable=False, autoincrement=False),
    Column("leaf", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("salt", LargeBinary, nullable=False),
    Column("tenant", TEXT, nullable=False),
    Column("fields", LargeBinary, nullable=False),
    PrimaryKeyConstraint("position"),
    Index(None, "tenant", "position"),
)

log_nodes: Final = Table(
    "log_nodes",
    metadata,
    Column("level", INT64, nullable=False),
    Column("position", INT64, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    PrimaryKeyConstraint("level", "position"),
)

log_checkpoints: Final = Table(
    "log_checkpoints",
    metadata,
    Column("size", INT64, nullable=False, autoincrement=False),
    Column("note", TEXT, nullable=False),
    PrimaryKeyConstraint("size"),
)

# The keys that seal rows of all tenants, each wrapped by the root key in the key store; and, one row, what is signed
# about them all.
data_keys: Final = Table(
    "data_keys",
    metadata,
    Column("id", TEXT, nullable=False),
    Column("state", TEXT, nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    Column("created_at", INT64, nullable=False),
    Column("retired_at", INT64),
    PrimaryKeyConstraint("id"),
)

key_ring: Final = Table(
    "key_ring",
    metadata,
    Column("name", TEXT, nullable=False),
    Column("generation", INT64, nullable=False),
    Column("root", TEXT, nullable=False),
    Column("mac", LargeBinary, nullable=False),
    PrimaryKeyConstraint("name"),
)

# `sealed` holds the private key and says all that the other columns say; they are there to be listed.
signing_keys: Final = Table(
    "signing_keys",
    metadata,
    Column("purpose", TEXT, nullable=False),
    Column("kid", TEXT, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("created_at", INT64, nullable=False),
    Column("not_before", INT64, nullable=False),
    Column("not_after", INT64),
    PrimaryKeyConstraint("purpose", "kid"),
)

# Keys of the trust domain, of all tenants: the service's own. Rows stay when the key is past, so that the sequence
# number of the bundle only grows.
identity_keys: Final = Table(
    "identity_keys",
    metadata,
    Column("id", TEXT, nullable=False),
    Column("trust_domain", TEXT, nullable=False),
    Column("use", TEXT, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("certificate", LargeBinary, nullable=False),
    Column("created_at", INT64, nullable=False),
    Column("active_at", INT64, nullable=False),
    Column("expires_at", INT64, nullable=False),
    Column("withdrawn_at", INT64),
    PrimaryKeyConstraint("id"),
)

# Who may administer. `tenant` is empty for a token that holds in every tenant; the token's text is never stored.
access_tokens: Final = Table(
    "access_tokens",
    metadata,
    tenant_column(),
    Column("id", TEXT, nullable=False),
    Column("hash", TEXT, nullable=False),
    Column("role", TEXT, nullable=False),
    Column("name", TEXT, nullable=False),
    Column("created_at", INT64, nullable=False),
    Column("expires_at", INT64),
    Column("revoked_at", INT64),
    Column("created_by", TEXT, nullable=False),
    PrimaryKeyConstraint("tenant", "id"),
    UniqueConstraint("hash"),
)

# Tenants that an owner made; the default one needs no row.
tenants: Final = Table(
    "tenants",
    metadata,
    tenant_column(),
    Column("note", TEXT, nullable=False),
    Column("created_at", INT64, nullable=False),
    Column("disabled_at", INT64),
    PrimaryKeyConstraint("tenant"),
)

# Every administrative call: who did what to what, and how it ended.
administration: Final = Table(
    "administration",
    metadata,
    tenant_column(),
    Column("sequence", INT64, nullable=False),
    Column("at", INT64, nullable=False),
    Column("principal", TEXT, nullable=False),
    Column("name", TEXT, nullable=False),
    Column("role", TEXT, nullable=False),
    Column("action", TEXT, nullable=False),
    Column("subject", TEXT, nullable=False),
    Column("code", TEXT, nullable=False),
    Column("denial", TEXT, nullable=False),
    PrimaryKeyConstraint("tenant", "sequence"),
)

# Whose signature on reference values is accepted.
publishers: Final = Table(
    "publishers",
    metadata,
    tenant_column(),
    Column("key_id", TEXT, nullable=False),
    Column("name", TEXT, nullable=False),
    Column("pem", LargeBinary, nullable=False),
    Column("created_at", INT64, nullable=False),
    PrimaryKeyConstraint("tenant", "key_id"),
)

# The newest version accepted of each signed set, so that an old one cannot be played back.
reference_sets: Final = Table(
    "reference_sets",
    metadata,
    tenant_column(),
    Column("id", TEXT, nullable=False),
    Column("version", INT64, nullable=False),
    Column("digest", TEXT, nullable=False),
    PrimaryKeyConstraint("tenant", "id"),
)

# What became of reference values. `publisher` is empty for values that nobody signed.
reference_history: Final = Table(
    "reference_history",
    metadata,
    tenant_column(),
    Column("sequence", INT64, nullable=False),
    Column("id", TEXT, nullable=False),
    Column("at", INT64, nullable=False),
    Column("change", TEXT, nullable=False),
    Column("name", TEXT, nullable=False),
    Column("publisher", TEXT, nullable=False),
    Column("reference_set", TEXT, nullable=False),
    Column("set_version", INT64, nullable=False),
    Column("entry", LargeBinary, nullable=False),
    PrimaryKeyConstraint("tenant", "sequence"),
    Index(None, "tenant", "id"),
)

# Changes and releases that wait for their approvals, and what became of them.
proposals: Final = Table(
    "proposals",
    metadata,
    tenant_column(),
    Column("id", TEXT, nullable=False),
    Column("kind", TEXT, nullable=False),
    Column("prefix", TEXT, nullable=False),
    Column("document", LargeBinary, nullable=False),
    Column("digest", TEXT, nullable=False),
    Column("created_at", INT64, nullable=False),
    Column("expires_at", INT64, nullable=False),
    Column("created_by", TEXT, nullable=False),
    Column("state", TEXT, nullable=False),
    PrimaryKeyConstraint("tenant", "id"),
)

approvals: Final = Table(
    "approvals",
    metadata,
    tenant_column(),
    Column("proposal", TEXT, nullable=False),
    Column("name", TEXT, nullable=False),
    Column("principal", TEXT, nullable=False),
    Column("at", INT64, nullable=False),
    PrimaryKeyConstraint("tenant", "proposal", "name"),
    ForeignKeyConstraint(["tenant", "proposal"], ["proposals.tenant", "proposals.id"]),
)

# Init data that enough approvers let have what lies under a prefix, until a time.
approved_releases: Final = Table(
    "approved_releases",
    metadata,
    tenant_column(),
    Column("prefix", TEXT, nullable=False),
    Column("subject", TEXT, nullable=False),
    Column("expires_at", INT64, nullable=False),
    Column("proposal", TEXT, nullable=False),
    PrimaryKeyConstraint("tenant", "prefix", "subject"),
)
