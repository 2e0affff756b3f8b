"""What a service recorded, read from its database past its own code: rows as they are, decoded and not judged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, select

from cloister.trust.store.schema import audit, evidence, log_checkpoints, log_entries, log_nodes, nonces


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """One audit row, as far as it matters here."""

    sequence: int
    decision: str
    resource: str
    guest_key: str
    init_data: str
    attestation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRecord:
    """One entry of the release log with what opens it."""

    position: int
    leaf: bytes
    hash: bytes
    salt: bytes
    fields: Mapping[str, str]


@dataclass(slots=True, kw_only=True)
class Records:
    """All that is checked.

    Attributes:
        audit: rows in order.
        log: entries in order.
        nodes: hashes of complete subtrees, by level and position.
        checkpoints: signed notes, by size.
        spent: nonces that were accepted.
    """

    audit: list[AuditRecord] = field(default_factory=list)
    log: list[LogRecord] = field(default_factory=list)
    nodes: dict[tuple[int, int], bytes] = field(default_factory=dict)
    checkpoints: dict[int, str] = field(default_factory=dict)
    spent: int = 0


def read_records(connection: Connection) -> Records:
    """Read everything; nobody writes meanwhile."""
    columns = (
        audit.c.sequence,
        audit.c.decision,
        audit.c.resource,
        audit.c.guest_key,
        audit.c.init_data,
        audit.c.attestation,
    )
    entries = connection.execute(select(log_entries).order_by(log_entries.c.position))
    spent = connection.execute(select(nonces.c.hash).where(nonces.c.used_at.is_not(None))).all()
    return Records(
        audit=[AuditRecord(**row._mapping) for row in connection.execute(select(*columns).order_by(audit.c.sequence))],
        log=[
            LogRecord(
                position=row.position,
                leaf=bytes(row.leaf),
                hash=bytes(row.hash),
                salt=bytes(row.salt),
                fields=json.loads(bytes(row.fields)),
            )
            for row in entries
        ],
        nodes={(row.level, row.position): bytes(row.hash) for row in connection.execute(select(log_nodes))},
        checkpoints={row.size: row.note for row in connection.execute(select(log_checkpoints))},
        spent=len(spent),
    )


def read_bound(connection: Connection) -> dict[str, str]:
    """Return for each piece of kept evidence, by its id, nonce and guest key it is bound to."""
    return {row.id: _bound(bytes(row.body)) for row in connection.execute(select(evidence.c.id, evidence.c.body))}


def _bound(body: bytes) -> str:
    """What evidence is bound to: the simulation says it, other technologies are told apart as a whole."""
    decoded: Any = json.loads(body)  # Any: evidence of any technology
    return str(decoded.get("report_data", decoded)) if isinstance(decoded, dict) else str(decoded)
