"""Protocol buffers (proto3 wire format), as much as one message of bytes, integers and messages needs.

Encoding: https://protobuf.dev/programming-guides/encoding. A schema names every field that may appear; another number
or another wire type refuses, as do non-minimal integers, a single field given twice, groups and the fixed-width types.
Nothing signs the envelope, so nothing may hide in it. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cloister.errors import FormatRefused
from cloister.wire.binary import BinaryReader

VARINT: Final = 0
BYTES: Final = 2
_VARINT_BYTES: Final = 10
_VARINT_CEILING: Final = 1 << 64
_CONTINUES: Final = 0x80


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """What a schema says of one field.

    Attributes:
        name: for errors.
        kind: `VARINT` or `BYTES`.
        most: how often it may appear.
        ceiling: most bytes of one value.
    """

    name: str
    kind: int = BYTES
    most: int = 1
    ceiling: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """The values of a message by field number, in order."""

    numbers: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    texts: Mapping[int, tuple[bytes, ...]] = field(default_factory=dict)

    def number(self, field_number: int) -> int:
        """Return the integer of a field that may appear once; proto3 leaves out zero."""
        return self.numbers.get(field_number, (0,))[0]

    def text(self, field_number: int) -> bytes:
        """Return the bytes of a field that may appear once; proto3 leaves out empty ones."""
        return self.texts.get(field_number, (b"",))[0]


def parse_message(data: bytes, schema: Mapping[int, Field], *, code: str, path: str = "") -> Message:
    """Parse one message.

    Args:
        data: the whole message.
        schema: its fields by number.
        code: prefix of the errors' codes.
        path: place in the input.

    Raises:
        FormatRefused: `<code>.truncated`, `.too_long`, `.unknown_field`, `.malformed`.
    """
    reader = BinaryReader(data, order="little", code=code)
    numbers: dict[int, tuple[int, ...]] = {}
    texts: dict[int, tuple[bytes, ...]] = {}
    while reader.remaining:
        field_number, kind = divmod(_varint(reader, "field key", code), 8)
        expected = schema.get(field_number)
        if expected is None or kind != expected.kind:
            raise FormatRefused(
                f"{code}.unknown_field",
                "message has a field that it cannot have",
                path=path,
                expected=", ".join(f"{number} {item.name}" for number, item in schema.items())[:160],
                actual=f"field {field_number} of wire type {kind}",
            )
        if kind == VARINT:
            numbers[field_number] = (*numbers.get(field_number, ()), _varint(reader, expected.name, code))
            seen = len(numbers[field_number])
        else:
            length = _varint(reader, f"{expected.name} length", code)
            if length > expected.ceiling:
                raise FormatRefused(
                    f"{code}.too_long",
                    f"{expected.name} is longer than any real one",
                    path=path,
                    expected=f"at most {expected.ceiling}",
                    actual=str(length),
                )
            texts[field_number] = (*texts.get(field_number, ()), reader.take(length, expected.name))
            seen = len(texts[field_number])
        if seen > expected.most:
            raise FormatRefused(
                f"{code}.malformed",
                f"{expected.name} appears too often",
                path=path,
                expected=f"at most {expected.most}",
                actual=str(seen),
            )
    return Message(numbers=numbers, texts=texts)


def encode_varint(value: int) -> bytes:
    """Return the base-128 encoding of a non-negative integer."""
    data = b""
    while value >= _CONTINUES:
        data += bytes([value % _CONTINUES | _CONTINUES])
        value //= _CONTINUES
    return data + bytes([value])


def encode_field(number: int, value: int | bytes) -> bytes:
    """Return one field with its key."""
    if isinstance(value, int):
        return encode_varint(number * 8 + VARINT) + encode_varint(value)
    return encode_varint(number * 8 + BYTES) + encode_varint(len(value)) + value


def _varint(reader: BinaryReader, name: str, code: str) -> int:
    value = 0
    for index in range(_VARINT_BYTES):
        byte = reader.unsigned(1, name)
        value |= byte % _CONTINUES << 7 * index
        if byte < _CONTINUES:
            if (index and not byte) or value >= _VARINT_CEILING:
                break
            return value
    raise FormatRefused(
        f"{code}.malformed", f"{name} is not a minimal integer of 64 bits", path=f"byte {reader.offset}"
    )
