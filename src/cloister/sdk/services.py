"""The helper services of a run as child processes: the owner's trust service, the host's registry, and witnesses.

Both end with this process, however it ends. What they write goes to a log in the run's directory.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Sequence
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
    witness: str = ""


@dataclass(slots=True)
class ServiceProcess:
    """A running service.

    Attributes:
        child: its process.
        port: that it answers on, at 127.0.0.1.
        witness: of a witness, what a trust service is told of it (`KEY@URL`).
    """

    child: Child
    port: int
    witness: str = ""

    def stop(self) -> None:
        """End it; does nothing when it ended before."""
        self.child.end(grace_seconds=_GRACE_SECONDS)
        self.child.close()


def start_trust_service(
    state: Path, log: Path, *, collateral: Path | None = None, witnesses: Sequence[str] = (), cosignatures: int = 0
) -> ServiceProcess:
    """Start the trust service on a free port.

    Args:
        state: its directory.
        log: file that takes what it says.
        collateral: cache that `cloister collateral` fills; below the state directory when absent.
        witnesses: who is asked to cosign the release log, `KEY@URL` each.
        cosignatures: how many of them must have.

    Raises:
        Unavailable: it does not become ready (`sdk.service.not_ready`).
    """
    command = [sys.executable, "-m", "cloister.trust.app", "--data", str(state), "--listen", "127.0.0.1:0"]
    if collateral is not None:
        command += ["--collateral", str(collateral)]
    if witnesses:
        command += ["--log-witnesses", ",".join(witnesses), "--log-cosignatures", str(cosignatures)]
    return _start("trust service", command, log)


def start_registry(root: Path, log: Path) -> ServiceProcess:
    """Start the embedded registry over the blobs in `root` on a free port.

    Raises:
        Unavailable: it does not become ready (`sdk.service.not_ready`).
    """
    return _start("registry", [sys.executable, "-m", "cloister.host.registry", "--root", str(root)], log)


def start_witness(directory: Path, log: Path, *, name: str, key: str) -> ServiceProcess:
    """Start a witness of one release log on a free port, as `cloister log witness` does on another machine.

    Args:
        directory: its own, for its key and what it has seen.
        log: file that takes what it says.
        name: of the witness.
        key: verifier key of the log.

    Raises:
        Unavailable: it does not become ready (`sdk.service.not_ready`).
    """
    command = [sys.executable, "-m", "cloister", "log", "witness", "--data", str(directory), "--listen", "127.0.0.1:0"]
    return _start(f"witness {name}", [*command, "--name", name, "--allow", key], log)


def _start(name: str, command: list[str], log: Path) -> ServiceProcess:
    reader, writer = os.pipe()
    log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        child = Child.start(name, [*_MODEST, *command, "--ready-fd", str(writer)], output=log_fd, pass_fds=(writer,))
    finally:
        os.close(writer)
        os.close(log_fd)
    try:
        report = _read_report(name, reader, log)
    except Unavailable:
        child.end(grace_seconds=0)
        child.close()
        raise
    finally:
        os.close(reader)
    return ServiceProcess(child, report.port, report.witness)


def _read_report(name: str, reader: int, log: Path) -> _ReadyReport:
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
        return _ReadyReport(int(text)) if text.isdigit() else msgspec.json.decode(text, type=_ReadyReport)
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
