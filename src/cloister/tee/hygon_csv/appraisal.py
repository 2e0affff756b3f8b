"""The owner's rules for CSV evidence: none, because no such evidence is ever authentic here. Pure."""

from __future__ import annotations

from datetime import datetime

from cloister.rats.result import Finding
from cloister.rats.rules import PlatformRules


def appraise_platform(facts: object, rules: PlatformRules, *, at: datetime) -> tuple[Finding, ...]:
    """Refuse to judge: there is no authentic CSV evidence whose facts these could be.

    Raises:
        TypeError: always.
    """
    raise TypeError("facts of another technology")
