"""The trust service is broken on purpose, under load: short runs of what `tests/chaos/run.py` does for longer.

The seed is printed with what is wrong; `CLOISTER_CHAOS_SEED` chooses another one, `CLOISTER_CHAOS_WORKERS` how many
processes each replica has.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos import nemeses, proxy
from chaos.history import History
from chaos.proxy import Proxies
from chaos.run import Report, run_postgresql, run_sqlite
from chaos.services import disk
from conformance.tools import skip_or_fail

SECONDS = 60.0
KILLS = 200
SEED = int(os.environ.get("CLOISTER_CHAOS_SEED", "1"))
WORKERS = int(os.environ.get("CLOISTER_CHAOS_WORKERS", "1"))
RELEASES_AT_LEAST = 60  # far below what any machine does in this time: a run without load proves nothing


def judge(report: Report) -> None:
    text = json.dumps(report.as_dict(), indent=1)
    assert report.faults == [], text
    assert report.figures["acknowledged releases"] >= RELEASES_AT_LEAST, text
    assert report.figures["acknowledged releases"] <= report.figures["audit rows of releases"], text
    assert report.counts["released to guest of a rule that comes and goes"] > 0, text
    assert report.counts["released to pod that is revoked"] > 0, text
    assert report.counts["refused: trust.release.revoked"] > 0, text
    assert report.counts["replay: 200"] > 0, text
    assert report.counts["replay: 401"] > 0, text
    assert report.counts["intrusions tried"] > 0, text


# CPython leaves a socket to the collector when the peer resets it between connect() and the TLS handshake.
RESET_EARLY = pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")


@RESET_EARLY
@pytest.mark.tool
def test_three_replicas_on_postgresql(tmp_path: Path) -> None:
    """Every kind of fault at least once."""
    report = run_postgresql(tmp_path, seconds=SECONDS, seed=SEED, workers=WORKERS)
    judge(report)
    done = {name for name, count in report.counts.items() if name.startswith("fault: ") and count}
    assert len(done) + len(report.skipped) == (11 if WORKERS > 1 else 10), report.counts
    assert report.figures["attestations fired at once"] > 10
    assert report.counts["disk full felt"] == ("fault: disk full" in done)
    if report.skipped:
        skip_or_fail(f"all else held, but these faults cannot be injected here: {report.skipped}")


@RESET_EARLY
def test_killed_on_sqlite(tmp_path: Path) -> None:
    report = run_sqlite(tmp_path, kills=KILLS, seed=SEED)
    judge(report)
    assert report.figures["faults injected"] == KILLS


class TestProxy:
    """The faults of the network are what they say."""

    @pytest.fixture
    def way(self) -> Iterator[tuple[proxy.Proxy, socket.socket]]:
        with socket.create_server(("127.0.0.1", 0)) as target, Proxies(1) as proxies:
            made = proxies.make()
            made.target = target.getsockname()[1]
            yield made, target

    @staticmethod
    def connect(made: proxy.Proxy, target: socket.socket) -> tuple[socket.socket, socket.socket]:
        near = socket.create_connection(("127.0.0.1", made.port), 5)
        far, _ = target.accept()
        far.settimeout(5)
        return near, far

    def test_passes_both_ways_and_tells_its_ports(self, way: tuple[proxy.Proxy, socket.socket]) -> None:
        near, far = self.connect(*way)
        with near, far:
            near.sendall(b"there")
            assert far.recv(9) == b"there"
            far.sendall(b"back")
            assert near.recv(9) == b"back"
            assert far.getpeername()[1] in way[0].upstream_ports()

    def test_drops_then_the_connection_is_gone(self, way: tuple[proxy.Proxy, socket.socket]) -> None:
        near, far = self.connect(*way)
        with near, far:
            near.sendall(b"a")
            assert far.recv(9) == b"a"
            way[0].set(proxy.DROP)
            near.sendall(b"b")
            far.settimeout(0.2)
            with pytest.raises(TimeoutError):
                far.recv(9)
            way[0].set(proxy.PASS)
            near.settimeout(5)
            with pytest.raises(ConnectionResetError):
                near.recv(9)

    def test_resets(self, way: tuple[proxy.Proxy, socket.socket]) -> None:
        near, far = self.connect(*way)
        with near, far:
            near.sendall(b"a")
            assert far.recv(9) == b"a"
            way[0].set(proxy.RESET)
            with pytest.raises(ConnectionResetError):
                near.recv(9)
        with (
            pytest.raises(ConnectionResetError),
            socket.create_connection(("127.0.0.1", way[0].port), 5) as another,
        ):
            another.recv(9)

    def test_is_flaky(self, way: tuple[proxy.Proxy, socket.socket]) -> None:
        way[0].set(proxy.FLAKY)
        near, far = self.connect(*way)
        with near, far, pytest.raises(OSError):
            for _ in range(1000):
                near.sendall(b"x")
                if not far.recv(9):
                    raise ConnectionResetError


def test_a_disk_can_be_filled_and_emptied(tmp_path: Path) -> None:
    with disk(tmp_path) as made:
        if made.reason is not None:
            skip_or_fail(f"no file system of its own for the database: {made.reason}")
        made.fill()
        with pytest.raises(OSError, match="No space left"):
            (made.place / "more").write_bytes(bytes(1 << 20))
        made.empty()
        (made.place / "more").write_bytes(bytes(1 << 20))
    assert not made.place.exists()


def test_the_plan_follows_from_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done does not depend on what happens."""
    monkeypatch.setattr(nemeses, "GAP_SECONDS", (0.0, 0.001))

    class Nowhere:
        disk = type("NoDisk", (), {"reason": None})

    def plan(seed: int) -> list[str]:
        done: list[str] = []
        made = nemeses.Nemeses([], Nowhere(), None, History(), lambda: None, seed=seed)  # type: ignore[arg-type]  # neither is used
        for kind in made.kinds:
            made.kinds[kind] = lambda kind=kind: done.append(kind)
        made.recover = lambda kind: None  # type: ignore[method-assign]  # nobody to ask
        made.run(0)
        return done

    assert plan(1) == plan(1) != plan(2)
    assert set(plan(1)) == set(plan(2))
