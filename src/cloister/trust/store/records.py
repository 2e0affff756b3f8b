"""What the service remembers about its decisions: audit rows, denials with their findings, evidence with its result.

An audit row of a release is committed before the release; releases are never deleted. Denials can be caused by
anybody who reaches the port, so the oldest go when there are too many; likewise evidence.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Row, bindparam, delete, func, select

from cloister.errors import Refused, Unavailable
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.rats.result import Finding, Severity
from cloister.trust.store.database import Store
from cloister.trust.store.deferred import defer
from cloister.trust.store.numbering import OF_TENANT, NumberedRows, insert_numbered, newest_number, number_of
from cloister.trust.store.prepared import Parameters, Prepared
from cloister.trust.store.schema import INT64, audit, denials, evidence
from cloister.trust.store.times import from_micros, to_micros

DENIALS_KEPT: Final = 20_000
EVIDENCE_KEPT: Final = 2_000
LISTED: Final = 1_000
RELEASED: Final = "released"
RENEWED: Final = "renewed"
DENIED: Final = "denied"
_ID_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz234567"  # RFC 4648 base32, lower case
_ID_CHARS: Final = 10

# Made once: building a statement costs more than running it.
_INSERT_AUDIT: Final = NumberedRows(audit)
_INSERT_DENIAL: Final = insert_numbered(denials)
_INSERT_EVIDENCE: Final = NumberedRows(evidence)
_FORGET_EVIDENCE: Final = Prepared(
    delete(evidence).where(
        evidence.c.tenant == bindparam(OF_TENANT),
        evidence.c.sequence <= newest_number(evidence, bindparam(OF_TENANT)) - bindparam("kept", type_=INT64),
    )
)
_ABSENT: Final = "\ufffd"  # U+FFFD: what cannot be stored stays visible as something


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """Who got or was denied what, when, under which code.

    Attributes:
        at: aware UTC.
        decision: `released`, `renewed` or `denied`.
        code: dotted code; `trust.released` for a release, `trust.renewed` for one within a lease.
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
        request: correlation id of the request, empty when there was none.
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
    request: str = ""
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
        request: correlation id of the request.
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
    request: str = ""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedResource:
    """A resource that somebody got.

    Attributes:
        holder: thumbprint of the guest's key, or id of the result.
        resource: path.
        version: the newest released.
        at: of the newest release, aware UTC.
    """

    holder: str
    resource: str
    version: int
    at: datetime


class RecordStore:
    """Records of one tenant.

    Args:
        store: the database.
        tenant: whose.
    """

    def __init__(self, store: Store, *, tenant: str = DEFAULT_TENANT) -> None:
        self._store = store
        self._tenant = tenant

    def record_denial(
        self, record: DenialRecord, row: AuditRow, besides: Callable[[Connection], object] | None = None
    ) -> None:
        """Store a denial and its audit row, and do what `besides` does in the same transaction.

        Raises:
            Unavailable: the store failed.
        """

        def work(connection: Connection) -> None:
            values = {"id": record.id, "at": to_micros(record.at), "stage": record.stage, "code": record.code}
            values |= {"resource": record.resource, "attestation": record.attestation}
            whole = {**_storable(self._tenant, values), OF_TENANT: self._tenant, "record": msgspec.json.encode(record)}
            newest = number_of(_INSERT_DENIAL.row(connection, whole))
            store_audit(connection, self._tenant, row)
            if besides is not None:
                besides(connection)
            _prune_denials(connection, self._tenant, newest)

        self._store.write(work)

    def denial(self, identity: str) -> DenialRecord:
        """Return a denial with the findings of its appraisal put before its own.

        Raises:
            Refused: there is none (`trust.denial.missing`).
            Unavailable: the store failed.
        """
        statement = select(denials.c.record).where(denials.c.tenant == self._tenant, denials.c.id == identity)
        row = self._store.read(lambda connection: connection.execute(statement).scalar_one_or_none())
        if row is None:
            raise Refused(
                "trust.denial.missing",
                "no such denial",
                actual=identity[:40],
                hint=f"denials look like d-2xk7qmf4hb; the newest {DENIALS_KEPT} are kept",
            )
        record: DenialRecord = decode_record(row, DenialRecord)
        appraisal = self.appraisal(record.attestation) if record.attestation else None
        if appraisal is None:
            return record
        return msgspec.structs.replace(record, findings=(*appraisal.findings, *record.findings))

    def appraisal(self, identity: str) -> AppraisalRecord | None:
        """Return an Attestation Result by id, None when it is not kept any more."""
        statement = select(evidence.c.result).where(evidence.c.tenant == self._tenant, evidence.c.id == identity)
        row = self._store.read(lambda connection: connection.execute(statement).scalar_one_or_none())
        if row is None:
            return None
        record: AppraisalRecord = decode_record(row, AppraisalRecord)
        return record

    def evidence(self, identity: str) -> bytes | None:
        """Return the evidence an Attestation Result was made from, as it was received; None when not kept any more."""
        statement = select(evidence.c.body).where(evidence.c.tenant == self._tenant, evidence.c.id == identity)
        return self._store.read(lambda connection: connection.execute(statement).scalar_one_or_none())

    def list_released(self, holders: Sequence[str], *, by_guest: bool) -> tuple[ReleasedResource, ...]:
        """Return what was released to guests, or under Attestation Results: each resource once.

        Args:
            holders: thumbprints of guest keys, or ids of results; at most `LISTED` count.
            by_guest: which of the two.
        """
        columns = audit.c
        holder = columns.guest_key if by_guest else columns.attestation
        theirs = (
            columns.tenant == self._tenant,
            columns.decision.in_((RELEASED, RENEWED)),
            holder.in_(holders[:LISTED]),
        )
        newest = (func.max(columns.resource_version).label("version"), func.max(columns.at).label("at"))
        grouped = select(holder.label("holder"), columns.resource, *newest).where(*theirs)
        statement = grouped.group_by(holder, columns.resource).order_by(holder, columns.resource)
        rows = self._store.read(lambda connection: connection.execute(statement).all())
        return tuple(
            ReleasedResource(holder=row.holder, resource=row.resource, version=row.version, at=from_micros(row.at))
            for row in rows
        )

    def last_audit(self) -> int:
        """Return the sequence number of the newest audit row, 0 when there is none."""
        statement = select(func.max(audit.c.sequence)).where(audit.c.tenant == self._tenant)
        return int(self._store.read(lambda connection: connection.execute(statement).scalar()) or 0)

    def list_audit(self, *, after: int = 0, limit: int = LISTED, init_data: str = "") -> tuple[AuditRow, ...]:
        """Return audit rows in order: those after a sequence number, of one pod's init data if it is given."""
        columns = audit.c
        later = select(audit).where(columns.tenant == self._tenant, columns.sequence > after)
        statement = later.order_by(columns.sequence).limit(limit)
        if init_data:
            statement = statement.where(audit.c.init_data == init_data)
        rows = self._store.read(lambda connection: connection.execute(statement).all())
        return tuple(audit_row_of(row) for row in rows)


def appraisal_row(record: AppraisalRecord, body: bytes, *, binding: bytes, tenant: str = DEFAULT_TENANT) -> Parameters:
    """Return evidence with its result as `store_appraisal` takes it.

    Args:
        record: the result.
        body: the evidence as received.
        binding: what it was bound to, sealed (`cloister.trust.store.evidence`).
        tenant: whose.
    """
    values = {"id": record.id, "at": to_micros(record.at), "tee": record.tee}
    kept = {"body": body, "result": msgspec.json.encode(record), "binding": binding}
    return {**_storable(tenant, values), **kept}


def store_appraisal(connection: Connection, row: Parameters) -> None:
    """Keep evidence and result, at the end of the caller's transaction."""
    defer(connection, _insert_evidence, row)


def stored_finding(finding: Finding) -> StoredFinding:
    """Return a finding in the form that records keep."""
    return StoredFinding(
        code=finding.code,
        question=str(finding.question),
        ok=finding.ok,
        message=finding.message,
        expected=finding.expected,
        actual=finding.actual,
        origin=finding.origin,
        hint=finding.hint,
        path=finding.path,
        severity="" if finding.ok else str(finding.severity),
    )


def new_denial_id() -> str:
    """Return `d-` and ten base32 characters: 50 random bits, so that ids cannot be guessed or counted."""
    return random_id("d")


def new_attestation_id() -> str:
    """Return `a-` and ten base32 characters."""
    return random_id("a")


def random_id(kind: str) -> str:
    """Return a letter, a dash and ten base32 characters: 50 random bits."""
    text = "".join(_ID_ALPHABET[octet % len(_ID_ALPHABET)] for octet in secrets.token_bytes(_ID_CHARS))
    return f"{kind}-{text}"


def store_audit(connection: Connection, tenant: str, row: AuditRow) -> None:
    """Keep an audit row, at the end of the caller's transaction: what it is about happens only once that is durable."""
    values = {item.name: getattr(row, item.name) for item in fields(row) if item.name not in ("at", "sequence")}
    defer(connection, _INSERT_AUDIT.run, _storable(tenant, {**values, "at": to_micros(row.at)}))


def _insert_evidence(connection: Connection, rows: Sequence[Parameters]) -> None:
    _INSERT_EVIDENCE.run(connection, rows)
    for tenant in {row["tenant"] for row in rows}:
        _FORGET_EVIDENCE.run(connection, {OF_TENANT: tenant, "kept": EVIDENCE_KEPT})


def _storable(tenant: str, values: dict[str, Any]) -> dict[str, Any]:  # Any: as the columns take them
    """Return the parameters of a numbered row; guests chose some of the words, and PostgreSQL keeps no NUL.

    Raises:
        UnicodeEncodeError: no text that a database keeps; here, where it fails nobody else's write.
    """
    words = {name: item.replace("\0", _ABSENT) if isinstance(item, str) else item for name, item in values.items()}
    "".join(item for item in words.values() if isinstance(item, str)).encode()
    return {**words, "tenant": tenant}


def _prune_denials(connection: Connection, tenant: str, newest: int) -> None:
    if newest <= DENIALS_KEPT:
        return
    old = (denials.c.tenant == tenant, denials.c.sequence <= newest - DENIALS_KEPT)
    theirs = (
        audit.c.tenant == tenant,
        audit.c.decision == DENIED,
        audit.c.denial.in_(select(denials.c.id).where(*old)),
    )
    connection.execute(delete(audit).where(*theirs))
    connection.execute(delete(denials).where(*old))


def audit_row_of(row: Row[Any]) -> AuditRow:  # Any: the table's row type
    """Return a row of the audit table, typed."""
    values = {item.name: getattr(row, item.name) for item in fields(AuditRow) if item.name != "at"}
    return AuditRow(at=from_micros(row.at), **values)


def decode_record(data: bytes, kind: Any) -> Any:  # Any: msgspec's type argument and its instance
    """Return a stored record.

    Raises:
        Unavailable: it is damaged (`trust.store.failed`).
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as err:
        raise Unavailable("trust.store.failed", "a stored record is damaged", hint="restore a backup") from err
