"""The provider as a gRPC service: package `keyprovider`, service `KeyProviderService`, `WrapKey` and `UnWrapKey`.

Whoever can connect can have layer keys opened. So: a Unix socket that its owner alone can open; or TLS that demands a
certificate of the given CA from who connects; or, said aloud, a port that every user of this machine can reach.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec

from cloister.errors import CloisterError, ImageRefused, Unavailable
from cloister.imagetool.keyprovider.provider import Provider
from cloister.oci.encryption.keyprovider import (
    SERVICE,
    UNWRAP_METHOD,
    WRAP_METHOD,
    encode_envelope,
    parse_envelope,
    require_address,
    socket_of,
)
from cloister.oci.encryption.providerclient import load_grpc
from cloister.wire.limits import KEY_PROVIDER_REQUEST_BYTES

if TYPE_CHECKING:
    import grpc

_PRIVATE: Final = 0o177
_THREADS: Final = 4
_WAITING: Final = 16  # more are told to come again
_ENVELOPE_BYTES: Final = 16
_GRACE_SECONDS: Final = 2.0
_PROBE_SECONDS: Final = 1.0

Complain = Callable[[CloisterError], None]


class ServerTLS(msgspec.Struct, frozen=True, kw_only=True):
    """PEM: our certificate with its key, and the CA of whoever may connect."""

    certificate: bytes
    key: bytes
    client_ca: bytes

    def __repr__(self) -> str:
        return "ServerTLS()"


@contextmanager
def serving(
    provider: Provider,
    address: str,
    *,
    tls: ServerTLS | None,
    complain: Complain,
    insecure_any_local_user: bool,
) -> Iterator[str]:
    """Answer until the block ends; give the address, with the port that was chosen for port 0.

    Args:
        provider: answers.
        address: `unix:PATH` or `host:port`.
        tls: for a port.
        complain: told of what was refused.
        insecure_any_local_user: a port without TLS is wanted.

    Raises:
        ImageRefused: not such an address, or one that everybody could use (`imagetool.keyprovider.listen`).
        Unavailable: it cannot be listened on, or the library is missing.
    """
    grpc = load_grpc()
    path = socket_of(address)
    require_address(address, protected=tls is not None, path="--listen")
    if not path and tls is None and not insecure_any_local_user:
        raise ImageRefused(
            "imagetool.keyprovider.listen",
            "every user of this machine could have layer keys opened at a port",
            path="--listen",
            expected="unix:PATH, or TLS with --tls-cert, --tls-key and --client-ca",
            actual=address[:80],
            hint="for a machine that is yours alone: --insecure-any-local-user",
        )
    server = grpc.server(
        ThreadPoolExecutor(_THREADS, thread_name_prefix="keyprovider"),
        options=[
            ("grpc.max_receive_message_length", KEY_PROVIDER_REQUEST_BYTES + _ENVELOPE_BYTES),
            ("grpc.so_reuseport", 0),
        ],
        maximum_concurrent_rpcs=_WAITING,
    )
    method = grpc.unary_unary_rpc_method_handler(_handler(provider, complain))
    handlers = grpc.method_handlers_generic_handler(SERVICE, {WRAP_METHOD: method, UNWRAP_METHOD: method})
    server.add_generic_rpc_handlers((handlers,))
    port = _bind(server, address, path, tls)
    try:
        server.start()
        yield address if path else f"{address.rpartition(':')[0]}:{port}"
    finally:
        server.stop(_GRACE_SECONDS).wait()
        if path:
            with contextlib.suppress(FileNotFoundError):
                Path(path).unlink()


def _handler(provider: Provider, complain: Complain) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    def handle(message: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return encode_envelope(provider.answer(parse_envelope(message, ceiling=KEY_PROVIDER_REQUEST_BYTES)))
        except CloisterError as err:
            complain(err)
            _abort(context, err)

    return handle


def _abort(context: grpc.ServicerContext, err: CloisterError) -> NoReturn:
    grpc = load_grpc()
    status = grpc.StatusCode.UNAVAILABLE if isinstance(err, Unavailable) else grpc.StatusCode.FAILED_PRECONDITION
    context.abort(status, str(err))


def _bind(server: grpc.Server, address: str, path: str, tls: ServerTLS | None) -> int:
    """Listen, and return the port."""
    grpc = load_grpc()
    try:
        if path:
            _require_free(Path(path))
            before = os.umask(_PRIVATE)  # between making the socket and closing it to others there is no moment
            try:
                return server.add_insecure_port(f"unix:{path}")
            finally:
                os.umask(before)
        if tls is None:
            return server.add_insecure_port(address)
        pair = [(tls.key, tls.certificate)]
        credentials = grpc.ssl_server_credentials(pair, tls.client_ca, require_client_auth=True)
        return server.add_secure_port(address, credentials)
    except RuntimeError as err:  # what the library raises when it cannot
        raise Unavailable("imagetool.keyprovider.bind", "cannot listen there", path=address[:200]) from err


def _require_free(path: Path) -> None:
    """Return if nobody listens at `path` and nothing else than a socket nobody uses is there.

    Raises:
        Unavailable: `imagetool.keyprovider.bind`.
    """
    try:
        mode = path.stat(follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    except OSError as err:
        raise Unavailable(
            "imagetool.keyprovider.bind", f"cannot listen there: {err.strerror}", path=str(path)[:200]
        ) from err
    if stat.S_ISSOCK(mode):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(_PROBE_SECONDS)
            if probe.connect_ex(str(path)):
                return
    raise Unavailable("imagetool.keyprovider.bind", "somebody listens there, or it is no socket", path=str(path)[:200])
