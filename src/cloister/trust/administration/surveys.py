"""Kept evidence judged again, as one principal may ask: by another policy, other reference values, at another time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from cloister.rats.reference import parse_reference_entries
from cloister.tee.regopolicy import looks_like_rego
from cloister.trust.access import Permission
from cloister.trust.administration.desk import Desk
from cloister.trust.administration.policies import checked_policy
from cloister.trust.verifier.collateral import CollateralSource
from cloister.trust.verifier.survey import Surveyed, Wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyAnswer:
    """A page of results judged again: moment, how much is kept in all, the results."""

    at: datetime
    kept: int
    results: Sequence[Surveyed]


@dataclass(frozen=True, slots=True)
class Surveys:
    """Surveys of one tenant's evidence. They write nothing but the row that says who asked."""

    desk: Desk

    def run(
        self,
        *,
        policy: bytes = b"",
        policy_name: str = "candidate",
        appraisal_policy: str = "default",
        references: bytes = b"",
        at: datetime | None = None,
        every: bool = False,
        after: int = 0,
        limit: int,
        collateral: CollateralSource | None = None,
    ) -> SurveyAnswer:
        """Judge a page of kept evidence again, oldest first.

        Args:
            policy: appraisal policy to judge by; empty for the one in force.
            policy_name: its name where it is Rego alone.
            appraisal_policy: id of the policy in force.
            references: all reference values, JSON; empty for the stored ones.
            at: aware UTC; None for now.
            every: all kept results, not the newest of each boot of each pod.
            after: sequence number of the last result seen.
            limit: most results.
            collateral: instead of the service's.

        Raises:
            Refused: not permitted (`trust.access.forbidden`).
            FormatRefused: not a policy, or not reference values.
            AppraisalRefused: no policy is given and none is in force (`trust.verifier.no_policy`).
            Unavailable: the store failed, or Rego cannot be run here.
        """
        self.desk.principal.require(Permission.EVIDENCE_READ, self.desk.tenant)
        wanted = Wanted(
            source=collateral or self.desk.collateral,
            at=at or self.desk.now(),
            policy=checked_policy(policy, policy_name if looks_like_rego(policy) else "") if policy else None,
            references=parse_reference_entries(references) if references else None,
        )
        survey = self.desk.survey(appraisal_policy)

        def work(_: object) -> SurveyAnswer:
            found = list(islice(survey.run(wanted, every=every, after=after), limit))
            return SurveyAnswer(at=wanted.at, kept=survey.count(), results=found)

        return self.desk.look(Permission.EVIDENCE_READ, "all evidence, judged again", work)
