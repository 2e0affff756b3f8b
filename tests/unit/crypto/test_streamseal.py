"""Sealed streams: what the host may do to records, and that each of it is noticed."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto import streamseal
from cloister.crypto.streamseal import RECORD_OVERHEAD, StreamOpener, StreamSealer, derive_key, require_stream_key
from cloister.errors import Refused

KEY = bytes(range(32))
SALT = bytes(range(100, 132))


def pair(name: Any = "stdout", salt: bytes = SALT) -> tuple[StreamSealer, StreamOpener]:
    return StreamSealer(KEY, salt, name), StreamOpener(KEY, salt, name)


def refused(opener: StreamOpener, record: bytes) -> str:
    with pytest.raises(Refused) as caught:
        opener.open(record)
    return caught.value.code


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_what_is_sealed_opens_in_order(pieces: list[bytes]) -> None:
    sealer, opener = pair()
    for piece in pieces:
        record = sealer.seal(piece)
        assert len(record) == len(piece) + RECORD_OVERHEAD
        assert opener.open(record) == piece
        assert not opener.finished
    assert opener.open(sealer.finish()) == b""
    assert opener.finished
    opener.end()


def test_format_is_the_documented_one() -> None:
    """Derived here with the primitives alone, so that another implementation can be held against it."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    key = HKDF(algorithm=SHA256(), length=32, salt=SALT, info=b"cloister-stream-v1\0stderr").derive(KEY)
    sealer = StreamSealer(KEY, SALT, "stderr")
    assert sealer.seal(b"one") == AESGCM(key).encrypt(bytes(12), b"one", b"data")
    assert sealer.finish() == AESGCM(key).encrypt(bytes(11) + b"\1", b"", b"final")


def test_a_golden_record() -> None:
    record = StreamSealer(KEY, SALT, "stdout").seal(b"golden")
    assert record.hex() == "44248a30a2942a32a94fc009586a205be87cb3a65a71"


@pytest.mark.parametrize("bit", range(0, 8 * 21, 13))
def test_each_flipped_bit_is_noticed(bit: int) -> None:
    sealer, opener = pair()
    record = bytearray(sealer.seal(b"hello"))
    record[bit // 8] ^= 1 << bit % 8
    assert refused(opener, bytes(record)) == "crypto.streamseal.not_authentic"


@pytest.mark.parametrize("length", [0, 1, 15, 16, 20])
def test_truncated_record_is_noticed(length: int) -> None:
    sealer, opener = pair()
    assert refused(opener, sealer.seal(b"hello")[:length]) == "crypto.streamseal.not_authentic"


def test_repeated_dropped_and_swapped_records_are_noticed() -> None:
    sealer, opener = pair()
    first, second, third = (sealer.seal(text) for text in (b"1", b"2", b"3"))
    assert opener.open(first) == b"1"
    assert refused(opener, first) == "crypto.streamseal.not_authentic"
    assert refused(opener, third) == "crypto.streamseal.not_authentic"
    assert opener.open(second) == b"2"


def test_a_record_is_of_its_stream_and_process_only() -> None:
    record = StreamSealer(KEY, SALT, "stdout").seal(b"x")
    for opener in (
        StreamOpener(KEY, SALT, "stderr"),
        StreamOpener(KEY, bytes(32), "stdout"),
        StreamOpener(bytes(32), SALT, "stdout"),
    ):
        assert refused(opener, record) == "crypto.streamseal.not_authentic"


def test_an_end_without_the_final_record_is_a_truncation() -> None:
    sealer, opener = pair()
    opener.open(sealer.seal(b"part"))
    with pytest.raises(Refused) as caught:
        opener.end()
    assert caught.value.code == "crypto.streamseal.truncated"


def test_nothing_follows_the_final_record() -> None:
    sealer, opener = pair()
    opener.open(sealer.finish())
    assert refused(opener, bytes(16)) == "crypto.streamseal.after_final"
    with pytest.raises(RuntimeError):
        sealer.seal(b"")


def test_keys_are_overwritten_at_the_end() -> None:
    sealer, opener = pair()
    opener.open(sealer.finish())
    assert bytes(sealer._key) == bytes(opener._key) == bytes(32)


@pytest.mark.parametrize(("key", "salt"), [(bytes(31), SALT), (bytes(33), SALT), (KEY, b""), (KEY, bytes(31))])
def test_lengths_are_exact(key: bytes, salt: bytes) -> None:
    with pytest.raises(Refused) as caught:
        derive_key(key, salt, "stdin")
    assert caught.value.code == "crypto.streamseal.length"


def test_stream_key_is_checked_before_use() -> None:
    assert require_stream_key(bytearray(32)) == bytes(32)
    with pytest.raises(Refused):
        require_stream_key(bytearray(16))


def test_counter_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamseal, "_RECORDS", 2)
    sealer, _ = pair()
    sealer.seal(b"")
    sealer.seal(b"")
    with pytest.raises(Refused) as caught:
        sealer.seal(b"")
    assert caught.value.code == "crypto.streamseal.exhausted"
