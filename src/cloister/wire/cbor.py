"""Strict CBOR from strangers: one item, bounded, no duplicate keys, nothing behind it.

RFC 8949, the part that COSE messages and device requests use: integers, byte and text strings, arrays, maps with
integer or text keys, tags, true, false, null. Refused: floating point, undefined and other simple values, keys of
other types, strings in chunks, everything ill-formed. Arrays and maps of indefinite length are read where the caller
says that real messages have them. Integers and lengths need not be in their shortest form: signed bytes are verified
as received and never encoded again. `encode_cbor` writes the core deterministic encoding (section 4.2.1).

Own code and not a library: the ones there are let a later duplicate key win, and the guest, which talks CBOR to its
security module, has none. Trusts nobody. Loaded inside the pod VM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cloister.errors import FormatRefused
from cloister.wire.limits import CBOR_DEPTH, CBOR_ITEMS

CBOR = Any  # Any: int, bytes, str, bool, None, list, dict, Tagged; typed by whoever reads it

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_ONE_BYTE: Final = 24  # additional information from which the argument follows in 1, 2, 4, 8 bytes
_INDEFINITE: Final = 31
_SIMPLE_VALUES: Final[Mapping[int, bool | None]] = {20: False, 21: True, 22: None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tagged:
    """A tagged item (section 3.4)."""

    tag: int
    value: CBOR


def decode_cbor(data: bytes, *, ceiling: int, code: str, indefinite: bool = False) -> CBOR:
    """Return the one item that `data` is.

    Args:
        data: the whole encoding.
        ceiling: most bytes accepted.
        code: prefix of the errors' codes.
        indefinite: whether arrays and maps of indefinite length are accepted.

    Raises:
        FormatRefused: `<code>.too_long`, `.truncated`, `.trailing_bytes`, `.duplicate_key`, `.too_deep`,
            `.too_many_items`, or `.malformed` for what is not CBOR or not of the subset.
    """
    if len(data) > ceiling:
        raise FormatRefused(
            f"{code}.too_long", "CBOR too long", expected=f"at most {ceiling} bytes", actual=str(len(data))
        )
    reader = _Reader(data, code, indefinite)
    value = reader.item(CBOR_DEPTH)
    if reader.offset != len(data):
        raise FormatRefused(
            f"{code}.trailing_bytes",
            "bytes follow the end of the CBOR item",
            path=f"byte {reader.offset}",
            expected="0 bytes",
            actual=f"{len(data) - reader.offset} bytes",
        )
    return value


class _Reader:
    """Reads items in order; `offset` is the next byte."""

    __slots__ = ("_code", "_data", "_indefinite", "_left", "offset")

    def __init__(self, data: bytes, code: str, indefinite: bool) -> None:
        self._data = data
        self._code = code
        self._indefinite = indefinite
        self._left = CBOR_ITEMS
        self.offset = 0

    def item(self, depth: int) -> CBOR:
        """Return the next item, at most `depth` levels deep."""
        data, start = self._data, self.offset
        if start >= len(data):
            raise self._error("truncated", "CBOR ends where an item should begin", start)
        initial = data[start]
        major, info = initial >> 5, initial & 0x1F
        self.offset = start + 1
        if not self._left:
            raise self._error("too_many_items", f"more than {CBOR_ITEMS} CBOR items", start)
        self._left -= 1
        if info == _INDEFINITE:
            return self._indefinite_item(major, depth, start)
        argument = info if info < _ONE_BYTE else self._argument(info, start)
        if major == _UNSIGNED:
            return argument
        if major == _NEGATIVE:
            return -1 - argument
        if major in (_BYTES, _TEXT):
            return self._string(major, argument, start)
        if major == _SIMPLE:
            if info not in _SIMPLE_VALUES:
                raise self._error("malformed", "a simple value or number that is not read here", start)
            return _SIMPLE_VALUES[info]
        if not depth:
            raise self._error("too_deep", f"CBOR nests deeper than {CBOR_DEPTH}", start)
        if major == _TAG:
            return Tagged(tag=argument, value=self.item(depth - 1))
        if argument > len(data) - self.offset:  # every member takes a byte at least
            raise self._error("truncated", "CBOR ends inside an array or map", start)
        if major == _ARRAY:
            return [self.item(depth - 1) for _ in range(argument)]
        found: dict[int | str, CBOR] = {}
        for _ in range(argument):
            self._member(found, depth - 1)
        return found

    def _argument(self, info: int, start: int) -> int:
        width = 1 << (info - _ONE_BYTE)
        if width > 8:
            raise self._error("malformed", "not CBOR: reserved additional information", start)
        end = self.offset + width
        if end > len(self._data):
            raise self._error("truncated", "CBOR ends inside a number or length", start)
        value = int.from_bytes(self._data[self.offset : end], "big")
        self.offset = end
        return value

    def _string(self, major: int, length: int, start: int) -> bytes | str:
        end = self.offset + length
        if end > len(self._data):
            raise self._error("truncated", "CBOR ends inside a string", start)
        value = self._data[self.offset : end]
        self.offset = end
        if major == _BYTES:
            return value
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as err:
            raise self._error("malformed", "text string is not UTF-8", start) from err

    def _indefinite_item(self, major: int, depth: int, start: int) -> CBOR:
        if not self._indefinite or major not in (_ARRAY, _MAP):
            raise self._error("malformed", "an item of indefinite length is not accepted here", start)
        if not depth:
            raise self._error("too_deep", f"CBOR nests deeper than {CBOR_DEPTH}", start)
        items: list[CBOR] = []
        found: dict[int | str, CBOR] = {}
        while not self._at_break():
            if major == _MAP:
                self._member(found, depth - 1)
            else:
                items.append(self.item(depth - 1))
        return found if major == _MAP else items

    def _at_break(self) -> bool:
        if self._data[self.offset : self.offset + 1] != b"\xff":
            return False
        self.offset += 1
        return True

    def _member(self, found: dict[int | str, CBOR], depth: int) -> None:
        start = self.offset
        key = self.item(depth)
        if type(key) is not int and type(key) is not str:
            raise self._error("malformed", "a map key is neither an integer nor a text", start)
        if key in found:
            raise self._error("duplicate_key", "a map has a key twice", start, actual=str(key)[:40])
        found[key] = self.item(depth)

    def _error(self, reason: str, message: str, offset: int, *, actual: str = "") -> FormatRefused:
        return FormatRefused(f"{self._code}.{reason}", message, path=f"byte {offset}", actual=actual)


def encode_cbor(value: CBOR) -> bytes:
    """Return the deterministic encoding of a value of the types that `decode_cbor` returns.

    Raises:
        TypeError: a value of another type.
    """
    if value is None or isinstance(value, bool):
        return bytes([0xF6 if value is None else 0xF5 if value else 0xF4])
    if isinstance(value, int):
        return _head(_UNSIGNED, value) if value >= 0 else _head(_NEGATIVE, -1 - value)
    if isinstance(value, bytes):
        return _head(_BYTES, len(value)) + value
    if isinstance(value, str):
        text = value.encode("utf-8")
        return _head(_TEXT, len(text)) + text
    if isinstance(value, Tagged):
        return _head(_TAG, value.tag) + encode_cbor(value.value)
    if isinstance(value, Mapping):
        members = sorted((encode_cbor(key), encode_cbor(member)) for key, member in value.items())
        return _head(_MAP, len(members)) + b"".join(key + member for key, member in members)
    if isinstance(value, Sequence):
        return _head(_ARRAY, len(value)) + b"".join(map(encode_cbor, value))
    raise TypeError(f"no CBOR encoding for {type(value).__name__}")


def _head(major: int, argument: int) -> bytes:
    """Return the initial byte and the shortest argument (section 3)."""
    if argument < _ONE_BYTE:
        return bytes([major << 5 | argument])
    width = next((width for width in (1, 2, 4, 8) if argument < 1 << 8 * width), 0)
    if not width:
        raise TypeError("no CBOR encoding for an integer of more than 64 bits")
    return bytes([major << 5 | _ONE_BYTE + width.bit_length() - 1]) + argument.to_bytes(width, "big")
