"""OpenPGP signed messages: Sequoia and GnuPG's own forms are read, and each rule refuses."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pysequoia
import pytest
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA1, SHA256

from cloister.crypto.openpgpverify import CLOCK_SKEW, SignedMessage, parse_keyring, verify_message
from signing_world import refused
from tampering import flipped

NOW = datetime.now(UTC)


@cache
def owner(**options: Any) -> Any:  # Any: the library's own type
    return pysequoia.Tsk.generate("owner <owner@example.test>", **options)


def keyring_of(key: Any) -> bytes:
    return bytes(key.extract_certificate())


def sign(content: bytes, key: Any = None) -> bytes:
    return bytes(pysequoia.sign((key or owner()).signer(), content, armor=False))


def verify(message: bytes, key: Any = None, **options: Any) -> SignedMessage:
    options = {"now": datetime.now(UTC), **options}  # what is signed here is signed now
    return verify_message(message, parse_keyring(keyring_of(key or owner())), **options)


def packet(tag: int, body: bytes) -> bytes:
    return bytes([0xC0 | tag, 0xFF]) + len(body).to_bytes(4, "big") + body


def test_a_signed_message_verifies() -> None:
    found = verify(sign(b"content"))
    assert found.content == b"content"
    assert len(found.key.fingerprint) == 40 and abs(found.signed_at - datetime.now(UTC)) < timedelta(minutes=5)
    assert verify(sign(b"")).content == b""


def test_armour_and_compression_are_read() -> None:
    message = sign(b"content")
    text = base64.encodebytes(message).decode()
    armoured = f"-----BEGIN PGP MESSAGE-----\n\n{text}=AAAA\n-----END PGP MESSAGE-----\n".encode()
    assert verify(armoured).content == b"content"
    deflate = zlib.compressobj(wbits=-15)
    assert verify(packet(8, b"\x01" + deflate.compress(message) + deflate.flush())).content == b"content"
    assert verify(packet(8, b"\x02" + zlib.compress(message))).content == b"content"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda m: m.replace(b"content", b"c0ntent"), "bad_signature"),
        (flipped, "bad_signature"),
        (lambda m: m[:-1], "malformed"),
        (lambda m: m + m, "message"),
        (lambda m: b"", "message"),
        (lambda m: b"text", "malformed"),
        (lambda m: packet(8, b"\x03" + m), "message"),
        (lambda m: packet(8, b"\x02" + zlib.compress(m)[:-3]), "message"),
        (lambda m: packet(8, b"\x02" + zlib.compress(m) + b"x"), "message"),
        (lambda m: packet(8, b"\x02" + zlib.compress(bytes(10_000_000))), "message"),
        (lambda m: packet(8, b"\x02" + zlib.compress(packet(8, b"\x02" + zlib.compress(m)))), "message"),
        (lambda m: bytes(300_000), "too_long"),
    ],
)
def test_changed_messages_are_refused(change: Callable[[bytes], bytes], code: str) -> None:
    assert refused(lambda: verify(change(sign(b"content")))) == f"crypto.openpgp.{code}"


def test_every_flipped_bit_of_the_signature_is_refused() -> None:
    message = sign(b"content")
    start = message.index(b"content") + 7
    for place in range(start, len(message)):
        changed = flipped(message, place)
        try:
            found = verify(changed)
        except Exception as err:  # noqa: BLE001  # asserted to be ours
            assert type(err).__module__ == "cloister.errors"
        else:  # a bit in the unhashed part, or the two check bytes that nothing rests on
            assert found.content == b"content"


def test_another_key_is_refused() -> None:
    other = pysequoia.Tsk.generate("other <other@example.test>")
    assert refused(lambda: verify(sign(b"x", other))) == "crypto.openpgp.unknown_key"
    both = keyring_of(owner()) + keyring_of(other)
    assert verify_message(sign(b"x", other), parse_keyring(both), now=datetime.now(UTC)).content == b"x"


def test_an_expired_key_is_refused() -> None:
    key = owner(validity_seconds=3600)
    assert verify(sign(b"x", key), key).content == b"x"
    later = datetime.now(UTC) + timedelta(seconds=3700)  # the key was made now, not when this module was read
    assert refused(lambda: verify(sign(b"x", key), key, now=later)) == "crypto.openpgp.key_expired"


@pytest.mark.parametrize("raw", [b"", b"\x99", b"text", b"\xc6\x01\x04", bytes(5_000_000)])
def test_what_is_no_keyring_is_refused(raw: bytes) -> None:
    assert refused(lambda: parse_keyring(raw)).startswith("crypto.openpgp.")


def test_a_keyring_whose_self_signatures_are_gone_has_no_keys() -> None:
    """Anybody can write a key packet; only its holder can say what it is for."""
    raw = keyring_of(owner())
    length = raw[1]
    assert raw[0] & 0x40 and length < 192
    assert refused(lambda: parse_keyring(raw[: 2 + length])) == "crypto.openpgp.keyring"


# -- keys and messages packet by packet -----------------------------------------------------------------------------

CREATED = int(NOW.timestamp()) - 1000


@cache
def rsa_key(number: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def number_of(value: int) -> bytes:
    return value.bit_length().to_bytes(2, "big") + value.to_bytes((value.bit_length() + 7) // 8, "big")


def key_body(key: rsa.RSAPrivateKey) -> bytes:
    numbers = key.public_key().public_numbers()
    return b"\x04" + CREATED.to_bytes(4, "big") + b"\x01" + number_of(numbers.n) + number_of(numbers.e)


def material(body: bytes) -> bytes:
    return b"\x99" + len(body).to_bytes(2, "big") + body


def fingerprint(key: rsa.RSAPrivateKey) -> bytes:
    return hashlib.sha1(material(key_body(key))).digest()  # noqa: S324  # the format's


def subpacket(kind: int, data: bytes) -> bytes:
    size = len(data) + 1
    head = bytes([size]) if size < 192 else b"\xff" + size.to_bytes(4, "big")
    return head + bytes([kind]) + data


def signature(
    key: rsa.RSAPrivateKey, kind: int, data: bytes, *more: bytes, hash_id: int = 8, created: int = CREATED + 1
) -> bytes:
    """Return the body of a version-4 RSA signature."""
    hashed = b"".join((subpacket(2, created.to_bytes(4, "big")), subpacket(33, b"\x04" + fingerprint(key)), *more))
    head = bytes([4, kind, 1, hash_id]) + len(hashed).to_bytes(2, "big") + hashed
    algorithm: Any = {2: SHA1, 8: SHA256}[hash_id]()
    message = data + head + b"\x04\xff" + len(head).to_bytes(4, "big")
    value = int.from_bytes(key.sign(message, padding.PKCS1v15(), algorithm), "big")
    return head + b"\0\0" + b"\0\0" + number_of(value)


def user(text: bytes) -> bytes:
    return b"\xb4" + len(text).to_bytes(4, "big") + text


FLAGS = {"certify": subpacket(27, b"\x01"), "sign": subpacket(27, b"\x03")}


def primary(*more: bytes, key: int = 0, flags: str = "sign", hash_id: int = 8) -> bytes:
    """Return a primary key with one user, whose self-signature has `more` subpackets."""
    own, name = rsa_key(key), b"owner"
    certified = signature(own, 0x13, material(key_body(own)) + user(name), FLAGS[flags], *more, hash_id=hash_id)
    return packet(6, key_body(own)) + packet(13, name) + packet(2, certified)


def subkey(number: int = 1, *, back: int | None = 1, by: int = 0, hash_id: int = 8) -> bytes:
    """Return a signing subkey of key 0, bound by `by`, that key `back` bound in return."""
    own = rsa_key(number)
    data = material(key_body(rsa_key(0))) + material(key_body(own))
    returned = () if back is None else (subpacket(32, signature(rsa_key(back), 0x19, data)),)
    bound = signature(rsa_key(by), 0x18, data, FLAGS["sign"], *returned, hash_id=hash_id)
    return packet(14, key_body(own)) + packet(2, bound)


def message_by(number: int, *more: bytes, kind: int = 0, hash_id: int = 8, created: int = CREATED + 5) -> bytes:
    content = b"content"
    signed = signature(rsa_key(number), kind, content, *more, hash_id=hash_id, created=created)
    literal = b"b\0" + bytes(4) + content
    return packet(4, b"\x03" + bytes([kind, hash_id, 1]) + bytes(8) + b"\1") + packet(11, literal) + packet(2, signed)


def judged(ring: bytes, message: bytes, **options: Any) -> str:
    return refused(lambda: verify_message(message, parse_keyring(ring), now=NOW, **options))


def test_keys_packet_by_packet_verify() -> None:
    ring = parse_keyring(primary() + subkey())
    assert [key.fingerprint for key in ring] == [fingerprint(rsa_key(n)).hex().upper() for n in (0, 1)]
    for number in (0, 1):
        assert verify_message(message_by(number), ring, now=NOW).content == b"content"
    old = parse_keyring(primary(hash_id=2))
    assert verify_message(message_by(0), old, now=NOW).key.fingerprint == ring[0].fingerprint


@pytest.mark.parametrize(
    "part",
    [
        subkey(back=None),  # an attacker adopts somebody's key to claim his signatures, or to be claimed
        subkey(back=0),
        subkey(back=2),
        subkey(by=1),
        subkey(by=2),
        subkey(hash_id=2),
        packet(14, key_body(rsa_key(1))),
        subkey() + packet(2, signature(rsa_key(0), 0x28, b"".join(material(key_body(rsa_key(n))) for n in (0, 1)))),
    ],
)
def test_subkeys_that_are_not_bound_do_not_count(part: bytes) -> None:
    assert judged(primary() + part, message_by(1)) == "crypto.openpgp.unknown_key"
    assert verify_message(message_by(0), parse_keyring(primary() + part), now=NOW).content == b"content"


def test_a_key_that_is_not_for_signing_signs_nothing() -> None:
    ring = primary(flags="certify") + subkey()
    assert judged(ring, message_by(0)) == "crypto.openpgp.unknown_key"
    assert verify_message(message_by(1), parse_keyring(ring), now=NOW).content == b"content"


def test_a_revoked_key_is_gone_with_its_subkeys() -> None:
    own = rsa_key(0)
    revocation = packet(2, signature(own, 0x20, material(key_body(own))))
    ring = packet(6, key_body(own)) + revocation + primary()[len(packet(6, key_body(own))) :] + subkey()
    assert refused(lambda: parse_keyring(ring)) == "crypto.openpgp.keyring"
    forged = packet(2, signature(rsa_key(2), 0x20, material(key_body(own))))
    assert parse_keyring(primary() + forged)


def test_an_expiry_that_the_key_said_last_counts() -> None:
    """Also for its subkeys; a later statement may extend it."""
    short = subpacket(9, (500).to_bytes(4, "big"))
    assert judged(primary(short) + subkey(), message_by(0)) == "crypto.openpgp.key_expired"
    assert judged(primary(short) + subkey(), message_by(1)) == "crypto.openpgp.key_expired"
    own, name = rsa_key(0), b"owner"
    longer = subpacket(9, (9000).to_bytes(4, "big"))
    extended = signature(own, 0x13, material(key_body(own)) + user(name), FLAGS["sign"], longer, created=CREATED + 2)
    assert parse_keyring(primary(short) + packet(2, extended))[0].expires == CREATED + 9000


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (message_by(0, subpacket(3, (10).to_bytes(4, "big"))), "signature_expired"),
        (message_by(0, subpacket(0x80 | 99, b"x")), "message"),
        (message_by(0, kind=1), "message"),
        (message_by(0, hash_id=2), "algorithm"),
        (message_by(0, created=CREATED - 5), "bad_signature"),
        (message_by(0, created=int((NOW + CLOCK_SKEW).timestamp()) + 1), "from_the_future"),
        (message_by(0, created=2**32 - 1), "from_the_future"),
    ],
)
def test_signatures_that_do_not_count(message: bytes, code: str) -> None:
    assert judged(primary(), message) == f"crypto.openpgp.{code}"


def test_a_clock_that_is_a_little_fast_does_no_harm() -> None:
    message = message_by(0, created=int((NOW + CLOCK_SKEW).timestamp()))
    assert verify_message(message, parse_keyring(primary()), now=NOW).signed_at > NOW


def test_sha1_over_the_data_counts_only_for_whoever_says_so() -> None:
    found = verify_message(message_by(0, hash_id=2), parse_keyring(primary()), now=NOW, allow_sha1=True)
    assert found.content == b"content"
