"""The strict JSON of image documents."""

from __future__ import annotations

import pytest

from cloister.errors import ImageRefused
from cloister.oci.document import Members, encode_document, parse_document


def parse(data: bytes) -> dict[str, object]:
    return parse_document(data, ceiling=100_000, code="oci.test")


def test_unknown_members_survive_a_round_trip_in_their_order() -> None:
    raw = b'{"b":1,"a":[true,null,"\xc3\xa4"],"x.y":{"z":1.5}}'
    assert encode_document(parse(raw)) == raw


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "oci.test.not_json"),
        (b"[]", "oci.test.not_json"),
        (b"1", "oci.test.not_json"),
        (b'{"a":1} x', "oci.test.not_json"),
        (b'{"a":1}{"a":1}', "oci.test.not_json"),
        (b"{'a':1}", "oci.test.not_json"),
        (b'{"a":NaN}', "oci.test.not_json"),
        (b'{"a":-Infinity}', "oci.test.not_json"),
        (b'\xef\xbb\xbf{"a":1}', "oci.test.not_json"),
        (b'{"a":"\xff"}', "oci.test.not_json"),
        (b'{"a":"\\ud800"}', "oci.test.not_json"),
        (b'{"a":' + b"1" * 5000 + b"}", "oci.test.not_json"),
        (b'{"a":1,"a":1}', "oci.test.duplicate_key"),
        (b'{"x":[{"a":1,"\\u0061":2}]}', "oci.test.duplicate_key"),
        (b'{"a":' + b"[" * 70 + b"]" * 70 + b"}", "oci.test.too_deep"),
        (b'{"a":' + b"[" * 40_000, "oci.test.too_deep"),
        (b" " * 100_001, "oci.test.too_long"),
    ],
)
def test_what_is_not_one_json_object_is_refused(data: bytes, code: str) -> None:
    with pytest.raises(ImageRefused) as caught:
        parse(data)
    assert caught.value.code == code


def members(data: bytes) -> Members:
    return Members(parse(data), path="top", code="oci.test")


def test_members_give_typed_values_and_take_null_for_absent() -> None:
    found = members(b'{"t":"x","n":3,"a":["p","q"],"m":{"k":"v"},"z":null}')
    assert found.text("t") == "x"
    assert found.text("z", "default") == "default"
    assert found.unsigned("n") == 3
    assert found.texts("a", ceiling=2) == ("p", "q")
    assert found.text_map("m", ceiling=1, value_ceiling=1) == {"k": "v"}
    assert found.texts("z", ceiling=1) == ()
    assert "z" not in found


@pytest.mark.parametrize(
    ("data", "read", "code", "path"),
    [
        (b"{}", lambda m: m.text("t"), "missing_member", "top.t"),
        (b'{"t":null}', lambda m: m.text("t"), "missing_member", "top.t"),
        (b'{"t":1}', lambda m: m.text("t"), "wrong_type", "top.t"),
        (b'{"n":-1}', lambda m: m.unsigned("n"), "wrong_type", "top.n"),
        (b'{"n":true}', lambda m: m.unsigned("n"), "wrong_type", "top.n"),
        (b'{"n":1.0}', lambda m: m.unsigned("n"), "wrong_type", "top.n"),
        (b'{"n":9223372036854775808}', lambda m: m.unsigned("n"), "wrong_type", "top.n"),
        (b'{"n":11}', lambda m: m.unsigned("n", ceiling=10), "wrong_type", "top.n"),
        (b'{"a":{}}', lambda m: m.array("a", ceiling=1), "wrong_type", "top.a"),
        (b'{"a":[1,2]}', lambda m: m.array("a", ceiling=1), "too_many", "top.a"),
        (b"{}", lambda m: m.array("a", ceiling=1, required=True), "missing_member", "top.a"),
        (b'{"a":["x",1]}', lambda m: m.texts("a", ceiling=9), "wrong_type", "top.a[1]"),
        (b'{"m":{"k":1}}', lambda m: m.text_map("m", ceiling=9, value_ceiling=9), "wrong_type", "top.m.k"),
        (b'{"m":{"k":"vv"}}', lambda m: m.text_map("m", ceiling=9, value_ceiling=1), "too_long", "top.m.k"),
        (b'{"m":{"a":"","b":""}}', lambda m: m.text_map("m", ceiling=1, value_ceiling=1), "too_many", "top.m"),
        (b'{"m":[]}', lambda m: m.members("m"), "wrong_type", "top.m"),
        (b'{"m":1}', lambda m: m.only("a"), "unknown_member", "top.m"),
    ],
)
def test_members_of_another_type_are_refused_with_their_place(data: bytes, read, code: str, path: str) -> None:  # type: ignore[no-untyped-def]  # a reader of Members
    with pytest.raises(ImageRefused) as caught:
        read(members(data))
    assert caught.value.code == f"oci.test.{code}"
    assert caught.value.path == path
