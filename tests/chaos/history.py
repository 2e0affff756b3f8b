"""What the clients of a chaos run saw and what its owner did, kept in memory; checkers hold it against the records."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from math import inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A release that was acknowledged: a 200 whose resource opened.

    Attributes:
        path: of the resource.
        guest_key: SHA-256 of the guest key's canonical JWK, hex.
        init_data: digest as rules name it.
        receipt: value of the header, empty when there was none.
        replica: number of the one that answered.
        begun: when the request was sent, monotonic seconds.
        ended: when its answer was whole.
        who: kind of guest.
    """

    path: str
    guest_key: str
    init_data: str
    receipt: str
    replica: int
    begun: float
    ended: float
    who: str = "guest"


@dataclass(slots=True)
class Window:
    """When a release is allowed: from before the owner began to allow it until withdrawing it was acknowledged."""

    begin: float
    end: float = inf


@dataclass(slots=True)
class History:
    """Everything that was seen. Safe for many threads.

    Attributes:
        releases: acknowledged, in no order.
        attested: for each nonce the replicas that accepted it.
        bound: for each piece of evidence that was accepted, by id, nonce and guest key it is bound to.
        counts: of what happened, by name.
        faults: what can be told at once to be wrong.
        secrets: bytes that must not be in any log.
        schedule: what was done to whom, in order.
        recoveries: seconds until all replicas served again, one for each fault.
    """

    releases: list[Release] = field(default_factory=list)
    attested: dict[str, list[int]] = field(default_factory=dict)
    bound: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    secrets: list[bytes] = field(default_factory=list)
    schedule: list[str] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    _windows: dict[tuple[str, str], list[Window]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def released(self, release: Release) -> None:
        with self._lock:
            self.releases.append(release)
            self.counts[f"released to {release.who}"] += 1

    def accepted(self, nonce: str, replica: int) -> None:
        with self._lock:
            self.attested.setdefault(nonce, []).append(replica)
            self.counts["attested"] += 1

    def count(self, name: str) -> None:
        with self._lock:
            self.counts[name] += 1

    def fault(self, text: str) -> None:
        with self._lock:
            self.faults.append(f"{self.elapsed():.1f} s: {text}")

    def did(self, text: str) -> None:
        with self._lock:
            self.schedule.append(f"{self.elapsed():.1f} s: {text}")

    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def allow(self, path: str, init_data: str, *, since: float | None = None) -> None:
        """Called before the owner allows something, which may then happen at any time."""
        begin = time.monotonic() if since is None else since
        with self._lock:
            windows = self._windows.setdefault((path, init_data), [])
            if not windows or windows[-1].end != inf:
                windows.append(Window(begin))

    def withdrawn(self, path: str, init_data: str) -> None:
        """Called once it is acknowledged that something is not allowed any more."""
        with self._lock:
            self._windows[path, init_data][-1].end = time.monotonic()

    def allowed(self, release: Release) -> bool:
        """Whether at some instant between request and answer the release was allowed."""
        windows = self._windows.get((release.path, release.init_data), [])
        return any(window.begin <= release.ended and release.begun <= window.end for window in windows)
