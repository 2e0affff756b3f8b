"""The agent's main: the order of events in the life of a pod.

 1 hello            so that the host sees life before anything heavy loads
 2 init data        into register 8, before any call is read
 3 policy           parsed from the measured text
 4 network          while libraries load in the background
 5 attestation      ephemeral key, RCAR handshake with the owner's broker
 6 stream key       when the policy seals the streams
 7 ready            containers are created, run, and end
 8 wipe             keys overwritten, containers killed; the end of the agent is the end of the VM

Any failure before 7 is told once as a `failed` event and ends the pod. The console gets fixed words only: no argument,
no secret, no text of a foreign error.
"""

from __future__ import annotations

import os
import sys

from cloister.errors import CloisterError, Unavailable
from cloister.guest.measure import InitDataMeasurement
from cloister.guest.platform import Platform, choose_platform
from cloister.guest.ports import ControlPort, HostGone
from cloister.guest.report import Reporter, Stopwatch, uptime_ms
from cloister.guest.server import ControlServer

_CONSOLE: int = 2


def main(arguments: list[str] | None = None) -> int:
    """Run the agent; return the process' exit status."""
    sys.excepthook = _silent
    try:
        platform = choose_platform(sys.argv[1:] if arguments is None else arguments)
        watch = Stopwatch()
        control = platform.open_control()
    except Exception as err:  # noqa: BLE001  # process edge: nobody to tell but the console
        _console(err.code if isinstance(err, CloisterError) else "guest.internal")
        return 1
    reporter = Reporter(control.send)
    reporter.hello(platform.tee)
    reporter.phase("kernel", max(0, uptime_ms() - watch.ms()))
    reporter.phase("agent", watch.ms())
    try:
        _run(platform, control, reporter)
    except HostGone:
        _console("host gone")
    except CloisterError as err:
        reporter.failed(err)
        _console(err.code)
        return 1
    except Exception as err:  # noqa: BLE001  # process edge
        reporter.failed(Unavailable("guest.internal", type(err).__name__))
        _console("guest.internal")
        return 1
    return 0


def _run(platform: Platform, control: ControlPort, reporter: Reporter) -> None:
    watch = Stopwatch()
    with platform.open_attester() as attester:
        init_data = InitDataMeasurement(attester).measure(platform.read_initdata())
        reporter.phase("initdata", watch.ms())
        ControlServer(control, _not_ready).serve()
    raise Unavailable("guest.internal", init_data.digest_text)


def _not_ready(call: object) -> object:
    raise Unavailable("guestapi.not_ready", "the pod is not ready")


def _console(words: str) -> None:
    """Write fixed words to the console, which the host reads."""
    try:
        os.write(_CONSOLE, b"cloister: " + words.encode() + b"\n")
    except OSError:
        return


def _silent(*_: object) -> None:
    """Replace the traceback of the interpreter, which would show source lines and values."""
    _console("guest.internal")
