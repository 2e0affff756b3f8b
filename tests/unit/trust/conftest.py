"""A furnished trust service per test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from trust_world import Factory, World, make_world


@pytest.fixture
def new_world(tmp_path: Path) -> Iterator[Factory]:
    """Make worlds with settings of the test's own, in memory where possible: these tests are not about disks."""
    made: list[World] = []
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as directory:

        def make(**settings: object) -> World:
            made.append(make_world(Path(directory) / f"world{len(made)}", **settings))
            return made[-1]

        yield make
        for world in made:
            world.close()


@pytest.fixture
def world(new_world: Factory) -> World:
    """A service that releases `default/model/*` to one pod."""
    return new_world()
