"""Store and log of one state directory, opened together: the log is the store's hook, and reads from it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.trust.releaselog.cosigning import Cosigner, Witness
from cloister.trust.releaselog.highwater import HighWater
from cloister.trust.releaselog.keyfile import load_log_key
from cloister.trust.releaselog.log import ReleaseLog
from cloister.trust.store.database import BatchHook, Store

FIRST_ANSWER_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedLog:
    """A store and the log in it."""

    store: Store
    log: ReleaseLog

    def close(self) -> None:
        """Close both."""
        self.store.close()
        self.log.close()


def open_release_log(
    directory: Path,
    open_store: Callable[[BatchHook], Store],
    *,
    witnesses: Sequence[Witness] = (),
    origin: str = "",
    seconds: float = FIRST_ANSWER_SECONDS,
) -> OpenedLog:
    """Open store and log.

    Args:
        directory: private state directory, with the log's key and high-water mark.
        open_store: opens the store with this hook.
        witnesses: whom to ask for cosignatures.
        origin: name of the log when it is made.
        seconds: most to wait for the first answer of a witness.

    Raises:
        Refused: key file or store cannot be used.
        Unavailable: likewise, or the log in the store is damaged.
    """
    signer = load_log_key(directory, origin=origin)
    high_water = HighWater(directory)
    cosigner = Cosigner(witnesses) if witnesses else None
    log = ReleaseLog(signer, high_water, cosigner=cosigner, random=secrets.token_bytes)
    try:
        store = open_store(log)
    except BaseException:
        log.close()
        raise
    opened = OpenedLog(store=store, log=log)
    try:
        log.open(store, seconds=seconds)
    except BaseException:
        opened.close()
        raise
    return opened
