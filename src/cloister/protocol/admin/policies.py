"""Resources, policies and release rules."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from msgspec import Meta

from cloister.protocol.admin.base import (
    PAGE,
    PAGE_CEILING,
    Answer,
    Base64Text,
    Body,
    FindingWire,
    PolicyText,
    Version,
)


class ResourceContent(Body, frozen=True):
    """The content of a resource, 1 byte to 1 MiB."""

    content: Base64Text

    def __repr__(self) -> str:
        return "ResourceContent()"


class ResourceChange(Body, frozen=True):
    """The next version of a resource, 1 byte to 1 MiB.

    Attributes:
        content: what to store.
        replaces: the version that was read, 0 for none; the change is refused when another is there by now.
    """

    content: Base64Text
    replaces: Version | None = None

    def __repr__(self) -> str:
        return "ResourceChange()"


class ResourceMeta(Answer, frozen=True):
    """A resource without its content."""

    path: str
    version: int
    updated_at: datetime


class ResourcePage(Answer, frozen=True):
    """Resources by path. `next` is the `after` of the next page, empty at the end."""

    resources: list[ResourceMeta]
    next: str = ""


# Policies and release rules


class PolicyChange(Body, frozen=True):
    """The next version of a policy or rule.

    Attributes:
        text: the policy.
        replaces: the version that was read, 0 for none; the change is refused when another is in force by now.
    """

    text: PolicyText
    replaces: Version | None = None


class Rollback(Body, frozen=True):
    """An old version's text as the next version.

    Attributes:
        version: the old version.
        replaces: the version that was read.
    """

    version: Annotated[int, Meta(ge=1, le=2**53 - 1)]
    replaces: Version | None = None


class PolicyVersion(Answer, frozen=True):
    """One version of a policy or rule; the highest is in force. An empty text is the version that removed it."""

    name: str
    version: int
    digest: str
    text: str
    created_at: datetime


class PolicyList(Answer, frozen=True):
    """What is in force, by name."""

    policies: list[PolicyVersion]


class DryRun(Body, frozen=True):
    """A rule to try on what was decided before.

    Attributes:
        text: the rule that is not in force yet.
        limit: of how many decisions, the newest.
    """

    text: PolicyText
    limit: Annotated[int, Meta(ge=1, le=PAGE_CEILING)] = PAGE


class DryRunCase(Answer, frozen=True):
    """A decision that would be another one, or of which that cannot be told.

    Attributes:
        sequence: of its audit row.
        at: when it was made.
        resource: path.
        init_data: digest of the pod's init data.
        level: what its evidence proved.
        attestation: id of the evidence.
        was: `released` or `denied`.
        would: `released`, `denied`, or `unknown` where a rule in Rego would decide.
        rule: prefix of the rule that would decide; empty for the default.
        findings: checks that would not hold; of one that would be released, those that were made.
    """

    sequence: int
    at: datetime
    resource: str
    init_data: str
    level: str
    attestation: str
    was: str
    would: str
    rule: str
    findings: list[FindingWire]


class DryRunAnswer(Answer, frozen=True):
    """What would change, the oldest decision first; `tried` is how many were made again."""

    tried: int
    changes: list[DryRunCase]
