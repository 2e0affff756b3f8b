"""Attestation Results of another verifier: tokens of CoCo's attestation service, as its own key broker accepts them.

trustee, kbs/docs/attestation_token_verification.md; draft-fv-rats-ear. Off unless the owner gives roots. Such a token
says less than ours: no audience, no id, no digest of the policy text, no level. So it is accepted for one tenant, gets
an id from its own bytes, and its level from its technology; and a release rule has to name its policy, as
`trustee:<id>`, since what that policy asks of a guest is not known here.

Only keys with certificates: the chain in `x5c` must end at a given root, and the leaf's key be the `jwk`. A `jwk` alone
proves nothing, `x5u` is not fetched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import Certificate

from cloister.crypto.jwe import parse_recipient
from cloister.crypto.jwt import read_key_header, verify_jwt
from cloister.crypto.signer import ECDSAP256PublicKey
from cloister.crypto.x509path import load_certificate, verify_path
from cloister.errors import CloisterError, FormatRefused, Refused
from cloister.protocol.kbs import RuntimeData
from cloister.rats.claims import Level
from cloister.rats.ear import PRIMARY, SUBMODULES
from cloister.rats.result import Tier
from cloister.trust.keybroker.token import LEAST, LONGEST_LIFE, FailedFinding, VerifiedToken
from cloister.wire.base64 import decode_b64, decode_b64url
from cloister.wire.canonicaljson import encode_canonical
from cloister.wire.limits import CERTIFICATE_BYTES, CERTIFICATE_CHAIN

VERIFIER: Final = "trustee"
PROFILE: Final = "tag:github.com,2024:confidential-containers/Trustee"
_PATH: Final = "trust.token.foreign.chain"
_SHAPE: Final = "trust.token.foreign.shape"
_KEY: Final = "trust.token.foreign.key"
_EVIDENCE: Final = "ear.veraison.annotated-evidence"
_BESIDE: Final = frozenset({"report_data", "init_data", "runtime_data_claims", "init_data_claims"})
_HARDWARE: Final = frozenset(
    {"snp", "tdx", "sgx", "az-snp-vtpm", "az-tdx-vtpm", "cca", "se", "csv", "hygondcu", "nvidia", "nvidia-dpu"}
)
_DIGESTS: Final = {32: "sha256", 48: "sha384", 64: "sha512"}
_RANK: Final = (Tier.AFFIRMING, Tier.WARNING, Tier.NONE, Tier.CONTRAINDICATED)


class _Submodule(msgspec.Struct, frozen=True, kw_only=True):
    status: Tier = msgspec.field(name="ear.status")
    vector: dict[str, int] = msgspec.field(name="ear.trustworthiness-vector")
    policy_id: str = msgspec.field(name="ear.appraisal-policy-id")
    annotated: dict[str, Any] = msgspec.field(name=_EVIDENCE)  # Any: JSON; read by the members below

    @property
    def tee(self) -> str:
        """Wire name of the technology; empty when there is not exactly one."""
        names = set(self.annotated) - _BESIDE
        return names.pop() if len(names) == 1 else ""


class _Wire(msgspec.Struct, frozen=True, kw_only=True):
    eat_profile: str
    iat: int
    exp: int
    submods: dict[str, _Submodule]


def is_foreign(token: str, ours: Mapping[str, object]) -> bool:
    """Return whether a token names none of our keys and carries a key with certificates instead.

    Raises:
        FormatRefused: not a token (`crypto.jwt.malformed`).
    """
    kid, jwk = read_key_header(token)
    return kid not in ours and jwk is not None and "x5c" in jwk


def verify_foreign_token(token: str, roots: Sequence[Certificate], *, at: datetime) -> VerifiedToken:
    """Verify a token of CoCo's attestation service and return what it says.

    Steps: 1 the chain in the header ends at one of `roots`; 2 its leaf's key is the `jwk`, signed the token, and the
    time is right; 3 shape, profile, life, and statuses that agree with their vectors; 4 a guest's key that can be
    sealed to.

    Args:
        token: compact form.
        roots: certificates of CAs that the owner trusts to name verifiers.
        at: aware UTC.

    Raises:
        Refused: `trust.token.foreign.*`, `crypto.jwt.*`, `crypto.jwe.key`.
    """
    # 1
    kid, jwk = read_key_header(token)
    leaf = _leaf(jwk or {}, roots, at)
    # 2
    claims = verify_jwt(token, {kid: leaf}, at=at)
    # 3
    wire = _typed(claims)
    primary = wire.submods[PRIMARY]
    # 4
    try:
        runtime = msgspec.convert(primary.annotated.get("runtime_data_claims"), RuntimeData)
    except msgspec.ValidationError as err:
        raise FormatRefused(_SHAPE, "token names no guest key", path=f"submods.{PRIMARY}") from err
    level = min((level_of(item.tee) for item in wire.submods.values()), key=LEAST.index)
    tier = max((item.status for item in wire.submods.values()), key=_RANK.index)
    if level is Level.SIMULATED and tier is Tier.AFFIRMING:
        tier = Tier.WARNING
    own = primary.annotated[primary.tee]
    pcr00 = own.get("pcr00") if isinstance(own, dict) else None
    return VerifiedToken(
        attestation="x-" + hashlib.sha256(token.encode()).hexdigest()[:10],
        tee=primary.tee,
        tier=tier,
        level=level,
        instance="",
        init_data=_init_data(primary.annotated.get("init_data")),
        policy_id=f"{VERIFIER}:{primary.policy_id}",
        policy_digest="",
        pcr00=pcr00 if isinstance(pcr00, str) else "",
        guest_key=parse_recipient(runtime.tee_pubkey),
        guest_key_id=hashlib.sha256(encode_canonical(runtime.tee_pubkey)).hexdigest(),
        failures=tuple(_failures(wire)),
        issued_at=datetime.fromtimestamp(wire.iat, UTC),
        expires_at=datetime.fromtimestamp(wire.exp, UTC),
        claims=claims,
        verifier=VERIFIER,
    )


def level_of(tee: str) -> Level:
    """Return the level that another verifier's result about a technology is taken for; what is not known is least."""
    if tee in _HARDWARE:
        return Level.HARDWARE
    return Level.MEASURED if tee == "tpm" else Level.SIMULATED


def _leaf(jwk: Mapping[str, Any], roots: Sequence[Certificate], at: datetime) -> ECDSAP256PublicKey:
    """Step 1."""
    chain = jwk.get("x5c")
    if not isinstance(chain, list) or not 1 <= len(chain) <= CERTIFICATE_CHAIN:
        raise Refused(_KEY, "token carries no certificates of its key", path="header.jwk.x5c")
    certificates = []
    for index, item in enumerate(chain):
        path = f"header.jwk.x5c.{index}"
        if not isinstance(item, str):
            raise FormatRefused(_SHAPE, "not a certificate", path=path)
        certificates.append(load_certificate(_der(item, path), code=_PATH, path=path))
    leaf, *intermediates = certificates
    try:
        verify_path(leaf, anchors=roots, intermediates=intermediates, at=at, code=_PATH)
        spki = leaf.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return ECDSAP256PublicKey.from_pem(spki)
    except CloisterError as err:
        raise Refused(
            _KEY,
            "the token's certificates do not end at a root that is trusted for tokens",
            path="header.jwk.x5c",
            actual=err.message[:160],
            hint="compare `trusted_token_roots` with the certificates of the other verifier",
        ) from err


def _der(text: str, path: str) -> bytes:
    """Return the bytes of one certificate: base64 as RFC 7515 has it, or base64url as older releases of CoCo write."""
    url = "-" in text or "_" in text or len(text) % 4
    return (decode_b64url if url else decode_b64)(text, path=path, ceiling=CERTIFICATE_BYTES)


def _typed(claims: Mapping[str, Any]) -> _Wire:  # Any: JSON of a token whose signature was verified
    """Step 3."""
    try:
        wire = msgspec.convert(dict(claims), _Wire)
        datetime.fromtimestamp(wire.iat, UTC), datetime.fromtimestamp(wire.exp, UTC)
    except (msgspec.ValidationError, ValueError, OverflowError, OSError) as err:
        raise FormatRefused(_SHAPE, "not a result of CoCo's attestation service") from err
    shaped = PRIMARY in wire.submods and len(wire.submods) <= SUBMODULES and all(m.tee for m in wire.submods.values())
    if wire.eat_profile != PROFILE or not shaped:
        raise FormatRefused(
            _SHAPE,
            "result of another profile, or without a CPU",
            expected=f"{PROFILE} with {PRIMARY}",
            actual=wire.eat_profile[:60],
        )
    if wire.exp - wire.iat > LONGEST_LIFE.total_seconds():
        raise Refused(_SHAPE, "token lives longer than Attestation Results do", expected=str(LONGEST_LIFE))
    for name, item in wire.submods.items():
        worst = max(map(abs, item.vector.values()), default=0)
        said = Tier.CONTRAINDICATED if worst >= 96 else Tier.WARNING if worst >= 32 else item.status
        if _RANK.index(item.status) < _RANK.index(said) or (worst < 2 and item.status is Tier.AFFIRMING):
            raise FormatRefused(_SHAPE, "verdict and vector disagree", path=f"submods.{name[:20]}")
    return wire


def _failures(wire: _Wire) -> list[FailedFinding]:
    """Return what was not affirmed, as a token without findings tells it."""
    return [
        FailedFinding(
            code="appraisal.rego.foreign",
            message=f"the other verifier says {item.status.value} of {name}",
            hint="its own log names the trust claim",
        )
        for name, item in wire.submods.items()
        if item.status is not Tier.AFFIRMING
    ]


def _init_data(value: object) -> str:
    """Return the digest of the init data as rules name it, empty when the token names none.

    The token shows the field of the evidence: a digest, or one cut or filled with zeros to the field's length.
    """
    try:
        field = bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        return ""
    size = len(field)
    while size > 32 and not any(field[size - 16 : size]):
        size -= 16
    name = _DIGESTS.get(size, "")
    return f"{name}:{field[:size].hex()}" if name and any(field) else ""
