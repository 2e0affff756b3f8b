"""The two helper services of a run as child processes: the owner's trust service and the host's registry.

Both end with this process, however it ends. What they write goes to a log in the run's directory.
"""

from __future__ import annotations

import os
import select
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from cloister.errors import Unavailable
from cloister.host.process import Child

_MODEST: Final = ("nice", "-n", "10")  # a pod that boots at the same time comes first
_READY_SECONDS: Final = 20.0
_GRACE_SECONDS: Final = 3.0
_READY_BYTES: Final = 4096


class _ReadyReport(msgspec.Struct):
    port: int


@dataclass(slots=True)
class ServiceProcess:
    """A running service and the port it answers on (127.0.0.1)."""

    child: Child
    port: int

    def stop(self) -> None:
        """End it; does nothing when it ended before."""
        self.child.end(grace_seconds=_GRACE_SECONDS)
        self.child.close()


def start_trust_service(state: Path, log: Path, *, collateral: Path | None = None) -> ServiceProcess:
    """Start the trust service on a free port.

    Args:
        state: its directory.
        log: file that takes what it says.
        collateral: cache that `cloister collateral` fills; below the state directory when absent.

    Raises:
        Unavailable: it does not become ready (`sdk.service.not_ready`).
    """
    command = [sys.executable, "-m", "cloister.trust.app", "--data", str(state), "--listen", "127.0.0.1:0"]
    if collateral is not None:
        command += ["--collateral", str(collateral)]
    return _start("trust service", command, log)


def start_registry(root: Path, log: Path) -> ServiceProcess:
    """Start the embedded registry over the blobs in `root` on a free port.

    Raises:
        Unavailable: it does not become ready (`sdk.service.not_ready`).
    """
    return _start("registry", [sys.executable, "-m", "cloister.host.registry", "--root", str(root)], log)


def _start(name: str, command: list[str], log: Path) -> ServiceProcess:
    reader, writer = os.pipe()
    log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        child = Child.start(name, [*_MODEST, *command, "--ready-fd", str(writer)], output=log_fd, pass_fds=(writer,))
    finally:
        os.close(writer)
        os.close(log_fd)
    try:
        port = _read_port(name, reader, log)
    except Unavailable:
        child.end(grace_seconds=0)
        child.close()
        raise
    finally:
        os.close(reader)
    return ServiceProcess(child, port)


def _read_port(name: str, reader: int, log: Path) -> int:
    """Read a ready report: JSON with a member `port`, or the bare number. End of file means the child is gone."""
    deadline = time.monotonic() + _READY_SECONDS
    data = b""
    while b"\n" not in data and len(data) < _READY_BYTES:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        chunk = os.read(reader, _READY_BYTES) if ready else b""
        if not chunk:
            break
        data += chunk
    try:
        text = data.strip()
        return int(text) if text.isdigit() else msgspec.json.decode(text, type=_ReadyReport).port
    except msgspec.MsgspecError as err:
        raise Unavailable(
            "sdk.service.not_ready",
            f"the {name} did not start",
            path=str(log),
            actual=_tail(log),
            hint="read the log at that place",
        ) from err


def _tail(log: Path) -> str:
    try:
        return log.read_text("utf-8", "replace").strip()[-200:]
    except OSError:
        return ""
