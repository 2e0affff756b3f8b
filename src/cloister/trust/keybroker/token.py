"""The Attestation Result as the key broker accepts it: verified like a stranger's, then typed.

draft-fv-rats-ear (claims), RFC 7519. The broker pins the verifier's keys; it takes nothing from the token before its
signature holds. A token is no permission: what it is sealed to is the key inside it, so whoever steals one gets
ciphertext.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from cloister.crypto.jwe import Recipient, parse_recipient
from cloister.crypto.jwt import verify_jwt
from cloister.crypto.signer import ECDSAP256PublicKey
from cloister.errors import FormatRefused, Refused
from cloister.protocol.kbs import RuntimeData
from cloister.rats.claims import Level
from cloister.rats.result import EAR_PROFILE, Severity, Tier
from cloister.trust.roles import SUBMODULE
from cloister.wire.canonicaljson import encode_canonical

LONGEST_LIFE: Final = timedelta(minutes=15)  # a verifier that signs longer results is not ours
_ISSUER: Final = "cloister-verifier"
_MALFORMED: Final = "trust.token.malformed"


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedFinding:
    """A check that did not hold, as the token tells it: without the expected value."""

    code: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedToken:
    """An Attestation Result whose signature, issuer and time were verified. Only `verify_token` makes one.

    Attributes:
        attestation: id of the result.
        tee: technology.
        tier: the verdict.
        level: what the evidence proved.
        instance: identity of the chip or vTPM.
        init_data: digest of the init data.
        policy_id: appraisal policy.
        policy_digest: of the text applied.
        pcr00: launch measurement, empty when the technology has none.
        guest_key: what resources are sealed to.
        guest_key_id: SHA-256 of its canonical JWK, hex.
        failures: checks that did not hold.
        issued_at: aware UTC.
        expires_at: aware UTC.
    """

    attestation: str
    tee: str
    tier: Tier
    level: Level
    instance: str
    init_data: str
    policy_id: str
    policy_digest: str
    pcr00: str
    guest_key: Recipient
    guest_key_id: str
    failures: tuple[FailedFinding, ...]
    issued_at: datetime
    expires_at: datetime


class _FindingClaim(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    ok: bool
    severity: Severity = Severity.ERROR
    message: str = ""
    hint: str = ""


class _Submodule(msgspec.Struct, frozen=True, kw_only=True):
    status: Tier = msgspec.field(name="ear.status")
    policy_id: str = msgspec.field(name="ear.appraisal-policy-id")
    policy_digest: str = msgspec.field(name="ear.cloister.policy-digest")
    level: Level = msgspec.field(name="ear.cloister.level")
    instance: str = msgspec.field(name="ear.cloister.instance")
    findings: tuple[_FindingClaim, ...] = msgspec.field(name="ear.cloister.findings")
    evidence: dict[str, Any] = msgspec.field(name="ear.veraison.annotated-evidence")  # Any: typed below


class _EAR(msgspec.Struct, frozen=True, kw_only=True):
    eat_profile: str
    iss: str
    jti: str
    iat: int
    exp: int
    submods: dict[str, _Submodule]


def verify_token(token: str, keys: Mapping[str, ECDSAP256PublicKey], *, at: datetime) -> VerifiedToken:
    """Verify a token and return what it says.

    Steps: 1 signature by a pinned key, and time; 2 shape, profile and issuer; 3 life no longer than results live; 4
    one submodule, whose verdict agrees with its findings; 5 the guest's key is one that can be sealed to.

    Raises:
        Refused: `crypto.jwt.*`, `trust.token.malformed`, `trust.token.foreign`, `trust.token.inconsistent`,
            `crypto.jwe.key`.
    """
    # 1
    claims = verify_jwt(token, keys, at=at)
    # 2
    try:
        ear = msgspec.convert(claims, _EAR)
        [(name, submodule)] = ear.submods.items()
        runtime = msgspec.convert(submodule.evidence.get("runtime_data_claims"), RuntimeData)
        init_data = msgspec.convert(submodule.evidence.get("init_data"), str)
        tee = _technology(submodule.evidence)
    except (msgspec.ValidationError, ValueError) as err:
        raise FormatRefused(_MALFORMED, "token is not an Attestation Result of this profile") from err
    if (ear.eat_profile, ear.iss, name) != (EAR_PROFILE, _ISSUER, SUBMODULE):
        raise Refused(
            "trust.token.foreign", "token is of another profile or issuer", expected=f"{EAR_PROFILE} {_ISSUER}"
        )
    # 3
    issued, expires = (datetime.fromtimestamp(seconds, UTC) for seconds in (ear.iat, ear.exp))
    if expires - issued > LONGEST_LIFE:
        raise Refused(
            "trust.token.foreign", "token lives longer than Attestation Results do", expected=str(LONGEST_LIFE)
        )
    # 4
    failed = tuple(item for item in submodule.findings if not item.ok and item.severity is Severity.ERROR)
    if (submodule.status is Tier.AFFIRMING) != (not failed) or not submodule.findings:
        raise Refused("trust.token.inconsistent", "verdict and findings of the token disagree")
    # 5
    recipient = parse_recipient(runtime.tee_pubkey)
    return VerifiedToken(
        attestation=ear.jti,
        tee=tee,
        tier=submodule.status,
        level=submodule.level,
        instance=submodule.instance,
        init_data=init_data,
        policy_id=submodule.policy_id,
        policy_digest=submodule.policy_digest,
        pcr00=_pcr00(submodule.evidence[tee]),
        guest_key=recipient,
        guest_key_id=hashlib.sha256(encode_canonical(runtime.tee_pubkey)).hexdigest(),
        failures=tuple(FailedFinding(code=item.code, message=item.message, hint=item.hint) for item in failed),
        issued_at=issued,
        expires_at=expires,
    )


def _technology(evidence: Mapping[str, Any]) -> str:  # Any: JSON values
    known = {"report_data", "init_data", "runtime_data_claims", "init_data_claims"}
    [name] = set(evidence) - known
    return name


def _pcr00(claims: object) -> str:
    value = claims.get("pcr00", "") if isinstance(claims, dict) else ""
    return value if isinstance(value, str) else ""
