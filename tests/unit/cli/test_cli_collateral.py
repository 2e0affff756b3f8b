"""`cloister collateral`, as a user and as a script meet it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from typer.testing import CliRunner, Result

from cloister.cli.app import app
from cloister.errors import CloisterError
from cloister.testing import vendor
from cloister.testing.published import publish_amd
from cloister.testing.snp import FakeAMD, FakeChip
from cloister.testing.vendor import FakeVendor

AMD: Final = FakeAMD("Turin", end=datetime.now(UTC) + timedelta(days=3650))
WINDOW: Final = {"start": datetime.now(UTC) - timedelta(days=1), "end": datetime.now(UTC) + timedelta(days=30)}


class Shell:
    """Runs the program in a home of its own, against one fake service."""

    def __init__(self, directory: Path, service: FakeVendor, patch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.service = service
        self.report = directory / "report.bin"
        self._patch = patch
        self.move_to("first")

    def move_to(self, name: str) -> None:
        """Use another machine's home."""
        self._patch.setenv("CLOISTER_HOME", str(self.directory / name / "home"))
        self._patch.setenv("CLOISTER_CACHE", str(self.directory / name / "cache"))

    def run(self, *words: str) -> Result:
        return CliRunner().invoke(app, ["collateral", *words])

    def fetch(self, *words: str) -> Result:
        return self.run("fetch", *words, "--service", f"amd-kds={self.service.address}")

    def json(self, *words: str, code: int = 0) -> Any:
        result = self.run(*words, "--output", "json")
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    with FakeVendor() as service:
        made = Shell(tmp_path, service, monkeypatch)
        chip = FakeChip.made_by(AMD)
        made.report.write_bytes(chip.report())
        publish_amd(service, AMD, [chip], **WINDOW)
        yield made


def test_fetch_list_and_the_second_time(shell: Shell) -> None:
    first = shell.fetch(str(shell.report), "--platform", "snp")
    assert first.exit_code == 0, first.output
    assert "127.0.0.1" in first.stderr
    assert shell.service.count() == 3
    second = shell.fetch(str(shell.report), "--platform", "snp", "--output", "json")
    items = json.loads(second.stdout)["items"]
    assert [item["status"] for item in items] == ["had"] * 3
    assert shell.service.count() == 3
    listed = shell.json("list")
    assert listed["schema"] == 1
    assert [item["item"].partition(" ")[0] for item in listed["items"]] == ["amd-chain", "amd-crl", "vcek"]
    crl, vcek = listed["items"][1:]
    assert (crl["fresh"], vcek["expires"], vcek["due"]) == (True, None, None)
    assert "fmc=1" in vcek["item"]
    text = shell.run("list")
    assert vcek["item"] in text.stdout
    assert "for ever" in text.stdout
    assert "29 d left" in text.stdout


def test_an_empty_list_says_what_to_do(shell: Shell) -> None:
    assert shell.json("list") == {"schema": 1, "items": [], "damaged": []}
    assert "collateral fetch" in shell.run("list").stderr


def test_items_by_identity(shell: Shell) -> None:
    assert shell.fetch("--item", "amd-crl signer=vcek product=Turin").exit_code == 0
    assert shell.service.count("/vcek/v1/Turin/crl") == 1


def test_what_is_missing_is_unavailable_and_what_is_refused_is_refused(shell: Shell) -> None:
    shell.service.personality = vendor.down
    shell.service.answers.clear()
    shell.service.personality = vendor.honest
    result = shell.fetch(str(shell.report), "--platform", "snp")
    assert result.exit_code == 3
    assert "CLS-A-0559" in result.stderr
    shell.service.personality = vendor.portal
    result = shell.fetch(str(shell.report), "--platform", "snp", "--refresh", "--output", "json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)["items"][0]
    assert (document["status"], document["error"]["code"]) == ("failed", "collateral.answer.type")
    assert document["entry"] is None


def test_a_failed_refresh_shows_what_is_had(shell: Shell) -> None:
    identity = "amd-crl signer=vcek product=Turin"
    shell.fetch("--item", identity)
    shell.service.personality = vendor.portal
    result = shell.fetch("--item", identity, "--refresh")
    assert result.exit_code == 1
    assert "left" in result.stderr


def test_prefetch(shell: Shell) -> None:
    service = ("--service", f"amd-kds={shell.service.address}")
    result = shell.run("prefetch", *service)
    assert result.exit_code == 0
    assert "nothing is due" in result.stderr
    shell.fetch(str(shell.report), "--platform", "snp")
    assert shell.json("prefetch", *service)["items"] == []


def test_export_import_on_another_machine_and_verify_without_either_cache(shell: Shell) -> None:
    shell.fetch(str(shell.report), "--platform", "snp")
    shell.fetch("--item", "amd-crl signer=vlek product=Turin")
    bundle = shell.directory / "collateral.tar"
    needed = shell.json("export", str(bundle), "--evidence", str(shell.report), "--platform", "snp")
    assert len(needed["items"]) == 3
    again = shell.directory / "again.tar"
    shell.json("export", str(again), "--evidence", str(shell.report), "--platform", "snp")
    assert again.read_bytes() == bundle.read_bytes()
    whole = shell.run("export", str(again))
    assert whole.exit_code == 0
    assert "4 items" in whole.stderr
    shell.move_to("second")
    before = shell.service.count()
    kept = shell.json("import", str(bundle))
    assert [item["origin"] for item in kept["kept"]] == ["collateral.tar: 127.0.0.1"] * 3
    assert shell.fetch(str(shell.report), "--platform", "snp").exit_code == 0
    assert shell.service.count() == before
    root = shell.directory / "ark.der"
    root.write_bytes(AMD.root().der)
    words = ("evidence", "verify", str(shell.report), "--platform", "snp", "--trust-root", str(root))
    answers = {}
    for name, more in {"with": ("--collateral", str(bundle)), "without": ()}.items():
        result = CliRunner().invoke(app, [*words, *more, "--output", "json"])
        answers[name] = json.loads(result.stdout)["authentic"]
    assert answers == {"with": True, "without": False}
    assert shell.service.count() == before


def test_import_keeps_what_is_newer(shell: Shell) -> None:
    identity = "amd-crl signer=vcek product=Turin"
    shell.fetch("--item", identity)
    bundle = shell.directory / "old.tar"
    shell.run("export", str(bundle))
    publish_amd(shell.service, AMD, start=datetime.now(UTC), end=datetime.now(UTC) + timedelta(days=60))
    shell.fetch("--item", identity, "--refresh")
    result = shell.json("import", str(bundle))
    assert (result["kept"], len(result["older"])) == ([], 1)
    assert "newer" in shell.run("import", str(bundle)).stderr


def test_a_file_that_is_no_bundle(shell: Shell) -> None:
    result = shell.run("import", str(shell.report))
    assert isinstance(result.exception, CloisterError)
    assert result.exception.code == "collateral.bundle.malformed"


def test_export_of_what_is_not_had(shell: Shell) -> None:
    result = shell.run("export", str(shell.directory / "x.tar"), "--item", "pck-crl ca=platform")
    assert isinstance(result.exception, CloisterError)
    assert result.exception.code == "collateral.bundle.missing"
    result = shell.run("export", str(shell.directory / "no" / "x.tar"))
    assert isinstance(result.exception, CloisterError)
    assert result.exception.code == "collateral.bundle.unwritable"


def test_remove(shell: Shell) -> None:
    shell.fetch(str(shell.report), "--platform", "snp")
    identity = "amd-crl signer=vcek product=Turin"
    assert shell.json("rm", identity)["removed"] == [identity]
    assert shell.json("rm", identity)["removed"] == []
    path = next((shell.directory / "first" / "cache").rglob("vcek/*"))
    path.write_bytes(b"")
    listed = shell.json("list")
    assert [item["path"] for item in listed["damaged"]] == [str(path)]
    assert "damaged" in shell.run("list").stderr
    assert shell.json("rm", "--damaged") == {"schema": 1, "removed": [], "damaged": 1}
    assert len(shell.json("rm", "--all")["removed"]) == 1
    assert shell.json("list")["items"] == []


@pytest.mark.parametrize(
    "words",
    [
        ["fetch"],
        ["fetch", "REPORT"],
        ["fetch", "--item", "pck-crl ca=platform", "--update", "late"],
        ["fetch", "REPORT", "--platform", "pdp11"],
        ["rm"],
    ],
)
def test_usage(shell: Shell, words: list[str]) -> None:
    result = shell.run(*(str(shell.report) if word == "REPORT" else word for word in words))
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["fetch", "--item", "nonsense"], "collateral.item.malformed"),
        (["fetch", "--item", "pck-crl ca=platform", "--service", "x"], "collateral.fetch.address"),
        (["fetch", "REPORT", "--platform", "simulated"], ""),
        (["fetch", "--item", "pck-crl ca=platform", "--tls-ca", "REPORT"], "collateral.fetch.ca"),
    ],
)
def test_what_is_refused_before_anything_is_asked(shell: Shell, words: list[str], code: str) -> None:
    result = shell.run(*(str(shell.report) if word == "REPORT" else word for word in words))
    assert isinstance(result.exception, CloisterError)
    assert code in result.exception.code
    assert shell.service.count() == 0
