-- What version 2 made, before databases had revisions; the test fills it.
CREATE TABLE audit (
    sequence INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    decision TEXT NOT NULL,
    code TEXT NOT NULL,
    resource TEXT NOT NULL,
    resource_version INTEGER NOT NULL,
    tee TEXT NOT NULL,
    level TEXT NOT NULL,
    instance TEXT NOT NULL,
    init_data TEXT NOT NULL,
    pcr00 TEXT NOT NULL,
    guest_key TEXT NOT NULL,
    appraisal_policy TEXT NOT NULL,
    appraisal_policy_digest TEXT NOT NULL,
    release_policy_digest TEXT NOT NULL,
    attestation TEXT NOT NULL,
    denial TEXT NOT NULL
);
CREATE TABLE counters (
    name TEXT NOT NULL,
    value INTEGER NOT NULL,
    PRIMARY KEY (name)
);
INSERT INTO "counters" VALUES('configuration',1);
INSERT INTO "counters" VALUES('probes',1);
CREATE TABLE denials (
    sequence INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL,
    at INTEGER NOT NULL,
    stage TEXT NOT NULL,
    code TEXT NOT NULL,
    resource TEXT NOT NULL,
    attestation TEXT NOT NULL,
    record BLOB NOT NULL,
    UNIQUE (id)
);
CREATE TABLE evidence (
    sequence INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL,
    at INTEGER NOT NULL,
    tee TEXT NOT NULL,
    body BLOB NOT NULL,
    result BLOB NOT NULL,
    UNIQUE (id)
);
CREATE TABLE nonces (
    hash TEXT NOT NULL,
    issued_at INTEGER NOT NULL,
    used_at INTEGER,
    PRIMARY KEY (hash)
);
CREATE TABLE policies (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    digest TEXT NOT NULL,
    text BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (kind, name, version)
);
CREATE TABLE reference_entries (
    id TEXT NOT NULL,
    tee TEXT NOT NULL,
    entry BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (id)
);
CREATE TABLE resources (
    path TEXT NOT NULL,
    version INTEGER NOT NULL,
    sealed BLOB NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (path)
);
CREATE TABLE roots (
    id TEXT NOT NULL,
    tee TEXT NOT NULL,
    level TEXT NOT NULL,
    name TEXT NOT NULL,
    der BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    instance TEXT DEFAULT '' NOT NULL,
    PRIMARY KEY (id)
);
CREATE TABLE schema_version (
    version INTEGER NOT NULL
);
INSERT INTO "schema_version" VALUES(2);
CREATE TABLE sessions (
    "key" TEXT NOT NULL,
    tee TEXT NOT NULL,
    nonce TEXT NOT NULL,
    secret BLOB,
    issued_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    token TEXT,
    PRIMARY KEY ("key"),
    FOREIGN KEY(nonce) REFERENCES nonces (hash)
);
CREATE INDEX ix_nonces_issued_at ON nonces (issued_at);
CREATE INDEX audit_denial ON audit (denial);
CREATE INDEX ix_sessions_expires_at ON sessions (expires_at);
