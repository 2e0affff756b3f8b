"""The owner's trust service for the time of a run, with the witnesses that it asks: which ones, and who starts them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from cloister.sdk.owner import Owner
from cloister.sdk.services import ServiceProcess, start_trust_service, start_witness

Keep = Callable[["Future[ServiceProcess]"], ServiceProcess]


def start_owners_service(
    owner: Owner, work: Path, *, collateral: Path, witnesses: Sequence[str], keep: Keep
) -> ServiceProcess:
    """Start the trust service, and the named witnesses before it.

    Args:
        owner: whose it is.
        work: private directory for logs, and for the witnesses.
        collateral: cache that `cloister collateral` fills.
        witnesses: names of witnesses to start, all of which must cosign each release; without, those are asked that the
            service was last started with.
        keep: takes charge of a witness that started, and returns it.

    Raises:
        Unavailable: one of them does not become ready (`sdk.service.not_ready`).
    """
    from cloister.trust.releaselog import read_announced  # brings the database library, while a pod may boot already

    announced = read_announced(owner.state)
    asked, cosignatures = announced.witnesses, announced.cosignatures
    if witnesses:
        asked, cosignatures = _start_witnesses(owner, work, witnesses, keep), len(witnesses)
    return start_trust_service(
        owner.state, work / "trust.log", collateral=collateral, witnesses=asked, cosignatures=cosignatures
    )


def _start_witnesses(owner: Owner, work: Path, names: Sequence[str], keep: Keep) -> tuple[str, ...]:
    """Start each in a process and directory of its own; return how the trust service finds them."""
    with owner.admin() as admin:
        key = admin.release_log_pins().key
    with ThreadPoolExecutor(len(names)) as pool:
        started = [pool.submit(start_witness, work / name, work / f"{name}.log", name=name, key=key) for name in names]
        return tuple(keep(future).witness for future in started)
