"""Release rules at rest: one text per prefix, every version kept; the owner's changes to them, each one transaction.

A rule that was removed is kept as an empty text, so that its versions go on counting. A policy document of an earlier
release (all rules in one text) goes on being read, and is split into rules with the first change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Final

import msgspec
from sqlalchemy import Connection

from cloister.errors import Refused
from cloister.protocol.resourceuri import ResourcePath
from cloister.protocol.tenants import DEFAULT_TENANT
from cloister.rats.claims import Level
from cloister.trust.events import NO_EVENTS, Events, LogEvent
from cloister.trust.keybroker.policy import (
    ReleaseRule,
    ReleaseRules,
    encode_release_rule,
    parse_legacy_policy,
    parse_prefix,
    parse_release_rule,
)
from cloister.trust.rego.engine import check_rego
from cloister.trust.store.database import Store
from cloister.trust.store.policies import RELEASE, PolicyStore, StoredPolicy
from cloister.trust.store.revocations import RevocationStore, add_revocation, withdraw_revocation

LEGACY: Final = "release"  # name of the one document of an earlier release; no prefix looks like it
_REMOVED: Final = b""
_REVOKED_REMEMBERED: Final = 64
_Change = Callable[[Mapping[str, ReleaseRule]], Mapping[str, ReleaseRule]]


class RuleBook:
    """The release rules of one tenant.

    Args:
        store: the database.
        tenant: whose.
        events: told of every change, in its transaction.
    """

    def __init__(self, store: Store, *, tenant: str = DEFAULT_TENANT, events: Events = NO_EVENTS) -> None:
        self._policies = PolicyStore(store, tenant=tenant, events=events)
        self._revocations = RevocationStore(store, tenant=tenant)
        self._tenant = tenant
        self._events = events

    def rules(self) -> ReleaseRules:
        """Return the rules and revocations in force.

        Raises:
            Unavailable: the store failed.
        """
        texts = {stored.name: stored.text for stored in self._policies.current_all(RELEASE)}
        return ReleaseRules(rules=_rules_of(texts), revoked=self._revocations.list())

    def put(self, prefix: str, text: bytes, *, at: datetime, replaces: int | None = None) -> StoredPolicy:
        """Store the next version of a rule, given as its file.

        Rego is stored unseen: the caller has checked it (`checked_rule`), outside of any transaction.

        Args:
            prefix: what it is about.
            text: TOML, JSON or Rego.
            at: aware UTC.
            replaces: the version the caller read; None to replace whatever is in force.

        Raises:
            FormatRefused: not a rule.
            Refused: `replaces` is not in force any more (`trust.policy.conflict`).
        """
        rule = parse_release_rule(prefix, text)
        self._split_legacy(at)
        return self._policies.put(RELEASE, rule.prefix, text, at=at, replaces=replaces)

    def add(self, rule: ReleaseRule, *, at: datetime) -> StoredPolicy:
        """Store a rule, replacing the one of its prefix.

        Raises:
            FormatRefused: a malformed rule.
        """
        return self.put(rule.prefix, encode_release_rule(rule), at=at)

    def remove(self, prefix: str, *, at: datetime) -> StoredPolicy:
        """Remove the rule of a prefix; the next wider one decides then.

        Raises:
            Refused: there is none (`trust.release_policy.missing_rule`).
        """

        def without(rules: Mapping[str, ReleaseRule]) -> Mapping[str, ReleaseRule]:
            if prefix not in rules:
                raise Refused("trust.release_policy.missing_rule", "no rule has this prefix", actual=prefix[:80])
            return {name: rule for name, rule in rules.items() if name != prefix}

        [stored] = [item for item in self._change(without, at) if item.name == prefix]
        return stored

    def history(self, prefix: str) -> tuple[StoredPolicy, ...]:
        """Return all versions of a rule, newest first; an empty text is a removal.

        Raises:
            FormatRefused: not a prefix.
        """
        return self._policies.history(RELEASE, parse_prefix(prefix))

    def approve(
        self,
        init_data: str,
        paths: Sequence[ResourcePath],
        *,
        appraisal_policy: str,
        levels: Sequence[Level],
        at: datetime,
    ) -> None:
        """Let pods with this init data have these resources, beside who may have them already, in one step.

        Raises:
            FormatRefused: not a digest of init data.
            Refused: another pod is approved for one of them at other levels, which this would change
                (`trust.release_policy.levels_differ`); the rule of one is Rego, which has no list
                (`trust.release_policy.not_a_list`).
        """

        def approved(rules: Mapping[str, ReleaseRule]) -> Mapping[str, ReleaseRule]:
            changed = dict(rules)
            for prefix in map(str, paths):
                rule = changed.get(prefix) or ReleaseRule(prefix=prefix)
                _require_list(rule)
                _require_same_levels(rule, init_data, levels)
                changed[prefix] = msgspec.structs.replace(
                    rule,
                    init_data=tuple(dict.fromkeys((*rule.named, init_data))),
                    revoked=tuple(digest for digest in rule.revoked if digest != init_data),
                    appraisal_policy=appraisal_policy,
                    insecure_allow_levels=tuple(levels),
                )
            return changed

        self._change(approved, at, lambda connection: withdraw_revocation(connection, self._tenant, init_data))

    def revoke(self, init_data: str, *, at: datetime) -> None:
        """Withdraw every approval of this init data, also those by wider rules and by reference values.

        Pods under a lease stop within it. The newest revocations stay in the rules, for people to read.
        """

        def revoked(rules: Mapping[str, ReleaseRule]) -> Mapping[str, ReleaseRule]:
            return {
                prefix: msgspec.structs.replace(
                    rule,
                    init_data=tuple(digest for digest in rule.named if digest != init_data),
                    revoked=(*rule.revoked, init_data)[-_REVOKED_REMEMBERED:],
                )
                if init_data in rule.named
                else rule
                for prefix, rule in rules.items()
            }

        def recorded(connection: Connection) -> None:
            add_revocation(connection, self._tenant, init_data, at)
            self._append(connection, "revocation", at, init_data=init_data)

        self._change(revoked, at, recorded)

    def forget(self, init_data: str, *, at: datetime) -> None:
        """Remove this init data from every rule; a rule left without any releases nothing and goes too.

        For a pod that ended by itself: what nobody uses needs no approval, and no revocation to remember. A rule that
        asks for witnesses stays: the next pod shall meet what its owner asked for.
        """

        def without(rules: Mapping[str, ReleaseRule]) -> Mapping[str, ReleaseRule]:
            kept = {}
            for prefix, rule in rules.items():
                if init_data not in rule.named:
                    kept[prefix] = rule
                    continue
                rest = tuple(digest for digest in rule.named if digest != init_data)
                if rest or rule.revoked or rule.witnesses:
                    kept[prefix] = msgspec.structs.replace(rule, init_data=rest)
            return kept

        self._change(without, at, lambda connection: withdraw_revocation(connection, self._tenant, init_data))

    def _append(self, connection: Connection, kind: str, at: datetime, **fields: str) -> None:
        self._events.append(connection, LogEvent(kind=kind, at=at, tenant=self._tenant, fields=fields))

    def _split_legacy(self, at: datetime) -> None:
        """Store the rules of an earlier release's document one by one, where there is one."""
        stored = self._policies.current(RELEASE, LEGACY)
        if stored is not None and stored.text:
            self._change(dict, at)

    def _change(
        self, change: _Change, at: datetime, besides: Callable[[Connection], None] | None = None
    ) -> tuple[StoredPolicy, ...]:
        """Change all rules in one transaction; return the versions it made."""

        def texts(before: Mapping[str, bytes]) -> Mapping[str, bytes]:
            rules = _rules_of(before)
            after = change(rules)
            result = {prefix: _text(prefix, rule, rules, before) for prefix, rule in after.items()}
            gone = {prefix for prefix in {*before, *rules} - set(after) if before.get(prefix)}
            return {**result, **dict.fromkeys(gone, _REMOVED)}

        return self._policies.change(RELEASE, texts, at=at, besides=besides)


def checked_rule(prefix: str, text: bytes) -> ReleaseRule:
    """Return the rule in a file, Rego only if it loads. Takes up to seconds for Rego: call it in no transaction.

    Raises:
        FormatRefused: not a rule, or Rego that does not load.
        Unavailable: Rego, and this installation cannot run it (`rats.rego.absent`).
    """
    rule = parse_release_rule(prefix, text)
    if rule.rego:
        check_rego(rule.rego)
    return rule


def _rules_of(texts: Mapping[str, bytes]) -> dict[str, ReleaseRule]:
    """Return the rules in `texts`; those of an earlier release's document where nothing newer is said."""
    found: dict[str, ReleaseRule] = {}
    if legacy := texts.get(LEGACY):
        found = {rule.prefix: rule for rule in parse_legacy_policy(legacy) if rule.prefix not in texts}
    return found | {name: parse_release_rule(name, text) for name, text in texts.items() if text and name != LEGACY}


def _text(prefix: str, rule: ReleaseRule, rules: Mapping[str, ReleaseRule], before: Mapping[str, bytes]) -> bytes:
    """Return the text of a rule: as its owner wrote it where the rule is unchanged."""
    if rule == rules.get(prefix) and before.get(prefix):
        return before[prefix]
    text = encode_release_rule(rule)
    parse_release_rule(prefix, text)
    return text


def _require_list(rule: ReleaseRule) -> None:
    if rule.rego or rule.insecure_any_init_data:
        raise Refused(
            "trust.release_policy.not_a_list",
            "the rule of this resource has no list of init data",
            path=rule.prefix,
            hint="replace the rule, or keep the resource under another path",
        )


def _require_same_levels(rule: ReleaseRule, init_data: str, levels: Sequence[Level]) -> None:
    """A rule has one list of levels; changing it would lower (or raise) the bar for the other pods it names."""
    others = [digest for digest in rule.named if digest != init_data]
    if others and set(levels) != set(rule.insecure_allow_levels):
        raise Refused(
            "trust.release_policy.levels_differ",
            "another pod is approved for this resource at other levels",
            path=rule.prefix,
            expected=", ".join(rule.insecure_allow_levels) or "hardware only",
            actual=", ".join(levels) or "hardware only",
            hint="wait until that pod ended, or keep the resource under another path",
        )
