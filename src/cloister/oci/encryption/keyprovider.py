"""The key provider protocol of ocicrypt: what a container tool and the program that holds the keys tell each other.

Written from the sources of containers/ocicrypt (keywrap/keyprovider, config/keyprovider-config), and from what CoCo's
Rust programs read and write. One request (`keywrap`, `keyunwrap`), one answer, both JSON; on standard input and output
of a command, or in the one field of the messages of gRPC service `keyprovider.KeyProviderService`.

Bytes in an answer are base64 to Go and an array of integers to Rust, which reads nothing else; Go reads both. So
arrays are written, and both are read. Bytes in a request are base64 everywhere; there, too, both are read.

Also the file that `OCICRYPT_KEYPROVIDER_CONFIG` names, which says how a provider is reached. Pure. Requests hold layer
keys and the private keys of other schemes: no error and no repr here shows any of it. Trusts nobody.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from cloister.errors import ImageRefused
from cloister.oci.document import Members, encode_document, parse_document
from cloister.wire.base64 import decode_b64, encode_b64
from cloister.wire.limits import (
    ANNOTATION_BYTES,
    KEY_PROVIDER_ANSWER_BYTES,
    KEY_PROVIDER_CONFIG_BYTES,
    KEY_PROVIDER_REQUEST_BYTES,
)
from cloister.wire.protobuf import Field, encode_field, parse_message

CONFIG_VARIABLE: Final = "OCICRYPT_KEYPROVIDER_CONFIG"
SERVICE: Final = "keyprovider.KeyProviderService"
WRAP_METHOD: Final = "WrapKey"
UNWRAP_METHOD: Final = "UnWrapKey"
_CODE: Final = "oci.keyprovider"
_WRAP: Final = "keywrap"
_UNWRAP: Final = "keyunwrap"
_PARAMETERS: Final = 64  # schemes in one request, and values of one
_ARGUMENTS: Final = 64
_NAME_CHARS: Final = 128
_MESSAGE_FIELD: Final = 1
_TRANSPORTS: Final = ("cmd", "grpc", "ttrpc", "native")

Parameters = Mapping[str, tuple[bytes, ...]]
"""What a tool's user gave, by scheme or provider name."""


class WrapRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A layer's private options, to be wrapped. `parameters` are those of all schemes in use."""

    parameters: Parameters
    options: bytes

    def __repr__(self) -> str:
        return "WrapRequest()"


class UnwrapRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One element of a layer's annotation, to be opened."""

    parameters: Parameters
    annotation: bytes

    def __repr__(self) -> str:
        return "UnwrapRequest()"


# -- messages ---------------------------------------------------------------------------------------------------------


def parse_request(data: bytes) -> WrapRequest | UnwrapRequest:
    """Parse what a provider is asked.

    Raises:
        ImageRefused: `oci.keyprovider.*`: JSON, members, `operation`, `bytes`.
        FormatRefused: `wire.base64.*`.
    """
    document = parse_document(data, ceiling=KEY_PROVIDER_REQUEST_BYTES, code=_CODE)
    members = Members(document, path="request", code=_CODE)
    members.only("op", "keywrapparams", "keyunwrapparams")
    operation = members.text("op")
    if operation == _WRAP:
        inner = members.members("keywrapparams")
        inner.only("ec", "optsdata")
        config = inner.members("ec")
        config.only("Parameters", "DecryptConfig")
        return WrapRequest(parameters=_parse_parameters(config), options=_parse_bytes(inner, "optsdata"))
    if operation == _UNWRAP:
        inner = members.members("keyunwrapparams")
        inner.only("dc", "annotation")
        parameters: Parameters = {}
        if "dc" in inner:
            config = inner.members("dc")
            config.only("Parameters")
            parameters = _parse_parameters(config)
        return UnwrapRequest(parameters=parameters, annotation=_parse_bytes(inner, "annotation"))
    raise ImageRefused(
        "oci.keyprovider.operation",
        "no such operation of the key provider protocol",
        path="request.op",
        expected=f"{_WRAP} or {_UNWRAP}",
        actual=operation[:40],
    )


def encode_request(request: WrapRequest | UnwrapRequest) -> bytes:
    """Return a request as ocicrypt writes it: both parameter objects, bytes as base64."""
    parameters = {name: [encode_b64(value) for value in values] for name, values in request.parameters.items()}
    wrap: dict[str, Any] = {"ec": None, "optsdata": None}  # Any: JSON
    unwrap: dict[str, Any] = {"dc": None, "annotation": None}  # Any: JSON
    if isinstance(request, WrapRequest):
        wrap = {
            "ec": {"Parameters": parameters, "DecryptConfig": {"Parameters": {}}},
            "optsdata": encode_b64(request.options),
        }
    else:
        unwrap = {"dc": {"Parameters": parameters}, "annotation": encode_b64(request.annotation)}
    operation = _WRAP if isinstance(request, WrapRequest) else _UNWRAP
    return encode_document({"op": operation, "keywrapparams": wrap, "keyunwrapparams": unwrap})


def encode_wrap_answer(annotation: bytes) -> bytes:
    """Return the answer to a `WrapRequest`."""
    return encode_document({"keywrapresults": {"annotation": list(annotation)}})


def encode_unwrap_answer(options: bytes) -> bytes:
    """Return the answer to an `UnwrapRequest`."""
    return encode_document({"keyunwrapresults": {"optsdata": list(options)}})


def parse_wrap_answer(data: bytes) -> bytes:
    """Return the annotation that a provider made.

    Raises:
        ImageRefused: `oci.keyprovider.*`: JSON, members, `bytes`, `no_answer`.
        FormatRefused: `wire.base64.*`.
    """
    return _parse_answer(data, "keywrapresults", "annotation", "keyunwrapresults", "optsdata")


def parse_unwrap_answer(data: bytes) -> bytes:
    """Return the private options that a provider opened; raises as `parse_wrap_answer`."""
    return _parse_answer(data, "keyunwrapresults", "optsdata", "keywrapresults", "annotation")


def encode_envelope(message: bytes) -> bytes:
    """Return the gRPC message around a request or answer: one field of bytes."""
    return encode_field(_MESSAGE_FIELD, message)


def parse_envelope(data: bytes, *, ceiling: int) -> bytes:
    """Return what is in a gRPC message.

    Raises:
        FormatRefused: `oci.keyprovider.envelope.*`.
    """
    schema = {_MESSAGE_FIELD: Field(name="message", ceiling=ceiling)}
    return parse_message(data, schema, code="oci.keyprovider.envelope").text(_MESSAGE_FIELD)


def _parse_answer(data: bytes, results: str, wanted: str, others: str, unwanted: str) -> bytes:
    document = parse_document(data, ceiling=KEY_PROVIDER_ANSWER_BYTES, code=_CODE)
    members = Members(document, path="answer", code=_CODE)
    members.only(results, others)
    if others in members:  # Go writes both, the other one with null inside
        other = members.members(others)
        other.only(unwanted)
        if unwanted in other and _parse_bytes(other, unwanted, allow_empty=True):
            raise ImageRefused(
                "oci.keyprovider.answer",
                "key provider answers another question",
                path=f"answer.{others}",
                expected=results,
            )
    if results not in members:
        raise _no_answer(results)
    inner = members.members(results)
    inner.only(wanted)
    if wanted not in inner:
        raise _no_answer(f"{results}.{wanted}")
    return _parse_bytes(inner, wanted)


def _no_answer(missing: str) -> ImageRefused:
    return ImageRefused("oci.keyprovider.answer", "key provider answers nothing", path="answer", expected=missing)


def _parse_parameters(config: Members) -> Parameters:
    if "Parameters" not in config:
        return {}
    found = config.members("Parameters")
    names = found.names()
    if len(names) > _PARAMETERS or any(len(name) > _NAME_CHARS for name in names):
        raise ImageRefused(
            "oci.keyprovider.too_many",
            "too many parameters, or too long names",
            path=found.place(""),
            expected=f"at most {_PARAMETERS} of {_NAME_CHARS} characters",
        )
    return {
        name: tuple(
            decode_b64(value, path=found.place(name), ceiling=KEY_PROVIDER_REQUEST_BYTES)
            for value in found.texts(name, ceiling=_PARAMETERS)
        )
        for name in names
    }


def _parse_bytes(members: Members, name: str, *, allow_empty: bool = False) -> bytes:
    data = members.octets(name, ceiling=ANNOTATION_BYTES)
    if not data and not allow_empty:
        raise ImageRefused("oci.keyprovider.bytes", "there is nothing in it", path=members.place(name))
    return data


# -- how a provider is reached ----------------------------------------------------------------------------------------


class CommandEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A program that takes the request on standard input."""

    path: str
    arguments: tuple[str, ...] = ()


class TLSFiles(msgspec.Struct, frozen=True, kw_only=True):
    """How gRPC is protected: files of PEM; empty for the system's CAs, no certificate of ours, the address's name."""

    root_ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    server_name: str = ""


class GRPCEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A gRPC service: `unix:PATH` or `host:port`."""

    address: str
    tls: TLSFiles | None = None


class TTRPCEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A ttrpc service on a Unix socket, as CoCo's Confidential Data Hub is."""

    socket: str


Endpoint = CommandEndpoint | GRPCEndpoint | TTRPCEndpoint


def parse_endpoint(config: bytes, name: str) -> Endpoint:
    """Return how provider `name` is reached, by the content of the file that `OCICRYPT_KEYPROVIDER_CONFIG` names.

    Only what the file says of this provider is judged.

    Raises:
        ImageRefused: `oci.keyprovider.config.*`.
    """
    code = "oci.keyprovider.config"
    document = parse_document(config, ceiling=KEY_PROVIDER_CONFIG_BYTES, code=code)
    members = Members(document, path="", code=code)
    members.only("key-providers")
    providers = members.members("key-providers")
    if name not in providers:
        raise ImageRefused(
            "oci.keyprovider.config.unknown_provider",
            "the configuration names no such key provider",
            path="key-providers",
            expected=name[:80],
            actual=", ".join(sorted(providers.names()))[:200] or "none",
            hint="`cloister keyprovider config` prints an entry",
        )
    entry = providers.members(name)
    ways = [way for way in _TRANSPORTS if way in entry]
    if len(ways) != 1:
        raise ImageRefused(
            "oci.keyprovider.config.transport",
            "a key provider is reached in exactly one way",
            path=entry.place(""),
            expected="one of cmd, grpc, ttrpc",
            actual=", ".join(ways) or ", ".join(entry.names())[:80] or "nothing",
            hint='a command is written {"cmd": {"path": "/usr/bin/..", "args": []}}' if "path" in entry else "",
        )
    return _ENDPOINTS[ways[0]](entry)


def encode_config(name: str, endpoint: Endpoint) -> bytes:
    """Return a configuration file with one provider, as `parse_endpoint` reads it."""
    entry: dict[str, Any]  # Any: JSON
    if isinstance(endpoint, CommandEndpoint):
        entry = {"cmd": {"path": endpoint.path, "args": list(endpoint.arguments)}}
    elif isinstance(endpoint, TTRPCEndpoint):
        entry = {"ttrpc": f"unix://{endpoint.socket}"}
    else:
        entry = {"grpc": endpoint.address}
        if endpoint.tls is not None:
            files = {name: getattr(endpoint.tls, field) for name, field in _TLS_MEMBERS.items()}
            entry["grpc-tls"] = {name: value for name, value in files.items() if value}
    return encode_document({"key-providers": {name: entry}})


_TLS_MEMBERS: Final = {
    "root-ca-file": "root_ca_file",
    "cert-file": "certificate_file",
    "key-file": "key_file",
    "server-name": "server_name",
}


def _command(entry: Members) -> CommandEndpoint:
    entry.only("cmd")
    command = entry.members("cmd")
    command.only("path", "args")
    path = command.text("path")
    arguments = command.texts("args", ceiling=_ARGUMENTS)
    if not path or "\0" in path or any("\0" in argument for argument in arguments):
        raise ImageRefused("oci.keyprovider.config.command", "not a command", path=command.place("path"))
    return CommandEndpoint(path=path, arguments=arguments)


def _grpc(entry: Members) -> GRPCEndpoint:
    entry.only("grpc", "grpc-tls")
    address = entry.text("grpc")
    tls = None
    if "grpc-tls" in entry:
        inner = entry.members("grpc-tls")
        inner.only(*_TLS_MEMBERS, "insecure-skip-verify")
        if inner.flag("insecure-skip-verify"):
            raise ImageRefused(
                "oci.keyprovider.config.unverified",
                "layer keys are not sent to a server that proves nothing",
                path=inner.place("insecure-skip-verify"),
                hint="name the server's CA in root-ca-file",
            )
        tls = TLSFiles(**{field: inner.text(name, "") for name, field in _TLS_MEMBERS.items()})
        if bool(tls.certificate_file) != bool(tls.key_file):
            raise ImageRefused(
                "oci.keyprovider.config.certificate", "a certificate and its key belong together", path=inner.place("")
            )
    require_address(address, protected=tls is not None, path=entry.place("grpc"))
    return GRPCEndpoint(address=address, tls=tls)


def _ttrpc(entry: Members) -> TTRPCEndpoint:
    entry.only("ttrpc")
    address = entry.text("ttrpc")
    socket = address.removeprefix("unix://")
    if socket == address or not socket.startswith("/") or "\0" in socket:
        raise ImageRefused(
            "oci.keyprovider.config.address",
            "not the address of a ttrpc service",
            path=entry.place("ttrpc"),
            expected="unix:///path/of/socket",
            actual=address[:80],
        )
    return TTRPCEndpoint(socket=socket)


def _native(entry: Members) -> Endpoint:
    raise ImageRefused(
        "oci.keyprovider.config.native",
        "a native key provider is Rust code inside the program that reads this file",
        path=entry.place("native"),
        expected="cmd, grpc or ttrpc",
        actual="native",
        hint="reach the same keys by their command or service",
    )


_ENDPOINTS: Final[Mapping[str, Callable[[Members], Endpoint]]] = {
    "cmd": _command,
    "grpc": _grpc,
    "ttrpc": _ttrpc,
    "native": _native,
}


def require_address(address: str, *, protected: bool, path: str = "") -> None:
    """Return if layer keys may pass over gRPC at `address`: a Unix socket, this machine, or anywhere with TLS.

    Args:
        address: `unix:PATH`, `unix:///PATH` or `host:port`.
        protected: whether there is TLS.
        path: place in the input, for the error.

    Raises:
        ImageRefused: `oci.keyprovider.config.address`, `oci.keyprovider.config.plain_network`.
    """
    if socket_of(address):
        return
    host, colon, port = address.rpartition(":")
    well_formed = host and colon and port.isascii() and port.isdigit() and len(port) <= 5 and int(port) < 1 << 16
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not well_formed or not host.isascii() or not host.isprintable() or set(bare) & set("/@?# []"):
        raise ImageRefused(
            "oci.keyprovider.config.address",
            "not the address of a gRPC service",
            path=path,
            expected="host:port or unix:///path/of/socket",
            actual=address[:80],
        )
    if not protected and not _is_here(bare):
        raise ImageRefused(
            "oci.keyprovider.config.plain_network",
            "layer keys do not cross a network without TLS",
            path=path,
            expected="a Unix socket, this machine, or grpc-tls",
            actual=address[:80],
        )


def socket_of(address: str) -> str:
    """Return the path of a `unix:` address, empty for others."""
    for prefix in ("unix://", "unix:"):
        if address.startswith(prefix):
            path = address.removeprefix(prefix)
            return path if path.isprintable() else ""
    return ""


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
