"""No bytes get anything but a refusal out of a parser, every parser is fuzzed, and no input costs too much."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pkgutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import CloisterError
from fuzz import planted
from fuzz.costs import SECONDS, Cost, memory_mb
from fuzz.coverage_report import ENOUGH, LOWER
from fuzz.drive import drive
from fuzz.mutate import mutate
from fuzz.targets import NOT_PARSERS, TARGETS, Target

FUZZ = Path(__file__).resolve().parent
PACKAGES = ("cloister.wire", "cloister.crypto", "cloister.rats", "cloister.tee", "cloister.oci")
RUNS, RUN_SECONDS, PROCESSES = 1_000, 3, 2
ENDLESS = 60  # seconds by the clock for one small input, which takes milliseconds


# -- every parser is there -----------------------------------------------------------------------------------


def modules_of(package: str) -> Iterator[str]:
    """Yield the modules below a package; its `__init__` files hold no parser."""
    for found in pkgutil.walk_packages(import_module(package).__path__, f"{package}."):
        if not found.ispkg:
            yield found.name


def forgotten(modules: set[str]) -> set[str]:
    """Return those that neither a target nor `NOT_PARSERS` names."""
    return modules - {name for target in TARGETS.values() for name in target.modules} - NOT_PARSERS.keys()


def test_every_module_is_a_targets_or_is_said_to_be_no_parser() -> None:
    assert forgotten({name for package in PACKAGES for name in modules_of(package)}) == set()
    assert forgotten({"cloister.tee.sev_snp.abi", "cloister.tee.new.abi"}) == {"cloister.tee.new.abi"}


def test_what_is_named_is_there_and_named_once() -> None:
    targeted = {name for target in TARGETS.values() for name in target.modules}
    assert {name for name in targeted | NOT_PARSERS.keys() if find_spec(name) is None} == set()
    assert targeted & NOT_PARSERS.keys() == set()
    assert all(NOT_PARSERS.values())


def test_the_shared_vectors_are_among_the_seeds(vectors: Path) -> None:
    """Every pattern of a target still finds files: a moved vector would be missed by nobody else."""
    evidence = vectors / "evidence"
    more = {name for name, target in TARGETS.items() if len(target.seeds(evidence)) > len(target.seeds(None))}
    assert more >= {f"evidence/{tee}" for tee in ("snp", "tdx", "sgx", "nitro", "tpm", "cca", "csv", "se", "nvidia")}
    assert len(more) >= 30


# -- hypothesis ----------------------------------------------------------------------------------------------


class Endless(BaseException):
    """One input takes longer than any may; no parser's handler of exceptions catches this."""


def attempt(target: Target, data: bytes, seconds: float = ENDLESS) -> None:
    def give_up(number: int, frame: object) -> None:
        raise Endless(f"{len(data)} bytes are not done in {seconds} s: {data[:64].hex()}")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with contextlib.suppress(CloisterError):
            target.run(data)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_input_without_an_end_is_a_failure() -> None:
    with pytest.raises(Endless, match="78"):
        attempt(planted.TARGETS["loop"], b"x", 0.2)
    attempt(planted.TARGETS["loop"], b"", 0.2)


@functools.cache
def seeds_of(name: str) -> list[bytes]:
    return TARGETS[name].seeds(None)


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.binary(max_size=2_000))
def test_any_bytes_are_refused_or_read(name: str, data: bytes) -> None:
    attempt(TARGETS[name], data)


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
def test_changed_good_inputs_are_refused_or_read(name: str, data: st.DataObject) -> None:
    changed = data.draw(st.sampled_from(seeds_of(name)))
    for number in data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3)):
        changed = mutate(changed, number)
    attempt(TARGETS[name], changed)


def test_a_change_is_the_same_each_time_and_reaches_inside() -> None:
    seed = next(data for data in seeds_of("evidence/tdx") if data[:1] == b"{")
    changes = [mutate(seed, number) for number in range(300)]
    assert changes == [mutate(seed, number) for number in range(300)]
    inside = 0
    for change in changes:
        try:
            quote = json.loads(change)["quote"]
            inside += isinstance(quote, str) and quote != json.loads(seed)["quote"] and len(quote) > 1000
        except (ValueError, KeyError, TypeError):
            pass
    assert inside > 50


# -- guided by coverage --------------------------------------------------------------------------------------


def test_guided_fuzzing_finds_nothing(tmp_path: Path) -> None:
    """Every target in a process of its own, bounded; a longer run is one command (CONTRIBUTING)."""

    def some(names: list[str]) -> list[dict[str, object]]:
        corpora = {name: tmp_path / name.replace("/", "-") for name in names}
        return drive(corpora, runs=RUNS, seconds=RUN_SECONDS)

    with ThreadPoolExecutor(PROCESSES) as pool:
        results = [result for part in pool.map(some, halves()) for result in part]
    for result in results:
        print(json.dumps(result))
    assert {str(result["target"]) for result in results} == set(TARGETS)
    assert [result for result in results if result["crash"]] == []
    assert [result["target"] for result in results if not result["executions"]] == []


def halves() -> list[list[str]]:
    return [list(TARGETS)[start::PROCESSES] for start in range(PROCESSES)]


@pytest.mark.parametrize(("name", "told"), [("crash", "KeyError"), ("loop", "timeout"), ("memory", "out-of-memory")])
def test_guided_fuzzing_finds_planted_faults(tmp_path: Path, name: str, told: str) -> None:
    (found,) = drive(
        {name: tmp_path / "corpus"},
        runs=300_000,
        seconds=60,
        module="fuzz.planted",
        rss_mb=400,
        timeout_seconds=2,
    )
    assert told in str(found["crash"])
    assert found["input"] is not None
    if name == "crash":
        with pytest.raises(KeyError):
            planted.TARGETS[name].run(Path(str(found["input"])).read_bytes())


@pytest.mark.parametrize(
    ("name", "told"), [("deaf", "did not end in"), ("seeds", "did not end in"), ("dead", "killed by SIGKILL")]
)
def test_a_target_that_does_not_finish_is_a_crash(tmp_path: Path, name: str, told: str) -> None:
    """One that libFuzzer's clock does not reach, one that never begins, one that is killed; the next one still runs."""
    corpora = {name: tmp_path / name, "careful": tmp_path / "careful"}
    limits = {"runs": 1_000, "seconds": 3, "timeout_seconds": 1, "start_seconds": 4}
    found, careful = drive(corpora, module="fuzz.planted", **limits)  # type: ignore[arg-type]  # numbers as named
    assert told in str(found["crash"])
    assert (careful["crash"], careful["executions"]) == (None, 1_000)


def test_an_import_that_does_not_finish_is_a_crash_of_every_target(tmp_path: Path) -> None:
    corpora = {name: tmp_path / name for name in ("crash", "careful")}
    limits = {"runs": 9, "seconds": 1, "timeout_seconds": 1, "start_seconds": 1}
    for found in drive(corpora, module="fuzz.planted_import", **limits):  # type: ignore[arg-type]  # as named
        assert "did not end in" in str(found["crash"])
        assert found["executions"] == 0


def test_a_careful_parser_is_let_pass(tmp_path: Path) -> None:
    """Beside one that crashes, which must not take it along."""
    corpora = {name: tmp_path / name for name in ("crash", "careful")}
    crashed, found = drive(corpora, runs=300_000, seconds=9, module="fuzz.planted")
    assert crashed["crash"]
    assert (found["crash"], found["executions"]) == (None, 300_000)
    assert int(str(found["peak_rss_mb"])) > 0


def test_the_command_prints_one_line_of_json(tmp_path: Path) -> None:
    options = ("--runs", "200", "--seconds", "5", "--corpus", str(tmp_path / "corpus"))
    done = run("drive.py", "wire/cbor", *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["target"] == "wire/cbor"
    assert len(list((tmp_path / "corpus").iterdir())) > 5
    bad = run(
        "drive.py",
        "crash",
        "--from",
        "fuzz.planted",
        *options[:1],
        "300000",
        *options[2:4],
        "--corpus",
        str(tmp_path / "other"),
    )
    assert bad.returncode == 1
    assert run("drive.py", "no-such-target").returncode == 2


# -- coverage and cost ---------------------------------------------------------------------------------------


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FUZZ / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )


def test_inputs_reach_nine_tenths_of_every_parser() -> None:
    done = run("coverage_report.py")
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines()[1:]}
    assert set(rows) == {name for target in TARGETS.values() for name in target.modules}
    assert all(float(row[2].rstrip("%")) >= LOWER.get(name, ENOUGH) for name, row in rows.items())


def test_a_parser_that_is_not_reached_fails_the_report() -> None:
    chosen = ("--executions", "9", "--module", "cloister.tee.sev_snp.vek")
    done = run("coverage_report.py", *chosen, "--enough", "100")
    assert done.returncode == 1
    assert "cloister.tee.sev_snp.vek: not run: " in done.stdout
    assert run("coverage_report.py", *chosen, "--enough", "50").returncode == 0


def test_the_largest_inputs_end_in_time_and_memory() -> None:
    with ThreadPoolExecutor(PROCESSES) as pool:
        parts = list(pool.map(lambda names: run("costs.py", *names), halves()))
    for done in parts:
        print(done.stdout)
        assert done.returncode == 0, done.stdout + done.stderr
    assert sum(len(done.stdout.splitlines()) - 1 for done in parts) == len(TARGETS)


def test_costs_of_an_input_without_an_end_are_too_high() -> None:
    done = run("costs.py", "loop", "careful", "--from", "fuzz.planted", "--seconds", "0.5")
    assert done.returncode == 1, done.stdout + done.stderr
    loop, careful = sorted(done.stdout.splitlines()[1:], key=lambda line: line.startswith("careful"))
    assert loop.endswith("did not finish: SIGPROF") and careful.startswith("careful") and "finish" not in careful


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seconds": SECONDS + 1, "shape": "zeros"}, "11.0 s for zeros"),
        ({"peak_mb": memory_mb(1000) + 1}, "MiB"),
        ({"escaped": "KeyError"}, "KeyError"),
        ({}, ""),
    ],
)
def test_what_costs_too_much_is_told(changes: dict[str, object], told: str) -> None:
    members = {"target": "t", "size": 1000, "seconds": 0.1, "shape": "", "peak_mb": 9, "escaped": "", **changes}
    assert told in Cost(**members).fault  # type: ignore[arg-type]  # members as named
    assert bool(Cost(**members).fault) is bool(told)  # type: ignore[arg-type]  # members as named
