"""Layer keys in JWE, against joserfc: what one writes the other reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from joserfc import jwe
from joserfc.jwk import ECKey, RSAKey

from cloister.errors import CloisterError
from cloister.oci.encryption.jwe import JWEUnwrapper, JWEWrapper
from cloister.oci.encryption.keyfiles import OpeningKey, RecipientKey, parse_recipient_key
from cloister.wire.base64 import decode_b64url, encode_b64url
from unit.oci.recipients import OPTIONS, ec_key, jwk, private_bytes, rsa_key

KEY_ALGORITHMS = ("RSA-OAEP", "RSA-OAEP-256", "ECDH-ES+A128KW", "ECDH-ES+A192KW", "ECDH-ES+A256KW")
ENCRYPTIONS = ("A128GCM", "A192GCM", "A256GCM", "A128CBC-HS256", "A192CBC-HS384", "A256CBC-HS512")
REGISTRY = jwe.JWERegistry(algorithms=[*KEY_ALGORITHMS, *ENCRYPTIONS])


def key_for(algorithm: str) -> Any:
    return rsa_key() if algorithm.startswith("RSA") else ec_key()


def jose_key(key: Any) -> Any:
    kind = RSAKey if key is rsa_key() else ECKey
    return kind.import_key(private_bytes(key).decode())


def joserfc_seals(algorithm: str, encryption: str, *, header: dict[str, Any] | None = None) -> dict[str, Any]:
    message = jwe.FlattenedJSONEncryption({"alg": algorithm, "enc": encryption, **(header or {})}, OPTIONS)
    message.add_recipient({"kid": "x"}, jose_key(key_for(algorithm)))
    sealed: dict[str, Any] = jwe.encrypt_json(message, None, registry=REGISTRY)
    return sealed


def opener(key: Any) -> JWEUnwrapper:
    return JWEUnwrapper(OpeningKey(key=key))


def refused(run: Callable[[], object]) -> str:
    with pytest.raises(CloisterError) as caught:
        run()
    return caught.value.code


@pytest.mark.parametrize("encryption", ENCRYPTIONS)
@pytest.mark.parametrize("algorithm", KEY_ALGORITHMS)
def test_what_joserfc_writes_is_read(algorithm: str, encryption: str) -> None:
    element = json.dumps(joserfc_seals(algorithm, encryption)).encode()
    assert opener(key_for(algorithm)).unwrap(element) == OPTIONS


@pytest.mark.parametrize("algorithm", ["", *KEY_ALGORITHMS])
@pytest.mark.parametrize("kind", ["rsa", "ec"])
def test_joserfc_reads_what_is_written(algorithm: str, kind: str) -> None:
    if algorithm and algorithm.startswith("RSA") != (kind == "rsa"):
        return
    key = rsa_key() if kind == "rsa" else ec_key()
    recipient = RecipientKey(key=key.public_key(), algorithm=algorithm)
    element = json.loads(JWEWrapper([recipient]).wrap(OPTIONS))
    assert set(element) == {"protected", "encrypted_key", "iv", "ciphertext", "tag"}
    opened = jwe.decrypt_json(element, jose_key(key), registry=REGISTRY)
    assert opened.plaintext == OPTIONS
    assert opened.protected["alg"] == algorithm or opened.protected["alg"] == {"rsa": "RSA-OAEP"}.get(
        kind, "ECDH-ES+A256KW"
    )
    assert opened.protected["enc"] == "A256GCM"


def test_several_recipients_share_one_jwe() -> None:
    keys = [rsa_key(), ec_key(), ec_key("P-521")]
    element = JWEWrapper([RecipientKey(key=key.public_key()) for key in keys]).wrap(OPTIONS)
    document = json.loads(element)
    assert set(document) == {"protected", "recipients", "iv", "ciphertext", "tag"}
    assert json.loads(decode_b64url(document["protected"], ceiling=99)) == {"enc": "A256GCM"}
    assert [entry["header"]["alg"] for entry in document["recipients"]] == ["RSA-OAEP", *["ECDH-ES+A256KW"] * 2]
    for key in keys:
        assert opener(key).unwrap(element) == OPTIONS
    for key in (rsa_key("other"), ec_key("P-256", "other"), ec_key("P-384")):
        assert refused(lambda key=key: opener(key).unwrap(element)) == "oci.encryption.unwrap_failed"


@pytest.mark.parametrize("curve", ["P-256", "P-384", "P-521"])
def test_every_curve(curve: str) -> None:
    key = ec_key(curve)
    assert opener(key).unwrap(JWEWrapper([RecipientKey(key=key.public_key())]).wrap(OPTIONS)) == OPTIONS


def test_a_jwk_says_how_it_wants_to_be_wrapped_to_and_its_name() -> None:
    key = parse_recipient_key(jwk(rsa_key(), alg="RSA-OAEP-256", kid="team key"))
    header = json.loads(decode_b64url(json.loads(JWEWrapper([key]).wrap(OPTIONS))["protected"], ceiling=200))
    assert header == {"alg": "RSA-OAEP-256", "enc": "A256GCM", "kid": "team key"}
    assert opener(rsa_key()).unwrap(JWEWrapper([key]).wrap(OPTIONS)) == OPTIONS


def test_go_jose_repeats_the_first_key_beside_several() -> None:
    keys = [rsa_key(), ec_key()]
    document = json.loads(JWEWrapper([RecipientKey(key=key.public_key()) for key in keys]).wrap(OPTIONS))
    document["encrypted_key"] = document["recipients"][0]["encrypted_key"]
    assert opener(keys[1]).unwrap(json.dumps(document).encode()) == OPTIONS


def test_nonces_and_keys_are_fresh() -> None:
    wrapper = JWEWrapper([RecipientKey(key=ec_key().public_key())])
    elements = [json.loads(wrapper.wrap(OPTIONS)) for _ in range(8)]
    for member in ("iv", "ciphertext", "protected", "encrypted_key"):
        assert len({element[member] for element in elements}) == 8


# -- refused ------------------------------------------------------------------------------------------------------


def test_short_keys_and_too_many_recipients() -> None:
    short = RecipientKey(key=rsa_key(bits=1024).public_key())
    assert refused(lambda: JWEWrapper([short])) == "oci.encryption.jwe.weak_key"
    assert refused(lambda: JWEWrapper([])) == "oci.encryption.jwe.too_many"
    assert refused(lambda: JWEWrapper([RecipientKey(key=ec_key().public_key())] * 33)) == "oci.encryption.jwe.too_many"


@pytest.mark.parametrize("encryption", ENCRYPTIONS)
@pytest.mark.parametrize("member", ["protected", "encrypted_key", "iv", "ciphertext", "tag"])
def test_a_changed_member(encryption: str, member: str) -> None:
    element = joserfc_seals("ECDH-ES+A256KW", encryption)
    content = bytearray(decode_b64url(element[member], ceiling=4096))
    content[len(content) // 2] ^= 1
    element[member] = encode_b64url(bytes(content))
    code = refused(lambda: opener(ec_key()).unwrap(json.dumps(element).encode()))
    assert code == "oci.encryption.unwrap_failed" or member == "protected"


@pytest.mark.parametrize("encryption", ENCRYPTIONS)
@pytest.mark.parametrize("member", ["encrypted_key", "iv", "ciphertext", "tag"])
def test_a_shortened_member(encryption: str, member: str) -> None:
    element = joserfc_seals("RSA-OAEP", encryption)
    element[member] = encode_b64url(decode_b64url(element[member], ceiling=4096)[:-1])
    assert refused(lambda: opener(rsa_key()).unwrap(json.dumps(element).encode())) == "oci.encryption.unwrap_failed"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"aad": "eA"}, "oci.encryption.jwe.unknown_member"),
        ({"unprotected": {"alg": "RSA-OAEP"}}, "oci.encryption.jwe.unknown_member"),
        ({"header": {"alg": "RSA-OAEP"}}, "oci.encryption.jwe.header"),
        ({"header": {"enc": "A256GCM"}}, "oci.encryption.jwe.header"),
        ({"header": {"zip": "DEF"}}, "oci.encryption.jwe.header"),
        ({"header": {"crit": ["b64"]}}, "oci.encryption.jwe.header"),
        ({"header": "x"}, "oci.encryption.jwe.wrong_type"),
        ({"tag": None}, "oci.encryption.jwe.missing_member"),
        ({"iv": "a b"}, "wire.base64.malformed"),
        ({"protected": "e30"}, "oci.encryption.jwe.missing_member"),
        ({"protected": encode_b64url(b'{"enc":"A256GCM"}')}, "oci.encryption.jwe.missing_member"),
        ({"protected": encode_b64url(b'{"alg":"dir","enc":"A256GCM"}')}, "oci.encryption.unwrap_failed"),
        ({"protected": encode_b64url(b'{"alg":"RSA1_5","enc":"A256GCM"}')}, "oci.encryption.unwrap_failed"),
        ({"protected": encode_b64url(b'{"alg":"RSA-OAEP","enc":"A256CTR"}')}, "oci.encryption.jwe.unknown_encryption"),
        ({"recipients": [{}] * 33}, "oci.encryption.jwe.too_many"),
        ({"recipients": [3]}, "oci.encryption.jwe.wrong_type"),
    ],
)
def test_documents_that_are_no_layer_key(change: dict[str, Any], code: str) -> None:
    element = {**json.loads(JWEWrapper([RecipientKey(key=rsa_key().public_key())]).wrap(OPTIONS)), **change}
    element = {name: value for name, value in element.items() if value is not None}
    assert refused(lambda: opener(rsa_key()).unwrap(json.dumps(element).encode())) == code


def test_a_point_off_its_curve_is_another_keys() -> None:
    """An invalid point would tell the private key bit by bit."""
    element = json.loads(JWEWrapper([RecipientKey(key=ec_key().public_key())]).wrap(OPTIONS))
    header = json.loads(decode_b64url(element["protected"], ceiling=1000))
    header["epk"]["y"] = header["epk"]["x"]
    element["protected"] = encode_b64url(json.dumps(header).encode())
    assert refused(lambda: opener(ec_key()).unwrap(json.dumps(element).encode())) == "oci.encryption.unwrap_failed"


def test_keys_do_not_show() -> None:
    assert repr(OpeningKey(key=rsa_key())) == "OpeningKey()"
    assert "JWEUnwrapper object" in repr(opener(rsa_key()))
