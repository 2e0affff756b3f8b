"""Messages about kept evidence judged again: by another policy, other reference values, or at another time."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from msgspec import Meta

from cloister.protocol.admin.base import Answer, Body, FindingWire, Name
from cloister.wire.limits import POLICY_BYTES, REFERENCE_SET_BYTES

SURVEY_PAGE = 100
_SequenceNumber = Annotated[int, Meta(ge=0, le=2**53 - 1)]


class SurveyRequest(Body, frozen=True):
    """What to judge by; what is left out is as it is in force.

    Attributes:
        policy: text of an appraisal policy.
        policy_name: its name where it is Rego alone; the id in any other text is its own.
        appraisal_policy: id of the policy in force.
        references: reference values, all of them.
        at: moment to judge at, with time zone.
        every: all kept results, not the newest of each boot of each pod.
        after: sequence number of the last result seen.
        limit: most results to judge, the oldest first.
    """

    policy: Annotated[str, Meta(max_length=POLICY_BYTES)] = ""
    policy_name: Name = "candidate"
    appraisal_policy: Name = "default"
    references: Annotated[str, Meta(max_length=REFERENCE_SET_BYTES)] = ""
    at: datetime | None = None
    every: bool = False
    after: _SequenceNumber = 0
    limit: Annotated[int, Meta(ge=1, le=SURVEY_PAGE)] = SURVEY_PAGE


class ChangedFinding(Answer, frozen=True):
    """A check whose answer differs; null where it was not made."""

    code: str
    before: FindingWire | None
    after: FindingWire | None


class Held(Answer, frozen=True):
    """What was released to the pod."""

    resource: str
    version: int
    at: datetime


class SurveyCase(Answer, frozen=True):
    """One kept result, judged again.

    Attributes:
        attestation: id of the result.
        at: when it was judged.
        tee: technology.
        level: what it proved then.
        instance: identity of the chip or vTPM.
        init_data: digest of the init data.
        before: `accepted`, `refused` or `undecided`.
        after: the same, or `unknown` where too little is kept.
        fails: whether it was accepted and would not be any more.
        remedy: what gets what is not had, where the verdict is open.
        changes: checks whose answers differ, failures first.
        releases: what that boot of the pod got.
        lease_until: when its lease ends.
    """

    attestation: str
    at: datetime
    tee: str
    level: str
    instance: str
    init_data: str
    before: str
    after: str
    fails: bool
    remedy: str
    changes: list[ChangedFinding]
    releases: list[Held]
    lease_until: datetime | None = None


class SurveyPage(Answer, frozen=True):
    """Results judged again, the oldest first.

    Attributes:
        at: moment they were judged at.
        kept: how many results are kept in all.
        next: `after` of the next page; 0 when this was the last.
        results: those of this page.
    """

    at: datetime
    kept: int
    next: int
    results: list[SurveyCase]
