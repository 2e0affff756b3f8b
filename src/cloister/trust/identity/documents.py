"""What a trust domain publishes: its bundle, and the two documents by which clouds accept JWT-SVIDs.

SPIFFE Trust Domain and Bundle (section 4, JWK set), X509-SVID 6 and JWT-SVID 4 (how keys stand in it), OpenID Connect
Discovery 1.0 section 4.2. Every document is public and holds public keys only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from cloister.crypto.jwt import public_jwk
from cloister.trust.identity.authorities import REFRESH_HINT, Authority, Use
from cloister.wire.base64 import encode_b64

BUNDLE_PATH: Final = "/spiffe/bundle"
KEYS_PATH: Final = "/spiffe/keys"
DISCOVERY_PATH: Final = "/.well-known/openid-configuration"
_JSON: Final = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicDocument:
    """One public document.

    Attributes:
        content_type: media type.
        body: as sent.
        max_age_seconds: how long it may be kept.
    """

    content_type: str
    body: bytes
    max_age_seconds: int


class PublicDocuments(Protocol):
    """Whoever has the documents of a trust domain."""

    def document(self, path: str) -> PublicDocument | None:
        """Return the document at `path`, None when there is none.

        Raises:
            Unavailable: the store failed.
        """
        ...


def encode_bundle(authorities: Sequence[Authority], sequence: int) -> bytes:
    """Return the trust domain's bundle."""
    return msgspec.json.encode(
        {
            "keys": [_bundle_key(authority) for authority in authorities],
            "spiffe_sequence": sequence,
            "spiffe_refresh_hint": int(REFRESH_HINT.total_seconds()),
        }
    )


def encode_keys(authorities: Sequence[Authority]) -> bytes:
    """Return the keys of JWT-SVIDs as OpenID Connect's `jwks_uri`."""
    keys = [
        {**public_jwk(authority.signer.public_key), "kid": authority.key_id, "use": "sig"}
        for authority in authorities
        if authority.use is Use.JWT
    ]
    return msgspec.json.encode({"keys": keys})


def encode_discovery(issuer: str) -> bytes:
    """Return OpenID Connect's discovery document.

    Args:
        issuer: https address under which all documents are reached.
    """
    return msgspec.json.encode(
        {
            "issuer": issuer,
            "jwks_uri": issuer + KEYS_PATH,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
            "claims_supported": ["iss", "sub", "aud", "exp", "iat", "jti"],
        }
    )


def public_document(body: bytes) -> PublicDocument:
    """Return a document to be fetched anew as often as the bundle."""
    return PublicDocument(content_type=_JSON, body=body, max_age_seconds=int(REFRESH_HINT.total_seconds()))


def _bundle_key(authority: Authority) -> dict[str, Any]:  # Any: JSON
    jwk: dict[str, Any] = dict(public_jwk(authority.signer.public_key))
    del jwk["alg"]
    jwk["use"] = authority.use.value
    if authority.use is Use.X509:
        jwk["x5c"] = [encode_b64(authority.certificate)]
    else:
        jwk["kid"] = authority.key_id
    return jwk
