"""What the agent and its key process say to each other: one request, one answer, whole messages over a socket pair.

    extend    digest of the init data, into register 8: first, and once
    open      the exact init data that was measured; it names the key broker: second, and once
    attest    do the handshake
    token     the Attestation Result
    resource  a resource of the broker

A message is a u32 big-endian length and that many bytes of MessagePack. Each side trusts the other with nothing that
is not here: unknown kinds, fields and lengths refuse, and whoever reads a wrong one ends the connection.

A refusal crosses as it is: class, code, message, path (a denial's id), expected, actual and hint.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from cloister.errors import (
    AppraisalRefused,
    CloisterError,
    EndorsementError,
    EvidenceError,
    FormatRefused,
    ImageRefused,
    KeyReleaseDenied,
    PodPolicyRefused,
    Refused,
    RequestRefused,
    Unavailable,
)
from cloister.wire.limits import INITDATA_BYTES, KEY_ANSWER_BYTES, KEY_REQUEST_BYTES, RESOURCE_BYTES

if TYPE_CHECKING:
    from _socket import socket

_LENGTH_BYTES: Final = 4
_DIGEST_BYTES: Final = 32
_LEASE_SECONDS: Final = 10**8
_PATH_CHARS: Final = 400  # three segments of 128 and their slashes
_MALFORMED: Final = "guest.keys.malformed"
_KINDS: Final = {
    kind.__name__: kind
    for kind in (
        Refused,
        FormatRefused,
        EvidenceError,
        EndorsementError,
        AppraisalRefused,
        KeyReleaseDenied,
        ImageRefused,
        PodPolicyRefused,
        RequestRefused,
        Unavailable,
    )
}


class _Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all messages: unknown fields refuse."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"  # a message may hold a secret


class Extend(_Message, frozen=True, kw_only=True, tag="extend"):
    """Extend register 8 with the digest of the init data."""

    digest: Annotated[bytes, msgspec.Meta(min_length=_DIGEST_BYTES, max_length=_DIGEST_BYTES)]


class Open(_Message, frozen=True, kw_only=True, tag="open"):
    """Take the init data whose digest was extended."""

    init_data: Annotated[bytes, msgspec.Meta(max_length=INITDATA_BYTES)]


class Attest(_Message, frozen=True, kw_only=True, tag="attest"):
    """Do the handshake, also anew."""


class GetToken(_Message, frozen=True, kw_only=True, tag="token"):
    """Return the token of the last handshake."""


class GetResource(_Message, frozen=True, kw_only=True, tag="resource"):
    """Return a resource, `repository/type/tag`."""

    path: Annotated[str, msgspec.Meta(max_length=_PATH_CHARS)]


class Done(_Message, frozen=True, kw_only=True, tag="done"):
    """It is done."""


class Token(_Message, frozen=True, kw_only=True, tag="token"):
    """The Attestation Result, a JWT."""

    token: str


class Resource(_Message, frozen=True, kw_only=True, tag="resource"):
    """A resource and the seconds of its lease, 0 for none; decoded, it is a view of the message, which the reader
    overwrites."""

    value: memoryview
    lease: Annotated[int, msgspec.Meta(ge=0, le=_LEASE_SECONDS)] = 0


class Failure(_Message, frozen=True, kw_only=True, tag="failure"):
    """A refusal, or that the answer cannot be known now."""

    kind: str
    code: str
    message: str
    path: str = ""
    expected: str = ""
    actual: str = ""
    hint: str = ""


Request = Extend | Open | Attest | GetToken | GetResource
Answer = Done | Token | Resource | Failure


class PeerGone(Exception):
    """The other process ended, or closed its end."""


def failure_of(error: CloisterError) -> Failure:
    """Return what tells `error` to the other side."""
    kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _KINDS)
    return Failure(kind=kind, code=error.code, **_texts(error))


def error_of(failure: Failure) -> CloisterError:
    """Return the error that `failure` tells.

    Raises:
        FormatRefused: of an unknown class (`guest.keys.malformed`).
    """
    kind = _KINDS.get(failure.kind)
    if kind is None:
        raise malformed("a refusal of an unknown class")
    return kind(
        failure.code,
        failure.message,
        path=failure.path,
        expected=failure.expected,
        actual=failure.actual,
        hint=failure.hint,
    )


def send_request(connection: socket, request: Request) -> None:
    """Send a request whole.

    Raises:
        PeerGone: nobody takes it.
    """
    _send(connection, request, KEY_REQUEST_BYTES)


def send_answer(connection: socket, answer: Answer) -> None:
    """Send an answer whole and overwrite what was sent.

    Raises:
        PeerGone: nobody takes it.
    """
    _send(connection, answer, KEY_ANSWER_BYTES)


def receive_request(connection: socket) -> Request:
    """Return the next request.

    Raises:
        PeerGone: there will be none.
        FormatRefused: it is none (`guest.keys.malformed`).
    """
    data = _receive(connection, KEY_REQUEST_BYTES)
    with _refusing():
        request: Request = msgspec.msgpack.decode(data, type=Request)
    return request


def receive_answer(connection: socket) -> bytearray:
    """Return the bytes of the next answer, for `decode_answer`; the caller overwrites them.

    Raises:
        PeerGone: there will be none.
        FormatRefused: a length that none has (`guest.keys.malformed`).
    """
    return _receive(connection, KEY_ANSWER_BYTES)


def decode_answer(data: bytearray) -> Answer:
    """Return the answer in `data`; a resource is a view of it.

    Raises:
        FormatRefused: it is none (`guest.keys.malformed`).
    """
    with _refusing():
        answer: Answer = msgspec.msgpack.decode(data, type=Answer)
    if isinstance(answer, Resource) and len(answer.value) > RESOURCE_BYTES:
        raise malformed("a resource longer than one may be")
    return answer


def _send(connection: socket, message: msgspec.Struct, ceiling: int) -> None:
    buffer = bytearray(_LENGTH_BYTES)
    msgspec.msgpack.Encoder().encode_into(message, buffer, _LENGTH_BYTES)
    try:
        length = len(buffer) - _LENGTH_BYTES
        if length > ceiling:
            raise RuntimeError("a message to the other process exceeds its ceiling")
        buffer[:_LENGTH_BYTES] = length.to_bytes(_LENGTH_BYTES, "big")
        connection.sendall(buffer)
    except OSError as err:
        raise PeerGone from err
    finally:
        buffer[:] = bytes(len(buffer))


def _receive(connection: socket, ceiling: int) -> bytearray:
    length = int.from_bytes(_receive_exactly(connection, _LENGTH_BYTES), "big")
    if not 0 < length <= ceiling:
        raise malformed("a length that no message has")
    return _receive_exactly(connection, length)


def _receive_exactly(connection: socket, count: int) -> bytearray:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        try:
            received = connection.recv_into(view)
        except OSError as err:
            raise PeerGone from err
        if not received:
            raise PeerGone
        view = view[received:]
    return data


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise malformed("not a message") from err


def _texts(error: CloisterError) -> dict[str, str]:
    return {name: text for name, text in error.as_dict().items() if name != "code"}


def malformed(what: str) -> FormatRefused:
    """Return the refusal of something that is no message here."""
    return FormatRefused(
        _MALFORMED, f"the agent and its key process do not understand each other: {what}", hint="start a new pod"
    )
