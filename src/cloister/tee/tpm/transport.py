"""Ways to a TPM: the kernel's resource manager device, or the data socket of a software TPM.

One command at a time, raw bytes of TPM 2.0 part 3. Nothing is interpreted here but the length in the header.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Protocol

from cloister.errors import Unavailable
from cloister.wire.limits import TPM_RESPONSE_BYTES

if TYPE_CHECKING:
    import socket

_HEADER_BYTES: Final = 10
_SOCKET_SECONDS: Final = 30.0  # an RSA key generation in a software TPM can take several


class Transport(Protocol):
    """Sends one command, returns its answer."""

    def exchange(self, command: bytes) -> bytes:
        """Return the answer to `command`."""
        ...

    def close(self) -> None:
        """Release the way."""
        ...


class DeviceTransport:
    """`/dev/tpmrm0`: handles and sessions are virtual and vanish with the file descriptor.

    Raises:
        Unavailable: the device cannot be opened (`tee.tpm.device`).
    """

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as err:
            raise _unavailable(path, err) from err

    def exchange(self, command: bytes) -> bytes:
        """Return the answer to `command`.

        Raises:
            Unavailable: the device fails (`tee.tpm.device`).
        """
        try:
            os.write(self._file, command)
            return os.read(self._file, TPM_RESPONSE_BYTES)
        except OSError as err:
            raise _unavailable(self._path, err) from err

    def close(self) -> None:
        """Close the device."""
        os.close(self._file)


class SocketTransport:
    """Data socket of `swtpm socket --server`: a Unix path, or (host, port). There is no resource manager behind it.

    Raises:
        Unavailable: nobody listens (`tee.tpm.device`).
    """

    def __init__(self, address: str | tuple[str, int]) -> None:
        import socket  # only tests and diagnostics come this way; the guest never loads it here

        self._address = str(address)
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self._socket: socket.socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.settimeout(_SOCKET_SECONDS)
        try:
            self._socket.connect(address)
        except OSError as err:
            self._socket.close()
            raise _unavailable(self._address, err) from err

    def exchange(self, command: bytes) -> bytes:
        """Return the answer to `command`.

        Raises:
            Unavailable: the peer fails, hangs up, or announces an impossible length (`tee.tpm.device`).
        """
        try:
            self._socket.sendall(command)
            header = self._receive(_HEADER_BYTES)
            size = int.from_bytes(header[2:6], "big")
            if not _HEADER_BYTES <= size <= TPM_RESPONSE_BYTES:
                raise Unavailable("tee.tpm.device", "answer has an impossible size", path=self._address)
            return header + self._receive(size - _HEADER_BYTES)
        except OSError as err:
            raise _unavailable(self._address, err) from err

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self._socket.recv(count - len(data))
            if not part:
                raise Unavailable("tee.tpm.device", "the TPM hung up inside an answer", path=self._address)
            data += part
        return data


def _unavailable(path: str, err: OSError) -> Unavailable:
    return Unavailable(
        "tee.tpm.device",
        f"the TPM cannot be used: {err.strerror or err}",
        path=path,
        hint="is the vTPM attached to this machine, and its driver in the kernel?",
    )
