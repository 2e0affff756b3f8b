"""Messages of the administration API, version 1: what an owner's tools and the trust service say to each other.

Requests refuse unknown fields and lengths above their ceilings; answers are what `cloister ... --output json` prints.
Times are aware UTC in RFC 3339, binary content is standard base64, digests are `sha256:` and hex. Errors are problem
details (RFC 9457) with the members of `cloister.errors`. Pure: no input, no output.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from cloister.rats.reference import ReferenceEntryWire
from cloister.wire.limits import CERTIFICATE_BYTES, POLICY_BYTES, REFERENCE_SET_BYTES, RESOURCE_BYTES

PREFIX: Final = "/admin/v1"
SCHEMA: Final = 1
PROBLEM_TYPE: Final = "application/problem+json"
PAGE: Final = 200  # rows of one answer, unless fewer are asked for
PAGE_CEILING: Final = 1000
DAYS_CEILING: Final = 3650
NAME_CHARS: Final = 64
NOTE_CHARS: Final = 200
REQUEST_BYTES: Final = 2 * REFERENCE_SET_BYTES  # the longest: a signed set, as text in JSON
_WAIT_DAYS: Final = 90

Base64Text = Annotated[str, Meta(max_length=RESOURCE_BYTES * 4 // 3 + 4, description="Standard base64, canonical.")]
Name = Annotated[str, Meta(min_length=1, max_length=NAME_CHARS, pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]*$")]
Note = Annotated[str, Meta(max_length=NOTE_CHARS)]
PolicyText = Annotated[str, Meta(min_length=1, max_length=POLICY_BYTES)]
Version = Annotated[int, Meta(ge=0, le=2**53 - 1)]
Days = Annotated[int, Meta(ge=1, le=DAYS_CEILING)]
WaitDays = Annotated[int, Meta(ge=1, le=_WAIT_DAYS)]
TenantName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
InitDataDigest = Annotated[str, Meta(pattern=r"^(sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})$")]
TextDigest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}$")]
Identity = Annotated[str, Meta(min_length=1, max_length=128)]


class _Body(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A request."""


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer; a later version may add members, which clients of this one ignore."""


class Problem(_Answer):
    """Why a request failed (RFC 9457).

    Attributes:
        type: `about:blank`: the code says more.
        title: what the status means.
        status: of HTTP.
        detail: the message of the error.
        code: stable dotted code; `cloister explain CODE`.
        path: where in the request.
        expected: what would have been accepted.
        actual: what was found.
        hint: what to change.
        denial: id of the record of a refused call; `cloister explain DENIAL`.
    """

    title: str
    status: int
    detail: str
    code: str
    type: str = "about:blank"
    path: str = ""
    expected: str = ""
    actual: str = ""
    hint: str = ""
    denial: str = ""


# Resources


class ResourceContent(_Body):
    """The content of a resource, 1 byte to 1 MiB."""

    content: Base64Text

    def __repr__(self) -> str:
        return "ResourceContent()"


class ResourceMeta(_Answer):
    """A resource without its content."""

    path: str
    version: int
    updated_at: datetime


class ResourcePage(_Answer):
    """Resources by path. `next` is the `after` of the next page, empty at the end."""

    resources: list[ResourceMeta]
    next: str = ""


# Policies and release rules


class PolicyChange(_Body):
    """The next version of a policy or rule.

    Attributes:
        text: the policy.
        replaces: the version that was read, 0 for none; the change is refused when another is in force by now.
    """

    text: PolicyText
    replaces: Version | None = None


class Rollback(_Body):
    """An old version's text as the next version.

    Attributes:
        version: the old version.
        replaces: the version that was read.
    """

    version: Annotated[int, Meta(ge=1, le=2**53 - 1)]
    replaces: Version | None = None


class PolicyVersion(_Answer):
    """One version of a policy or rule; the highest is in force. An empty text is the version that removed it."""

    name: str
    version: int
    digest: str
    text: str
    created_at: datetime


class PolicyList(_Answer):
    """What is in force, by name."""

    policies: list[PolicyVersion]


class DryRun(_Body):
    """A policy or rule to try on what was decided before.

    Attributes:
        text: the policy that is not in force yet.
        limit: of how many kept pieces of evidence, the newest.
    """

    text: PolicyText
    limit: Annotated[int, Meta(ge=1, le=PAGE_CEILING)] = PAGE


class DryRunCase(_Answer):
    """What would become of one piece of evidence.

    Attributes:
        attestation: id of the evidence.
        at: when it was received.
        subject: digest of its init data.
        level: what it proved.
        before: whether it passes today.
        after: whether it would pass.
        findings: checks that would fail.
    """

    attestation: str
    at: datetime
    subject: str
    level: str
    before: bool
    after: bool
    findings: list[FindingWire]


class DryRunAnswer(_Answer):
    """What would change, the newest evidence first."""

    cases: list[DryRunCase]
    tried: int
    newly_refused: int
    newly_accepted: int


class FindingWire(_Answer):
    """One check as recorded."""

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


# Reference values


class ReferenceSubmission(_Body):
    """Reference values: a signed set (DSSE), or unsigned JSON: a set, one entry, or a list of entries."""

    document: Annotated[str, Meta(min_length=1, max_length=REFERENCE_SET_BYTES)]


class ReferenceValue(_Answer):
    """One entry in force or expired.

    Attributes:
        entry: as submitted.
        signed: whether a registered publisher signed it.
        publisher: name of the publisher.
        key_id: of the publisher's key.
        reference_set: id of the signed set.
        set_version: its version.
        expired: whether it matches nothing any more.
    """

    entry: ReferenceEntryWire
    signed: bool
    publisher: str
    key_id: str
    reference_set: str
    set_version: int
    expired: bool


class ReferenceList(_Answer):
    """Reference values by id."""

    values: list[ReferenceValue]


class ReferenceEvent(_Answer):
    """One change of one entry.

    Attributes:
        sequence: position.
        at: when.
        change: `added`, `replaced` or `deleted`.
        id: of the entry.
        by: name of whoever called.
        key_id: of the publisher whose signature was accepted, empty for unsigned values.
        reference_set: id of the signed set.
        set_version: its version.
    """

    sequence: int
    at: datetime
    change: str
    id: str
    by: str
    key_id: str
    reference_set: str
    set_version: int


class ReferenceHistory(_Answer):
    """Changes, the newest first."""

    events: list[ReferenceEvent]


class ReferenceProposalRequest(_Body):
    """Ask for a file of reference values made from observed evidence, to be checked and signed by a person.

    Attributes:
        attestation: id of the evidence.
        days: for how long the values shall hold.
    """

    attestation: Identity
    days: Days = 90


class ReferenceProposal(_Answer):
    """A set of reference values that nobody has accepted.

    Attributes:
        document: the unsigned set, for `cloister refs sign`.
        warning: what a person must check first.
    """

    document: str
    warning: str


class PublisherKey(_Body):
    """Whose signature on reference values is accepted.

    Attributes:
        name: of the publisher.
        pem: ECDSA P-256 public key.
    """

    name: Name
    pem: Annotated[str, Meta(min_length=1, max_length=CERTIFICATE_BYTES)]


class Publisher(_Answer):
    """A registered publisher."""

    key_id: str
    name: str
    pem: str
    created_at: datetime


class PublisherList(_Answer):
    """Publishers by key id."""

    publishers: list[Publisher]


# Roots


class RootChange(_Body):
    """A certificate or key that endorses a technology.

    Attributes:
        tee: technology.
        level: `hardware`, `measured` or `simulated`: what a chain to it proves.
        name: for findings.
        der: certificate or SubjectPublicKeyInfo.
        instance: the one device that a raw key speaks for.
    """

    tee: Annotated[str, Meta(min_length=1, max_length=NAME_CHARS)]
    level: Annotated[str, Meta(pattern="^(hardware|measured|simulated)$")]
    name: Annotated[str, Meta(min_length=1, max_length=NOTE_CHARS)]
    der: Annotated[str, Meta(min_length=4, max_length=CERTIFICATE_BYTES * 4 // 3 + 4)]
    instance: Annotated[str, Meta(max_length=NOTE_CHARS)] = ""


class Root(_Answer):
    """A trusted root."""

    id: str
    tee: str
    level: str
    name: str
    der: str
    instance: str


class RootList(_Answer):
    """Trusted roots by id."""

    roots: list[Root]


# Tenants and tokens


class TenantChange(_Body):
    """A new tenant."""

    id: TenantName
    note: Note = ""


class Tenant(_Answer):
    """A tenant; one that is disabled answers no guest."""

    id: str
    note: str
    created_at: datetime | None
    disabled: bool


class TenantList(_Answer):
    """Tenants by id."""

    tenants: list[Tenant]


class TokenRequest(_Body):
    """A token to be made.

    Attributes:
        name: of its holder; approvals count names.
        role: `root`, `owner`, `operator`, `auditor`, `approver` or `publisher`.
        all_tenants: whether it holds everywhere instead of in the tenant of the request.
        days: for how long; a token that never expires must be asked for with null.
    """

    name: Name
    role: Annotated[str, Meta(pattern="^(root|owner|operator|auditor|approver|publisher)$")]
    all_tenants: bool = False
    days: Days | None = 90


class Token(_Answer):
    """A token, without its text. `tenant` is null for one that holds everywhere."""

    id: str
    name: str
    role: str
    tenant: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    created_by: str


class NewToken(_Answer):
    """A fresh token; its text is shown this once."""

    token: Token
    text: str

    def __repr__(self) -> str:
        return "NewToken()"


class TokenList(_Answer):
    """Tokens, the oldest first; dead ones too."""

    tokens: list[Token]


# What happened


class AuditEntry(_Answer):
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


class AuditPage(_Answer):
    """Audit rows in order. `next` is the `after` of the next page; at the end it is the newest row's, to ask again."""

    rows: list[AuditEntry]
    next: int


class Denial(_Answer):
    """The whole record of one denial."""

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
    findings: list[FindingWire] = []


class DenialPage(_Answer):
    """Denials in order, without findings."""

    denials: list[DenialSummary]
    next: int


class DenialSummary(_Answer):
    """One line of a list of denials."""

    sequence: int
    id: str
    at: datetime
    stage: str
    code: str
    resource: str
    attestation: str


class Call(_Answer):
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


class CallPage(_Answer):
    """Administrative calls in order."""

    calls: list[Call]
    next: int


class Evidence(_Answer):
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


# Approvals


class ReleaseProposal(_Body):
    """Ask the approvers of a prefix to let one pod have what lies under it.

    Attributes:
        prefix: of a rule that demands approvals for a release.
        init_data: digest of the pod's init data.
        days: for how long the release shall be allowed.
    """

    prefix: Annotated[str, Meta(min_length=1, max_length=400)]
    init_data: InitDataDigest
    days: WaitDays = 1


class Approval(_Body):
    """An approval of exactly what was read.

    Attributes:
        digest: of the proposal that was read.
    """

    digest: TextDigest


class Demand(_Answer):
    """How many of whom must approve what lies under a prefix.

    Attributes:
        prefix: of resources.
        need: how many.
        of: names of principals.
        release: whether releases need it, beside changes of the rule.
    """

    prefix: str
    need: int
    of: list[str]
    release: bool


class Proposal(_Answer):
    """A change or release that waits for its approvals.

    Attributes:
        id: `p-` and ten characters.
        kind: `rule` or `approvals` for a change of the prefix's rule or demand, `release` for a release.
        prefix: of resources.
        state: `open`, `applied`, `rejected` or `expired`.
        demands: what must be met, all of it.
        approved_by: who did.
        created_by: name of whoever proposed.
        created_at: when.
        expires_at: when it ends unless enough approve.
        digest: of the whole proposal; an approval repeats it.
        document: what is proposed.
    """

    id: str
    kind: str
    prefix: str
    state: str
    demands: list[Demand]
    approved_by: list[str]
    created_by: str
    created_at: datetime
    expires_at: datetime
    digest: str
    document: Any  # Any: JSON, by kind


class ProposalList(_Answer):
    """Proposals, the newest first."""

    proposals: list[Proposal]


# The service


class Status(_Answer):
    """What the service runs with, for this tenant.

    Attributes:
        version: of Cloister.
        tenant: whose counts these are.
        principal: name of whoever asks.
        role: of whoever asks.
        configuration: grows with each change of policy, root or reference value.
        audit: number of the newest audit row.
        resources: how many there are.
        reference_values: how many there are.
        expired_reference_values: how many of them match nothing any more.
        settings: of the service, none of them secret.
    """

    version: str
    tenant: str
    principal: str
    role: str
    configuration: int
    audit: int
    resources: int
    reference_values: int
    expired_reference_values: int
    settings: dict[str, str]


class KeyList(_Answer):
    """Public keys that sign Attestation Results (RFC 7517)."""

    keys: list[dict[str, Any]]  # Any: JSON Web Keys


class Done(_Answer):
    """Something was deleted, revoked or disabled."""

    subject: str


class Changed(_Answer):
    """What became of a change of a rule.

    Attributes:
        applied: the new version, null when it waits for approvals.
        proposal: what waits, null when it was applied.
    """

    applied: PolicyVersion | None = None
    proposal: Proposal | None = None
