"""A furnished trust service per test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from store_places import Place
from trust_world import Factory, World, make_world, quick_directory


@pytest.fixture
def quick() -> Iterator[Path]:
    """A directory on no slow disk."""
    with quick_directory() as directory:
        yield directory


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.tool)])
def place(request: pytest.FixtureRequest, quick: Path) -> Iterator[Place]:
    """An empty database of each kind in turn."""
    server = request.getfixturevalue("postgresql") if request.param == "postgresql" else None
    with Place(quick, server) as made:
        yield made


@pytest.fixture
def new_world(quick: Path) -> Iterator[Factory]:
    """Make worlds with settings of the test's own."""
    made: list[World] = []

    def make(**settings: object) -> World:
        made.append(make_world(quick / f"world{len(made)}", **settings))
        return made[-1]

    yield make
    for world in made:
        world.close()


@pytest.fixture
def world(new_world: Factory) -> World:
    """A service that releases `default/model/*` to one pod."""
    return new_world()
