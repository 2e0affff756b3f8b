"""Rego appraisal policies written for CoCo's attestation service, loaded and run unchanged. Not the default path.

Such a policy is package `policy`; its rule `trust_claims` is an AR4SI vector made from the claims of one technology
(`input.snp`, `input.tdx`, ...) and from reference values, which it asks for by `query_reference_value(name)` or, in
older ones, reads from `data.reference`. Tiers are AR4SI's: 2 to 31 affirming, 32 to 95 warning, 96 to 127
contraindicated, mirrored below zero; 0 says nothing.

What CoCo's service leaves to the policy and its shipped policies forget stays on here: technology, level, debug and
open revocation are judged besides, by the typed policy. Only an affirming vector accepts: a warning refuses, because
a shipped policy begins with warnings and raises them.

Needs the extra `rego` (`regopy`). The policy is the owner's and trusted to end; the claims are the guest's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import msgspec

from cloister.errors import FormatRefused, Unavailable
from cloister.rats.advisory import Advisory
from cloister.rats.policy import AppraisalPolicy, appraise
from cloister.rats.result import AttestationResult, Finding, Question, Severity, Unchecked, VerifiedEvidence
from cloister.wire.limits import POLICY_BYTES
from cloister.wire.strictjson import parse_json_object

_POLICY: Final = "rats.rego.malformed"
_QUERY: Final = "data.policy.trust_claims"
_GLUE: Final = "package policy\n\nquery_reference_value(id) := object.get(data.rvps, id, null)\n"
_BY_REGO: Final = Unchecked(reason="the Rego policy judges measurements")
# AR4SI, section 2.3: names of the vector, and what a policy must say something about to be affirming.
_CLAIMS: Final = (
    "instance-identity",
    "configuration",
    "executables",
    "file-system",
    "hardware",
    "runtime-opaque",
    "storage-opaque",
    "sourced-data",
)
_REQUIRED: Final = ("executables", "hardware")
_LEAST, _MOST = -128, 127  # AR4SI values are signed bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RegoPolicy:
    """A policy and the reference values it may ask for.

    Attributes:
        text: Rego source, package `policy`.
        values: reference values by name; any JSON.
    """

    text: str
    values: Mapping[str, Any]  # Any: JSON as the policy expects it


def looks_like_rego(data: bytes) -> bool:
    """Return whether a policy file is Rego: its first statement declares a package."""
    for line in data.splitlines():
        words = line.split()
        if words and not words[0].startswith(b"#"):
            return words[0] == b"package"
    return False


def parse_rego_policy(data: bytes, values: bytes = b"{}") -> RegoPolicy:
    """Return a policy that loads.

    Args:
        data: Rego source.
        values: JSON object of reference values by name, as CoCo's RVPS holds them.

    Raises:
        FormatRefused: it does not load or has no `trust_claims`, or the values are no JSON object
            (`rats.rego.malformed`).
        Unavailable: the extra `rego` is not installed (`rats.rego.absent`).
    """
    if len(data) > POLICY_BYTES:
        raise FormatRefused(_POLICY, "policy too long", expected=f"at most {POLICY_BYTES} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as err:
        raise FormatRefused(_POLICY, "policy is not UTF-8") from err
    policy = RegoPolicy(
        text=text, values=parse_json_object(values, ceiling=POLICY_BYTES, code="rats.rego.values", family=FormatRefused)
    )
    _evaluate(policy, {})
    return policy


def appraise_with_rego(
    evidence: VerifiedEvidence,
    policy: RegoPolicy,
    base: AppraisalPolicy,
    *,
    init_data_digest: str,
    at: datetime,
    input_claims: Mapping[str, Any],
    advisories: Sequence[Advisory] = (),
) -> AttestationResult:
    """Judge verified evidence by a Rego policy, and by the part of the typed policy that no Rego policy replaces.

    Args:
        evidence: authentic and bound.
        policy: the Rego policy.
        base: technology, level, debug, revocation and advisories are judged by it.
        init_data_digest: `sha256:` of the init data, for the result.
        at: aware time.
        input_claims: what the policy sees beside the technology's claims (`init_data_claims`, ...).
        advisories: the table of known weaknesses.

    Raises:
        FormatRefused: the policy fails on these claims (`rats.rego.malformed`).
    """
    claims = evidence.claims
    seen = {
        **input_claims,
        claims.tee: dict(claims.raw),
        "report_data": claims.report_data.hex(),
        "init_data": init_data_digest,
    }
    vector = _evaluate(policy, seen)
    result = appraise(
        evidence,
        base,
        _BY_REGO,
        init_data_digest=init_data_digest,
        at=at,
        platform=_judge(vector),
        advisories=advisories,
    )
    # The typed policy's warning that nobody judged the measurements is not true here.
    findings = tuple(item for item in result.findings if item.code != "appraisal.reference_values.not_requested")
    return replace(result, findings=findings)


def _judge(vector: Mapping[str, int]) -> tuple[Finding, ...]:
    """Return a finding per trust claim that says something, or should."""
    return tuple(
        Finding(
            code=f"appraisal.rego.{name.replace('-', '_')}",
            question=Question.ACCEPTABLE,
            ok=_affirming(vector[name]),
            severity=Severity.ERROR,
            message=f"the Rego policy says {_tier(vector[name])} of {name}",
            expected="2 to 31 (affirming)",
            actual=str(vector[name]),
            origin="trust_claims of the Rego policy",
            hint="a reference value it asks for is missing or differs, or a rule for this technology does not hold",
        )
        for name in _CLAIMS
        if vector[name] or name in _REQUIRED
    )


def _affirming(value: int) -> bool:
    return 2 <= abs(value) <= 31


def _tier(value: int) -> str:
    size = abs(value)
    return "nothing" if size < 2 else "affirming" if size < 32 else "warning" if size < 96 else "contraindicated"


def _evaluate(policy: RegoPolicy, seen: Mapping[str, Any]) -> dict[str, int]:
    """Return the whole vector; claims that the policy does not set are 0."""
    try:
        from regopy import Interpreter, LogLevel, RegoError
    except ImportError as err:
        raise Unavailable(
            "rats.rego.absent",
            "this installation cannot run Rego policies",
            hint="install the extra: pip install 'cloister[rego]'",
        ) from err
    try:
        rego = Interpreter()
        rego.log_level = LogLevel.NONE  # it would print a policy's faults to standard output, into our results
        rego.add_module("policy", policy.text)
        rego.add_module("query_reference_value", _GLUE)
        rego.add_data({"rvps": dict(policy.values), "reference": dict(policy.values)})
        rego.set_input(msgspec.to_builtins(dict(seen)))
        answer = rego.query(_QUERY)
        value = answer.results[0].expressions[0] if answer.ok() and answer.results else None
    except (RegoError, IndexError, ValueError) as err:
        raise FormatRefused(_POLICY, f"the Rego policy fails: {str(err)[:160]}", expected=_QUERY) from err
    try:
        claims = msgspec.convert(value, dict[str, int])
    except msgspec.ValidationError as err:
        raise FormatRefused(_POLICY, "the policy gives no vector of trust claims", expected=_QUERY) from err
    if any(name not in _CLAIMS or not _LEAST <= number <= _MOST for name, number in claims.items()):
        raise FormatRefused(_POLICY, "a trust claim is none of AR4SI", actual=", ".join(claims)[:120])
    return {name: claims.get(name, 0) for name in _CLAIMS}
