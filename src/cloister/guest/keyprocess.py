"""The agent's side of its key process: ask it, notice its death, end it.

The agent holds no ephemeral key and never touches the TPM; token and resources pass through it only where it needs or
forwards them, and resources are overwritten.

A child that dies is an `Unavailable` for whoever waits, and ends the pod. One that answers nonsense is refused and
hung up on. What the broker or the device refused comes out as it was raised in the child.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final, TypeVar

from cloister.errors import CloisterError, FormatRefused, Unavailable
from cloister.guest import keymessages as messages

if TYPE_CHECKING:
    import _socket

    from cloister.protocol.resourceuri import ResourcePath

_SIGKILL: Final = 9
_SHUT_RDWR: Final = 2  # socket(7)
_GRACE_SECONDS: Final = 0.5  # for the child to overwrite what it holds; one that waits for its broker does not hear

_A = TypeVar("_A")
_T = TypeVar("_T")


class KeyProxy:
    """The key process' attester register and broker, from any thread; one request at a time.

    Args:
        connection: a connected stream socket.
    """

    def __init__(self, connection: _socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def extend(self, digest: bytes) -> None:
        """Extend register 8.

        Raises:
            CloisterError: the device's word, or `guest.keys.*`.
        """
        self._ask(messages.Extend(digest=digest), messages.Done, _nothing)

    def open(self, init_data: bytes) -> None:
        """Hand over the measured init data, which names the broker.

        Raises:
            CloisterError: it names none (`protocol.initdata.*`), or `guest.keys.*`.
        """
        self._ask(messages.Open(init_data=init_data), messages.Done, _nothing)

    @property
    def token(self) -> str:
        """The Attestation Result, a JWT."""
        return self._ask(messages.GetToken(), messages.Token, lambda answer: answer.token)

    def attest(self) -> None:
        """Do the handshake.

        Raises:
            CloisterError: the broker's or the device's word, or `guest.keys.*`.
        """
        self._ask(messages.Attest(), messages.Done, _nothing)

    def release(self, path: ResourcePath) -> tuple[bytearray, int]:
        """Return a resource, which the caller overwrites, and the seconds of its lease, 0 for none.

        Raises:
            CloisterError: the broker's word, or `guest.keys.*`.
        """
        request = messages.GetResource(path=str(path))
        return self._ask(request, messages.Resource, lambda answer: (bytearray(answer.value), answer.lease))

    def wipe(self) -> None:
        """Hang up: the child overwrites what it holds and ends. Whoever waits for an answer learns that it is gone."""
        try:
            self._connection.shutdown(_SHUT_RDWR)
        except OSError:
            return  # the child is gone already

    def _ask(self, request: messages.Request, expected: type[_A], take: Callable[[_A], _T]) -> _T:
        with self._lock:
            try:
                messages.send_request(self._connection, request)
                data = messages.receive_answer(self._connection)
            except messages.PeerGone as err:
                raise _died() from err
            except FormatRefused:
                self.wipe()
                raise
        try:
            return self._read(data, expected, take)
        finally:
            data[:] = bytes(len(data))

    def _read(self, data: bytearray, expected: type[_A], take: Callable[[_A], _T]) -> _T:
        try:
            answer = messages.decode_answer(data)
            refusal = messages.error_of(answer) if isinstance(answer, messages.Failure) else None
            if refusal is None and isinstance(answer, expected):
                return take(answer)
        except FormatRefused:
            self.wipe()
            raise
        if refusal is not None:
            raise refusal
        self.wipe()
        raise messages.malformed("an answer to another request")


class KeyProcess:
    """The child: its end is noticed, and made sure of.

    Args:
        pid: process id of a child of this process, waited for by nobody else.
        keys: what it is asked through.
    """

    def __init__(self, pid: int, keys: KeyProxy) -> None:
        self.pid = pid
        self.keys = keys
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._watching = self._ending = False

    def watch(self, died: Callable[[CloisterError], None]) -> None:
        """Call `died` on another thread once the child has ended without being told to."""

        def wait() -> None:
            self._reap()
            if not self._ending:
                died(_died())

        self._watching = True
        threading.Thread(target=wait, name="keys", daemon=True).start()

    def __enter__(self) -> KeyProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """Have the child end, by force if it does not within its grace."""
        self._ending = True
        self.keys.wipe()
        if not self._watching:
            self.watch(lambda _: None)
        if self._ended.wait(_GRACE_SECONDS):
            return
        with self._lock:
            if not self._ended.is_set():
                os.kill(self.pid, _SIGKILL)
        self._ended.wait()

    def _reap(self) -> None:
        from cloister.guest import children

        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:  # until here the number is the child's, whoever kills
            children.wait(self.pid)
            self._ended.set()


def _nothing(_: object) -> None:
    """Take an answer that holds nothing."""


def _died() -> Unavailable:
    return Unavailable("guest.keys.died", "the key process of the pod ended", hint="start the pod again")
