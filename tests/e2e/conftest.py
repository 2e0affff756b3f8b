"""Fixtures of the end-to-end tests: a work directory, the command line as a process, free ports."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CLI = [sys.executable, "-m", "cloister"]


@pytest.fixture
def cli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Run `cloister ...` in an empty directory and return what it did."""

    def run(*words: str, stdin: bytes = b"", seconds: float = 240.0) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*CLI, *words], input=stdin, capture_output=True, timeout=seconds, cwd=tmp_path, env=dict(os.environ)
        )

    return run


@pytest.fixture
def free_port() -> int:
    """A TCP port of this machine nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
