"""Drive one target with coverage-guided fuzzing (atheris, which is libFuzzer), bounded in time and memory.

    python tests/fuzz/drive.py TARGET [--runs N] [--seconds S] [--corpus DIR] [--from MODULE]

Prints one line of JSON: `target`, `executions`, `seconds`, `executions_per_second`, `peak_rss_mb`, `crash` (what
escaped, None when nothing did) and `input` (the file that makes it escape). Ends with status 1 on a crash. Only the
modules of the target's own parser are instrumented. The corpus begins with the target's seeds, and keeps what reached
new lines: give the same directory again to go on. `python tests/fuzz/drive.py list` prints the names.

Half of the changes are libFuzzer's own, the others those of `mutate`, which reach into base64, JSON and CBOR.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, Final

TESTS: Final = Path(__file__).resolve().parents[1]
RUNS: Final = 100_000
SECONDS: Final = 60
RSS_MB: Final = 1024  # the largest admitted input takes a third of it
TIMEOUT_SECONDS: Final = 20  # of one input
TARGETS: Final = "fuzz.targets"
_STATISTIC: Final = re.compile(r"^stat::(\w+):\s+(\d+)$", re.MULTILINE)
_RUN: Final = "--one-process"


def drive(
    name: str,
    *,
    runs: int,
    seconds: int,
    corpus: Path,
    module: str = TARGETS,
    rss_mb: int = RSS_MB,
    timeout_seconds: int = TIMEOUT_SECONDS,
) -> dict[str, Any]:
    """Fuzz the target `name` of `module` in a process of its own; return what the JSON line holds."""
    with tempfile.TemporaryDirectory(prefix="cloister-fuzz-") as crashes:
        command = [sys.executable, str(Path(__file__).resolve()), name, _RUN, "--from", module, "--corpus", str(corpus)]
        command += [f"--instrument={name}" for name in import_module(module).TARGETS[name].modules]
        bounds = [
            f"-runs={runs}",
            f"-max_total_time={seconds}",
            f"-rss_limit_mb={rss_mb}",
            f"-timeout={timeout_seconds}",
            f"-artifact_prefix={crashes}/",
            "-print_final_stats=1",
            "-seed=1",
        ]
        done = subprocess.run(
            [*command, *bounds],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        ended = time.monotonic()
        found = {key: int(value) for key, value in _STATISTIC.findall(done.stdout)}
        began = re.search(r"^began (\d+\.\d+)$", done.stdout, re.MULTILINE)
        spent = ended - float(began[1]) if began else 0.0
        executions = found.get("number_of_executed_units", 0)
        result = {
            "target": name,
            "executions": executions,
            "seconds": round(spent, 2),
            "executions_per_second": round(executions / spent) if spent else 0,
            "peak_rss_mb": found.get("peak_rss_mb", 0),
            "crash": None,
            "input": None,
        }
        if done.returncode:
            result["crash"] = _reason(done.stdout)
            kept = [_keep(path, corpus) for path in sorted(Path(crashes).iterdir())]
            result["input"] = str(kept[0]) if kept else None
        return result


def _reason(output: str) -> str:
    """Return the exception that escaped, with its place, or what libFuzzer says."""
    _, found, trace = output.partition("Uncaught Python exception:")
    if not found:
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


def _fuzz(name: str, module: str, corpus: Path, instrumented: list[str], arguments: list[str]) -> None:
    """Fuzz in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=instrumented, enable_loader_override=False):
        target = import_module(module).TARGETS[name]
    errors, mutate = import_module("cloister.errors"), import_module("fuzz.mutate").mutate
    _fill(corpus, target.seeds(import_module("fuzz.coverage_report").vectors_directory()))

    def run(data: bytes) -> None:
        with contextlib.suppress(errors.CloisterError):
            target.run(data)

    def change(data: bytes, size: int, seed: int) -> bytes:
        return atheris.Mutate(data, size) if seed % 2 else mutate(data, seed)[:size]

    warnings.simplefilter("error")
    arguments = [sys.argv[0], *arguments, f"-max_len={target.ceiling + 1}", str(corpus)]
    atheris.Setup(arguments, run, custom_mutator=change)
    print(f"\nbegan {time.monotonic():.6f}", file=sys.stderr, flush=True)  # libFuzzer tells whole seconds only
    atheris.Fuzz()


def _fill(corpus: Path, seeds: list[bytes]) -> None:
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (corpus / sha256(seed).hexdigest()).write_bytes(seed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("--runs", type=int, default=RUNS, help="most executions")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="most seconds")
    parser.add_argument("--corpus", type=Path, help="directory; a temporary one when absent")
    parser.add_argument("--from", dest="module", default=TARGETS, help="module with the table of targets")
    parser.add_argument(_RUN, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--instrument", action="append", help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if options.one_process:
        _fuzz(options.target, options.module, options.corpus, options.instrument, rest)
        return 0
    targets = import_module(options.module).TARGETS
    if options.target == "list":
        print("\n".join(targets))
        return 0
    if rest or options.target not in targets:
        parser.error(f"no such target or option: {options.target} {' '.join(rest)}")
    directory = Path(tempfile.mkdtemp(prefix="cloister-fuzz-"))
    corpus = options.corpus or directory / "corpus"
    result = drive(options.target, runs=options.runs, seconds=options.seconds, corpus=corpus, module=options.module)
    if options.corpus or not result["crash"]:  # what makes it crash is kept
        shutil.rmtree(directory)
    print(json.dumps(result))
    return 1 if result["crash"] else 0


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    os.environ.setdefault("PYTHONHASHSEED", "0")
    sys.exit(main())
