"""The CCA token: a collection of two signed tokens, platform and realm. Parser and encoder, pure; verifies nothing.

DEN0137 section A7.2.1, draft-ffm-rats-cca-token section 4.1: CBOR tag 399 around a map of two byte strings, each a
COSE_Sign1. Later drafts wrap each in a CMW record `[263, bytes]` under tag 907 (draft-ietf-rats-msg-wrap; 263 is the
content format `application/eat+cwt`); both are read, the first is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cloister.crypto.cose import Sign1, parse_sign1
from cloister.errors import FormatRefused
from cloister.tee.cca.claims import (
    PLATFORM,
    REALM,
    Component,
    PlatformClaims,
    RealmClaims,
    validate_platform,
    validate_realm,
)
from cloister.wire.cbor import CBOR, Tagged, decode_cbor, encode_cbor
from cloister.wire.limits import COSE_BYTES

CODE: Final = "tee.cca.token"
COLLECTION_TAG: Final = 399
CMW_TAG: Final = 907
EAT_CWT: Final = 263
PLATFORM_LABEL: Final = 44234
REALM_LABEL: Final = 44241
_KEY_ID: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """Both tokens, as messages and as claims; nothing of it is verified."""

    platform: Sign1
    platform_claims: PlatformClaims
    realm: Sign1
    realm_claims: RealmClaims


def parse_token(data: bytes) -> Token:
    """Parse a CCA token.

    Raises:
        FormatRefused: not such a collection (`tee.cca.token.*`), a part is no COSE_Sign1 of CBOR claims
            (`tee.cca.platform.*`, `tee.cca.realm.*`), or a claim does not hold (`.claims`).
    """
    value = decode_cbor(data, ceiling=COSE_BYTES, code=CODE)
    if not isinstance(value, Tagged) or value.tag not in (COLLECTION_TAG, CMW_TAG):
        raise _malformed(f"tag {COLLECTION_TAG} or {CMW_TAG}", f"tag {value.tag}" if isinstance(value, Tagged) else "")
    parts = value.value
    if not isinstance(parts, dict) or parts.keys() != {PLATFORM_LABEL, REALM_LABEL}:
        raise _malformed(f"members {PLATFORM_LABEL} and {REALM_LABEL} alone", type(parts).__name__)
    platform = _message(_part(parts, PLATFORM_LABEL, value.tag), PLATFORM)
    realm = _message(_part(parts, REALM_LABEL, value.tag), REALM)
    return Token(
        platform=platform,
        platform_claims=validate_platform(decode_cbor(platform.payload, ceiling=COSE_BYTES, code=PLATFORM)),
        realm=realm,
        realm_claims=validate_realm(decode_cbor(realm.payload, ceiling=COSE_BYTES, code=REALM)),
    )


def encode_token(platform: bytes, realm: bytes) -> bytes:
    """Return the collection of two encoded COSE_Sign1 messages."""
    return encode_cbor(Tagged(tag=COLLECTION_TAG, value={PLATFORM_LABEL: platform, REALM_LABEL: realm}))


def encode_platform_claims(claims: PlatformClaims) -> bytes:
    """Return the claims as CBOR; the inverse of `validate_platform` without unknown claims."""
    value: dict[int, CBOR] = {
        265: claims.profile,
        10: claims.challenge,
        2396: claims.implementation_id,
        256: claims.instance_id,
        2401: claims.config,
        2395: claims.lifecycle,
        2402: claims.algorithm,
        2399: [_encode_component(item) for item in claims.components],
    }
    if claims.service:
        value[2400] = claims.service
    return encode_cbor(value)


def encode_realm_claims(claims: RealmClaims) -> bytes:
    """Return the claims as CBOR; the inverse of `validate_realm` without unknown claims."""
    value: dict[int, CBOR] = {
        10: claims.challenge,
        44235: claims.personalization,
        44238: claims.initial,
        44239: list(claims.extensible),
        44236: claims.algorithm,
        44237: claims.public_key,
        44240: claims.public_key_algorithm,
    }
    if claims.profile:
        value[265] = claims.profile
    return encode_cbor(value)


def _encode_component(item: Component) -> dict[int, CBOR]:
    members = {1: item.kind, 2: item.measurement, 4: item.version, 5: item.signer, 6: item.algorithm}
    return {label: value for label, value in members.items() if value}


def _part(parts: Mapping[int | str, CBOR], label: int, tag: int) -> bytes:
    part = parts[label]
    if tag == CMW_TAG:
        part = part[1] if isinstance(part, list) and len(part) == 2 and part[0] == EAT_CWT else None
    if not isinstance(part, bytes):
        raise _malformed(f"a byte string as member {label}", type(parts[label]).__name__)
    return part


def _message(data: bytes, code: str) -> Sign1:
    message = parse_sign1(data, code=code)
    if message.unprotected.keys() - {_KEY_ID}:
        raise FormatRefused(f"{code}.malformed", "unprotected header holds more than a key id")
    return message


def _malformed(expected: str, actual: str) -> FormatRefused:
    return FormatRefused(f"{CODE}.malformed", "not a CCA token", expected=expected, actual=actual)
