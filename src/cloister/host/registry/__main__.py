"""Runs the embedded registry: `python -m cloister.host.registry --root DIRECTORY [--port N] ..`, see `--help`.

Plain HTTP unless it is given a certificate, on 127.0.0.1 unless told otherwise. With port 0 the kernel chooses; the
port is written to `--ready-fd` as a line once requests are answered, and to standard output otherwise. Ends cleanly on
SIGTERM and SIGINT, and with its parent: `--parent` asks the kernel for a SIGTERM when the thread that started it is
gone (prctl(2), PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from granian.constants import Interfaces, SSLProtocols
from granian.server.embed import Server

from cloister.errors import CloisterError, Unavailable
from cloister.host.registry.app import RegistryApp
from cloister.host.registry.auth import TOKEN_SECONDS, AccessControl, parse_accounts
from cloister.host.registry.store import RegistryStore

ADDRESS: Final = "127.0.0.1"
_PR_SET_PDEATHSIG: Final = 1
_POLL_SECONDS: Final = 0.02
_START_SECONDS: Final = 10.0


class TLSFiles(NamedTuple):
    """PEM files that were seen to belong together."""

    certificate: Path
    key: Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m cloister.host.registry", description="embedded image registry")
    parser.add_argument("--root", type=Path, required=True, help="directory for blobs and manifests")
    parser.add_argument("--address", default=ADDRESS, help=f"IP address to listen on [{ADDRESS}]")
    parser.add_argument("--port", type=int, default=0, help="port; 0 lets the kernel choose")
    parser.add_argument("--users", type=Path, help="file of name:password lines; without it nobody is asked")
    parser.add_argument("--tokens", action="store_true", help="ask for tokens of this registry's own /token, not Basic")
    parser.add_argument("--anonymous-pull", action="store_true", help="let everybody read")
    parser.add_argument("--token-seconds", type=float, default=TOKEN_SECONDS, help="how long a token is good")
    parser.add_argument("--tls-cert", type=Path, help="certificate and its chain, PEM; with --tls-key, TLS only")
    parser.add_argument("--tls-key", type=Path, help="its private key, PEM")
    parser.add_argument("--ready-fd", type=int, default=1, help="file descriptor that gets the port when ready")
    parser.add_argument("--parent", type=int, default=0, help="process id of the parent to end with")
    options = parser.parse_args(arguments)
    try:
        if options.parent:
            end_with_parent(options.parent)
        access = None
        if options.users:
            accounts = read_accounts(options.users)
            access = AccessControl(
                accounts,
                tokens=options.tokens,
                anonymous_pull=options.anonymous_pull,
                token_seconds=options.token_seconds,
            )

        def tell(port: int) -> None:
            os.write(options.ready_fd, f"{port}\n".encode("ascii"))
            if options.ready_fd > 2:
                os.close(options.ready_fd)

        tls = tls_files(options.tls_cert, options.tls_key)
        asyncio.run(serve(options.root, options.port, tell, address=options.address, access=access, tls=tls))
    except CloisterError as err:
        sys.stderr.write(f"cloister: error: {err}\n")
        return 3
    return 0


def end_with_parent(parent: int) -> None:
    """Ask for a SIGTERM at the parent's end, and end at once if it is gone already.

    Raises:
        Unavailable: `host.registry.parent_gone`, `host.registry.no_parent_signal`.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0):
        raise Unavailable("host.registry.no_parent_signal", "kernel takes no parent-death signal")
    if os.getppid() != parent:
        raise Unavailable("host.registry.parent_gone", "parent is gone", expected=str(parent), actual=str(os.getppid()))


async def serve(
    root: Path,
    port: int,
    ready: Callable[[int], None],
    *,
    address: str = ADDRESS,
    access: AccessControl | None = None,
    tls: TLSFiles | None = None,
) -> None:
    """Serve the registry in `root` until SIGTERM or SIGINT.

    Args:
        root: its files.
        port: 0 lets the kernel choose.
        ready: told the port once requests are answered.
        address: an IP address of this machine.
        access: who may do what; without it everybody may do everything.
        tls: from `tls_files`; without it plain HTTP is spoken.

    Raises:
        Unavailable: `host.registry.port_taken`, `host.registry.not_up`.
    """
    with _reserve(address, port) as reserved:
        port = reserved.getsockname()[1]
        server = Server(
            RegistryApp(RegistryStore(root), access),
            address=address,
            port=port,
            interface=Interfaces.ASGINL,
            websockets=False,
            log_enabled=False,
            ssl_cert=tls.certificate if tls else None,
            ssl_key=tls.key if tls else None,
            ssl_protocol_min=SSLProtocols.tls12,  # which old clients of registries still speak
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.stop)
        serving = asyncio.create_task(server.serve())
        await _wait_until_up(address, port, serving)
        ready(port)
        await serving


def tls_files(certificate: Path | None, key: Path | None) -> TLSFiles | None:
    """Return what TLS is served with, None for neither.

    Raises:
        Unavailable: one without the other, unreadable, or not a pair (`host.registry.tls`).
    """
    if certificate is None and key is None:
        return None
    try:
        if certificate is None or key is None:
            raise ValueError("--tls-cert and --tls-key belong together")
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as err:
        raise Unavailable(
            "host.registry.tls",
            "certificate and key cannot be used",
            path=f"{certificate or '--tls-cert'}, {key or '--tls-key'}",
            actual=str(err)[:120],
        ) from err
    return TLSFiles(certificate.absolute(), key.absolute())


def _no_password() -> bytes:
    raise ValueError("the key is encrypted")  # or OpenSSL would ask on the terminal


def read_accounts(path: Path) -> dict[str, str]:
    """Read a file of accounts; see `parse_accounts`.

    Raises:
        Unavailable: `host.registry.users_unreadable`.
        RequestRefused: `host.registry.accounts`.
    """
    try:
        return parse_accounts(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as err:
        raise Unavailable(
            "host.registry.users_unreadable", "cannot read the file of accounts", path=str(path), actual=str(err)[:120]
        ) from err


def _reserve(address: str, port: int) -> socket.socket:
    """Bind, without listening, next to the server's own socket, so that nobody takes the port before it listens."""
    reserved = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        reserved.bind((address, port))
    except (OSError, OverflowError) as err:
        reserved.close()
        raise Unavailable(
            "host.registry.port_taken", "address cannot be listened on", actual=f"{address}:{port}: {err}"
        ) from err
    return reserved


async def _wait_until_up(address: str, port: int, serving: asyncio.Task[None]) -> None:
    deadline = asyncio.get_running_loop().time() + _START_SECONDS
    while asyncio.get_running_loop().time() < deadline and not serving.done():
        try:
            _, writer = await asyncio.open_connection(address, port)
        except OSError:
            await asyncio.sleep(_POLL_SECONDS)
            continue
        writer.close()
        await writer.wait_closed()
        return
    raise Unavailable("host.registry.not_up", "registry did not start", actual=f"{address}:{port}")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Without the interpreter's teardown, during which threads of the server may still call into it and abort the
    # process. Nothing is lost: every file was closed and renamed when its request was answered.
    os._exit(code)
