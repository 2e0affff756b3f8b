"""The bounds-checked reader: never fewer bytes than asked, never bytes left over."""

from __future__ import annotations

import pytest

from cloister.errors import FormatRefused
from cloister.wire.binary import BinaryReader


def reader(data: bytes, order: str = "big") -> BinaryReader:
    return BinaryReader(data, order=order, code="test.format")  # type: ignore[arg-type]  # a literal in each caller


def test_reads_in_order_and_counts() -> None:
    source = reader(b"\x01\x02\x03\x04\x05")
    assert source.unsigned(2, "first") == 0x0102
    assert source.take(1, "second") == b"\x03"
    assert (source.offset, source.remaining) == (3, 2)
    assert source.take(2, "third") == b"\x04\x05"
    source.finish()


def test_byte_order_is_the_callers() -> None:
    assert reader(b"\x01\x02", "little").unsigned(2, "n") == 0x0201


def test_sized_field_reads_its_length_first() -> None:
    source = reader(b"\x00\x03abcd")
    assert source.sized(2, "name", ceiling=3) == b"abc"
    assert source.remaining == 1


def test_empty_fields_are_fields() -> None:
    source = reader(b"\x00")
    assert source.take(0, "nothing") == b""
    assert source.sized(1, "empty", ceiling=0) == b""
    source.finish()


@pytest.mark.parametrize("length", range(4))
def test_truncation_names_the_field_and_the_place(length: int) -> None:
    source = reader(b"\x01\x02\x03\x04"[:length])
    with pytest.raises(FormatRefused) as refusal:
        source.take(4, "magic")
    assert refusal.value.code == "test.format.truncated"
    assert "magic" in refusal.value.message
    assert refusal.value.path == "byte 0"
    assert (refusal.value.expected, refusal.value.actual) == ("4 bytes", f"{length} bytes")


def test_refused_read_consumes_nothing() -> None:
    source = reader(b"\x01\x02")
    with pytest.raises(FormatRefused):
        source.take(3, "magic")
    assert source.take(2, "rest") == b"\x01\x02"


def test_negative_count_is_refused() -> None:
    source = reader(b"\x01\x02")
    source.take(2, "all")
    with pytest.raises(FormatRefused):
        source.take(-1, "back")


def test_length_past_the_ceiling_is_refused_before_reading() -> None:
    with pytest.raises(FormatRefused) as refusal:
        reader(b"\xff\xff" + bytes(0xFFFF)).sized(2, "name", ceiling=255)
    assert refusal.value.code == "test.format.too_long"
    assert (refusal.value.expected, refusal.value.actual) == ("at most 255", "65535")


def test_length_past_the_data_is_refused() -> None:
    with pytest.raises(FormatRefused) as refusal:
        reader(b"\x00\x09abc").sized(2, "name", ceiling=255)
    assert refusal.value.code == "test.format.truncated"


def test_trailing_bytes_are_refused() -> None:
    source = reader(b"abc")
    source.take(2, "head")
    with pytest.raises(FormatRefused) as refusal:
        source.finish()
    assert refusal.value.code == "test.format.trailing_bytes"
    assert refusal.value.path == "byte 2"
