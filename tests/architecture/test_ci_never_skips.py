"""Where `CI` is set a skipped test is a failed test, whatever skipped it: shown on a small suite under our conftest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.tool  # runs other programs: not a part of `make unit`

SUITE = """
import pytest


def test_runs():
    pass


def test_skips_itself():
    pytest.skip("no tool here")


@pytest.mark.skipif(True, reason="not as this user")
def test_is_marked():
    pass


def test_lacks_a_tool(require_tool):
    require_tool("a-program-that-does-not-exist")


@pytest.mark.xfail(strict=True, reason="known")
def test_known_failure():
    raise AssertionError
"""
WHOLE_MODULE = 'import pytest\n\npytest.skip("not on this system", allow_module_level=True)\n'


def run_suite(directory: Path, repository: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(repository / "tests" / "conftest.py", directory)
    (directory / "test_suite.py").write_text(SUITE, encoding="utf-8")
    (directory / "test_whole.py").write_text(WHOLE_MODULE, encoding="utf-8")
    inherited = {name: value for name, value in os.environ.items() if name != "CI"}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--continue-on-collection-errors",
            f"--rootdir={directory}",
            str(directory),
        ],
        cwd=directory,
        env={**inherited, **environment, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_skips_fail_in_ci(tmp_path: Path, repository: Path) -> None:
    result = run_suite(tmp_path, repository, CI="true")
    assert result.returncode != 0
    for name in (
        "test_suite.py::test_skips_itself",
        "test_suite.py::test_is_marked",
        "test_suite.py::test_lacks_a_tool",
    ):
        assert f"CI may not skip {name}: " in result.stdout
    assert "CI may not skip test_whole.py: " in result.stdout
    assert " skipped" not in result.stdout.splitlines()[-1]


def test_skips_name_their_reason_elsewhere(tmp_path: Path, repository: Path) -> None:
    result = run_suite(tmp_path, repository)
    assert result.returncode == 0, result.stdout
    assert "1 passed, 4 skipped, 1 xfailed" in result.stdout
