"""Credential activation: what a TPM can recover, what it cannot, and which EKs are taken."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cloister.errors import EndorsementError, EvidenceError, FormatRefused
from cloister.tee.tpm.abi import encode_public, parse_public
from cloister.tee.tpm.credential import ak_name, bound_credential, challenge_for, credential_keys, make_credential
from cloister.testing.tpm import EndorsementCA, FakeTPM
from tampering import flipped

SEED = bytes(range(32))


def test_only_the_holder_of_ek_and_ak_recovers_it(tpm: FakeTPM, ek: rsa.RSAPrivateKey) -> None:
    blob, encrypted = make_credential(ek.public_key(), tpm.name, b"secret", seed=SEED)
    assert tpm.activate(blob, encrypted) == b"secret"


def test_another_ek_does_not(tpm: FakeTPM, ca: EndorsementCA, ek: rsa.RSAPrivateKey) -> None:
    blob, encrypted = make_credential(ek.public_key(), tpm.name, b"secret", seed=SEED)
    with pytest.raises(EvidenceError) as caught:
        FakeTPM(ca).activate(blob, encrypted)
    assert caught.value.code == "tee.tpm.credential_refused"


def test_another_ak_under_the_same_ek_does_not(tpm: FakeTPM, ca: EndorsementCA, ek: rsa.RSAPrivateKey) -> None:
    blob, encrypted = make_credential(ek.public_key(), tpm.name, b"secret", seed=SEED)
    with pytest.raises(EvidenceError):
        FakeTPM(ca, ek=ek).activate(blob, encrypted)


def test_every_flipped_byte_of_the_credential_is_refused(tpm: FakeTPM, ek: rsa.RSAPrivateKey) -> None:
    blob, encrypted = make_credential(ek.public_key(), tpm.name, b"secret", seed=SEED)
    for offset in range(4, len(blob)):
        with pytest.raises(EvidenceError):
            tpm.activate(flipped(blob, offset), encrypted)


def test_the_keys_are_those_of_the_standard() -> None:
    """KDFa by hand: counter, label with its terminator, context, number of bits."""
    import hashlib
    import hmac

    name = b"\x00\x0b" + bytes(32)
    storage, integrity = credential_keys(SEED, name)
    assert storage == hmac.new(SEED, b"\0\0\0\1STORAGE\0" + name + b"\0\0\0\x80", hashlib.sha256).digest()[:16]
    assert integrity == hmac.new(SEED, b"\0\0\0\1INTEGRITY\0" + b"\0\0\1\0", hashlib.sha256).digest()


def test_the_bound_credential_depends_on_all_three() -> None:
    values = {
        bound_credential(secret, certificate, name)
        for secret in (b"a" * 32, b"b" * 32)
        for certificate in (b"c", b"d")
        for name in (b"n", b"m")
    }
    assert len(values) == 8
    assert {len(value) for value in values} == {32}


def test_two_challenges_share_nothing(tpm: FakeTPM) -> None:
    first, second = challenge_for(*tpm.enrol()), challenge_for(*tpm.enrol())
    assert not set(first) & set(second)


@pytest.mark.parametrize("key", ["rsa-3072", "rsa-exponent-3", "p384"])
def test_eks_that_credentials_cannot_be_made_for(key: str, tpm: FakeTPM, ca: EndorsementCA) -> None:
    public: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
    if key == "p384":
        public = ec.generate_private_key(ec.SECP384R1()).public_key()
    elif key == "rsa-3072":
        public = rsa.generate_private_key(public_exponent=65537, key_size=3072).public_key()
    else:
        public = rsa.generate_private_key(public_exponent=3, key_size=2048).public_key()
    with pytest.raises(EndorsementError) as caught:
        challenge_for(ca.issue(public), tpm.ak_public)
    assert caught.value.code == "tee.tpm.ek_key"


def test_an_ek_with_a_modulus_that_is_none_is_refused(tpm: FakeTPM, ek: rsa.RSAPrivateKey) -> None:
    """A certificate is not verified when its credential is made: whoever sent it may have written any number."""
    modulus = ek.public_key().public_numbers().n.to_bytes(256, "big")
    even = tpm.ek_certificate.replace(modulus, modulus[:-1] + bytes([modulus[-1] & 0xFE]))
    assert even != tpm.ek_certificate
    with pytest.raises(EndorsementError) as caught:
        challenge_for(even, tpm.ak_public)
    assert caught.value.code == "tee.tpm.ek_key"


def test_challenges_for_what_is_no_certificate_or_no_key(tpm: FakeTPM) -> None:
    with pytest.raises(FormatRefused) as caught:
        challenge_for(b"\x30\x00", tpm.ak_public)
    assert caught.value.code == "tee.tpm.ek_certificate.malformed"
    for ak in (b"", b"\x00", tpm.ak_public[:-1], tpm.ak_public + b"\x00"):
        with pytest.raises(EvidenceError) as refused:
            challenge_for(tpm.ek_certificate, ak)
        assert refused.value.code == "tee.tpm.ak_public.truncated"


def test_a_name_by_another_hash_is_refused(tpm: FakeTPM) -> None:
    from dataclasses import replace

    sha1 = encode_public(replace(parse_public(tpm.ak_public), name_algorithm=0x0004))
    with pytest.raises(EvidenceError) as caught:
        ak_name(sha1)
    assert caught.value.code == "tee.tpm.ak_attributes"


@pytest.mark.parametrize(("secret", "seed"), [(b"", SEED), (b"x" * 33, SEED), (b"x", SEED[:31])])
def test_a_credential_of_an_impossible_size_is_our_mistake(secret: bytes, seed: bytes, ek: rsa.RSAPrivateKey) -> None:
    with pytest.raises(RuntimeError):
        make_credential(ek.public_key(), b"name", secret, seed=seed)
