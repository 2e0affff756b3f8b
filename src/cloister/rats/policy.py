"""The appraisal policy: which levels, technologies and platforms an owner accepts, and its one evaluator.

Strict JSON or TOML. The default accepts `hardware` only, and of each platform what `cloister.rats.rules` has as its
defaults. A weaker level, debug, or evidence without revocation data is accepted only by a field whose name begins with
`insecure_`. An unknown field refuses the whole policy, so a misspelt restriction can never silently be no restriction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

import msgspec

from cloister.errors import FormatRefused, Unavailable
from cloister.rats.advisory import Advisory, appraise_advisories
from cloister.rats.claims import Claims, Level
from cloister.rats.reference import ReferenceEntry, appraise_registers
from cloister.rats.result import BY_REGO, AttestationResult, Finding, Question, Severity, Unchecked, VerifiedEvidence
from cloister.rats.rules import Handling, PlatformRules
from cloister.wire.limits import POLICY_BYTES
from cloister.wire.stricttoml import parse_toml

RESULT_LIFETIME: Final = timedelta(minutes=5)
_REVOCATION: Final = "revocation"  # part of the code of every finding about it
_LONGEST_GRACE: Final = timedelta(days=30)


class AppraisalPolicyWire(PlatformRules, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Wire form of an appraisal policy, version 1: the general part here, one section per technology below it.

    Attributes:
        version: 1.
        id: name of the policy, shown in findings and results.
        tees: technologies accepted.
        advisories: what a critical advisory that applies to the platform means; lesser ones are warnings.
        acknowledged_advisories: advisories that no longer count, by id.
        collateral_grace_seconds: how long past its next update revocation data may still be used; its use is a warning.
        insecure_accept_levels: levels accepted besides `hardware`.
        insecure_accept_debug: accept guests that their operator may read.
        insecure_no_revocation: accept evidence whose revocation could not be checked.
        rego: Rego source that judges measurements besides, instead of reference values compared whole; empty for none.
    """

    version: int
    id: str
    tees: list[str]
    advisories: Handling = Handling.REFUSE
    acknowledged_advisories: tuple[str, ...] = ()
    collateral_grace_seconds: int = 0
    insecure_accept_levels: list[Level] = msgspec.field(default_factory=list)
    insecure_accept_debug: bool = False
    insecure_no_revocation: bool = False
    rego: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppraisalPolicy:
    """A parsed appraisal policy and the digest of the text it came from.

    `rego` is the source that judges measurements, empty for none; `rego_alone` says that the whole text was Rego, so
    that it stands for the rules of platforms, too.
    """

    id: str
    tees: frozenset[str]
    levels: frozenset[Level]
    accept_debug: bool
    digest: str
    rules: PlatformRules = field(default_factory=PlatformRules)
    advisories: Handling = Handling.REFUSE
    acknowledged: frozenset[str] = frozenset()
    grace: timedelta = timedelta()
    accept_unchecked_revocation: bool = False
    rego: str = ""
    rego_alone: bool = False


def parse_appraisal_policy(data: bytes) -> AppraisalPolicy:
    """Parse policy text: JSON when it begins with a brace, else TOML.

    Raises:
        FormatRefused: unknown version or field, empty technology list, too long (`rats.policy.malformed`).
    """
    if len(data) > POLICY_BYTES:
        raise FormatRefused("rats.policy.malformed", "policy too long", expected=f"at most {POLICY_BYTES} bytes")
    try:
        if data.lstrip()[:1] == b"{":
            wire = msgspec.json.decode(data, type=AppraisalPolicyWire)
        else:
            document = parse_toml(data, ceiling=POLICY_BYTES, code="rats.policy.malformed")
            wire = msgspec.convert(document, AppraisalPolicyWire)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise FormatRefused("rats.policy.malformed", f"not an appraisal policy: {err}") from err
    if wire.version != 1:
        raise FormatRefused("rats.policy.malformed", "unknown version", expected="1", actual=str(wire.version))
    if not wire.tees or not wire.id:
        raise FormatRefused("rats.policy.malformed", "a policy needs an id and at least one technology")
    grace = timedelta(seconds=min(max(wire.collateral_grace_seconds, -1), 2**31))
    if not timedelta() <= grace <= _LONGEST_GRACE:
        raise FormatRefused(
            "rats.policy.malformed",
            "grace out of range",
            path="collateral_grace_seconds",
            expected=f"0 to {int(_LONGEST_GRACE.total_seconds())}",
            actual=str(wire.collateral_grace_seconds),
        )
    return AppraisalPolicy(
        id=wire.id,
        tees=frozenset(wire.tees),
        levels=frozenset({Level.HARDWARE, *wire.insecure_accept_levels}),
        accept_debug=wire.insecure_accept_debug,
        digest="sha256:" + hashlib.sha256(data).hexdigest(),
        rules=PlatformRules(**{name: getattr(wire, name) for name in PlatformRules.__struct_fields__}),
        advisories=wire.advisories,
        acknowledged=frozenset(wire.acknowledged_advisories),
        grace=grace,
        accept_unchecked_revocation=wire.insecure_no_revocation,
        rego=wire.rego,
    )


def appraise(
    evidence: VerifiedEvidence,
    policy: AppraisalPolicy,
    references: Sequence[ReferenceEntry] | Unchecked,
    *,
    init_data_digest: str,
    at: datetime,
    platform: Sequence[Finding] = (),
    advisories: Sequence[Advisory] = (),
    vector: Mapping[str, int] | None = None,
) -> AttestationResult:
    """Judge verified evidence; collect all findings, decide by them alone.

    Steps: 1 what verification left open, 2 technology accepted, 3 level accepted, 4 debug off, 5 the owner's rules for
    the platform, 6 advisories, 7 registers hold reference values.

    Evidence that nobody signed proves nothing, so no policy can accept or refuse it: every finding about it is told as
    a warning, its tier is a warning at best, and whoever releases something decides by its level alone. What a Rego
    policy says of it stands: an owner who writes one wants its answer.

    Args:
        evidence: authentic and bound.
        policy: the owner's.
        references: accepted register values, or why they are not asked for.
        init_data_digest: `sha256:` of the init data, for the result.
        at: aware time.
        platform: findings of the technology's `appraise_platform`.
        advisories: the table of known weaknesses.
        vector: what the policy's Rego gave; its findings are among those of the platform.

    Raises:
        Unavailable: the policy has Rego and nobody asked it (`rats.rego.unasked`).
    """
    if policy.rego and vector is None:
        raise Unavailable("rats.rego.unasked", "the appraisal policy is in Rego, which is not evaluated here")
    judged = [
        # 2 3 4
        *_judge_claims(evidence.claims, policy),
        # 5
        *platform,
        # 6
        *appraise_advisories(evidence.claims, advisories, critical=policy.advisories, acknowledged=policy.acknowledged),
        # 7
        *appraise_registers(evidence.claims, references, at=at, init_data=init_data_digest),
    ]
    if evidence.unsigned:
        judged = [finding if finding.code.startswith(BY_REGO) else _tell(finding) for finding in judged]
    # 1
    findings = [*(_judge_open(finding, policy) for finding in evidence.findings), *judged]
    return AttestationResult(
        claims=evidence.claims,
        findings=tuple(findings),
        unchecked=evidence.unchecked,
        policy_id=policy.id,
        policy_digest=policy.digest,
        init_data_digest=init_data_digest,
        issued_at=at,
        expires_at=at + RESULT_LIFETIME,
        vector=vector,
    )


def _judge_open(finding: Finding, policy: AppraisalPolicy) -> Finding:
    """Step 1: revocation that could not be checked stays open, unless the owner wrote that it may.

    Anything else that is open (a TCB that no collateral tells) stays so whatever the owner wrote.
    """
    if finding.unknown and policy.accept_unchecked_revocation and _REVOCATION in finding.code.split("."):
        return replace(finding, severity=Severity.WARNING, origin=f"insecure_no_revocation of policy {policy.id}")
    return finding


def _tell(finding: Finding) -> Finding:
    """Make of a finding that refuses, or stays open, one that is told."""
    return finding if finding.ok else replace(finding, severity=Severity.WARNING)


def _judge_claims(claims: Claims, policy: AppraisalPolicy) -> tuple[Finding, ...]:
    return _judge_kind(
        policy.id, policy.tees, policy.levels, policy.accept_debug, claims.tee, claims.level, claims.debug
    )


@lru_cache(maxsize=256)
def _judge_kind(
    policy: str,
    tees: frozenset[str],
    levels: frozenset[Level],
    accept_debug: bool,
    tee: str,
    level: Level,
    debug: bool,
) -> tuple[Finding, ...]:
    """Return the findings about what all guests of a kind have in common, hence remembered."""
    accepted = ", ".join(sorted(each.value for each in levels))
    known_tee, known_level = tee in tees, level in levels
    debug_ok = accept_debug or not debug
    return (
        # 2
        Finding(
            code="appraisal.technology",
            question=Question.ACCEPTABLE,
            ok=known_tee,
            message=f"technology is {'' if known_tee else 'not '}one the policy accepts",
            expected=", ".join(sorted(tees)),
            actual=tee,
            origin=f"appraisal policy {policy}",
            hint="add the technology to `tees` of the appraisal policy",
        ),
        # 3
        Finding(
            code="appraisal.level",
            question=Question.ACCEPTABLE,
            ok=known_level,
            message=f"level is {'' if known_level else 'not '}one the policy accepts",
            expected=accepted,
            actual=level.value,
            origin=f"appraisal policy {policy}",
            hint="run on real hardware, or accept the weaker level in `insecure_accept_levels`",
        ),
        # 4
        Finding(
            code="appraisal.debug",
            question=Question.ACCEPTABLE,
            ok=debug_ok,
            message="debug access is off" if not debug else "debug access is on",
            expected="off" if not accept_debug else "any",
            actual="on" if debug else "off",
            origin=f"appraisal policy {policy}",
            hint="start the pod VM without debug",
        ),
    )
