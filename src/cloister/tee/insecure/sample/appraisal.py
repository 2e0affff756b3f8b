"""The owner's rules for the sample TEE: there are none, because nothing it says could be relied on. Pure."""

from __future__ import annotations

from datetime import datetime

from cloister.rats.result import Finding
from cloister.rats.rules import PlatformRules


def appraise_platform(facts: object, rules: PlatformRules, *, at: datetime) -> tuple[Finding, ...]:
    """Return no finding: the level alone decides about evidence that nobody signed."""
    return ()
