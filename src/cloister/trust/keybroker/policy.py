"""Release rules: which resource goes to which guest, one rule per prefix, and their one evaluator.

    insecure_allow_levels = ["measured"]          # TOML, or the same as JSON
    init_data = ["sha256:9a1e.."]
    lease_seconds = 3600
    note = "the classifier"

A rule is stored under its prefix: `repository/type/tag`, `repository/type/*`, `repository/*/*` or `*`. The most
specific rule about a path decides alone. A rule says which guests may have the resource, by their init data (and with
it their pod policy); an unknown field refuses the whole rule, so a misspelt restriction can never silently be none.

Without a rule the default decides: evidence of level `hardware` that was affirmed against reference values which name
the guest's init data. Levels below `hardware` pass by `insecure_allow_levels` of the rule and by nothing else.

A rule may also be a Rego policy as CoCo's key broker takes it (package `policy`, rule `allow`); it decides instead of
the lists, and cannot lower what is asked of every release: a fresh token, level `hardware`, no revocation.

Pure: values in, findings out; verdict and explanation are the same findings.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import msgspec

from cloister.errors import FormatRefused
from cloister.protocol.resourceuri import ResourcePath
from cloister.rats.claims import Level
from cloister.rats.reference import is_init_data_digest
from cloister.rats.result import Finding, Question, Tier
from cloister.tee.regopolicy import looks_like_rego
from cloister.trust.keybroker.token import VerifiedToken
from cloister.wire.limits import LEASE_SECONDS, POLICY_BYTES, POLICY_LIST_ITEMS
from cloister.wire.stricttoml import parse_toml

EVERYTHING: Final = "*"
WITNESSES: Final = 16  # cosignatures that a rule may ask for
APPROVERS: Final = 16
_MALFORMED: Final = "trust.release_policy.malformed"
_WILDCARD: Final = "*"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_SHOWN: Final = 23  # "sha256:" and 16 digits
_BELOW_HARDWARE: Final = (Level.SIMULATED, Level.MEASURED)


class Approvals(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """How many of whom must have approved a release.

    Attributes:
        need: how many, at least one.
        of: names of those who may.
    """

    need: int
    of: tuple[str, ...]


class _RuleWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True, omit_defaults=True):
    """What stands in a file of TOML or JSON."""

    init_data: tuple[str, ...] = ()
    insecure_any_init_data: bool = False
    insecure_allow_levels: tuple[Level, ...] = ()
    appraisal_policy: str = ""
    lease_seconds: int = 0
    witnesses: int = 0
    approvals: Approvals | None = None
    revoked: tuple[str, ...] = ()
    tees: tuple[str, ...] = ()
    note: str = ""


class ReleaseRule(_RuleWire, frozen=True, kw_only=True, omit_defaults=True):
    """One rule.

    Attributes:
        prefix: what it is about.
        init_data: digests of init data that may have the resource; none releases nothing, except at level `simulated`,
            where a guest names whatever it likes.
        insecure_any_init_data: every guest may have it whose evidence is accepted, whatever pod it runs.
        insecure_allow_levels: levels below `hardware` that may have it.
        appraisal_policy: id of the appraisal policy the evidence must have been judged by; empty for the service's own.
        lease_seconds: how long a release holds; 0 for no lease.
        witnesses: how many witnesses must have cosigned the log entry of a release.
        approvals: who must have approved a release.
        revoked: digests of init data that had it and must not have it again; they win over `init_data`.
        tees: technologies that may have it; empty for all.
        note: for people.
        rego: Rego source that decides instead of `init_data` and `tees`; empty for none.
        digest: `sha256:` of the text it was parsed from.
    """

    prefix: str
    rego: str = ""
    digest: str = ""


class _LegacyRule(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    path: str
    init_data: tuple[str, ...]
    appraisal_policy: str
    insecure_accept_levels: tuple[Level, ...] = ()
    revoked: tuple[str, ...] = ()
    note: str = ""


class _LegacyPolicy(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    version: int
    id: str
    rules: tuple[_LegacyRule, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRules:
    """All rules in force, and the init data that the owner revoked for every resource.

    Attributes:
        rules: by prefix.
        revoked: digests of init data.
    """

    rules: Mapping[str, ReleaseRule] = field(default_factory=dict)
    revoked: frozenset[str] = frozenset()

    def rule_for(self, path: ResourcePath) -> ReleaseRule | None:
        """Return the most specific rule about `path`."""
        return next((self.rules[prefix] for prefix in prefixes_of(path) if prefix in self.rules), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegoAnswer:
    """What a Rego rule came to.

    Attributes:
        allowed: whether `data.policy.allow` is true and nothing else.
        said: the answer in words, for the record.
    """

    allowed: bool
    said: str


NOT_ASKED: Final = RegoAnswer(allowed=False, said="not evaluated")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseDecision:
    """The findings of one evaluation; the verdict is a function of them.

    Attributes:
        rule: that decided; None for the default.
        findings: all of them.
    """

    rule: ReleaseRule | None
    findings: tuple[Finding, ...]

    @property
    def allowed(self) -> bool:
        """Whether every finding holds."""
        return bool(self.findings) and all(finding.ok for finding in self.findings)

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings that did not hold."""
        return tuple(finding for finding in self.findings if not finding.ok)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseFacts:
    """What besides rule and token a decision depends on.

    Attributes:
        appraisal_policy_digest: of the version in force of the policy that the token names; empty when none is.
        rego: answer of the rule's Rego policy, where it has one.
        approved_by: who approved this release.
        witnesses: how many witnesses cosign the log of releases.
    """

    appraisal_policy_digest: str
    rego: RegoAnswer = NOT_ASKED
    approved_by: frozenset[str] = frozenset()
    witnesses: int = 0


def prefixes_of(path: ResourcePath) -> tuple[str, ...]:
    """Return the prefixes that are about `path`, the most specific first."""
    return (str(path), f"{path.repository}/{path.type}/*", f"{path.repository}/*/*", EVERYTHING)


def parse_prefix(text: str) -> str:
    """Return a checked prefix.

    Raises:
        FormatRefused: `trust.release_policy.malformed`.
    """
    if text == EVERYTHING:
        return text
    segments = text.split("/")
    literal = [segment for segment in segments if segment != _WILDCARD]
    try:
        if len(segments) != 3 or not literal or segments[: len(literal)] != literal:
            raise FormatRefused(_MALFORMED, "not a prefix")
        ResourcePath(*(literal + ["x"] * (3 - len(literal))))
    except FormatRefused as err:
        raise FormatRefused(
            _MALFORMED,
            "not a prefix of resources",
            path="prefix",
            expected="repository/type/tag, repository/type/*, repository/*/* or *",
            actual=text[:80],
        ) from err
    return text


def parse_release_rule(prefix: str, data: bytes) -> ReleaseRule:
    """Parse a rule's file: Rego when its first statement is a package, JSON when it begins with a brace, else TOML.

    Rego is not run here: whether it loads says `cloister.trust.keybroker.rego`.

    Raises:
        FormatRefused: unknown field or level, malformed prefix or digest, a number out of range, too long or empty
            (`trust.release_policy.malformed`).
    """
    parse_prefix(prefix)
    if len(data) > POLICY_BYTES:
        raise FormatRefused(_MALFORMED, "rule too long", expected=f"at most {POLICY_BYTES} bytes")
    if not data.strip():
        raise FormatRefused(
            _MALFORMED, "an empty file is no rule", hint="remove the rule instead; then the default applies"
        )
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    if looks_like_rego(data):
        try:
            return ReleaseRule(prefix=prefix, rego=data.decode("utf-8"), digest=digest)
        except UnicodeDecodeError as err:
            raise FormatRefused(_MALFORMED, "Rego that is not UTF-8") from err
    try:
        if data.lstrip()[:1] == b"{":
            wire = msgspec.json.decode(data, type=_RuleWire)
        else:
            wire = msgspec.convert(parse_toml(data, ceiling=POLICY_BYTES, code=_MALFORMED), _RuleWire)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise FormatRefused(_MALFORMED, f"not a release rule: {err}") from err
    rule = ReleaseRule(prefix=prefix, digest=digest, **msgspec.structs.asdict(wire))
    _check_rule(rule)
    return rule


def encode_release_rule(rule: ReleaseRule) -> bytes:
    """Return the text of a rule; `parse_release_rule` reads it back under the same prefix."""
    if rule.rego:
        return rule.rego.encode("utf-8")
    fields = {name: getattr(rule, name) for name in _RuleWire.__struct_fields__}
    return msgspec.json.encode(_RuleWire(**fields), order="deterministic")


def parse_legacy_policy(data: bytes) -> tuple[ReleaseRule, ...]:
    """Return the rules of a policy document as earlier releases stored it, all paths in one text.

    Raises:
        FormatRefused: unknown version or field, a malformed path or digest, two rules for one path, too long
            (`trust.release_policy.malformed`).
    """
    if len(data) > POLICY_BYTES:
        raise FormatRefused(_MALFORMED, "policy too long", expected=f"at most {POLICY_BYTES} bytes")
    try:
        wire = msgspec.json.decode(data, type=_LegacyPolicy)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise FormatRefused(_MALFORMED, f"not a key-release policy: {err}") from err
    if wire.version != 1 or not wire.id:
        raise FormatRefused(_MALFORMED, "a policy has version 1 and an id", actual=f"version {wire.version}")
    if len(wire.rules) > POLICY_LIST_ITEMS or len({rule.path for rule in wire.rules}) != len(wire.rules):
        raise FormatRefused(_MALFORMED, "too many rules, or two of the same path", path="rules")
    return tuple(_from_legacy(rule) for rule in wire.rules)


def _from_legacy(rule: _LegacyRule) -> ReleaseRule:
    draft = ReleaseRule(
        prefix=parse_prefix(rule.path),
        init_data=rule.init_data,
        insecure_allow_levels=tuple(level for level in rule.insecure_accept_levels if level is not Level.HARDWARE),
        appraisal_policy=rule.appraisal_policy,
        revoked=rule.revoked,
        note=rule.note,
    )
    return parse_release_rule(draft.prefix, encode_release_rule(draft))


def evaluate_release(
    rules: ReleaseRules, path: ResourcePath, token: VerifiedToken, facts: ReleaseFacts, *, at: datetime
) -> ReleaseDecision:
    """Decide whether `path` may go to the guest that `token` is about.

    Steps: 1 the token is fresh; 2 a rule is about the path, or reference values name the guest's init data; 3 the owner
    did not revoke this init data; 4 the level is accepted; 5 the evidence was affirmed; 6 the rule names the init data;
    7 and the technology; 8 the evidence was judged by the policy the rule names, 9 in the version in force; 10 enough
    people approved; 11 enough witnesses cosign. A Rego rule decides instead of 5 to 8.

    Args:
        rules: in force.
        path: what is asked for.
        token: verified Attestation Result.
        facts: what else is known.
        at: aware UTC.
    """
    rule = rules.rule_for(path)
    findings = [_fresh(token, at), _known(rule, token), _not_revoked(rules, rule, token), _level(rule, token)]
    if rule is not None and rule.rego:
        findings.append(_by_rego(rule, facts.rego))
    else:
        findings += [_tier(rule, token), *_by_lists(rule, token)]
    findings.append(_version(token, facts))
    if rule is not None:
        findings += _by_others(rule, facts)
    return ReleaseDecision(rule=rule, findings=tuple(findings))


def allowed_levels(rule: ReleaseRule | None) -> frozenset[Level]:
    """Return the levels that a rule accepts; without a rule, and by Rego, `hardware` only."""
    return frozenset({Level.HARDWARE, *(rule.insecure_allow_levels if rule is not None and not rule.rego else ())})


def _fresh(token: VerifiedToken, at: datetime) -> Finding:
    """Step 1."""
    return _finding(
        "trust.release.fresh",
        token.issued_at <= token.expires_at and at < token.expires_at,
        "the Attestation Result is fresh",
        "the Attestation Result is too old",
        expected=f"before {token.expires_at.isoformat(timespec='seconds')}",
        actual=at.isoformat(timespec="seconds"),
        hint="attest again",
    )


def _known(rule: ReleaseRule | None, token: VerifiedToken) -> Finding:
    """Step 2."""
    by_references = token.init_data_referenced and bool(token.init_data)
    if rule is not None or by_references:
        said = "a release rule is about this resource" if rule else "the reference values name the guest's init data"
    else:
        said = "no rule is about this resource, and no reference values name the guest's init data"
    return _finding(
        "trust.release.no_rule",
        rule is not None or by_references,
        said,
        said,
        expected="a rule, or reference values with this init data",
        actual=rule.prefix if rule is not None else "reference values" if by_references else "neither",
        origin=_origin(rule),
        hint=(
            "write a release rule for this path that names the guest's init data, or register reference values that "
            "do (cloister refs propose); `cloister run` writes a rule for its pod"
        ),
    )


def _not_revoked(rules: ReleaseRules, rule: ReleaseRule | None, token: VerifiedToken) -> Finding:
    """Step 3."""
    revoked = token.init_data in rules.revoked or (rule is not None and token.init_data in rule.revoked)
    return _finding(
        "trust.release.revoked",
        not revoked,
        "the owner did not revoke this pod",
        "the owner revoked this pod",
        expected="not revoked",
        actual="revoked" if revoked else "not revoked",
        origin=_origin(rule),
        hint="the owner withdrew this pod's approval; only the owner can approve it again",
    )


def _level(rule: ReleaseRule | None, token: VerifiedToken) -> Finding:
    """Step 4."""
    levels = allowed_levels(rule)
    return _finding(
        "trust.release.level",
        token.level in levels,
        "the rule accepts the level of this guest",
        "the rule does not accept the level of this guest",
        expected=", ".join(sorted(level.value for level in levels)),
        actual=token.level.value,
        origin=_origin(rule),
        hint="run on real hardware, or accept the weaker level in `insecure_allow_levels` of the rule",
    )


def _tier(rule: ReleaseRule | None, token: VerifiedToken) -> Finding:
    """Step 5. Evidence that nobody signed is never affirmed; a rule that accepts simulated evidence accepts that."""
    accepted = [Tier.AFFIRMING]
    if token.level is Level.SIMULATED and Level.SIMULATED in allowed_levels(rule):
        accepted.append(Tier.WARNING)
    return _finding(
        "trust.release.tier",
        token.tier in accepted,
        "the verifier found nothing that refuses the evidence" if len(accepted) > 1 else "the evidence was affirmed",
        "the verifier did not affirm the evidence",
        expected=" or ".join(tier.value for tier in accepted),
        actual=token.tier.value,
        hint="the guest's evidence is not acceptable: see the findings of its appraisal",
    )


def _by_lists(rule: ReleaseRule | None, token: VerifiedToken) -> Iterable[Finding]:
    """Steps 6 to 8. Without a rule, step 2 has asked for the init data already."""
    if rule is None:
        return
    yield _named(rule, token)
    if rule.tees:
        yield _finding(
            "trust.release.tees",
            token.tee in rule.tees,
            "the rule accepts the technology of this guest",
            "the rule does not accept the technology of this guest",
            expected=", ".join(rule.tees),
            actual=token.tee,
            origin=_origin(rule),
            hint="add the technology to `tees` of the rule",
        )
    if rule.appraisal_policy:
        yield _finding(
            "trust.release.appraisal_policy",
            token.policy_id == rule.appraisal_policy,
            "the evidence was judged by the policy the rule asks for",
            "the evidence was judged by another policy than the rule asks for",
            expected=rule.appraisal_policy,
            actual=token.policy_id,
            origin=_origin(rule),
            hint="start the service with that appraisal policy, or change the rule",
        )


def _named(rule: ReleaseRule, token: VerifiedToken) -> Finding:
    """Step 6."""
    free = rule.insecure_any_init_data or (
        not rule.init_data and token.level is Level.SIMULATED and Level.SIMULATED in allowed_levels(rule)
    )
    ok = free or (bool(token.init_data) and token.init_data in rule.init_data)
    hint = "the guest runs under another pod policy or broker address than the rule was written for"
    if not rule.init_data:
        hint = (
            "the rule names no init data, so it releases nothing: add `init_data = [..]` with the digest that "
            "`cloister explain` of this denial shows"
        )
    elif not token.init_data:
        hint = "the guest was started without init data, so nothing says which pod it is: start it with some"
    return _finding(
        "trust.release.init_data",
        ok,
        "the rule is about any init data" if free else "the rule names the init data of this guest",
        "the rule does not name the init data of this guest",
        expected=", ".join(digest[:_SHOWN] + ".." for digest in rule.init_data[:8]) or "nothing: the list is empty",
        actual=token.init_data or "none",
        origin=_origin(rule),
        hint=hint,
    )


def _by_rego(rule: ReleaseRule, answer: RegoAnswer) -> Finding:
    return _finding(
        "trust.release.rego",
        answer.allowed,
        "the Rego policy allows it",
        "the Rego policy does not allow it",
        expected="data.policy.allow is true",
        actual=answer.said,
        origin=_origin(rule),
        hint="the owner's Rego policy decides about this resource",
    )


def _version(token: VerifiedToken, facts: ReleaseFacts) -> Finding:
    """Step 9."""
    digest = facts.appraisal_policy_digest
    return _finding(
        "trust.release.appraisal_policy_version",
        bool(digest) and token.policy_digest == digest,
        "the evidence was judged by the version of the policy that is in force",
        "the evidence was judged by a version of the policy that is not in force",
        expected=digest[:_SHOWN] + ".." if digest else "no such policy",
        actual=token.policy_digest[:_SHOWN] + "..",
        origin="stored appraisal policies",
        hint="the policy changed since the guest attested: attest again",
    )


def _by_others(rule: ReleaseRule, facts: ReleaseFacts) -> Iterable[Finding]:
    """Steps 10 and 11."""
    if rule.approvals is not None:
        approved = sorted(facts.approved_by & set(rule.approvals.of))
        yield _finding(
            "trust.release.approvals",
            len(approved) >= rule.approvals.need,
            "enough people approved this release",
            "too few people approved this release",
            expected=f"{rule.approvals.need} of {', '.join(rule.approvals.of)}",
            actual=", ".join(approved) or "nobody",
            origin=_origin(rule),
            hint="those whom the rule names must approve it first",
        )
    if rule.witnesses:
        yield _finding(
            "trust.release.witnesses",
            facts.witnesses >= rule.witnesses,
            "enough witnesses cosign the log of releases",
            "too few witnesses cosign the log of releases",
            expected=f"at least {rule.witnesses}",
            actual=str(facts.witnesses),
            origin=_origin(rule),
            hint="the service's owner has to add witnesses, or ask for fewer in the rule",
        )


def _origin(rule: ReleaseRule | None) -> str:
    return f"release rule {rule.prefix}" if rule is not None else "the default: no release rule"


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


def _check_rule(rule: ReleaseRule) -> None:
    if len(rule.init_data) + len(rule.revoked) > POLICY_LIST_ITEMS or len(rule.tees) > POLICY_LIST_ITEMS:
        raise FormatRefused(_MALFORMED, "list too long", path="init_data", expected=f"at most {POLICY_LIST_ITEMS}")
    for digest in (*rule.init_data, *rule.revoked):
        if not is_init_data_digest(digest):
            raise FormatRefused(
                _MALFORMED,
                "not a digest",
                path="init_data",
                expected="sha256: and 64 lower-case digits",
                actual=digest[:80],
            )
    if rule.init_data and rule.insecure_any_init_data:
        raise FormatRefused(
            _MALFORMED, "a rule names init data or accepts any, not both", path="insecure_any_init_data"
        )
    if any(level not in _BELOW_HARDWARE for level in rule.insecure_allow_levels):
        raise FormatRefused(
            _MALFORMED,
            "not a level below hardware",
            path="insecure_allow_levels",
            expected=" or ".join(_BELOW_HARDWARE),
        )
    for path, value, most in (
        ("lease_seconds", rule.lease_seconds, LEASE_SECONDS),
        ("witnesses", rule.witnesses, WITNESSES),
    ):
        if not 0 <= value <= most:
            raise FormatRefused(
                _MALFORMED, "number out of range", path=path, expected=f"0 to {most}", actual=str(value)[:20]
            )
    if rule.approvals is not None:
        _check_approvals(rule.approvals)


def _check_approvals(approvals: Approvals) -> None:
    names = approvals.of
    if not all(map(_NAME.fullmatch, names)) or len(set(names)) != len(names) or len(names) > APPROVERS:
        raise FormatRefused(_MALFORMED, "not a list of names, each once", path="approvals.of")
    if not 1 <= approvals.need <= len(names):
        raise FormatRefused(
            _MALFORMED, "more approvals than approvers", path="approvals.need", expected=f"1 to {len(names)}"
        )
