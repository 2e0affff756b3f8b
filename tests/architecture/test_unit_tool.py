"""The tool that runs unit tests in several processes leaves no file out and hides no failure."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.tool  # runs other programs: not a part of `make unit`

GOOD = "def test_good():\n    pass\n"
BAD = "def test_bad():\n    raise AssertionError('planted')\n"


@pytest.fixture(scope="module")
def tool(repository: Path) -> ModuleType:
    spec = spec_from_file_location("unit_tool", repository / "tools" / "unit.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("count", [1, 2, 3, 500])
def test_every_file_is_in_one_part(tool: ModuleType, repository: Path, count: int) -> None:
    files = sorted((repository / "tests" / "unit").rglob("test_*.py"))
    parts = tool.parts_of(files, count)
    assert sorted(file for part in parts for file in part) == files
    assert len(parts) == min(count, len(files)) and all(parts)
    costs = [sum(map(tool.cost_of, part)) for part in parts]
    assert max(costs) - min(costs) <= max(map(tool.cost_of, files))


@pytest.mark.parametrize(
    ("contents", "count", "status"), [((GOOD, GOOD), 1, 0), ((GOOD, BAD), 2, 1), ((BAD, GOOD), 2, 1)]
)
def test_a_failure_in_any_process_is_a_failure(
    tool: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    contents: list[str],
    count: int,
    status: int,
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # these need none
    for number, content in enumerate(contents):
        (tmp_path / f"test_{number}.py").write_text(content)
    assert tool.run([tmp_path], [f"--rootdir={tmp_path}"], count) == status
    told = capsys.readouterr().out
    assert f"2 files in {count} processes" in told and ("planted" in told) is bool(status)


def test_nothing_to_run_is_no_success(repository: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(repository / "tools" / "unit.py"), str(tmp_path)], check=False)
    assert done.returncode == 2
