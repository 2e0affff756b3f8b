"""Appraisal policies: how evidence is judged. Versions only grow; going back is a new version with an old text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cloister.errors import FormatRefused, Refused
from cloister.rats.policy import AppraisalPolicy
from cloister.tee.regopolicy import looks_like_rego, parse_named_policy
from cloister.trust.access import Permission
from cloister.trust.administration.desk import Desk
from cloister.trust.rego.engine import check_appraisal_rego
from cloister.trust.store.policies import APPRAISAL, StoredPolicy

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class AppraisalPolicies:
    """Appraisal policies of one tenant, as one principal may handle them."""

    desk: Desk

    def put(self, text: bytes, *, name: str = "", replaces: int | None = None) -> StoredPolicy:
        """Store the next version of a policy, under the id in its text; one that is Rego alone, under `name`.

        Args:
            text: the policy.
            name: the id it must have; empty for any.
            replaces: the version that was read.

        Raises:
            FormatRefused: not an appraisal policy, or Rego that gives no vector (`rats.rego.malformed`); of another
                id, or Rego without a name (`trust.policy.name`).
            Refused: another version is in force by now (`trust.policy.conflict`).
            Unavailable: Rego, and this installation cannot run it (`rats.rego.absent`).
        """
        self.desk.principal.require(Permission.POLICY_WRITE, self.desk.tenant)
        policy = checked_policy(text, name)
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


def checked_policy(text: bytes, name: str) -> AppraisalPolicy:
    """Return the policy in a file, Rego only if it loads; that takes up to seconds: call it in no transaction."""
    if looks_like_rego(text) and not _NAME.fullmatch(name):
        raise FormatRefused(
            "trust.policy.name",
            "a policy in Rego has no id of its own, so it has to be given",
            path="id",
            expected="1 to 64 letters, digits and . _ -",
            actual=name[:80],
        )
    policy = parse_named_policy(name, text)
    if name and policy.id != name:
        raise FormatRefused(
            "trust.policy.name", "the policy has another id", path="id", expected=name[:80], actual=policy.id[:80]
        )
    if policy.rego:
        check_appraisal_rego(policy.rego)
    return policy


def missing_policy(name: str, actual: str) -> Refused:
    """Return the refusal for a policy or version that is not there."""
    return Refused("trust.policy.missing", "no such policy", path=name[:120], actual=actual)
