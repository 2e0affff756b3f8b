"""What happened: audit rows, denials, evidence, administrative calls. Reading it changes none of it."""

from __future__ import annotations

from dataclasses import dataclass

from cloister.trust.access import Permission
from cloister.trust.administration.desk import Desk, TenantStores
from cloister.trust.administration.references import missing_evidence
from cloister.trust.store.calls import CallRow
from cloister.trust.store.queries import DenialRow, RecordFilter
from cloister.trust.store.records import AppraisalRecord, AuditRow, DenialRecord


@dataclass(frozen=True, slots=True)
class Records:
    """Records of one tenant, as one principal may read them."""

    desk: Desk

    def audit(self, wanted: RecordFilter, *, after: int, limit: int) -> tuple[AuditRow, ...]:
        """Return audit rows in order, after a sequence number."""
        return self.desk.look(
            Permission.AUDIT_READ, "audit", lambda stores: stores.queries.audit(wanted, after=after, limit=limit)
        )

    def last_audit(self) -> int:
        """Return the sequence number of the newest audit row, 0 when there is none."""
        return self.desk.look(Permission.AUDIT_READ, "audit", lambda stores: stores.records.last_audit())

    def denials(self, wanted: RecordFilter, *, after: int, limit: int) -> tuple[DenialRow, ...]:
        """Return denials in order, after a sequence number, without their findings."""
        return self.desk.look(
            Permission.AUDIT_READ, "denials", lambda stores: stores.queries.denials(wanted, after=after, limit=limit)
        )

    def denial(self, identity: str) -> DenialRecord:
        """Return the whole record of a denial, with every finding.

        Raises:
            Refused: there is none (`trust.denial.missing`).
        """
        return self.desk.look(Permission.AUDIT_READ, identity, lambda stores: stores.records.denial(identity))

    def evidence(self, identity: str) -> tuple[AppraisalRecord, bytes]:
        """Return an Attestation Result and the evidence it was made from, JSON.

        Raises:
            Refused: it is not kept any more (`trust.evidence.missing`).
        """

        def work(stores: TenantStores) -> tuple[AppraisalRecord, bytes]:
            record, body = stores.records.appraisal(identity), stores.records.evidence(identity)
            if record is None or body is None:
                raise missing_evidence(identity)
            return record, body

        return self.desk.look(Permission.EVIDENCE_READ, identity, work)

    def calls(self, *, after: int, limit: int) -> tuple[CallRow, ...]:
        """Return administrative calls in order, after a sequence number."""
        return self.desk.look(
            Permission.AUDIT_READ, "calls", lambda stores: stores.calls.list(after=after, limit=limit)
        )
