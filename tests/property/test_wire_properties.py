"""The byte codecs over arbitrary input: round trips, one text per value, refusals instead of crashes."""

from __future__ import annotations

import base64
import contextlib
import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import FormatRefused
from cloister.wire.base64 import decode_b64, decode_b64url, encode_b64, encode_b64url
from cloister.wire.binary import BinaryReader
from cloister.wire.canonicaljson import encode_canonical

SAFE = 2**53 - 1
PLAIN_TEXT = st.text(st.characters(exclude_categories=("Cs",)))
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-SAFE, SAFE) | PLAIN_TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(PLAIN_TEXT, inner, max_size=5),
    max_leaves=25,
)
CODECS = [(encode_b64, decode_b64), (encode_b64url, decode_b64url)]


@pytest.mark.parametrize(("encode", "decode"), CODECS, ids=["standard", "url"])
@given(data=st.binary(max_size=300))
def test_base64_round_trip(encode, decode, data):
    assert decode(encode(data), ceiling=300) == data


@pytest.mark.parametrize(("encode", "decode"), CODECS, ids=["standard", "url"])
@given(text=st.text(st.sampled_from(string.ascii_letters + string.digits + "+/-_= \n"), max_size=12))
def test_base64_accepts_one_text_per_value(encode, decode, text):
    """Whatever decodes is exactly what the encoder writes: no second text means the same bytes."""
    try:
        data = decode(text, ceiling=64)
    except FormatRefused:
        return
    assert encode(data) == text


@pytest.mark.parametrize(("encode", "decode"), CODECS, ids=["standard", "url"])
@given(text=st.text(max_size=40), ceiling=st.integers(0, 30))
def test_base64_never_crashes_and_never_passes_its_ceiling(encode, decode, text, ceiling):
    try:
        assert len(decode(text, ceiling=ceiling)) <= ceiling
    except FormatRefused as refusal:
        assert refusal.code.startswith("wire.base64.")


@given(data=st.binary(min_size=1, max_size=60), place=st.integers(0, 200), char=st.characters(codec="ascii"))
def test_base64_one_changed_character_is_other_bytes_or_a_refusal(data, place, char):
    text = encode_b64(data)
    place %= len(text)
    changed = text[:place] + char + text[place + 1 :]
    if changed == text:
        return
    with contextlib.suppress(FormatRefused):
        assert decode_b64(changed, ceiling=64) != data


@given(data=st.binary(max_size=100))
def test_base64_is_the_standard_librarys(data):
    assert encode_b64(data).encode() == base64.b64encode(data)


@given(JSON_VALUES)
def test_canonical_json_round_trip(value):
    text = encode_canonical(value)
    assert json.loads(text) == value
    assert encode_canonical(json.loads(text)) == text


@given(st.dictionaries(PLAIN_TEXT, st.integers(0, 9), max_size=8), st.randoms())
def test_canonical_json_forgets_insertion_order(value, random):
    names = list(value)
    random.shuffle(names)
    assert encode_canonical({name: value[name] for name in names}) == encode_canonical(value)


@given(st.dictionaries(PLAIN_TEXT, st.just(0), min_size=1, max_size=8))
def test_canonical_json_sorts_by_utf16_units(value):
    names = list(json.loads(encode_canonical(value)))
    units = [list(memoryview(name.encode("utf-16-le")).cast("H")) for name in names]
    assert units == sorted(units)


@given(
    st.recursive(
        st.floats() | st.binary(max_size=3) | st.integers() | st.text() | st.none(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
        max_leaves=10,
    )
)
def test_canonical_json_never_crashes(value):
    try:
        text = encode_canonical(value)
    except FormatRefused:
        return
    assert json.loads(text) == value


FIELDS = st.lists(
    st.tuples(st.sampled_from([1, 2, 4]), st.binary(max_size=40)),
    min_size=1,
    max_size=6,
)


def pack(fields: list[tuple[int, bytes]], order: str) -> bytes:
    return b"".join(len(value).to_bytes(width, order) + value for width, value in fields)


def read(data: bytes, fields: list[tuple[int, bytes]], order: str) -> list[bytes]:
    reader = BinaryReader(data, order=order, code="test")
    values = [reader.sized(width, "field", ceiling=64) for width, _ in fields]
    reader.finish()
    return values


@given(fields=FIELDS, order=st.sampled_from(["big", "little"]))
def test_reader_round_trip_and_truncation_at_every_offset(fields, order):
    data = pack(fields, order)
    assert read(data, fields, order) == [value for _, value in fields]
    for length in range(len(data)):
        with pytest.raises(FormatRefused) as refusal:
            read(data[:length], fields, order)
        assert refusal.value.code == "test.truncated"


@given(fields=FIELDS, order=st.sampled_from(["big", "little"]), tail=st.binary(min_size=1, max_size=9))
def test_reader_refuses_every_tail(fields, order, tail):
    with pytest.raises(FormatRefused) as refusal:
        read(pack(fields, order) + tail, fields, order)
    assert refusal.value.code == "test.trailing_bytes"


@given(data=st.binary(max_size=80), widths=st.lists(st.sampled_from([1, 2, 4, 8]), max_size=8))
def test_reader_never_crashes(data, widths):
    reader = BinaryReader(data, order="big", code="test")
    try:
        for width in widths:
            before = reader.offset
            value = reader.sized(width, "field", ceiling=16)
            assert len(value) <= 16
            assert reader.offset == before + width + len(value)
        reader.finish()
    except FormatRefused as refusal:
        assert refusal.code in ("test.truncated", "test.too_long", "test.trailing_bytes")
