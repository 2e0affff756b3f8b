"""The embedded registry as its own process, for tests with real tools."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from cloister.oci.distribution import RegistryClient
from cloister.oci.reference import parse_reference
from cloister.oci.session import Credentials
from cloister.oci.transport import HTTPTransport


class RegistryProcess:
    """`python -m cloister.host.registry` with its files in `root`; use it in a `with` statement."""

    def __init__(self, root: Path, *options: str) -> None:
        self.root = root
        self._options = options
        self.port = 0

    def __enter__(self) -> RegistryProcess:
        reader, writer = os.pipe()
        command = [sys.executable, "-m", "cloister.host.registry", "--root", str(self.root), "--ready-fd", str(writer)]
        self.process = subprocess.Popen(
            [*command, "--parent", str(os.getpid()), *self._options], pass_fds=[writer], stderr=subprocess.PIPE
        )
        os.close(writer)
        with os.fdopen(reader) as ready:
            line = ready.readline()
        if not line:
            raise RuntimeError(f"the registry did not start: {self.stop()[1]}")
        self.port = int(line)
        return self

    def __exit__(self, *_: object) -> None:
        self.transport.close()
        self.stop()

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    @property
    def transport(self) -> HTTPTransport:
        """One transport for all clients of this registry."""
        if not hasattr(self, "_transport"):
            self._transport = HTTPTransport()
        return self._transport

    def client(self, name: str, credentials: Credentials | None = None) -> RegistryClient:
        """Return a client of repository `name`."""
        reference = parse_reference(f"{self.address}/{name}")
        return RegistryClient(self.transport, reference, plain_http=True, other_origins=False, credentials=credentials)

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """End the process and return its exit code and what it wrote to standard error."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=20)
        return self.process.returncode, errors.decode()
