"""The pod's dealings with its key broker: one handshake, then resources, from any thread.

The key process speaks the protocol and keeps the ephemeral private key and the token (`cloister.guest.keyservice`).
Here are the lock that makes its use safe for several containers, the gate that holds everybody back until the
handshake succeeded, and the wiping. The broker is the one that the measured init data names.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple, Protocol

from cloister.errors import CloisterError, Unavailable
from cloister.protocol.resourceuri import ResourcePath

_CLOSE_SECONDS: Final = 1.0  # for who else uses the broker to be done


class KeyBroker(Protocol):
    """What is used of `cloister.guest.keyprocess.KeyProxy`."""

    @property
    def token(self) -> str:
        """The Attestation Result, a JWT."""
        ...

    def attest(self) -> None:
        """Do the handshake."""
        ...

    def release(self, path: ResourcePath) -> tuple[bytearray, int]:
        """Return a resource, which the caller overwrites, and the seconds of its lease, 0 for none."""
        ...

    def wipe(self) -> None:
        """Forget the keys."""
        ...


class Term(NamedTuple):
    """How long a resource may be used: its end on the monotonic clock, and the length of the lease, seconds."""

    end: float
    seconds: float


class KeySource:
    """Resources of the key broker for the whole pod.

    Args:
        connect: gives the broker, at the handshake; it is then used by one thread at a time.
        monotonic: a clock that only goes forward, seconds.
    """

    def __init__(self, connect: Callable[[], KeyBroker], *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._connect = connect
        self._monotonic = monotonic
        self._terms: dict[ResourcePath, Term] = {}
        self._leased: Callable[[], None] = _nobody
        self._broker: KeyBroker | None = None
        self._lock = threading.Lock()
        self._settled = threading.Event()
        self._failure: CloisterError | None = None

    def attest(self) -> None:
        """Do the handshake and open the gate.

        Raises:
            Refused: the broker's verdict, with its code and denial id.
            Unavailable: the broker cannot be reached, or the device fails.
        """
        try:
            with self._lock:
                self._broker = self._connect()
                self._broker.attest()
        except CloisterError as err:
            self._failure = err
            raise
        except BaseException:
            self._failure = Unavailable("guest.internal", "attestation ended early")
            raise
        finally:
            self._settled.set()

    def wait_attested(self) -> None:
        """Return once the handshake succeeded.

        Raises:
            CloisterError: it failed: what `attest` raised.
        """
        self._settled.wait()
        if self._failure is not None:
            raise self._failure

    @contextmanager
    def resource(self, path: ResourcePath) -> Iterator[bytearray]:
        """Give a resource for the time of a `with` block; it is overwritten behind it.

        Raises:
            KeyReleaseDenied: the broker refuses.
            Unavailable: the broker cannot be reached.
        """
        self.wait_attested()
        with self._lock:
            secret = self._release(path)
        try:
            yield secret
        finally:
            wipe(secret)

    def terms(self, leased: Callable[[], None]) -> dict[ResourcePath, Term]:
        """Return the resources that were released under a lease; `leased` is called whenever another one is."""
        self._leased = leased
        return dict(self._terms)

    def renew(self, paths: Iterable[ResourcePath]) -> None:
        """Attest anew and ask for resources again, only to learn whether this pod may still have them.

        Raises:
            Refused: the broker says no.
            Unavailable: the broker cannot be reached or cannot tell now.
        """
        with self._lock:
            self._client().attest()
            for path in paths:
                wipe(self._release(path))

    def token(self) -> str:
        """Return the Attestation Result."""
        self.wait_attested()
        with self._lock:
            return self._client().token

    def close(self) -> None:
        """Forget key and token, even while a broker that does not answer is waited for."""
        owned = self._lock.acquire(timeout=_CLOSE_SECONDS)
        try:
            if self._broker is not None:
                self._broker.wipe()
        finally:
            if owned:
                self._lock.release()

    def _release(self, path: ResourcePath) -> bytearray:
        asked = self._monotonic()
        secret, seconds = self._client().release(path)
        if seconds:
            before = self._terms.get(path)
            # Of the same evidence again, the broker gives what is left: the lease itself is as long as it was.
            self._terms[path] = Term(asked + seconds, max(seconds, before.seconds if before else 0))
            self._leased()
        else:
            self._terms.pop(path, None)
        return secret

    def _client(self) -> KeyBroker:
        if self._broker is None:
            raise RuntimeError("no handshake yet")
        return self._broker


def _nobody() -> None:
    """Tell nobody."""


def wipe(secret: bytearray) -> None:
    """Overwrite `secret`. Copies that the interpreter or a library made are not reached; they die with the VM."""
    secret[:] = bytes(len(secret))
