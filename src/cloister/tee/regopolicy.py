"""Rego appraisal policies written for CoCo's attestation service, loaded and run unchanged. Not the default path.

Such a policy is package `policy`; its rule `trust_claims` is an AR4SI vector made from the claims of one technology
(`input.snp`, `input.tdx`, ...) and from reference values, which it asks for by `query_reference_value(name)` or, in
older ones, reads from `data.reference`. Tiers are AR4SI's: 2 to 31 affirming, 32 to 95 warning, 96 to 127
contraindicated, mirrored below zero; 0 says nothing.

What CoCo's service leaves to the policy and its shipped policies forget stays on here: technology, level, debug and
open revocation are judged besides, by the typed policy. The vector's tier is the result's, where nothing else is worse:
only an affirming one accepts, because a shipped policy begins with warnings and raises them.

Who judges for others asks the policy in a process of its own (`cloister.trust.rego`) and gives the answer to
`appraise_by_vector`. `appraise_with_rego` asks here; it needs the extra `rego` (`regopy`), and the policy is then the
caller's own and trusted to end. The claims are the guest's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

import msgspec

from cloister.errors import FormatRefused, Unavailable
from cloister.rats.advisory import Advisory
from cloister.rats.policy import AppraisalPolicy, appraise, parse_appraisal_policy
from cloister.rats.result import BY_REGO, AttestationResult, Finding, Question, Severity, Unchecked, VerifiedEvidence
from cloister.tee.builtinpolicy import builtin_policy
from cloister.tee.registry import appraiser_for
from cloister.wire.limits import POLICY_BYTES
from cloister.wire.strictjson import parse_json_object

_POLICY: Final = "rats.rego.malformed"
VECTOR: Final = "data.policy.trust_claims"
# Second module of every policy: the function that CoCo's service gives them.
GLUE: Final = "package policy\n\nquery_reference_value(id) := object.get(data.rvps, id, null)\n"
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
# By group, CoCo's newer names of SNP's claims to the older ones.
_SNP_GROUPS: Final[Mapping[str, Mapping[str, str]]] = {
    "reported_tcb": {name: f"reported_tcb_{name}" for name in ("bootloader", "microcode", "snp", "tee")},
    "policy": {
        "debug_allowed": "policy_debug_allowed",
        "migrate_ma_allowed": "policy_migrate_ma",
        "abi_major": "policy_abi_major",
        "abi_minor": "policy_abi_minor",
        "single_socket_required": "policy_single_socket",
        "smt_allowed": "policy_smt_allowed",
    },
    "plat_info": {"smt_enabled": "platform_smt_enabled", "tsme_enabled": "platform_tsme_enabled"},
}
_CONTRAINDICATED: Final = 96
_LEAST, _MOST = -128, 127  # AR4SI values are signed bytes
_NOT_AN_ANSWER: Final = f"{BY_REGO}evaluation"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegoVector:
    """What a policy came to on some claims.

    Attributes:
        claims: the whole vector; empty when it could not be evaluated.
        extensions: further members for the result by name; JSON.
        failure: why it could not be evaluated, empty when it could.
    """

    claims: Mapping[str, int] = field(default_factory=dict)
    extensions: Mapping[str, Any] = field(default_factory=dict)  # Any: JSON
    failure: str = ""


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
    policy = RegoPolicy(
        text=_source(data),
        values=parse_json_object(values, ceiling=POLICY_BYTES, code="rats.rego.values", family=FormatRefused),
    )
    _evaluate(policy, {})
    return policy


def parse_named_policy(name: str, data: bytes) -> AppraisalPolicy:
    """Return an appraisal policy as it is stored under a name: typed, typed with Rego in it, or Rego and nothing else.

    Rego alone means the built-in typed policy beside it. Whether Rego loads is not tried here.

    Raises:
        FormatRefused: neither (`rats.policy.malformed`), or Rego that is too long or not UTF-8 (`rats.rego.malformed`).
    """
    if not looks_like_rego(data):
        return parse_appraisal_policy(data)
    return replace(
        builtin_policy(),
        id=name,
        digest="sha256:" + hashlib.sha256(data).hexdigest(),
        rego=_source(data),
        rego_alone=True,
    )


def policy_input(
    evidence: VerifiedEvidence, *, init_data_digest: str, input_claims: Mapping[str, Any]
) -> dict[str, Any]:  # Any: JSON as policies expect it
    """Return what a policy sees: the technology's claims under its name, and what is known beside them.

    CoCo's releases have named some of them differently, so they stand under each name: `az_snp_vtpm` as well as
    `az-snp-vtpm`, and of SNP `evidence` with the same values in groups.
    """
    claims = evidence.claims
    raw = dict(claims.raw)
    if claims.tee == "snp":
        raw["evidence"] = {"measurement": raw.get("measurement"), **_grouped(raw)}
    return {
        **input_claims,
        claims.tee.replace("-", "_"): raw,
        claims.tee: raw,
        "report_data": claims.report_data.hex(),
        "init_data": init_data_digest,
    }


def appraise_by_vector(
    evidence: VerifiedEvidence,
    vector: RegoVector,
    base: AppraisalPolicy,
    *,
    init_data_digest: str,
    at: datetime,
    advisories: Sequence[Advisory] = (),
) -> AttestationResult:
    """Judge verified evidence by what a Rego policy came to, and by what of the typed policy that does not replace.

    Args:
        evidence: authentic and bound.
        vector: what the policy came to on this evidence.
        base: technology, level, debug, revocation and advisories are judged by it; the platform too, unless it is Rego
            alone.
        init_data_digest: `sha256:` of the init data, for the result.
        at: aware time.
        advisories: the table of known weaknesses.
    """
    platform = list(_judge(vector))
    if not base.rego_alone and base.rego:
        platform += appraiser_for(evidence.claims.tee)(evidence.facts, base.rules, at=at)
    result = appraise(
        evidence,
        base,
        _BY_REGO,
        init_data_digest=init_data_digest,
        at=at,
        platform=platform,
        advisories=advisories,
        vector=vector.claims,
    )
    # The typed policy's warning that nobody judged the measurements is not true here.
    findings = tuple(item for item in result.findings if item.code != "appraisal.reference_values.not_requested")
    return replace(result, findings=findings, extensions=vector.extensions)


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
    """Ask a Rego policy in this process, then judge as `appraise_by_vector`.

    Args:
        evidence: authentic and bound.
        policy: the Rego policy.
        base: the typed policy beside it.
        init_data_digest: `sha256:` of the init data, for the result.
        at: aware time.
        input_claims: what the policy sees beside the technology's claims (`init_data_claims`, ...).
        advisories: the table of known weaknesses.

    Raises:
        FormatRefused: the policy fails on these claims (`rats.rego.malformed`).
    """
    seen = policy_input(evidence, init_data_digest=init_data_digest, input_claims=input_claims)
    return appraise_by_vector(
        evidence,
        RegoVector(claims=_evaluate(policy, seen)),
        base,
        init_data_digest=init_data_digest,
        at=at,
        advisories=advisories,
    )


def _grouped(raw: Mapping[str, Any]) -> dict[str, dict[str, Any]]:  # Any: JSON
    """Return the claims of SNP in the groups that newer policies of CoCo read."""
    return {
        group: {name: raw[ours] for name, ours in names.items() if ours in raw} for group, names in _SNP_GROUPS.items()
    }


def _judge(vector: RegoVector) -> tuple[Finding, ...]:
    """Return a finding per trust claim that says something, or should; a single one for a policy that failed."""
    if vector.failure:
        return (
            Finding(
                code=_NOT_AN_ANSWER,
                question=Question.ACCEPTABLE,
                ok=False,
                message="the Rego policy comes to no answer",
                expected=VECTOR,
                actual=vector.failure,
                origin="trust_claims of the Rego policy",
                hint="a rule fails on the claims of this technology, or takes too long",
            ),
        )
    claims = vector.claims
    return tuple(
        Finding(
            code=f"{BY_REGO}{name.replace('-', '_')}",
            question=Question.ACCEPTABLE,
            ok=_affirming(claims[name]),
            severity=Severity.ERROR if abs(claims[name]) >= _CONTRAINDICATED else Severity.WARNING,
            message=f"the Rego policy says {_tier(claims[name])} of {name}",
            expected="2 to 31 (affirming)",
            actual=str(claims[name]),
            origin="trust_claims of the Rego policy",
            hint="a reference value it asks for is missing or differs, or a rule for this technology does not hold",
        )
        for name in _CLAIMS
        if claims[name] or name in _REQUIRED
    )


def _affirming(value: int) -> bool:
    return 2 <= abs(value) <= 31


def _tier(value: int) -> str:
    size = abs(value)
    return "nothing" if size < 2 else "affirming" if size < 32 else "warning" if size < 96 else "contraindicated"


def _evaluate(policy: RegoPolicy, seen: Mapping[str, Any]) -> dict[str, int]:
    """Return the whole vector."""
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
        rego.add_module("query_reference_value", GLUE)
        rego.add_data({"rvps": dict(policy.values), "reference": dict(policy.values)})
        rego.set_input(msgspec.to_builtins(dict(seen)))
        answer = rego.query(VECTOR)
        value = answer.results[0].expressions[0] if answer.ok() and answer.results else None
    except (RegoError, IndexError, ValueError) as err:
        raise FormatRefused(_POLICY, f"the Rego policy fails: {str(err)[:160]}", expected=VECTOR) from err
    return checked_vector(value)


def checked_vector(value: object) -> dict[str, int]:
    """Return the whole vector that a policy gave; claims that it does not set are 0.

    Raises:
        FormatRefused: it is none (`rats.rego.malformed`).
    """
    try:
        claims = msgspec.convert(value, dict[str, int])
    except msgspec.ValidationError as err:
        raise FormatRefused(_POLICY, "the policy gives no vector of trust claims", expected=VECTOR) from err
    if any(name not in _CLAIMS or not _LEAST <= number <= _MOST for name, number in claims.items()):
        raise FormatRefused(_POLICY, "a trust claim is none of AR4SI", actual=", ".join(claims)[:120])
    return {name: claims.get(name, 0) for name in _CLAIMS}


def _source(data: bytes) -> str:
    if len(data) > POLICY_BYTES:
        raise FormatRefused(_POLICY, "policy too long", expected=f"at most {POLICY_BYTES} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as err:
        raise FormatRefused(_POLICY, "policy is not UTF-8") from err
