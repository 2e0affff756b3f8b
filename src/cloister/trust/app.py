"""The trust service as a process: TLS by its own CA, one worker, ready report, clean end.

    python -m cloister.trust.app --state DIR --listen 127.0.0.1:0 --ready-file F

HTTP and TLS 1.3 are granian's, embedded in this process' event loop. Port 0 is not granian's: this module binds a free
port, keeps it bound (not listening) with SO_REUSEPORT, and granian listens on the same port of the same user. Nobody
else can take the port in between, and a port that is in use is refused before anything starts.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from cloister import __version__
from cloister.errors import CloisterError, Refused, Unavailable
from cloister.trust.journal import Journal
from cloister.trust.service import TrustService
from cloister.trust.settings import LOOPBACK, TrustSettings, settings_from_arguments
from cloister.trust.statedir import write_whole
from cloister.trust.web import trust_application
from cloister.trust.web.identity import identity_mounts

_START_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.002
_BACKLOG: Final = 1024
_HEADER_MILLISECONDS: Final = 10_000
_HEADER_BUFFER_BYTES: Final = 512 * 1024  # a bearer token travels in a header
_SWITCH_SECONDS: Final = 0.001  # a thread that holds the interpreter is asked to yield after this time


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The ready report: where the service answers, from the moment it does.

    Attributes:
        pid: process id.
        host: address it listens on.
        port: port it listens on.
        url: address for a client on this machine.
        ca_file: CA certificate to pin.
    """

    pid: int
    host: str
    port: int
    url: str
    ca_file: str


def serve(settings: TrustSettings, *, on_ready: Callable[[Ready], None] | None = None) -> None:
    """Run the service until SIGTERM or SIGINT; main thread only.

    Args:
        settings: what to run with.
        on_ready: called once it answers.

    Raises:
        Refused: the state directory is not private, or the port is taken (`trust.app.address_in_use`).
        Unavailable: state or store cannot be used, or the server does not start.
    """

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await serve_until(settings, stop, on_ready=on_ready)

    asyncio.run(run())


async def serve_until(
    settings: TrustSettings, stop: asyncio.Event, *, on_ready: Callable[[Ready], None] | None = None
) -> None:
    """Run the service in the current event loop until `stop` is set; otherwise as `serve`."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    journal = Journal()
    with _watched_parent(settings, stop), TrustService(settings) as service:
        mounts = identity_mounts(service.identity)
        app = trust_application(service.broker_of, service, settings, journal, mounts=mounts, log=service.public_log)
        tls = service.keys.issued_tls(settings.names, at=datetime.now(UTC))
        with tls as (certificate, key), _reserved(settings) as port:
            server = Server(
                app,
                address=settings.host,
                port=port,
                interface=Interfaces.ASGINL,
                http=HTTPModes.http1,
                http1_settings=HTTP1Settings(
                    header_read_timeout=_HEADER_MILLISECONDS, max_buffer_size=_HEADER_BUFFER_BYTES
                ),
                websockets=False,
                backlog=_BACKLOG,
                log_enabled=False,
                ssl_cert=certificate,
                ssl_key=key,
            )
            running = asyncio.ensure_future(server.serve())
            try:
                await _answering(settings, port, running)
                ready = _report(settings, service, port)
                journal.note("ready", host=settings.host, port=port, pid=os.getpid(), version=__version__)
                if on_ready is not None:
                    on_ready(ready)
                await _first(stop, running)
            finally:
                journal.note("stopping", reason="asked to" if stop.is_set() else "server ended")
                await app.drain(settings.shutdown_seconds)
                server.stop()  # type: ignore[no-untyped-call]  # granian leaves this one method untyped
                await running
                app.close()
    journal.note("stopped")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a process; return the exit code: 0 ended as asked, 1 refused, 3 unavailable."""
    try:
        serve(settings_from_arguments(sys.argv[1:] if arguments is None else arguments))
    except CloisterError as err:
        sys.stderr.write(f"cloister: error: {err}\n")
        if err.hint:
            sys.stderr.write(f"cloister: hint: {err.hint}\n")
        return 3 if isinstance(err, Unavailable) else 1
    return 0


def _report(settings: TrustSettings, service: TrustService, port: int) -> Ready:
    address = ipaddress.ip_address(settings.host)
    reachable = LOOPBACK if address.is_unspecified else settings.host
    host = f"[{reachable}]" if ":" in reachable else reachable
    ready = Ready(
        pid=os.getpid(),
        host=settings.host,
        port=port,
        url=f"https://{host}:{port}",
        ca_file=str(service.state.ca_file),
    )
    text = msgspec.json.encode(asdict(ready)) + b"\n"
    try:
        if settings.ready_file is not None:
            write_whole(settings.ready_file, text, mode=0o644)
        if settings.ready_fd is not None:
            os.write(settings.ready_fd, text)
            os.close(settings.ready_fd)
    except OSError as err:
        raise Unavailable("trust.app.ready", f"cannot write the ready report: {err.strerror}") from err
    return ready


@contextmanager
def _reserved(settings: TrustSettings) -> Iterator[int]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as reservation:
        # A given port may still linger from the last run; for port 0 this would let the kernel pick a port twice.
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(settings.port != 0))
        try:
            reservation.bind((settings.host, settings.port))
        except OSError as err:
            raise Refused(
                "trust.app.address_in_use",
                f"cannot listen: {err.strerror}",
                path=f"{settings.host}:{settings.port}",
                hint="choose another --listen; port 0 takes a free one",
            ) from err
        # Only now: binding without it is what finds a port that somebody else, even of this user, listens on.
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        yield int(reservation.getsockname()[1])


async def _answering(settings: TrustSettings, port: int, running: asyncio.Future[None]) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + _START_SECONDS
    address = ipaddress.ip_address(settings.host)
    host = str(address) if not address.is_unspecified else ("::1" if address.version == 6 else LOOPBACK)
    while not running.done() and loop.time() < until:
        with suppress(OSError):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
            return
        await asyncio.sleep(_POLL_SECONDS)
    raise Unavailable("trust.app.start", "the server does not answer", path=f"{settings.host}:{port}")


async def _first(stop: asyncio.Event, running: asyncio.Future[None]) -> None:
    """Wait until asked to stop, or until the server ends by itself."""
    asked = asyncio.ensure_future(stop.wait())
    either: set[asyncio.Future[Any]] = {asked, running}  # Any: two futures of different results
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()


@contextmanager
def _watched_parent(settings: TrustSettings, stop: asyncio.Event) -> Iterator[None]:
    """Set `stop` when the parent process ends, if asked for.

    A pidfd, not PR_SET_PDEATHSIG: that one fires when the *thread* that started us ends.
    """
    if not settings.die_with_parent:
        yield
        return
    parent = os.getppid()
    try:
        descriptor = os.pidfd_open(parent)
    except OSError as err:
        raise Unavailable("trust.app.parent", "the starting process is gone") from err
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, stop.set)
    try:
        if os.getppid() != parent:
            stop.set()
        yield
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
