"""TOML from strangers: what the standard library's parser would take all memory for is refused before it starts."""

from __future__ import annotations

import time

import pytest

from cloister.errors import FormatRefused
from cloister.protocol.initdata import parse_initdata
from cloister.rats.advisory import parse_advisories
from cloister.rats.policy import parse_appraisal_policy
from cloister.wire.limits import MIB, TOML_NAME_PARTS
from cloister.wire.stricttoml import parse_toml

PARTS = 200_000  # a third of a mebibyte; the prefixes of such a name would be twenty thousand million parts
PLACES = ("{} = 1", "b = 1\n  {} = 1", "[{}]", "[[ {} ]]", "b = {{ c = 1, {} = 1 }}", "b = [{{{} = 1}}]")


def read(text: str | bytes) -> dict[str, object]:
    return parse_toml(text if isinstance(text, bytes) else text.encode(), ceiling=MIB, code="test.toml", path="here")


def name(part: str, count: int) -> str:
    return ".".join([part] * count)


@pytest.mark.parametrize("count", [TOML_NAME_PARTS + 1, PARTS])
@pytest.mark.parametrize("part", ["a", "'.'", '" \\" "', "a\t", " - "])
@pytest.mark.parametrize("place", PLACES)
def test_a_name_of_very_many_parts_is_refused_at_once(place: str, part: str, count: int) -> None:
    text = place.format(name(part, count))
    if len(text) > MIB:
        text = place.format(name(part, MIB // (2 * len(part))))
    began = time.process_time()
    with pytest.raises(FormatRefused) as caught:
        read(text)
    assert (caught.value.code, caught.value.path) == ("test.toml", "here")
    assert "parts" in caught.value.message
    assert time.process_time() - began < 5


def test_a_name_may_have_parts_and_texts_may_have_dots() -> None:
    deep: object = read(f"{name('a', TOML_NAME_PARTS)} = 1")
    for _ in range(TOML_NAME_PARTS):
        assert isinstance(deep, dict)
        deep = deep["a"]
    assert deep == 1
    dots = "." * 500
    sentence = "One, two. And three. " * 100
    lines = f"{dots}\n{sentence}\n# {dots}\n"
    text = f"# {dots}\na = '{dots}'\nb = \"{sentence}\"\nc = '''\n{lines}'''\nd = [1.5{', 3.5' * 99}]\n"
    assert read(text)["c"] == lines


def test_a_line_that_looks_like_such_a_name_is_refused_even_inside_a_text() -> None:
    with pytest.raises(FormatRefused):
        read(f"a = '''\n{name('a', TOML_NAME_PARTS + 1)}\n'''")


@pytest.mark.parametrize(
    "text",
    [
        b"\xff",
        "a = ",
        "a = " + "[" * 50_000,
        "a = " + "9" * 5_000,  # the library's own limit for numbers is no error of TOML
        "a = 2026-13-01",
        "a" * MIB + "=1",
    ],
)
def test_what_is_no_toml(text: str | bytes) -> None:
    with pytest.raises(FormatRefused) as caught:
        read(text)
    assert caught.value.code == "test.toml"


@pytest.mark.parametrize("unit", [',"', ",'", "[", "{", "[,{.", ',"\\', " ", ". ", '"."', "a ", "'a"])
def test_looking_for_names_takes_no_longer_than_linear(unit: str) -> None:
    text = "b = ." + "." * TOML_NAME_PARTS + unit * (MIB // 2 // len(unit))
    began = time.process_time()
    with pytest.raises(FormatRefused):
        read(text)
    assert time.process_time() - began < 10


@pytest.mark.parametrize("parse", [parse_initdata, parse_appraisal_policy, parse_advisories])
def test_readers_of_toml_refuse_it(parse: object) -> None:
    with pytest.raises(FormatRefused) as caught:
        parse(f"{name('a', 100_000)} = 1".encode())  # type: ignore[operator]  # one of three functions
    assert caught.value.code.endswith(".malformed")
