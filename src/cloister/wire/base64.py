"""Strict base64, both alphabets: no whitespace, no missing or surplus padding, no unused bits set.

RFC 4648 sections 4 and 5. The standard library's decoder is lenient about stray bits, which makes signed texts
malleable; here the only text accepted for some bytes is the one our encoder writes for them.
"""

from __future__ import annotations

import binascii
from typing import Final

from cloister.errors import FormatRefused

_TO_URL: Final = bytes.maketrans(b"+/", b"-_")


def encode_b64(data: bytes) -> str:
    """Return standard base64 with padding."""
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def encode_b64url(data: bytes) -> str:
    """Return URL-safe base64 without padding, as JOSE writes it."""
    return binascii.b2a_base64(data, newline=False).translate(_TO_URL, b"=").decode("ascii")


def decode_b64(text: str, *, path: str = "", ceiling: int) -> bytes:
    """Decode standard base64 with padding.

    Args:
        text: the encoded text.
        path: place in the input, for the error.
        ceiling: most decoded bytes accepted.

    Raises:
        FormatRefused: not canonical base64, or longer than `ceiling` bytes.
    """
    _check_length(len(text) * 3 // 4 - 2, path, ceiling)
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError) as err:
        raise FormatRefused("wire.base64.malformed", "not standard base64", path=path) from err
    if encode_b64(data) != text:
        raise FormatRefused("wire.base64.malformed", "base64 is not in its canonical form", path=path)
    _check_length(len(data), path, ceiling)
    return data


def decode_b64url(text: str, *, path: str = "", ceiling: int) -> bytes:
    """Decode URL-safe base64 without padding; the same rules and errors as `decode_b64`."""
    _check_length(len(text) * 3 // 4, path, ceiling)
    try:
        data = binascii.a2b_base64(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), strict_mode=True)
    except (binascii.Error, ValueError) as err:
        raise FormatRefused("wire.base64.malformed", "not unpadded URL-safe base64", path=path) from err
    # Refuses "+" and "/", too.
    if encode_b64url(data) != text:
        raise FormatRefused("wire.base64.malformed", "base64 is not in its canonical form", path=path)
    _check_length(len(data), path, ceiling)
    return data


def _check_length(size: int, path: str, ceiling: int) -> None:
    """Refuse `size` bytes above `ceiling`: called with the least the text can hold before decoding, then with the
    truth."""
    if size > ceiling:
        raise FormatRefused(
            "wire.base64.too_long", "base64 text too long", path=path, expected=f"at most {ceiling} bytes"
        )
