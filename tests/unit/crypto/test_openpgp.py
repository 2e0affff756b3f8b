"""OpenPGP messages and keys: written here, read by Sequoia where it can; keys of Sequoia's making, all curves."""

from __future__ import annotations

import base64
import hashlib
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from typing import Any

import pysequoia
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from cloister.crypto.openpgp import decrypt_message, encrypt_message, find_recipients, split_user_id
from cloister.crypto.openpgpkeys import BLOCK_BYTES, cfb, open_secret_keyring
from cloister.crypto.openpgppackets import Reader, dearmor, read_packets, write_number, write_packet
from cloister.errors import CloisterError

TEXT = b"private options" * 13
SUITES = ("RSA2k", "Cv25519", "P256", "P384", "P521")


def secret(suite: str = "Cv25519", user: str = "Alice Example (test) <alice@cloister.test>") -> Any:
    return _secret(suite, user)


@cache
def _secret(suite: str, user: str) -> Any:
    cipher_suite = getattr(pysequoia.CipherSuite, suite)
    return pysequoia.Tsk.generate(user, profile=pysequoia.Profile.RFC4880, cipher_suite=cipher_suite)


def public(*keys: Any) -> bytes:
    return b"".join(bytes(key.extract_certificate()) for key in keys)


def written(suite: str = "Cv25519", text: bytes = TEXT) -> bytes:
    return encrypt_message(text, find_recipients(public(secret(suite)), ["alice@cloister.test"]))


def keys(suite: str = "Cv25519") -> Any:
    return _keys(suite)


@cache
def _keys(suite: str) -> Any:
    return open_secret_keyring(bytes(secret(suite)))


def refused(run: Callable[[], object]) -> str:
    with pytest.raises(CloisterError) as caught:
        run()
    return caught.value.code


@pytest.mark.parametrize("suite", SUITES)
def test_round_trip_and_sequoia_reads_it(suite: str) -> None:
    message = written(suite)
    assert decrypt_message(message, keys(suite)) == TEXT
    assert pysequoia.decrypt(bytes=message, decryptor=secret(suite).decryptor()).bytes == TEXT
    assert [packet.tag for packet in read_packets(message, ceiling=9999)] == [1, 18]


def test_every_recipient_opens_it() -> None:
    others = [secret("P256", "Bob <bob@cloister.test>"), secret("RSA2k", "Carol")]
    ring = public(secret(), *others)
    message = encrypt_message(TEXT, find_recipients(ring, ["Carol", "bob@cloister.test"]))
    for key in others:
        assert decrypt_message(message, open_secret_keyring(bytes(key))) == TEXT
    assert refused(lambda: decrypt_message(message, keys())) == "crypto.openpgp.not_authentic"


@pytest.mark.parametrize("name", ["alice@cloister.test", "Alice Example", "Alice Example (test)", "FINGERPRINT"])
def test_recipients_by_exact_name(name: str) -> None:
    ring = public(secret(), secret("P256", "Bob <bob@cloister.test>"))
    wanted = secret().extract_certificate().fingerprint
    found = find_recipients(ring, [wanted.upper() if name == "FINGERPRINT" else name])
    assert decrypt_message(encrypt_message(TEXT, found), keys()) == TEXT


@pytest.mark.parametrize(
    "name", ["", "alice", "Alice", "alice@cloister.tes", "cloister.test", "ALICE@CLOISTER.TEST", "Bob"]
)
def test_recipients_that_are_not_there(name: str) -> None:
    assert refused(lambda: find_recipients(public(secret()), [name])) == "crypto.openpgp.recipient"


def test_a_name_of_two_certificates_is_nobodys() -> None:
    ring = public(secret(), secret("P256"))
    assert refused(lambda: find_recipients(ring, ["alice@cloister.test"])) == "crypto.openpgp.recipient"


def test_names_in_user_ids() -> None:
    assert split_user_id("Name <a@b>") == ("Name", "Name", "a@b")
    assert split_user_id("a@b") == ("a@b",)
    assert split_user_id("<a@b>") == ("a@b",)
    assert split_user_id("Name") == ("Name",)


def test_certificates_that_cannot_be_encrypted_to() -> None:
    new = pysequoia.Tsk.generate("Alice <alice@cloister.test>", profile=pysequoia.Profile.RFC9580)
    assert refused(lambda: find_recipients(public(new), ["alice@cloister.test"])) == "crypto.openpgp.certificate"
    assert refused(lambda: find_recipients(public(secret("Cv448")), ["Alice Example"])) == "crypto.openpgp.certificate"
    revoked = secret("P384", "Dora").extract_certificate()
    revoked = pysequoia.Cert.from_bytes(bytes(revoked) + bytes(revoked.revoke(secret("P384", "Dora").certifier())))
    assert revoked.is_revoked
    assert refused(lambda: find_recipients(bytes(revoked), ["Dora"])) == "crypto.openpgp.certificate"
    # Sequoia dates keys a minute back, so this one has expired when it is made.
    expired = pysequoia.Tsk.generate("Eve", profile=pysequoia.Profile.RFC4880, validity_seconds=1)
    assert expired.extract_certificate().expiration < datetime.now(UTC)
    assert refused(lambda: find_recipients(public(expired), ["Eve"])) == "crypto.openpgp.certificate"


def test_a_certificate_that_sequoia_reads_but_cannot_write_again() -> None:
    ring = public(secret())
    issuer = ring.index(b"\x16\x21\x04")  # length, type, and version of the key whose fingerprint follows
    altered = ring[: issuer + 2] + b"\x09" + ring[issuer + 3 :]
    assert refused(lambda: find_recipients(altered, ["alice@cloister.test"])) == "crypto.openpgp.certificate"


def test_an_armored_keyring() -> None:
    ring = str(secret().extract_certificate()).encode()
    assert ring.startswith(b"-----BEGIN PGP PUBLIC KEY BLOCK-----")
    assert find_recipients(ring, ["alice@cloister.test"])
    armored = str(secret()).encode()
    assert armored.startswith(b"-----BEGIN PGP PRIVATE KEY BLOCK-----")
    assert dearmor(armored) == bytes(secret())
    assert decrypt_message(written(), open_secret_keyring(armored)) == TEXT
    assert refused(lambda: dearmor(b"-----BEGIN PGP X-----\n\nabc\n-----END PGP X-----")) == "crypto.openpgp.malformed"


def test_armor_with_headers_and_check_sum() -> None:
    body = base64.b64encode(b"x" * 48)
    for tail in (b"", b"\n=abcd"):
        text = b"-----BEGIN PGP MESSAGE-----\r\nVersion: 1\r\n\r\n" + body + tail + b"\n-----END PGP MESSAGE-----\n"
        assert dearmor(text) == b"x" * 48


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    ring, ring_of_secrets, message = public(secret()), bytes(secret()), written()
    monkeypatch.setitem(sys.modules, "pysequoia", None)
    assert refused(lambda: find_recipients(ring, ["alice@cloister.test"])) == "crypto.openpgp.library"
    assert decrypt_message(message, open_secret_keyring(ring_of_secrets)) == TEXT  # reading needs no extra


@pytest.mark.parametrize("ring", [b"", b"KBXf", b"\x98\x01", b"\0" * 40])
def test_keyrings_that_are_none(ring: bytes) -> None:
    assert refused(lambda: find_recipients(ring, ["x"])) in ("crypto.openpgp.malformed", "crypto.openpgp.recipient")
    assert refused(lambda: open_secret_keyring(ring)) in ("crypto.openpgp.malformed", "crypto.openpgp.no_secret")


def test_a_public_keyring_opens_nothing() -> None:
    assert refused(lambda: open_secret_keyring(public(secret()))) == "crypto.openpgp.no_secret"


# -- what Go's library writes ---------------------------------------------------------------------------------------


def go_packet(tag: int, body: bytes) -> bytes:
    """Return a packet in parts of powers of two, as Go streams it."""
    parts = b""
    while len(body) > 64:
        power = len(body).bit_length() - 1
        parts, body = parts + bytes((224 + power,)) + body[: 1 << power], body[1 << power :]
    return bytes((0xC0 | tag,)) + parts + bytes((len(body),)) + body


def protected(content: bytes, session: bytes, *, version: bytes = b"\1", seal: bytes | None = None) -> bytes:
    content = bytes(BLOCK_BYTES + 2) + content + b"\xd3\x14"
    context = cfb(session).encryptor()
    return version + context.update(content + (seal or hashlib.sha1(content).digest())) + context.finalize()  # noqa: S324


def session_of(message: bytes) -> tuple[bytes, bytes]:
    """Return the first packet of a message to `secret()`, and its session key."""
    from cloister.crypto.openpgp import _session_key

    body = next(read_packets(message, ceiling=9999)).body
    return write_packet(1, body), _session_key(body, keys()[0])


def literal(text: bytes = TEXT) -> bytes:
    return b"t\x03abc" + bytes(4) + text


def test_short_partial_lengths_are_joined() -> None:
    head, session = session_of(written())
    message = head + go_packet(18, protected(go_packet(11, literal()), session))
    assert decrypt_message(message, keys()) == TEXT


def test_integers_whose_length_counts_zeros() -> None:
    """Go writes the length of an RSA ciphertext from its bytes; about half of them have a zero bit in front."""
    for _ in range(6):
        head, *_, sealed = read_packets(written("RSA2k"), ceiling=9999)
        number = head.body[12:].rjust(256, b"\0")
        changed = write_packet(1, head.body[:10] + b"\x08\x00" + number) + write_packet(18, sealed.body)
        assert decrypt_message(changed, keys("RSA2k")) == TEXT


def test_old_heads_of_packets() -> None:
    head, sealed = read_packets(written(), ceiling=9999)
    old = b"".join(
        bytes((0x80 | packet.tag << 2 | 1,)) + len(packet.body).to_bytes(2, "big") + packet.body for packet in (head,)
    )
    assert decrypt_message(old + write_packet(18, sealed.body), keys()) == TEXT


def test_a_session_key_for_whoever_can_open_it() -> None:
    head, sealed = read_packets(written(), ceiling=9999)
    hidden = write_packet(1, head.body[:1] + bytes(8) + head.body[9:]) + write_packet(18, sealed.body)
    assert decrypt_message(hidden, keys()) == TEXT


# -- messages that are refused ------------------------------------------------------------------------------------


def test_content_other_than_plain_data() -> None:
    head, session = session_of(written())
    for content in (go_packet(8, b"\1x"), write_packet(11, literal()) * 2, write_packet(2, b"x"), b"", b"\0"):
        message = head + write_packet(18, protected(content, session))
        assert refused(lambda message=message: decrypt_message(message, keys())) in (
            "crypto.openpgp.unexpected",
            "crypto.openpgp.malformed",
            "crypto.openpgp.not_authentic",
        )


def test_without_integrity_protection() -> None:
    head, session = session_of(written())
    plain = cfb(session).encryptor().update(bytes(18) + write_packet(11, literal()))
    assert refused(lambda: decrypt_message(head + write_packet(9, plain), keys())) == "crypto.openpgp.unexpected"
    newer = head + write_packet(18, protected(write_packet(11, literal()), session, version=b"\2"))
    assert refused(lambda: decrypt_message(newer, keys())) == "crypto.openpgp.unprotected"
    unsealed = head + write_packet(18, protected(write_packet(11, literal()), session, seal=bytes(20)))
    assert refused(lambda: decrypt_message(unsealed, keys())) == "crypto.openpgp.not_authentic"


@pytest.mark.parametrize(("suite", "step"), [("Cv25519", 1), ("RSA2k", 19)])
def test_a_flipped_byte_is_refused(suite: str, step: int) -> None:
    message = written(suite)
    for position in range(0, len(message), step):
        changed = bytearray(message)
        changed[position] ^= 0x10
        code = refused(lambda changed=changed: decrypt_message(bytes(changed), keys(suite)))
        assert code.startswith("crypto.openpgp.")


def test_every_truncation_is_refused() -> None:
    message = written()
    for size in range(len(message)):
        assert refused(lambda size=size: decrypt_message(message[:size], keys())).startswith("crypto.openpgp.")


# -- protected secret keys ------------------------------------------------------------------------------------------


def lock(packet: bytes, password: bytes, *, usage: int, kind: int, digest: int = 8, cipher: int = 9) -> bytes:
    """Return the body of an unprotected RSA secret key packet protected by a password, RFC 9580 section 5.5.3."""
    reader = Reader(packet)
    reader.take(6)
    reader.number(), reader.number()  # the public half
    public_half, numbers = packet[: reader.at], packet[reader.at + 1 : -2]
    salt = b"saltsalt" if kind else b""
    coded = 0x60
    count = (16 + (coded & 15)) << ((coded >> 4) + 6)
    text = salt + password
    hashed = text if kind < 3 else (text * (count // len(text) + 1))[:count]
    name = {2: "sha1", 8: "sha256", 10: "sha512"}[digest]
    size = {7: 16, 9: 32}[cipher]
    key = (hashlib.new(name, hashed).digest() + hashlib.new(name, b"\0" + hashed).digest())[:size]
    seal = hashlib.sha1(numbers).digest() if usage == 254 else (sum(numbers) & 0xFFFF).to_bytes(2, "big")  # noqa: S324
    context = cfb(key, b"i" * 16).encryptor()
    specifier = bytes((usage, cipher, kind, digest)) + salt + (bytes((coded,)) if kind == 3 else b"")
    return public_half + specifier + b"i" * 16 + context.update(numbers + seal) + context.finalize()


@pytest.mark.parametrize(
    ("usage", "kind", "digest", "cipher"),
    [(254, 3, 2, 7), (254, 3, 8, 9), (254, 1, 10, 9), (254, 0, 2, 9), (255, 3, 10, 7)],
)
def test_keys_protected_by_a_password(usage: int, kind: int, digest: int, cipher: int) -> None:
    ring = b"".join(
        write_packet(packet.tag, lock(packet.body, b"word", usage=usage, kind=kind, digest=digest, cipher=cipher))
        for packet in read_packets(bytes(secret("RSA2k")), ceiling=99_999)
        if packet.tag in (5, 7)
    )
    assert decrypt_message(written("RSA2k"), open_secret_keyring(ring, "word")) == TEXT
    assert refused(lambda: open_secret_keyring(ring)) == "crypto.openpgp.password"
    assert refused(lambda: open_secret_keyring(ring, "Word")) == "crypto.openpgp.password"
    assert refused(lambda: open_secret_keyring(ring, "")) == "crypto.openpgp.password"


def test_keys_show_no_secret() -> None:
    for suite in SUITES:
        for key in keys(suite):
            assert "key=" not in repr(key)
            assert "Private" not in repr(key)


def test_numbers() -> None:
    assert write_number(b"\0\0\x01\xff") == b"\0\x09\x01\xff"
    assert Reader(b"\0\x10\0\x01").number() == b"\0\x01"
    assert isinstance(keys("RSA2k")[0].key, rsa.RSAPrivateKey)
