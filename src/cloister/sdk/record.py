"""What one run leaves behind: a directory a person can keep, send and check.

Text and JSON only, no secret: the pod policy, init data, evidence as the verifier got it, its findings, audit rows,
what was launched, timings.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cloister import __version__
from cloister.errors import CloisterError
from cloister.rats.claims import LEVEL_MEANING, Level

_ID_BYTES = 5


def new_run_id() -> str:
    """Return a short id for a run: lower-case base32, safe in file and host names."""
    return base64.b32encode(secrets.token_bytes(_ID_BYTES)).decode().lower()


@dataclass(slots=True, kw_only=True)
class RunRecord:
    """Everything worth keeping of one run; filled in while it happens.

    Attributes:
        id: from `new_run_id`.
        image: what the user asked for.
        level: level that was run at.
        started: aware UTC.
        identity: what ran, as name and value, in the order a person reads it.
        phases: name and seconds, in order.
        proved, not_proved: sentences.
        exit_status: of the workload, None when it never started.
        refusal: why it was refused, if it was.
        documents: file name to text or bytes; written as they are.
        findings: of the verifier, as JSON objects.
        audit: rows of the trust service about this pod.
    """

    id: str
    image: str
    level: Level
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    identity: list[tuple[str, str]] = field(default_factory=list)
    phases: list[tuple[str, float]] = field(default_factory=list)
    proved: list[str] = field(default_factory=list)
    not_proved: list[str] = field(default_factory=list)
    exit_status: int | None = None
    refusal: CloisterError | None = None
    documents: dict[str, bytes] = field(default_factory=dict)
    findings: Sequence[Mapping[str, Any]] = ()  # Any: JSON
    audit: Sequence[Mapping[str, Any]] = ()  # Any: JSON

    def summary(self) -> dict[str, Any]:  # Any: JSON
        """Return the machine-readable summary (`run.json`, schema 1)."""
        return {
            "schema": 1,
            "cloister": __version__,
            "id": self.id,
            "image": self.image,
            "level": self.level.value,
            "level_meaning": LEVEL_MEANING[self.level],
            "started": self.started.isoformat(timespec="seconds"),
            "identity": dict(self.identity),
            "phases_seconds": {name: round(seconds, 3) for name, seconds in self.phases},
            "proved": self.proved,
            "not_proved": self.not_proved,
            "exit_status": self.exit_status,
            "refusal": self.refusal.as_dict() if self.refusal else None,
        }

    def write(self, directory: Path) -> None:
        """Write all files into `directory`, which is made private when absent."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content in self.documents.items():
            (directory / name).write_bytes(content)
        _write_json(directory / "run.json", self.summary())
        _write_json(directory / "findings.json", list(self.findings))
        _write_json(directory / "audit.json", list(self.audit))


def _write_json(path: Path, value: Any) -> None:  # Any: JSON
    path.write_text(json.dumps(value, indent=2, default=str) + "\n", "utf-8")


class PhaseClock:
    """Adds the time since the last lap to the record's phases."""

    def __init__(self, record: RunRecord) -> None:
        self._record = record
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """End a phase."""
        now = time.monotonic()
        self._record.phases.append((name, now - self._last))
        self._last = now
