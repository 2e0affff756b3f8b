"""How much of each parser the inputs reach: seeds and deterministic changes of them, measured line by line.

    python tests/fuzz/coverage_report.py [--executions N] [--module NAME]... [--lines]

Prints a table (module, lines, covered, executions) and ends with status 1 when a module is below `ENOUGH`
(or below its own line in `LOWER`). What is
never run cannot have been shown to fail closed. Vectors are found by `CLOISTER_VECTORS`; without them the inputs made
by the fakes must do.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import coverage

ENOUGH: Final = 90.0  # per cent of the lines of each module
LOWER: Final = {  # what is more than a parser: the rest of its lines is run by unit tests
    "cloister.crypto.keystore.interface": 60.0,  # words of errors about places
    "cloister.crypto.keystore.sealedroot": 70.0,  # passphrases: each costs a second
    "cloister.crypto.keystore.uri": 60.0,  # files with secrets
    "cloister.crypto.sealedsecret": 70.0,  # opening a secret that is verified
    "cloister.oci.archive": 80.0,  # copying out of an archive
    "cloister.crypto.openpgp": 40.0,  # what opens only with a key that fits
    "cloister.crypto.openpgpkeys": 50.0,  # keys that are locked, and of other kinds
    "cloister.crypto.openpgpverify": 80.0,  # algorithms that no key here is for
    "cloister.oci.signing.bundle": 80.0,  # older forms that are written
    "cloister.oci.signing.fulcio": 60.0,  # chains and logs that are trusted
    "cloister.oci.signing.keys": 60.0,  # signatures that hold
    "cloister.oci.signing.lookaside": 70.0,  # fetching
    "cloister.oci.signing.notation": 80.0,  # signing
    "cloister.oci.signing.policyjson": 70.0,  # identities are matched by unit tests
    "cloister.oci.signing.rekor": 30.0,  # proofs, which bundles bring
    "cloister.oci.signing.trustpolicy": 60.0,  # judging what was verified
    "cloister.oci.credentials": 40.0,  # files and helpers
    "cloister.oci.mirrors": 60.0,  # asking one place after the other
    "cloister.oci.distribution": 60.0,  # pushing
    "cloister.oci.encryption.jwe": 80.0,  # algorithms that no key here is for
    "cloister.oci.encryption.keyfiles": 70.0,  # files and passwords
    "cloister.oci.encryption.packet": 80.0,  # older forms that are written
    "cloister.oci.encryption.pgp": 60.0,  # writing
    "cloister.oci.encryption.pkcs11": 60.0,  # tokens
    "cloister.oci.layer": 80.0,  # what only root may do
    "cloister.oci.location": 40.0,  # opening and writing places
    "cloister.oci.referrers": 40.0,  # attaching
    "cloister.oci.session": 80.0,  # accounts, and answers that ask for them
    "cloister.oci.rootfs": 80.0,  # depths no small archive has
    "cloister.oci.signing.simplesigning": 70.0,  # several signatures of one image
    "cloister.tee.collateral.cache": 70.0,  # writing, locking and dropping files
    "cloister.tee.nvidia_gpu.reference": 80.0,  # comparing measurements with manifests that match
}
MOST: Final = 16 * 1024 * 1024  # inputs beyond this ceiling cost more than they show
EXECUTIONS: Final = 400  # changed inputs of each target, besides its seeds
ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One module: its lines, those that ran, how many inputs its targets were given, and which lines did not run."""

    module: str
    lines: int
    covered: int
    executions: int
    missing: tuple[int, ...]

    @property
    def percent(self) -> float:
        return 100.0 * self.covered / self.lines if self.lines else 100.0


def measure(executions: int, modules: list[str]) -> list[Row]:
    """Run every target of one of `modules`, or of any, and return a row for every module it names."""
    measured = coverage.Coverage(data_file=None, source_pkgs=["cloister"], omit=["*/cloister/testing/*"])
    measured.start()
    runs: Counter[str] = Counter()
    try:
        targets = import_module("fuzz.targets").TARGETS  # not before: what a module does when imported counts
        errors = import_module("cloister.errors")
        mutate = import_module("fuzz.mutate").mutate
        shapes = import_module("fuzz.hostile").shapes
        vectors = vectors_directory()
        for target in targets.values():
            if modules and not set(modules) & set(target.modules):
                continue
            seeds = target.seeds(vectors)
            over = [bytes(target.ceiling + 1), b'{"a":"'.ljust(target.ceiling + 1)] if target.ceiling < MOST else []
            costly = [data for size in (600, 40_000) for _, data in shapes(size, seeds[0])]
            changed = [mutate(seeds[n % len(seeds)], n) for n in range(executions)]
            inputs = [*seeds, b"", *over, *costly, *changed]
            for data in inputs:
                with contextlib.suppress(errors.CloisterError):
                    target.run(data)
            runs.update(dict.fromkeys(target.modules, len(inputs)))
    finally:
        measured.stop()
    return [_row(measured, name, runs[name]) for name in sorted(runs)]


def vectors_directory() -> Path | None:
    """Return the directory of evidence vectors, where there is one."""
    base = Path(os.environ.get("CLOISTER_VECTORS") or ROOT.parent / "shared" / "vectors")
    return base / "evidence" if (base / "evidence").is_dir() else None


def _row(measured: coverage.Coverage, module: str, executions: int) -> Row:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"no module {module}")
    _, statements, _, missing, _ = measured.analysis2(spec.origin)
    return Row(
        module=module,
        lines=len(statements),
        covered=len(statements) - len(missing),
        executions=executions,
        missing=tuple(missing),
    )


def table(rows: list[Row]) -> str:
    """Return the rows as text."""
    head = f"{'module':<44} {'lines':>5} {'covered':>8} {'executions':>10}"
    return "\n".join(
        [head, *(f"{row.module:<44} {row.lines:>5} {row.percent:>7.1f}% {row.executions:>10}" for row in rows)]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executions", type=int, default=EXECUTIONS)
    parser.add_argument("--module", action="append", default=[], help="show these only")
    parser.add_argument("--enough", type=float, default=ENOUGH, help="per cent that each module needs")
    parser.add_argument("--lines", action="store_true", help="name the lines that did not run")
    options = parser.parse_args()
    rows = measure(options.executions, options.module)
    rows = [row for row in rows if not options.module or row.module in options.module]
    print(table(rows))
    low = [row for row in rows if row.percent < min(options.enough, LOWER.get(row.module, options.enough))]
    for row in rows if options.lines else low:
        print(f"{row.module}: not run: {', '.join(map(str, row.missing))}")
    return 1 if low or not rows else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    warnings.simplefilter("error")
    sys.exit(main())
