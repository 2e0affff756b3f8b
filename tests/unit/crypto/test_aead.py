"""Ciphers against published vectors, and what is refused."""

from __future__ import annotations

import pytest

from cloister.crypto.aead import ctr_stream, open_aes256gcm, seal_aes256gcm
from cloister.errors import Refused

# NIST SP 800-38A, F.5.5 (CTR-AES256) and McGrew/Viega GCM test case 16.
CTR_KEY = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
CTR_NONCE = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
CTR_PLAIN = bytes.fromhex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51")
CTR_CIPHER = bytes.fromhex("601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5")
GCM_KEY = bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2)
GCM_NONCE = bytes.fromhex("cafebabefacedbaddecaf888")
GCM_AAD = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
GCM_PLAIN = bytes.fromhex(
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
)
GCM_SEALED = bytes.fromhex(
    "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
    "76fc6ece0f4e1768cddf8853bb2d551b"
)


def test_ctr_vector_in_pieces_of_any_size() -> None:
    for size in (1, 7, 16, 32):
        pieces = [CTR_PLAIN[i : i + size] for i in range(0, 32, size)]
        assert b"".join(ctr_stream(CTR_KEY, CTR_NONCE, pieces)) == CTR_CIPHER
    assert b"".join(ctr_stream(bytearray(CTR_KEY), CTR_NONCE, [CTR_CIPHER])) == CTR_PLAIN


def test_the_counter_is_128_bits_and_big_endian() -> None:
    around = b"".join(ctr_stream(CTR_KEY, b"\xff" * 16, [bytes(32)]))
    assert around[16:] == b"".join(ctr_stream(CTR_KEY, bytes(16), [bytes(16)]))


def test_gcm_vector() -> None:
    assert seal_aes256gcm(GCM_KEY, GCM_NONCE, GCM_PLAIN, GCM_AAD) == GCM_SEALED
    assert open_aes256gcm(GCM_KEY, GCM_NONCE, GCM_SEALED, GCM_AAD) == GCM_PLAIN


@pytest.mark.parametrize("position", range(0, len(GCM_SEALED), 5))
def test_a_flipped_bit_is_refused(position: int) -> None:
    changed = bytearray(GCM_SEALED)
    changed[position] ^= 1
    with pytest.raises(Refused) as caught:
        open_aes256gcm(GCM_KEY, GCM_NONCE, bytes(changed), GCM_AAD)
    assert caught.value.code == "crypto.aead.not_authentic"


@pytest.mark.parametrize(
    ("key", "nonce", "sealed", "aad"),
    [
        (bytes(32), GCM_NONCE, GCM_SEALED, GCM_AAD),
        (GCM_KEY, bytes(12), GCM_SEALED, GCM_AAD),
        (GCM_KEY, GCM_NONCE, GCM_SEALED, None),
        (GCM_KEY, GCM_NONCE, GCM_SEALED[:-1], GCM_AAD),
        (GCM_KEY, GCM_NONCE, b"short", GCM_AAD),
        (GCM_KEY, GCM_NONCE, b"", GCM_AAD),
    ],
)
def test_anything_else_changed_is_refused(key: bytes, nonce: bytes, sealed: bytes, aad: bytes | None) -> None:
    with pytest.raises(Refused) as caught:
        open_aes256gcm(key, nonce, sealed, aad)
    assert caught.value.code == "crypto.aead.not_authentic"


@pytest.mark.parametrize(
    ("key", "nonce", "code"), [(b"k" * 16, GCM_NONCE, "key"), (GCM_KEY, b"n" * 16, "nonce"), (b"", b"", "key")]
)
def test_lengths(key: bytes, nonce: bytes, code: str) -> None:
    for run in (lambda: seal_aes256gcm(key, nonce, b""), lambda: open_aes256gcm(key, nonce, bytes(16))):
        with pytest.raises(Refused) as caught:
            run()
        assert caught.value.code == f"crypto.aead.{code}_length"
    with pytest.raises(Refused):
        list(ctr_stream(key, b"n" * 15, [b""]))
