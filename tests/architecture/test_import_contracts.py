"""The import contracts hold, and each of them is seen failing on a violation planted in a copy of the source."""

from __future__ import annotations

import configparser
import filecmp
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.tool  # runs other programs: not a part of `make unit`

LINTER = Path(sys.executable).parent / "lint-imports"
PREFIX = "importlinter:contract:"


class Planted(NamedTuple):
    """A violation: the contract it must break, the file it goes into, and the line."""

    contract: str
    file: str
    line: str


VIOLATIONS = [
    Planted("rings", "errors.py", "from cloister.wire import limits"),
    Planted("rings", "wire/limits.py", "import cloister.protocol.kbs"),
    Planted("rings", "protocol/kbs.py", "def late() -> None:\n    from cloister.podpolicy import enforce"),
    Planted("rings", "podpolicy/enforce.py", "import cloister.guest.agent"),
    Planted("rings", "client/keybroker.py", "import cloister.host.vmm"),
    Planted("rings", "guest/agent.py", "import cloister.host.vmm"),
    Planted("rings", "host/vmm/__init__.py", "import cloister.trust"),
    Planted("rings", "trust/app.py", "import cloister.imagetool"),
    Planted("rings", "sdk/__init__.py", "import cloister.testing"),
    Planted("rings", "surprise/__init__.py", "# a package nobody placed in a ring"),
    Planted("trust-roles", "trust/keybroker/planted.py", "import cloister.trust.verifier"),
    Planted("trust-roles", "trust/verifier/planted.py", "import cloister.trust.refvalues"),
    Planted("tee-technologies", "tee/tpm/abi.py", "import cloister.tee.insecure.abi"),
    Planted("pure-core", "podpolicy/enforce.py", "import socket"),
    Planted("pure-core", "protocol/initdata.py", "from urllib.parse import urlsplit"),
    Planted("pure-core", "tee/tpm/verifier.py", "def later() -> None:\n    import subprocess"),
    Planted("attesters", "trust/verifier/planted.py", "import cloister.tee.tpm.attester"),
    Planted("attesters", "host/planted.py", "import cloister.tee.insecure.attester"),
    Planted("acyclic", "wire/limits.py", "import cloister.wire.planted"),
]


def contracts(repository: Path) -> dict[str, str]:
    """Contract identifiers and names, from the linter's own configuration."""
    parser = configparser.ConfigParser()
    parser.read(repository / ".importlinter")
    return {
        section.removeprefix(PREFIX): parser[section]["name"]
        for section in parser.sections()
        if section.startswith(PREFIX)
    }


def lint(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(LINTER), "--no-cache", "--no-logo", *options],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(directory / "src"), "NO_COLOR": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_contract_is_kept(repository: Path) -> None:
    result = lint(repository)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(rf"Contracts: {len(contracts(repository))} kept, 0 broken", result.stdout)


def test_every_contract_has_a_planted_violation(repository: Path) -> None:
    assert {planted.contract for planted in VIOLATIONS} == set(contracts(repository))


@pytest.fixture(scope="module")
def copied(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source, for one violation at a time."""
    directory = tmp_path_factory.mktemp("copy")
    shutil.copytree(repository / "src", directory / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(repository / ".importlinter", directory)
    return directory


@contextmanager
def added(file: Path, text: str) -> Iterator[None]:
    """Add text to a file, which need not exist; afterwards everything is as it was."""
    before = file.read_bytes() if file.exists() else None
    package_is_new = not file.parent.exists()
    file.parent.mkdir(exist_ok=True)
    file.write_bytes((before or b"") + text.encode())
    yield
    if package_is_new:
        shutil.rmtree(file.parent)
    elif before is None:
        file.unlink()
    else:
        file.write_bytes(before)


@pytest.mark.parametrize("planted", VIOLATIONS, ids=lambda planted: f"{planted.contract}:{planted.file}")
def test_contract_breaks_on_a_planted_violation(planted: Planted, repository: Path, copied: Path) -> None:
    package = copied / "src" / "cloister"
    cycle = added(package / "wire" / "planted.py", "import cloister.wire.limits\n")
    with (
        added(package / planted.file, f"\n{planted.line}\n"),
        cycle if planted.contract == "acyclic" else nullcontext(),
    ):
        result = lint(copied, "--contract", planted.contract)
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{contracts(repository)[planted.contract]} BROKEN" in " ".join(result.stdout.split())


def test_nothing_is_left_of_a_planted_violation(repository: Path, copied: Path) -> None:
    for planted in VIOLATIONS:
        with added(copied / "src" / "cloister" / planted.file, planted.line):
            pass
    ignored = ["__pycache__", "cloister.egg-info"]
    assert differences(filecmp.dircmp(repository / "src", copied / "src", ignore=ignored)) == []


def differences(compared: filecmp.dircmp[str]) -> list[str]:
    here = [*compared.left_only, *compared.right_only, *compared.diff_files, *compared.funny_files]
    return here + [name for inner in compared.subdirs.values() for name in differences(inner)]
