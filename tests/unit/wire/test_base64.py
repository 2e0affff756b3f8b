"""Strict base64: one text per value, both alphabets, a ceiling before any decoding."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cloister.errors import FormatRefused
from cloister.wire.base64 import decode_b64, decode_b64url, encode_b64, encode_b64url

# RFC 4648 section 10
STANDARD = [
    (b"", ""),
    (b"f", "Zg=="),
    (b"fo", "Zm8="),
    (b"foo", "Zm9v"),
    (b"foob", "Zm9vYg=="),
    (b"foobar", "Zm9vYmFy"),
]


@pytest.mark.parametrize(("data", "text"), STANDARD)
def test_standard_vectors(data: bytes, text: str) -> None:
    assert encode_b64(data) == text
    assert decode_b64(text, ceiling=64) == data


@pytest.mark.parametrize(("data", "text"), STANDARD)
def test_url_safe_vectors(data: bytes, text: str) -> None:
    assert encode_b64url(data) == text.rstrip("=")
    assert decode_b64url(text.rstrip("="), ceiling=64) == data


def test_alphabets_differ_in_two_characters() -> None:
    assert encode_b64(b"\xfb\xff") == "+/8="
    assert encode_b64url(b"\xfb\xff") == "-_8"


@pytest.mark.parametrize(
    "text",
    [
        "Zg",  # padding missing
        "Zg=",  # padding short
        "Zg===",  # padding surplus
        "Zh==",  # unused bits set: the same byte as Zg==
        "Zm9=",  # unused bits set in the second form
        "Zm9v\n",  # trailing newline
        " Zm9v",
        "Zm 9v",
        "Zm9v=",
        "====",
        "-_8=",  # other alphabet
        "Zm9vé",  # not ASCII
        "Zg==Zg==",  # text after padding
        "\0\0\0\0",
    ],
)
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(FormatRefused) as refusal:
        decode_b64(text, path="here", ceiling=64)
    assert refusal.value.code == "wire.base64.malformed"
    assert refusal.value.path == "here"


@pytest.mark.parametrize("text", ["Zg==", "Zh", "+/8", "Zm9v\n", "Z", "Zm9", "Zm9vé", "Zm 9v", "="])
def test_other_url_safe_spellings_are_refused(text: str) -> None:
    with pytest.raises(FormatRefused) as refusal:
        decode_b64url(text, path="here", ceiling=64)
    assert refusal.value.code == "wire.base64.malformed"


@pytest.mark.parametrize("decode", [decode_b64, decode_b64url])
def test_text_past_the_ceiling_is_refused_before_decoding(decode: Callable[..., bytes]) -> None:
    with pytest.raises(FormatRefused) as refusal:
        decode("A" * 1_000_000, ceiling=32)
    assert refusal.value.code == "wire.base64.too_long"
    assert "32" in refusal.value.expected


@pytest.mark.parametrize("size", range(33))
def test_every_size_up_to_the_ceiling_fits(size: int) -> None:
    data = bytes(range(size))
    assert decode_b64(encode_b64(data), ceiling=32) == data
    assert decode_b64url(encode_b64url(data), ceiling=32) == data


@pytest.mark.parametrize("extra", [1, 2, 3, 4, 5, 6])
def test_decoded_size_never_passes_the_ceiling(extra: int) -> None:
    """The ceiling is a promise about decoded bytes, whatever the length of the text."""
    data = bytes(32 + extra)
    for encode, decode in ((encode_b64, decode_b64), (encode_b64url, decode_b64url)):
        with pytest.raises(FormatRefused):
            decode(encode(data), ceiling=32)
