"""What every test shares: vectors, tools, a private home, and the rule that CI may not skip."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from postgres_process import PostgreSQLServer
    from swtpm_process import SoftwareTPM

ROOT = Path(__file__).resolve().parent.parent
EXTRA_PATH = "/usr/local/sbin:/usr/sbin:/sbin"  # Debian keeps mkfs, veritysetup and swtpm_setup out of a user's PATH


def in_ci() -> bool:
    """Return whether this run decides about a change: then a test that cannot run is a failure."""
    return bool(os.environ.get("CI"))


settings.register_profile("cloister", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", settings.get_profile("cloister"), max_examples=25)  # of `make unit`
settings.register_profile(  # the same examples each time: a change is not judged by another run's luck
    "ci", settings.get_profile("cloister"), derandomize=True, database=None, print_blob=True
)
settings.load_profile("ci" if in_ci() else "cloister")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI turn each skip into a failure that names the reason."""
    report = yield
    if in_ci() and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"CI may not skip {item.nodeid}: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself while it is collected."""
    report = yield
    if in_ci() and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"CI may not skip {collector.nodeid}: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Names of directories that do not exist yet: pytest's own numbered ones are looked for among thousands."""
    base = tmp_path_factory.mktemp("homes")
    return (base / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def private_home(homes: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test its own owner's state, made on first use; the content-addressed cache stays shared."""
    home = next(homes)
    monkeypatch.setenv("CLOISTER_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The directory of language-neutral test vectors, which lives beside the repository."""
    directory = Path(os.environ.get("CLOISTER_VECTORS") or ROOT.parent / "shared" / "vectors")
    if not directory.is_dir():
        pytest.skip(f"no test vectors at {directory}: set CLOISTER_VECTORS")
    return directory


@pytest.fixture(scope="session")
def require_tool() -> Callable[[str], Path]:
    """Return a function that gives the path of an installed program or skips with the reason."""

    def find(name: str) -> Path:
        found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{EXTRA_PATH}")
        if found is None:
            pytest.skip(f"{name} is not installed: run `tools/setup test-packages`")
        return Path(found)

    return find


@pytest.fixture(scope="module")
def manufacture(
    require_tool: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], SoftwareTPM]:
    """Return a function that makes a TPM under a CA of its own."""
    from swtpm_process import SoftwareTPM  # this file is also run alone, by the test of its rule about skips

    setup, swtpm = require_tool("swtpm_setup"), require_tool("swtpm")
    require_tool("swtpm_localca")
    return lambda: SoftwareTPM(tmp_path_factory.mktemp("swtpm"), setup, swtpm)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQLServer]:
    """A running PostgreSQL server, which tests share and do not disturb; each makes a database of its own."""
    import postgres_process  # as above

    with postgres_process.running() as server:
        yield server


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the working tree."""
    return ROOT


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect garbage of tests only: looking through modules and thousands of tests again and again takes seconds."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Run tests that boot machines last, so that a cheap failure is seen first."""
    items.sort(key=lambda item: item.get_closest_marker("vm") is not None)
