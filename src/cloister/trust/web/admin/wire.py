"""From what the service keeps to what the administration API says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from typing import Any

import msgspec

from cloister.protocol.admin.access import Changed, Demand, Proposal, Tenant, Token
from cloister.protocol.admin.base import FindingWire
from cloister.protocol.admin.identities import IdentityKey
from cloister.protocol.admin.policies import DryRunAnswer, DryRunCase, PolicyVersion, ResourceMeta
from cloister.protocol.admin.reappraisal import ChangedFinding, Held, SurveyCase, SurveyPage
from cloister.protocol.admin.records import AuditEntry, Call, Denial, DenialSummary, Evidence
from cloister.protocol.admin.references import Publisher, ReferenceEvent, ReferenceValue, Root
from cloister.rats.endorsement import TrustedRoot
from cloister.rats.reference import entry_to_wire
from cloister.trust.administration.approvals import Outcome, ProposalView
from cloister.trust.administration.rehearsal import Rehearsal
from cloister.trust.administration.surveys import SurveyAnswer
from cloister.trust.refvalues import RegisteredValue
from cloister.trust.store.access import StoredToken
from cloister.trust.store.calls import CallRow
from cloister.trust.store.endorsers import root_id
from cloister.trust.store.identitykeys import IdentityKeyRow
from cloister.trust.store.policies import StoredPolicy
from cloister.trust.store.publishers import ReferenceChange, StoredPublisher
from cloister.trust.store.queries import DenialRow
from cloister.trust.store.records import AppraisalRecord, AuditRow, DenialRecord, StoredFinding, stored_finding
from cloister.trust.store.resources import ResourceEntry
from cloister.trust.store.tenants import StoredTenant
from cloister.trust.verifier.survey import Surveyed
from cloister.wire.base64 import encode_b64


def resource_meta(entry: ResourceEntry) -> ResourceMeta:
    """Return a resource without content."""
    return ResourceMeta(path=str(entry.path), version=entry.version, updated_at=entry.updated_at)


def policy_version(stored: StoredPolicy) -> PolicyVersion:
    """Return one version of a policy, rule or demand."""
    return PolicyVersion(
        name=stored.name,
        version=stored.version,
        digest=stored.digest,
        text=stored.text.decode("utf-8", "replace"),
        created_at=stored.created_at,
    )


def changed(outcome: Outcome) -> Changed:
    """Return what became of a change that may have to wait for approvals."""
    if isinstance(outcome, ProposalView):
        return Changed(proposal=proposal(outcome))
    return Changed(applied=policy_version(outcome))


def proposal(view: ProposalView) -> Proposal:
    """Return a proposal as it stands."""
    stored = view.proposal
    return Proposal(
        id=stored.id,
        kind=stored.kind,
        prefix=stored.prefix,
        state=view.state,
        demands=[Demand(prefix=str(demand.prefix), need=demand.need, of=list(demand.of)) for demand in view.demands],
        approved_by=list(stored.approved_by),
        created_by=stored.created_by,
        created_at=stored.created_at,
        expires_at=stored.expires_at,
        digest=stored.digest,
        document=msgspec.to_builtins(view.document),
    )


def reference_value(value: RegisteredValue, names: dict[str, str], *, at: datetime) -> ReferenceValue:
    """Return an entry with where it came from; `names` are publishers by key id."""
    source = value.source
    key = source.publisher if source is not None else ""
    return ReferenceValue(
        entry=entry_to_wire(value.entry),
        signed=value.signed,
        publisher=names.get(key, ""),
        key_id=key,
        reference_set=source.reference_set if source is not None else "",
        set_version=source.set_version if source is not None else 0,
        expired=value.entry.not_after <= at,
    )


def reference_event(change: ReferenceChange) -> ReferenceEvent:
    """Return one line of the history of reference values."""
    return ReferenceEvent(
        sequence=change.sequence,
        at=change.at,
        change=change.change,
        id=change.id,
        by=change.name,
        key_id=change.publisher,
        reference_set=change.reference_set,
        set_version=change.set_version,
    )


def publisher(stored: StoredPublisher) -> Publisher:
    """Return a publisher."""
    return Publisher(
        key_id=stored.key_id, name=stored.name, pem=stored.pem.decode("ascii"), created_at=stored.created_at
    )


def root(trusted: TrustedRoot) -> Root:
    """Return a trusted root."""
    return Root(
        id=root_id(trusted),
        tee=trusted.tee,
        level=trusted.level.value,
        name=trusted.name,
        der=encode_b64(trusted.der),
        instance=trusted.instance,
    )


def tenant(stored: StoredTenant) -> Tenant:
    """Return a tenant."""
    return Tenant(id=stored.id, note=stored.note, created_at=stored.created_at, disabled=stored.disabled_at is not None)


def token(stored: StoredToken) -> Token:
    """Return a token without its hash."""
    return Token(
        id=stored.id,
        name=stored.name,
        role=stored.role,
        tenant=stored.tenant,
        created_at=stored.created_at,
        expires_at=stored.expires_at,
        revoked_at=stored.revoked_at,
        created_by=stored.created_by,
    )


def audit_entry(row: AuditRow) -> AuditEntry:
    """Return one audit row."""
    values = {name: value for name, value in asdict(row).items() if name in AuditEntry.__struct_fields__}
    return AuditEntry(**values)


def denial_summary(row: DenialRow) -> DenialSummary:
    """Return one line of a list of denials."""
    return DenialSummary(**asdict(row))


def denial(record: DenialRecord) -> Denial:
    """Return the whole record of a denial."""
    values: dict[str, Any] = {  # Any: as the record has them
        name: getattr(record, name) for name in Denial.__struct_fields__ if name != "findings"
    }
    return Denial(findings=findings(record.findings), **values)


def findings(stored: Iterable[StoredFinding]) -> list[FindingWire]:
    """Return checks as recorded."""
    return [FindingWire(**{name: getattr(item, name) for name in FindingWire.__struct_fields__}) for item in stored]


def call(row: CallRow) -> Call:
    """Return one administrative call."""
    return Call(**asdict(row))


def evidence(record: AppraisalRecord, body: bytes) -> Evidence:
    """Return an Attestation Result with its evidence."""
    values: dict[str, Any] = {  # Any: as the record has them
        name: getattr(record, name) for name in Evidence.__struct_fields__ if name not in ("findings", "evidence")
    }
    return Evidence(findings=findings(record.findings), evidence=msgspec.json.decode(body), **values)


def dry_run(rehearsal: Rehearsal) -> DryRunAnswer:
    """Return what a rule would change."""
    return DryRunAnswer(
        tried=rehearsal.tried,
        changes=[
            DryRunCase(
                sequence=item.decision.sequence,
                at=item.decision.at,
                resource=str(item.decision.path),
                init_data=item.decision.guest.init_data,
                level=item.decision.guest.level.value,
                attestation=item.decision.attestation,
                was=item.decision.was.value,
                would=item.would.value,
                rule=item.rule,
                findings=findings(stored_finding(finding) for finding in item.why),
            )
            for item in rehearsal.changed
        ],
    )


def identity_key(row: IdentityKeyRow) -> IdentityKey:
    """Return a key of a trust domain, without its private half."""
    return IdentityKey(**{name: getattr(row, name) for name in IdentityKey.__struct_fields__})


def survey_page(answer: SurveyAnswer, *, limit: int) -> SurveyPage:
    """Return results judged again."""
    more = len(answer.results) == limit
    return SurveyPage(
        at=answer.at,
        kept=answer.kept,
        next=answer.results[-1].sequence if more else 0,
        results=[_survey_case(item) for item in answer.results],
    )


def _survey_case(item: Surveyed) -> SurveyCase:
    result = item.result
    return SurveyCase(
        attestation=result.attestation,
        at=result.at,
        tee=result.tee,
        level=result.level,
        instance=result.instance,
        init_data=result.init_data,
        before=result.before.value,
        after=result.after.value,
        fails=result.fails,
        remedy=result.remedy,
        changes=[
            ChangedFinding(
                code=change.code,
                before=findings([change.before])[0] if change.before is not None else None,
                after=findings([change.after])[0] if change.after is not None else None,
            )
            for change in result.changes
        ],
        releases=[Held(resource=row.resource, version=row.version, at=row.at) for row in item.releases],
        lease_until=item.lease_until,
    )
