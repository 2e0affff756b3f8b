"""Sealed secrets: what is verified, and every reason to refuse one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from cloister.crypto.jwt import public_jwk, sign_es256
from cloister.crypto.sealedsecret import (
    SEALED_BYTES,
    SECRET_BYTES,
    EnvelopeSecret,
    VaultSecret,
    is_sealed,
    parse_sealing_key,
    read_key_id,
    seal_envelope_secret,
    seal_vault_secret,
    verify_sealed_secret,
)
from cloister.crypto.signer import ECDSAP256Signer
from cloister.errors import CloisterError
from cloister.protocol.resourceuri import ResourcePath
from cloister.wire.base64 import encode_b64, encode_b64url

KID = "kbs:///default/sealing-key/1"
NAME = ResourcePath("shop", "password", "1")
KEK_PATH = ResourcePath("shop", "kek", "1")
KEK = bytes(range(32))
SECRET = b"canary-of-the-seal"
VAULT = {
    "version": "0.1.0",
    "type": "vault",
    "name": NAME.uri,
    "provider": "kbs",
    "provider_settings": {},
    "annotations": {},
}


@pytest.fixture(scope="module")
def signer() -> ECDSAP256Signer:
    return ECDSAP256Signer.generate()


def sealed(signer: ECDSAP256Signer, payload: Any, header: Mapping[str, Any] | None = None) -> str:
    """Seal any payload under any header: what an attacker with the key, or a careless owner, may write."""
    parts = (header or {"alg": "ES256", "kid": KID}, payload)
    signed = ".".join(encode_b64url(json.dumps(part).encode()) for part in parts)
    return f"sealed.{signed}.{encode_b64url(sign_es256(signer, signed.encode()))}"


def envelope(signer: ECDSAP256Signer) -> str:
    return seal_envelope_secret(SECRET, signer, kid=KID, key_id=KEK_PATH, kek=KEK)


def payload_of(text: str) -> dict[str, Any]:
    import base64

    part = text.split(".")[2]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return found


def refusal(text: str, keys: Mapping[str, Any]) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        verify_sealed_secret(text, keys)
    return caught.value


def test_a_reference_is_verified(signer: ECDSAP256Signer) -> None:
    text = seal_vault_secret(NAME, signer, kid=KID)
    assert is_sealed(text)
    assert read_key_id(text) == KID
    found = verify_sealed_secret(text, {KID: signer.public_key})
    assert isinstance(found, VaultSecret)
    assert found.resource == NAME


@pytest.mark.parametrize("secret", [b"", SECRET, bytes(SECRET_BYTES)], ids=["empty", "short", "longest"])
def test_an_envelope_opens_with_its_key(signer: ECDSAP256Signer, secret: bytes) -> None:
    text = seal_envelope_secret(secret, signer, kid=KID, key_id=KEK_PATH, kek=KEK)
    found = verify_sealed_secret(text, {KID: signer.public_key})
    assert isinstance(found, EnvelopeSecret)
    assert found.resource == KEK_PATH
    assert found.open(KEK) == secret


def test_an_envelope_shows_nothing(signer: ECDSAP256Signer) -> None:
    text = envelope(signer)
    assert SECRET not in json.dumps(payload_of(text)).encode()
    assert payload_of(text) != payload_of(envelope(signer))
    assert "canary" not in repr(verify_sealed_secret(text, {KID: signer.public_key}))


def test_an_envelope_does_not_open_with_another_key_or_under_another_name(signer: ECDSAP256Signer) -> None:
    found = verify_sealed_secret(envelope(signer), {KID: signer.public_key})
    assert isinstance(found, EnvelopeSecret)
    for key, code in ((bytes(32), "crypto.sealed.not_opened"), (KEK[:31], "crypto.sealed.kek_length")):
        with pytest.raises(CloisterError) as caught:
            found.open(key)
        assert caught.value.code == code
    moved = verify_sealed_secret(
        sealed(signer, payload_of(envelope(signer)) | {"key_id": "kbs:///shop/kek/2"}), {KID: signer.public_key}
    )
    assert isinstance(moved, EnvelopeSecret)
    with pytest.raises(CloisterError) as caught:
        moved.open(KEK)
    assert caught.value.code == "crypto.sealed.not_opened"


def test_another_signer_is_refused(signer: ECDSAP256Signer) -> None:
    text = seal_vault_secret(NAME, ECDSAP256Signer.generate(), kid=KID)
    assert refusal(text, {KID: signer.public_key}).code == "crypto.sealed.bad_signature"


def test_a_key_that_was_not_given_is_refused(signer: ECDSAP256Signer) -> None:
    text = seal_vault_secret(NAME, signer, kid="another")
    for keys in ({}, {KID: signer.public_key}):
        assert refusal(text, keys).code == "crypto.sealed.unknown_key"


def test_every_changed_character_is_refused(signer: ECDSAP256Signer) -> None:
    text = seal_vault_secret(NAME, signer, kid=KID)
    for place in range(len(text)):
        for other in ("A", "B"):
            if text[place] != other:
                refusal(text[:place] + other + text[place + 1 :], {KID: signer.public_key})
                break


@pytest.mark.parametrize("algorithm", ["none", "HS256", "ES384", "fakealg", ""])
def test_no_other_algorithm_counts(signer: ECDSAP256Signer, algorithm: str) -> None:
    text = sealed(signer, VAULT, {"alg": algorithm, "kid": KID})
    assert refusal(text, {KID: signer.public_key}).code == "crypto.sealed.algorithm"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"version": "0.2.0"}, "crypto.sealed.version"),
        ({"provider": "aliyun"}, "crypto.sealed.provider"),
        ({"provider": ""}, "crypto.sealed.provider"),
        ({"provider_settings": {"region": "x"}}, "crypto.sealed.provider_settings"),
        ({"type": "other"}, "crypto.sealed.malformed"),
        ({"name": "shop/password/1"}, "crypto.sealed.malformed"),
        ({"name": "kbs://host/shop/password/1"}, "crypto.sealed.malformed"),
        ({"name": 1}, "crypto.sealed.malformed"),
        ({"more": 1}, "crypto.sealed.malformed"),
        ({"key_id": KEK_PATH.uri}, "crypto.sealed.malformed"),
    ],
)
def test_a_reference_that_cannot_be_honoured_is_refused(
    signer: ECDSAP256Signer, change: dict[str, Any], code: str
) -> None:
    assert refusal(sealed(signer, VAULT | change), {KID: signer.public_key}).code == code


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"wrap_type": "A256CTR"}, "crypto.sealed.wrap_type"),
        ({"name": NAME.uri}, "crypto.sealed.malformed"),
        ({"iv": encode_b64(bytes(16))}, "wire.base64.too_long"),
        ({"iv": encode_b64(bytes(8))}, "crypto.sealed.malformed"),
        ({"encrypted_key": ""}, "crypto.sealed.malformed"),
        ({"key_id": ""}, "crypto.sealed.malformed"),
        ({"encrypted_data": "*"}, "wire.base64.malformed"),
    ],
)
def test_an_envelope_that_is_not_whole_is_refused(signer: ECDSAP256Signer, change: dict[str, Any], code: str) -> None:
    text = sealed(signer, payload_of(envelope(signer)) | change)
    found = refusal(text, {KID: signer.public_key}).code
    assert found == code or found.startswith("wire.")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sealed",
        "sealed.",
        "sealed.a.b",
        "sealed.a.b.c.d",
        "plain.a.b.c",
        "sealed.é.b.c",
        "sealed." + "A" * SEALED_BYTES,
    ],
)
def test_other_text_is_refused(signer: ECDSAP256Signer, text: str) -> None:
    assert refusal(text, {KID: signer.public_key}).code == "crypto.sealed.malformed"


@pytest.mark.parametrize("kid", ["", "two\nlines"])
def test_a_key_without_a_readable_name_seals_nothing(signer: ECDSAP256Signer, kid: str) -> None:
    with pytest.raises(CloisterError) as caught:
        seal_vault_secret(NAME, signer, kid=kid)
    assert caught.value.code == "crypto.sealed.malformed"


def test_what_is_too_long_or_wrapped_badly_is_not_sealed(signer: ECDSAP256Signer) -> None:
    for secret, kek, code in (
        (bytes(SECRET_BYTES + 1), KEK, "crypto.sealed.too_long"),
        (SECRET, KEK[:16], "crypto.sealed.kek_length"),
    ):
        with pytest.raises(CloisterError) as caught:
            seal_envelope_secret(secret, signer, kid=KID, key_id=KEK_PATH, kek=kek)
        assert caught.value.code == code


def test_sealing_keys_are_read_as_jwk_and_pem(signer: ECDSAP256Signer) -> None:
    key = signer.public_key
    jwk = {**public_jwk(key), "kid": "x", "use": "sig"}
    assert parse_sealing_key(json.dumps(jwk).encode()).spki == key.spki
    assert parse_sealing_key(key.pem()).spki == key.spki


@pytest.mark.parametrize(
    "change",
    [{"kty": "RSA"}, {"crv": "P-384"}, {"x": "AA"}, {"x": encode_b64url(bytes(32)), "y": encode_b64url(bytes(32))}],
)
def test_other_sealing_keys_are_refused(signer: ECDSAP256Signer, change: dict[str, str]) -> None:
    with pytest.raises(CloisterError) as caught:
        parse_sealing_key(json.dumps(public_jwk(signer.public_key) | change).encode())
    assert caught.value.code == "crypto.sealed.key"
    for content in (b"", b"null", b"[" * 4000, b"{" + b" " * 5000):
        with pytest.raises(CloisterError):
            parse_sealing_key(content)


def test_only_verification_makes_secrets() -> None:
    with pytest.raises(TypeError):
        VaultSecret(object(), NAME)
    with pytest.raises(TypeError):
        EnvelopeSecret(object(), KEK_PATH, b"", b"", b"")
