"""Run the tests of some directories in a few pytest processes at once, each with a part of the files.

    tools/unit.py DIRECTORY... [-- PYTEST ARGUMENTS]

A plug-in that hands tests out one by one costs a tenth of the time here: all processes would read all files. What a
process prints is shown when it has ended. The status is the first one that is not zero.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

MOST = 8  # processes; more have too little to do
FILE_BYTES = 3000  # what a file costs besides its length
# Seconds per byte, as far as they differ: tests of the house run programs, those of the trust service sync to disk.
DEAR = {"architecture": 4, "trust": 3}


def cost_of(file: Path) -> int:
    """Return what the tests of a file cost, roughly, beside those of other files."""
    return (FILE_BYTES + file.stat().st_size) * DEAR.get(file.parent.name, 1)


def parts_of(files: Sequence[Path], count: int) -> list[list[Path]]:
    """Deal files out so that all parts cost about the same, the dearest first."""
    parts: list[list[Path]] = [[] for _ in range(count)]
    costs = [0] * count
    for file in sorted(files, key=lambda file: (-cost_of(file), file)):
        least = costs.index(min(costs))
        parts[least].append(file)
        costs[least] += cost_of(file)
    return [part for part in parts if part]


def run(directories: Sequence[Path], arguments: Sequence[str], count: int) -> int:
    """Run all tests below `directories` and return the status."""
    started = time.monotonic()
    files = [file for directory in directories for file in directory.rglob("test_*.py")]
    if not files:
        sys.stderr.write("no tests\n")
        return 2
    status = 0
    # Test modules are compiled once, not again in each process and in each program that tests start.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as directory:
        processes = []
        for number, part in enumerate(parts_of(files, count)):
            command = [sys.executable, "-m", "pytest", "-o", f"cache_dir=.pytest_cache/{number}", *arguments]
            with (Path(directory) / str(number)).open("wb") as output:
                processes.append(
                    subprocess.Popen([*command, *map(str, part)], stdout=output, stderr=output, env=environment)
                )
        for number, process in enumerate(processes):
            status = process.wait() or status
            sys.stdout.write((Path(directory) / str(number)).read_text("utf-8", "replace"))
            sys.stdout.flush()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = f"{time.monotonic() - started:.1f} s, {used.ru_utime + used.ru_stime:.1f} s of processor time"
    sys.stdout.write(f"{len(files)} files in {len(processes)} processes: {spent}\n")
    return status


def main() -> int:
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    count = min(len(os.sched_getaffinity(0)) + 2, MOST)  # two more than processors: tests also wait
    return run([Path(word) for word in words[:cut]], words[cut + 1 :], count)


if __name__ == "__main__":
    sys.exit(main())
