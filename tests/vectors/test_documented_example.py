"""The four lines of docs/howto/verify-a-report.md, run as they stand there, on a real report."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "verify-a-report.md"


@pytest.fixture
def place(evidence_vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the files the page names."""
    case = evidence_vectors / "snp" / "milan-v2-vcek"
    (tmp_path / "report.bin").write_bytes((case / "report.bin").read_bytes())
    (tmp_path / "vcek.der").write_bytes((case / "vcek.der").read_bytes())
    chain = (evidence_vectors / "roots" / "amd" / "milan_ask_ark_asvk.pem").read_bytes()
    (tmp_path / "cert_chain.pem").write_bytes(chain)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def test_the_page_has_four_lines() -> None:
    assert len([line for line in blocks()[0].splitlines() if line]) == 4


def test_the_four_lines_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(blocks()[0], names)  # noqa: S102  # the point of the test
    answer = names["answer"]
    assert (answer.authentic, answer.bound, answer.verdict) == (False, "not requested", "unavailable")
    assert answer.claims.native["measurement"].startswith("a1f3930413247bb3")
    told = capsys.readouterr().out
    assert told.startswith("unavailable False not requested") and "tee.sev_snp.revocation" in told


def test_the_page_says_what_comes_out(place: Path) -> None:
    assert "The lines above end with `unavailable`" in PAGE.read_text("utf-8")
