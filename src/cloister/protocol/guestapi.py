"""The host-to-guest API: a closed, versioned schema over two virtio-serial ports.

The host is hostile. It may only send the calls in `CALLS`, each with exactly the fields of its type; an unknown
call, field, version or stream refuses. No call carries a file, a mount, a hook, an OCI spec or anything the guest
would execute or write somewhere: what runs is said by the measured pod policy and the verified image; the host only
says *when*, and may state what it believes so that a disagreement is found.

Control port (`cloister.control`): frames of u32 big-endian length and that many bytes of JSON.
    host -> guest   Call   {"v":1, "id":n, "call":"create", "params":{..}}
    guest -> host   Reply  {"v":1, "id":n, "result":{..}}  or  {"v":1, "id":n, "error":{"code":..,"message":..}}
    guest -> host   Event  {"v":1, "event":"exit", "data":{..}}
Streams port (`cloister.streams`): frames of u32 stream, u8 kind, 3 zero bytes, u32 length (all big-endian), then the
payload. Each stream has a credit window in bytes (`STREAM_WINDOW_BYTES` at first): a sender stops at zero credit, a
receiver grants more with WINDOW frames, so one stalled stream holds up neither the others nor the control port.

The calls mirror what a containerd shim v2 needs (`containerd.task.v2.Task`): create, start, exec, kill, wait, stats,
resize, close-io, state, pids, pause, resume, delete, shutdown.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final, TypeVar

import msgspec

from cloister.errors import CloisterError, FormatRefused, Refused, RequestRefused, Unavailable
from cloister.wire.limits import (
    GUESTAPI_FRAME_BYTES,
    GUESTAPI_ID_CHARS,
    STREAM_FRAME_BYTES,
    STREAM_WINDOW_BYTES,
)

_M = TypeVar("_M", bound=msgspec.Struct)
VERSION: Final = 1
CONTROL_PORT: Final = "cloister.control"
STREAMS_PORT: Final = "cloister.streams"
SCRATCH_SERIAL: Final = "cloister-scratch"  # what the scratch disk calls itself; at most 20 bytes
LENGTH_PREFIX_BYTES: Final = 4
STREAM_HEADER_BYTES: Final = 12
INITIAL_WINDOW: Final = STREAM_WINDOW_BYTES
LAST_SIGNAL: Final = 64  # Linux, signal(7)
TERMINAL_CELLS: Final = 0xFFFF  # the kernel's struct winsize has 16-bit fields


class _Closed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all messages the host may send: unknown fields refuse."""


class ProcessClaim(_Closed, frozen=True, kw_only=True):
    """What the host believes will run. It changes nothing; a difference from what the guest derived refuses."""

    args: list[str]
    env: list[str]
    cwd: str
    user: str


class CreateParams(_Closed, frozen=True, kw_only=True):
    """Create the container `name` of the pod policy under the host's identifier `container`.

    `registry` is where the host suggests to pull from (`http://10.0.2.2:5000`); the digest comes from the policy, so
    a registry can only fail, never choose. `claim` is optional.
    """

    container: str
    name: str
    registry: str = ""
    claim: ProcessClaim | None = None


class StreamsResult(msgspec.Struct, frozen=True, kw_only=True):
    """Stream numbers of a process (0 = none) and the salt of its sealed streams (standard base64, empty when streams
    are plain)."""

    stdin: int
    stdout: int
    stderr: int
    salt: str = ""


class ContainerParams(_Closed, frozen=True, kw_only=True):
    """A container, or with `exec` one additional process in it."""

    container: str
    exec: str = ""


class WholeContainerParams(_Closed, frozen=True, kw_only=True):
    """A container with all its processes."""

    container: str


class ExecParams(_Closed, frozen=True, kw_only=True):
    """Add a process. Refused unless the pod policy lists it."""

    container: str
    exec: str
    args: list[str]
    env: list[str] = msgspec.field(default_factory=list)
    cwd: str = ""
    user: str = ""
    terminal: bool = False


class KillParams(_Closed, frozen=True, kw_only=True):
    """Send a signal (Linux number) to the first process, to one exec, or with `all` to every process."""

    container: str
    signal: Annotated[int, msgspec.Meta(ge=1, le=LAST_SIGNAL)]
    exec: str = ""
    all: bool = False


class ResizeParams(_Closed, frozen=True, kw_only=True):
    """Set the size of a terminal, in cells."""

    container: str
    width: Annotated[int, msgspec.Meta(ge=0, le=TERMINAL_CELLS)]
    height: Annotated[int, msgspec.Meta(ge=0, le=TERMINAL_CELLS)]
    exec: str = ""


class NoParams(_Closed, frozen=True, kw_only=True):
    """No parameters."""


class StartResult(msgspec.Struct, frozen=True, kw_only=True):
    """Process id inside the guest."""

    pid: int


class WaitResult(msgspec.Struct, frozen=True, kw_only=True):
    """Exit status as a shell reports it: 0..255, 128+n when ended by signal n."""

    status: int


class StateResult(msgspec.Struct, frozen=True, kw_only=True):
    """State of one container or exec: `created`, `running`, `paused`, `stopped`."""

    status: str
    pid: int
    exit_status: int = -1


class PidsResult(msgspec.Struct, frozen=True, kw_only=True):
    """Process ids of one container inside the guest."""

    pids: list[int]


class StatsResult(msgspec.Struct, frozen=True, kw_only=True):
    """Resource use of one container: microseconds, bytes, counts."""

    cpu_usec: int
    memory_bytes: int
    pids: int


class InfoResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the guest says about itself. A claim of the guest to the host: it proves nothing to anybody."""

    agent: str
    platform: str
    init_data: str
    pod: str
    containers: list[str]


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """The call succeeded and has nothing to say."""


CALLS: Final[dict[str, tuple[type[_Closed], type[msgspec.Struct]]]] = {
    "info": (NoParams, InfoResult),
    "create": (CreateParams, StreamsResult),
    "start": (ContainerParams, StartResult),
    "exec": (ExecParams, StreamsResult),
    "kill": (KillParams, Done),
    "wait": (ContainerParams, WaitResult),
    "state": (ContainerParams, StateResult),
    "pids": (WholeContainerParams, PidsResult),
    "stats": (WholeContainerParams, StatsResult),
    "resize": (ResizeParams, Done),
    "close_io": (ContainerParams, Done),
    "pause": (WholeContainerParams, Done),
    "resume": (WholeContainerParams, Done),
    "delete": (ContainerParams, WaitResult),
    "shutdown": (NoParams, Done),
}


class HelloEvent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="hello", tag_field="kind"):
    """First event after the port opens: the agent runs. `platform` is the wire name of its attester."""

    agent: str
    platform: str


class PhaseEvent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="phase", tag_field="kind"):
    """A phase ended. `name` is one of PHASES; `uptime_ms` and `took_ms` are by the guest's monotonic clock."""

    name: str
    uptime_ms: int
    took_ms: int
    container: str = ""


class ReadyEvent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="ready", tag_field="kind"):
    """Attestation succeeded; `create` is now answered."""

    init_data: str


class FailedEvent(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="failed", tag_field="kind"
):
    """The pod cannot run; the guest powers off after this event."""

    error: dict[str, str]


class ExitEvent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="exit", tag_field="kind"):
    """A process ended."""

    container: str
    exec: str
    status: int


Event = HelloEvent | PhaseEvent | ReadyEvent | FailedEvent | ExitEvent

PHASES: Final = ("kernel", "agent", "initdata", "network", "attest", "pull", "verify", "decrypt", "unpack", "start")


class CallEnvelope(_Closed, frozen=True, kw_only=True):
    """One call, parameters not yet typed."""

    v: int
    id: int
    call: str
    params: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"))


_NO_RESULT: Final = msgspec.Raw()  # one object: `omit_defaults` leaves a default out by identity


class ReplyEnvelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One reply: a result or an error."""

    v: int
    id: int
    result: msgspec.Raw = _NO_RESULT
    error: dict[str, str] = msgspec.field(default_factory=dict)


class EventEnvelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One event."""

    v: int
    event: Event


class Call(msgspec.Struct, frozen=True):
    """A call whose parameters have the type its name asks for."""

    id: int
    name: str
    params: _Closed


def decode_call(frame: bytes) -> Call:
    """Parse a control frame from the host.

    Raises:
        RequestRefused: not JSON, unknown version, call or field, wrong type, or an identifier outside the allowed
        characters (`guestapi.*`). The caller answers with the error when `peek_call_id` finds an id, and closes the
        port otherwise.
    """
    envelope = _decode(frame, CallEnvelope)
    if envelope.v != VERSION:
        raise RequestRefused("guestapi.version", "unknown API version", expected=str(VERSION), actual=str(envelope.v))
    if envelope.call not in CALLS:
        raise RequestRefused(
            "guestapi.unknown_call",
            "the host asked for a call that does not exist",
            path="call",
            expected=" ".join(CALLS),
            actual=envelope.call[:40],
            hint="the schema is closed; use a host of the same version",
        )
    params = _decode(bytes(envelope.params) or b"{}", CALLS[envelope.call][0])
    for name in ("container", "exec", "name"):
        value = getattr(params, name, None)
        optional = name == "exec" and not isinstance(params, ExecParams)
        if value is not None and not (optional and not value) and not _is_identifier(value):
            raise RequestRefused(
                "guestapi.identifier",
                "identifier has other characters or is too long",
                path=f"params.{name}",
                expected=f"1 to {GUESTAPI_ID_CHARS} of letters, digits, - _ .",
                actual=value[:40],
            )
    return Call(id=envelope.id, name=envelope.call, params=params)


def peek_call_id(frame: bytes) -> int | None:
    """Return the `id` of a frame that may be otherwise malformed, to address the refusal; None when there is none."""

    class _OnlyId(msgspec.Struct):
        id: int

    try:
        return msgspec.json.decode(frame, type=_OnlyId).id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def encode_call(call_id: int, name: str, params: _Closed) -> bytes:
    """Return the frame body of a call."""
    envelope = CallEnvelope(v=VERSION, id=call_id, call=name, params=msgspec.Raw(msgspec.json.encode(params)))
    return msgspec.json.encode(envelope)


def encode_reply(call_id: int, result: msgspec.Struct) -> bytes:
    """Return the frame body of a successful reply."""
    return msgspec.json.encode(ReplyEnvelope(v=VERSION, id=call_id, result=msgspec.Raw(msgspec.json.encode(result))))


def encode_refusal(call_id: int, error: CloisterError) -> bytes:
    """Return the frame body of a refusal."""
    return msgspec.json.encode(ReplyEnvelope(v=VERSION, id=call_id, error=error_to_wire(error)))


def error_to_wire(error: CloisterError) -> dict[str, str]:
    """Return an error's wire form; `family` tells the host whether trying again can help."""
    family = "unavailable" if isinstance(error, Unavailable) else "refused"
    return {"family": family, **error.as_dict()}


def encode_event(event: Event) -> bytes:
    """Return the frame body of an event."""
    return msgspec.json.encode(EventEnvelope(v=VERSION, event=event))


def decode_from_guest(frame: bytes) -> ReplyEnvelope | EventEnvelope:
    """Parse a control frame from the guest.

    Raises:
        RequestRefused: neither a reply nor an event of this version.
    """

    class _Probe(msgspec.Struct):
        v: int
        event: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)

    probe = _decode(frame, _Probe)
    if probe.v != VERSION:
        raise RequestRefused("guestapi.version", "unknown API version", expected=str(VERSION), actual=str(probe.v))
    return _decode(frame, EventEnvelope) if bytes(probe.event) else _decode(frame, ReplyEnvelope)


def decode_result(call: str, reply: ReplyEnvelope) -> msgspec.Struct:
    """Return the typed result of a reply to `call`.

    Raises:
        Refused, Unavailable: the guest's refusal, with its code, message and hint.
        RequestRefused: the result is not of the call's type.
    """
    if reply.error:
        raise error_from_wire(reply.error)
    return _decode(bytes(reply.result), CALLS[call][1])


def error_from_wire(fields: dict[str, str]) -> CloisterError:
    """Rebuild an error from its wire form; texts are cut to 400 characters."""
    known = {name: fields.get(name, "")[:400] for name in ("message", "path", "expected", "actual", "hint")}
    family: type[CloisterError] = Unavailable if fields.get("family") == "unavailable" else Refused
    return family(
        fields.get("code", "guestapi.unnamed")[:100],
        known["message"],
        path=known["path"],
        expected=known["expected"],
        actual=known["actual"],
        hint=known["hint"],
    )


def pack_frame(body: bytes) -> bytes:
    """Return `body` behind its length.

    Raises:
        RuntimeError: our own message exceeds the ceiling.
    """
    if len(body) > GUESTAPI_FRAME_BYTES:
        raise RuntimeError("control frame exceeds its ceiling")
    return len(body).to_bytes(LENGTH_PREFIX_BYTES, "big") + body


class FrameSplitter:
    """Cuts a byte stream into control frames without quadratic copying."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames completed by `data`.

        Raises:
            FormatRefused: a length of zero or above the ceiling (`guestapi.frame`): the stream cannot be followed
            any more.
        """
        self._buffer += data
        frames = []
        start = 0
        while len(self._buffer) - start >= LENGTH_PREFIX_BYTES:
            length = int.from_bytes(self._buffer[start : start + LENGTH_PREFIX_BYTES], "big")
            if not 0 < length <= GUESTAPI_FRAME_BYTES:
                raise FormatRefused(
                    "guestapi.frame", "frame length", expected=f"1..{GUESTAPI_FRAME_BYTES}", actual=str(length)
                )
            end = start + LENGTH_PREFIX_BYTES + length
            if len(self._buffer) < end:
                break
            frames.append(bytes(self._buffer[start + LENGTH_PREFIX_BYTES : end]))
            start = end
        del self._buffer[:start]
        return frames


class StreamKind(enum.IntEnum):
    """Kinds of frames on the streams port."""

    DATA = 0
    EOF = 1
    WINDOW = 2  # payload: u32 bytes of credit granted


class StreamFrame(msgspec.Struct, frozen=True):
    """One frame of the streams port."""

    stream: int
    kind: StreamKind
    payload: bytes = b""


def pack_stream_frame(frame: StreamFrame) -> bytes:
    """Return the bytes of `frame`.

    Raises:
        RuntimeError: our own payload exceeds the ceiling.
    """
    if len(frame.payload) > STREAM_FRAME_BYTES:
        raise RuntimeError("stream frame exceeds its ceiling")
    header = frame.stream.to_bytes(4, "big") + bytes((frame.kind, 0, 0, 0)) + len(frame.payload).to_bytes(4, "big")
    return header + frame.payload


class StreamSplitter:
    """Cuts a byte stream into stream frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[StreamFrame]:
        """Return the frames completed by `data`.

        Raises:
            FormatRefused: unknown kind, reserved bytes not zero, or a length above the ceiling
            (`guestapi.stream_frame`).
        """
        self._buffer += data
        frames = []
        start = 0
        while len(self._buffer) - start >= STREAM_HEADER_BYTES:
            header = bytes(self._buffer[start : start + STREAM_HEADER_BYTES])
            length = int.from_bytes(header[8:12], "big")
            if length > STREAM_FRAME_BYTES or header[5:8] != b"\0\0\0" or header[4] > StreamKind.WINDOW:
                raise FormatRefused("guestapi.stream_frame", "not a stream frame", actual=header.hex())
            end = start + STREAM_HEADER_BYTES + length
            if len(self._buffer) < end:
                break
            frame = StreamFrame(
                int.from_bytes(header[:4], "big"),
                StreamKind(header[4]),
                bytes(self._buffer[start + STREAM_HEADER_BYTES : end]),
            )
            if (frame.kind is StreamKind.WINDOW and length != 4) or (frame.kind is StreamKind.EOF and length):
                raise FormatRefused("guestapi.stream_frame", "payload does not fit the kind", actual=header.hex())
            frames.append(frame)
            start = end
        del self._buffer[:start]
        return frames


def _is_identifier(text: str) -> bool:
    return (
        0 < len(text) <= GUESTAPI_ID_CHARS
        and text.isascii()
        and text[0] not in "-."
        and all(char.isalnum() or char in "-_." for char in text)
    )


def _decode(data: bytes, kind: type[_M]) -> _M:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise RequestRefused("guestapi.schema", f"message outside the schema: {err}", expected=kind.__name__) from err
