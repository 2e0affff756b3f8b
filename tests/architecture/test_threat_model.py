"""The threat model and the tests name each other: no row without test or reason, no adversary test without a row."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "security" / "threat-model.md"
ROW = re.compile(r"^\| ([A-Z]{2}\d+) \|(.*)\|$", re.MULTILINE)
TEST_ID = re.compile(r"`(tests/[^`]+)`")
OUT_OF_SCOPE = re.compile(r"out of scope: \S.{15,}")
CLASSES = {"HH": 22, "AT": 17, "IM": 7, "ST": 3, "SU": 7}  # attack classes seen in the field; none may be passed over


class Row(NamedTuple):
    """One attacker capability."""

    id: str
    cells: list[str]

    @property
    def tests(self) -> list[str]:
        return TEST_ID.findall(self.cells[-1])


def parse(text: str) -> list[Row]:
    return [Row(number, [cell.strip() for cell in rest.split("|")]) for number, rest in ROW.findall(text)]


ROWS = parse(DOCUMENT.read_text("utf-8"))


@cache
def names_in(file: str) -> set[str]:
    """Test functions and classes of a file, by the rest of their id."""
    path = ROOT / file
    if not path.is_file():
        return set()
    found: set[str] = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            found.add(node.name)
            found |= {
                f"{node.name}::{item.name}"
                for item in node.body
                if isinstance(item, ast.FunctionDef) and item.name.startswith("test_")
            }
        elif isinstance(node, ast.Assign):  # a hypothesis state machine: TestName = Machine.TestCase
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            found |= {name for name in names if name.startswith("Test")}
    return found


def exists(test_id: str) -> bool:
    file, _, name = test_id.partition("::")
    return name.partition("[")[0] in names_in(file)


def adversary_tests() -> set[str]:
    """Every test of the hostile host, classes by their methods."""
    found: set[str] = set()
    for path in sorted((ROOT / "tests" / "adversary").rglob("test_*.py")):
        file = str(path.relative_to(ROOT))
        names = names_in(file)
        found |= {f"{file}::{name}" for name in names if not any(other.startswith(f"{name}::") for other in names)}
    return found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_row_names_existing_tests_or_says_why_none(row: Row) -> None:
    if OUT_OF_SCOPE.match(row.cells[-1]):
        assert row.tests == []
        assert len(row.cells) == 3
        return
    assert len(row.cells) == 3, "id | what the attacker does | what stands against it | tests"
    assert all(row.cells)
    assert row.tests, f"{row.id} names no test"
    assert [test_id for test_id in row.tests if not exists(test_id)] == []


def test_every_adversary_test_is_named_by_a_row() -> None:
    named = {test_id.partition("[")[0] for row in ROWS for test_id in row.tests}
    assert sorted(adversary_tests() - named) == []


def test_identifiers_are_unique() -> None:
    numbers = [row.id for row in ROWS]
    assert sorted(set(numbers)) == sorted(numbers)


def test_no_known_class_of_attack_is_passed_over() -> None:
    wanted = {f"{letters}{number}" for letters, count in CLASSES.items() for number in range(1, count + 1)}
    assert sorted(wanted - {row.id for row in ROWS}) == []


def test_the_checks_can_fail() -> None:
    good, gone, silent = parse(
        "| HH1 | a | b | `tests/architecture/test_threat_model.py::test_identifiers_are_unique` |\n"
        "| HH2 | a | b | `tests/architecture/test_threat_model.py::test_that_is_gone` |\n"
        "| HH3 | a | b | out of scope |\n"
    )
    test_row_names_existing_tests_or_says_why_none(good)
    for row in (gone, silent):
        with pytest.raises(AssertionError):
            test_row_names_existing_tests_or_says_why_none(row)
