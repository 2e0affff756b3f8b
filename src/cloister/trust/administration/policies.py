"""Appraisal policies: how evidence is judged. Versions only grow; going back is a new version with an old text."""

from __future__ import annotations

from dataclasses import dataclass

from cloister.errors import FormatRefused, Refused
from cloister.rats.policy import parse_appraisal_policy
from cloister.trust.access import Permission
from cloister.trust.administration.desk import Desk
from cloister.trust.store.policies import APPRAISAL, StoredPolicy


@dataclass(frozen=True, slots=True)
class AppraisalPolicies:
    """Appraisal policies of one tenant, as one principal may handle them."""

    desk: Desk

    def put(self, text: bytes, *, name: str = "", replaces: int | None = None) -> StoredPolicy:
        """Store the next version of a policy, under the id in its text.

        Args:
            text: the policy.
            name: the id it must have; empty for any.
            replaces: the version that was read.

        Raises:
            FormatRefused: not an appraisal policy, or of another id (`trust.policy.name`).
            Refused: another version is in force by now (`trust.policy.conflict`).
        """
        policy = parse_appraisal_policy(text)
        if name and policy.id != name:
            raise FormatRefused(
                "trust.policy.name", "the policy has another id", path="id", expected=name[:80], actual=policy.id[:80]
            )
        at = self.desk.now()
        return self.desk.change(
            Permission.POLICY_WRITE,
            f"appraisal {policy.id}",
            lambda stores: stores.policies.put(APPRAISAL, policy.id, text, at=at, replaces=replaces),
            detail={"digest": policy.digest},
        )

    def roll_back(self, name: str, version: int, *, replaces: int | None = None) -> StoredPolicy:
        """Put an old version's text in force again, as the next version.

        Raises:
            Refused: there is no such version (`trust.policy.missing`), or another is in force by now
                (`trust.policy.conflict`).
        """
        old = next((item for item in self.history(name) if item.version == version), None)
        if old is None:
            raise missing_policy(f"appraisal {name}", f"version {version}")
        return self.put(old.text, name=name, replaces=replaces)

    def get(self, name: str) -> StoredPolicy:
        """Return the version in force.

        Raises:
            Refused: there is none (`trust.policy.missing`).
        """
        found = self.current(name)
        if found is None:
            raise missing_policy(f"appraisal {name}", "none")
        return found

    def current(self, name: str) -> StoredPolicy | None:
        """Return the version in force, None when there is none."""
        return self.desk.look(
            Permission.POLICY_READ, f"appraisal {name}", lambda stores: stores.policies.current(APPRAISAL, name)
        )

    def list(self) -> tuple[StoredPolicy, ...]:
        """Return what is in force, by name."""

        return self.desk.look(
            Permission.POLICY_READ,
            "appraisal",
            lambda stores: tuple(
                found
                for name in stores.queries.policy_names(APPRAISAL)
                if (found := stores.policies.current(APPRAISAL, name)) is not None
            ),
        )

    def history(self, name: str) -> tuple[StoredPolicy, ...]:
        """Return all versions, newest first.

        Raises:
            Refused: there is none (`trust.policy.missing`).
        """
        found = self.desk.look(
            Permission.POLICY_READ, f"appraisal {name}", lambda stores: stores.policies.history(APPRAISAL, name)
        )
        if not found:
            raise missing_policy(f"appraisal {name}", "none")
        return found


def missing_policy(name: str, actual: str) -> Refused:
    """Return the refusal for a policy or version that is not there."""
    return Refused("trust.policy.missing", "no such policy", path=name[:120], actual=actual)
