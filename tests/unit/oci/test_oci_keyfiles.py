"""Key files: what is in one is told by its content; passwords in all their places; refusals say what was expected."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from cloister.errors import CloisterError
from cloister.oci.encryption.keyfiles import (
    KeyEncryptionKey,
    OpeningKey,
    SecretKeyring,
    TokenKeyFile,
    parse_certificate,
    parse_key_file,
    parse_recipient_key,
    read_key_file,
    read_public_keyring,
    split_key_text,
)
from cloister.oci.encryption.wrapping import open_keys, open_recipients
from unit.oci.builders import KEK, KEK_ID
from unit.oci.recipients import OPTIONS, certificate, ec_key, jwk, private_bytes, public_pem, rsa_key

TRADITIONAL, PKCS8 = PrivateFormat.TraditionalOpenSSL, PrivateFormat.PKCS8
UNFIT = "oci.encryption.key_file.unfit"


def refused(run: Callable[[], object]) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        run()
    return caught.value


@pytest.mark.parametrize("form", [TRADITIONAL, PKCS8])
@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
@pytest.mark.parametrize("kind", ["rsa", "P-256", "P-384", "P-521"])
def test_private_keys_in_every_form(kind: str, encoding: Encoding, form: PrivateFormat) -> None:
    key = rsa_key() if kind == "rsa" else ec_key(kind)
    found = parse_key_file(private_bytes(key, encoding, form))
    assert isinstance(found, OpeningKey)
    assert found.key.private_numbers() == key.private_numbers()  # type: ignore[comparison-overlap]  # of one kind


@pytest.mark.parametrize("kind", ["rsa", "P-256", "P-384", "P-521"])
def test_jwks(kind: str) -> None:
    key = rsa_key() if kind == "rsa" else ec_key(kind)
    private = parse_key_file(jwk(key, private=True))
    assert isinstance(private, OpeningKey)
    assert private.key.public_key() == key.public_key() == parse_recipient_key(jwk(key)).key


def test_a_jwk_without_primes() -> None:
    import json

    members = json.loads(jwk(rsa_key(), private=True))
    found = parse_key_file(json.dumps({name: members[name] for name in ("kty", "n", "e", "d")}).encode())
    assert isinstance(found, OpeningKey)
    assert found.key.public_key() == rsa_key().public_key()


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_public_keys_and_certificates(encoding: Encoding) -> None:
    public = rsa_key().public_key().public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
    assert parse_recipient_key(public).key == rsa_key().public_key()
    data = certificate().public_bytes(encoding)
    assert parse_certificate(data) == parse_key_file(data) == certificate()


def test_a_key_beside_its_certificate_in_one_file_is_the_key() -> None:
    both = certificate().public_bytes(Encoding.PEM) + private_bytes(rsa_key())
    assert isinstance(parse_key_file(both), OpeningKey)
    assert isinstance(parse_key_file(certificate().public_bytes(Encoding.PEM) * 2), x509.Certificate)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (KEK, KeyEncryptionKey),
        (b"pkcs11:\n  uri: pkcs11:token=a\n", TokenKeyFile),
        (b"# comment\nmodule:\n  env: {}\npkcs11:\n  uri: x\n", TokenKeyFile),
        (b"\x95\x01\x02\x04", SecretKeyring),
        (b"\xc5\x01\x02\x04", SecretKeyring),
        (b"-----BEGIN PGP PRIVATE KEY BLOCK-----\n\n", SecretKeyring),
    ],
)
def test_other_kinds(data: bytes, kind: type) -> None:
    assert isinstance(parse_key_file(data), kind)


# -- passwords ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "form"), [(Encoding.PEM, TRADITIONAL), (Encoding.PEM, PKCS8), (Encoding.DER, PKCS8)]
)
def test_protected_keys(encoding: Encoding, form: PrivateFormat) -> None:
    data = private_bytes(rsa_key(), encoding, form, b"correct")
    assert isinstance(parse_key_file(data, b"correct"), OpeningKey)
    for password in (None, b"wrong", b""):
        error = refused(lambda password=password: parse_key_file(data, password, path="key"))
        assert (error.code, error.path) == ("oci.encryption.key_file.password", "key")
        assert "correct" not in str(error.as_dict())


@pytest.mark.parametrize("member", ["d", "dmp1", "dmq1", "iqmp"])
def test_numbers_that_are_no_rsa_key(member: str) -> None:
    found = rsa_key().private_numbers()
    numbers = {name: getattr(found, name) for name in ("p", "q", "d", "dmp1", "dmq1", "iqmp")}
    altered = rsa.RSAPrivateNumbers(**numbers | {member: numbers[member] - 2}, public_numbers=found.public_numbers)
    data = private_bytes(altered.private_key(unsafe_skip_rsa_key_validation=True))
    error = refused(lambda: parse_key_file(data))
    assert (error.code, error.actual) == (UNFIT, "numbers that are no RSA key")


def test_a_certificate_of_no_known_version() -> None:
    data = certificate().public_bytes(Encoding.DER).replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x6a", 1)
    for parse in (parse_key_file, parse_certificate):
        assert refused(lambda parse=parse: parse(data)).code == UNFIT


def test_a_certificate_with_a_negative_serial_number() -> None:
    data = bytearray(certificate().public_bytes(Encoding.DER))
    number = data.index(b"\xa0\x03\x02\x01\x02\x02") + 7  # behind the version: tag and length of the serial number
    data[number] |= 0x80
    for parse in (parse_key_file, parse_certificate):
        assert refused(lambda parse=parse: parse(bytes(data))).code == UNFIT


def test_a_password_that_is_not_needed_is_not_looked_at() -> None:
    assert isinstance(parse_key_file(private_bytes(ec_key()), b"some"), OpeningKey)


def test_where_passwords_come_from(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_bytes(b"two words\n")
    assert split_key_text("key.pem") == ("key.pem", None)
    assert split_key_text("key.pem:text") == ("key.pem", b"text")
    assert split_key_text("key.pem:") == ("key.pem", b"")
    assert split_key_text("key.pem:pass=a:b=c") == ("key.pem", b"a:b=c")
    assert split_key_text("key.pem:other=x") == ("key.pem", b"other=x")
    assert split_key_text(f"key.pem:file={file}") == ("key.pem", b"two words")
    reading, writing = os.pipe()
    os.write(writing, b"piped\r\n")
    os.close(writing)
    assert split_key_text(f"key.pem:fd={reading}") == ("key.pem", b"piped")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reading)


@pytest.mark.parametrize("place", ["fd=x", "fd=", "fd=987654"])
def test_passwords_that_cannot_be_read(place: str) -> None:
    assert refused(lambda: split_key_text(f"key:{place}")).code == "oci.encryption.key_file.password_source"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert refused(lambda: read_key_file(str(tmp_path / "none"))).code == "oci.encryption.key_file.unreadable"
    assert refused(lambda: read_key_file(str(tmp_path))).code == "oci.encryption.key_file.unreadable"
    assert refused(lambda: split_key_text(f"key:file={tmp_path}/no")).code == "oci.encryption.key_file.unreadable"
    long = tmp_path / "long"
    long.write_bytes(bytes((4 << 20) + 1))
    assert refused(lambda: read_key_file(str(long))).code == "oci.encryption.key_file.too_long"
    assert refused(lambda: split_key_text(f"key:file={long}")).code == "oci.encryption.key_file.too_long"
    long.write_bytes(bytes(5000))
    assert refused(lambda: split_key_text(f"key:file={long}")).code == "oci.encryption.key_file.password_source"


def test_gnupgs_keyring_without_gnupg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("GNUPGHOME", str(tmp_path))
    assert "gpg --import" in refused(read_public_keyring).hint
    (tmp_path / "pubring.gpg").write_bytes(b"ring")
    assert read_public_keyring() == b"ring"


@pytest.mark.parametrize(("script", "why"), [("printf ring", ""), ("exit 0", "no keys"), ("echo x >&2; exit 2", "x")])
def test_gnupg_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str) -> None:
    program = tmp_path / "gpg"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    if why:
        error = refused(read_public_keyring)
        assert (error.code, error.actual) == ("oci.encryption.key_file.unreadable", why)
    else:
        assert read_public_keyring() == b"ring"


# -- other than expected ------------------------------------------------------------------------------------------


def ed25519_pem(*, private: bool) -> bytes:
    key = ed25519.Ed25519PrivateKey.generate()
    if private:
        return key.private_bytes(Encoding.PEM, PKCS8, NoEncryption())
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    ("data", "actual"),
    [
        (lambda: private_bytes(rsa_key()), "PEM `PRIVATE KEY`"),
        (lambda: certificate().public_bytes(Encoding.PEM), "PEM `CERTIFICATE`"),
        (lambda: jwk(rsa_key(), private=True), "a private JWK; give away its public half only"),
        (lambda: jwk(rsa_key(), alg="RS256"), "a JWK for RS256"),
        (lambda: jwk(rsa_key(), alg="ECDH-ES+A256KW"), "a JWK for ECDH-ES+A256KW"),
        (lambda: b'{"kty":"oct","k":"eA"}', "a JWK of oct"),
        (lambda: b'{"kty":"EC","crv":"secp256k1","x":"eA","y":"eA"}', "a JWK of EC secp256k1"),
        (lambda: b'{"kty":"EC","crv":"P-256","x":"eA","y":"eA"}', "numbers that are no key"),
        (lambda: b'{"kty":"RSA","n":"eA"}', "a JWK without it"),
        (lambda: ed25519_pem(private=False), "Ed25519PublicKey"),
        (lambda: public_pem(rsa_key(bits=1024)).replace(b"MI", b"NI"), "PEM `PUBLIC KEY`"),
        (lambda: b"", "an empty file"),
        (lambda: b"\x98\x01\x02", "an OpenPGP keyring"),
        (lambda: b"\x30\x03\x02\x01\x00", "DER of something else"),
        (lambda: b"pkcs11:\n  uri: x", "YAML of a key in a PKCS #11 token"),
        (lambda: b"ssh-rsa AAAA", "no known kind of key"),
    ],
)
def test_recipients_that_are_none(data: Callable[[], bytes], actual: str) -> None:
    error = refused(lambda: parse_recipient_key(data(), path="file"))
    assert (error.code, error.actual) == (UNFIT, actual)
    assert error.expected


@pytest.mark.parametrize(
    "data",
    [
        lambda: public_pem(ec_key()),
        lambda: jwk(ec_key()),
        lambda: ed25519_pem(private=True),
        lambda: b'{"kty":"RSA","n":"eA","e":"AQAB","d":"eA"}',
        lambda: b"",
        lambda: b"k" * 31,
        lambda: b"\x30\x03\x02\x01\x00",
        lambda: b"-----BEGIN PRIVATE KEY-----\neA==\n-----END PRIVATE KEY-----\n",
        lambda: b"-----BEGIN OPENSSH PRIVATE KEY-----\neA==\n-----END OPENSSH PRIVATE KEY-----\n",
    ],
)
def test_keys_that_are_none(data: Callable[[], bytes]) -> None:
    assert refused(lambda: parse_key_file(data())).code == UNFIT


@pytest.mark.parametrize("data", [b"{", b'{"kty":"RSA","kty":"EC"}', b"{" * 100_000])
def test_json_that_is_no_jwk(data: bytes) -> None:
    assert refused(lambda: parse_key_file(data)).code.startswith("oci.encryption.key_file.")


def test_certificates_that_are_none() -> None:
    assert refused(lambda: parse_certificate(public_pem(rsa_key()))).code == UNFIT
    assert refused(lambda: parse_certificate(b"\x30\x00")).code == UNFIT


def test_no_secret_in_a_repr() -> None:
    shown = [
        parse_key_file(data)
        for data in (KEK, b"\x95secret", b"pkcs11:\n uri: pin-value=secret", private_bytes(ec_key()))
    ]
    assert [repr(item) for item in shown] == ["KeyEncryptionKey()", "SecretKeyring()", "TokenKeyFile()", "OpeningKey()"]


# -- by name, as on the command line ------------------------------------------------------------------------------


def test_recipients_and_keys_from_files(tmp_path: Path) -> None:
    files = {
        "rsa.pub": public_pem(rsa_key()),
        "ec.pub": public_pem(ec_key()),
        "rsa.crt": certificate().public_bytes(Encoding.PEM),
        "rsa.key": private_bytes(rsa_key(), password=b"secret"),
        "ec.key": private_bytes(ec_key()),
        "kek": KEK,
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    wrappers = open_recipients(
        [f"jwe:{tmp_path}/rsa.pub", KEK_ID, f"pkcs7:{tmp_path}/rsa.crt", f"jwe:{tmp_path}/ec.pub"],
        kek_for=lambda _: KEK,
    )
    assert [wrapper.scheme for wrapper in wrappers] == ["jwe", "provider.attestation-agent", "pkcs7"]
    elements = {wrapper.scheme: wrapper.wrap(OPTIONS) for wrapper in wrappers}
    rsa_keys = open_keys([f"{tmp_path}/rsa.key:pass=secret", f"{tmp_path}/rsa.crt"])
    assert [key.scheme for key in rsa_keys] == ["jwe", "pkcs7"]
    for key in (*rsa_keys, *open_keys([f"{tmp_path}/ec.key"]), *open_keys([f"{tmp_path}/kek"])):
        assert key.unwrap(elements[key.scheme]) == OPTIONS


def test_a_certificate_needs_its_key(tmp_path: Path) -> None:
    (tmp_path / "rsa.crt").write_bytes(certificate("other").public_bytes(Encoding.PEM))
    (tmp_path / "rsa.key").write_bytes(private_bytes(rsa_key()))
    error = refused(lambda: open_keys([f"{tmp_path}/rsa.key", f"{tmp_path}/rsa.crt"]))
    assert error.code == "oci.encryption.key"
