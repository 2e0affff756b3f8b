"""Canonical JSON (RFC 8785, JCS) for the value kinds that our formats use.

Objects with text keys, arrays, text, integers within +-2**53, booleans and null. Floating-point numbers are refused:
none of our formats has one, and their canonical form is the part of JCS where implementations differ. Keys are
sorted by UTF-16 code units as section 3.2.3 asks, which differs from code-point order only outside the Basic
Multilingual Plane.
"""

from __future__ import annotations

from typing import Final

import msgspec

from cloister.errors import FormatRefused

_MAX_SAFE_INTEGER: Final = 2**53 - 1
_MAX_DEPTH: Final = 64

type_error_code: Final = "wire.canonicaljson.unsupported_value"


def encode_canonical(value: object) -> bytes:
    """Return the canonical UTF-8 bytes of `value`.

    Raises:
        FormatRefused: a float, an integer outside +-(2**53-1), a key that is not text, a lone surrogate, or nesting
            deeper than 64.
    """
    ordered = _ordered(value, 0)
    try:
        return msgspec.json.encode(ordered)  # without blanks, and of text escapes only what section 3.2.2.2 says
    except UnicodeEncodeError as err:
        raise FormatRefused(type_error_code, "text holds a lone surrogate") from err


def _ordered(value: object, depth: int) -> object:
    if depth > _MAX_DEPTH:
        raise FormatRefused(type_error_code, "nesting too deep", expected=f"at most {_MAX_DEPTH}")
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        if abs(value) > _MAX_SAFE_INTEGER:
            raise FormatRefused(type_error_code, "integer outside the range JSON keeps exactly")
        return value
    if isinstance(value, (list, tuple)):
        return [_ordered(item, depth + 1) for item in value]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise FormatRefused(type_error_code, "object key is not text", actual=type(key).__name__)
        keys = sorted(value) if "".join(value).isascii() else sorted(value, key=_utf16_units)  # equal, but quicker
        return {key: _ordered(value[key], depth + 1) for key in keys}
    raise FormatRefused(type_error_code, "value has no canonical form", actual=type(value).__name__)


def _utf16_units(key: str) -> bytes:
    return key.encode("utf-16-be", "surrogatepass")
