"""Canonical JSON (RFC 8785): the published vectors, the ordering rule, and what has no canonical form."""

from __future__ import annotations

import hashlib
import math

import pytest

from cloister.errors import FormatRefused
from cloister.wire.canonicaljson import encode_canonical, type_error_code

LONE_SURROGATE = "\ud800"


def test_attestation_service_vector() -> None:
    """The digest that CoCo's attestation service asserts for this object."""
    digest = hashlib.sha384(encode_canonical({"b": 1, "a": "test", "c": {"d": "e"}})).hexdigest()
    assert digest == (
        "e71ce8e70d814ba6639c3612ebee0ff1f76f650f8dbb5e47157e0f3f525cd22c4597480a186427c813ca941da78870c3"
    )


def test_sorts_by_utf16_units_as_the_standard_shows() -> None:
    """RFC 8785 section 3.2.3: the order of its own example, where an emoji sorts before U+FB33."""
    names = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    expected = ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    text = encode_canonical(dict.fromkeys(names, 0)).decode()
    assert [part.rpartition(":")[0] for part in text.strip("{}").split(",")] == [
        {"\r": '"\\r"'}.get(name, f'"{name}"') for name in expected
    ]


def test_code_point_order_would_differ() -> None:
    """The case the rule is about, so that a change to plain sorting is seen."""
    assert sorted(["\U0001f600", "\ufb33"]) == ["\ufb33", "\U0001f600"]
    assert encode_canonical({"\ufb33": 0, "\U0001f600": 0}) == '{"\U0001f600":0,"\ufb33":0}'.encode()


def test_escapes_are_the_standards() -> None:
    """RFC 8785 section 3.2.2.2: short escapes, lower-case \\u for other controls, everything else as it is."""
    assert encode_canonical('\b\t\n\f\r"\\\x0f\x7f\u2028/\u00e9') == (
        b'"\\b\\t\\n\\f\\r\\"\\\\\\u000f\x7f\xe2\x80\xa8/\xc3\xa9"'
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, b"null"),
        (True, b"true"),
        (False, b"false"),
        (0, b"0"),
        (-1, b"-1"),
        (2**53 - 1, b"9007199254740991"),
        (-(2**53) + 1, b"-9007199254740991"),
        ("", b'""'),
        ([], b"[]"),
        ({}, b"{}"),
        ((1, [2, {"a": None}]), b'[1,[2,{"a":null}]]'),
        ({"b": {"d": 1, "c": 2}, "a": []}, b'{"a":[],"b":{"c":2,"d":1}}'),
    ],
)
def test_values_of_our_formats(value: object, text: bytes) -> None:
    assert encode_canonical(value) == text


@pytest.mark.parametrize(
    "value",
    [
        1.0,
        0.5,
        math.nan,
        math.inf,
        -0.0,
        [1, 2.0],
        {"a": {"b": 1.5}},
        2**53,
        -(2**53),
        b"bytes",
        {1: "number as key"},
        {None: 1},
        {True: 1},
        {"a"},
        ...,
        LONE_SURROGATE,
        {LONE_SURROGATE: 1},
        [LONE_SURROGATE],
    ],
    ids=repr,
)
def test_values_without_a_canonical_form_are_refused(value: object) -> None:
    with pytest.raises(FormatRefused) as refusal:
        encode_canonical(value)
    assert refusal.value.code == type_error_code


def nested(depth: int) -> object:
    value: object = 0
    for _ in range(depth):
        value = [value]
    return value


def test_nesting_has_a_ceiling() -> None:
    assert encode_canonical(nested(64)) == b"[" * 64 + b"0" + b"]" * 64
    for depth in (65, 100_000):
        with pytest.raises(FormatRefused) as refusal:
            encode_canonical(nested(depth))
        assert refusal.value.code == type_error_code
