"""Verification of TDX and SGX evidence beside `dcap-qvl` and beside the bare cryptography, on the same bytes.

    python bench/dcap.py [--seconds 3]

Each run takes the next of many quotes over other report data. `known platform`: same machine, same collateral as
before, which is what a service sees. `new platform`: another machine under known collateral. `all new`: nothing known,
every cache emptied before each run. `dcap-qvl` keeps nothing between two calls; its collateral is parsed beforehand.
`floor` is the one P-256 verification that a known platform cannot do without. No network, no file is read.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import time
from collections.abc import Callable, Iterator
from types import ModuleType

import dcap_qvl

from cloister.crypto import revocation, x509path
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import Evidence
from cloister.tee.dcap import chain, collateral, pck, statements, tcb, verifier
from cloister.tee.dcap.abi import parse_quote
from cloister.tee.registry import authenticator_for
from cloister.testing.dcap import NOW, FakeIntel, FakePlatform, enclave_report, td_report
from cloister.wire.base64 import encode_b64

CACHES = (revocation, x509path, chain, collateral, pck, statements, tcb, verifier)
QUOTES = 400


def forget() -> None:
    """Empty every cache."""
    modules: tuple[ModuleType, ...] = CACHES
    for module in modules:
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()
    x509path._KNOWN_PATHS._paths.clear()
    verifier._KNOWN_PLATFORMS._platforms.clear()


def quotes(platform: FakePlatform, kind: str) -> list[bytes]:
    """Return quotes of one machine, each over other data."""
    make = td_report if kind == "TDX" else enclave_report
    return [platform.quote(make(report_data=index.to_bytes(64, "big"))) for index in range(QUOTES)]


def evidence(quote: bytes, kind: str) -> Evidence:
    """Return the evidence as a guest sends it."""
    return Evidence(tee=kind.lower(), body={"quote": encode_b64(quote)})


def measure(run: Callable[[], None], seconds: float, *, before: Callable[[], None] | None = None) -> tuple[float, ...]:
    """Return p50 and p99 in microseconds."""
    times: list[float] = []
    run()
    gc.disable()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 50:
        if before is not None:
            before()
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e6)
    gc.enable()
    times.sort()
    return times[len(times) // 2], times[int(len(times) * 0.99)]


def rows(kind: str, seconds: float) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Measure one technology."""
    intel = FakeIntel()
    platform = FakePlatform(intel, kind)
    made = quotes(platform, kind)
    document = intel.collateral(kind)
    endorsements: Endorsements = intel.endorsements(kind.lower(), document)
    authenticate = authenticator_for(kind.lower())

    parsed = [parse_quote(item) for item in made]
    key = verifier._attestation_key(parsed[0].data.attestation_key)
    turn = itertools.cycle(parsed)

    def floor() -> None:
        item = next(turn)
        if key is None or not verifier._verify(key, item.data.signature, item.signed):
            raise RuntimeError("the quote is not signed")

    yield "floor", measure(floor, seconds)

    other = dcap_qvl.QuoteCollateralV3.from_json(document.decode())
    at, root, raw = int(NOW.timestamp()), intel.root_der, itertools.cycle(made)
    yield "dcap-qvl", measure(lambda: dcap_qvl.verify_with_root_ca(next(raw), other, root, at), seconds)

    known = itertools.cycle([evidence(item, kind) for item in made])
    yield "known platform", measure(lambda: authenticate(next(known), endorsements, at=NOW), seconds)

    machines = [FakePlatform(intel, kind) for _ in range(QUOTES)]
    make = td_report if kind == "TDX" else enclave_report
    fresh = iter([evidence(item.quote(make()), kind) for item in machines])
    count = iter(range(QUOTES - 1))
    times: list[float] = []
    for _ in count:
        start = time.perf_counter()
        authenticate(next(fresh), endorsements, at=NOW)
        times.append((time.perf_counter() - start) * 1e6)
    times.sort()
    yield "new platform", (times[len(times) // 2], times[int(len(times) * 0.99)])

    yield "all new", measure(lambda: authenticate(next(known), endorsements, at=NOW), seconds, before=forget)


def main() -> None:
    """Print one table per technology."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=3.0)
    seconds = options.parse_args().seconds
    for kind in ("TDX", "SGX"):
        print(f"{kind:16} {'p50 us':>8} {'p99 us':>8}")
        for name, (middle, high) in rows(kind, seconds):
            print(f"{name:16} {middle:8.0f} {high:8.0f}", flush=True)


if __name__ == "__main__":
    main()
