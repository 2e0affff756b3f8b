"""The exception hierarchy: two families, stable codes, texts that carry place and values."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cloister import errors
from cloister.errors import CloisterError, FormatRefused, Refused, Unavailable

FAMILIES = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, CloisterError) and kind not in (CloisterError, Refused, Unavailable)
]


@pytest.mark.parametrize("kind", FAMILIES, ids=lambda kind: kind.__name__)
def test_each_error_is_a_refusal_and_not_also_unavailable(kind: type[CloisterError]) -> None:
    assert issubclass(kind, Refused)
    assert not issubclass(kind, Unavailable)


def test_the_two_families_are_disjoint() -> None:
    assert not issubclass(Refused, Unavailable)
    assert not issubclass(Unavailable, Refused)


def test_text_has_code_place_and_both_values() -> None:
    error = FormatRefused("wire.thing.reason", "length differs", path="a[1]", expected="4", actual="5", hint="cut it")
    assert str(error) == "wire.thing.reason at a[1]: length differs: expected 4, got 5"


def test_text_without_values_is_only_code_and_message() -> None:
    assert str(Unavailable("net.down", "no answer")) == "net.down: no answer"


@pytest.mark.parametrize(
    ("expected", "actual", "text"),
    [("4", "", "c.d: m: expected 4, got nothing"), ("", "5", "c.d: m: expected nothing, got 5")],
)
def test_one_missing_value_is_said(expected: str, actual: str, text: str) -> None:
    assert str(Refused("c.d", "m", expected=expected, actual=actual)) == text


def test_dictionary_has_only_what_is_set() -> None:
    assert Refused("c.d", "m", hint="h").as_dict() == {"code": "c.d", "message": "m", "hint": "h"}


def test_module_imports_nothing() -> None:
    """The guest loads it before it says hello."""
    program = (
        "import sys; before = set(sys.modules); import cloister.errors;"
        "print(*sorted(set(sys.modules) - before - {'cloister', 'cloister.errors', '__future__'}))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == ""
