"""Where shares are given: a Unix socket in the state directory, one per sealed process, `unseal-PID.sock`.

The directory is private to its user, so whoever reaches the socket is that user or root; a share goes to every sealed
process of the directory. One line in (a share or the passphrase), one line of JSON out. What was given is neither
logged nor answered. The socket goes when the process is open.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from cloister.crypto.keystore import UnsealProgress
from cloister.errors import CloisterError, Refused, Unavailable

_LINE_BYTES: Final = 4096
_SECONDS: Final = 30.0  # a passphrase takes a second to try
_POLL_SECONDS: Final = 0.2
_BACKLOG: Final = 4


class UnsealSocket:
    """Takes shares until the process is open or `close` is called.

    Args:
        directory: the state directory.
        unseal: takes one share or the passphrase.

    Raises:
        Unavailable: the socket cannot be made (`trust.state.io`).
    """

    def __init__(self, directory: Path, unseal: Callable[[str], UnsealProgress]) -> None:
        self._place = directory / f"unseal-{os.getpid()}.sock"
        self._unseal = unseal
        self._closing = threading.Event()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_POLL_SECONDS)
        try:
            self._place.unlink(missing_ok=True)
            self._socket.bind(_short(self._place))
            self._place.chmod(0o600)
            self._socket.listen(_BACKLOG)
        except OSError as err:
            self._socket.close()
            raise Unavailable(
                "trust.state.io", f"cannot listen for shares: {err.strerror or err}", path=str(self._place)
            ) from err
        self._thread = threading.Thread(target=self._run, name="trust-unseal", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more."""
        self._closing.set()
        self._thread.join(_SECONDS)

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                with suppress(TimeoutError):
                    connection, _ = self._socket.accept()
                    with connection:
                        if not self._serve(connection):
                            break
        finally:
            self._socket.close()
            self._place.unlink(missing_ok=True)

    def _serve(self, connection: socket.socket) -> bool:
        """Take one line; return whether the process is still sealed."""
        sealed = True
        try:
            connection.settimeout(_SECONDS)
            progress = self._unseal(_read_line(connection))
            sealed = progress.sealed
            answer: dict[str, object] = {"sealed": sealed, "given": progress.given, "needed": progress.needed}
        except CloisterError as err:
            answer = {"error": err.as_dict(), "refused": isinstance(err, Refused)}
        except (OSError, UnicodeDecodeError):
            return sealed
        with suppress(OSError):
            connection.sendall(json.dumps(answer).encode() + b"\n")
        return sealed


def give_share(directory: Path, secret: str) -> UnsealProgress:
    """Give a share or the passphrase to every sealed process of a state directory; return how far the last one is.

    Raises:
        Refused: what a process refuses: `crypto.keystore.share`, `crypto.keystore.unseal`.
        Unavailable: no process is sealed (`trust.keys.not_sealed`), or one does not answer.
    """
    results = [_give(place, secret) for place in sorted(directory.glob("unseal-*.sock"))]
    found = [result for result in results if result is not None]
    if not found:
        raise Unavailable(
            "trust.keys.not_sealed",
            "no sealed service runs on this directory",
            path=str(directory),
            hint="start it first: cloister serve",
        )
    return max(found, key=lambda progress: (progress.sealed, -progress.given))


def _give(place: Path, secret: str) -> UnsealProgress | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_SECONDS)
        try:
            connection.connect(_short(place))
        except (ConnectionRefusedError, FileNotFoundError):
            return None  # what a killed process left
        except OSError as err:
            raise Unavailable("trust.state.io", f"cannot reach the service: {err.strerror}", path=str(place)) from err
        try:
            connection.sendall(secret.encode() + b"\n")
            answer = json.loads(_read_line(connection))
        except (OSError, ValueError) as err:
            raise Unavailable("trust.state.io", "the service does not answer", path=str(place)) from err
    if "error" in answer:
        raise (Refused if answer["refused"] else Unavailable)(**answer["error"])
    return UnsealProgress(sealed=answer["sealed"], given=answer["given"], needed=answer["needed"])


def _read_line(connection: socket.socket) -> str:
    data = b""
    while not data.endswith(b"\n") and len(data) <= _LINE_BYTES:
        chunk = connection.recv(_LINE_BYTES)
        if not chunk:
            break
        data += chunk
    return data.rstrip(b"\r\n").decode("utf-8")


def _short(place: Path) -> str:
    """Return the path, if an address can hold it (unix(7): 107 bytes)."""
    if len(os.fsencode(place)) <= 107:
        return str(place)
    raise Unavailable(
        "trust.state.io",
        "the path of the state directory is too long for a socket",
        path=str(place),
        expected="at most 107 bytes",
        hint="use a shorter path for --state",
    )
