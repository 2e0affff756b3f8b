"""Answers that are remembered: inside their window only, no more than there is room for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from cloister.crypto.remembered import Remembered

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
INSTANT = timedelta(microseconds=1)


@pytest.fixture
def memory() -> Remembered[str]:
    return Remembered(2)


def test_an_answer_is_found_inside_its_window_only(memory: Remembered[str]) -> None:
    memory.put("key", "answer", NOW, NOW + DAY)
    assert [memory.get("key", at) for at in (NOW - INSTANT, NOW, NOW + DAY - INSTANT, NOW + DAY)] == [
        None,
        "answer",
        "answer",
        None,
    ]
    assert memory.get("another", NOW) is None


def test_a_newer_answer_takes_the_place_of_an_older_one(memory: Remembered[str]) -> None:
    memory.put("key", "old", NOW, NOW + DAY)
    memory.put("key", "new", NOW + DAY, NOW + 2 * DAY)
    assert memory.get("key", NOW) is None
    assert memory.get("key", NOW + DAY) == "new"


def test_the_one_that_was_not_asked_for_longest_goes(memory: Remembered[str]) -> None:
    for name in "ab":
        memory.put(name, name, NOW, NOW + DAY)
    assert memory.get("a", NOW) == "a"
    memory.put("c", "c", NOW, NOW + DAY)
    assert [memory.get(name, NOW) for name in "abc"] == ["a", None, "c"]
    assert len(memory) == 2


def test_it_can_be_emptied(memory: Remembered[str]) -> None:
    memory.put("key", "answer", NOW, NOW + DAY)
    memory.cache_clear()
    assert memory.get("key", NOW) is None
