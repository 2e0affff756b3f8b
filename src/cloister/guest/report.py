"""What the guest tells the host on its own account: hello, phases, ready, failed, exit.

Events go to an untrusted reader, so they carry names, times and refusals, never a value from an image, a key or an
environment. Sending never raises: a host that does not listen cannot stop the guest by that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

from cloister import __version__
from cloister.errors import CloisterError
from cloister.protocol.guestapi import (
    Event,
    ExitEvent,
    FailedEvent,
    HelloEvent,
    PhaseEvent,
    ReadyEvent,
    encode_event,
    error_to_wire,
)

_MS: Final = 1000


def uptime_ms() -> int:
    """Return milliseconds since the kernel started (simulated level: since the machine did)."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * _MS)


def process_start_ms() -> int:
    """Return when this process was started, on the clock of `uptime_ms` (proc(5), `starttime`)."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return int(fields[19]) * _MS // os.sysconf("SC_CLK_TCK")


class Reporter:
    """Turns facts into events.

    Args:
        send: writes one control frame; an `OSError` from it is swallowed here.
    """

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._failed = False

    def hello(self, platform: str) -> None:
        """Say that the agent runs."""
        self._emit(HelloEvent(agent=__version__, platform=platform))

    def phase(self, name: str, took_ms: int, container: str = "") -> None:
        """Say that phase `name` (one of `PHASES`) ended after `took_ms`."""
        self._emit(PhaseEvent(name=name, uptime_ms=uptime_ms(), took_ms=took_ms, container=container))

    def ready(self, init_data: str) -> None:
        """Say that attestation succeeded."""
        self._emit(ReadyEvent(init_data=init_data))

    def failed(self, error: CloisterError) -> None:
        """Say why the pod cannot run, or cannot run on; only the first reason is told."""
        if self._failed:
            return
        self._failed = True
        self._emit(FailedEvent(error=error_to_wire(error)))

    def exit(self, container: str, exec_id: str, status: int) -> None:
        """Say that a process ended."""
        self._emit(ExitEvent(container=container, exec=exec_id, status=status))

    def _emit(self, event: Event) -> None:
        try:
            self._send(encode_event(event))
        except OSError:
            return  # nobody listens; losing an event is the host's choice


class Stopwatch:
    """Milliseconds of one phase by the monotonic clock."""

    __slots__ = ("_started",)

    def __init__(self) -> None:
        self._started = time.monotonic()

    def ms(self) -> int:
        """Return milliseconds since construction."""
        return int((time.monotonic() - self._started) * _MS)
