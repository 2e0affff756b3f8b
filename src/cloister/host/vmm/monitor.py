"""QEMU's machine protocol, as little as is needed: why did the virtual machine stop?

QMP (QEMU docs/interop/qmp-spec) is a stream of JSON objects, one per line. The launcher sends one command and then only
listens for the event SHUTDOWN, whose `reason` tells a guest's power-off from a reset, which `-no-reboot` turns into
the same exit status.
"""

from __future__ import annotations

from typing import Final

import msgspec

from cloister.wire.limits import KIB

GREETING: Final = b'{"execute":"qmp_capabilities"}\n'
_LINE_BYTES: Final = 64 * KIB
_REASON_CHARS: Final = 40


class _ShutdownData(msgspec.Struct, frozen=True):
    reason: str = ""


class _Message(msgspec.Struct, frozen=True):
    event: str = ""
    data: _ShutdownData = _ShutdownData()


class MonitorReader:
    """Follows the event stream.

    Attributes:
        shutdown_reason: `guest-shutdown`, `guest-reset`, `guest-panic`, `host-signal`, ...; empty until known.
    """

    def __init__(self) -> None:
        self.shutdown_reason = ""
        self._buffer = b""

    def feed(self, data: bytes) -> None:
        """Take bytes from QEMU. What does not parse is passed over: the reason then stays unknown."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        self._buffer = self._buffer[-_LINE_BYTES:]
        for line in lines:
            try:
                message = msgspec.json.decode(line, type=_Message)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue
            if message.event == "SHUTDOWN" and not self.shutdown_reason:
                self.shutdown_reason = message.data.reason[:_REASON_CHARS]
