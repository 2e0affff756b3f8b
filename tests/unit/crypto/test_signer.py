"""Signing keys."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from cloister.crypto.signer import ECDSAP256PublicKey, ECDSAP256Signer
from cloister.errors import Refused


def code_of(run: object) -> str:
    with pytest.raises(Refused) as caught:
        run()  # type: ignore[operator]  # a callable
    return caught.value.code


def test_signatures_verify_with_their_key_and_message_only() -> None:
    signer, other = ECDSAP256Signer.generate(), ECDSAP256Signer.generate()
    signature = signer.sign(b"message")
    signer.public_key.verify(b"message", signature)
    assert code_of(lambda: signer.public_key.verify(b"massage", signature)) == "crypto.signer.bad_signature"
    assert code_of(lambda: other.public_key.verify(b"message", signature)) == "crypto.signer.bad_signature"


@pytest.mark.parametrize("signature", [b"", b"\x30\x00", b"x" * 70, b"x" * 10_000])
def test_what_is_no_signature_is_refused(signature: bytes) -> None:
    key = ECDSAP256Signer.generate().public_key
    assert code_of(lambda: key.verify(b"message", signature)) == "crypto.signer.bad_signature"


def test_keys_round_trip() -> None:
    signer = ECDSAP256Signer.generate()
    again = ECDSAP256Signer.from_pem(signer.private_pem())
    public = ECDSAP256PublicKey.from_pem(signer.public_key.pem())
    public.verify(b"m", again.sign(b"m"))
    assert public.fingerprint == signer.public_key.fingerprint
    assert len(public.fingerprint) == 64


def spki_pem(key: ec.EllipticCurvePublicKey, encoding: PublicFormat = PublicFormat.SubjectPublicKeyInfo) -> bytes:
    return key.public_bytes(Encoding.PEM, encoding)


def test_public_keys_are_written_as_cryptography_writes_them() -> None:
    for _ in range(20):  # coordinates with leading zeros are among them now and then
        key = ec.generate_private_key(ec.SECP256R1()).public_key()
        ours = ECDSAP256PublicKey(key)
        assert ours.pem() == spki_pem(key)
        assert ours.spki == key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        assert ECDSAP256PublicKey.from_pem(spki_pem(key)).spki == ours.spki


def test_coordinates_keep_their_zeros() -> None:
    key = next(
        key
        for number in range(1, 4000)
        if (key := ec.derive_private_key(number, ec.SECP256R1()).public_key()).public_numbers().x < 1 << 248
    )
    assert ECDSAP256PublicKey(key).pem() == spki_pem(key)
    assert ECDSAP256PublicKey.from_pem(spki_pem(key)).pem() == spki_pem(key)


def reshaped(pem: bytes) -> dict[str, bytes]:
    body = b"".join(pem.splitlines()[1:-1])
    lines = [b"-----BEGIN PUBLIC KEY-----", body, b"-----END PUBLIC KEY-----"]
    return {
        "one line": b"\n".join(lines),
        "CRLF": pem.replace(b"\n", b"\r\n"),
        "blank lines around": b"\n\n" + pem + b"\n",
        "words before": b"the key of the owner\n" + pem,
    }


@pytest.mark.parametrize("shape", ["one line", "CRLF", "blank lines around", "words before"])
def test_other_shapes_of_the_same_key_are_the_same_key(shape: str) -> None:
    signer = ECDSAP256Signer.generate()
    again = ECDSAP256PublicKey.from_pem(reshaped(signer.public_key.pem())[shape])
    again.verify(b"m", signer.sign(b"m"))
    assert again.fingerprint == signer.public_key.fingerprint


def test_a_compressed_point_is_the_same_key() -> None:
    key = ec.derive_private_key(7, ec.SECP256R1()).public_key()
    point = key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    algorithm = bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107")
    spki = b"\x30\x39" + algorithm + b"\x03\x22\x00" + point
    pem = b"-----BEGIN PUBLIC KEY-----\n" + base64.b64encode(spki) + b"\n-----END PUBLIC KEY-----\n"
    assert ECDSAP256PublicKey.from_pem(pem).pem() == spki_pem(key)


@pytest.mark.parametrize("place", [27, 58, 59, 90], ids=["x", "end of x", "y", "end of y"])
def test_a_point_off_the_curve_is_refused(place: int) -> None:
    spki = bytearray(ECDSAP256Signer.generate().public_key.spki)
    spki[place] ^= 1
    pem = b"-----BEGIN PUBLIC KEY-----\n" + base64.b64encode(spki) + b"\n-----END PUBLIC KEY-----\n"
    assert code_of(lambda: ECDSAP256PublicKey.from_pem(pem)) == "crypto.signer.malformed_key"


def test_a_key_of_another_curve_is_no_public_key_here() -> None:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    assert code_of(lambda: ECDSAP256PublicKey(key)) == "crypto.signer.unsupported_key"


def test_password_protected_and_sec1_keys_are_read() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pw"))
    ECDSAP256Signer.from_pem(locked, b"pw")
    ECDSAP256Signer.from_pem(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    for password in (None, b"wrong"):
        assert (
            code_of(lambda password=password: ECDSAP256Signer.from_pem(locked, password))
            == "crypto.signer.malformed_key"
        )


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
    ],
    ids=["P-384", "Ed25519", "RSA"],
)
def test_other_algorithms_are_refused(key: ec.EllipticCurvePrivateKey) -> None:
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert code_of(lambda: ECDSAP256Signer.from_pem(private)) == "crypto.signer.unsupported_key"
    assert code_of(lambda: ECDSAP256PublicKey.from_pem(public)) == "crypto.signer.unsupported_key"


@pytest.mark.parametrize(
    "pem", [b"", b"text", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", b"x" * 20_000]
)
def test_what_is_no_key_is_refused(pem: bytes) -> None:
    assert code_of(lambda: ECDSAP256PublicKey.from_pem(pem)) == "crypto.signer.malformed_key"
    assert code_of(lambda: ECDSAP256Signer.from_pem(pem)) == "crypto.signer.malformed_key"


def test_cosigns_own_key_form_is_named() -> None:
    pem = b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED SIGSTORE PRIVATE KEY-----\n"
    assert code_of(lambda: ECDSAP256Signer.from_pem(pem)) == "crypto.signer.unsupported_key"
