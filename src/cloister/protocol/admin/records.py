"""What happened: audit rows, denials, calls, evidence."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from cloister.protocol.admin.base import (
    Answer,
    FindingWire,
)


class AuditEntry(Answer, frozen=True):
    """Who got or was denied what, when, under which code; members as `cloister.trust.store.records.AuditRow`."""

    sequence: int
    at: datetime
    decision: str
    code: str
    resource: str
    resource_version: int
    tee: str
    level: str
    instance: str
    init_data: str
    pcr00: str
    guest_key: str
    appraisal_policy: str
    appraisal_policy_digest: str
    release_policy_digest: str
    attestation: str
    denial: str


class AuditPage(Answer, frozen=True):
    """Audit rows in order. `next` is the `after` of the next page; at the end it is the newest row's, to ask again."""

    rows: list[AuditEntry]
    next: int


class Denial(Answer, frozen=True):
    """The whole record of one denial."""

    id: str
    at: datetime
    stage: str
    code: str
    message: str
    findings: list[FindingWire]
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


class DenialPage(Answer, frozen=True):
    """Denials in order, without findings."""

    denials: list[DenialSummary]
    next: int


class DenialSummary(Answer, frozen=True):
    """One line of a list of denials."""

    sequence: int
    id: str
    at: datetime
    stage: str
    code: str
    resource: str
    attestation: str


class Call(Answer, frozen=True):
    """One administrative call.

    Attributes:
        sequence: position.
        at: when.
        principal: id of the token.
        name: of its holder.
        role: of the token.
        action: the permission it took.
        subject: what it was about.
        code: `ok`, `proposed`, or the code of the refusal.
        denial: id of the record of a refusal for want of permission.
    """

    sequence: int
    at: datetime
    principal: str
    name: str
    role: str
    action: str
    subject: str
    code: str
    denial: str


class CallPage(Answer, frozen=True):
    """Administrative calls in order."""

    calls: list[Call]
    next: int


class Evidence(Answer, frozen=True):
    """An Attestation Result and the evidence it was made from.

    Attributes:
        id: of the result.
        at: when it was made.
        tee: technology.
        level: what it proved.
        instance: identity of the chip or vTPM.
        init_data: digest of the init data.
        policy_id: appraisal policy.
        policy_digest: of the text applied.
        tier: the verdict.
        registers: measured registers, hex.
        findings: every check.
        evidence: as the guest sent it; null when it is not kept any more.
    """

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
    findings: list[FindingWire]
    evidence: Any  # Any: JSON of a stranger
