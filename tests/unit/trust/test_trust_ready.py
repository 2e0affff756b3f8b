"""Readiness: each part is asked now, says its reason, and is ready again by itself."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import Refused, Unavailable
from cloister.trust.readiness import KEPT_SECONDS, Readiness, check_clock, check_collateral
from trust_edge import Edge
from trust_world import Factory, World

NOW = datetime(2026, 11, 1, tzinfo=UTC)
YEAR = timedelta(days=365)


class Ticks:
    """A monotonic clock that tests move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ticks() -> Ticks:
    return Ticks()


def ask(world: World) -> tuple[int, dict[str, Any]]:
    """Ask `/readyz` anew."""
    edge = Edge(world, readiness=world.service.readiness())
    status, _, body = asyncio.run(edge.call("GET", "/readyz"))
    edge.app.close()
    return status, json.loads(body)


class TestAsking:
    def test_all_are_asked_and_named(self) -> None:
        def wrong() -> None:
            raise Unavailable("a.b", "it is broken", path="/secret/place", actual="value")

        first, second = Readiness({"good": lambda: None, "bad": wrong}).ask()
        assert (first.name, first.code, second.name, second.code, second.reason) == (
            "good",
            "",
            "bad",
            "a.b",
            "it is broken",
        )

    def test_an_answer_is_kept_for_a_moment_and_no_longer(self, ticks: Ticks) -> None:
        asked: list[float] = []
        readiness = Readiness({"x": lambda: asked.append(ticks.now)}, clock=ticks)
        for moment in (0.0, KEPT_SECONDS / 2, KEPT_SECONDS, KEPT_SECONDS * 1.5, KEPT_SECONDS * 2):
            ticks.now = moment
            readiness.ask()
        assert asked == [0.0, KEPT_SECONDS, KEPT_SECONDS * 2]

    def test_it_turns_and_turns_back(self, ticks: Ticks) -> None:
        broken = [True]

        def check() -> None:
            if broken[0]:
                raise Refused("a.b", "broken")

        readiness = Readiness({"x": check}, clock=ticks)
        assert readiness.ask()[0].code == "a.b"
        broken[0], ticks.now = False, KEPT_SECONDS
        assert readiness.ask()[0].code == ""


class TestClock:
    @pytest.mark.parametrize("newest", [None, NOW, NOW + timedelta(minutes=4)])
    def test_sane(self, newest: datetime | None) -> None:
        check_clock(NOW, not_before=NOW - YEAR, not_after=NOW + YEAR, newest=newest)

    @pytest.mark.parametrize(
        ("before", "after", "newest"),
        [
            (timedelta(minutes=6), YEAR, None),
            (-YEAR, -timedelta(seconds=1), None),
            (-YEAR, YEAR, timedelta(minutes=6)),
        ],
    )
    def test_not_sane(self, before: timedelta, after: timedelta, newest: timedelta | None) -> None:
        with pytest.raises(Unavailable) as caught:
            check_clock(
                NOW, not_before=NOW + before, not_after=NOW + after, newest=None if newest is None else NOW + newest
            )
        assert caught.value.code == "trust.ready.clock"


class TestCollateral:
    def kept(self, directory: Path, days: float) -> Path:
        file = directory / "amd" / "crl"
        file.parent.mkdir()
        file.write_bytes(b"x")
        os.utime(file, (NOW.timestamp() - 86400 * days,) * 2)
        return directory

    def test_fresh_or_none(self, tmp_path: Path) -> None:
        check_collateral(tmp_path / "none", NOW, most=timedelta(days=7))
        check_collateral(self.kept(tmp_path, 6.9), NOW, most=timedelta(days=7))

    def test_stale(self, tmp_path: Path) -> None:
        with pytest.raises(Unavailable) as caught:
            check_collateral(self.kept(tmp_path, 7.1), NOW, most=timedelta(days=7))
        assert caught.value.code == "trust.ready.collateral" and "7 days" in caught.value.message


class TestService:
    def test_ready(self, world: World) -> None:
        status, body = ask(world)
        assert status == 200
        assert body == {
            "status": "ok",
            "checks": {"store": "ok", "key_store": "ok", "log": "ok", "clock": "ok", "collateral": "ok"},
        }

    def test_a_store_that_cannot_be_written(self, new_world: Factory) -> None:
        """Reading still works, and nothing was written before that could have failed."""
        world = new_world(store_seconds=0.2)
        with (world.state / "write.lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            begun = time.monotonic()
            status, body = ask(world)
            assert time.monotonic() - begun < 3
        assert status == 503 and body["status"] == "not ready"
        assert body["checks"]["store"].endswith(("(trust.store.locked)", "(trust.store.timeout)"))
        assert body["checks"]["clock"] == "ok" and str(world.state) not in json.dumps(body)
        until = time.monotonic() + 5
        while ask(world)[0] != 200:
            assert time.monotonic() < until

    def test_a_clock_that_was_set_back(self, world: World) -> None:
        world.guest().handshake()
        world.clock.advance(minutes=-10)
        status, body = ask(world)
        assert status == 503 and "trust.ready.clock" in body["checks"]["clock"]
        world.clock.advance(minutes=10)
        assert ask(world)[0] == 200

    def test_collateral_that_nobody_fetches(self, new_world: Factory, tmp_path: Path) -> None:
        (tmp_path / "collateral").mkdir()
        file = tmp_path / "collateral" / "x"
        file.write_bytes(b"x")
        os.utime(file, (0, 0))
        assert ask(new_world(collateral=tmp_path))[1]["checks"]["collateral"].endswith("(trust.ready.collateral)")
        assert "collateral" not in ask(new_world(collateral=tmp_path, collateral_days=0))[1]["checks"]

    def test_health_is_less(self, world: World) -> None:
        world.guest().handshake()
        world.clock.advance(minutes=-10)
        edge = Edge(world, readiness=world.service.readiness())
        assert asyncio.run(edge.call("GET", "/healthz"))[0] == 200
        edge.app.close()
