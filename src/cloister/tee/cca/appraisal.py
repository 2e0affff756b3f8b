"""The owner's rules for CCA evidence (section `cca` of the appraisal policy), one finding each. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cloister.rats.result import Finding, Question
from cloister.rats.rules import PlatformRules
from cloister.tee.cca.claims import Lifecycle


@dataclass(frozen=True, slots=True, kw_only=True)
class CCAFacts:
    """What the rules judge.

    Attributes:
        profile: of the platform token.
        lifecycle: number of the platform's lifecycle.
        state: what it means.
    """

    profile: str
    lifecycle: int
    state: Lifecycle


def appraise_platform(facts: object, rules: PlatformRules, *, at: datetime) -> tuple[Finding, ...]:
    """Judge the facts of authentic CCA evidence; `at` is not needed, as tokens hold no time.

    Raises:
        TypeError: facts of another technology.
    """
    if not isinstance(facts, CCAFacts):
        raise TypeError("facts of another technology")
    secured = facts.state is Lifecycle.SECURED
    accepted = rules.cca.platform_profiles
    return (
        Finding(
            code="appraisal.cca.lifecycle",
            question=Question.ACCEPTABLE,
            ok=secured or rules.cca.insecure_accept_unsecured,
            message=f"platform is {'secured' if secured else facts.state.name.lower().replace('_', ' ')}",
            expected="any" if rules.cca.insecure_accept_unsecured else "secured (0x3000 to 0x30ff)",
            actual=f"{facts.lifecycle:#06x}",
            origin="insecure_accept_unsecured of section cca",
            hint="run on a platform whose lifecycle is secured",
        ),
        Finding(
            code="appraisal.cca.profile",
            question=Question.ACCEPTABLE,
            ok=not accepted or facts.profile in accepted,
            message="profile of the platform token",
            expected=", ".join(accepted) or "any known",
            actual=facts.profile,
            origin="platform_profiles of section cca",
            hint="add the profile to `platform_profiles`, or update the platform's firmware",
        ),
    )
