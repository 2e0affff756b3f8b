"""Release rules per prefix, as one principal may handle them.

`Approvals` is the way for changes that may have to wait for others; the changes here are refused where they would.
Revoking is never refused: it only makes less pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from cloister.errors import Refused
from cloister.protocol.resourceuri import ResourcePath
from cloister.rats.claims import Level
from cloister.trust.access import Permission
from cloister.trust.administration.demands import live_demands
from cloister.trust.administration.desk import Desk, TenantStores
from cloister.trust.administration.policies import missing_policy
from cloister.trust.approvals import ResourcePrefix, parse_resource_prefix, require_no_demand
from cloister.trust.keybroker.policy import ReleaseRules as RulesInForce
from cloister.trust.keybroker.policy import encode_release_rule
from cloister.trust.keybroker.rulebook import LEGACY, checked_rule
from cloister.trust.store.policies import RELEASE, StoredPolicy

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ReleaseRules:
    """Release rules of one tenant."""

    desk: Desk

    def get(self, prefix: ResourcePrefix) -> StoredPolicy:
        """Return the rule in force.

        Raises:
            Refused: there is none (`trust.policy.missing`).
        """
        found = self.desk.look(Permission.POLICY_READ, f"release {prefix}", lambda stores: current_rule(stores, prefix))
        if found is None or not found.text:
            raise missing_policy(f"release {prefix}", "none")
        return found

    def list(self) -> tuple[StoredPolicy, ...]:
        """Return the rules in force by prefix, as they are stored."""
        return self.desk.look(
            Permission.POLICY_READ,
            "release",
            lambda stores: tuple(
                found
                for prefix in sorted(stores.rules.rules().rules)
                if (found := current_rule(stores, parse_resource_prefix(prefix))) is not None
            ),
        )

    def rules(self) -> RulesInForce:
        """Return the rules and revocations in force, parsed."""
        return self.desk.look(Permission.POLICY_READ, "release", lambda stores: stores.rules.rules())

    def history(self, prefix: ResourcePrefix) -> tuple[StoredPolicy, ...]:
        """Return all versions, newest first; one with an empty text removed the rule.

        Raises:
            Refused: there never was one (`trust.policy.missing`).
        """
        found = self.desk.look(
            Permission.POLICY_READ, f"release {prefix}", lambda stores: stores.rules.history(str(prefix))
        )
        if not found:
            raise missing_policy(f"release {prefix}", "none")
        return found

    # Changes by one person

    def put(self, prefix: str, text: bytes) -> StoredPolicy:
        """Store the next version of a rule, given as its file.

        Raises:
            FormatRefused: not a rule, or not a prefix (`trust.release_policy.malformed`); Rego that does not load.
            Refused: several people must approve it (`trust.approval.needed`).
            Unavailable: Rego, and this installation cannot run it.
        """
        at = self.desk.now()
        checked = checked_rule(prefix, text).prefix
        return self._alone(f"release {prefix}", lambda stores: stores.rules.put(checked, text, at=at), text)

    def remove(self, prefix: str) -> StoredPolicy:
        """Remove a rule.

        Raises:
            Refused: there is none (`trust.release_policy.missing_rule`); several people must approve it
                (`trust.approval.needed`).
        """
        at = self.desk.now()
        return self._alone(f"release {prefix}", lambda stores: stores.rules.remove(prefix, at=at))

    def approve(
        self, init_data: str, paths: Sequence[ResourcePath], *, appraisal_policy: str, levels: Sequence[Level]
    ) -> None:
        """Let pods with this init data have these resources, beside who may have them already, in one step.

        Raises:
            FormatRefused: not a digest of init data.
            Refused: as `RuleBook.approve`; several people must approve it (`trust.approval.needed`).
        """
        at = self.desk.now()
        self._alone(
            f"release to {init_data}",
            lambda stores: stores.rules.approve(
                init_data, paths, appraisal_policy=appraisal_policy, levels=levels, at=at
            ),
        )

    def forget(self, init_data: str) -> None:
        """Remove this init data from every rule; a rule left without any goes too.

        Raises:
            Refused: several people must approve it (`trust.approval.needed`).
        """
        at = self.desk.now()
        self._alone(f"forget {init_data}", lambda stores: stores.rules.forget(init_data, at=at))

    def revoke(self, init_data: str) -> None:
        """Withdraw every approval of this init data, also those by wider rules and by reference values."""
        at = self.desk.now()
        self.desk.change(
            Permission.POLICY_WRITE,
            f"revoke {init_data}",
            lambda stores: stores.rules.revoke(init_data, at=at),
            detail={"init_data": init_data},
            kind="revocation",
        )

    def _alone(self, subject: str, change: Callable[[TenantStores], _T], text: bytes = b"") -> _T:
        """Change rules in one transaction, which is undone when somebody else has a say in one of them."""

        def work(stores: TenantStores) -> _T:
            demands, before = live_demands(stores), stores.rules.rules().rules
            result = change(stores)
            after = stores.rules.rules().rules if demands else before
            for prefix in sorted({*before, *after}):
                if before.get(prefix) != after.get(prefix):
                    require_no_demand(demands, parse_resource_prefix(prefix))
            return result

        detail = {"digest": text_digest(text)} if text else {}
        return self.desk.change(Permission.POLICY_WRITE, subject, work, detail=detail)


def check_rule(prefix: ResourcePrefix, text: bytes) -> None:
    """Return if the text is a rule for the prefix.

    Raises:
        FormatRefused: it is not (`trust.release_policy.malformed`), or is Rego that does not load.
        Unavailable: Rego, and this installation cannot run it.
    """
    checked_rule(str(prefix), text)


def put_rule(
    stores: TenantStores, prefix: ResourcePrefix, text: bytes, desk: Desk, replaces: int | None
) -> StoredPolicy:
    """Store the next version of a rule, within a transaction; an empty text removes it.

    Raises:
        FormatRefused: not a rule for the prefix.
        Refused: another version is in force by now (`trust.policy.conflict`), or there is nothing to remove
            (`trust.policy.missing`).
    """
    if text:
        return stores.rules.put(str(prefix), text, at=desk.now(), replaces=replaces)
    now = current_rule(stores, prefix)
    if now is None or not now.text:
        raise missing_policy(f"release {prefix}", "none")
    if replaces is not None and replaces != now.version:
        raise Refused(
            "trust.policy.conflict",
            "the policy was changed by somebody else",
            path=f"release {prefix}",
            expected=f"version {replaces}",
            actual=f"version {now.version}",
            hint="read it again, then change it",
        )
    return stores.rules.remove(str(prefix), at=desk.now())


def current_rule(stores: TenantStores, prefix: ResourcePrefix) -> StoredPolicy | None:
    """Return the newest version of a rule, also one that removed it; None when there never was one.

    A rule that still stands in the one document of an earlier release has that document's version and time.
    """
    stored = stores.policies.current(RELEASE, str(prefix))
    rule = stores.rules.rules().rules.get(str(prefix))
    if stored is not None or rule is None:
        return stored
    whole = stores.policies.current(RELEASE, LEGACY)
    if whole is None:
        return None
    text = encode_release_rule(rule)
    return replace(whole, name=str(prefix), text=text, digest=text_digest(text))


def text_digest(text: bytes) -> str:
    """Return the digest that names a text."""
    return "sha256:" + hashlib.sha256(text).hexdigest()
