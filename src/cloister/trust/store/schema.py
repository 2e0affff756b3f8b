"""Tables of the trust service, as SQLAlchemy Core metadata.

Times are integers: microseconds since 1970, UTC. Secrets (`resources.sealed`, `sessions.secret`) are sealed under the
root key before they come here. A session cookie and a nonce are kept as SHA-256 only: whoever reads the database
cannot continue a session with it.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Column, ForeignKey, Index, Integer, LargeBinary, MetaData, PrimaryKeyConstraint, Table, Text

SCHEMA_VERSION: Final = 2
# What makes the database of an older version one of the next, by the version it has.
UPGRADES: Final = {1: ("ALTER TABLE roots ADD COLUMN instance TEXT NOT NULL DEFAULT ''",)}

metadata: Final = MetaData()

schema_version: Final = Table("schema_version", metadata, Column("version", Integer, nullable=False))

# One row per counter. `configuration` grows with each change of policy, root or reference value.
counters: Final = Table(
    "counters", metadata, Column("name", Text, primary_key=True), Column("value", Integer, nullable=False)
)

sessions: Final = Table(
    "sessions",
    metadata,
    Column("key", Text, primary_key=True),
    Column("tee", Text, nullable=False),
    Column("nonce", Text, ForeignKey("nonces.hash"), nullable=False),
    Column("secret", LargeBinary),
    Column("issued_at", Integer, nullable=False),
    Column("expires_at", Integer, nullable=False, index=True),
    Column("token", Text),
)

# A nonce outlives its session: `used_at` is set once, by the transaction that accepts it.
nonces: Final = Table(
    "nonces",
    metadata,
    Column("hash", Text, primary_key=True),
    Column("issued_at", Integer, nullable=False, index=True),
    Column("used_at", Integer),
)

resources: Final = Table(
    "resources",
    metadata,
    Column("path", Text, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("updated_at", Integer, nullable=False),
)

# Every version of every policy is kept; the highest is in force.
policies: Final = Table(
    "policies",
    metadata,
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("digest", Text, nullable=False),
    Column("text", LargeBinary, nullable=False),
    Column("created_at", Integer, nullable=False),
    PrimaryKeyConstraint("kind", "name", "version"),
)

reference_entries: Final = Table(
    "reference_entries",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tee", Text, nullable=False),
    Column("entry", LargeBinary, nullable=False),
    Column("created_at", Integer, nullable=False),
)

roots: Final = Table(
    "roots",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tee", Text, nullable=False),
    Column("level", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("der", LargeBinary, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("instance", Text, nullable=False, server_default=""),
)

audit: Final = Table(
    "audit",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("at", Integer, nullable=False),
    Column("decision", Text, nullable=False),
    Column("code", Text, nullable=False),
    Column("resource", Text, nullable=False),
    Column("resource_version", Integer, nullable=False),
    Column("tee", Text, nullable=False),
    Column("level", Text, nullable=False),
    Column("instance", Text, nullable=False),
    Column("init_data", Text, nullable=False),
    Column("pcr00", Text, nullable=False),
    Column("guest_key", Text, nullable=False),
    Column("appraisal_policy", Text, nullable=False),
    Column("appraisal_policy_digest", Text, nullable=False),
    Column("release_policy_digest", Text, nullable=False),
    Column("attestation", Text, nullable=False),
    Column("denial", Text, nullable=False),
    Index("audit_denial", "denial"),
    sqlite_autoincrement=True,
)

denials: Final = Table(
    "denials",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("at", Integer, nullable=False),
    Column("stage", Text, nullable=False),
    Column("code", Text, nullable=False),
    Column("resource", Text, nullable=False),
    Column("attestation", Text, nullable=False),
    Column("record", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)

evidence: Final = Table(
    "evidence",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("at", Integer, nullable=False),
    Column("tee", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("result", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)

# Keys of the trust domain, of all tenants: the service's own. Rows stay when the key is past, so that the sequence
# number of the bundle only grows.
identity_keys: Final = Table(
    "identity_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("trust_domain", Text, nullable=False),
    Column("use", Text, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("certificate", LargeBinary, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("active_at", Integer, nullable=False),
    Column("expires_at", Integer, nullable=False),
    Column("withdrawn_at", Integer),
)
