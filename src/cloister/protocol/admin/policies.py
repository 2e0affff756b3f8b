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
    """A policy or rule to try on what was decided before.

    Attributes:
        text: the policy that is not in force yet.
        limit: of how many kept pieces of evidence, the newest.
    """

    text: PolicyText
    limit: Annotated[int, Meta(ge=1, le=PAGE_CEILING)] = PAGE


class DryRunCase(Answer, frozen=True):
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


class DryRunAnswer(Answer, frozen=True):
    """What would change, the newest evidence first."""

    cases: list[DryRunCase]
    tried: int
    newly_refused: int
    newly_accepted: int
