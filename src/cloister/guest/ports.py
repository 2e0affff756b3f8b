"""The two byte channels to the host: virtio-serial ports in a VM, Unix sockets at the simulated level.

The control port carries length-prefixed frames, written whole under a lock by any thread and read by one. A
virtio-serial port without a host peer reads as empty: reading then waits and counts the time, because a pod whose
host is gone must end (`HostGone`). Trusts nobody; what the bytes mean is decided elsewhere.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Final

from cloister.errors import Unavailable
from cloister.protocol.guestapi import pack_frame

_PORTS: Final = "/sys/class/virtio-ports"
_APPEAR_SECONDS: Final = 20.0
_POLL_SECONDS: Final = 0.01
_ABSENT_POLL_SECONDS: Final = 0.05
READ_BYTES: Final = 64 * 1024


class HostGone(Exception):
    """The peer of the control port left and did not come back in time."""


class ControlPort:
    """Frames to and from the host.

    Args:
        fd: an open, blocking descriptor.
        absence_seconds: how long the peer may be away after it was there once; 0 means an end of file is final.
    """

    def __init__(self, fd: int, *, absence_seconds: float) -> None:
        self._fd = fd
        self._absence_seconds = absence_seconds
        self._lock = threading.Lock()

    def send(self, body: bytes) -> None:
        """Write one frame whole.

        Raises:
            OSError: the port is closed.
        """
        view = memoryview(pack_frame(body))
        with self._lock:
            while view:
                view = view[os.write(self._fd, view) :]

    def receive(self) -> bytes:
        """Return the next bytes from the host, at least one.

        Raises:
            HostGone: the host was away for too long.
        """
        absent_since: float | None = None
        while True:
            try:
                data = os.read(self._fd, READ_BYTES)
            except OSError as err:
                raise HostGone from err
            if data:
                return data
            now = time.monotonic()
            absent_since = now if absent_since is None else absent_since
            if now - absent_since >= self._absence_seconds:
                raise HostGone
            time.sleep(_ABSENT_POLL_SECONDS)


def open_virtio_port(name: str) -> int:
    """Return the open descriptor of the virtio-serial port called `name`, waiting for it to appear.

    Raises:
        Unavailable: no such port (`guest.ports.absent`), or it cannot be opened.
    """
    deadline = time.monotonic() + _APPEAR_SECONDS
    while True:
        device = _find_virtio_port(name)
        if device is not None:
            return os.open(device, os.O_RDWR | os.O_CLOEXEC)
        if time.monotonic() > deadline:
            raise Unavailable("guest.ports.absent", "no such virtio-serial port", path=name)
        time.sleep(_POLL_SECONDS)


def open_socket_port(path: str) -> int:
    """Return a descriptor connected to the Unix socket at `path`.

    Raises:
        Unavailable: nobody listens there (`guest.ports.absent`).
    """
    import socket

    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.connect(path)
    except OSError as err:
        connection.close()
        raise Unavailable("guest.ports.absent", "nobody listens on the socket", path=path) from err
    return connection.detach()


def _find_virtio_port(name: str) -> str | None:
    try:
        entries = os.listdir(_PORTS)
    except FileNotFoundError:
        return None
    for entry in entries:
        try:
            with open(f"{_PORTS}/{entry}/name", "rb") as file:
                found = file.read().strip()
        except OSError:
            continue
        device = f"/dev/{entry}"
        if found == name.encode() and os.access(device, os.R_OK | os.W_OK):
            return device
    return None
