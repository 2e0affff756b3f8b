"""The benchmark of encryption runs, and everything that anybody encrypts there everybody decrypts to the original."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.tools import require_tool

pytestmark = pytest.mark.tool

ROOT = Path(__file__).resolve().parents[2]


def run_bench(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run it with little and no targets; return what it printed."""
    cache = os.environ.get("CLOISTER_CACHE") or str(Path.home() / ".cache" / "cloister")
    environment = {**os.environ, "CLOISTER_HOME": str(tmp_path / "home"), "CLOISTER_CACHE": cache}
    command = [sys.executable, str(ROOT / "bench" / "images.py"), "--quick", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_programs_decrypt_each_others_layers_before_a_row_is_printed(tmp_path: Path) -> None:
    require_tool("skopeo", minimum=(1, 18))
    done = run_bench(tmp_path, "--only", "encrypt plain,decrypt text")
    rows = [line for line in done.stdout.splitlines() if line.startswith(("| encrypt", "| decrypt"))]
    assert len(rows) == 3, done.stdout
    assert "skopeo 1.18: " not in done.stdout  # the reason why it is not there


def test_guest_and_tools_unpack_the_same_tree(tmp_path: Path) -> None:
    require_tool("skopeo", minimum=(1, 18))
    require_tool("umoci")
    done = run_bench(tmp_path, "--guest")
    rows = [line for line in done.stdout.splitlines() if line.startswith(("| text", "| gzip"))]
    assert len(rows) == 2, done.stdout
    assert "not here" not in done.stdout
