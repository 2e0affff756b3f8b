"""What the release log costs per entry, beside what it must cost: hashing, HMACs and one signature per batch.

    python bench/releaselog.py [--seconds 2]

Columns, microseconds per entry: `floor` is the bare cryptography of an entry (leaf with its commitments, a node of
the tree, its share of the batch's signature); `append` all that append and checkpoint do within the store's
transaction; `whole` the same as seen by the caller, commit of the additional rows included; `receipt` proof and header;
`verify` what a guest does with it. Batches of 1 and of 32 entries on a log of 10 000. In memory: not about a disk.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection

from cloister.tlog.entry import encode_leaf
from cloister.tlog.merkle import leaf_hash
from cloister.tlog.receipt import LogPins, parse_receipt, verify_receipt
from cloister.trust.events import LogEvent
from cloister.trust.releaselog import ReleaseLog, make_release_log
from cloister.trust.releaselog.log import Appended
from cloister.trust.store.database import Store

ENTRIES = 10_000
NAMES = ("resource", "resource_version", "tee", "level", "instance", "init_data", "guest_key", "appraisal_policy")
MORE = ("appraisal_policy_digest", "release_policy_digest", "attestation", "code")
FIELDS = dict.fromkeys((*NAMES, *MORE), "sha256:" + 64 * "0")


def event() -> LogEvent:
    return LogEvent(kind="release", at=datetime.now(UTC), tenant="default", fields=FIELDS)


def per_entry(batch: int, seconds: float, work: Callable[[], None]) -> float:
    """Microseconds per entry; the best of runs, because other processes only ever add."""
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        begun = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begun)
    return 1e6 * best / batch


def floor(batch: int, key: Ed25519PrivateKey) -> None:
    fields = {**FIELDS, "tenant": "default"}
    for _ in range(batch):
        node = leaf_hash(encode_leaf("release", "2026-11-26T19:06:53.000000Z", secrets.token_bytes(32), fields))
        leaf_hash(node + node)
    key.sign(b"x" * 120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="per figure")
    seconds = parser.parse_args().seconds
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    key = Ed25519PrivateKey.generate()
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        log = make_release_log(Path(directory), ())
        store = Store(Path(directory) / "trust.db", batch_hook=log)
        log.open(store, key)
        for _ in range(0, ENTRIES, 1000):
            store.write(lambda connection: [log.append(connection, event()) for _ in range(1000)])
        print(f"{'batch':>6} {'floor':>8} {'append':>8} {'whole':>8} {'receipt':>8} {'verify':>8}   us per entry")
        for batch in (1, 32):
            print_row(batch, seconds, store, log, key)
        store.close()
        log.close()
    return 0


def print_row(batch: int, seconds: float, store: Store, log: ReleaseLog, key: Ed25519PrivateKey) -> None:
    spent: list[float] = []
    original = log._write

    def timed(connection: Connection) -> list[object]:
        begun = time.perf_counter()
        appended: list[object] = [log.append(connection, event()) for _ in range(batch)]
        spent.append(time.perf_counter() - begun)
        return appended

    def write(connection: Connection, entries: Sequence[Appended]) -> None:
        begun = time.perf_counter()
        original(connection, entries)
        if spent:
            spent[-1] += time.perf_counter() - begun

    log._write = write  # type: ignore[method-assign]  # timed for this figure
    bare = per_entry(batch, seconds, lambda: store.write(lambda connection: None))
    whole = per_entry(batch, seconds, lambda: store.write(timed) and None)
    del log._write
    one = store.write(lambda connection: log.append(connection, event()))
    text = log.receipt(one, deadline=0)
    pins = LogPins(key=log.key)
    figures = (
        per_entry(batch, seconds, lambda: floor(batch, key)),
        1e6 * min(spent) / batch,
        whole - bare,
        per_entry(1, seconds, lambda: log.receipt(one, deadline=0) and None),
        per_entry(1, seconds, lambda: verify_receipt(parse_receipt(text), pins) and None),
    )
    print(f"{batch:>6} " + " ".join(f"{figure:8.0f}" for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
