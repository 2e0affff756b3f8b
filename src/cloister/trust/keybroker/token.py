"""The Attestation Result as the key broker accepts it: verified like a stranger's, then typed.

draft-fv-rats-ear (claims), RFC 7519. The broker pins the verifier's keys; it takes nothing from the token before its
signature holds. A token is no permission: what it is sealed to is the key inside it, so whoever steals one gets
ciphertext.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from cloister.crypto.jwe import Recipient, parse_recipient
from cloister.crypto.jwt import HeldTokens, verify_jwt
from cloister.crypto.signer import ECDSAP256PublicKey
from cloister.errors import FormatRefused, Refused
from cloister.protocol.kbs import VERSION, RuntimeData
from cloister.protocol.tenants import DEFAULT_TENANT, audience_of
from cloister.rats.claims import Level
from cloister.rats.ear import ISSUER, PRIMARY, decode_ear
from cloister.rats.result import Tier
from cloister.wire.canonicaljson import encode_canonical

LONGEST_LIFE: Final = timedelta(minutes=15)  # a verifier that signs longer results is not ours
LEAST: Final = (Level.SIMULATED, Level.MEASURED, Level.HARDWARE)
_MALFORMED: Final = "trust.token.malformed"


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedFinding:
    """A check that did not hold, as the token tells it: without the expected value.

    Attributes:
        code: of the check.
        message: its words, after the name of the device where that is not the CPU.
        hint: what to change.
    """

    code: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedToken:
    """An Attestation Result whose signature, issuer and time were verified. Only `verify_token` makes one.

    Attributes:
        attestation: id of the result.
        tee: technology.
        tier: the verdict, the worst of all devices.
        level: what the evidence proved, the least of all devices.
        instance: identity of the chip or vTPM.
        init_data: digest of the init data.
        policy_id: appraisal policy.
        policy_digest: of the text applied.
        pcr00: launch measurement, empty when the technology has none.
        guest_key: what resources are sealed to.
        guest_key_id: SHA-256 of its canonical JWK, hex.
        failures: checks that did not hold.
        init_data_referenced: whether the reference values that the CPU's evidence matched name the init data.
        claims: all that the token says, as it says it.
        protocol: version of the key broker protocol the guest speaks.
        verifier: whose result it is; empty for this service's own.
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
    init_data_referenced: bool = False
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False)  # Any: JSON
    protocol: str = VERSION
    verifier: str = ""


def verify_token(
    token: str,
    keys: Mapping[str, ECDSAP256PublicKey],
    *,
    at: datetime,
    tenant: str = DEFAULT_TENANT,
    insecure_rsa1_5: bool = False,
    held: HeldTokens | None = None,
) -> VerifiedToken:
    """Verify a token and return what it says.

    Steps: 1 signature by a pinned key, and time; 2 shape, profile, issuer and tenant, verdicts that agree with their
    findings; 3 life no longer than results live; 4 every submodule judged by the same policy, and what fails in any of
    them; 5 the guest's key is one that can be sealed to.

    Args:
        token: compact form.
        keys: pinned keys by key id.
        at: aware UTC.
        tenant: for whom it must have been made.
        insecure_rsa1_5: whether a guest's key may be one for RSA1_5.
        held: tokens whose signature is known to hold; None to verify it anew.

    Raises:
        Refused: `crypto.jwt.*`, `rats.ear.*`, `trust.token.malformed`, `trust.token.foreign`, `crypto.jwe.key`.
    """
    # 1
    claims = (held.verify if held is not None else verify_jwt)(token, keys, at=at)
    # 2
    ear = decode_ear(claims)
    primary = ear.primary
    try:
        runtime = msgspec.convert(primary.annotated.get("runtime_data_claims"), RuntimeData)
    except msgspec.ValidationError as err:
        raise FormatRefused(_MALFORMED, "token names no guest key") from err
    if ear.issuer != ISSUER:
        raise Refused("trust.token.foreign", "token is of another issuer", expected=ISSUER)
    if ear.audience != audience_of(tenant):
        raise Refused(
            "trust.token.foreign",
            "token was made for another tenant",
            path="aud",
            expected=audience_of(tenant),
            actual=ear.audience[:80],
            hint="attest at the address you ask for resources",
        )
    # 3
    if ear.expires_at - ear.issued_at > LONGEST_LIFE:
        raise Refused(
            "trust.token.foreign", "token lives longer than Attestation Results do", expected=str(LONGEST_LIFE)
        )
    # 4
    if len({(item.policy_id, item.policy_digest) for item in ear.submodules.values()}) != 1:
        raise FormatRefused(_MALFORMED, "devices of one guest were judged by different policies", path="submods")
    # 5
    recipient = parse_recipient(runtime.tee_pubkey, insecure_rsa1_5=insecure_rsa1_5)
    return VerifiedToken(
        attestation=ear.identity,
        tee=primary.tee,
        tier=ear.status,
        level=min((item.level for item in ear.submodules.values()), key=LEAST.index),
        instance=primary.instance,
        init_data=primary.init_data,
        policy_id=primary.policy_id,
        policy_digest=primary.policy_digest,
        pcr00=_pcr00(primary.annotated[primary.tee]),
        guest_key=recipient,
        guest_key_id=hashlib.sha256(encode_canonical(runtime.tee_pubkey)).hexdigest(),
        failures=tuple(
            FailedFinding(
                code=item.code, message=item.message if name == PRIMARY else f"{name}: {item.message}", hint=item.hint
            )
            for name, submodule in ear.submodules.items()
            for item in submodule.failures
        ),
        issued_at=ear.issued_at,
        expires_at=ear.expires_at,
        init_data_referenced=primary.init_data_referenced,
        claims=claims,
        protocol=ear.protocol or VERSION,
    )


def _pcr00(claims: object) -> str:
    value = claims.get("pcr00", "") if isinstance(claims, dict) else ""
    return value if isinstance(value, str) else ""
