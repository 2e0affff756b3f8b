"""Advice must be followable: each `cloister ...` command that a hint, the catalogue or a document names exists."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import typer.main

from cloister.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"(?:`|run: |see: |run )cloister ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?(?=[ `\"'.,)]|$)", re.MULTILINE)
TEXTS = sorted(
    [
        *(ROOT / "src").rglob("*.py"),
        *(ROOT / "src").rglob("*.toml"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "spec").rglob("*.md"),
        *ROOT.glob("*.md"),
    ]
)


@cache
def commands() -> dict[str, set[str]]:
    """Command names, and for groups the names of their verbs."""
    root: Any = typer.main.get_command(app)
    return {name: set(getattr(item, "commands", {})) for name, item in root.commands.items()}


def unknown(text: str) -> list[str]:
    known = commands()
    wrong = []
    for noun, verb in NAMED.findall(text):
        if noun not in known or (verb and known[noun] and verb not in known[noun]):
            wrong.append(f"cloister {noun} {verb}".strip())
    return wrong


def test_named_commands_exist() -> None:
    wrong = {str(path.relative_to(ROOT)): unknown(path.read_text("utf-8")) for path in TEXTS}
    assert {path: names for path, names in wrong.items() if names} == {}


def test_the_check_can_fail() -> None:
    assert unknown("do: `cloister conquer world`, `cloister image juggle`") == [
        "cloister conquer world",
        "cloister image juggle",
    ]
    assert unknown("`cloister run IMAGE`, `cloister image sign`, run: cloister podvm build") == []
