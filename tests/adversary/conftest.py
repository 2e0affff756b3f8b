"""One owner with running services for all tests of a hostile host, and two images that know nothing of Cloister."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adversary.pulls import Published
from cloister.sdk.owner import SealedReference
from cloister.testing.evilregistry import EvilRegistry
from conformance.registry_process import RegistryProcess
from conformance.tools import skip_or_fail
from guest_world import World, make_world
from images import BuildFailed, busybox_image, layered_image


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Owner, trust service, registry, at the simulated level."""
    if not Path("/usr/bin/bwrap").exists():
        skip_or_fail("bwrap is not installed: run `tools/setup test-packages`")
    with make_world(tmp_path_factory.mktemp("hostile")) as made:
        yield made


def layout_of(make: Callable[[], Path]) -> str:
    """Return the location of a test image, made on first use."""
    try:
        return f"oci:{make()}:v1"
    except BuildFailed as err:
        skip_or_fail(str(err))


@pytest.fixture(scope="session")
def busybox_layout() -> str:
    return layout_of(busybox_image)


@pytest.fixture(scope="session")
def layered_layout() -> str:
    return layout_of(layered_image)


@pytest.fixture(scope="session")
def busybox(world: World, busybox_layout: str) -> SealedReference:
    """One layer, sealed."""
    return world.seal(busybox_layout)


@pytest.fixture(scope="session")
def layered(world: World, layered_layout: str) -> SealedReference:
    """Four layers, sealed."""
    return world.seal(layered_layout)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    """An image that is encrypted, signed and pushed to a registry of its own."""
    place = tmp_path_factory.mktemp("published")
    with RegistryProcess(place / "registry") as registry:
        yield Published(registry, place / "layout")


@pytest.fixture(scope="module")
def liar(image: Published) -> Iterator[EvilRegistry]:
    """Stands before that registry and changes what it is told to."""
    with EvilRegistry(image.registry.port) as registry:
        yield registry
