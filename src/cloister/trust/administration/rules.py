"""Release rules per prefix, over the one key-release policy of a tenant: the narrow place that knows its syntax.

A rule's version is that of the policy in which it last changed, so versions of a prefix grow but need not be dense.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec

from cloister.errors import FormatRefused, Refused
from cloister.trust.access import Permission
from cloister.trust.administration.demands import live_demands
from cloister.trust.administration.desk import Desk, TenantStores
from cloister.trust.administration.policies import missing_policy
from cloister.trust.approvals import ResourcePrefix, require_no_demand
from cloister.trust.keybroker.inputs import RELEASE_POLICY
from cloister.trust.keybroker.policy import (
    ReleaseRule,
    encode_release_policy,
    parse_release_policy,
)
from cloister.trust.store.policies import RELEASE, StoredPolicy


@dataclass(frozen=True, slots=True)
class ReleaseRules:
    """Release rules of one tenant, as one principal may read them. Changes go through `Approvals`."""

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
        """Return the rules in force by prefix."""

        def work(stores: TenantStores) -> tuple[StoredPolicy, ...]:
            stored = stores.policies.current(RELEASE, RELEASE_POLICY)
            rules = parse_release_policy(stored.text).rules if stored is not None else ()
            found = (current_rule(stores, ResourcePrefix(_segments(rule.path))) for rule in rules)
            return tuple(sorted((item for item in found if item is not None), key=lambda item: item.name))

        return self.desk.look(Permission.POLICY_READ, "release", work)

    def change(self, change: Callable[[Sequence[ReleaseRule]], Sequence[ReleaseRule]]) -> StoredPolicy:
        """Change several rules in one step; return the new version of the policy that holds them.

        Raises:
            FormatRefused: a malformed rule.
            Refused: several people must approve a change of one of them (`trust.approval.needed`), or what `change`
                raises.
        """

        def work(stores: TenantStores) -> StoredPolicy:
            stored = stores.policies.current(RELEASE, RELEASE_POLICY)
            policy = parse_release_policy(stored.text) if stored is not None else None
            before = policy.rules if policy is not None else ()
            after = change(before)
            changed = {rule.path for rule in set(before) ^ set(after)}
            for path in sorted(changed):
                require_no_demand(live_demands(stores), ResourcePrefix(_segments(path)))
            text = encode_release_policy(policy.id if policy is not None else RELEASE_POLICY, after)
            parse_release_policy(text)
            return stores.policies.put(RELEASE, RELEASE_POLICY, text, at=self.desk.now())

        return self.desk.change(Permission.POLICY_WRITE, "release", work)

    def history(self, prefix: ResourcePrefix) -> tuple[StoredPolicy, ...]:
        """Return all versions, newest first; one with an empty text removed the rule.

        Raises:
            Refused: there never was one (`trust.policy.missing`).
        """
        found = self.desk.look(Permission.POLICY_READ, f"release {prefix}", lambda stores: rule_history(stores, prefix))
        if not found:
            raise missing_policy(f"release {prefix}", "none")
        return found


def check_rule(prefix: ResourcePrefix, text: bytes) -> None:
    """Return if the text is a rule for the prefix.

    Raises:
        FormatRefused: it is not (`trust.release_policy.malformed`).
    """
    _parse(prefix, text)


def put_rule(
    stores: TenantStores, prefix: ResourcePrefix, text: bytes, desk: Desk, replaces: int | None
) -> StoredPolicy:
    """Store the next version of a rule, within a transaction; an empty text removes it.

    Raises:
        FormatRefused: not a rule for the prefix.
        Refused: another version is in force by now (`trust.policy.conflict`), or there is nothing to remove
            (`trust.policy.missing`).
    """
    now = current_rule(stores, prefix)
    version = now.version if now is not None else 0
    if replaces is not None and replaces != version:
        raise Refused(
            "trust.policy.conflict",
            "the policy was changed by somebody else",
            path=f"release {prefix}",
            expected=f"version {replaces}",
            actual=f"version {version}",
            hint="read it again, then change it",
        )
    if not text and (now is None or not now.text):
        raise missing_policy(f"release {prefix}", "none")
    stored = stores.policies.current(RELEASE, RELEASE_POLICY)
    policy = parse_release_policy(stored.text) if stored is not None else None
    others = [rule for rule in policy.rules if rule.path != str(prefix)] if policy is not None else []
    rules = [*others, _parse(prefix, text)] if text else others
    whole = encode_release_policy(policy.id if policy is not None else RELEASE_POLICY, rules)
    parse_release_policy(whole)
    stores.policies.put(RELEASE, RELEASE_POLICY, whole, at=desk.now())
    found = current_rule(stores, prefix)
    if found is None:
        raise RuntimeError("the rule was stored and is not there")
    return found


def current_rule(stores: TenantStores, prefix: ResourcePrefix) -> StoredPolicy | None:
    """Return the newest version of a rule, also one that removed it; None when there never was one."""
    return next(iter(rule_history(stores, prefix)), None)


def rule_history(stores: TenantStores, prefix: ResourcePrefix) -> tuple[StoredPolicy, ...]:
    """Return the versions of a rule, newest first."""
    found: list[StoredPolicy] = []
    last = b""
    for stored in reversed(stores.policies.history(RELEASE, RELEASE_POLICY)):
        rules = {rule.path: rule for rule in parse_release_policy(stored.text).rules}
        rule = rules.get(str(prefix))
        text = msgspec.json.encode(rule) if rule is not None else b""
        if text != last:
            found.append(replace(stored, name=str(prefix), text=text))
            last = text
    return tuple(reversed(found))


def _parse(prefix: ResourcePrefix, text: bytes) -> ReleaseRule:
    try:
        rule = msgspec.json.decode(text, type=ReleaseRule)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise FormatRefused("trust.release_policy.malformed", f"not a release rule: {err}") from err
    if rule.path != str(prefix):
        raise FormatRefused(
            "trust.release_policy.malformed",
            "the rule is for another prefix",
            path="path",
            expected=str(prefix),
            actual=rule.path[:80],
        )
    parse_release_policy(encode_release_policy(RELEASE_POLICY, [rule]))
    return rule


def _segments(path: str) -> tuple[str, str, str]:
    repository, kind, tag = path.split("/")
    return repository, kind, tag
