"""`cloister evidence`: exit codes, JSON members and words that scripts and people rely on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cloister.cli.app import app
from cloister.cli.output import exit_code
from cloister.errors import Unavailable
from cloister.tee.insecure.attester import SimulationAttester
from cloister.tee.insecure.machinekey import load_machine_key, public_der

NONCE = bytes(range(48))
POLICY = 'version = 1\nid = "mine"\ntees = ["cloister-simulated"]\ninsecure_accept_levels = ["simulated"]\n'


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A directory with evidence, its root and a policy."""
    with SimulationAttester(str(tmp_path / "key.pem")) as attester:
        attester.extend(8, bytes(32))
        (tmp_path / "evidence.json").write_text(json.dumps(attester.attest(NONCE)))
    (tmp_path / "root.der").write_bytes(public_der(load_machine_key(str(tmp_path / "key.pem"))))
    (tmp_path / "policy.toml").write_text(POLICY)
    return tmp_path


def call(*words: str) -> Result:
    return CliRunner().invoke(app, ["evidence", *words])


def verify(files: Path, *words: str) -> Result:
    return call(
        "verify",
        str(files / "evidence.json"),
        "--platform",
        "simulated",
        "--trust-root",
        str(files / "root.der"),
        "--policy",
        str(files / "policy.toml"),
        *words,
    )


def test_accept_is_0_and_the_document_is_whole(files: Path) -> None:
    done = verify(files, "--nonce", NONCE.hex(), "--output", "json")
    document: dict[str, Any] = json.loads(done.stdout)
    assert done.exit_code == 0
    answers = {name: document[name] for name in ("authentic", "bound", "acceptable", "verdict")}
    assert answers == {"authentic": True, "bound": "yes", "acceptable": True, "verdict": "accept"}
    assert document["claims"]["level"] == "simulated" and document["claims"]["report_data"] == NONCE.hex()
    for finding in document["findings"]:
        assert {"code", "path", "severity", "expected", "actual", "message", "hint"} <= set(finding)
    assert {finding["severity"] for finding in document["findings"]} == {"info", "warning"}


def test_refuse_is_1(files: Path) -> None:
    done = verify(files, "--nonce", "00" * 48, "--output", "json")
    document = json.loads(done.stdout)
    assert (done.exit_code, document["verdict"], document["bound"]) == (1, "refuse", "no")
    [finding] = [item for item in document["findings"] if item["severity"] == "error"]
    assert finding["code"] == "evidence.freshness" and finding["hint"] and finding["expected"] != finding["actual"]


def test_evidence_that_does_not_parse_is_a_refusal_with_a_document(files: Path) -> None:
    (files / "evidence.json").write_text("{")
    done = verify(files, "--output", "json")
    document = json.loads(done.stdout)
    assert (done.exit_code, document["verdict"], document["claims"]) == (1, "refuse", {})


@pytest.mark.parametrize(
    "words",
    [
        ["--nonce", "xyz"],
        ["--at", "yesterday"],
        ["--at", "2026-01-01T00:00:00"],
        ["--platform", "abacus"],
        ["--nonce", "00", "--report-data", "00"],
        ["--endorsement", "/nowhere"],
    ],
)
def test_usage_is_2(files: Path, words: list[str]) -> None:
    assert verify(files, *words).exit_code == 2


def test_words_for_people(files: Path) -> None:
    done = verify(files, "--nonce", "00" * 48)
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("JSON of the simulation: simulation, no TEE, level SIMULATED")
    assert any(line.startswith(" ok  authentic: yes") for line in lines)
    assert any(line.startswith(" no  bound: no") for line in lines)
    assert any("CLS-A-0100" in line and "expected 000000" in line for line in lines)
    assert lines[-1] == "verdict: refuse"


def test_show_says_what_is_not_verified(files: Path) -> None:
    verified = call(
        "show",
        str(files / "evidence.json"),
        "--platform",
        "simulated",
        "--trust-root",
        str(files / "root.der"),
    )
    unverified = call("show", str(files / "evidence.json"), "--platform", "simulated")
    assert verified.exit_code == unverified.exit_code == 0
    assert "NOT VERIFIED" not in verified.stdout and "NOT VERIFIED: CLS-A-" in unverified.stdout
    for text in (verified.stdout, unverified.stdout):
        assert NONCE.hex() in text
    assert "protects nothing" in verified.stdout and "may be made up" in unverified.stdout
    document = json.loads(
        call("show", str(files / "evidence.json"), "--platform", "simulated", "--output", "json").stdout
    )
    assert (document["verified"], document["problem"]["code"]) == (False, "tee.insecure.no_roots")


def test_collect_without_a_device_is_3(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> str:
        raise Unavailable("sdk.evidence.no_device", "no TEE device on this machine")

    monkeypatch.setattr("cloister.sdk.devices.detect_platform", absent)
    done = call("collect", "--report-data", "00" * 32)
    assert isinstance(done.exception, Unavailable) and exit_code(done.exception) == 3
