"""Event logs of a machine with a TPM: `cloister.tee.eventlog` for the SHA-256 bank, with this technology's codes.

PCR 0 does not always start from zeros: an H-CRTM measurement made before TPM2_Startup, as Cloister's launcher does,
starts it from `hcrtm_start(blob)`, which no record in the log tells.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

from cloister.tee import eventlog
from cloister.tee.eventlog import EV_NO_ACTION, Event

_CODE: Final = "tee.tpm.eventlog"

__all__ = [
    "EV_NO_ACTION",
    "Event",
    "hcrtm_start",
    "measured",
    "parse_event_log",
    "replay",
    "replay_digests",
    "start_value",
]


def parse_event_log(data: bytes) -> tuple[Event, ...]:
    """Parse a crypto-agile log; the header record is checked and left out.

    Raises:
        FormatRefused: too long, SHA-1 only, truncated, an undeclared bank, or bytes behind the end
            (`tee.tpm.eventlog.*`).
    """
    return eventlog.parse_event_log(data, code=_CODE)


def measured(events: Iterable[Event], register: int, *, algorithm: str = "sha256") -> tuple[bytes, ...]:
    """Return the digests that were extended into `register`, in order.

    Raises:
        FormatRefused: the log has no such bank (`tee.tpm.eventlog.bank`).
    """
    return eventlog.measured(events, register, algorithm=algorithm, code=_CODE)


def replay(events: Iterable[Event], register: int, start: bytes, *, algorithm: str = "sha256") -> bytes:
    """Return the value of `register` after all events, from the value `start`."""
    return eventlog.replay(events, register, start, algorithm=algorithm, code=_CODE)


def replay_digests(digests: Iterable[bytes], start: bytes, *, algorithm: str = "sha256") -> bytes:
    """Return `start` extended with `digests` in order."""
    return eventlog.replay_digests(digests, start, algorithm=algorithm)


def start_value(events: Sequence[Event], register: int, *, algorithm: str = "sha256") -> bytes:
    """Return what the log says `register` started from: zeros, or the locality of TPM2_Startup in PCR 0.

    Raises:
        FormatRefused: a second locality record, or one behind a measurement of PCR 0 (`tee.tpm.eventlog.locality`).
    """
    return eventlog.start_value(events, register, algorithm=algorithm, code=_CODE)


def hcrtm_start(blob: bytes) -> bytes:
    """Return the value of PCR 0 after TPM2_Startup when `blob` was measured as H-CRTM before it.

    TPM 2.0 Library part 1, 34.3: the register is reset to 31 zero bytes and 4, then extended with the blob's hash.
    """
    return hashlib.sha256(bytes(31) + b"\x04" + hashlib.sha256(blob).digest()).digest()
