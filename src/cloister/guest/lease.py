"""The pod's lease: renew with fresh evidence well within it, and stop the pod when the answer is no.

The measured pod policy says how long the lease is, so the host cannot lengthen it. A renewal is a whole new
handshake (new nonce, new quote) and the stream key asked for again, which is what an owner's revocation takes away.
A refusal ends the pod at once; a broker that cannot be reached, or that the host keeps silent or slow, ends it when the
lease is over: renewals run on a thread of their own, and nothing they wait for holds up the end. Time is the guest's
monotonic clock: the host can slow the whole machine, which slows the workload too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from cloister.errors import Unavailable
from cloister.guest.attest import KeySource
from cloister.guest.background import Background
from cloister.protocol.resourceuri import ResourcePath

_RENEWALS_PER_LEASE: Final = 3
_RETRY_SECONDS: Final = 0.5


class Lease:
    """Keeps one pod's lease; runs on a thread of its own.

    Args:
        keys: the pod's key source.
        path: the resource asked for again at each renewal.
        seconds: length of the lease.
        monotonic: a clock that only goes forward, seconds.
    """

    def __init__(
        self,
        keys: KeySource,
        path: ResourcePath,
        seconds: float,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = keys
        self._path = path
        self._seconds = seconds
        self._monotonic = monotonic
        self._over = threading.Event()

    def keep(self) -> None:
        """Renew until `stop`.

        Raises:
            Refused: the broker said no; the pod must end now.
            Unavailable: the lease ended without an answer (`guest.lease.expired`).
        """
        end = self._monotonic() + self._seconds
        while not self._over.wait(self._seconds / _RENEWALS_PER_LEASE):
            end = self._renew(end)

    def stop(self) -> None:
        """End `keep`."""
        self._over.set()

    def _renew(self, end: float) -> float:
        """Return the end of the renewed lease."""
        while True:
            asked = self._monotonic()
            renewal = Background(lambda: self._keys.renew(self._path), "renewal")
            try:
                answered = renewal.wait_until(end - asked)
            except Unavailable as err:
                if self._monotonic() + _RETRY_SECONDS >= end:
                    raise self._expired(err.code) from err
                if self._over.wait(_RETRY_SECONDS):
                    return end
                continue
            if not answered:
                raise self._expired("no answer")
            return asked + self._seconds

    def _expired(self, why: str) -> Unavailable:
        return Unavailable(
            "guest.lease.expired",
            "the key broker did not renew the pod's lease in time",
            expected=f"within {self._seconds:g} s",
            actual=why,
            hint="start the pod again once the key broker answers",
        )
