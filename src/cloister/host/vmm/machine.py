"""A pod that runs: its two channels, its processes, its end.

Used by every back end. One thread watches everything (`Supervisor`), so that the end of any process is noticed, judged
once, and takes the rest with it: no QEMU without its TPM, no TPM without its QEMU, no state left on disk.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol

from cloister.errors import CloisterError, Unavailable
from cloister.host.process import Child
from cloister.host.vmm.boundedlog import BoundedLog
from cloister.host.vmm.exit import Observed, VMExit, judge_exit
from cloister.host.vmm.hcrtm import HCRTMProxy
from cloister.host.vmm.initdatafile import InitDataFile
from cloister.host.vmm.monitor import MonitorReader
from cloister.host.vmm.spec import Backend, VMSpec
from cloister.host.vmm.supervisor import Supervisor
from cloister.protocol.launch import LaunchMeasurement
from cloister.rats.claims import Level

GRACE_SECONDS: Final = 2.0  # between asking a process to end and killing it
MEASURE_SECONDS: Final = 30.0  # from QEMU's start to the measured launch; 0.1 s on an idle machine
_READ_BYTES: Final = 64 * 1024


class Launcher(Protocol):
    """What every back end is.

    Attributes:
        backend: its name.
        level: how much a pod launched by it can prove.
    """

    backend: Backend
    level: Level

    def launch(self, spec: VMSpec) -> RunningVM:
        """Start a pod and return as soon as its channels are open and, where there is one, its launch is measured.

        Raises:
            Refused: the spec cannot be launched (`host.spec.*`, `host.bundle.*`).
            Unavailable: a program is missing or failed (`host.tool.*`, `host.hcrtm.*`, `host.vm.*`).
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipes:
    """What the launcher holds of the descriptors it gave to the processes; None where the back end has none."""

    control: socket.socket
    streams: socket.socket
    console: socket.socket | None = None
    monitor: socket.socket | None = None
    proxy: HCRTMProxy | None = None


class RunningVM:
    """A launched pod. Use as a context manager, or call `terminate` at the end.

    Attributes:
        name: of the pod.
        backend: where it runs.
        level: how much it can prove.
        command: argument list of the main process.
        control: connected socket of the control port.
        streams: connected socket of the streams port.
        console: path of the console log; other processes' output lies beside it (`qemu.log`, `swtpm.log`).
        launch: what was measured; None where nothing was.
    """

    def __init__(
        self,
        *,
        name: str,
        backend: Backend,
        level: Level,
        pipes: Pipes,
        console: Path,
        launch: LaunchMeasurement | None,
        initdata: InitDataFile,
        main: Child,
        main_output: int,
        aside: Mapping[str, tuple[Child, int]],
        clean_up: Callable[[], None],
    ) -> None:
        """Take over the processes: from here on they end with this object.

        Args:
            initdata: the file behind the init data device.
            main_output: readable end of the main process' output.
            aside: other processes by role, each with the readable end of its output.
            clean_up: called once after all processes ended.
        """
        self.name = name
        self.backend = backend
        self.level = level
        self.command = main.command
        self.control = pipes.control
        self.streams = pipes.streams
        self.console = console
        self.launch = launch
        self._initdata = initdata
        self._pipes = pipes
        self._main = main
        self._aside = {role: child for role, (child, _) in aside.items()}
        self._clean_up = clean_up
        self._monitor = MonitorReader()
        self._console_log = BoundedLog(console)
        self._main_log = BoundedLog(console.with_name(f"{main.name}.log")) if pipes.console else self._console_log
        self._outputs = [(main_output, self._main_log)]
        for child, output in aside.values():
            self._outputs.append((output, BoundedLog(console.with_name(f"{child.name}.log"))))
        self._terminated = False
        self._swtpm_status: int | None = None
        self._patience: threading.Timer | None = None
        self._measurement: CloisterError | None = None
        self._exit: VMExit | None = None
        self._settled = threading.Event()  # measured, or ended
        self._ended = threading.Event()
        self._closing = threading.Lock()
        self._closed = False
        self._supervisor = Supervisor(f"vm-{name}", self._on_refusal)
        self._watch_everything()
        self._supervisor.start()

    @property
    def pids(self) -> Mapping[str, int]:
        """Process ids by role: `qemu` or `sandbox`, and `swtpm`."""
        return {self._main.name: self._main.pid, **{role: child.pid for role, child in self._aside.items()}}

    def deliver_initdata(self, text: bytes) -> None:
        """Give the pod the init data that it was launched without.

        Raises:
            Refused: it has some already (`host.vm.initdata_twice`).
            FormatRefused: not init data (`protocol.initdata.*`).
        """
        self._initdata.deliver(text)

    def require_measured(self, seconds: float = MEASURE_SECONDS) -> None:
        """Wait until the launch was measured; returns at once where there is nothing to measure.

        Raises:
            Unavailable: the machine ended before (`host.vm.*`), or nothing happened (`host.hcrtm.no_answer`).
        """
        if self._pipes.proxy is None:
            return
        if not self._settled.wait(seconds):
            raise Unavailable("host.hcrtm.no_answer", "QEMU did not power the TPM on", expected=f"within {seconds:g} s")
        if self._pipes.proxy.measurements == 0:
            self._ended.wait()
            raise self._outcome().error()

    def wait(self, seconds: float | None = None) -> VMExit | None:
        """Wait for the end; return how it ended, or None when the time is over."""
        return self._outcome() if self._ended.wait(seconds) else None

    def terminate(self) -> VMExit:
        """End the pod and everything that belongs to it; return how it ended. Further calls do nothing more.

        Raises:
            Unavailable: a process survives SIGKILL (`host.process.unkillable`).
        """
        self._terminated = self._terminated or not self._ended.is_set()
        self._main.end(grace_seconds=GRACE_SECONDS)
        self._ended.wait()
        with self._closing:
            if not self._closed:
                self._closed = True
                self._supervisor.join()
                for channel in (self.control, self.streams):
                    with contextlib.suppress(OSError):
                        channel.shutdown(socket.SHUT_RDWR)
                    channel.close()
        return self._outcome()

    def __enter__(self) -> RunningVM:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the pod."""
        self.terminate()

    def _watch_everything(self) -> None:
        watch = self._supervisor.watch
        for output, log in self._outputs:
            watch(_Descriptor(output), partial(_copy, output, log))
        for child in self._aside.values():
            watch(child, partial(self._on_aside_ended, child))
        console, monitor, proxy = self._pipes.console, self._pipes.monitor, self._pipes.proxy
        if console is not None:
            watch(console, partial(_copy, console.fileno(), self._console_log))
        if monitor is not None:
            watch(monitor, partial(self._follow, monitor))
        if proxy is not None:
            watch(proxy.vmm, proxy.relay_request)
            watch(proxy.tpm, partial(self._relay_reply, proxy))
        watch(self._main, self._on_main_ended)

    def _follow(self, monitor: socket.socket) -> bool:
        data = monitor.recv(_READ_BYTES)
        self._monitor.feed(data)
        return bool(data)

    def _relay_reply(self, proxy: HCRTMProxy) -> bool:
        alive = proxy.relay_reply()
        if proxy.measurements:
            self._settled.set()
        return alive

    def _on_refusal(self, error: CloisterError) -> None:
        self._measurement = self._measurement or error
        self._main.send(signal.SIGKILL)

    def _on_aside_ended(self, child: Child) -> bool:
        """Take the TPM's end for a failure, unless QEMU told it to end and is about to end itself."""
        if child.status == 0:
            self._patience = threading.Timer(GRACE_SECONDS, self._fail_without, [child])
            self._patience.daemon = True
            self._patience.start()
        else:
            self._fail_without(child)
        return False

    def _fail_without(self, child: Child) -> None:
        if self._main.status is None:
            self._swtpm_status = child.status
            self._main.send(signal.SIGKILL)

    def _on_main_ended(self) -> bool:
        try:
            self._drain()
            self._exit = self._judge()
            if self._patience is not None:
                self._patience.cancel()
            for child in self._aside.values():
                child.end(grace_seconds=GRACE_SECONDS)
        finally:
            try:
                self._release()
            finally:  # whatever cannot be cleaned up: nobody waits for an end that was
                self._supervisor.stop()
                self._ended.set()
                self._settled.set()
        return False

    def _judge(self) -> VMExit:
        return judge_exit(
            Observed(
                status=self._main.status or 0,
                terminated=self._terminated,
                sandbox=self.backend is Backend.PROCESS,
                swtpm_status=self._swtpm_status,
                measurement=self._measurement,
                shutdown_reason=self._monitor.shutdown_reason,
                console=self._console_log.tail(),
                log=self._main_log.last_line(),
            )
        )

    def _drain(self) -> None:
        """Read what the processes wrote before they ended; their ends are closed, so nothing waits."""
        for source, log in self._outputs:
            os.set_blocking(source, False)
            with contextlib.suppress(OSError):
                while _copy(source, log):
                    continue
        for channel, react in (
            (self._pipes.console, lambda channel: _copy(channel.fileno(), self._console_log)),
            (self._pipes.monitor, self._follow),
        ):
            if channel is not None:
                channel.setblocking(False)
                with contextlib.suppress(OSError):
                    while react(channel):
                        continue

    def _release(self) -> None:
        for output, log in self._outputs:
            os.close(output)
            log.close()
        self._console_log.close()
        proxy = self._pipes.proxy
        relayed = (proxy.vmm, proxy.tpm) if proxy else ()
        for channel in (self._pipes.console, self._pipes.monitor, *relayed):
            if channel is not None:
                channel.close()
        for child in (self._main, *self._aside.values()):
            child.close()
        self._clean_up()

    def _outcome(self) -> VMExit:
        if self._exit is None:
            raise RuntimeError("the end is not judged yet")
        return self._exit


class _Descriptor:
    """A bare descriptor number as something that can be watched."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        """Return the number."""
        return self._number


def _copy(source: int, log: BoundedLog) -> bool:
    data = os.read(source, _READ_BYTES)
    log.write(data)
    return bool(data)
