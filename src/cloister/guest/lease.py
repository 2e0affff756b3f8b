"""The pod's lease: renew with fresh evidence well within it, and stop the pod when the answer is no.

Two say how long it is, and the shorter one counts: the measured pod policy, and the key broker with each key that it
releases under a lease. The host can lengthen neither. A renewal is a whole new handshake (new nonce, new quote), and
every leased key asked for again, which is what an owner's revocation takes away. A refusal ends the pod at once; a
broker that cannot be reached, or that the host keeps silent or slow, ends it when the lease is over: renewals run on a
thread of their own, and nothing they wait for holds up the end. Time is the guest's monotonic clock: the host can slow
the whole machine, which slows the workload too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from cloister.errors import Unavailable
from cloister.guest.attest import KeySource, Term
from cloister.guest.background import Background
from cloister.protocol.resourceuri import ResourcePath

_RENEWALS_PER_LEASE: Final = 3
_RETRY_SECONDS: Final = 0.5


class Lease:
    """Keeps one pod's lease; runs on a thread of its own.

    Args:
        keys: the pod's key source.
        path: the resource asked for again at each renewal, where the pod policy has a lease.
        seconds: length of the pod policy's lease; 0 where it has none.
        monotonic: a clock that only goes forward, seconds; that of `keys`.
    """

    def __init__(
        self,
        keys: KeySource,
        path: ResourcePath | None,
        seconds: float,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = keys
        self._path = path if seconds else None
        self._seconds = seconds
        self._monotonic = monotonic
        self._end = 0.0
        self._over = False
        self._woken = threading.Event()

    def keep(self) -> None:
        """Renew until `stop`.

        Raises:
            Refused: the broker said no; the pod must end now.
            Unavailable: the lease ended without an answer (`guest.lease.expired`).
        """
        self._end = self._monotonic() + self._seconds
        while not self._over:
            terms = self._terms()
            if not terms:
                self._woken.wait()
            elif not self._woken.wait(max(0.0, min(_due(term) for term in terms.values()) - self._monotonic())):
                self._renew(terms)
            self._woken.clear()

    def stop(self) -> None:
        """End `keep`."""
        self._over = True
        self._woken.set()

    def _terms(self) -> dict[ResourcePath, Term]:
        terms = self._keys.terms(self._woken.set)
        if self._path is not None:
            own = Term(self._end, self._seconds)
            terms[self._path] = min(own, terms.get(self._path, own))
        return terms

    def _renew(self, terms: dict[ResourcePath, Term]) -> None:
        """Renew all at once; the first that ends unanswered is the end of the pod."""
        first = min(terms.values())
        while not self._over:
            asked = self._monotonic()
            renewal = Background(lambda: self._keys.renew(terms), "renewal")
            try:
                answered = renewal.wait_until(first.end - asked)
            except Unavailable as err:
                if self._monotonic() + _RETRY_SECONDS >= first.end:
                    raise self._expired(err.code, first) from err
                time.sleep(_RETRY_SECONDS)
                continue
            if not answered:
                raise self._expired("no answer", first)
            self._end = asked + self._seconds
            return

    def _expired(self, why: str, term: Term) -> Unavailable:
        return Unavailable(
            "guest.lease.expired",
            "the key broker did not renew the pod's lease in time",
            expected=f"within {term.seconds:g} s",
            actual=why,
            hint="start the pod again once the key broker answers",
        )


def _due(term: Term) -> float:
    """Return when to begin to renew: with most of the lease left for a broker that is away."""
    return term.end - term.seconds * (1 - 1 / _RENEWALS_PER_LEASE)
