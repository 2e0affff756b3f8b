"""A guest kernel that crashes is booted again as long as the container does not run, and not once more than said."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from cloister.errors import CloisterError, Refused, Unavailable
from cloister.sdk.run import Pod

PANIC = Unavailable("host.vm.kernel_panic", "the guest kernel panicked")


class Boots(Pod):
    """A pod whose machines fail as told, one after the other: at `create`, at `start`, or not at all."""

    def __init__(self, *failures: tuple[str, CloisterError] | None) -> None:
        self.told: list[str] = []
        environment: Any = SimpleNamespace(registry_url="http://h", step=lambda *words: self.told.append(words[1]))
        plan: Any = None
        super().__init__(environment, plan, b"", "pod")
        self.failures = list(failures)
        self.booted = self.ended = 0

    @contextlib.contextmanager
    def launch(self, **_: Any) -> Iterator[Any]:
        failure = self.failures[self.booted]
        self.booted += 1

        def fails(at: str) -> None:
            if failure is not None and failure[0] == at:
                raise failure[1]

        try:
            yield SimpleNamespace(create=lambda *_, **__: fails("create"), start=lambda _: fails("start"))
        finally:
            self.ended += 1


@pytest.mark.parametrize("at", ["create", "start"])
def test_a_crash_before_the_container_runs_is_booted_again(at: str) -> None:
    pod = Boots((at, PANIC), (at, PANIC), None)
    with pod.started():
        assert (pod.booted, pod.ended) == (3, 2)
    assert pod.ended == 3
    assert pod.told == ["guest kernel crashed"] * 2


def test_the_third_crash_is_told() -> None:
    pod = Boots(*[("create", PANIC)] * 4)
    with pytest.raises(Unavailable, match=r"host\.vm\.kernel_panic"), pod.started():
        pytest.fail("it never started")
    assert (pod.booted, pod.ended) == (3, 3)


@pytest.mark.parametrize("error", [Refused("trust.release.denied", "no"), Unavailable("host.vm.qemu_died", "gone")])
def test_nothing_else_is_tried_again(error: CloisterError) -> None:
    pod = Boots(("create", error), None)
    with pytest.raises(CloisterError) as caught, pod.started():
        pytest.fail("it never started")
    assert caught.value is error
    assert pod.booted == 1


def test_a_crash_of_a_running_container_ends_the_run() -> None:
    pod = Boots(None, None)
    with pytest.raises(Unavailable), pod.started():
        raise PANIC
    assert pod.booted == 1
