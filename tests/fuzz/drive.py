"""Drive one target with coverage-guided fuzzing (atheris, which is libFuzzer), bounded in time and memory.

    python tests/fuzz/drive.py TARGET [--runs N] [--seconds S] [--corpus DIR] [--from MODULE]

Prints one line of JSON: `target`, `executions`, `seconds`, `executions_per_second`, `peak_rss_mb`, `crash` (what
escaped, None when nothing did) and `input` (the file that makes it escape). Ends with status 1 on a crash. Only the
modules of the target's own parser are instrumented. The corpus begins with the target's seeds, and keeps what reached
new lines: give the same directory again to go on. `python tests/fuzz/drive.py list` prints the names.

A target that does not end is a crash too: one input by libFuzzer's own limit, all else (seeds, imports, a target that
will not be interrupted) by being killed when its time is over.

Half of the changes are libFuzzer's own, the others those of `mutate`, which reach into base64, JSON and CBOR.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Mapping
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, Final

TESTS: Final = Path(__file__).resolve().parents[1]
RUNS: Final = 100_000
SECONDS: Final = 60
RSS_MB: Final = 1024  # the largest admitted input takes a third of it
TIMEOUT_SECONDS: Final = 20  # of one input
START_SECONDS: Final = 60  # to import everything, and again for what a target does before and after its executions
LONGEST: Final = 8 * 1024 * 1024  # of the inputs, also of readers that admit more: libFuzzer makes room for all of it
TARGETS: Final = "fuzz.targets"
_STATISTIC: Final = re.compile(r"^stat::(\w+):\s+(\d+)$", re.MULTILINE)
_OUTPUT: Final = re.compile(r"^target (\S+)$(.*?^status -?\d+$)", re.MULTILINE | re.DOTALL)
_RUN: Final = "--in-forks"
_KILLED: Final = "ERROR: did not end in {} s and was killed"


def drive(
    corpora: Mapping[str, Path],
    *,
    runs: int,
    seconds: int,
    module: str = TARGETS,
    rss_mb: int = RSS_MB,
    timeout_seconds: int = TIMEOUT_SECONDS,
    start_seconds: int = START_SECONDS,
) -> list[dict[str, Any]]:
    """Fuzz targets, one after the other, each in a process of its own; return what the JSON lines hold.

    Args:
        corpora: directory of the corpus by name of the target.
        runs: most executions of each.
        seconds: most seconds of each.
        module: where the table of targets is.
        rss_mb: most memory of each process.
        timeout_seconds: most time of one input.
        start_seconds: most time to import, and most time of one target beside its executions.
    """
    most = seconds + timeout_seconds + start_seconds
    targets = import_module(module).TARGETS
    with tempfile.TemporaryDirectory(prefix="cloister-fuzz-") as directory:
        command = [sys.executable, str(Path(__file__).resolve()), _RUN, "--from", module, "--crashes", directory]
        command += ["--most", str(most)]
        command += [f"--in={name}={corpus}" for name, corpus in corpora.items()]
        command += [f"--instrument={one}" for one in sorted({m for name in corpora for m in targets[name].modules})]
        bounds = [
            f"-runs={runs}",
            f"-max_total_time={seconds}",
            f"-rss_limit_mb={rss_mb}",
            f"-timeout={timeout_seconds}",
            "-print_final_stats=1",
            "-seed=1",
        ]
        output = _output([*command, *bounds], start_seconds + len(corpora) * (most + 1))
        outputs = dict(_OUTPUT.findall(output))
        crashes = {name: Path(directory) / str(number) for number, name in enumerate(corpora)}
        return [_result(name, outputs.get(name, output), crashes[name], corpus) for name, corpus in corpora.items()]


def _output(command: list[str], most: float) -> str:
    """Return what a program and its children print; none of them outlives `most` seconds."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        try:
            process.wait(most)
        except subprocess.TimeoutExpired:
            output.write(f"\n{_KILLED.format(most)}\n")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return output.read()


def _result(name: str, output: str, crashes: Path, corpus: Path) -> dict[str, Any]:
    found = {key: int(value) for key, value in _STATISTIC.findall(output)}
    times = [float(found) for found in re.findall(r"^(?:began|ended) (\d+\.\d+)$", output, re.MULTILINE)]
    status = re.search(r"^status (-?\d+)$", output, re.MULTILINE)
    executions, spent = found.get("number_of_executed_units", 0), times[-1] - times[0] if times else 0.0
    kept = [_keep(path, corpus) for path in sorted(crashes.glob("*"))]
    return {
        "target": name,
        "executions": executions,
        "seconds": round(spent, 2),
        "executions_per_second": round(executions / spent) if spent else 0,
        "peak_rss_mb": found.get("peak_rss_mb", 0),
        "crash": None if status is not None and int(status[1]) == 0 else _reason(output),
        "input": str(kept[0]) if kept else None,
    }


def _reason(output: str) -> str:
    """Return the exception that escaped, with its place, or what libFuzzer says."""
    _, found, trace = output.partition("Uncaught Python exception:")
    if not found:
        killed = re.search(r"^status -(\d+)$", output, re.MULTILINE)
        if killed and "ERROR" not in output:
            return f"killed by {signal.Signals(int(killed[1])).name}"
        lines = [line for line in output.splitlines() if "ERROR" in line or "Error" in line]
        return (lines or output.splitlines()[-1:] or ["no output"])[0][:300]
    lines = [line for line in trace.splitlines() if line.strip() and not line.startswith("==")]
    places = [line.strip() for line in lines if "cloister/" in line]
    message = next((line for line in lines if not line.startswith((" ", "=", "Traceback", "File"))), "")
    return f"{message.strip()[:200]} {places[-1] if places else ''}".strip()


def _keep(path: Path, corpus: Path) -> Path:
    """Keep the input beside the corpus, not in it: the next run must begin."""
    crashes = corpus.with_name(corpus.name + "-crashes")
    crashes.mkdir(parents=True, exist_ok=True)
    kept = crashes / path.name
    kept.write_bytes(path.read_bytes())
    return kept


def _fuzz_each(
    module: str, corpora: Mapping[str, Path], crashes: Path, instrumented: list[str], bounds: list[str], most: float
) -> None:
    """Import once, instrumented, then fuzz each target in a fork: to import takes longer than a short run."""
    import atheris

    with atheris.instrument_imports(include=instrumented, enable_loader_override=False):
        targets = import_module(module).TARGETS
    for number, (name, corpus) in enumerate(corpora.items()):
        (crashes / str(number)).mkdir()
        print(f"\ntarget {name}", flush=True)
        child = os.fork()
        if not child:
            try:
                _fuzz(targets[name], corpus, [f"-artifact_prefix={crashes / str(number)}/", *bounds])
            except SystemExit:  # something escaped: C's own exit makes libFuzzer keep the input, and ends nothing else
                ctypes.CDLL(None).exit(1)
            finally:
                traceback.print_exc()
                os._exit(1)
        status = _status_of(child, most)
        print(f"\nended {time.monotonic():.6f}\nstatus {status}", flush=True)


def _status_of(child: int, most: float) -> int:
    """Wait for a process, which is killed when it does not end; return its exit status, or its signal as -N."""
    watched = os.pidfd_open(child)
    with open(watched, "rb", buffering=0):
        if not select.select([watched], [], [], most)[0]:
            print(f"\n{_KILLED.format(most)}", flush=True)
            os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _fuzz(target: Any, corpus: Path, bounds: list[str]) -> None:  # Any: `Target`, imported after instrumentation
    """Fuzz in this process, which libFuzzer ends."""
    import atheris

    errors, mutate = import_module("cloister.errors"), import_module("fuzz.mutate").mutate
    _fill(corpus, target.seeds(import_module("fuzz.coverage_report").vectors_directory()))

    def run(data: bytes) -> None:
        with contextlib.suppress(errors.CloisterError):
            target.run(data)

    def change(data: bytes, size: int, seed: int) -> bytes:
        return atheris.Mutate(data, size) if seed % 2 else mutate(data, seed)[:size]

    warnings.simplefilter("error")
    arguments = [sys.argv[0], *bounds, f"-max_len={min(target.ceiling, LONGEST) + 1}", str(corpus)]
    atheris.Setup(arguments, run, custom_mutator=change)
    print(f"\nbegan {time.monotonic():.6f}", flush=True)  # libFuzzer tells whole seconds only
    atheris.Fuzz()


def _fill(corpus: Path, seeds: list[bytes]) -> None:
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (corpus / sha256(seed).hexdigest()).write_bytes(seed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="its name; `list` lists all")
    parser.add_argument("--runs", type=int, default=RUNS, help="most executions")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="most seconds")
    parser.add_argument("--corpus", type=Path, help="directory; a temporary one when absent")
    parser.add_argument("--from", dest="module", default=TARGETS, help="module with the table of targets")
    options = parser.parse_args()
    targets = import_module(options.module).TARGETS
    if options.target == "list":
        print("\n".join(targets))
        return 0
    if options.target not in targets:
        parser.error(f"no such target: {options.target}")
    directory = Path(tempfile.mkdtemp(prefix="cloister-fuzz-"))
    corpora = {options.target: options.corpus or directory / "corpus"}
    (result,) = drive(corpora, runs=options.runs, seconds=options.seconds, module=options.module)
    if options.corpus or not result["crash"]:  # what makes it crash is kept
        shutil.rmtree(directory)
    print(json.dumps(result))
    return 1 if result["crash"] else 0


def child() -> None:
    """What `drive` runs."""
    parser = argparse.ArgumentParser()
    parser.add_argument(_RUN, action="store_true")
    parser.add_argument("--from", dest="module")
    parser.add_argument("--crashes", type=Path)
    parser.add_argument("--in", dest="corpora", action="append")
    parser.add_argument("--instrument", action="append")
    parser.add_argument("--most", type=float)
    options, bounds = parser.parse_known_args()
    corpora = {name: Path(corpus) for name, _, corpus in (text.partition("=") for text in options.corpora)}
    _fuzz_each(options.module, corpora, options.crashes, options.instrument, bounds, options.most)


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    if _RUN in sys.argv:
        child()
    else:
        sys.exit(main())
