"""Metrics of the trust service: counters and histograms whose labels come from closed sets.

A label is a route of ours, a class of status, a technology, a tier, or the family of a code; anything else becomes
`other`. No path, name, address, cookie, token or identity of a guest can be a label, so nothing that a stranger sends
can appear at `/metrics`, or make it grow. Names of tenants are labels only where the owner allows it.

With several workers each process writes its numbers into files of one directory, and whoever is asked adds them up.
The library is loaded when a `Telemetry` is made, not before: it reads the environment once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from cloister.errors import CloisterError
from cloister.trust.cocoadmin import ACTIONS
from cloister.trust.tracing import OTHER, TEES, Observed

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

MULTIPROCESS_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
_COCO: Final = frozenset(name for name, _, _ in ACTIONS.values())
_GUESTS: Final = frozenset({"auth", "attest", "resource", "plugin"})
ROUTES: Final = _GUESTS | _COCO | {"health", "ready", "metrics", "jwks", "log", "admin", "unknown"}
TIERS: Final = frozenset({"none", "affirming", "warning", "contraindicated"})
_OURS: Final = (
    "access", "approval", "attest", "auth", "internal", "keys", "lease", "plugin", "release", "releaselog", "request",
    "resource", "session", "state", "store", "tenant", "token", "verifier",
)  # fmt: skip
_SHARED: Final = ("appraisal", "crypto", "evidence", "protocol", "rats", "tee", "tlog", "wire")
FAMILIES: Final = frozenset({*_SHARED, *(f"trust.{name}" for name in _OURS)})
_STATUSES: Final = frozenset({"2xx", "3xx", "4xx", "5xx"})
_REQUEST_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_COMMIT_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_BATCH: Final = (1, 2, 4, 8, 16, 32, 64)

Gauge = Callable[[], float]


class Telemetry:
    """The service's numbers.

    Args:
        tenants: whether names of tenants may be labels.
    """

    def __init__(self, *, tenants: bool = False) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self._tenants = tenants
        self._children: dict[tuple[Any, ...], Any] = {}  # Any: the library's own
        self._gauges: dict[str, tuple[str, Gauge]] = {}
        self._registry = registry = CollectorRegistry(auto_describe=False)
        self._requests = Counter(
            "cloister_requests", "Requests answered.", ["route", "status", "tenant"], registry=registry
        )
        self._seconds = Histogram(
            "cloister_request_seconds",
            "From the request's head to its answer.",
            ["route"],
            buckets=_REQUEST_SECONDS,
            registry=registry,
        )
        self._handshakes = Counter(
            "cloister_handshakes", "Attestations that got a token.", ["tee", "tier"], registry=registry
        )
        self._releases = Counter("cloister_releases", "Resources that left.", ["tee"], registry=registry)
        self._denials = Counter("cloister_denials", "Refusals on record.", ["route", "family"], registry=registry)
        self._commits = Histogram(
            "cloister_store_commit_seconds",
            "From taking a batch to its durable commit.",
            buckets=_COMMIT_SECONDS,
            registry=registry,
        )
        self._batches = Histogram(
            "cloister_store_batch_writes", "Writes in one commit.", buckets=_BATCH, registry=registry
        )
        self._webhooks = Counter("cloister_webhooks", "Calls to the webhook.", ["outcome"], registry=registry)

    def observed(self, seen: Observed) -> None:
        """Count one answered request, and what it got: a token, a resource, a refusal."""
        route, marks = _of(ROUTES, seen.route), seen.correlation
        name = marks.tenant if self._tenants else ""
        self._of(self._requests, route, _of(_STATUSES, f"{seen.status // 100}xx"), name).inc()
        self._of(self._seconds, route).observe(seen.seconds)
        if seen.denial:
            self._denials.labels(route, family(seen.code)).inc()
        elif seen.status == 200 and route == "attest":
            self._of(self._handshakes, _of(TEES, marks.tee), _of(TIERS, marks.tier)).inc()
        elif seen.status == 200 and route == "resource":
            self._of(self._releases, _of(TEES, marks.tee)).inc()

    def committed(self, writes: int, seconds: float) -> None:
        """Count one commit of the store."""
        self._commits.observe(seconds)
        self._batches.observe(writes)

    def _of(self, metric: Any, *labels: str) -> Any:  # Any: the library's own
        """Return the child of a metric for these labels, which the library would look for anew each time."""
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child

    def called(self, outcome: str) -> None:
        """Count one call to the webhook: `sent`, `failed` or `dropped`."""
        self._webhooks.labels(_of(frozenset({"sent", "failed", "dropped"}), outcome)).inc()

    def gauge(self, name: str, text: str, read: Gauge) -> None:
        """Add a number that is asked for when the metrics are; it must not block. One that raises is left out."""
        self._gauges[name] = (text, read)

    def render(self) -> tuple[bytes, bytes]:
        """Return the metrics of all workers and their content type."""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
        from prometheus_client.multiprocess import MultiProcessCollector

        shared: CollectorRegistry = self._registry
        if os.environ.get(MULTIPROCESS_VARIABLE):
            shared = CollectorRegistry()
            MultiProcessCollector(shared)  # type: ignore[no-untyped-call]  # the library leaves it untyped
        own = CollectorRegistry()
        own.register(_Gauges(self._gauges))
        return generate_latest(shared) + generate_latest(own), CONTENT_TYPE_PLAIN_0_0_4.encode()


class _Gauges:
    """A collector of numbers that are asked for when the metrics are."""

    def __init__(self, gauges: dict[str, tuple[str, Gauge]]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[Any]:  # Any: the library's own metric
        """Yield one metric per number that could be had."""
        from prometheus_client.core import GaugeMetricFamily

        for name, (text, read) in sorted(self._gauges.items()):
            try:
                value = read()
            except CloisterError:
                continue
            yield GaugeMetricFamily(f"cloister_{name}", text, value=value)


def family(code: str) -> str:
    """Return what a code belongs to, from the closed set."""
    head, _, rest = code.partition(".")
    name = f"{head}.{rest.partition('.')[0]}" if head == "trust" else head
    return _of(FAMILIES, name)


def forget_process(pid: int) -> None:
    """Drop the live numbers of a worker that ended; what it counted stays."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(pid)  # type: ignore[no-untyped-call]  # the library leaves it untyped


def _of(closed: frozenset[str], value: str) -> str:
    return value if value in closed else OTHER
