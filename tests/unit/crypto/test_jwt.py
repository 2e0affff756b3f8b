"""Signed tokens: one algorithm, pinned keys, and every confusion that JWT libraries fell for."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, derive_private_key
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto import jwt
from cloister.crypto.signer import ECDSAP256PublicKey, ECDSAP256Signer
from cloister.errors import Refused

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SIGNER = ECDSAP256Signer(derive_private_key(0x5151, SECP256R1()))
KEYS = {jwt.key_id(SIGNER.public_key): SIGNER.public_key}


def claims(**changes: Any) -> dict[str, Any]:
    return {"iat": int(NOW.timestamp()), "exp": int(NOW.timestamp()) + 300, "sub": "x", **changes}


def b64url(data: bytes | dict[str, Any]) -> str:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def signed(header: dict[str, Any], body: dict[str, Any]) -> str:
    """Sign any header with the trusted key."""
    text = f"{b64url(header)}.{b64url(body)}"
    r, s = decode_dss_signature(SIGNER.sign(text.encode()))
    return f"{text}.{b64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def header(**changes: Any) -> dict[str, Any]:
    return {"typ": "JWT", "alg": "ES256", "kid": jwt.key_id(SIGNER.public_key), **changes}


def code_of(token: str, *, at: datetime = NOW, keys: dict[str, ECDSAP256PublicKey] | None = None) -> str:
    with pytest.raises(Refused) as caught:
        jwt.verify_jwt(token, KEYS if keys is None else keys, at=at)
    return caught.value.code


def test_a_signed_token_verifies() -> None:
    token = jwt.sign_jwt(claims(), SIGNER, chain=[b"leaf", b"root"])
    assert jwt.verify_jwt(token, KEYS, at=NOW) == claims()
    sent = json.loads(unpadded(token.split(".")[0]))
    assert sent["jwk"].pop("x5c") == [base64.b64encode(b"leaf").decode(), base64.b64encode(b"root").decode()]
    assert sent == header(jwk=jwt.public_jwk(SIGNER.public_key))


def test_another_implementation_verifies_it() -> None:
    """RFC 7515 by hand, with the key taken from the header's JWK."""
    token = jwt.sign_jwt(claims(), SIGNER)
    head, body, signature = token.split(".")
    jwk = json.loads(unpadded(head))["jwk"]
    point = derive_private_key(0x5151, SECP256R1()).public_key().public_numbers()
    assert (int.from_bytes(unpadded(jwk["x"]), "big"), int.from_bytes(unpadded(jwk["y"]), "big")) == (point.x, point.y)
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    raw = unpadded(signature)
    der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    derive_private_key(0x5151, SECP256R1()).public_key().verify(der, f"{head}.{body}".encode(), ECDSA(SHA256()))


def test_the_key_id_is_the_rfc_7638_thumbprint() -> None:
    jwk = jwt.public_jwk(SIGNER.public_key)
    text = f'{{"crv":"P-256","kty":"EC","x":"{jwk["x"]}","y":"{jwk["y"]}"}}'
    assert jwt.key_id(SIGNER.public_key) == b64url(hashlib.sha256(text.encode()).digest())


def test_the_helper_that_signs_bad_headers_can_sign_good_ones() -> None:
    assert jwt.verify_jwt(signed(header(), claims()), KEYS, at=NOW) == claims()


@pytest.mark.parametrize("algorithm", ["none", "None", "HS256", "RS256", "ES384", "PS256", "EdDSA", "es256", ""])
def test_the_token_does_not_choose_the_algorithm(algorithm: str) -> None:
    assert code_of(signed(header(alg=algorithm), claims())) == "crypto.jwt.algorithm"


@pytest.mark.parametrize("signature", ["", b64url(bytes(64))])
def test_unsigned_tokens(signature: str) -> None:
    assert code_of(f"{b64url(header(alg='none'))}.{b64url(claims())}.{signature}") == "crypto.jwt.algorithm"
    assert code_of(f"{b64url({'alg': 'none', 'typ': 'JWT'})}.{b64url(claims())}.{signature}") == "crypto.jwt.algorithm"
    assert code_of(f"{b64url(header())}.{b64url(claims())}.{signature}") == "crypto.jwt.bad_signature"


@pytest.mark.parametrize("secret", [SIGNER.public_key.spki, SIGNER.public_key.pem()])
def test_the_public_key_as_an_hmac_secret(secret: bytes) -> None:
    text = f"{b64url(header(alg='HS256'))}.{b64url(claims())}"
    token = f"{text}.{b64url(hmac.digest(secret, text.encode(), 'sha256'))}"
    assert code_of(token) == "crypto.jwt.algorithm"


def test_a_stranger_that_brings_its_own_key() -> None:
    stranger = ECDSAP256Signer.generate()
    assert code_of(jwt.sign_jwt(claims(), stranger)) == "crypto.jwt.unknown_key"
    head, body, signature = jwt.sign_jwt(claims(), stranger).split(".")
    lying = json.loads(unpadded(head)) | {"kid": jwt.key_id(SIGNER.public_key)}
    assert code_of(f"{b64url(lying)}.{body}.{signature}") == "crypto.jwt.unknown_key"
    lying.pop("jwk")
    assert code_of(f"{b64url(lying)}.{body}.{signature}") == "crypto.jwt.bad_signature"


def test_the_key_in_the_header_must_be_the_pinned_one() -> None:
    other = jwt.public_jwk(ECDSAP256Signer.generate().public_key)
    assert code_of(signed(header(jwk=other), claims())) == "crypto.jwt.unknown_key"
    assert code_of(signed(header(jwk={}), claims())) == "crypto.jwt.unknown_key"


def test_without_a_pinned_key_nothing_verifies() -> None:
    assert code_of(jwt.sign_jwt(claims(), SIGNER), keys={}) == "crypto.jwt.unknown_key"


@pytest.mark.parametrize("extra", [{"crit": ["exp"]}, {"b64": False}, {"jku": "https://x"}, {"x5u": "https://x"}])
def test_unknown_header_members(extra: dict[str, Any]) -> None:
    assert code_of(signed(header(**extra), claims())) == "crypto.jwt.malformed"


@pytest.mark.parametrize("part", [0, 1, 2])
def test_one_changed_character(part: int) -> None:
    parts = jwt.sign_jwt(claims(), SIGNER).split(".")
    for index in range(0, len(parts[part]), 7):
        old = parts[part][index]
        changed = parts[part][:index] + ("A" if old != "A" else "B") + parts[part][index + 1 :]
        code_of(".".join([*parts[:part], changed, *parts[part + 1 :]]))


def test_times() -> None:
    token = jwt.sign_jwt(claims(), SIGNER)
    assert jwt.verify_jwt(token, KEYS, at=NOW + timedelta(seconds=299))
    assert jwt.verify_jwt(token, KEYS, at=NOW - timedelta(seconds=30))
    assert code_of(token, at=NOW + timedelta(seconds=300)) == "crypto.jwt.expired"
    assert code_of(token, at=NOW - timedelta(seconds=31)) == "crypto.jwt.not_yet_valid"


@pytest.mark.parametrize("change", [{"exp": None}, {"iat": "0"}, {"exp": 1e99}, {"exp": "soon"}])
def test_times_of_odd_types(change: dict[str, Any]) -> None:
    assert code_of(signed(header(), claims(**change))) == "crypto.jwt.malformed"


@pytest.mark.parametrize("token", ["", ".", "..", "...", "a.b", "a.b.c.d", "ä.b.c", "A" * (jwt.TOKEN_BYTES + 1)])
def test_what_is_no_token(token: str) -> None:
    assert code_of(token) == "crypto.jwt.malformed"


def test_a_longer_signature() -> None:
    parts = jwt.sign_jwt(claims(), SIGNER).split(".")
    assert code_of(f"{parts[0]}.{parts[1]}.{parts[2]}AAAA") == "crypto.jwt.malformed"


@given(st.text(st.sampled_from("eyJhbGciOiJ9.-_= \x00{}"), max_size=80) | st.text(max_size=20))
def test_any_text_is_refused(token: str) -> None:
    with pytest.raises(Refused):
        jwt.verify_jwt(token, KEYS, at=NOW)


class TestHeld:
    """Tokens whose signature is known to hold."""

    def held(self) -> tuple[jwt.HeldTokens, str]:
        tokens, token = jwt.HeldTokens(), jwt.sign_jwt(claims(), SIGNER)
        tokens.add(token, claims())
        return tokens, token

    def test_its_claims_come_back(self) -> None:
        tokens, token = self.held()
        assert tokens.verify(token, KEYS, at=NOW) == claims()

    def test_another_is_verified_and_then_known(self) -> None:
        tokens, token = jwt.HeldTokens(), jwt.sign_jwt(claims(), SIGNER)
        first = tokens.verify(token, KEYS, at=NOW)
        assert first == claims() and tokens.verify(token, KEYS, at=NOW) is first

    @pytest.mark.parametrize(("after", "code"), [(300, "expired"), (-31, "not_yet_valid")])
    def test_its_time_is_asked_each_time(self, after: int, code: str) -> None:
        tokens, token = self.held()
        with pytest.raises(Refused) as caught:
            tokens.verify(token, KEYS, at=NOW + timedelta(seconds=after))
        assert caught.value.code == f"crypto.jwt.{code}"

    def test_a_key_that_counts_no_more_is_noticed(self) -> None:
        tokens, token = self.held()
        with pytest.raises(Refused) as caught:
            tokens.verify(token, {}, at=NOW)
        assert caught.value.code == "crypto.jwt.unknown_key"

    def test_one_changed_letter_is_another_token(self) -> None:
        tokens, token = self.held()
        header, body, signature = token.split(".")
        changed = b64url({**json.loads(unpadded(body)), "sub": "y"})
        for other in (f"{header}.{changed}.{signature}", f"{header}.{body}.{'A' * len(signature)}"):
            with pytest.raises(Refused) as caught:
                tokens.verify(other, KEYS, at=NOW)
            assert caught.value.code == "crypto.jwt.bad_signature"
        assert tokens.verify(token, KEYS, at=NOW) == claims()

    def test_a_token_of_another_key_is_not_taken_for_ours(self) -> None:
        tokens, _ = self.held()
        other = ECDSAP256Signer(derive_private_key(0x5252, SECP256R1()))
        with pytest.raises(Refused) as caught:
            tokens.verify(jwt.sign_jwt(claims(), other), KEYS, at=NOW)
        assert caught.value.code == "crypto.jwt.unknown_key"

    def test_few_are_kept_and_none_that_is_long(self) -> None:
        tokens = jwt.HeldTokens()
        for number in range(jwt._HELD + 50):
            tokens.add(jwt.sign_jwt(claims(sub=str(number)), SIGNER), claims())
        long = jwt.sign_jwt(claims(sub="x" * jwt._HELD_BYTES), SIGNER)
        tokens.add(long, {})
        assert len(tokens._held) == jwt._HELD
        assert tokens.verify(long, KEYS, at=NOW)["sub"].startswith("xx"), "verified, not remembered"

    @pytest.mark.parametrize("text", ["", ".", "a.b.c", "\u00e9.b.c", "a" * 500_000])
    def test_what_is_no_token_is_refused(self, text: str) -> None:
        with pytest.raises(Refused) as caught:
            jwt.HeldTokens().verify(text, KEYS, at=NOW)
        assert caught.value.code == "crypto.jwt.malformed"
