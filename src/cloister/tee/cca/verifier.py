"""Verifier of Arm CCA tokens: which platform, and which realm on it. Pure.

Trusts: the platform keys that an owner configured (there is no root to pin), never a key from the token. The realm's
key is taken from the realm token and is worth nothing until the platform token, signed, names its hash.

Steps (DEN0137 A7.2, draft-ffm-rats-cca-token):
  1 parse, strictly: the collection, both messages, every claim of both by the rules of its profile
  2 the platform token is signed by the key that is configured for its instance, or for any, with the algorithm that
    goes with that key
  3 the realm token is signed by the key in it
  4 the platform token's challenge is the hash of that key: this platform made this realm's key
  5 the lifecycle and the profile of the platform are reported; debug states are debug
Reported for binding: the realm's challenge, and its personalization value for the init data. The value is fixed by
whoever starts the realm and has 64 bytes: a shorter digest was put in there by no rule that both sides know.

Not checked, and said so in the result: revocation, because there is none for raw keys (an anchor is withdrawn by its
owner); software components against the maker's reference values, which come as registers (`sw.*`, `config`) instead.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from cloister.crypto.cose import Algorithm, algorithm_of, parse_ec2_key, parse_point, verify_sign1
from cloister.errors import EndorsementError, EvidenceError
from cloister.rats.claims import Claims, Level, Role
from cloister.rats.endorsement import Endorsements, TrustedRoot
from cloister.rats.evidence import AuthenticEvidence, Evidence, Slot, UnverifiedClaims
from cloister.rats.result import Question, Unchecked
from cloister.tee.cca.abi import Token
from cloister.tee.cca.appraisal import CCAFacts
from cloister.tee.cca.claims import CHALLENGE_BYTES, COMPONENT_NAMES, PlatformClaims, RealmClaims
from cloister.tee.cca.evidence import TEE, parse_evidence
from cloister.tee.checklist import Checklist, shorten
from cloister.wire.base64 import encode_b64

_UNCHECKED: Final = (
    Unchecked(reason="revocation of the platform key: raw keys have none; their owner withdraws the anchor"),
    Unchecked(
        reason="software components of the platform against reference values of its maker: give them as registers"
    ),
)
_HASHES: Final = {"sha-256": hashlib.sha256, "sha-384": hashlib.sha384, "sha-512": hashlib.sha512}
_CACHED: Final = 256


def authenticate(
    evidence: Evidence, endorsements: Endorsements, *, at: datetime, session_secret: bytes = b""
) -> AuthenticEvidence:
    """Verify who signed a CCA token; there is no credential activation, and tokens hold no time.

    Args:
        evidence: as received, for technology `cca`.
        endorsements: roots for `cca`: platform keys.
        at: not used.
        session_secret: not used.

    Raises:
        FormatRefused: a part does not parse, or a claim breaks its rule.
        EndorsementError: no anchor for this platform, or one that is no key.
        EvidenceError: a signature, or the link between the two tokens, does not hold.
    """
    # 1
    token = parse_evidence(evidence)
    platform, realm = token.platform_claims, token.realm_claims
    checks = Checklist()
    # 2
    root = _verify_platform(checks, token, endorsements)
    # 3
    _verify_realm(checks, token)
    # 4
    expected = _HASHES[realm.public_key_algorithm](realm.public_key).digest()
    checks.require(
        hmac.compare_digest(platform.challenge, expected),
        code="tee.cca.binding",
        question=Question.AUTHENTIC,
        message="the platform vouches for the realm's key",
        otherwise="the platform token vouches for another realm's key",
        expected=shorten(expected),
        actual=shorten(platform.challenge),
        origin=f"{realm.public_key_algorithm} of the realm's public key",
        path="token",
        hint="platform and realm token are not of one attestation",
    )
    return AuthenticEvidence(
        claims=_claims(platform, realm, root.level),
        findings=checks.findings,
        unchecked=_UNCHECKED,
        freshness=Slot(name="realm challenge", value=realm.challenge, size=CHALLENGE_BYTES, path="token.realm.10"),
        init_data=Slot(
            name="realm personalization value",
            value=realm.personalization,
            size=CHALLENGE_BYTES,
            padded=False,
            path="token.realm.44235",
        ),
        # 5
        facts=CCAFacts(profile=platform.profile, lifecycle=platform.lifecycle, state=platform.state),
    )


def read_claims(evidence: Evidence) -> UnverifiedClaims:
    """Return what a token says, whoever signed it.

    Raises:
        FormatRefused, EvidenceError: it does not parse.
    """
    token = parse_evidence(evidence)
    return UnverifiedClaims(claims=_claims(token.platform_claims, token.realm_claims, Level.SIMULATED))


def _verify_platform(checks: Checklist, token: Token, endorsements: Endorsements) -> TrustedRoot:
    """Step 2. Return the anchor whose key signed."""
    instance = token.platform_claims.instance_id.hex()
    configured = [root for root in endorsements.roots if root.tee == TEE]
    roots = [root for root in configured if root.instance in ("", instance)]
    if not roots:
        raise EndorsementError(
            "tee.cca.no_anchor",
            "no platform key is configured for this platform",
            path="token.platform.256",
            expected="an anchor for the instance, or one for any",
            actual=f"{len(configured)} anchors of other platforms" if configured else "no anchor",
            hint="configure the public key of the platform (--trust-root), as its maker hands it out",
        )
    failure: EvidenceError | None = None
    for root in sorted(roots, key=lambda item: not item.instance):  # the one that names it first
        key, algorithm = _anchor_key(root.der, root.name)
        try:
            verify_sign1(token.platform, key, algorithm, code="tee.cca.platform")
        except EvidenceError as err:
            # That one key signed it is all that is asked; of several failures the bad signature says more.
            failure = err if failure is None or err.code.endswith(".signature") else failure
            continue
        checks.require(
            True,
            code="tee.cca.platform.signature",
            question=Question.AUTHENTIC,
            message=f"platform token is signed by a configured platform key, level {root.level.value}",
            otherwise="",
            expected=root.name,
            actual=root.name,
            origin="configured roots",
        )
        return root
    raise EvidenceError(
        "tee.cca.platform.signature",
        "platform token is not signed by a configured platform key",
        path="token.platform",
        expected=", ".join(root.name for root in roots)[:160],
        actual=f"{failure.message}{f': {failure.actual}' if failure.actual else ''}" if failure else "",
        hint="the token is of another platform, or was altered",
    )


def _verify_realm(checks: Checklist, token: Token) -> None:
    """Step 3. Without a profile the key is a P-384 point, else a COSE_Key."""
    realm = token.realm_claims
    code = "tee.cca.realm.public_key"
    if realm.profile:
        key = parse_ec2_key(realm.public_key, code=code)
    else:
        key = parse_point(realm.public_key, Algorithm.ES384, code=code)
    verify_sign1(token.realm, key, algorithm_of(key) or Algorithm.ES384, code="tee.cca.realm")
    checks.require(
        True,
        code="tee.cca.realm.signature",
        question=Question.AUTHENTIC,
        message="realm token is signed by the realm's key",
        otherwise="",
        actual=shorten(hashlib.sha256(realm.public_key).digest()),
    )


@lru_cache(maxsize=_CACHED)
def _anchor_key(der: bytes, name: str) -> tuple[ec.EllipticCurvePublicKey, Algorithm]:
    """Return the key of an anchor and the algorithm that goes with it. Same bytes, same key."""
    try:
        key = load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm) as err:
        raise _bad_anchor(name) from err
    algorithm = algorithm_of(key) if isinstance(key, ec.EllipticCurvePublicKey) else None
    if not isinstance(key, ec.EllipticCurvePublicKey) or algorithm is None:
        raise _bad_anchor(name)
    return key, algorithm


def _bad_anchor(name: str) -> EndorsementError:
    return EndorsementError(
        "tee.cca.anchor.key",
        "anchor is not a public key that signs platform tokens",
        path=name,
        expected="P-256, P-384 or P-521",
        hint="configure the platform's own public key, not a certificate",
    )


def _claims(platform: PlatformClaims, realm: RealmClaims, level: Level) -> Claims:
    registers = {"rim": realm.initial, "config": platform.config}
    registers |= {f"rem{index}": value for index, value in enumerate(realm.extensible)}
    for index, item in enumerate(platform.components):
        name = f"sw.{item.kind or index}"
        registers[name if name not in registers else f"{name}.{index}"] = item.measurement
    return Claims(
        tee=TEE,
        level=level,
        debug=platform.state.debug,
        registers=registers,
        report_data=realm.challenge,
        init_data=realm.personalization,
        instance_id=platform.instance_id.hex(),
        raw={"realm": _raw_realm(realm), "platform": _raw_platform(platform)},
        platform="Arm CCA",
        measurements={Role.LAUNCH: realm.initial},
        native=_native(platform, realm),
    )


def _native(platform: PlatformClaims, realm: RealmClaims) -> Mapping[str, Any]:  # Any: JSON values
    return {
        "rim": realm.initial.hex(),
        **{f"rem{index}": value.hex() for index, value in enumerate(realm.extensible)},
        "challenge": realm.challenge.hex(),
        "personalization": realm.personalization.hex(),
        "realm_profile": realm.profile,
        "realm_hash": realm.algorithm,
        "instance_id": platform.instance_id.hex(),
        "implementation_id": platform.implementation_id.hex(),
        "platform_profile": platform.profile,
        "platform_config": platform.config.hex(),
        "lifecycle": platform.lifecycle,
        "lifecycle_state": platform.state.name.lower(),
        "debug": platform.state.debug,
        "sw_components": [
            {"type": item.kind, "value": item.measurement.hex(), "version": item.version, "signer": item.signer.hex()}
            for item in platform.components
        ],
        "unknown_claims": [*platform.unknown, *realm.unknown],
    }


def _raw_realm(realm: RealmClaims) -> Mapping[str, Any]:  # Any: JSON values
    """Return the realm's claims under the names of Arm's verifier, which CoCo's policies see."""
    raw: dict[str, Any] = {
        "cca-realm-challenge": encode_b64(realm.challenge),
        "cca-realm-personalization-value": encode_b64(realm.personalization),
        "cca-realm-initial-measurement": encode_b64(realm.initial),
        "cca-realm-extensible-measurements": _b64_all(realm.extensible),
        "cca-realm-hash-algo-id": realm.algorithm,
        "cca-realm-public-key": encode_b64(realm.public_key),
        "cca-realm-public-key-hash-algo-id": realm.public_key_algorithm,
    }
    return raw | ({"cca-realm-profile": realm.profile} if realm.profile else {})


def _raw_platform(platform: PlatformClaims) -> Mapping[str, Any]:  # Any: JSON values
    components = []
    for item in platform.components:
        members = {
            1: item.kind,
            2: encode_b64(item.measurement),
            4: item.version,
            5: encode_b64(item.signer),
            6: item.algorithm,
        }
        components.append({COMPONENT_NAMES[label]: value for label, value in members.items() if value})
    raw: dict[str, Any] = {
        "cca-platform-profile": platform.profile,
        "cca-platform-challenge": encode_b64(platform.challenge),
        "cca-platform-implementation-id": encode_b64(platform.implementation_id),
        "cca-platform-instance-id": encode_b64(platform.instance_id),
        "cca-platform-config": encode_b64(platform.config),
        "cca-platform-lifecycle": platform.lifecycle,
        "cca-platform-hash-algo-id": platform.algorithm,
        "cca-platform-sw-components": components,
    }
    return raw | ({"cca-platform-service-indicator": platform.service} if platform.service else {})


def _b64_all(values: Sequence[bytes]) -> list[str]:
    return [encode_b64(value) for value in values]
