"""Kept evidence with all that judging it again needs: what it was bound to in its session, sealed.

Nonce and recovered credential of a session are no secrets any more once the session is spent; they are sealed all the
same, so that a copied database holds none of either and nobody has to argue about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec
from sqlalchemy import func, select

from cloister.protocol.kbs import VERSION, RuntimeData
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.trust.rowseal import RowSealer, SealedColumn
from cloister.trust.store.database import Store
from cloister.trust.store.records import LISTED, AppraisalRecord, decode_record
from cloister.trust.store.schema import evidence
from cloister.trust.store.tenancy import sealed_name

_PURPOSE: Final = "evidence binding"


class BindingRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What evidence was bound to in its session.

    Attributes:
        runtime_data: nonce and guest key as received.
        additional_evidence: text of the map for further devices, as received.
        init_data: `algorithm:digest`, empty when the guest sent none.
        session_secret: what credential activation must have recovered.
        version: of the protocol, which says how all of it enters the evidence.
    """

    runtime_data: RuntimeData
    additional_evidence: str
    init_data: str
    session_secret: bytes
    version: str = VERSION

    def __repr__(self) -> str:
        return "BindingRecord()"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class StoredEvidence:
    """Evidence as kept, with its result.

    Attributes:
        sequence: position.
        record: the result of then.
        body: the evidence as it was received, JSON.
        binding: what it was bound to; None when an older version kept it.
    """

    sequence: int
    record: AppraisalRecord
    body: bytes
    binding: BindingRecord | None


class EvidenceStore:
    """Kept evidence of one tenant.

    Args:
        store: the database.
        sealer: opens bindings.
        tenant: whose.
    """

    def __init__(self, store: Store, sealer: RowSealer, *, tenant: str = DEFAULT_TENANT) -> None:
        self._store = store
        self._sealer = sealer
        self._tenant = tenant

    def list(self, *, after: int = 0, limit: int = LISTED) -> tuple[StoredEvidence, ...]:
        """Return kept evidence in order: that after a sequence number.

        Raises:
            Unavailable: the store failed, or a binding does not open.
        """
        columns = (evidence.c.sequence, evidence.c.result, evidence.c.body, evidence.c.binding)
        later = select(*columns).where(evidence.c.tenant == self._tenant, evidence.c.sequence > after)
        statement = later.order_by(evidence.c.sequence).limit(limit)
        rows = self._store.read(lambda connection: connection.execute(statement).all())
        return tuple(self._kept(row.sequence, row.result, row.body, row.binding) for row in rows)

    def count(self) -> int:
        """Return how much evidence is kept."""
        statement = select(func.count()).select_from(evidence).where(evidence.c.tenant == self._tenant)
        return int(self._store.read(lambda connection: connection.execute(statement).scalar_one()))

    def _kept(self, sequence: int, result: bytes, body: bytes, sealed: bytes | None) -> StoredEvidence:
        record: AppraisalRecord = decode_record(result, AppraisalRecord)
        binding: BindingRecord | None = None
        if sealed is not None:
            name = sealed_name(self._tenant, record.id)
            binding = decode_record(self._sealer.open(_PURPOSE, name, sealed), BindingRecord)
        return StoredEvidence(sequence=sequence, record=record, body=body, binding=binding)


def seal_binding(sealer: RowSealer, attestation: str, binding: BindingRecord, *, tenant: str = DEFAULT_TENANT) -> bytes:
    """Return a binding as `store_appraisal` takes it.

    Raises:
        Unavailable: the keys are not had now.
    """
    return sealer.seal(_PURPOSE, sealed_name(tenant, attestation), msgspec.json.encode(binding))


EVIDENCE_ROWS: Final = SealedColumn(
    purpose=_PURPOSE, table=evidence, column="binding", row_of=lambda row: sealed_name(row.tenant, row.id)
)
