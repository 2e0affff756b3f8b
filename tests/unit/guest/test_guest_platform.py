"""Which place the agent is in, from its command line alone; background work; reports; what the console shows."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

import pytest

from cloister.errors import RequestRefused, Unavailable
from cloister.guest.background import CONTAINER_LIBRARIES, PULL_LIBRARIES, Background, Libraries
from cloister.guest.platform import Simulated, VirtualMachine, choose_platform
from cloister.guest.report import Reporter, Stopwatch, process_start_ms, uptime_ms
from cloister.protocol.guestapi import PHASES, EventEnvelope, FailedEvent, HelloEvent, decode_from_guest

SOURCE = Path(__file__).resolve().parents[3] / "src"
OPTIONS = ["--control-socket", "c", "--streams-socket", "s", "--initdata", "i", "--simulation-key", "k", "--state", "d"]


def agent(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = (
        f"import sys; sys.path[:0] = [{str(SOURCE)!r}, {sysconfig.get_path('purelib')!r}]; "
        "from cloister.guest.agent import main; sys.exit(main())"
    )
    return subprocess.run(
        [sys.executable, "-ISB", "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_no_arguments_is_the_virtual_machine() -> None:
    platform = choose_platform([])
    assert isinstance(platform, VirtualMachine)
    assert (platform.tee, platform.in_vm, platform.work) == ("tpm", True, "/run/cloister")


def test_simulated_platform_is_named() -> None:
    platform = choose_platform(["--platform", "simulated", *OPTIONS])
    assert isinstance(platform, Simulated)
    assert (platform.tee, platform.in_vm) == ("cloister-simulated", False)
    assert platform.work == os.path.abspath("d")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--platform"],
        ["--platform", "tpm"],
        ["--help"],
        ["--platform", "simulated"],
        ["--platform", "simulated", *OPTIONS[:-1]],
        ["--platform", "simulated", *OPTIONS, "--state", "twice"],
        ["--platform", "simulated", *OPTIONS, "--debug", "1"],
    ],
)
def test_other_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(RequestRefused) as caught:
        choose_platform(arguments)
    assert caught.value.code == "guest.arguments"


def test_console_gets_fixed_words(tmp_path: Path) -> None:
    canary = f"/nonexistent-{tmp_path.name}"
    result = agent("--platform", "simulated", *[canary if word in "cki" else word for word in OPTIONS])
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == "cloister: guest.ports.absent\n"


def test_wrong_arguments_reach_the_console_as_a_code() -> None:
    result = agent("--secret-argument")
    assert (result.returncode, result.stderr) == (1, "cloister: guest.arguments\n")


def test_virtual_machine_code_stays_out_of_processes() -> None:
    """Without arguments on a machine that is no pod VM the agent says so and ends, before it touches the network."""
    program = (
        f"import sys; sys.path[:0] = [{str(SOURCE)!r}, {sysconfig.get_path('purelib')!r}]; "
        "from cloister.guest import ports; ports._APPEAR_SECONDS = 0.05; ports._PORTS = '/nonexistent'; "
        "from cloister.guest.agent import main; sys.exit(main([]))"
    )
    result = subprocess.run(
        [sys.executable, "-ISB", "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stderr) == (1, "cloister: guest.ports.absent\n")


def test_simulated_files(tmp_path: Path) -> None:
    platform = choose_platform(["--platform", "simulated", *[str(tmp_path / word) if word in "csikd" else word
                                                             for word in OPTIONS]])  # fmt: skip
    with pytest.raises(Unavailable):
        platform.read_initdata(lambda: None)
    assert isinstance(platform.resolv_conf(), bytes)
    spools = [platform.spool(), platform.spool()]
    for spool in spools:
        spool.append(b"x")
        assert spool.chunk(0) == b"x"
    for spool in spools:
        spool.close()
    platform.bring_network_up()


# --- background work ---


def test_background_hands_its_error_over() -> None:
    def work() -> None:
        raise Unavailable("guest.init.network", "no network")

    task = Background(work, "test")
    with pytest.raises(Unavailable):
        task.wait()
    with pytest.raises(Unavailable):
        task.raise_early()


def test_background_is_beside() -> None:
    gate = threading.Event()
    task = Background(lambda: gate.wait(20) and None, "test")
    task.raise_early()
    gate.set()
    task.wait()


@pytest.mark.parametrize("names", [PULL_LIBRARIES, CONTAINER_LIBRARIES])
def test_libraries_are_loaded_for_everybody_who_waits(names: tuple[str, ...]) -> None:
    libraries = Libraries(names)
    waiting = [Background(libraries.wait, "test") for _ in range(3)]
    libraries.wait()
    assert set(names) <= set(sys.modules)
    for other in waiting:
        other.wait()


def test_a_library_that_is_missing_is_an_error_for_everybody() -> None:
    libraries = Libraries(("cloister.guest.report", "cloister.nowhere"))
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError):
            libraries.wait()


# --- reports ---


def test_events_are_of_the_schema() -> None:
    sent: list[bytes] = []
    reporter = Reporter(sent.append)
    reporter.hello("tpm")
    for name in PHASES:
        reporter.phase(name, 5, "c")
    reporter.ready("sha256:0")
    reporter.failed(Unavailable("guest.x.y", "no"))
    reporter.exit("c", "", 7)
    decoded = [decode_from_guest(frame) for frame in sent]
    assert all(isinstance(item, EventEnvelope) for item in decoded)
    events = [item.event for item in decoded if isinstance(item, EventEnvelope)]
    assert isinstance(events[0], HelloEvent)
    assert isinstance(events[-2], FailedEvent)


def test_host_that_does_not_listen_stops_nothing() -> None:
    def send(_: bytes) -> None:
        raise BrokenPipeError

    Reporter(send).hello("tpm")


def test_clocks() -> None:
    watch = Stopwatch()
    time.sleep(0.01)
    assert 10 <= watch.ms() < 10_000
    assert 0 < process_start_ms() <= uptime_ms()
