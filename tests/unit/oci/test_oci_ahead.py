"""Chunks made ahead: the same ones in the same order, errors in their place, no thread left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from cloister.errors import ImageRefused
from cloister.oci.ahead import AHEAD_CHUNKS, made_ahead


def makers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ahead"]


def numbered(count: int, made: list[int] | None = None) -> Iterator[bytes]:
    for number in range(count):
        if made is not None:
            made.append(number)
        yield b"%d" % number


@pytest.mark.parametrize("count", [0, 1, AHEAD_CHUNKS, 50])
def test_chunks_come_in_order(count: int) -> None:
    assert list(made_ahead(numbered(count))) == list(numbered(count))
    assert not makers()


def test_an_error_comes_behind_the_last_good_chunk() -> None:
    def failing() -> Iterator[bytes]:
        yield from numbered(3)
        raise ImageRefused("oci.test", "no more")

    got = []
    with pytest.raises(ImageRefused, match=r"oci\.test"):
        for chunk in made_ahead(failing()):
            got.append(chunk)  # kept up to the error
    assert got == [b"0", b"1", b"2"]
    assert not makers()


def test_who_stops_early_ends_the_maker() -> None:
    made: list[int] = []
    chunks = made_ahead(numbered(10_000, made))
    assert next(chunks) == b"0"
    chunks.close()  # type: ignore[attr-defined]  # a generator is what it is
    assert not makers()
    assert len(made) <= AHEAD_CHUNKS + 3


def test_memory_is_bounded() -> None:
    made: list[int] = []
    chunks = made_ahead(numbered(10_000, made))
    for used in range(1, 200):
        next(chunks)
        assert len(made) <= used + AHEAD_CHUNKS + 2
    chunks.close()  # type: ignore[attr-defined]  # a generator is what it is
