"""Forwarded ports: are they free, and the small forwarder of the process back end."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Iterable
from typing import Final

from cloister.errors import Unavailable
from cloister.host.vmm.spec import PortForward

CONNECTIONS: Final = 256  # open at a time per forwarded port; more are closed at once
_CONNECT_SECONDS: Final = 10.0
_COPY_BYTES: Final = 64 * 1024
_BACKLOG: Final = 64


def require_free(ports: Iterable[PortForward]) -> None:
    """Check that every port can be listened on now.

    Raises:
        Unavailable: one is taken, or not this user's to take (`host.port.*`).
    """
    for port in ports:
        _listen(port).close()


class Forwarder:
    """Passes TCP connections to one address on to another port of this machine, until closed.

    Args:
        port: from where to where.
    """

    def __init__(self, port: PortForward) -> None:
        """Start listening.

        Raises:
            Unavailable: the port is taken, or not this user's to take (`host.port.*`).
        """
        self._target = ("127.0.0.1", port.guest_port)
        self._listener = _listen(port)
        self._slots = threading.BoundedSemaphore(CONNECTIONS)
        threading.Thread(target=self._accept, name=f"forward-{port.host_port}", daemon=True).start()

    def close(self) -> None:
        """Stop listening; connections that are open live on until one side closes them."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if not self._slots.acquire(blocking=False):
                client.close()
                continue
            threading.Thread(target=self._serve, args=(client,), name="forward", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client, socket.create_connection(self._target, _CONNECT_SECONDS) as server:
                server.settimeout(None)
                copy_both_ways(client, server)
        except OSError:
            return
        finally:
            self._slots.release()


def copy_both_ways(one: socket.socket, other: socket.socket) -> None:
    """Copy between two connections until both directions ended. A stalled direction does not hold up the other."""
    back = threading.Thread(target=_copy, args=(other, one), name="copy-back", daemon=True)
    back.start()
    _copy(one, other)
    back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_COPY_BYTES):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _listen(port: PortForward) -> socket.socket:
    try:
        return socket.create_server((port.host_ip, port.host_port), backlog=_BACKLOG)
    except OSError as err:
        taken = err.errno == errno.EADDRINUSE
        raise Unavailable(
            "host.port.taken" if taken else "host.port.refused",
            "a forwarded port is taken" if taken else f"a forwarded port cannot be listened on: {err.strerror}",
            path=f"{port.host_ip}:{port.host_port}",
            hint="choose another port" if taken else "choose a port above 1023 and an address of this machine",
        ) from err
