"""The one evaluator of release rules: may this guest have this resource? Pure: values in, findings out.

Verdict and explanation are the same findings. What is asked of every release, whatever a rule says: a fresh token, a
level that the rule accepts, no revocation, the appraisal policy in force.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from cloister.protocol.resourceuri import ResourcePath
from cloister.rats.claims import Level
from cloister.rats.result import Finding, Question, Tier
from cloister.trust.keybroker.policy import ReleaseRule, ReleaseRules

_JUDGED: Final = 1024  # kinds of guest that are remembered with the rules
_SHOWN: Final = 23  # "sha256:" and 16 digits


class GuestFacts(Protocol):
    """What of a guest decides: `cloister.trust.keybroker.token.VerifiedToken`, or what was recorded of one."""

    @property
    def tee(self) -> str:
        """Technology."""
        ...

    @property
    def tier(self) -> Tier:
        """The verdict, the worst of all devices."""
        ...

    @property
    def level(self) -> Level:
        """What the evidence proved, the least of all devices."""
        ...

    @property
    def init_data(self) -> str:
        """Digest of the init data, empty when it names none."""
        ...

    @property
    def init_data_referenced(self) -> bool:
        """Whether the reference values it matched name that."""
        ...

    @property
    def policy_id(self) -> str:
        """Appraisal policy."""
        ...

    @property
    def policy_digest(self) -> str:
        """Digest of the text applied."""
        ...

    @property
    def verifier(self) -> str:
        """Whose result it is; empty for this service's own."""
        ...

    @property
    def issued_at(self) -> datetime:
        """When the result was made, aware UTC."""
        ...

    @property
    def expires_at(self) -> datetime:
        """Its end, aware UTC."""
        ...


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


def evaluate_release(
    rules: ReleaseRules, path: ResourcePath, token: GuestFacts, facts: ReleaseFacts, *, at: datetime
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
    return ReleaseDecision(rule=rule, findings=(_fresh(token, at), *_judged(rules, rule, token, facts)))


def _judged(
    rules: ReleaseRules, rule: ReleaseRule | None, token: GuestFacts, facts: ReleaseFacts
) -> tuple[Finding, ...]:
    """Return the findings of all steps but the first, remembered with the rules: a pod's guests differ in nothing else.

    Whatever a step looks at is part of the key; `GuestFacts` and `ReleaseFacts` have nothing besides but times.
    """
    key = (
        rule.prefix if rule is not None else None,
        (token.tee, token.tier, token.level, token.init_data, token.init_data_referenced),
        (token.policy_id, token.policy_digest, token.verifier),
        facts,
    )
    known = rules.judged.get(key)
    if known is None:
        if len(rules.judged) >= _JUDGED:
            rules.judged.clear()
        known = rules.judged[key] = tuple(_judge(rules, rule, token, facts))
    return known


def _judge(rules: ReleaseRules, rule: ReleaseRule | None, token: GuestFacts, facts: ReleaseFacts) -> Iterable[Finding]:
    findings = [_known(rule, token), _not_revoked(rules, rule, token), _level(rule, token)]
    if rule is not None and rule.rego:
        findings.append(_by_rego(rule, facts.rego))
    else:
        findings += [_tier(rule, token), *_by_lists(rule, token)]
    findings.append(_version(rule, token, facts))
    if rule is not None:
        findings += _by_others(rule, facts)
    return findings


def evaluate_floor(rules: ReleaseRules, token: GuestFacts, facts: ReleaseFacts, *, at: datetime) -> ReleaseDecision:
    """Return what is asked of every guest, whatever it asks for: steps 1, 3 and 9 of `evaluate_release`."""
    findings = (_fresh(token, at), _not_revoked(rules, None, token), _version(None, token, facts))
    return ReleaseDecision(rule=None, findings=findings)


def allowed_levels(rule: ReleaseRule | None) -> frozenset[Level]:
    """Return the levels that a rule accepts; without a rule, and by Rego, `hardware` only."""
    return frozenset({Level.HARDWARE, *(rule.insecure_allow_levels if rule is not None and not rule.rego else ())})


def _fresh(token: GuestFacts, at: datetime) -> Finding:
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


def _known(rule: ReleaseRule | None, token: GuestFacts) -> Finding:
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


def _not_revoked(rules: ReleaseRules, rule: ReleaseRule | None, token: GuestFacts) -> Finding:
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


def _level(rule: ReleaseRule | None, token: GuestFacts) -> Finding:
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


def _tier(rule: ReleaseRule | None, token: GuestFacts) -> Finding:
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


def _by_lists(rule: ReleaseRule | None, token: GuestFacts) -> Iterable[Finding]:
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


def _named(rule: ReleaseRule, token: GuestFacts) -> Finding:
    """Step 6. An empty list is nobody: to withdraw the last approval never opens a resource for others."""
    free = rule.insecure_any_init_data or (
        rule.init_data is None and token.level is Level.SIMULATED and Level.SIMULATED in allowed_levels(rule)
    )
    ok = free or (bool(token.init_data) and token.init_data in rule.named)
    hint = "the guest runs under another pod policy or broker address than the rule was written for"
    if not rule.named:
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
        expected=", ".join(digest[:_SHOWN] + ".." for digest in rule.named[:8]) or "nothing: the list is empty",
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


def _version(rule: ReleaseRule | None, token: GuestFacts, facts: ReleaseFacts) -> Finding:
    """Step 9. Another verifier's policy is not known here: a rule in Rego sees whose it is, others have to name it."""
    if token.verifier:
        named = rule is not None and (bool(rule.rego) or rule.appraisal_policy == token.policy_id)
        return _finding(
            "trust.release.verifier",
            named,
            "the rule accepts the result of this other verifier",
            "the rule does not say that the result of another verifier is enough",
            expected=f"appraisal_policy = {rule.appraisal_policy}" if rule is not None else "a rule that names it",
            actual=token.policy_id,
            origin=_origin(rule),
            hint=f'write appraisal_policy = "{token.policy_id}" into the rule, or attest to this service',
        )
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
