"""The key-release policy: which resource goes to which code, as strict JSON, and its one evaluator.

    {"version": 1, "id": "shop", "rules": [
      {"path": "shop/model/*", "init_data": ["sha256:9a1e.."], "appraisal_policy": "default",
       "insecure_accept_levels": ["measured"], "note": "the classifier"}]}

A rule names the init data (and with it the pod policy) that may have the resource. The most specific rule decides
alone; a path without a rule is never released; a rule without init data releases nothing; an unknown field refuses
the whole policy. Levels below `hardware` pass only by a field that begins with `insecure_`, here *and* in the
appraisal policy.

Pure: values in, findings out; verdict and explanation are the same findings.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec

from cloister.errors import FormatRefused
from cloister.protocol.resourceuri import ResourcePath
from cloister.rats.claims import Level
from cloister.rats.result import Finding, Question, Tier
from cloister.trust.keybroker.token import VerifiedToken
from cloister.wire.limits import POLICY_BYTES, POLICY_LIST_ITEMS

_MALFORMED: Final = "trust.release_policy.malformed"
_WILDCARD: Final = "*"
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}")
_SHOWN: Final = 23  # "sha256:" and 16 digits


class ReleaseRule(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True, omit_defaults=True):
    """One rule.

    Attributes:
        path: `repository/type/tag`, where tag, or type and tag, may be `*`.
        init_data: digests of init data that may have the resource; empty releases nothing.
        appraisal_policy: id of the appraisal policy the evidence must have been judged by.
        insecure_accept_levels: levels below `hardware` that may have it.
        revoked: digests of init data that had it and must not have it again; they win over `init_data`.
        note: for people.
    """

    path: str
    init_data: tuple[str, ...]
    appraisal_policy: str
    insecure_accept_levels: tuple[Level, ...] = ()
    revoked: tuple[str, ...] = ()
    note: str = ""

    def specificity(self) -> int:
        """Return how many segments are given: 3 for an exact path."""
        return sum(1 for segment in self.path.split("/") if segment != _WILDCARD)

    def matches(self, path: ResourcePath) -> bool:
        """Return whether the rule is about `path`."""
        pairs = zip(self.path.split("/"), str(path).split("/"), strict=True)
        return all(mine in (_WILDCARD, theirs) for mine, theirs in pairs)


class _PolicyWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    version: int
    id: str
    rules: tuple[ReleaseRule, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasePolicy:
    """A parsed policy and the digest of the text it came from."""

    id: str
    rules: tuple[ReleaseRule, ...]
    digest: str

    def rule_for(self, path: ResourcePath) -> ReleaseRule | None:
        """Return the most specific rule about `path`. No two can be equally specific: equal paths are refused."""
        candidates = [rule for rule in self.rules if rule.matches(path)]
        return max(candidates, key=ReleaseRule.specificity, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseDecision:
    """The findings of one evaluation; the verdict is a function of them."""

    rule: ReleaseRule | None
    findings: tuple[Finding, ...]

    @property
    def allowed(self) -> bool:
        """Whether every finding holds, and there was a rule to make findings by."""
        return self.rule is not None and all(finding.ok for finding in self.findings)

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings that did not hold."""
        return tuple(finding for finding in self.findings if not finding.ok)


def parse_release_policy(data: bytes) -> ReleasePolicy:
    """Parse policy JSON.

    Raises:
        FormatRefused: unknown version or field, a malformed path or digest, two rules for one path, too long
            (`trust.release_policy.malformed`).
    """
    if len(data) > POLICY_BYTES:
        raise FormatRefused(_MALFORMED, "policy too long", expected=f"at most {POLICY_BYTES} bytes")
    try:
        wire = msgspec.json.decode(data, type=_PolicyWire)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise FormatRefused(_MALFORMED, f"not a key-release policy: {err}") from err
    if wire.version != 1 or not wire.id:
        raise FormatRefused(_MALFORMED, "a policy has version 1 and an id", actual=f"version {wire.version}")
    if len(wire.rules) > POLICY_LIST_ITEMS:
        raise FormatRefused(_MALFORMED, "too many rules", expected=f"at most {POLICY_LIST_ITEMS}")
    for index, rule in enumerate(wire.rules):
        _check_rule(rule, f"rules[{index}]")
    paths = [rule.path for rule in wire.rules]
    if len(set(paths)) != len(paths):
        raise FormatRefused(_MALFORMED, "two rules have the same path", path="rules")
    return ReleasePolicy(id=wire.id, rules=wire.rules, digest="sha256:" + hashlib.sha256(data).hexdigest())


def encode_release_policy(policy_id: str, rules: Sequence[ReleaseRule]) -> bytes:
    """Return policy JSON, rules sorted by path; `parse_release_policy` reads it back."""
    ordered = tuple(sorted(rules, key=lambda rule: rule.path))
    return msgspec.json.encode(_PolicyWire(version=1, id=policy_id, rules=ordered))


def evaluate_release(
    policy: ReleasePolicy | None,
    path: ResourcePath,
    token: VerifiedToken,
    *,
    appraisal_policy_digest: str,
    at: datetime,
) -> ReleaseDecision:
    """Decide whether `path` may go to the guest that `token` is about.

    Steps: 1 the evidence was affirmed; 2 the token is fresh; 3 there is a rule; 4 the owner did not
    revoke this init data, and the rule names it; 5 the rule accepts the level; 6 the evidence was judged by the policy
    the rule names, 7 in the version in force.

    Args:
        policy: in force, None when none is stored.
        path: what is asked for.
        token: verified Attestation Result.
        appraisal_policy_digest: digest of the version in force of the policy that the token names, empty when none.
        at: aware UTC.
    """
    rule = policy.rule_for(path) if policy is not None else None
    # 1, 2, 3
    findings = [
        _finding(
            "trust.release.tier",
            token.tier is Tier.AFFIRMING,
            "the verifier affirmed the evidence",
            "the verifier did not affirm the evidence",
            expected=Tier.AFFIRMING.value,
            actual=token.tier.value,
            hint="the guest's evidence is not acceptable: see the findings of its appraisal",
        ),
        _finding(
            "trust.release.fresh",
            token.issued_at <= token.expires_at and at < token.expires_at,
            "the Attestation Result is fresh",
            "the Attestation Result is too old",
            expected=f"before {token.expires_at.isoformat(timespec='seconds')}",
            actual=at.isoformat(timespec="seconds"),
            hint="attest again",
        ),
        _finding(
            "trust.release.no_rule",
            rule is not None,
            "a rule of the key-release policy is about this resource",
            "no rule of the key-release policy is about this resource",
            expected="a rule",
            actual=rule.path if rule else "none",
            origin=f"key-release policy {policy.id}" if policy else "no key-release policy is stored",
            hint="add a rule for this path to the key-release policy; `cloister run` writes one for its pod",
        ),
    ]
    if policy is not None and rule is not None:
        findings += _rule_findings(policy, rule, token, appraisal_policy_digest)
    return ReleaseDecision(rule=rule, findings=tuple(findings))


def _rule_findings(
    policy: ReleasePolicy, rule: ReleaseRule, token: VerifiedToken, appraisal_policy_digest: str
) -> list[Finding]:
    origin = f"key-release policy {policy.id}, rule {rule.path}"
    levels = {Level.HARDWARE, *rule.insecure_accept_levels}
    return [
        # 4
        _finding(
            "trust.release.revoked",
            token.init_data not in rule.revoked,
            "the owner did not revoke this pod",
            "the owner revoked this pod",
            expected="not revoked",
            actual="revoked" if token.init_data in rule.revoked else "not revoked",
            origin=origin,
            hint="the owner withdrew this pod's approval; only the owner can approve it again",
        ),
        _finding(
            "trust.release.init_data",
            token.init_data in rule.init_data,
            "the rule names the init data of this guest",
            "the rule does not name the init data of this guest",
            expected=", ".join(digest[:_SHOWN] + ".." for digest in rule.init_data[:8]) or "nothing: the list is empty",
            actual=token.init_data[:_SHOWN] + "..",
            origin=origin,
            hint="the guest runs under another pod policy or broker address than the rule was written for",
        ),
        # 5
        _finding(
            "trust.release.level",
            token.level in levels,
            "the rule accepts the level of this guest",
            "the rule does not accept the level of this guest",
            expected=", ".join(sorted(level.value for level in levels)),
            actual=token.level.value,
            origin=origin,
            hint="run on real hardware, or accept the weaker level in `insecure_accept_levels`",
        ),
        # 6
        _finding(
            "trust.release.appraisal_policy",
            token.policy_id == rule.appraisal_policy,
            "the evidence was judged by the policy the rule asks for",
            "the evidence was judged by another policy than the rule asks for",
            expected=rule.appraisal_policy,
            actual=token.policy_id,
            origin=origin,
            hint="start the service with that appraisal policy, or change the rule",
        ),
        # 7
        _finding(
            "trust.release.appraisal_policy_version",
            token.policy_digest == appraisal_policy_digest,
            "the evidence was judged by the version of the policy that is in force",
            "the evidence was judged by a version of the policy that is not in force",
            expected=appraisal_policy_digest[:_SHOWN] + ".." if appraisal_policy_digest else "no such policy",
            actual=token.policy_digest[:_SHOWN] + "..",
            origin="stored appraisal policies",
            hint="the policy changed since the guest attested: attest again",
        ),
    ]


def _finding(
    code: str,
    ok: bool,
    message: str,
    otherwise: str,
    *,
    expected: str,
    actual: str,
    origin: str = "key broker",
    hint: str = "",
) -> Finding:
    return Finding(
        code=code,
        question=Question.ACCEPTABLE,
        ok=ok,
        message=message if ok else otherwise,
        expected=expected,
        actual=actual,
        origin=origin,
        hint="" if ok else hint,
    )


def _check_rule(rule: ReleaseRule, where: str) -> None:
    segments = rule.path.split("/")
    literal = [segment for segment in segments if segment != _WILDCARD]
    if len(segments) != 3 or not literal or segments[: len(literal)] != literal:
        raise FormatRefused(
            _MALFORMED,
            "not a path of a rule",
            path=f"{where}.path",
            expected="repository/type/tag, repository/type/* or repository/*/*",
            actual=rule.path[:80],
        )
    try:
        ResourcePath(*(literal + ["x"] * (3 - len(literal))))
    except FormatRefused as err:
        raise FormatRefused(_MALFORMED, "not a path of a rule", path=f"{where}.path", actual=rule.path[:80]) from err
    if len(rule.init_data) + len(rule.revoked) > POLICY_LIST_ITEMS:
        raise FormatRefused(
            _MALFORMED, "too many digests", path=f"{where}.init_data", expected=f"at most {POLICY_LIST_ITEMS}"
        )
    for digest in (*rule.init_data, *rule.revoked):
        if not _DIGEST.fullmatch(digest):
            raise FormatRefused(
                _MALFORMED,
                "not a digest",
                path=f"{where}.init_data",
                expected="sha256: and 64 lower-case digits",
                actual=digest[:80],
            )
    if not rule.appraisal_policy:
        raise FormatRefused(_MALFORMED, "a rule names an appraisal policy", path=f"{where}.appraisal_policy")
