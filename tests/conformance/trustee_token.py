"""CoCo's key broker's check of an attestation token, written again from its description; nothing of Cloister's.

trustee, kbs/docs/attestation_token_verification.md, and the way its token verifier goes: the header must have a `jwk`
with `x5c`; the first certificate's key must be the `jwk`; a path from it to a trusted certificate must exist, in any
order of the others; the signature is by the `jwk`, with its `alg`; `exp` and `nbf` hold, with a minute of leeway.
Where the guest's key stands is the list of JSON pointers that the broker tries.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

LEEWAY = 60
POINTERS = (
    "/tdx/attester_runtime_data/tee-pubkey",
    "/tdx/attester_user_data/tee-pubkey",
    "/customized_claims/runtime_data/tee-pubkey",
    "/submods/cpu0/ear.veraison.annotated-evidence/runtime_data_claims/tee-pubkey",
    "/tee-pubkey",
)


class Refused(Exception):
    """The token is not accepted."""


def verify(token: str, trusted: Sequence[x509.Certificate], at: datetime) -> dict[str, Any]:
    """Return the claims of a token.

    Raises:
        Refused: it is not accepted.
    """
    try:
        head, body, signature = (unpadded(part) for part in token.split("."))
        header, claims = json.loads(head), json.loads(body)
    except ValueError:
        raise Refused("no token") from None
    jwk = header.get("jwk")
    if not isinstance(jwk, dict):
        raise Refused("no key in the header, and no key set")
    if not trusted:
        raise Refused("no trusted certificate")
    endorsed(jwk, trusted, at)
    if jwk.get("alg") != "ES256" or header.get("alg") != jwk["alg"]:
        raise Refused("algorithm")
    r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
    signed = token.rpartition(".")[0].encode()
    try:
        key_of(jwk).verify(encode_dss_signature(r, s), signed, ec.ECDSA(SHA256()))
    except InvalidSignature:
        raise Refused("signature") from None
    now = at.timestamp()
    if not isinstance(claims.get("exp"), int) or claims["exp"] < now - LEEWAY:
        raise Refused("expired, or without an end")
    if claims.get("nbf", 0) > now + LEEWAY:
        raise Refused("not yet valid")
    found: dict[str, Any] = claims
    return found


def guest_key(claims: Any) -> Any:
    """Return the key that resources are sealed to."""
    for pointer in POINTERS:
        value = claims
        for name in pointer.strip("/").split("/"):
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            return value
    raise Refused("no key of the guest")


def endorsed(jwk: dict[str, Any], trusted: Sequence[x509.Certificate], at: datetime) -> None:
    """Return if the chain beside a key vouches for it.

    Raises:
        Refused: it does not.
    """
    chain = jwk.get("x5c")
    if not chain:
        raise Refused("no x5c")
    try:
        leaf, *others = (x509.load_der_x509_certificate(base64.b64decode(text, validate=True)) for text in chain)
    except ValueError:
        raise Refused("no certificate") from None
    if leaf.public_key() != key_of(jwk):
        raise Refused("the key is not the leaf's")
    place, left = leaf, [*others]
    while True:
        if not place.not_valid_before_utc <= at <= place.not_valid_after_utc:
            raise Refused("a certificate is not valid now")
        if any(place == anchor or issued(place, anchor, at) for anchor in trusted):
            return
        above = next((item for item in left if issued(place, item, at)), None)
        if above is None:
            raise Refused("no path to a trusted certificate")
        left.remove(above)
        place = above


def issued(certificate: x509.Certificate, issuer: x509.Certificate, at: datetime) -> bool:
    """Return whether a CA's certificate, valid now, issued another."""
    try:
        certificate.verify_directly_issued_by(issuer)
        constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return constraints.ca and issuer.not_valid_before_utc <= at <= issuer.not_valid_after_utc


def key_of(jwk: dict[str, Any]) -> ec.EllipticCurvePublicKey:
    """Return the P-256 key of a JWK."""
    if (jwk.get("kty"), jwk.get("crv")) != ("EC", "P-256"):
        raise Refused("no P-256 key")
    x, y = (int.from_bytes(unpadded(jwk[name]), "big") for name in ("x", "y"))
    return ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()


def unpadded(text: str) -> bytes:
    """Return the bytes of base64url without padding."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
