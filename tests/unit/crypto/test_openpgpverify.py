"""OpenPGP signed messages: Sequoia and GnuPG's own forms are read, and each rule refuses."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pysequoia
import pytest

from cloister.crypto.openpgpverify import SignedMessage, parse_keyring, verify_message
from signing_world import refused

NOW = datetime.now(UTC)


@cache
def owner(**options: Any) -> Any:  # Any: the library's own type
    return pysequoia.Tsk.generate("owner <owner@example.test>", **options)


def keyring_of(key: Any) -> bytes:
    return bytes(key.extract_certificate())


def sign(content: bytes, key: Any = None) -> bytes:
    return bytes(pysequoia.sign((key or owner()).signer(), content, armor=False))


def verify(message: bytes, key: Any = None, **options: Any) -> SignedMessage:
    return verify_message(message, parse_keyring(keyring_of(key or owner())), now=options.pop("now", NOW), **options)


def packet(tag: int, body: bytes) -> bytes:
    return bytes([0xC0 | tag, 0xFF]) + len(body).to_bytes(4, "big") + body


def test_a_signed_message_verifies() -> None:
    found = verify(sign(b"content"))
    assert found.content == b"content"
    assert len(found.key.fingerprint) == 40 and abs(found.signed_at - NOW) < timedelta(minutes=5)
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
        (lambda m: m[:-1] + bytes([m[-1] ^ 1]), "bad_signature"),
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
        changed = message[:place] + bytes([message[place] ^ 1]) + message[place + 1 :]
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
    assert verify_message(sign(b"x", other), parse_keyring(both), now=NOW).content == b"x"


def test_an_expired_key_is_refused() -> None:
    key = owner(validity_seconds=3600)
    assert verify(sign(b"x", key), key).content == b"x"
    later = NOW + timedelta(seconds=3700)
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
