"""CBOR: the examples of RFC 8949 appendix A that the subset has, and everything it must refuse."""

from __future__ import annotations

from typing import Any

import pytest

from cloister.errors import FormatRefused
from cloister.wire.cbor import CBOR, Tagged, decode_cbor, encode_cbor
from cloister.wire.limits import CBOR_DEPTH, CBOR_ITEMS


def decode(data: bytes, *, indefinite: bool = False) -> CBOR:
    return decode_cbor(data, ceiling=1 << 16, code="t", indefinite=indefinite)


EXAMPLES: list[tuple[str, Any]] = [
    ("00", 0),
    ("17", 23),
    ("1818", 24),
    ("1903e8", 1000),
    ("1a000f4240", 1000000),
    ("1bffffffffffffffff", 18446744073709551615),
    ("3bffffffffffffffff", -18446744073709551616),
    ("20", -1),
    ("3863", -100),
    ("f4", False),
    ("f5", True),
    ("f6", None),
    ("c074323031332d30332d32315432303a30343a30305a", Tagged(tag=0, value="2013-03-21T20:04:00Z")),
    ("d74401020304", Tagged(tag=23, value=bytes([1, 2, 3, 4]))),
    ("40", b""),
    ("60", ""),
    ("62c3bc", "\u00fc"),
    ("80", []),
    ("8301820203820405", [1, [2, 3], [4, 5]]),
    ("98190102030405060708090a0b0c0d0e0f101112131415161718181819", list(range(1, 26))),
    ("a0", {}),
    ("a201020304", {1: 2, 3: 4}),
    ("a26161016162820203", {"a": 1, "b": [2, 3]}),
    ("826161a161626163", ["a", {"b": "c"}]),
]


@pytest.mark.parametrize(("text", "value"), EXAMPLES)
def test_examples_of_the_standard(text: str, value: Any) -> None:
    decoded = decode(bytes.fromhex(text))
    assert decoded == value
    assert type(decoded) is type(value)
    assert encode_cbor(value) == bytes.fromhex(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("9fff", []),
        ("9f018202039f0405ffff", [1, [2, 3], [4, 5]]),
        ("83018202039f0405ff", [1, [2, 3], [4, 5]]),
        ("bf61610161629f0203ffff", {"a": 1, "b": [2, 3]}),
        ("826161bf61626163ff", ["a", {"b": "c"}]),
    ],
)
def test_indefinite_lengths_where_they_are_accepted(text: str, value: Any) -> None:
    assert decode(bytes.fromhex(text), indefinite=True) == value
    with pytest.raises(FormatRefused) as caught:
        decode(bytes.fromhex(text))
    assert caught.value.code == "t.malformed"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "truncated"),
        ("18", "truncated"),
        ("1b00000000000000", "truncated"),
        ("42ff", "truncated"),
        ("5bffffffffffffffff00", "truncated"),
        ("9bffffffffffffffff00", "truncated"),
        ("bbffffffffffffffff00", "truncated"),
        ("8201", "truncated"),
        ("a101", "truncated"),
        ("9f01", "truncated"),
        ("c0", "truncated"),
        ("0000", "trailing_bytes"),
        ("a001", "trailing_bytes"),
        ("a201010102", "duplicate_key"),
        ("a2616101616102", "duplicate_key"),
        ("a20101180102", "duplicate_key"),  # the same integer, written longer
        ("bf01010102ff", "duplicate_key"),
        ("a1410101", "malformed"),  # a byte string as key
        ("a1f501", "malformed"),  # true as key: it would equal 1
        ("a1800001", "malformed"),
        ("a1c00101", "malformed"),  # a tagged key
        ("f7", "malformed"),
        ("f0", "malformed"),
        ("f814", "malformed"),  # false, in two bytes
        ("f90000", "malformed"),
        ("fb3ff199999999999a", "malformed"),
        ("1c", "malformed"),
        ("1f", "malformed"),
        ("5f41004100ff", "malformed"),  # a byte string in chunks
        ("7f616161ffff", "malformed"),
        ("dfff", "malformed"),
        ("ff", "malformed"),
        ("62c328", "malformed"),
        ("bf01ff", "malformed"),  # break where a value should be
    ],
)
def test_refused(text: str, reason: str) -> None:
    with pytest.raises(FormatRefused) as caught:
        decode(bytes.fromhex(text), indefinite=True)
    assert caught.value.code == f"t.{reason}"


@pytest.mark.parametrize("opening", [b"\x81", b"\x9f", b"\xa1\x00", b"\xc1"])
def test_depth_has_a_ceiling(opening: bytes) -> None:
    closing = b"\xff" if opening == b"\x9f" else b""
    decode(opening * CBOR_DEPTH + b"\x00" + closing * CBOR_DEPTH, indefinite=True)
    with pytest.raises(FormatRefused) as caught:
        decode(opening * (CBOR_DEPTH + 1) + b"\x00" + closing * (CBOR_DEPTH + 1), indefinite=True)
    assert caught.value.code == "t.too_deep"


def test_items_have_a_ceiling() -> None:
    decode(encode_cbor([0] * (CBOR_ITEMS - 1)))
    for data in (encode_cbor([0] * CBOR_ITEMS), b"\x9f" + bytes(CBOR_ITEMS) + b"\xff"):
        with pytest.raises(FormatRefused) as caught:
            decode(data, indefinite=True)
        assert caught.value.code == "t.too_many_items"


def test_length_has_a_ceiling() -> None:
    with pytest.raises(FormatRefused) as caught:
        decode_cbor(bytes(5), ceiling=4, code="t")
    assert caught.value.code == "t.too_long"


def test_maps_are_written_in_the_order_of_their_encoded_keys() -> None:
    assert encode_cbor({"b": 1, 100: 2, -1: 3, 10: 4}) == bytes.fromhex("a40a041864022003616201")


@pytest.mark.parametrize("value", [1.5, object(), {1}, 1 << 64, -(1 << 64) - 1])
def test_values_without_an_encoding(value: Any) -> None:
    with pytest.raises(TypeError):
        encode_cbor(value)
