"""Verification of evidence of every platform beside the bare cryptography on the same bytes, and beside `dcap-qvl`.

    python bench/evidence.py [--seconds 2] [--only snp,tdx] [--check]

Each row is a piece of evidence of the shared vectors (`CLOISTER_VECTORS`), or one that a fake device signed where no
vector is complete. Before anything is timed, the evidence is examined as `cloister evidence verify` does it: the
verdict must be `accept`, and every claim the one that `cases.json` names; `dcap-qvl` must come to the same status.

`warm` is what a service sees: known chip, known collateral, new evidence. Its floor are the signatures that are new
with each piece of evidence. `cold` begins with every cache empty; its floor are all signatures up to the root. `new
platform` is a machine never seen before under known collateral. `whole` is the warm verification with all that follows:
binding, appraisal by the strict policy, advisories; it is for information. `dcap-qvl` keeps nothing between two calls;
its collateral is parsed beforehand.

All are timed in turn in one process, in CPU time, so that other work on the machine meets all alike. Times are
microseconds, p50 and p99. With `--check` a missed target is exit code 1. No network.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import platform as machine
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cryptography
import dcap_qvl
from cryptography.hazmat.primitives.asymmetric import rsa
from floors import Check, Floor, floor_of

from cloister.cli.evidence import claims_document
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import Evidence, ExpectedBinding
from cloister.rats.result import Unchecked, Verdict
from cloister.sdk.evidence import _endorsements, strict_policy, tee_of
from cloister.tee.advisories import shipped_advisories
from cloister.tee.insecure.attester import SimulationAttester
from cloister.tee.insecure.endorsements import read_machine_root
from cloister.tee.registry import authenticator_for, reader_for
from cloister.tee.sev_snp.abi import parse_report
from cloister.tee.sev_snp.cocoshape import encode_body
from cloister.tee.verification import examine_evidence
from cloister.testing import azure, dcap
from cloister.testing.caches import forget_everything
from cloister.wire.base64 import encode_b64

ROOT = Path(__file__).resolve().parents[1]
VECTORS = Path(os.environ.get("CLOISTER_VECTORS") or ROOT.parent / "shared" / "vectors") / "evidence"
NEW_PLATFORMS = 300
COLUMNS = 10  # of the first table, beside the name
# Most times the floor, or most times `dcap-qvl`.
TARGETS = {
    "snp, raw": 1.25,
    "snp, JSON of CoCo": 1.25,
    "az-snp-vtpm": 1.5,
    "nitro": 1.5,
}
QVL_TARGETS = {"tdx": 1.2, "sgx": 1.2}  # warm; a new platform is for information
CASES = {
    "snp, raw": "snp-synthetic/genoa-ok#v3",
    "snp, JSON of CoCo": "snp-synthetic/genoa-ok#v3",
    "snp, raw, no CRL": "snp/milan-v2-vcek",
    "tdx": "tdx/v4-uptodate",
    "sgx": "dcap-synthetic/sgx_uptodate",
    "tpm": "tpm/gce-nonce9009",
    "az-snp-vtpm": "az-snp-vtpm/milan-v1",
    "nitro": "nitro/pk64-2024-08",
    "cca": "cca/rmm-trustee",
    "nvidia, 1 device": "nvidia/hopper",
    "nvidia, 3 devices": "nvidia/ppcie-8gpu-part#gpu",
}
QVL_ROOT = "roots/intel/IntelSGXRootCA.der"
NOT_COMPARED = Unchecked(reason="not part of the measurement")


@dataclass(frozen=True, kw_only=True)
class Row:
    """Evidence, what it is verified with, and what it must say."""

    name: str
    evidence: Evidence
    endorsements: Endorsements
    at: datetime
    claims: Mapping[str, Any]
    unchecked_revocation: bool = False
    quote: bytes = b""  # raw, for dcap-qvl
    collateral: bytes = b""
    root: bytes = b""

    def verify(self) -> Check:
        """Return what is measured."""
        authenticate = authenticator_for(self.evidence.tee)
        return lambda: authenticate(self.evidence, self.endorsements, at=self.at)

    def examine(self) -> Callable[[], Any]:
        """Return verification, binding, appraisal and advisories."""
        policy = strict_policy(self.evidence.tee, insecure_no_revocation=self.unchecked_revocation)
        if self.evidence.tee == "cloister-simulated":
            policy = replace(policy, levels=frozenset({self.endorsements.roots[0].level}))
        binding = ExpectedBinding(report_data=NOT_COMPARED, init_data_digest=NOT_COMPARED, exact=True)
        advisories = shipped_advisories()
        return lambda: examine_evidence(
            self.evidence, binding, self.endorsements, policy, NOT_COMPARED, at=self.at, advisories=advisories
        )

    def qvl(self) -> Callable[[], Any]:
        """Return the same by dcap-qvl."""
        collateral = dcap_qvl.QuoteCollateralV3.from_json(self.collateral.decode())
        at = int(self.at.timestamp())
        return lambda: dcap_qvl.verify_with_root_ca(self.quote, collateral, self.root, at)

    def check(self) -> None:
        """Exit unless it is accepted, says what it must, and dcap-qvl comes to the same status."""
        answer = self.examine()()
        said = claims_document(answer.claims) if answer.claims is not None else {}
        wrong = [name for name, value in self.claims.items() if said.get(name) != value]
        if answer.verdict is not Verdict.ACCEPT or wrong:
            codes = [finding.code for finding in answer.findings if not finding.ok]
            raise SystemExit(f"{self.name}: verdict {answer.verdict.value}, {codes}; other claims: {wrong}")
        if self.quote and (other := self.qvl()().status) != said["tcb_status"]:
            raise SystemExit(f"{self.name}: dcap-qvl says {other}, not {said['tcb_status']}")


def vector_rows() -> Iterator[Row]:
    """Return the rows of vectors."""
    path = VECTORS / "cases.json"
    if not path.is_file():
        raise SystemExit(f"no test vectors at {VECTORS}: set CLOISTER_VECTORS")
    cases = {case["id"]: case for case in json.loads(path.read_text("utf-8"))}
    for name, number in CASES.items():
        case = cases[number]
        tee, data = tee_of(case["platform"]), (VECTORS / case["file"]).read_bytes()
        collateral = [VECTORS / case["collateral"]] if case["collateral"] else []
        roots = [VECTORS / item for item in case["trust_roots"]]
        body = reader_for(tee)(data, tee=tee).body
        if name == "snp, JSON of CoCo":
            body = encode_body(parse_report(data), ())
        dcap_of = tee in ("tdx", "sgx")
        yield Row(
            name=name,
            evidence=Evidence(tee=tee, body=body),
            endorsements=_endorsements(tee, [VECTORS / item for item in case["endorsements"]], collateral, roots),
            at=datetime.fromisoformat(case["at"]),
            claims=case["expect"].get("claims", {}),
            unchecked_revocation="--insecure-no-revocation" in case.get("flags", ()),
            quote=data if dcap_of else b"",
            collateral=collateral[0].read_bytes() if dcap_of else b"",
            root=(*roots, VECTORS / QVL_ROOT)[0].read_bytes() if dcap_of else b"",
        )


def fake_rows() -> Iterator[Row]:
    """Return the rows of platforms of which no vector is accepted, or none exists."""
    intel = dcap.FakeIntel()
    vm = azure.FakeParavisor(dcap.FakePlatform(intel), rsa.generate_private_key(65537, 2048))
    yield Row(
        name="az-tdx-vtpm (fake)",
        evidence=vm.evidence(),
        endorsements=vm.endorsements(),
        at=azure.NOW,
        claims={"pcr0": vm.tpm.read_pcrs()[0].hex()},
    )
    with tempfile.TemporaryDirectory() as directory:
        key = Path(directory) / "machine.key"
        root = read_machine_root(key)
        body = SimulationAttester(str(key)).attest(bytes(48))
    yield Row(
        name="simulated",
        evidence=Evidence(tee="cloister-simulated", body=body),
        endorsements=Endorsements(roots=(root,)),
        at=datetime.now(UTC),
        claims={"launch": body["registers"]["launch"]},
    )


def new_platforms(kind: str) -> list[Row]:
    """Return evidence of as many machines, under one collateral."""
    intel, tee = dcap.FakeIntel(), kind.lower()
    document = intel.collateral(kind)
    endorsements = intel.endorsements(tee, document)
    body = dcap.td_report() if kind == "TDX" else dcap.enclave_report()
    quotes = [dcap.FakePlatform(intel, kind).quote(body) for _ in range(NEW_PLATFORMS)]
    return [
        Row(
            name=f"{tee}, new platform",
            evidence=Evidence(tee=tee, body={"quote": encode_b64(quote)}),
            endorsements=endorsements,
            at=dcap.NOW,
            claims={"tcb_status": "UpToDate"},
            quote=quote,
            collateral=document,
            root=intel.root_der,
        )
        for quote in quotes
    ]


@dataclass(frozen=True)
class Times:
    """CPU time of one call, microseconds."""

    p50: float
    p99: float


def alternate(
    calls: Mapping[str, Callable[[], object]], seconds: float, *, before: Callable[[], None] | None = None
) -> dict[str, Times]:
    """Run all calls in turn until `seconds` are over, `before` not counted."""
    taken: dict[str, list[int]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(next(iter(taken.values()))) < 50:
            for name, call in calls.items():
                if before is not None:
                    before()
                start = time.process_time_ns()
                call()
                taken[name].append(time.process_time_ns() - start)
    except StopIteration:
        pass
    finally:
        gc.enable()
    return {name: summary(times) for name, times in taken.items()}


def summary(times: list[int]) -> Times:
    """Return median and 99th percentile."""
    times.sort()
    return Times(times[len(times) // 2] / 1e3, times[int(len(times) * 0.99)] / 1e3)


def all_of(checks: Sequence[Check]) -> Check:
    """Return one call that makes them all."""

    def run() -> None:
        for check in checks:
            check()

    return run


def measure(row: Row, seconds: float) -> dict[str, Times]:
    """Return the times of one row, by what was timed."""
    row.check()
    floor: Floor = floor_of(row.evidence, row.endorsements)
    verify = row.verify()
    qvl = {"qvl": row.qvl()} if row.quote else {}
    warm = alternate({"floor": all_of(floor.warm), **qvl, "warm": verify, "whole": row.examine()}, seconds)
    cold = alternate({"cold floor": all_of(floor.cold), "cold": verify}, seconds, before=forget_everything)
    return warm | cold


def measure_new(rows: list[Row]) -> dict[str, Times]:
    """Return the times for machines that were never seen, each verified once."""
    rows[0].check()
    floors = iter([all_of(floor_of(row.evidence, row.endorsements).cold[:3]) for row in rows])
    others, ours = iter([row.qvl() for row in rows]), iter([row.verify() for row in rows])
    forget_everything()  # making the floors parsed their certificates
    return alternate(
        {"floor": lambda: next(floors)(), "qvl": lambda: next(others)(), "warm": lambda: next(ours)()}, 600
    )


def report(name: str, times: Mapping[str, Times]) -> list[str]:
    """Print one row of the first table; return what missed its target, of either table."""
    ratio, target = times["warm"].p50 / times["floor"].p50, TARGETS.get(name)
    cells = [*figures(times, "floor", "warm"), f"{times['warm'].p99:.0f}", f"{ratio:.2f}", words(ratio, target)]
    if "cold" in times:
        cells += [*figures(times, "whole", "cold floor", "cold"), f"{times['cold'].p99:.0f}"]
        cells.append(f"{times['cold'].p50 / times['cold floor'].p50:.2f}")
    print_row(name, [*cells, *[""] * (COLUMNS - len(cells))])
    missed = [] if target is None or ratio <= target else [f"{name}: {ratio:.2f} times its floor, target {target:g}"]
    if "qvl" in times:
        ratio, target = times["warm"].p50 / times["qvl"].p50, QVL_TARGETS.get(name)
        missed += (
            [] if target is None or ratio <= target else [f"{name}: {ratio:.2f} times dcap-qvl, target {target:g}"]
        )
    return missed


def report_qvl(name: str, times: Mapping[str, Times]) -> None:
    """Print the rows of the second table."""
    for label, key, target in ((name, "warm", QVL_TARGETS.get(name)), (f"{name}, cold", "cold", None)):
        if key in times:
            ratio = times[key].p50 / times["qvl"].p50
            cells = [f"{times['qvl'].p50:.0f}", f"{times['qvl'].p99:.0f}", f"{times[key].p50:.0f}", f"{ratio:.2f}"]
            print_row(label, [*cells, words(ratio, target)])


def figures(times: Mapping[str, Times], *names: str) -> list[str]:
    """Return the medians of some."""
    return [f"{times[name].p50:.0f}" for name in names]


def print_row(name: str, cells: Sequence[str]) -> None:
    """Print a row of Markdown."""
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def words(ratio: float, target: float | None) -> str:
    """Return the target and whether it is met."""
    return "" if target is None else f"<= {target:g}, {'met' if ratio <= target else 'MISSED'}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="per row and table, warm and cold each")
    parser.add_argument("--only", default="", help="rows whose name begins with one of these")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    arguments = parser.parse_args()
    wanted = tuple(arguments.only.split(","))
    load = os.getloadavg()[0]
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {machine.machine()}, {os.cpu_count()} CPUs, load {load:.1f} at the start; "
        f"Python {machine.python_version()}, cryptography {cryptography.__version__}, dcap-qvl {dcap_qvl.__version__}\n"
    )
    print(
        "| evidence | floor | warm p50 | p99 | x floor | target | whole p50 | cold floor | cold p50 | p99 | x floor |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    missed: list[str] = []
    beside: dict[str, dict[str, Times]] = {}
    for row in itertools.chain(vector_rows(), fake_rows()):
        if row.name.startswith(wanted):
            times = measure(row, arguments.seconds)
            missed += report(row.name, times)
            if row.quote:
                beside[row.name] = times
    for kind in ("TDX", "SGX"):
        name = f"{kind.lower()}, new platform"
        if name.startswith(wanted):
            beside[name] = measure_new(new_platforms(kind))
            missed += report(name, beside[name])
    if beside:
        print("\n| beside `dcap-qvl` | its p50 | its p99 | ours p50 | x dcap-qvl | target |\n|---|---|---|---|---|---|")
        for name, times in beside.items():
            report_qvl(name, times)
    for text in missed:
        print(f"missed: {text}", file=sys.stderr)
    if arguments.check and missed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
