"""Routes of what happened: audit rows, denials, administrative calls, evidence."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from litestar.params import JSONBody

from cloister.errors import FormatRefused, Refused
from cloister.protocol.admin.base import PAGE
from cloister.protocol.admin.reappraisal import SurveyPage, SurveyRequest
from cloister.protocol.admin.records import AuditEntry, AuditPage, CallPage, Denial, DenialPage, Evidence
from cloister.trust.access import Permission
from cloister.trust.store.queries import RecordFilter
from cloister.trust.web.admin import wire
from cloister.trust.web.admin.entrance import Admitted, posting, reading
from cloister.trust.web.admin.parameters import After, Limit, PathNumber, PathWord, Since, Until, word

Code = Annotated[str, word("code", "Dotted code.")]
ResourceWord = Annotated[str, word("resource", "Path; with a trailing `*`, what begins like that.")]
Attestation = Annotated[str, word("attestation", "Id of evidence.")]


@reading("/audit", Permission.AUDIT_READ, "Who got or was denied what, when, under which code")
def list_audit(
    office: Admitted,
    after: After = 0,
    limit: Limit = PAGE,
    since: Since = None,
    until: Until = None,
    decision: Annotated[str, word("decision", "released or denied.")] = "",
    code: Code = "",
    resource: ResourceWord = "",
    init_data: Annotated[str, word("init_data", "Digest of a pod's init data.")] = "",
    attestation: Attestation = "",
    level: Annotated[str, word("level", "hardware, measured or simulated.")] = "",
) -> AuditPage:
    """Return audit rows in order."""
    wanted = RecordFilter(
        decision=decision,
        code=code,
        resource=resource,
        init_data=init_data,
        attestation=attestation,
        level=level,
        since=_zoned(since, "since"),
        until=_zoned(until, "until"),
    )
    rows = office.records.audit(wanted, after=after, limit=limit)
    return AuditPage(rows=[wire.audit_entry(row) for row in rows], next=rows[-1].sequence if rows else after)


@reading("/audit/{sequence:int}", Permission.AUDIT_READ, "One audit row")
def get_audit(office: Admitted, sequence: PathNumber) -> AuditEntry:
    """Return one audit row."""
    for row in office.records.audit(RecordFilter(), after=sequence - 1, limit=1):
        if row.sequence == sequence:
            return wire.audit_entry(row)
    raise Refused("trust.audit.missing", "no such audit row", actual=str(sequence)[:20])


@reading("/denials", Permission.AUDIT_READ, "What was denied")
def list_denials(
    office: Admitted,
    after: After = 0,
    limit: Limit = PAGE,
    since: Since = None,
    until: Until = None,
    code: Code = "",
    resource: ResourceWord = "",
    attestation: Attestation = "",
    stage: Annotated[str, word("stage", "auth, attest, resource or admin.")] = "",
) -> DenialPage:
    """Return denials in order, without findings."""
    wanted = RecordFilter(
        code=code,
        resource=resource,
        attestation=attestation,
        stage=stage,
        since=_zoned(since, "since"),
        until=_zoned(until, "until"),
    )
    rows = office.records.denials(wanted, after=after, limit=limit)
    return DenialPage(denials=[wire.denial_summary(row) for row in rows], next=rows[-1].sequence if rows else after)


@reading("/denials/{denial:str}", Permission.AUDIT_READ, "The whole record of a denial")
def get_denial(office: Admitted, denial: PathWord) -> Denial:
    """Return a denial with every finding."""
    return wire.denial(office.records.denial(denial))


@reading("/calls", Permission.AUDIT_READ, "Administrative calls: who did what")
def list_calls(office: Admitted, after: After = 0, limit: Limit = PAGE) -> CallPage:
    """Return administrative calls in order."""
    rows = office.records.calls(after=after, limit=limit)
    return CallPage(calls=[wire.call(row) for row in rows], next=rows[-1].sequence if rows else after)


@reading("/evidence/{attestation:str}", Permission.EVIDENCE_READ, "An Attestation Result and its evidence")
def get_evidence(office: Admitted, attestation: PathWord) -> Evidence:
    """Return a result with the evidence it was made from."""
    record, body = office.records.evidence(attestation)
    return wire.evidence(record, body)


def _zoned(time: datetime | None, name: str) -> datetime | None:
    if time is not None and time.tzinfo is None:
        raise FormatRefused(
            "trust.request.malformed", "time has no time zone", path=name, expected="2030-01-01T00:00:00Z"
        )
    return time


@posting("/surveys", Permission.EVIDENCE_READ, "Kept evidence judged again: what would fail?")
def survey(office: Admitted, data: JSONBody[SurveyRequest]) -> SurveyPage:
    """Judge a page of kept evidence by another policy, other reference values, or at another time; nothing changes."""
    answer = office.surveys.run(
        policy=data.policy.encode(),
        policy_name=data.policy_name,
        appraisal_policy=data.appraisal_policy,
        references=data.references.encode(),
        at=_zoned(data.at, "at"),
        every=data.every,
        after=data.after,
        limit=data.limit,
    )
    return wire.survey_page(answer, limit=data.limit)


ROUTES = (survey, list_audit, get_audit, list_denials, get_denial, list_calls, get_evidence)
