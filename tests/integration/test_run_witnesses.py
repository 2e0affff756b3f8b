"""The trust service of a run and its witnesses, as processes: started by name, and asked again by the next run."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path

import pytest

from cloister.protocol.resourceuri import ResourcePath
from cloister.sdk.home import Home
from cloister.sdk.owner import Owner
from cloister.sdk.services import ServiceProcess
from cloister.sdk.trustservice import start_owners_service


class Started:
    """Stops what it was given, the newest first."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack

    def keep(self, future: Future[ServiceProcess]) -> ServiceProcess:
        service = future.result()
        self.stack.callback(service.stop)
        return service


@pytest.fixture
def started() -> Iterator[Started]:
    with ExitStack() as stack:
        yield Started(stack)


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    root = tmp_path / "home"
    for directory in (root, root / "owner", tmp_path / "work"):
        directory.mkdir(mode=0o700)
    return Owner(Home(root=root, cache=tmp_path / "cache"))


def pinned(owner: Owner) -> tuple[list[str], int]:
    with owner.admin() as admin:
        pins = admin.release_log_pins()
    return [key.partition("+")[0] for key in pins.witnesses], pins.cosignatures


def start(owner: Owner, tmp_path: Path, started: Started, *names: str) -> ServiceProcess:
    return start_owners_service(
        owner, tmp_path / "work", collateral=tmp_path / "cache", witnesses=names, keep=started.keep
    )


def test_without_names_nobody_is_asked(owner: Owner, tmp_path: Path, started: Started) -> None:
    start(owner, tmp_path, started).stop()
    assert pinned(owner) == ([], 0)


def test_the_next_run_asks_the_same_witnesses(owner: Owner, tmp_path: Path, started: Started) -> None:
    start(owner, tmp_path, started, "w1", "w2").stop()
    assert pinned(owner) == (["w1", "w2"], 2)
    start(owner, tmp_path, started).stop()
    assert pinned(owner) == (["w1", "w2"], 2)
    with owner.admin() as admin:  # they are there, and agree
        assert admin.put_resource(ResourcePath("a", "b", "c"), b"x") == 1
