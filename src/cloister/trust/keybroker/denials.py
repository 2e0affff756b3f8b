"""Denials: what was found goes whole to the owner's record, and a number goes to the guest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from sqlalchemy import Connection

from cloister.errors import Refused
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.rats.result import Finding
from cloister.trust.events import loggable
from cloister.trust.keybroker.answers import Answer, error_answer
from cloister.trust.keybroker.token import VerifiedToken
from cloister.trust.roles import NO_EVENTS, Events, LogEvent, PluginDenied, Undecided
from cloister.trust.store.records import DENIED, AuditRow, DenialRecord, RecordStore, new_denial_id, stored_finding
from cloister.trust.tracing import current, mark


@dataclass(slots=True, kw_only=True)
class RequestContext:
    """What became known about one request before it was decided; filled in step by step.

    Attributes:
        stage: `auth`, `attest` or `resource`.
        at: aware UTC.
        tee: technology the guest announced.
        init_data: digest of the init data it sent.
        resource: path it asked for.
        token: its verified Attestation Result.
        findings: of the key-release decision.
        release_policy_digest: of the text decided by.
        spend: spends the nonce of the session that attests, in the transaction that records what became of it.
        request: correlation id.
    """

    stage: str
    at: datetime
    tee: str = ""
    init_data: str = ""
    resource: str = ""
    token: VerifiedToken | None = None
    findings: Sequence[Finding] = ()
    release_policy_digest: str = ""
    spend: Callable[[Connection], object] | None = None
    request: str = field(default_factory=lambda: current().identity)  # rows are made in the store's thread

    def audit_row(self, *, decision: str, code: str, denial: str = "", resource_version: int = 0) -> AuditRow:
        """Return the audit row for a decision about this request."""
        row = AuditRow(
            at=self.at,
            decision=decision,
            code=code,
            resource=self.resource,
            resource_version=resource_version,
            tee=self.tee,
            init_data=self.init_data,
            release_policy_digest=self.release_policy_digest,
            denial=denial,
            request=self.request,
        )
        token = self.token
        if token is None:
            return row
        return replace(
            row,
            tee=token.tee,
            level=token.level.value,
            instance=token.instance,
            init_data=token.init_data,
            pcr00=token.pcr00,
            guest_key=token.guest_key_id,
            appraisal_policy=token.policy_id,
            appraisal_policy_digest=token.policy_digest,
            attestation=token.attestation,
        )


class DenialBook:
    """Records denials and answers them.

    Args:
        records: where they are kept.
        tenant: whose.
        events: told of each, in its transaction.
    """

    def __init__(self, records: RecordStore, *, tenant: str = DEFAULT_TENANT, events: Events = NO_EVENTS) -> None:
        self._records = records
        self._tenant = tenant
        self._events = events

    def deny(self, error: Refused | Undecided, context: RequestContext) -> Answer:
        """Store what was found and return the short answer.

        Raises:
            Unavailable: the store failed; nothing was released either way.
        """
        denial = new_denial_id()
        if not current().tee:
            mark(tee=context.tee)
        findings, hint = context.findings, error.hint
        if isinstance(error, Undecided):
            findings, hint = error.findings, error.remedy
        elif isinstance(error, PluginDenied):
            findings = error.findings
        row = context.audit_row(decision=DENIED, code=error.code, denial=denial)
        record = DenialRecord(
            id=denial,
            at=context.at,
            stage=context.stage,
            code=error.code,
            message=error.message,
            path=error.path,
            expected=error.expected,
            actual=error.actual,
            hint=hint,
            resource=row.resource,
            tee=row.tee,
            level=row.level,
            instance=row.instance,
            init_data=row.init_data,
            attestation=row.attestation,
            findings=tuple(stored_finding(finding) for finding in findings),
            request=context.request,
        )
        # Without session and token anybody can cause denials: they would be the log's bulk, and say nothing.
        proven = bool(row.attestation) or (context.stage == "attest" and bool(row.tee))

        def besides(connection: Connection) -> None:
            if context.spend is not None:
                context.spend(connection)
            if proven:
                self._append(connection, row)

        self._records.record_denial(record, row, besides)
        return error_answer(error, stage=context.stage, denial=denial)

    def _append(self, connection: Connection, row: AuditRow) -> object:
        fields = event_fields(row)
        return self._events.append(connection, LogEvent(kind="denial", at=row.at, tenant=self._tenant, fields=fields))


def event_fields(row: AuditRow) -> dict[str, str]:
    """Return what the release log is told of a decision: who, what, under which code and rules."""
    fields = {
        "resource": row.resource,
        "resource_version": str(row.resource_version),
        "guest_key": row.guest_key,
        "init_data": row.init_data,
        "tee": row.tee,
        "level": row.level,
        "instance": row.instance,
        "attestation": row.attestation,
        "appraisal_policy_digest": row.appraisal_policy_digest,
        "release_policy_digest": row.release_policy_digest,
        "code": row.code,
        "denial": row.denial,
    }
    return {name: loggable(value) for name, value in fields.items() if value}
