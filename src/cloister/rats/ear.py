"""The Attestation Result on the wire: EAR claims, encoded from results and decoded into types.

Sources: draft-fv-rats-ear (claims), draft-ietf-rats-ar4si (trustworthiness vector: 2 affirming, 32 warning, 96
contraindicated, 0 nothing said), RFC 9711 (EAT, submodules). Names are those of CoCo's attestation service, so that
relying parties written for it understand ours; ours beside them begin with `ear.cloister.`. Composite evidence has one
submodule per device: `cpu0`, `gpu0`, `gpu1`, ...

Unsigned claims sets only: signing and verifying the JWT is `cloister.crypto.jwt`. `decode_ear` types what it is given
and believes it; only a caller that verified the signature may.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from cloister.errors import FormatRefused
from cloister.rats.claims import Level
from cloister.rats.result import BY_REGO, AttestationResult, Finding, Question, Severity, Tier

EAR_PROFILE: Final = "tag:cloister,2026:ear/1"
ISSUER: Final = "cloister-verifier"
PRIMARY: Final = "cpu0"
SUBMODULES: Final = 64  # most that are read: eight GPUs, four switches and a CPU are thirteen
_DEVELOPER: Final = "https://github.com/cloister"
_EXECUTABLES: Final = "appraisal.reference_values"
_EVIDENCE: Final = "ear.veraison.annotated-evidence"
_MALFORMED: Final = "rats.ear.malformed"
_BESIDE_EVIDENCE: Final = frozenset({"report_data", "init_data", "runtime_data_claims", "init_data_claims"})


class EARFinding(msgspec.Struct, frozen=True, kw_only=True):
    """A check as the token tells it; an expected value may have been left out on purpose."""

    code: str
    question: Question
    ok: bool
    severity: Severity = Severity.ERROR
    message: str = ""
    expected: str = ""
    actual: str = ""
    origin: str = ""
    hint: str = ""
    path: str = ""

    @property
    def refuses(self) -> bool:
        """Whether this finding alone makes the verdict a refusal."""
        return not self.ok and self.severity is Severity.ERROR


class EARSubmodule(msgspec.Struct, frozen=True, kw_only=True):
    """What the result says of one device. Members of others are ignored, as EAT asks.

    Attributes:
        status: its tier.
        vector: AR4SI trustworthiness vector.
        policy_id: appraisal policy that judged.
        policy_digest: `sha256:` of its text.
        level: what the evidence proved.
        instance: identity of the chip or vTPM.
        findings: all checks.
        unchecked: what was deliberately not checked.
        init_data_referenced: whether the reference values that it matched name its init data.
        annotated: claims by technology, `report_data`, `init_data`, `runtime_data_claims`, `init_data_claims`.
    """

    status: Tier = msgspec.field(name="ear.status")
    vector: dict[str, int] = msgspec.field(name="ear.trustworthiness-vector")
    policy_id: str = msgspec.field(name="ear.appraisal-policy-id")
    policy_digest: str = msgspec.field(name="ear.cloister.policy-digest")
    level: Level = msgspec.field(name="ear.cloister.level")
    instance: str = msgspec.field(name="ear.cloister.instance")
    findings: tuple[EARFinding, ...] = msgspec.field(name="ear.cloister.findings")
    unchecked: tuple[str, ...] = msgspec.field(name="ear.cloister.unchecked", default=())
    init_data_referenced: bool = msgspec.field(name="ear.cloister.init-data-referenced", default=False)
    annotated: dict[str, Any] = msgspec.field(name=_EVIDENCE)  # Any: JSON; read by the members below

    @property
    def tee(self) -> str:
        """Wire name of the technology: the one member of the annotated evidence that is none of the common ones."""
        [name] = set(self.annotated) - _BESIDE_EVIDENCE
        return name

    @property
    def init_data(self) -> str:
        """`sha256:` of the init data that the evidence binds, empty for a device that binds none."""
        return str(self.annotated["init_data"])

    @property
    def failures(self) -> tuple[EARFinding, ...]:
        """The findings that refuse."""
        return tuple(finding for finding in self.findings if finding.refuses)


@dataclass(frozen=True, slots=True, kw_only=True)
class EAR:
    """A decoded claims set.

    Attributes:
        issuer: `iss`.
        identity: `jti`, the id of the result.
        issued_at: aware UTC.
        expires_at: aware UTC.
        submodules: by name; at least the primary one.
        audience: `aud`, for whom the result was made; empty when it does not say.
        protocol: version of the key broker protocol the guest speaks; empty for the newest.
    """

    issuer: str
    identity: str
    issued_at: datetime
    expires_at: datetime
    submodules: Mapping[str, EARSubmodule]
    audience: str = ""
    protocol: str = ""

    @property
    def primary(self) -> EARSubmodule:
        """The submodule of the CPU, whose evidence binds that of all other devices."""
        return self.submodules[PRIMARY]

    @property
    def status(self) -> Tier:
        """The worst status of all submodules."""
        order = (Tier.CONTRAINDICATED, Tier.NONE, Tier.WARNING, Tier.AFFIRMING)
        return min((item.status for item in self.submodules.values()), key=order.index)


class _Wire(msgspec.Struct, frozen=True, kw_only=True):
    eat_profile: str
    iss: str
    jti: str
    iat: int
    exp: int
    submods: dict[str, EARSubmodule]
    aud: str = ""
    protocol: str = msgspec.field(default="", name="ear.cloister.protocol")


def trust_vector(findings: Sequence[Finding], level: Level) -> dict[str, int]:
    """Return the AR4SI vector for `findings`.

    `hardware` follows authenticity, `instance-identity` the binding, `executables` the reference values and
    `configuration` everything else a policy judges; 2 is affirming, 32 a warning, 96 contraindicated, 0 says nothing
    because nothing was checked or the answer is open.
    A level other than `hardware` can never affirm `hardware`: it is 32 (warning), whatever the policy accepted.
    """
    states: dict[str, set[Severity | None]] = {
        name: set() for name in ("instance-identity", "configuration", "executables", "hardware")
    }
    for finding in findings:
        states[_category(finding)].add(None if finding.ok else finding.severity)
    vector = {name: _tier(found) for name, found in states.items()}
    if vector["hardware"] == 2 and level is not Level.HARDWARE:
        vector["hardware"] = 32
    return vector


def joined_vector(floor: Mapping[str, int], by_policy: Mapping[str, int]) -> dict[str, int]:
    """Return, claim by claim, what a Rego policy said, or what was found besides where that is of a worse tier."""
    names = dict.fromkeys((*by_policy, *floor))
    return {name: max((by_policy.get(name, 0), floor.get(name, 0)), key=_rank) for name in names}


def _rank(value: int) -> int:
    size = abs(value)
    return 0 if size < 2 else 1 if size < 32 else 2 if size < 96 else 3


def encode_ear(
    results: Mapping[str, AttestationResult],
    *,
    runtime_data: Mapping[str, Any],
    verifier: str,
    identity: str,
    audience: str = "",
    protocol: str = "",
    init_data_claims: Mapping[str, Any] | None = None,  # Any: JSON
    tell: Callable[[Finding], dict[str, Any]] = Finding.as_dict,  # Any: JSON
) -> dict[str, Any]:
    """Return the EAR claims set (unsigned); the caller signs it as a JWT.

    Args:
        results: by submodule name; the primary one gives issue and expiry.
        runtime_data: nonce and TEE public key as the guest sent them; verified against the evidence.
        verifier: build name of the verifier.
        identity: id of the result, `jti`.
        audience: for whom it is, `aud`; left out when empty.
        protocol: version of the key broker protocol the guest speaks, where it is not the newest; left out when empty.
        init_data_claims: entries of the init data, for the primary submodule; None for a result that names none.
        tell: what of a finding is said, as JSON; all of it by default.
    """
    primary = results[PRIMARY]
    return {
        **({"aud": audience} if audience else {}),
        **({"ear.cloister.protocol": protocol} if protocol else {}),
        "eat_profile": EAR_PROFILE,
        "iat": int(primary.issued_at.timestamp()),
        "exp": int(primary.expires_at.timestamp()),
        "iss": ISSUER,
        "jti": identity,
        "ear.verifier-id": {"developer": _DEVELOPER, "build": verifier},
        "submods": {
            name: _submodule(result, runtime_data, init_data_claims if name == PRIMARY else None, tell)
            for name, result in results.items()
        },
    }


def decode_ear(claims: Mapping[str, Any]) -> EAR:  # Any: JSON of a token whose signature was verified
    """Return the typed form of a claims set of this profile.

    Raises:
        FormatRefused: another profile, or not its shape (`rats.ear.malformed`); also a verdict that its own findings
            contradict (`rats.ear.inconsistent`).
    """
    try:
        wire = msgspec.convert(dict(claims), _Wire)
        issued, expires = (datetime.fromtimestamp(seconds, UTC) for seconds in (wire.iat, wire.exp))
        for item in wire.submods.values():
            if not item.tee or not isinstance(item.annotated.get("init_data"), str):
                raise ValueError("no technology, or no init data")
    except (msgspec.ValidationError, ValueError, OverflowError, OSError) as err:
        raise FormatRefused(_MALFORMED, "not an Attestation Result of this profile") from err
    if wire.eat_profile != EAR_PROFILE or PRIMARY not in wire.submods or len(wire.submods) > SUBMODULES:
        raise FormatRefused(
            _MALFORMED,
            "Attestation Result of another profile, or without a CPU",
            expected=f"{EAR_PROFILE} with {PRIMARY}",
            actual=wire.eat_profile[:60],
        )
    for name, item in wire.submods.items():
        if not item.findings or (item.status is Tier.CONTRAINDICATED) is not bool(item.failures):
            raise FormatRefused("rats.ear.inconsistent", "verdict and findings disagree", path=f"submods.{name[:20]}")
    return EAR(
        issuer=wire.iss,
        identity=wire.jti,
        issued_at=issued,
        expires_at=expires,
        submodules=dict(wire.submods),
        audience=wire.aud,
        protocol=wire.protocol,
    )


def _submodule(
    result: AttestationResult,
    runtime_data: Mapping[str, Any],  # Any: JSON
    init_data_claims: Mapping[str, Any] | None,  # Any: JSON
    tell: Callable[[Finding], dict[str, Any]],  # Any: JSON
) -> dict[str, Any]:  # Any: JSON
    claims = result.claims
    vector = trust_vector([item for item in result.findings if not item.code.startswith(BY_REGO)], claims.level)
    return {
        **result.extensions,
        "ear.status": result.tier.value,
        "ear.trustworthiness-vector": vector if result.vector is None else joined_vector(vector, result.vector),
        "ear.appraisal-policy-id": result.policy_id,
        "ear.cloister.policy-digest": result.policy_digest,
        "ear.cloister.level": claims.level.value,
        "ear.cloister.instance": claims.instance_id,
        "ear.cloister.findings": [tell(finding) for finding in result.findings],
        "ear.cloister.unchecked": [item.reason for item in result.unchecked],
        "ear.cloister.init-data-referenced": result.init_data_referenced,
        _EVIDENCE: {
            claims.tee: dict(claims.raw),
            "report_data": claims.report_data.hex(),
            "init_data": result.init_data_digest,
            "runtime_data_claims": dict(runtime_data),
            **({"init_data_claims": dict(init_data_claims)} if init_data_claims is not None else {}),
        },
    }


def _category(finding: Finding) -> str:
    if finding.question is Question.AUTHENTIC:
        return "hardware"
    if finding.question is Question.BOUND:
        return "instance-identity"
    return "executables" if finding.code.startswith(_EXECUTABLES) else "configuration"


def _tier(states: set[Severity | None]) -> int:
    """Return the value for what was found in one group: severities of what did not hold, None for what did."""
    if Severity.ERROR in states:
        return 96
    if not states or Severity.UNAVAILABLE in states:
        return 0
    return 2 if states == {None} else 32
