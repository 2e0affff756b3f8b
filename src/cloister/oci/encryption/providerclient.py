"""Asks key providers to wrap and open layer keys: other people's, reached by command, gRPC or ttrpc.

What is sent holds a layer key in plain, as the protocol has it: to a program of this machine, over a socket of this
machine, or over TLS (`cloister.oci.encryption.keyprovider.require_address`). No shell, no proxy, no second try; an
answer is bounded in time and length. The provider is trusted with the layer key and with nothing else: what it answers
is parsed like anything from a stranger.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

from cloister.errors import CloisterError, ImageRefused, Unavailable
from cloister.oci.encryption.keyprovider import (
    CONFIG_VARIABLE,
    SERVICE,
    UNWRAP_METHOD,
    WRAP_METHOD,
    CommandEndpoint,
    Endpoint,
    GRPCEndpoint,
    TLSFiles,
    TTRPCEndpoint,
    UnwrapRequest,
    WrapRequest,
    encode_envelope,
    encode_request,
    parse_endpoint,
    parse_envelope,
    parse_unwrap_answer,
    parse_wrap_answer,
    socket_of,
)
from cloister.wire.limits import KEY_PROVIDER_ANSWER_BYTES, KEY_PROVIDER_CONFIG_BYTES, KEY_PROVIDER_SECONDS, KIB
from cloister.wire.protobuf import VARINT, Field, encode_field, parse_message

if TYPE_CHECKING:
    import grpc

_SCHEME: Final = "provider."
_ENABLED: Final = b"Enabled"  # what ocicrypt's tools send for a provider without parameters
_WORDS_CHARS: Final = 400
_ERROR_BYTES: Final = 16 * KIB
_ENVELOPE_BYTES: Final = 16  # around an answer
_TTRPC_HEADER: Final = 10
_TTRPC_REQUEST: Final = 1
_TTRPC_RESPONSE: Final = 2
_TTRPC_STREAM: Final = 1
_LAST_SECONDS: Final = 0.001
_NANOSECONDS: Final = 1_000_000_000

Exchange = Callable[[str, bytes], bytes]
"""Sends a request to a method and returns the answer."""


class KeyProvider:
    """A provider of ocicrypt's protocol as recipient and as key: `KeyWrapper` and `KeyUnwrapper` of the seam.

    Args:
        name: the provider's, as annotations and configuration have it.
        exchange: reaches it; `connect` makes one.
        parameters: what it is told; empty where the tool's user gave nothing.
    """

    def __init__(self, name: str, exchange: Exchange, *, parameters: str = "") -> None:
        self._name = name
        self._exchange = exchange
        self._parameters = {name: (parameters.encode() or _ENABLED,)}

    def __repr__(self) -> str:
        return f"KeyProvider({self._name})"

    @property
    def scheme(self) -> str:
        """What stands behind `org.opencontainers.image.enc.keys.`."""
        return _SCHEME + self._name

    def wrap(self, options: bytes) -> bytes:
        """Return the provider's element for `options`.

        Raises:
            ImageRefused: it refuses (`oci.keyprovider.refused`), or its answer is none.
            Unavailable: it cannot be reached.
        """
        request = WrapRequest(parameters=self._parameters, options=options)
        return parse_wrap_answer(self._exchange(WRAP_METHOD, encode_request(request)))

    def unwrap(self, element: bytes) -> bytes:
        """Return the private options that the provider finds in `element`; raises as `wrap`."""
        request = UnwrapRequest(parameters=self._parameters, annotation=element)
        return parse_unwrap_answer(self._exchange(UNWRAP_METHOD, encode_request(request)))


def open_provider(text: str, *, environment: Mapping[str, str] = os.environ) -> KeyProvider:
    """Return the provider that a tool's user names.

    Args:
        text: `NAME[:PARAMETERS]`, what stands behind `provider:`.
        environment: has `OCICRYPT_KEYPROVIDER_CONFIG`, and is what a command gets.

    Raises:
        ImageRefused: no such provider is configured, or not in a way that can be used (`oci.keyprovider.config.*`).
        Unavailable: the configuration cannot be read.
    """
    name, _, parameters = text.partition(":")
    place = environment.get(CONFIG_VARIABLE, "")
    if not place:
        raise ImageRefused(
            "oci.keyprovider.config.unset",
            "nothing says how key providers are reached",
            path=CONFIG_VARIABLE,
            hint=f"export {CONFIG_VARIABLE}=FILE; `cloister keyprovider config` prints such a file",
        )
    try:
        with Path(place).open("rb") as file:
            config = file.read(KEY_PROVIDER_CONFIG_BYTES + 1)
    except OSError as err:
        raise Unavailable(
            "oci.keyprovider.config.unreadable", f"cannot read the file: {err.strerror}", path=place[:200]
        ) from err
    return KeyProvider(name, connect(parse_endpoint(config, name), environment), parameters=parameters)


def connect(endpoint: Endpoint, environment: Mapping[str, str] = os.environ) -> Exchange:
    """Return what reaches the provider at `endpoint`; each exchange is a connection or process of its own."""
    if isinstance(endpoint, CommandEndpoint):
        return lambda _, request: asyncio.run(_run(endpoint, request, environment))
    if isinstance(endpoint, TTRPCEndpoint):
        return lambda method, request: _parse_enveloped(_ask_ttrpc(endpoint, method, encode_envelope(request)))
    return lambda method, request: _parse_enveloped(_ask_grpc(endpoint, method, encode_envelope(request)))


def _parse_enveloped(data: bytes) -> bytes:
    return parse_envelope(data, ceiling=KEY_PROVIDER_ANSWER_BYTES)


# -- command ----------------------------------------------------------------------------------------------------------


async def _run(command: CommandEndpoint, request: bytes, environment: Mapping[str, str]) -> bytes:
    """Run the program in a session of its own, so that what it leaves behind ends with it."""
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            command.path,
            *command.arguments,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=dict(environment),
            start_new_session=True,
        )
    except OSError as err:
        raise Unavailable(
            "oci.keyprovider.unreachable", f"key provider does not start: {err.strerror}", path=command.path[:200]
        ) from err
    if process.stdin is None or process.stdout is None or process.stderr is None:
        raise RuntimeError("a process without pipes")
    try:
        async with asyncio.timeout(KEY_PROVIDER_SECONDS):
            _, answer, words = await asyncio.gather(
                _feed(process.stdin, request),
                _read(process.stdout, KEY_PROVIDER_ANSWER_BYTES, command.path),
                _read(process.stderr, _ERROR_BYTES, command.path),
            )
            code = await process.wait()
    except TimeoutError as err:
        raise _silent(command.path) from err
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    if code:
        raise _refused(command.path, f"status {code}", words.decode("utf-8", "replace"))
    return answer


async def _feed(stream: asyncio.StreamWriter, request: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a program may answer without having read
        stream.write(request)
        await stream.drain()
    stream.close()


async def _read(stream: asyncio.StreamReader, ceiling: int, place: str) -> bytes:
    data = bytearray()
    while chunk := await stream.read(ceiling + 1 - len(data)):
        data += chunk
        if len(data) > ceiling:
            raise ImageRefused(
                "oci.keyprovider.too_long",
                "key provider says too much",
                path=place[:200],
                expected=f"at most {ceiling} bytes",
            )
    return bytes(data)


# -- gRPC -------------------------------------------------------------------------------------------------------------


def _ask_grpc(endpoint: GRPCEndpoint, method: str, message: bytes) -> bytes:
    grpc = load_grpc()
    options: list[tuple[str, str | int]] = [
        ("grpc.max_receive_message_length", KEY_PROVIDER_ANSWER_BYTES + _ENVELOPE_BYTES),
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),
    ]
    place = socket_of(endpoint.address)
    target = f"unix:{place}" if place else endpoint.address
    if endpoint.tls is None:
        channel = grpc.insecure_channel(target, options=options)
    else:
        if endpoint.tls.server_name:
            options.append(("grpc.ssl_target_name_override", endpoint.tls.server_name))
        channel = grpc.secure_channel(target, _credentials(endpoint.tls), options=options)
    with channel:
        call = channel.unary_unary(f"/{SERVICE}/{method}")
        try:
            answer: bytes = call(message, timeout=KEY_PROVIDER_SECONDS)
        except grpc.RpcError as err:
            raise _grpc_error(err, endpoint.address) from None  # its text shows the request's metadata
    return answer


def load_grpc() -> ModuleType:
    """Return the gRPC library.

    Raises:
        Unavailable: it is not installed (`oci.keyprovider.no_grpc`).
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it writes to standard error on its own
    try:
        import grpc
    except ImportError as err:
        raise Unavailable(
            "oci.keyprovider.no_grpc",
            "key providers over gRPC need a library that is not installed",
            hint="pip install 'cloister[grpc]', or reach the provider by its command",
        ) from err
    return grpc


def _credentials(files: TLSFiles) -> grpc.ChannelCredentials:
    credentials: grpc.ChannelCredentials = load_grpc().ssl_channel_credentials(
        root_certificates=_content(files.root_ca_file),
        private_key=_content(files.key_file),
        certificate_chain=_content(files.certificate_file),
    )
    return credentials


def _content(place: str) -> bytes | None:
    if not place:
        return None
    try:
        with Path(place).open("rb") as file:
            return file.read(KEY_PROVIDER_CONFIG_BYTES)
    except OSError as err:
        raise Unavailable(
            "oci.keyprovider.config.unreadable", f"cannot read the file: {err.strerror}", path=place[:200]
        ) from err


def _grpc_error(err: grpc.RpcError, address: str) -> CloisterError:
    status: grpc.StatusCode = err.code()
    name = status.name
    if name == "DEADLINE_EXCEEDED":
        return _silent(address)
    if name == "UNAVAILABLE":
        return _unreachable(address, err.details() or "")
    return _refused(address, name, err.details() or "")


# -- ttrpc ------------------------------------------------------------------------------------------------------------
#
# containerd/ttrpc, PROTOCOL.md: frames of a 10-byte header (length u32, stream u32, type u8, flags u8; big-endian) and
# a message. One unary call on one connection.


def _ask_ttrpc(endpoint: TTRPCEndpoint, method: str, message: bytes) -> bytes:
    request = b"".join(
        (
            encode_field(1, SERVICE.encode()),
            encode_field(2, method.encode()),
            encode_field(3, message),
            encode_field(4, KEY_PROVIDER_SECONDS * _NANOSECONDS),
        )
    )
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            ends = time.monotonic() + KEY_PROVIDER_SECONDS
            connection.settimeout(KEY_PROVIDER_SECONDS)
            connection.connect(endpoint.socket)
            connection.sendall(_ttrpc_frame(request))
            body = _ttrpc_answer(connection, endpoint.socket, ends)
    except TimeoutError as err:
        raise _silent(endpoint.socket) from err
    except OSError as err:
        raise _unreachable(endpoint.socket, err.strerror or "") from err
    code = "oci.keyprovider.envelope"
    ceiling = KEY_PROVIDER_ANSWER_BYTES + _ENVELOPE_BYTES
    schema = {1: Field(name="status", ceiling=_ERROR_BYTES), 2: Field(name="payload", ceiling=ceiling)}
    response = parse_message(body, schema, code=code)
    status = parse_message(
        response.text(1),
        {
            1: Field(name="code", kind=VARINT),
            2: Field(name="message", ceiling=_ERROR_BYTES),
            3: Field(name="details", most=16, ceiling=_ERROR_BYTES),
        },
        code=code,
    )
    if status.number(1):
        raise _refused(endpoint.socket, f"status {status.number(1)}", status.text(2).decode("utf-8", "replace"))
    return response.text(2)


def _ttrpc_frame(message: bytes) -> bytes:
    head = len(message).to_bytes(4, "big") + _TTRPC_STREAM.to_bytes(4, "big") + bytes([_TTRPC_REQUEST, 0])
    return head + message


def _ttrpc_answer(connection: socket.socket, place: str, ends: float) -> bytes:
    head = _receive(connection, _TTRPC_HEADER, place, ends)
    length, stream = int.from_bytes(head[:4], "big"), int.from_bytes(head[4:8], "big")
    if stream != _TTRPC_STREAM or head[8] != _TTRPC_RESPONSE:
        raise ImageRefused("oci.keyprovider.envelope.malformed", "key provider does not speak ttrpc", path=place[:200])
    ceiling = KEY_PROVIDER_ANSWER_BYTES + _ERROR_BYTES
    if length > ceiling:
        raise ImageRefused(
            "oci.keyprovider.too_long",
            "key provider says too much",
            path=place[:200],
            expected=f"at most {ceiling} bytes",
        )
    return _receive(connection, length, place, ends)


def _receive(connection: socket.socket, count: int, place: str, ends: float) -> bytes:
    data = bytearray()
    while len(data) < count:
        connection.settimeout(max(ends - time.monotonic(), _LAST_SECONDS))
        chunk = connection.recv(count - len(data))
        if not chunk:
            raise _unreachable(place, "connection closed")
        data += chunk
    return bytes(data)


# -- errors -----------------------------------------------------------------------------------------------------------


def _refused(place: str, status: str, words: str) -> ImageRefused:
    said = " ".join(words.split())[:_WORDS_CHARS]
    return ImageRefused(
        "oci.keyprovider.refused",
        f"key provider refuses: {said or 'without a reason'}",
        path=place[:200],
        actual=status,
    )


def _unreachable(place: str, words: str) -> Unavailable:
    said = " ".join(words.split())[:_WORDS_CHARS]
    return Unavailable("oci.keyprovider.unreachable", f"key provider cannot be reached: {said}", path=place[:200])


def _silent(place: str) -> Unavailable:
    return Unavailable(
        "oci.keyprovider.unreachable", f"key provider gave no answer in {KEY_PROVIDER_SECONDS} s", path=place[:200]
    )
