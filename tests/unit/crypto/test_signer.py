"""Signing keys."""

from __future__ import annotations

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
