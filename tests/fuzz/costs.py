"""What the dearest inputs cost: for each target, inputs of the largest size its reader admits, of every shape.

    python tests/fuzz/costs.py [TARGET]... [--from MODULE] [--seconds S]

Each target runs in a process of its own. Prints a table (target, bytes, worst seconds of one input, its shape, peak
memory) and ends with status 1 when an input escapes, takes more than `SECONDS` of a processor, or the process more than
`memory_mb` of memory. An input that takes twice the processor time, or twelve times by the clock, ends its process,
which is told as a fault.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

SECONDS: Final = 10.0  # of a processor, for one input; the worst takes a third
_PROCESSOR_TIMES, _CLOCK_TIMES = 2, 12  # of the seconds: after that an input is ended; other work may share the machine
WHOLE: Final = 16 * 1024 * 1024  # of readers that admit more, only a few shapes are tried


def memory_mb(ceiling: int) -> int:
    """Return the most memory a process may take whose reader admits `ceiling` bytes.

    Imports take 90; beyond them JSON of a million empty members takes 25 times its text, an archive five times.
    """
    return 448 if ceiling <= WHOLE else 448 + 5 * ceiling // 1024 // 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The worst of one target. `escaped` tells what came out that is no refusal."""

    target: str
    size: int
    seconds: float
    shape: str
    peak_mb: int
    escaped: str

    @property
    def fault(self) -> str:
        """What is wrong, empty when nothing is."""
        if self.escaped:
            return self.escaped
        if self.seconds > SECONDS:
            return f"{self.seconds:.1f} s for {self.shape}"
        return f"{self.peak_mb} MiB" if self.peak_mb > memory_mb(self.size) else ""


def costs(
    targets: Mapping[str, Any], seconds: float = SECONDS
) -> Iterator[Cost]:  # Any: `Target`, which is imported in the child
    """Yield the cost of each target."""
    prepare = import_module("fuzz.hostile").prepare
    for name, target in sorted(targets.items(), key=lambda pair: pair[1].ceiling):
        if target.ceiling <= WHOLE:
            prepare(target.ceiling)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            status = 1
            try:
                os.write(writing, repr(asdict(_worst(name, target, seconds))).encode())
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            told = pipe.read()
        _, status, _ = os.wait4(child, 0)
        if not told:
            code = os.waitstatus_to_exitcode(status)
            how = f"did not finish: {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
            yield Cost(target=name, size=target.ceiling, seconds=0, shape="", peak_mb=0, escaped=how)
        else:
            yield Cost(**import_module("ast").literal_eval(told.decode()))


def _worst(name: str, target: Any, seconds: float) -> Cost:
    errors, hostile = import_module("cloister.errors"), import_module("fuzz.hostile")
    inputs = hostile.shapes if target.ceiling <= WHOLE else hostile.few
    worst, shape, escaped = 0.0, "", ""
    for label, data in inputs(target.ceiling, target.seeds(None)[0]):
        signal.setitimer(signal.ITIMER_PROF, _PROCESSOR_TIMES * seconds)
        signal.setitimer(signal.ITIMER_REAL, _CLOCK_TIMES * seconds)
        began = time.process_time()
        try:
            target.run(data)
        except errors.CloisterError:
            pass
        except Exception as err:  # noqa: BLE001  # whatever it is, it is told
            escaped = escaped or f"{label}: {type(err).__name__} escaped: {err}"[:200]
        spent = time.process_time() - began
        if spent >= worst:
            worst, shape = spent, label
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return Cost(target=name, size=target.ceiling, seconds=round(worst, 3), shape=shape, peak_mb=peak, escaped=escaped)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="TARGET", nargs="*", help="all when none is named")
    parser.add_argument("--from", dest="module", default="fuzz.targets", help="module with the table of targets")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="most processor time of one input")
    options = parser.parse_args()
    targets = import_module(options.module).TARGETS
    chosen = {name: targets[name] for name in options.names or targets}
    faults = 0
    print(f"{'target':<28} {'bytes':>9} {'seconds':>8} {'MiB':>5}  shape")
    for cost in costs(chosen, options.seconds):
        print(f"{cost.target:<28} {cost.size:>9} {cost.seconds:>8.3f} {cost.peak_mb:>5}  {cost.shape} {cost.fault}")
        faults += bool(cost.fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    warnings.simplefilter("error")
    sys.exit(main())
