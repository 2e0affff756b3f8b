"""JWE as the protocol wants it: the header's bytes, every recipient kind, and what is refused."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap
from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto import jwe
from cloister.errors import FormatRefused, Refused
from cloister.protocol.kbs import SealedResource
from cloister.wire.limits import RESOURCE_BYTES

SECRET = b"a key of thirty-two bytes, or so"


def unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def b64url(number: int, width: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes(width, "big")).rstrip(b"=").decode()


def ec_jwk(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    name, width = {256: ("P-256", 32), 521: ("P-521", 66), 384: ("P-384", 48)}[key.curve.key_size]
    point = key.public_key().public_numbers()
    return {
        "kty": "EC",
        "crv": name,
        "alg": "ECDH-ES+A256KW",
        "x": b64url(point.x, width),
        "y": b64url(point.y, width),
    }


def rsa_jwk(key: rsa.RSAPrivateKey) -> dict[str, str]:
    numbers = key.public_key().public_numbers()
    return {
        "kty": "RSA",
        "alg": "RSA-OAEP-256",
        "n": b64url(numbers.n, key.key_size // 8),
        "e": b64url(numbers.e, 3),
    }


def coco_header_bytes(protected: str) -> bytes:
    """What CoCo's client authenticates: its parsed header written again, `alg`, `enc`, the rest sorted."""
    header = json.loads(unpadded(protected))
    alg, enc = header.pop("alg"), header.pop("enc")
    rest = json.loads(json.dumps(header, sort_keys=True))
    return json.dumps({"alg": alg, "enc": enc, **rest}, separators=(",", ":")).encode()


def coco_open_ec(key: ec.EllipticCurvePrivateKey, sealed: SealedResource) -> bytes:
    """An independent reading of RFC 7518 section 4.6 and of the client's rule for associated data."""
    header = json.loads(unpadded(sealed.protected))
    epk = header["epk"]
    x, y = (int.from_bytes(unpadded(epk[name]), "big") for name in ("x", "y"))
    sender = ec.EllipticCurvePublicNumbers(x, y, key.curve).public_key()
    z = key.exchange(ec.ECDH(), sender)
    digest = hashes.Hash(hashes.SHA256())
    algorithm = b"ECDH-ES+A256KW"
    number = lambda value: value.to_bytes(4, "big")  # noqa: E731
    digest.update(number(1) + z + number(len(algorithm)) + algorithm + number(0) + number(0) + number(256))
    cek = aes_key_unwrap(digest.finalize(), unpadded(sealed.encrypted_key))
    return coco_decrypt(cek, sealed)


def coco_decrypt(cek: bytes, sealed: SealedResource) -> bytes:
    associated = base64.urlsafe_b64encode(coco_header_bytes(sealed.protected)).rstrip(b"=")
    return AESGCM(cek).decrypt(unpadded(sealed.iv), unpadded(sealed.ciphertext) + unpadded(sealed.tag), associated)


def test_golden_answer_for_a_fixed_ephemeral_key() -> None:
    """Any change of these bytes breaks unmodified CoCo guests."""
    recipient = ec.derive_private_key(0x1111, ec.SECP256R1())
    ephemeral = ec.derive_private_key(0x2222, ec.SECP256R1())
    sealed = jwe._seal_ec(recipient.public_key(), SECRET, ephemeral, b"\x01" * 32, b"\x02" * 12)
    header = (
        '{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":{"crv":"P-256","kty":"EC",'
        '"x":"pi8EjzZzWYCcLUbCBJ19e_Jow8BzxHJ1PLGKJKitILE","y":"ysz4EEtmZ5XH812sncREs8LGGXgZjEmFmVW5mVbaXts"}}'
    )
    assert unpadded(sealed.protected).decode() == header
    assert msgspec.to_builtins(sealed) == {
        "protected": base64.urlsafe_b64encode(header.encode()).rstrip(b"=").decode(),
        "encrypted_key": "nV9zFeCSsItZI7vWonHFbcNa_tbhWq_b4K9yTUksCjbZtsGTnNsOlg",
        "iv": "AgICAgICAgICAgIC",
        "ciphertext": "ZvaiLDN3rpvzuNShLtO7n9bCvs-JyPkUrqvAlArbBxA",
        "tag": "iLVsxmx10raPMvHTpnRN2Q",
    }
    assert coco_open_ec(recipient, sealed) == SECRET


def test_golden_answer_on_p521() -> None:
    """Any change of these bytes breaks unmodified CoCo guests."""
    recipient = ec.derive_private_key(0x1111, ec.SECP521R1())
    ephemeral = ec.derive_private_key(0x2222, ec.SECP521R1())
    sealed = jwe._seal_ec(recipient.public_key(), SECRET, ephemeral, b"\x01" * 32, b"\x02" * 12)
    header = (
        '{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":{"crv":"P-521","kty":"EC",'
        '"x":"AXT7zWUNS0fFHku2oGO79gArTqL8sOlTDVnYL5_2-2VATsBnNgZcHOFISALYzdQ84bPdIwIYGAtycs8LYA22qdXq",'
        '"y":"AMrQT75W-QgcZJpsb2Jd7tFqPBzz4J0ZphIc4qer7sFLIG2J4qAgUtJ5whJ2vhlGg-9I1plu6YsOxg1PoIRlRDTT"}}'
    )
    assert unpadded(sealed.protected).decode() == header
    assert msgspec.to_builtins(sealed) == {
        "protected": base64.urlsafe_b64encode(header.encode()).rstrip(b"=").decode(),
        "encrypted_key": "U2BMCqlGqHm0TlBZ4mo3YiWgSIuSIYPrKY70ZB_BMGuLu13x1bVmQQ",
        "iv": "AgICAgICAgICAgIC",
        "ciphertext": "ZvaiLDN3rpvzuNShLtO7n9bCvs-JyPkUrqvAlArbBxA",
        "tag": "o1d_TNIIzxTCPA0K5nY5Gw",
    }
    assert coco_open_ec(recipient, sealed) == SECRET


def coco_parse(protected: str) -> str:
    """The client's rule, strictly: only a header that it would write with the same bytes opens anything."""
    text = unpadded(protected)
    if coco_header_bytes(protected) != text:
        raise ValueError("another order, or blanks")
    return text.decode()


@pytest.mark.parametrize("kind", list(jwe.KeyKind))
def test_item_1_every_header_we_write_is_one_that_cocos_client_writes(kind: jwe.KeyKind) -> None:
    key = own_key(kind)
    protected = jwe.seal_for(jwe.parse_recipient(key.public_jwk()), SECRET).protected
    text = coco_parse(protected)
    assert " " not in text and text.index('"alg"') < text.index('"enc"')


@pytest.mark.parametrize(
    "text",
    [
        '{"enc":"A256GCM","alg":"ECDH-ES+A256KW"}',
        '{"alg":"ECDH-ES+A256KW", "enc":"A256GCM"}',
        '{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":{"kty":"EC","crv":"P-256"}}',
        '{"alg":"ECDH-ES+A256KW","cty":"x","enc":"A256GCM"}',
        '{"alg":"ECDH-ES+A256KW","enc":"A256GCM","kid":"x","epk":{}}',
    ],
)
def test_the_rule_of_cocos_client_finds_any_other_header(text: str) -> None:
    with pytest.raises(ValueError, match="another order"):
        coco_parse(base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode())


@cache
def own_key(kind: jwe.KeyKind) -> jwe.EphemeralKey:
    """One guest's key of each kind: making an RSA key is slow."""
    return jwe.EphemeralKey.generate(kind)


class TestKindsOfKey:
    @pytest.mark.parametrize("kind", list(jwe.KeyKind))
    def test_each_opens_what_is_sealed_to_it(self, kind: jwe.KeyKind) -> None:
        key = own_key(kind)
        assert key.open(jwe.seal_for(jwe.parse_recipient(key.public_jwk()), SECRET)) == SECRET
        assert str(kind) in repr(key)

    @pytest.mark.parametrize("kind", list(jwe.KeyKind))
    def test_each_refuses_what_is_sealed_to_another_of_its_kind(self, kind: jwe.KeyKind) -> None:
        sealed = jwe.seal_for(jwe.parse_recipient(jwe.EphemeralKey.generate(kind).public_jwk()), SECRET)
        with pytest.raises(Refused) as caught:
            own_key(kind).open(sealed)
        assert caught.value.code == "crypto.jwe.not_authentic"

    @pytest.mark.parametrize("kind", list(jwe.KeyKind))
    def test_each_refuses_what_is_sealed_to_another_kind(self, kind: jwe.KeyKind) -> None:
        for other in set(jwe.KeyKind) - {kind}:
            sealed = jwe.seal_for(jwe.parse_recipient(own_key(other).public_jwk()), SECRET)
            with pytest.raises(FormatRefused) as caught:
                own_key(kind).open(sealed)
            assert caught.value.code in ("crypto.jwe.algorithm", "crypto.jwe.malformed")

    def test_other_keys_are_a_mistake_of_ours(self) -> None:
        with pytest.raises(RuntimeError):
            jwe.EphemeralKey(ec.generate_private_key(ec.SECP384R1()))


class TestRSA15:
    """For guests of protocol 0.1.1, by an owner who asked for it."""

    @staticmethod
    def jwk() -> tuple[rsa.RSAPrivateKey, dict[str, str]]:
        key = rsa.generate_private_key(65537, 2048)
        return key, {**rsa_jwk(key), "alg": "RSA1_5"}

    def test_it_is_off(self) -> None:
        with pytest.raises(FormatRefused) as caught:
            jwe.parse_recipient(self.jwk()[1])
        assert caught.value.code == "crypto.jwe.key"

    def test_the_form_of_011(self) -> None:
        """Header in the clear, tag behind the ciphertext, no associated data: as CoCo's broker of that time wrote."""
        key, jwk = self.jwk()
        sealed = jwe.seal_for(jwe.parse_recipient(jwk, insecure_rsa1_5=True), SECRET, version="0.1.1")
        assert sealed.protected == '{"alg":"RSA1_5","enc":"A256GCM"}' and sealed.tag == ""
        cek = key.decrypt(unpadded(sealed.encrypted_key), padding.PKCS1v15())
        assert AESGCM(cek).decrypt(unpadded(sealed.iv), unpadded(sealed.ciphertext), None) == SECRET

    def test_the_form_of_later_versions(self) -> None:
        key, jwk = self.jwk()
        sealed = jwe.seal_for(jwe.parse_recipient(jwk, insecure_rsa1_5=True), SECRET, version="0.2.0")
        assert coco_parse(sealed.protected) == '{"alg":"RSA1_5","enc":"A256GCM"}'
        assert coco_decrypt(key.decrypt(unpadded(sealed.encrypted_key), padding.PKCS1v15()), sealed) == SECRET

    def test_the_old_form_is_for_no_other_key(self) -> None:
        for kind in jwe.KeyKind:
            with pytest.raises(FormatRefused) as caught:
                jwe.seal_for(jwe.parse_recipient(own_key(kind).public_jwk()), SECRET, version="0.1.1")
            assert caught.value.code == "crypto.jwe.key"

    def test_asking_for_it_changes_nothing_for_other_keys(self) -> None:
        jwk = own_key(jwe.KeyKind.RSA).public_jwk()
        assert jwe.parse_recipient(jwk, insecure_rsa1_5=True).algorithm == "RSA-OAEP-256"


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP521R1()])
def test_a_coco_guest_opens_what_is_sealed_to_an_ec_key(curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    sealed = jwe.seal_for(jwe.parse_recipient(ec_jwk(key)), SECRET)
    assert coco_header_bytes(sealed.protected) == unpadded(sealed.protected)
    assert coco_open_ec(key, sealed) == SECRET


@pytest.mark.parametrize("bits", [2048, 3072])
def test_a_coco_guest_opens_what_is_sealed_to_an_rsa_key(bits: int) -> None:
    key = rsa.generate_private_key(65537, bits)
    sealed = jwe.seal_for(jwe.parse_recipient(rsa_jwk(key)), SECRET)
    assert unpadded(sealed.protected) == b'{"alg":"RSA-OAEP-256","enc":"A256GCM"}'
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    assert coco_decrypt(key.decrypt(unpadded(sealed.encrypted_key), oaep), sealed) == SECRET


@pytest.mark.parametrize("size", [1, 31, 32, RESOURCE_BYTES])
def test_our_guest_opens_what_our_broker_seals(size: int) -> None:
    key = jwe.EphemeralKey.generate()
    assert key.open(jwe.seal_for(jwe.parse_recipient(key.public_jwk()), bytes(size))) == bytes(size)


def test_two_answers_share_nothing() -> None:
    key = jwe.EphemeralKey.generate()
    recipient = jwe.parse_recipient(key.public_jwk())
    first, second = (msgspec.to_builtins(jwe.seal_for(recipient, SECRET)) for _ in range(2))
    assert all(first[name] != second[name] for name in first)


def test_a_resource_past_the_ceiling_is_not_sealed() -> None:
    recipient = jwe.parse_recipient(jwe.EphemeralKey.generate().public_jwk())
    with pytest.raises(FormatRefused) as caught:
        jwe.seal_for(recipient, bytes(RESOURCE_BYTES + 1))
    assert caught.value.code == "crypto.jwe.too_long"


def test_another_key_does_not_open() -> None:
    sealed = jwe.seal_for(jwe.parse_recipient(jwe.EphemeralKey.generate().public_jwk()), SECRET)
    with pytest.raises(Refused) as caught:
        jwe.EphemeralKey.generate().open(sealed)
    assert caught.value.code == "crypto.jwe.not_authentic"


@pytest.mark.parametrize("member", ["protected", "encrypted_key", "iv", "ciphertext", "tag"])
def test_one_flipped_bit_anywhere_is_refused(member: str) -> None:
    key = jwe.EphemeralKey.generate()
    sealed = jwe.seal_for(jwe.parse_recipient(key.public_jwk()), SECRET)
    data = bytearray(unpadded(getattr(sealed, member)))
    for index in range(len(data)):
        changed = bytes(data[:index]) + bytes([data[index] ^ 1]) + bytes(data[index + 1 :])
        text = base64.urlsafe_b64encode(changed).rstrip(b"=").decode()
        with pytest.raises(Refused):
            key.open(msgspec.structs.replace(sealed, **{member: text}))


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header | {"alg": "dir"},
        lambda header: header | {"alg": "RSA-OAEP-256"},
        lambda header: header | {"enc": "A128GCM"},
        lambda header: header | {"zip": "DEF"},
        lambda header: header | {"crit": ["exp"]},
        lambda header: header | {"epk": header["epk"] | {"crv": "P-521"}},
        lambda header: header | {"epk": header["epk"] | {"d": "AAAA"}},
        lambda header: {name: value for name, value in header.items() if name != "epk"},
    ],
)
def test_a_header_of_another_algorithm_is_refused(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    key = jwe.EphemeralKey.generate()
    sealed = jwe.seal_for(jwe.parse_recipient(key.public_jwk()), SECRET)
    header = json.dumps(change(json.loads(unpadded(sealed.protected)))).encode()
    text = base64.urlsafe_b64encode(header).rstrip(b"=").decode()
    with pytest.raises(FormatRefused) as caught:
        key.open(msgspec.structs.replace(sealed, protected=text))
    assert caught.value.code in ("crypto.jwe.algorithm", "crypto.jwe.malformed")


def test_a_point_off_the_curve_is_refused() -> None:
    """Invalid-curve points would give away the private key bit by bit."""
    jwk = ec_jwk(ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(FormatRefused) as caught:
        jwe.parse_recipient({**jwk, "y": jwk["x"]})
    assert caught.value.code == "crypto.jwe.key"


@pytest.mark.parametrize(
    "change",
    [
        {"kty": "oct"},
        {"kty": ""},
        {"crv": "P-384"},
        {"crv": "P-521"},
        {"alg": "ECDH-ES"},
        {"alg": "none"},
        {"d": "AAAA"},
        {"x": ""},
        {"x": "A" * 44},
        {"x": "!"},
    ],
)
def test_malformed_ec_keys_are_refused(change: dict[str, str]) -> None:
    jwk = ec_jwk(ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(FormatRefused):
        jwe.parse_recipient({**jwk, **change})


@pytest.mark.parametrize("name", ["kty", "crv", "alg", "x", "y"])
def test_each_member_is_needed(name: str) -> None:
    jwk = ec_jwk(ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(FormatRefused):
        jwe.parse_recipient({key: value for key, value in jwk.items() if key != name})


@pytest.mark.parametrize(
    "change",
    [
        {"n": b64url(1 << 1023 | 1, 128)},
        {"n": b64url(1 << 2046 | 1, 256)},
        {"n": b64url((1 << 8191) | 1, 1024)},
        {"e": "Aw"},
        {"e": "AQAA"},
        {"alg": "RSA1_5"},
        {"d": "AAAA"},
    ],
)
def test_weak_or_malformed_rsa_keys_are_refused(change: dict[str, str]) -> None:
    good = {"kty": "RSA", "alg": "RSA-OAEP-256", "n": b64url(1 << 2047 | 1, 256), "e": "AQAB"}
    jwe.parse_recipient(good)
    with pytest.raises(FormatRefused):
        jwe.parse_recipient({**good, **change})


def test_a_wiped_key_is_gone() -> None:
    key = jwe.EphemeralKey.generate()
    key.wipe()
    assert repr(key) == "EphemeralKey(wiped)"
    with pytest.raises(RuntimeError):
        key.public_jwk()


def test_a_key_never_shows_itself() -> None:
    assert repr(jwe.EphemeralKey.generate()) == "EphemeralKey(P-256)"


_TEXT = st.text(st.sampled_from("ABCxyz019-_=+/. \x00é"), max_size=60)
_KEY = jwe.EphemeralKey.generate()


@given(st.dictionaries(st.sampled_from(["kty", "crv", "alg", "x", "y", "n", "e", "d"]), _TEXT | st.text(max_size=9)))
def test_any_key_parses_or_is_refused(jwk: dict[str, str]) -> None:
    with contextlib.suppress(FormatRefused):
        jwe.parse_recipient(jwk)


@given(*[_TEXT] * 5)
def test_any_answer_opens_or_is_refused(protected: str, key: str, iv: str, ciphertext: str, tag: str) -> None:
    sealed = SealedResource(protected=protected, encrypted_key=key, iv=iv, ciphertext=ciphertext, tag=tag)
    with pytest.raises(Refused):
        _KEY.open(sealed)
