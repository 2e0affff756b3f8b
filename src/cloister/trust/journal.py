"""The service's log: one JSON object per line, fields from a closed list, never a secret.

Whatever is not in `FIELDS` is dropped before rendering, so a careless call cannot leak. Of an unexpected exception
only its type and the place in our code are written: messages of foreign libraries can hold what was being processed.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TextIO

import msgspec
import structlog

from cloister.trust.tracing import Observed

FIELDS: Final = frozenset(
    {
        "event", "timestamp", "level", "request", "route", "status", "code", "denial", "ms", "kind", "where", "host",
        "port", "pid", "version", "reason", "worker",
    }
)  # fmt: skip


class Journal:
    """Writes log lines.

    Args:
        stream: where to; standard error when absent.
        worker: number to put into every line, 0 for none.
    """

    def __init__(self, stream: TextIO | None = None, *, worker: int = 0) -> None:
        self._printer = structlog.WriteLogger(stream or sys.stderr)  # a line at once: workers share the file
        log = structlog.wrap_logger(
            self._printer,
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                _only_known_fields,
                structlog.processors.JSONRenderer(),
            ],
        )
        self._log = log.bind(worker=worker) if worker else log
        self._worker = {"worker": worker} if worker else {}

    def note(self, event: str, **values: str | int) -> None:
        """Log one step of the service's life."""
        self._log.info(event, **values)

    def warn(self, event: str, **values: str | int) -> None:
        """Log what the owner should look at."""
        self._log.warning(event, **values)

    def observed(self, seen: Observed) -> None:
        """Log one answered request, and the fault of our own that it met."""
        request = seen.correlation.identity
        if seen.fault is not None:
            kind, where = type(seen.fault).__name__, _place(seen.fault)
            self._log.error("failed", request=request, route=seen.route, kind=kind, where=where)
        # Written directly: there is one with each request, and going through processors costs more than the rest.
        line: dict[str, Any] = {  # Any: text and numbers
            "event": "answered",
            "level": "warning" if seen.status >= 500 else "info",
            "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "request": request,
            "route": seen.route,
            "status": seen.status,
            "ms": round(1000 * seen.seconds, 1),
            **self._worker,
        }
        if seen.code:
            line["code"] = seen.code
        if seen.denial:
            line["denial"] = seen.denial
        self._printer.msg(msgspec.json.encode(line).decode())


def _only_known_fields(
    _logger: object, _method: str, values: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:  # Any: as structlog types it
    return {name: value for name, value in values.items() if name in FIELDS and value != ""}


def _place(error: BaseException) -> str:
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "cloister" in frame.filename]
    if not ours:
        return ""
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
