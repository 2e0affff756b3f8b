"""The appraisal policy: which levels and technologies an owner accepts, as strict JSON, and its one evaluator.

The default accepts `hardware` only. A weaker level is accepted only by a field whose name begins with `insecure_`.
An unknown field refuses the whole policy, so a misspelt restriction can never silently be no restriction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import msgspec

from cloister.errors import FormatRefused
from cloister.rats.claims import Level
from cloister.rats.reference import ReferenceEntry, appraise_registers
from cloister.rats.result import AttestationResult, Finding, Question, VerifiedEvidence
from cloister.wire.limits import POLICY_BYTES

RESULT_LIFETIME: Final = timedelta(minutes=5)


class AppraisalPolicyWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """JSON form of an appraisal policy, version 1."""

    version: int
    id: str
    tees: list[str]
    insecure_accept_levels: list[Level] = msgspec.field(default_factory=list)
    insecure_accept_debug: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AppraisalPolicy:
    """A parsed appraisal policy and the digest of the text it came from."""

    id: str
    tees: frozenset[str]
    levels: frozenset[Level]
    accept_debug: bool
    digest: str


def parse_appraisal_policy(data: bytes) -> AppraisalPolicy:
    """Parse policy JSON.

    Raises:
        FormatRefused: unknown version or field, empty technology list, too long (`rats.policy.malformed`).
    """
    if len(data) > POLICY_BYTES:
        raise FormatRefused("rats.policy.malformed", "policy too long", expected=f"at most {POLICY_BYTES} bytes")
    try:
        wire = msgspec.json.decode(data, type=AppraisalPolicyWire)
    except msgspec.MsgspecError as err:
        raise FormatRefused("rats.policy.malformed", f"not an appraisal policy: {err}") from err
    if wire.version != 1:
        raise FormatRefused("rats.policy.malformed", "unknown version", expected="1", actual=str(wire.version))
    if not wire.tees or not wire.id:
        raise FormatRefused("rats.policy.malformed", "a policy needs an id and at least one technology")
    return AppraisalPolicy(
        id=wire.id,
        tees=frozenset(wire.tees),
        levels=frozenset({Level.HARDWARE, *wire.insecure_accept_levels}),
        accept_debug=wire.insecure_accept_debug,
        digest="sha256:" + hashlib.sha256(data).hexdigest(),
    )


def appraise(
    evidence: VerifiedEvidence,
    policy: AppraisalPolicy,
    references: Sequence[ReferenceEntry],
    *,
    init_data_digest: str,
    at: datetime,
) -> AttestationResult:
    """Judge verified evidence; collect all findings, decide by them alone.

    Steps: 1 technology accepted, 2 level accepted, 3 debug off, 4 registers hold reference values.
    """
    claims = evidence.claims
    accepted = ", ".join(sorted(level.value for level in policy.levels))
    known_tee, known_level = claims.tee in policy.tees, claims.level in policy.levels
    debug_ok = policy.accept_debug or not claims.debug
    findings = [
        *evidence.findings,
        # 1
        Finding(
            code="appraisal.technology",
            question=Question.ACCEPTABLE,
            ok=known_tee,
            message=f"technology is {'' if known_tee else 'not '}one the policy accepts",
            expected=", ".join(sorted(policy.tees)),
            actual=claims.tee,
            origin=f"appraisal policy {policy.id}",
            hint="add the technology to `tees` of the appraisal policy",
        ),
        # 2
        Finding(
            code="appraisal.level",
            question=Question.ACCEPTABLE,
            ok=known_level,
            message=f"level is {'' if known_level else 'not '}one the policy accepts",
            expected=accepted,
            actual=claims.level.value,
            origin=f"appraisal policy {policy.id}",
            hint="run on real hardware, or accept the weaker level in `insecure_accept_levels`",
        ),
        # 3
        Finding(
            code="appraisal.debug",
            question=Question.ACCEPTABLE,
            ok=debug_ok,
            message="debug access is off" if not claims.debug else "debug access is on",
            expected="off" if not policy.accept_debug else "any",
            actual="on" if claims.debug else "off",
            origin=f"appraisal policy {policy.id}",
            hint="start the pod VM without debug",
        ),
        # 4
        *appraise_registers(claims, references, at=at),
    ]
    return AttestationResult(
        claims=claims,
        findings=tuple(findings),
        unchecked=evidence.unchecked,
        policy_id=policy.id,
        policy_digest=policy.digest,
        init_data_digest=init_data_digest,
        issued_at=at,
        expires_at=at + RESULT_LIFETIME,
    )
