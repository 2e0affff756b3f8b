"""The trust service as a process: TLS by its own CA, one worker or several, ready report, clean end.

    python -m cloister.trust.app --data DIR --listen 127.0.0.1:0 --ready-file F

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
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from cloister import __version__
from cloister.errors import CloisterError, Refused, Unavailable
from cloister.trust.configuration import settings_from_arguments
from cloister.trust.journal import Journal
from cloister.trust.observing import add_gauges, called_webhook, exported_traces
from cloister.trust.service import TrustService
from cloister.trust.settings import LOOPBACK, TrustSettings
from cloister.trust.statedir import StateDirectory
from cloister.trust.telemetry import MULTIPROCESS_VARIABLE, Telemetry, forget_process
from cloister.trust.web import JWKS, LOG, json_response, log_response, metrics_application, trust_application
from cloister.trust.web.admin.mount import administration_of, mount_administration
from cloister.trust.web.coco import CoCoRoutes
from cloister.trust.web.identity import identity_mounts
from cloister.trust.workers import Supervisor
from cloister.wholefile import READABLE, write_whole

_START_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.002
_BACKLOG: Final = 1024
_HEADER_MILLISECONDS: Final = 10_000
_HEADER_BUFFER_BYTES: Final = 512 * 1024  # a bearer token travels in a header
_INSECURE: Final = "plain HTTP: whoever is on the way reads and changes everything"
_SWITCH_SECONDS: Final = 0.001  # a thread that holds the interpreter is asked to yield after this time


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldPort:
    """A port that a supervisor has bound for its workers, and the number of one of them."""

    port: int
    worker: int


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

    if settings.workers > 1:
        _serve_by_workers(settings, on_ready)
    else:
        _serve_here(settings, on_ready=on_ready)


def _serve_here(
    settings: TrustSettings, *, on_ready: Callable[[Ready], None] | None = None, held: HeldPort | None = None
) -> None:
    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await serve_until(settings, stop, on_ready=on_ready, held=held)

    asyncio.run(run())


def _serve_by_workers(settings: TrustSettings, on_ready: Callable[[Ready], None] | None) -> None:
    journal = Journal()
    # Made before any worker: their refusals would be told once by each.
    state = StateDirectory(settings.state)
    with _reserved(settings) as port, tempfile.TemporaryDirectory(prefix="cloister-metrics-") as metrics:
        os.environ[MULTIPROCESS_VARIABLE] = metrics

        reports = set() if settings.ready_fd is None else {settings.ready_fd}

        def work(number: int, ready: int) -> int:
            for descriptor in reports:
                os.close(descriptor)  # whoever reads the report waits for its end
            own = replace(settings, port=port, ready_fd=ready, ready_file=None, die_with_parent=True, workers=1)
            return _exit_code(lambda: _serve_here(own, held=HeldPort(port=port, worker=number)))

        def all_ready() -> None:
            ready = _report(settings, state, port)
            reports.clear()
            _announce(journal, settings, port)
            if on_ready is not None:
                on_ready(ready)

        code = Supervisor(
            settings.workers,
            work,
            on_ready=all_ready,
            on_death=forget_process,
            journal=journal,
            drain_seconds=settings.shutdown_seconds,
            parent=os.getppid() if settings.die_with_parent else None,
        ).run()
    if code:
        sys.exit(code if code > 0 else 3)
    journal.note("stopped")


async def serve_until(
    settings: TrustSettings,
    stop: asyncio.Event,
    *,
    on_ready: Callable[[Ready], None] | None = None,
    held: HeldPort | None = None,
) -> None:
    """Run the service in the current event loop until `stop` is set; otherwise as `serve`.

    Args:
        settings: what to run with.
        stop: asks for a clean end.
        on_ready: called once it answers.
        held: the port that a supervisor holds for this worker; None to take the settings' own.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    journal = Journal(worker=held.worker if held else 0)
    telemetry = Telemetry(tenants=settings.metrics_tenants)
    with (
        _watched_parent(settings, stop),
        exported_traces(settings),
        called_webhook(settings, telemetry) as webhook,
        TrustService(settings, committed=telemetry.committed) as service,
    ):
        add_gauges(telemetry, service)
        administration = administration_of(service)
        app = trust_application(
            service.broker_of,
            service,
            settings,
            journal,
            mounts=(*identity_mounts(service.identity), mount_administration(administration)),
            telemetry=telemetry,
            readiness=service.readiness(),
            webhook=webhook,
            files={
                JWKS: lambda _: json_response(service.keys.signing.jwks()),
                LOG: lambda path: log_response(service.public_log.get(path)),
            },
            besides=CoCoRoutes(administration, settings),
        )
        service.store.gather(lambda: app.admitted)
        tls = nullcontext((None, None)) if settings.insecure_http else _tls(service, settings)
        with tls as (certificate, key), _reserved(settings) if held is None else nullcontext(held.port) as port:
            servers = [_server(app, settings.host, port, certificate, key)]
            if settings.metrics_listen is not None:
                aside = metrics_application(telemetry)
                servers.append(_server(aside, *settings.metrics_listen, certificate, key))
            running = asyncio.ensure_future(_all_of(servers))
            try:
                await _answering(settings, port, running)
                ready = _report(settings, service.state, port)
                if held is None:
                    _announce(journal, settings, port)
                if on_ready is not None:
                    on_ready(ready)
                await _first(stop, running)
            finally:
                journal.note("stopping", reason="asked to" if stop.is_set() else "server ended")
                await app.drain(settings.shutdown_seconds)
                for server in servers:
                    server.stop()  # type: ignore[no-untyped-call]  # granian leaves this one method untyped
                await running
                app.close()
    journal.note("stopped")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a process; return the exit code: 0 ended as asked, 1 refused, 3 unavailable."""
    given = sys.argv[1:] if arguments is None else arguments
    return _exit_code(lambda: serve(settings_from_arguments(given)))


def _exit_code(run: Callable[[], None]) -> int:
    try:
        run()
    except CloisterError as err:
        sys.stderr.write(f"cloister: error: {err}\n")
        if err.hint:
            sys.stderr.write(f"cloister: hint: {err.hint}\n")
        return 3 if isinstance(err, Unavailable) else 1
    return 0


async def _all_of(servers: Sequence[Server]) -> None:
    await asyncio.gather(*(server.serve() for server in servers))


def _server(
    application: Any,  # Any: an ASGI application, as granian takes it
    host: str,
    port: int,
    certificate: Path | None,
    key: Path | None,
) -> Server:
    return Server(
        application,
        address=host,
        port=port,
        interface=Interfaces.ASGINL,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=_HEADER_MILLISECONDS, max_buffer_size=_HEADER_BUFFER_BYTES),
        websockets=False,
        backlog=_BACKLOG,
        log_enabled=False,
        ssl_cert=certificate,
        ssl_key=key,
    )


def _announce(journal: Journal, settings: TrustSettings, port: int) -> None:
    if settings.insecure_http:
        journal.warn("insecure_http", host=settings.host, port=port, reason=_INSECURE)
    journal.note("ready", host=settings.host, port=port, pid=os.getpid(), version=__version__)


def _tls(service: TrustService, settings: TrustSettings) -> AbstractContextManager[tuple[Path | None, Path | None]]:
    return service.keys.issued_tls(settings.names, at=datetime.now(UTC))


def _report(settings: TrustSettings, state: StateDirectory, port: int) -> Ready:
    address = ipaddress.ip_address(settings.host)
    reachable = LOOPBACK if address.is_unspecified else settings.host
    host = f"[{reachable}]" if ":" in reachable else reachable
    ready = Ready(
        pid=os.getpid(),
        host=settings.host,
        port=port,
        url=f"{'http' if settings.insecure_http else 'https'}://{host}:{port}",
        ca_file=str(state.ca_file),
    )
    text = msgspec.json.encode(asdict(ready)) + b"\n"
    try:
        if settings.ready_file is not None:
            write_whole(settings.ready_file, text, mode=READABLE)
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
