"""The owner's rules for Nitro evidence (section `nitro` of the appraisal policy), one finding each. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cloister.rats.result import Finding, Question
from cloister.rats.rules import PlatformRules

CLOCK_SKEW: Final = timedelta(minutes=5)  # how far the module's clock may be ahead of the verifier's


@dataclass(frozen=True, slots=True, kw_only=True)
class NitroFacts:
    """What the rules judge.

    Attributes:
        made_at: when the module made the document, by its own clock; aware UTC.
    """

    made_at: datetime


def appraise_platform(facts: object, rules: PlatformRules, *, at: datetime) -> tuple[Finding, ...]:
    """Judge the facts of authentic Nitro evidence.

    The document is short-lived by itself: its key's certificate ends after hours. An owner may want less.

    Raises:
        TypeError: facts of another technology.
    """
    if not isinstance(facts, NitroFacts):
        raise TypeError("facts of another technology")
    longest = timedelta(seconds=rules.nitro.longest_age_seconds)
    age = at - facts.made_at
    ok = -CLOCK_SKEW <= age <= longest
    return (
        Finding(
            code="appraisal.nitro.age",
            question=Question.ACCEPTABLE,
            ok=ok,
            message="document was made recently" if ok else "document is too old, or from the future",
            expected=f"made at most {int(longest.total_seconds())} seconds before",
            actual=f"made {facts.made_at.isoformat(timespec='seconds')}, {int(age.total_seconds())} seconds before",
            origin="longest_age_seconds of section nitro",
            hint="ask the enclave for a new document, or check the clock of the verifier",
        ),
    )
