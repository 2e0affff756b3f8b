"""What the service remembers about its decisions: audit rows, denials with their findings, evidence with its result.

An audit row of a release is committed before the release; releases are never deleted. Denials can be caused by
anybody who reaches the port, so the oldest go when there are too many; likewise evidence.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, CursorResult, Row, bindparam, delete, func, insert, select

from cloister.errors import Refused, Unavailable
from cloister.rats.result import Finding, Severity
from cloister.trust.store.database import Store
from cloister.trust.store.schema import audit, denials, evidence
from cloister.trust.store.times import from_micros, to_micros

DENIALS_KEPT: Final = 20_000
EVIDENCE_KEPT: Final = 2_000
LISTED: Final = 1_000
RELEASED: Final = "released"
DENIED: Final = "denied"
_ID_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz234567"  # RFC 4648 base32, lower case
_ID_CHARS: Final = 10

# Made once: building a statement costs more than running it.
_INSERT_AUDIT: Final = insert(audit)
_INSERT_DENIAL: Final = insert(denials)
_INSERT_EVIDENCE: Final = insert(evidence)
_FORGET_EVIDENCE: Final = delete(evidence).where(evidence.c.sequence <= bindparam("oldest"))


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """Who got or was denied what, when, under which code.

    Attributes:
        at: aware UTC.
        decision: `released` or `denied`.
        code: dotted code; `trust.released` for a release.
        resource: path, empty when the handshake did not come so far.
        resource_version: version released, else 0.
        tee: technology.
        level: what the evidence proved, empty when nothing was proved.
        instance: identity of the chip or vTPM.
        init_data: digest of the init data, which holds the pod policy.
        pcr00: launch measurement of a measured boot, hex.
        guest_key: thumbprint of the key the resource was sealed to.
        appraisal_policy: id.
        appraisal_policy_digest: digest of the text applied.
        release_policy_digest: digest of the text applied.
        attestation: id of the Attestation Result.
        denial: id of the denial record, empty for a release.
        sequence: position, 0 before it is stored.
    """

    at: datetime
    decision: str
    code: str
    resource: str = ""
    resource_version: int = 0
    tee: str = ""
    level: str = ""
    instance: str = ""
    init_data: str = ""
    pcr00: str = ""
    guest_key: str = ""
    appraisal_policy: str = ""
    appraisal_policy_digest: str = ""
    release_policy_digest: str = ""
    attestation: str = ""
    denial: str = ""
    sequence: int = 0


class StoredFinding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One check as recorded, in the words of `cloister.rats.result.Finding`."""

    code: str
    question: str
    ok: bool
    message: str
    expected: str = ""
    actual: str = ""
    origin: str = ""
    hint: str = ""
    path: str = ""
    severity: str = ""

    @property
    def refuses(self) -> bool:
        """Whether this finding alone made the verdict a refusal."""
        return not self.ok and self.severity in ("", Severity.ERROR)


class DenialRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The whole truth about one denial, for the owner only.

    Attributes:
        id: `d-` and ten characters; all that the guest learns beside code, message and hint.
        at: aware UTC.
        stage: `auth`, `attest` or `resource`.
        code: dotted code of the primary cause.
        message: its words.
        path: place in the request.
        expected: expected value, shortened.
        actual: found value, shortened.
        hint: what to change.
        resource: path asked for.
        tee: technology.
        level: what the evidence proved.
        instance: identity of the chip or vTPM.
        init_data: digest of the init data.
        attestation: id of the Attestation Result whose findings belong to this denial.
        findings: every check that was made, of appraisal and of key release.
    """

    id: str
    at: datetime
    stage: str
    code: str
    message: str
    path: str = ""
    expected: str = ""
    actual: str = ""
    hint: str = ""
    resource: str = ""
    tee: str = ""
    level: str = ""
    instance: str = ""
    init_data: str = ""
    attestation: str = ""
    findings: tuple[StoredFinding, ...] = ()


class AppraisalRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An Attestation Result as kept with its evidence; more than the token says."""

    id: str
    at: datetime
    tee: str
    level: str
    instance: str
    init_data: str
    policy_id: str
    policy_digest: str
    tier: str
    registers: dict[str, str]
    findings: tuple[StoredFinding, ...]
    unchecked: tuple[str, ...]


class RecordStore:
    """Records of one database."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def record_release(self, row: AuditRow, *, seconds: float) -> None:
        """Make the audit row of a release durable. Returns only then; a caller releases nothing when this raises.

        Raises:
            Unavailable: the store failed or did not answer within `seconds`.
        """
        self._store.write(lambda connection: insert_audit(connection, row), seconds=seconds)

    def record_denial(self, record: DenialRecord, row: AuditRow) -> None:
        """Store a denial and its audit row.

        Raises:
            Unavailable: the store failed.
        """

        def work(connection: Connection) -> None:
            values = {"id": record.id, "at": to_micros(record.at), "stage": record.stage, "code": record.code}
            values |= {"resource": record.resource, "attestation": record.attestation}
            stored = connection.execute(_INSERT_DENIAL, {**values, "record": msgspec.json.encode(record)})
            insert_audit(connection, row)
            _prune_denials(connection, _sequence(stored))

        self._store.write(work)

    def denial(self, identity: str) -> DenialRecord:
        """Return a denial with the findings of its appraisal put before its own.

        Raises:
            Refused: there is none (`trust.denial.missing`).
            Unavailable: the store failed.
        """
        statement = select(denials.c.record).where(denials.c.id == identity)
        row = self._store.read(lambda connection: connection.execute(statement).scalar_one_or_none())
        if row is None:
            raise Refused(
                "trust.denial.missing",
                "no such denial",
                actual=identity[:40],
                hint=f"denials look like d-2xk7qmf4hb; the newest {DENIALS_KEPT} are kept",
            )
        record: DenialRecord = _decode(row, DenialRecord)
        appraisal = self.appraisal(record.attestation) if record.attestation else None
        if appraisal is None:
            return record
        return msgspec.structs.replace(record, findings=(*appraisal.findings, *record.findings))

    def appraisal(self, identity: str) -> AppraisalRecord | None:
        """Return an Attestation Result by id, None when it is not kept any more."""
        statement = select(evidence.c.result).where(evidence.c.id == identity)
        row = self._store.read(lambda connection: connection.execute(statement).scalar_one_or_none())
        if row is None:
            return None
        record: AppraisalRecord = _decode(row, AppraisalRecord)
        return record

    def evidence(self, identity: str) -> bytes | None:
        """Return the evidence an Attestation Result was made from, as it was received; None when not kept any more."""
        statement = select(evidence.c.body).where(evidence.c.id == identity)
        return self._store.read(lambda connection: connection.execute(statement).scalar_one_or_none())

    def last_audit(self) -> int:
        """Return the sequence number of the newest audit row, 0 when there is none."""
        statement = select(func.max(audit.c.sequence))
        return int(self._store.read(lambda connection: connection.execute(statement).scalar()) or 0)

    def list_audit(self, *, after: int = 0, limit: int = LISTED, init_data: str = "") -> tuple[AuditRow, ...]:
        """Return audit rows in order: those after a sequence number, of one pod's init data if it is given."""
        statement = select(audit).where(audit.c.sequence > after).order_by(audit.c.sequence).limit(limit)
        if init_data:
            statement = statement.where(audit.c.init_data == init_data)
        rows = self._store.read(lambda connection: connection.execute(statement).all())
        return tuple(_audit_row(row) for row in rows)


def store_appraisal(connection: Connection, record: AppraisalRecord, body: bytes) -> None:
    """Keep evidence and result, within the caller's transaction."""
    values = {"id": record.id, "at": to_micros(record.at), "tee": record.tee, "body": body}
    stored = connection.execute(_INSERT_EVIDENCE, {**values, "result": msgspec.json.encode(record)})
    connection.execute(_FORGET_EVIDENCE, {"oldest": _sequence(stored) - EVIDENCE_KEPT})


def stored_finding(finding: Finding) -> StoredFinding:
    """Return a finding in the form that records keep."""
    return StoredFinding(**finding.as_dict())


def new_denial_id() -> str:
    """Return `d-` and ten base32 characters: 50 random bits, so that ids cannot be guessed or counted."""
    return "d-" + _random_text()


def new_attestation_id() -> str:
    """Return `a-` and ten base32 characters."""
    return "a-" + _random_text()


def _random_text() -> str:
    return "".join(_ID_ALPHABET[octet % len(_ID_ALPHABET)] for octet in secrets.token_bytes(_ID_CHARS))


def insert_audit(connection: Connection, row: AuditRow) -> None:
    """Add an audit row, within the caller's transaction."""
    values = {item.name: getattr(row, item.name) for item in fields(row) if item.name not in ("at", "sequence")}
    connection.execute(_INSERT_AUDIT, {**values, "at": to_micros(row.at)})


def _prune_denials(connection: Connection, newest: int) -> None:
    if newest <= DENIALS_KEPT:
        return
    old = select(denials.c.id).where(denials.c.sequence <= newest - DENIALS_KEPT)
    connection.execute(delete(audit).where(audit.c.denial.in_(old), audit.c.decision == DENIED))
    connection.execute(delete(denials).where(denials.c.sequence <= newest - DENIALS_KEPT))


def _audit_row(row: Row[Any]) -> AuditRow:  # Any: the table's row type
    values = {item.name: getattr(row, item.name) for item in fields(AuditRow) if item.name != "at"}
    return AuditRow(at=from_micros(row.at), **values)


def _decode(data: bytes, kind: Any) -> Any:  # Any: msgspec's type argument and its instance
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as err:
        raise Unavailable("trust.store.failed", "a stored record is damaged", hint="restore a backup") from err


def _sequence(stored: CursorResult[Any]) -> int:  # Any: the table's row type
    if stored.inserted_primary_key is None:
        raise RuntimeError("the insert returned no key")
    return int(stored.inserted_primary_key[0])
