"""The two claim sets of a CCA token and their one validator. Pure; verifies no signature.

DEN0137 section A7.2, draft-ffm-rats-cca-token sections 4.2 to 4.8. Claims arrive as CBOR inside signed tokens, and as
JSON in files of other tools; both are turned into the same names and judged by the same rules. Profiles known: the
platform's `http://arm.com/CCA-SSD/1.0.0` and its successor of 2023, the realm's of 2023, and realm claims without any
profile, as firmware before it writes them. Claims that a profile does not have are kept by label and not read in CBOR,
where they are signed, and refused in JSON. Measurement sizes are not tied to the hash algorithm that the token names:
tools and firmware pad them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cloister.errors import FormatRefused
from cloister.wire.base64 import decode_b64
from cloister.wire.cbor import CBOR
from cloister.wire.limits import CCA_CLAIM_BYTES, CCA_COMPONENTS, COSE_BYTES
from cloister.wire.strictjson import parse_json_object

PLATFORM: Final = "tee.cca.platform"
REALM: Final = "tee.cca.realm"
LEGACY_PLATFORM_PROFILE: Final = "http://arm.com/CCA-SSD/1.0.0"
PLATFORM_PROFILE: Final = "tag:arm.com,2023:cca_platform#1.0.0"
REALM_PROFILE: Final = "tag:arm.com,2023:realm#1.0.0"
PLATFORM_PROFILES: Final = (LEGACY_PLATFORM_PROFILE, PLATFORM_PROFILE)
HASHES: Final = ("sha-256", "sha-384", "sha-512")  # names of the IANA registry of named information
CHALLENGE_BYTES: Final = 64
EXTENSIBLE: Final = 4
_DIGEST_BYTES: Final = (32, 48, 64)
_POINT_BYTES: Final = 97  # uncompressed, P-384
_INSTANCE_BYTES: Final = 33
_RANDOM_UEID: Final = 0x01  # EAT (RFC 9711) 4.2.1: an identity made at random
_TEXT_CHARS: Final = 256


class Lifecycle(enum.Enum):
    """State of the platform: the high byte of the claim (DEN0137, A7.2.3.2.6)."""

    UNKNOWN = 0x00
    ASSEMBLY_AND_TEST = 0x10
    PROVISIONING = 0x20
    SECURED = 0x30
    NON_CCA_DEBUG = 0x40
    RECOVERABLE_DEBUG = 0x50
    DECOMMISSIONED = 0x60

    @property
    def debug(self) -> bool:
        """Whether some debugger may be attached to the platform."""
        return self in (Lifecycle.NON_CCA_DEBUG, Lifecycle.RECOVERABLE_DEBUG)


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One software component of the platform."""

    measurement: bytes
    signer: bytes
    kind: str = ""
    version: str = ""
    algorithm: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformClaims:
    """What the platform says of itself.

    Attributes:
        profile: one of `PLATFORM_PROFILES`.
        challenge: hash of the realm's attestation key: the link between the two tokens.
        implementation_id: make, 32 bytes.
        instance_id: this platform, 33 bytes.
        config: its configuration.
        lifecycle: the claim's number.
        algorithm: hash of the measurements, where a component names none.
        components: measured software.
        service: where to have the token verified; empty when absent.
        unknown: labels of claims that are not read.
    """

    profile: str
    challenge: bytes
    implementation_id: bytes
    instance_id: bytes
    config: bytes
    lifecycle: int
    algorithm: str
    components: tuple[Component, ...]
    service: str = ""
    unknown: tuple[str, ...] = ()

    @property
    def state(self) -> Lifecycle:
        """The lifecycle state; the validator lets no other number through."""
        return Lifecycle(self.lifecycle >> 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class RealmClaims:
    """What the realm management monitor says of a realm.

    Attributes:
        profile: `REALM_PROFILE`, or empty for claims of before.
        challenge: 64 bytes of the caller's.
        personalization: 64 bytes of the realm's owner, fixed at launch.
        initial: measurement of what was loaded at launch.
        extensible: four registers that the realm extends.
        algorithm: hash of the measurements.
        public_key: the realm attestation key: a COSE_Key, or a raw P-384 point without profile.
        public_key_algorithm: hash that links it to the platform token.
        unknown: labels of claims that are not read.
    """

    profile: str
    challenge: bytes
    personalization: bytes
    initial: bytes
    extensible: tuple[bytes, ...]
    algorithm: str
    public_key: bytes
    public_key_algorithm: str
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Claim:
    """Where a claim is found, and its rule: `check` returns the value or raises `_Invalid`."""

    label: int
    name: str
    check: Callable[[Any], Any]  # Any: untrusted value in, checked value out
    required: bool = True


class _Invalid(ValueError):
    """The rule that a claim breaks, in words. Never leaves this module."""


def _bytes(*sizes: int) -> Callable[[Any], bytes]:
    def check(value: Any) -> bytes:
        if not isinstance(value, bytes) or len(value) not in (sizes or range(1, CCA_CLAIM_BYTES + 1)):
            raise _Invalid(f"{' or '.join(map(str, sizes)) or f'1 to {CCA_CLAIM_BYTES}'} bytes")
        return value

    return check


def _text(*accepted: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or not 0 < len(value) <= _TEXT_CHARS or not value.isprintable():
            raise _Invalid(f"1 to {_TEXT_CHARS} printable characters")
        if accepted and value not in accepted:
            raise _Invalid(" or ".join(accepted))
        return value

    return check


def _instance(value: Any) -> bytes:
    if not isinstance(value, bytes) or len(value) != _INSTANCE_BYTES or value[0] != _RANDOM_UEID:
        raise _Invalid(f"{_INSTANCE_BYTES} bytes that begin with 01")
    return value


def _lifecycle(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= 0xFFFF or value >> 8 not in {item.value for item in Lifecycle}:
        raise _Invalid("a number of a lifecycle state, such as 0x3000 to 0x30ff")
    return value


def _extensible(value: Any) -> tuple[bytes, ...]:
    if not isinstance(value, list) or len(value) != EXTENSIBLE:
        raise _Invalid(f"{EXTENSIBLE} measurements")
    return tuple(map(_bytes(*_DIGEST_BYTES), value))


def _components(value: Any) -> tuple[Component, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= CCA_COMPONENTS:
        raise _Invalid(f"1 to {CCA_COMPONENTS} components")
    return tuple(map(_component, value))


_COMPONENT: Final = (
    _Claim(1, "kind", _text(), required=False),
    _Claim(2, "measurement", _bytes(*_DIGEST_BYTES)),
    _Claim(4, "version", _text(), required=False),
    _Claim(5, "signer", _bytes(*_DIGEST_BYTES)),
    _Claim(6, "algorithm", _text(), required=False),
)


def _component(value: Any) -> Component:
    if not isinstance(value, dict):
        raise _Invalid("a map for each component")
    found = {}
    for claim in _COMPONENT:
        if claim.label not in value:
            if claim.required:
                raise _Invalid(f"a {claim.name} in each component")
            continue
        found[claim.name] = claim.check(value[claim.label])
    return Component(**found)


_PLATFORM: Final = (
    _Claim(265, "profile", _text(*PLATFORM_PROFILES)),
    _Claim(10, "challenge", _bytes(*_DIGEST_BYTES)),
    _Claim(2396, "implementation_id", _bytes(32)),
    _Claim(256, "instance_id", _instance),
    _Claim(2401, "config", _bytes()),
    _Claim(2395, "lifecycle", _lifecycle),
    _Claim(2402, "algorithm", _text(*HASHES)),
    _Claim(2399, "components", _components),
    _Claim(2400, "service", _text(), required=False),
)
_REALM: Final = (
    _Claim(265, "profile", _text(REALM_PROFILE), required=False),
    _Claim(10, "challenge", _bytes(CHALLENGE_BYTES)),
    _Claim(44235, "personalization", _bytes(CHALLENGE_BYTES)),
    _Claim(44238, "initial", _bytes(*_DIGEST_BYTES)),
    _Claim(44239, "extensible", _extensible),
    _Claim(44236, "algorithm", _text(*HASHES)),
    _Claim(44237, "public_key", _bytes()),
    _Claim(44240, "public_key_algorithm", _text(*HASHES)),
)


def validate_platform(value: CBOR) -> PlatformClaims:
    """Check platform claims by label.

    Raises:
        FormatRefused: a claim is missing or breaks its rule (`tee.cca.platform.claims`).
    """
    return PlatformClaims(**_validated(value, _PLATFORM, PLATFORM))


def validate_realm(value: CBOR) -> RealmClaims:
    """Check realm claims by label. Whether the public key is one is seen when it is used.

    Raises:
        FormatRefused: a claim is missing or breaks its rule (`tee.cca.realm.claims`).
    """
    found = _validated(value, _REALM, REALM)
    found.setdefault("profile", "")
    if not found["profile"] and len(found["public_key"]) != _POINT_BYTES:
        raise _refused(
            REALM, "public_key", f"{_POINT_BYTES} bytes, because there is no profile", str(len(found["public_key"]))
        )
    return RealmClaims(**found)


def _validated(value: CBOR, claims: tuple[_Claim, ...], code: str) -> dict[str, Any]:  # Any: checked values
    if not isinstance(value, dict):
        raise _refused(code, "", "a map of claims", type(value).__name__)
    found: dict[str, Any] = {}
    for claim in claims:
        if claim.label not in value:
            if claim.required:
                raise _refused(code, claim.name, "the claim", "none")
            continue
        try:
            found[claim.name] = claim.check(value[claim.label])
        except _Invalid as err:
            raise _refused(code, claim.name, str(err), _shown(value[claim.label])) from err
    labels = {claim.label for claim in claims}
    found["unknown"] = tuple(str(label)[:40] for label in value if label not in labels)
    return found


# Names in JSON, as the tools of Arm and Veraison write them. In this order of labels; components below.
_PLATFORM_JSON: Final = {
    "cca-platform-profile": 265,
    "cca-platform-challenge": 10,
    "cca-platform-implementation-id": 2396,
    "cca-platform-instance-id": 256,
    "cca-platform-config": 2401,
    "cca-platform-lifecycle": 2395,
    "cca-platform-hash-algo-id": 2402,
    "cca-platform-sw-components": 2399,
    "cca-platform-service-indicator": 2400,
}
_REALM_JSON: Final = {
    "cca-realm-profile": 265,
    "cca-realm-challenge": 10,
    "cca-realm-personalization-value": 44235,
    "cca-realm-initial-measurement": 44238,
    "cca-realm-extensible-measurements": 44239,
    "cca-realm-hash-algo-id": 44236,
    "cca-realm-public-key": 44237,
    "cca-realm-public-key-hash-algo-id": 44240,
}
_COMPONENT_JSON: Final = {
    "measurement-type": 1,
    "measurement-value": 2,
    "version": 4,
    "signer-id": 5,
    "measurement-description": 6,
}
_TEXTS: Final = frozenset({265, 2402, 2400, 44236, 44240})
_COMPONENT_TEXTS: Final = frozenset({1, 4, 6})
COMPONENT_NAMES: Final = {label: name for name, label in _COMPONENT_JSON.items()}


def parse_claims_json(data: bytes) -> PlatformClaims | RealmClaims:
    """Parse one claim set in JSON: of a platform when a name in it says so, else of a realm.

    Raises:
        FormatRefused: not such JSON (`tee.cca.claims_json.*`), or claims that do not hold (`tee.cca.platform.claims`,
            `tee.cca.realm.claims`).
    """
    value = parse_json_object(data, ceiling=COSE_BYTES, code="tee.cca.claims_json", family=FormatRefused)
    if any(name.startswith("cca-platform-") for name in value):
        return validate_platform(_by_label(value, _PLATFORM_JSON, _TEXTS, PLATFORM))
    return validate_realm(_by_label(value, _REALM_JSON, _TEXTS, REALM))


def _by_label(
    value: Mapping[str, Any], names: Mapping[str, int], texts: frozenset[int], code: str
) -> dict[int | str, CBOR]:
    """Return JSON claims as the CBOR ones: labels for names, bytes for base64."""
    found: dict[int | str, CBOR] = {}
    for name, item in value.items():
        label = names.get(name)
        if label is None:
            raise _refused(code, name[:40], "a claim of the profile", "an unknown one")
        found[label] = item if label in texts else _from_json(item, label, name, code)
    return found


def _from_json(value: Any, label: int, name: str, code: str) -> CBOR:
    if isinstance(value, str):
        try:
            return decode_b64(value, path=name, ceiling=CCA_CLAIM_BYTES)
        except FormatRefused as err:
            raise _refused(code, name, "canonical base64", err.message) from err
    if isinstance(value, list):
        return [_from_json(item, label, name, code) for item in value]
    if isinstance(value, dict):
        return _by_label(value, _COMPONENT_JSON, _COMPONENT_TEXTS, code)
    return value


def _shown(value: CBOR) -> str:
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return str(value)[:60] if isinstance(value, str | int) else type(value).__name__


def _refused(code: str, path: str, expected: str, actual: str) -> FormatRefused:
    return FormatRefused(
        f"{code}.claims", "claims are not those of a known profile", path=path, expected=expected, actual=actual
    )
