"""One correlation id from the guest to the decision, and spans for those who collect traces.

The id is the trace id of W3C Trace Context (`traceparent`, level 1): a guest that sends one chooses it, others get a
random one. It goes back as `request-id` and `traceparent`, and stands in the log, in audit and denial records, and in
calls to the webhook. It is 32 hexadecimal digits whatever a guest sends, and nothing is decided by it.

Spans are made only when traces are exported (extra `otel`); otherwise `span` costs a look at a variable. Their names
and attributes are closed sets: no path, token, cookie, nonce or name of a guest's own choice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from ssl import RAND_bytes  # of OpenSSL: names need no call of the system, at which a thread loses its turn
from typing import TYPE_CHECKING, Any, Final

from cloister.errors import CloisterError, Unavailable
from cloister.tee.registry import TECHNOLOGIES

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

OTHER: Final = "other"
TEES: Final = frozenset({*TECHNOLOGIES, "sample"})
ATTRIBUTES: Final = frozenset({"route", "status", "code", "tee", "tier"})
_TRACEPARENT: Final = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_NOTHING: Final[AbstractContextManager[None]] = nullcontext()
_EXPORT_SECONDS: Final = 5
_LENGTH: Final = 55  # of version 00; later ones may be longer


@dataclass(slots=True)
class Correlation:
    """One request, as log, records and traces know it.

    Attributes:
        identity: 32 hexadecimal digits.
        span: 16 hexadecimal digits, of ours.
        parent: the guest's span, empty for none.
        sampled: whether the guest collects this trace.
        tee: technology, once known.
        tier: of the Attestation Result, once known.
        tenant: whose space it is about, once that is known to exist.
    """

    identity: str
    span: str
    parent: str = ""
    sampled: bool = False
    tee: str = ""
    tier: str = ""
    tenant: str = ""

    @property
    def traceparent(self) -> bytes:
        """What goes back, and on to others."""
        return f"00-{self.identity}-{self.span}-{int(self.sampled):02x}".encode()


@dataclass(slots=True, kw_only=True)
class Observed:
    """One answered request, for log, numbers and webhook.

    Attributes:
        route: name of a route of ours.
        status: HTTP status.
        correlation: what it is known by.
        code: dotted code, empty for success.
        denial: id of the denial on record, empty for none.
        seconds: from its head to its answer.
        fault: error of our own that it met.
    """

    route: str
    status: int
    correlation: Correlation
    code: str = ""
    denial: str = ""
    seconds: float = 0.0
    fault: BaseException | None = None


_CURRENT: ContextVar[Correlation | None] = ContextVar("cloister-request", default=None)
_exporting: list[Tracer] = []  # one or none: what this process exports by
_providers: list[Any] = []  # Any: of an optional library


def correlate(headers: Iterable[tuple[bytes, bytes]]) -> Correlation:
    """Return what a request is known by: the guest's own id when it sends a well-formed one."""
    given = [value for name, value in headers if name == b"traceparent"]
    match = _TRACEPARENT.fullmatch(given[0]) if len(given) == 1 else None
    own = RAND_bytes(8).hex()
    longer = match is not None and given[0][:2] == b"00" and len(given[0]) != _LENGTH
    if match is None or longer or given[0][:2] == b"ff" or not match[1].strip(b"0") or not match[2].strip(b"0"):
        return Correlation(RAND_bytes(16).hex(), own)
    sampled = bool(int(match[3], 16) & 1)
    return Correlation(match[1].decode(), own, parent=match[2].decode(), sampled=sampled)


def current() -> Correlation:
    """Return the request this thread works on; an empty one outside of any."""
    return _CURRENT.get() or Correlation("", "")


@contextmanager
def working(correlation: Correlation, name: str) -> Iterator[None]:
    """Make `correlation` the current one of this thread, with a span of that name around all of it."""
    token = _CURRENT.set(correlation)
    try:
        if not _exporting:
            yield
            return
        with _root_span(correlation, name):
            yield
    finally:
        _CURRENT.reset(token)


def mark(*, tee: str, tier: str = "") -> None:
    """Say what became known of the current request; a technology that is not ours becomes `other`."""
    request = current()
    request.tee, request.tier = tee if tee in TEES else OTHER, tier


def span(name: str) -> AbstractContextManager[Any]:  # Any: a span, or nothing
    """Return a context manager for a part of the current request: `verify`, `appraise`, `policy`, `audit`, `seal`."""
    if not _exporting:
        return _NOTHING
    return _exporting[0].start_as_current_span(name, record_exception=False, set_status_on_exception=False)


def note(**attributes: str | int) -> None:
    """Add attributes to the current span; those that are not in the closed set are dropped."""
    if _exporting:
        from opentelemetry import trace

        trace.get_current_span().set_attributes({key: attributes[key] for key in attributes if key in ATTRIBUTES})


def export_to(endpoint: str, *, exporter: Any = None) -> None:  # Any: an SpanExporter, of an optional library
    """Export the traces of this process from now on.

    Args:
        endpoint: address that takes OTLP over HTTP.
        exporter: used instead.

    Raises:
        Unavailable: the extra `otel` is not installed (`trust.traces.missing`).
    """
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

        if exporter is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            processor: Any = BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_SECONDS))
        else:
            processor = SimpleSpanProcessor(exporter)
    except ImportError as err:
        raise Unavailable(
            "trust.traces.missing", "traces cannot be exported", hint="pip install 'cloister[otel]'"
        ) from err
    # Not the default resource: it would take host name, process arguments and the environment along.
    provider = TracerProvider(resource=Resource({"service.name": "cloister-trust"}))
    provider.add_span_processor(processor)
    stop_exporting()
    _exporting.append(provider.get_tracer("cloister.trust"))
    _providers.append(provider)


def stop_exporting() -> None:
    """Send what waits and export nothing more."""
    _exporting.clear()
    while _providers:
        _providers.pop().shutdown()


@contextmanager
def _root_span(correlation: Correlation, name: str) -> Iterator[None]:
    from opentelemetry import trace

    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
    parent = trace.SpanContext(
        int(correlation.identity, 16),
        int(correlation.parent or correlation.span, 16),
        is_remote=True,
        trace_flags=flags,
    )
    context = trace.set_span_in_context(trace.NonRecordingSpan(parent))
    tracer = _exporting[0]
    with tracer.start_as_current_span(
        name, context=context, kind=trace.SpanKind.SERVER, record_exception=False, set_status_on_exception=False
    ) as own:
        try:
            yield
        except CloisterError as err:
            own.set_attributes({"code": err.code})
            raise
        finally:
            correlation.span = f"{own.get_span_context().span_id:016x}"
            marks = {"tee": correlation.tee, "tier": correlation.tier}
            own.set_attributes({key: value for key, value in marks.items() if value})
