"""A hostile host, in the places where it stands: on the control port, and between the streams port and the owner.

`hostile_frames` lists control frames that no call may survive: every call of the guest API with an unknown field,
names that would be calls elsewhere, other versions, types and lengths. `StreamTamperer` sits on the streams port like
the host's own relay and changes what passes. Both are data and sockets only: they need no knowledge of any key,
because a host has none.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from cloister.errors import FormatRefused
from cloister.protocol.guestapi import (
    CALLS,
    VERSION,
    StreamFrame,
    StreamKind,
    StreamSplitter,
    pack_frame,
    pack_stream_frame,
)
from cloister.wire.limits import GUESTAPI_FRAME_BYTES, GUESTAPI_ID_CHARS

#: Calls that guest agents of this kind have had, and that gave a host the guest; here they must not exist.
FOREIGN_CALLS: Final = (
    "copy_file",
    "CopyFile",
    "add_swap",
    "set_policy",
    "SetPolicy",
    "update_routes",
    "set_guest_date_time",
    "mem_hotplug_by_probe",
    "remove_stale_virtiofs_share_mounts",
    "create_sandbox",
    "mount",
    "attach",
    "debug_console",
    "get_resource",
    "reseed_random_dev",
    "",
)
#: Fields by which hosts have slipped in mounts, hooks, devices, images and environment.
FOREIGN_FIELDS: Final[dict[str, Any]] = {  # Any: JSON
    "hooks": {"prestart": [{"path": "/bin/sh"}]},
    "storages": [{"driver": "blk", "source": "/dev/vdc", "mount_point": "/"}],
    "mounts": [{"source": "..", "destination": "/etc"}],
    "oci": {"process": {"env": ["LD_PRELOAD=/x"]}},
    "devices": [{"path": "/dev/mem"}],
    "image": "docker.io/library/other",
    "image_digest": "sha256:" + "0" * 64,
    "annotations": {"io.katacontainers.config.agent.policy": ""},
    "sandbox_pidns": True,
    "seccomp": None,
}
_SECONDS: Final = 60.0
_READ_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class HostileFrame:
    """One control frame.

    Attributes:
        what: for the name of a test.
        body: without its length.
        id: that the refusal must carry.
        code: of the refusal.
    """

    what: str
    body: bytes
    id: int
    code: str


def call_parameters(container: str, name: str, registry: str) -> dict[str, dict[str, Any]]:  # Any: JSON
    """Return allowed parameters for every call of the guest API."""
    on_container: dict[str, Any] = {"container": container}  # Any: JSON
    own: dict[str, dict[str, Any]] = {  # Any: JSON
        "info": {},
        "shutdown": {},
        "create": {"container": container, "name": name, "registry": registry},
        "exec": {"container": container, "exec": "e1", "args": ["sh"]},
        "kill": {"container": container, "signal": 15},
        "resize": {"container": container, "width": 80, "height": 24},
    }
    return {call: own.get(call, on_container) for call in CALLS}


def hostile_frames(container: str, name: str, registry: str, *, first_id: int = 10_000) -> Iterator[HostileFrame]:
    """Yield frames that must each be refused by code, and change nothing.

    Args:
        container: the host's identifier of an existing container.
        name: its name in the pod policy.
        registry: an address.
        first_id: numbers of the calls begin here.
    """
    numbers = iter(range(first_id, first_id + 100_000))

    def frame(what: str, code: str, call: str, params: Any, version: int = VERSION) -> HostileFrame:  # Any: JSON
        number = next(numbers)
        body = msgspec.json.encode({"v": version, "id": number, "call": call, "params": params})
        return HostileFrame(what=what, body=body, id=number, code=code)

    for call, params in call_parameters(container, name, registry).items():
        for extra, value in FOREIGN_FIELDS.items():
            yield frame(f"{call} with {extra}", "guestapi.schema", call, {**params, extra: value})
        yield frame(f"{call} of another version", "guestapi.version", call, params, VERSION + 1)
        yield frame(f"{call} with a list", "guestapi.schema", call, [params])
        for required in params:
            wrong = {**params, required: {"not": "a value"}}
            yield frame(f"{call} with another {required}", "guestapi.schema", call, wrong)
        if "container" in params:
            for text in ("", "../x", "a/b", "-x", ".x", "a\0b", "\u00e9", "x" * (GUESTAPI_ID_CHARS + 1)):
                yield frame(f"{call} of {text[:8]!r}", "guestapi.identifier", call, {**params, "container": text})
    for call in FOREIGN_CALLS:
        yield frame(f"call {call!r}", "guestapi.unknown_call", call, {})
    number = next(numbers)
    body = msgspec.json.encode({"v": VERSION, "id": number, "call": "info", "params": {}, "token": "x"})
    yield HostileFrame(what="an envelope with another field", body=body, id=number, code="guestapi.schema")


def unfollowable_bytes() -> dict[str, tuple[bytes, str]]:
    """Return by name bytes behind which the port cannot be read any more, and the code the pod ends with."""
    deep = b'{"v":1,"id":1,"call":"info","params":%s}' % (b'{"a":' * 5000 + b"{}" + b"}" * 5000)
    return {
        "nesting deeper than any parser goes": (pack_frame(deep), "guestapi.schema"),
        "a length above the ceiling": ((GUESTAPI_FRAME_BYTES + 1).to_bytes(4, "big"), "guestapi.frame"),
        "the greatest length": (b"\xff" * 4, "guestapi.frame"),
        "a length of zero": (bytes(4), "guestapi.frame"),
        "a frame without a number": (b"\0\0\0\x02[]", "guestapi.schema"),
        "a frame that is not JSON": (b"\0\0\0\x03{}}", "guestapi.schema"),
    }


Tamper = Callable[[StreamFrame], list[StreamFrame]]


def passed() -> Tamper:
    """Change nothing: what the other personalities are compared with."""
    return lambda frame: [frame]


def flip_bit(of: int = 0, *, position: int = -1) -> Tamper:
    """Flip a bit of data frame number `of`."""

    def change(frame: StreamFrame) -> list[StreamFrame]:
        payload = bytearray(frame.payload)
        payload[position] ^= 0x01
        return [replace(frame, payload=bytes(payload))]

    return _on_data(of, change)


def drop(of: int) -> Tamper:
    """Leave out data frame number `of`."""
    return _on_data(of, lambda _: [])


def repeat(of: int) -> Tamper:
    """Send data frame number `of` twice."""
    return _on_data(of, lambda frame: [frame, frame])


def swap() -> Tamper:
    """Exchange each data frame with the next one of its stream."""
    held: dict[int, StreamFrame] = {}

    def change(frame: StreamFrame) -> list[StreamFrame]:
        first = held.pop(frame.stream, None)
        if frame.kind is StreamKind.WINDOW:
            return [frame] if first is None else [first, frame]
        if frame.kind is StreamKind.EOF:
            return [frame] if first is None else [first, frame]
        if first is None:
            held[frame.stream] = frame
            return []
        return [frame, first]

    return change


def truncate(after: int) -> Tamper:
    """End each stream behind its first `after` data frames, as if the workload had."""
    seen: dict[int, int] = {}

    def change(frame: StreamFrame) -> list[StreamFrame]:
        if frame.kind is StreamKind.WINDOW:
            return [frame]
        number = seen[frame.stream] = seen.get(frame.stream, 0) + 1
        if number <= after:
            return [frame]
        return [StreamFrame(frame.stream, StreamKind.EOF)] if number == after + 1 else []

    return change


def exchange_streams(one: int, other: int) -> Tamper:
    """Pass one stream's frames off as another's: standard error for standard output, say."""
    names = {one: other, other: one}

    def change(frame: StreamFrame) -> list[StreamFrame]:
        if frame.kind is StreamKind.WINDOW:
            return [frame]
        return [replace(frame, stream=names.get(frame.stream, frame.stream))]

    return change


def inject(payload: bytes) -> Tamper:
    """Put a frame of the host's own before the first data frame."""
    return _on_data(0, lambda frame: [replace(frame, payload=payload), frame])


def _on_data(of: int, change: Tamper) -> Tamper:
    """Apply `change` to data frame number `of` of each stream, counted from 0."""
    seen: dict[int, int] = {}

    def tamper(frame: StreamFrame) -> list[StreamFrame]:
        if frame.kind is not StreamKind.DATA:
            return [frame]
        number = seen.get(frame.stream, 0)
        seen[frame.stream] = number + 1
        return change(frame) if number == of else [frame]

    return tamper


class StreamTamperer:
    """Relays between a pod's streams port and whoever reads it, and alters frames. Use in a `with` statement.

    Args:
        guest: connected socket of the pod's streams port; stays its owner's.
        from_guest: applied to what the workload writes.
        to_guest: applied to what the workload reads.

    Attributes:
        owner_end: what the owner's side gets instead of `guest`.
        seen: every payload that passed, as a host sees it.
    """

    def __init__(
        self, guest: socket.socket, *, from_guest: Tamper | None = None, to_guest: Tamper | None = None
    ) -> None:
        self.owner_end, self._ours = socket.socketpair()
        self.seen: list[bytes] = []
        self._guest = guest
        ways = ((guest, self._ours, from_guest or passed()), (self._ours, guest, to_guest or passed()))
        self._threads = [threading.Thread(target=self._carry, args=way, daemon=True) for way in ways]

    def __enter__(self) -> StreamTamperer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for end in (self._ours, self._guest):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(_SECONDS)
        self._ours.close()

    def _carry(self, source: socket.socket, sink: socket.socket, tamper: Tamper) -> None:
        splitter = StreamSplitter()
        with contextlib.suppress(OSError, FormatRefused):
            while data := source.recv(_READ_BYTES):
                for frame in splitter.feed(data):
                    self.seen.append(frame.payload)
                    for altered in tamper(frame):
                        sink.sendall(pack_stream_frame(altered))
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
