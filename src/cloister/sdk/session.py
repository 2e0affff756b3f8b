"""A launched pod as its owner drives it on this machine: create, start, streams opened by the owner's key, signals,
exit.

Two roles meet here because they run on one machine: the host carries frames (`cloister.host.guestlink`), the owner
holds the stream key. The host part never sees plain streams; take the key away and only ciphertext is left.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import BinaryIO, Final, TypeVar

from cloister.crypto.streamseal import RECORD_OVERHEAD, SALT_BYTES, StreamName, StreamOpener, StreamSealer
from cloister.errors import CloisterError, Unavailable
from cloister.host.guestlink import GuestLink
from cloister.host.vmm.machine import RunningVM
from cloister.protocol.guestapi import (
    CreateParams,
    FailedEvent,
    HelloEvent,
    KillParams,
    PhaseEvent,
    ProcessClaim,
    ReadyEvent,
    ResizeParams,
    StreamsResult,
    error_from_wire,
)
from cloister.wire.base64 import decode_b64
from cloister.wire.limits import STREAM_FRAME_BYTES

HELLO_SECONDS: Final = 180.0  # an emulated machine under load; a real one takes two
END_SECONDS: Final = 10.0
_LAST_WORDS_SECONDS: Final = 5.0
_STDIN_BYTES: Final = STREAM_FRAME_BYTES - RECORD_OVERHEAD
_LOST: Final = "host.guestlink."

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    """Where the workload's standard streams go on this machine.

    Attributes:
        stdout: gets standard output, and all output of a terminal.
        stderr: gets standard error.
        stdin: descriptor that standard input is read from; None for none.
        signals: numbers to deliver to the workload, put there by signal handlers.
        size: sizes (columns, rows) of the terminal, put there when it changes.
        on_attend: called when the workload was started and streams and signals begin to pass.
    """

    stdout: BinaryIO
    stderr: BinaryIO
    stdin: int | None = None
    signals: queue.SimpleQueue[int] | None = None
    size: queue.SimpleQueue[tuple[int, int]] | None = None
    on_attend: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStreams:
    """The streams of a created process and what opens them."""

    numbers: StreamsResult
    key: bytes

    @property
    def salt(self) -> bytes:
        """The guest's salt; empty when the streams are not sealed."""
        return decode_b64(self.numbers.salt, path="salt", ceiling=SALT_BYTES) if self.numbers.salt else b""


class PodSession:
    """Drives one running pod. Use as a context manager.

    Attributes:
        machine: the launched pod.
        link: the guest API; what the pod says on it is only its word.
    """

    def __init__(self, machine: RunningVM) -> None:
        self.machine = machine
        self.link = GuestLink(machine.control, machine.streams)
        self._phases: list[PhaseEvent] = []
        self._failure: CloisterError | None = None
        self._ready = threading.Event()
        self._over = threading.Event()
        self._listener = threading.Thread(target=self._listen, name="events", daemon=True)
        self._listener.start()

    def __enter__(self) -> PodSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ask the pod to end, give it a moment, leave it."""
        if not self._over.is_set():
            with contextlib.suppress(CloisterError):
                self.link.shutdown()
                self.machine.wait(END_SECONDS)
        self.link.close()
        self._listener.join()

    @property
    def phases(self) -> tuple[PhaseEvent, ...]:
        """The phases the guest reported so far."""
        return tuple(self._phases)

    def phase_seconds(self) -> list[tuple[str, float]]:
        """Return the guest's own phases as name and seconds."""
        return [(f"guest: {phase.name}", phase.took_ms / 1000) for phase in self.phases]

    def hello(self) -> HelloEvent:
        """Wait until the agent speaks.

        Raises:
            CloisterError: why the pod cannot run.
        """
        return self._guard(lambda: self.link.hello(HELLO_SECONDS))

    def wait_ready(self, seconds: float = HELLO_SECONDS) -> None:
        """Wait until the pod attested and got its stream key.

        Raises:
            CloisterError: why the pod cannot run: the key broker's refusal, with its denial id.
        """
        self.hello()
        while not self._ready.wait(0.02):
            if self._over.is_set():
                raise self._why_over()
            seconds -= 0.02
            if seconds <= 0:
                raise Unavailable("sdk.session.not_ready", "the pod did not attest in time")

    def create(
        self, name: str, *, registry: str, stream_key: bytes, claim: ProcessClaim | None = None, container: str = ""
    ) -> ProcessStreams:
        """Create the container `name`; the guest attests, pulls, verifies, decrypts and unpacks meanwhile.

        Raises:
            CloisterError: the guest's refusal, or why the pod cannot run.
        """
        self.hello()
        params = CreateParams(container=container or name, name=name, registry=registry, claim=claim)
        numbers = self._guard(lambda: self.link.create(params))
        return ProcessStreams(numbers=numbers, key=stream_key)

    def start(self, name: str) -> None:
        """Start the container's process.

        Raises:
            CloisterError: the guest's refusal, or why the pod cannot run.
        """
        self._guard(lambda: self.link.start(name))

    def kill(self, name: str, number: int) -> None:
        """Deliver a signal.

        Raises:
            CloisterError: the guest's refusal, or why the pod cannot run.
        """
        self._guard(lambda: self.link.kill(KillParams(container=name, signal=number)))

    def attend(self, name: str, streams: ProcessStreams, terminal: Terminal) -> int:
        """Carry the streams until the process ended; return its exit status.

        Raises:
            Refused: a stream was altered, reordered or cut short on its way (`crypto.streamseal.*`).
            CloisterError: why the pod ended before its process.
        """
        done = threading.Event()
        if terminal.on_attend is not None:
            terminal.on_attend()
        errors: list[CloisterError] = []
        pumps = [
            self._pump(self._copy_out, errors, streams, "stdout", terminal.stdout),
            self._pump(self._copy_out, errors, streams, "stderr", terminal.stderr),
        ]
        aside = [
            self._pump(self._copy_in, errors, streams, terminal, done),
            self._pump(self._forward, errors, name, terminal, done),
        ]
        try:
            status = self._guard(lambda: self.link.wait(name)).status
            # A pod that ends for a reason of its own kills the workload; the reason came before this reply.
            if self.link.failed is not None:
                raise error_from_wire(self.link.failed.error)
            for pump in pumps:
                pump.join(END_SECONDS)
        finally:
            done.set()
            for pump in aside:
                pump.join(END_SECONDS)
        for error in errors:
            if not error.code.startswith(_LOST):
                raise error
        if errors or any(pump.is_alive() for pump in pumps):
            raise Unavailable("sdk.session.streams_cut", "the host cut the workload's streams before their end")
        return status

    # -- inside ------------------------------------------------------------------------------------------------

    def _pump(self, work: Callable[..., None], errors: list[CloisterError], *arguments: object) -> threading.Thread:
        def run() -> None:
            try:
                work(*arguments)
            except CloisterError as error:
                errors.append(error)

        thread = threading.Thread(target=run, name=work.__name__, daemon=True)
        thread.start()
        return thread

    def _copy_out(self, streams: ProcessStreams, name: StreamName, sink: BinaryIO) -> None:
        number = getattr(streams.numbers, name)
        if not number:
            return
        for chunk in self._plain(streams, name, number):
            sink.write(chunk)
            sink.flush()

    def _plain(self, streams: ProcessStreams, name: StreamName, number: int) -> Iterator[bytes]:
        frames = self.link.stream(number)
        if not streams.salt:
            yield from frames
            return
        opener = StreamOpener(streams.key, streams.salt, name)
        for record in frames:
            yield opener.open(record)
        opener.end()

    def _copy_in(self, streams: ProcessStreams, terminal: Terminal, done: threading.Event) -> None:
        if not streams.numbers.stdin:
            return
        stream = self.link.stream(streams.numbers.stdin)
        sealer = StreamSealer(streams.key, streams.salt, "stdin") if streams.salt else None
        while terminal.stdin is not None and not done.is_set():
            readable, _, _ = select.select([terminal.stdin], [], [], 0.1)
            if not readable:
                continue
            data = os.read(terminal.stdin, _STDIN_BYTES)
            if not data:
                break
            stream.write_record(sealer.seal(data) if sealer else data)
        if not done.is_set():
            if sealer:
                stream.write_record(sealer.finish())
            stream.end()

    def _forward(self, name: str, terminal: Terminal, done: threading.Event) -> None:
        while not done.wait(0.05):
            with contextlib.suppress(queue.Empty):
                if terminal.signals is not None:
                    self.kill(name, terminal.signals.get_nowait())
            with contextlib.suppress(queue.Empty):
                if terminal.size is not None:
                    width, height = terminal.size.get_nowait()
                    params = ResizeParams(container=name, width=width, height=height)
                    self._guard(partial(self.link.resize, params))

    def _listen(self) -> None:
        try:
            for event in self.link.events():
                match event:
                    case PhaseEvent():
                        self._phases.append(event)
                    case ReadyEvent():
                        self._ready.set()
                    case FailedEvent():
                        self._failure = error_from_wire(event.error)
                    case _:
                        pass
        except CloisterError as error:
            self._failure = self._failure or error
        finally:
            self._over.set()

    def _guard(self, call: Callable[[], _T]) -> _T:
        """Make a call; when the guest is gone, or said that it goes, say why: other refusals are its consequences."""
        try:
            return call()
        except CloisterError as error:
            if not error.code.startswith(_LOST) and self.link.failed is None:
                raise
            raise self._why_over() from error

    def _why_over(self) -> CloisterError:
        """Return the guest's own last word, else how the machine ended, else that the link is lost."""
        if self.link.failed is not None:
            return error_from_wire(self.link.failed.error)
        self._over.wait(_LAST_WORDS_SECONDS)
        if self._failure is not None:
            return self._failure
        ended = self.machine.wait(_LAST_WORDS_SECONDS)
        if ended is not None:
            return ended.error()
        return Unavailable("sdk.session.lost", "the pod does not answer any more")
