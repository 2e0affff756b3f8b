"""The control port's loop: cut frames, decode calls of the closed schema, answer each, refuse everything else.

A call that does not decode but has an id is refused by name; bytes that cannot be followed end the pod, because
nobody can be answered any more. Calls that wait run on threads of their own, at most `CALLS_IN_FLIGHT` at a time.
Nothing here decides what is allowed: `cloister.guest.pod` does, by the measured policy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from cloister.errors import CloisterError, RequestRefused, Unavailable
from cloister.guest.ports import ControlPort
from cloister.protocol.guestapi import (
    Call,
    FrameSplitter,
    decode_call,
    encode_refusal,
    encode_reply,
    peek_call_id,
)

CALLS_IN_FLIGHT: Final = 128  # a wait per container and exec, and a few besides


class Handler(Protocol):
    """Answers one call."""

    def __call__(self, call: Call) -> msgspec.Struct:
        """Return the result of `call`, or raise a `CloisterError`."""
        ...


class ControlServer:
    """Answers the calls of the host.

    Args:
        port: frames from and to the host.
        handle: what answers a call; runs on any thread.
        shut_down: called once the answer to `shutdown` is out.
    """

    def __init__(self, port: ControlPort, handle: Handler, shut_down: Callable[[], None]) -> None:
        self._port = port
        self._handle = handle
        self._shut_down = shut_down
        self._slots = threading.BoundedSemaphore(CALLS_IN_FLIGHT)

    def serve(self) -> None:
        """Answer calls until the host is gone.

        Raises:
            FormatRefused, RequestRefused: the host sent what cannot be answered.
            HostGone: the host left.
        """
        splitter = FrameSplitter()
        while True:
            for frame in splitter.feed(self._port.receive()):
                self._take(frame)

    def _take(self, frame: bytes) -> None:
        try:
            call = decode_call(frame)
        except RequestRefused as err:
            call_id = peek_call_id(frame)
            if call_id is None:
                raise
            self._port.send(encode_refusal(call_id, err))
            return
        if not self._slots.acquire(blocking=False):
            busy = Unavailable("guestapi.busy", "too many calls in flight", expected=f"at most {CALLS_IN_FLIGHT}")
            self._port.send(encode_refusal(call.id, busy))
            return
        threading.Thread(target=self._answer, args=(call,), daemon=True).start()

    def _answer(self, call: Call) -> None:
        try:
            self._port.send(answer(self._handle, call))
        except OSError:
            return  # the host will not hear it
        finally:
            self._slots.release()
            if call.name == "shutdown":
                self._shut_down()


def answer(handle: Callable[[Call], msgspec.Struct], call: Call) -> bytes:
    """Return the reply frame to `call`; an unforeseen error is told by its type name only."""
    try:
        return encode_reply(call.id, handle(call))
    except CloisterError as err:
        return encode_refusal(call.id, err)
    except Exception as err:  # noqa: BLE001  # process edge: the text of a foreign error may hold a secret
        return encode_refusal(call.id, Unavailable("guest.internal", type(err).__name__))
