"""Documents hold together: links lead somewhere, commands and options exist, codes are those of the catalogue."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main

from cloister.cli.app import app
from cloister.cli.refusals import catalogue, find_refusal

ROOT = Path(__file__).resolve().parents[2]
FENCED = re.compile(r"^ *(`{3,}).*?^ *\1 *$", re.DOTALL | re.MULTILINE)
INLINE_CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
SHELL = re.compile(r"^ *```sh\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
MENTION = re.compile(r"(?<![\w/])(?:docs|spec)/[\w/-]+\.md\b")
IMAGE = re.compile(r"IMAGE$|(docker|docker-archive|oci|oci-archive):|docker\.io/")
CODE = re.compile(r"`([a-z0-9_]+(?:\.[a-z0-9_]+)+)`")


def documents() -> list[Path]:
    """Every Markdown file that is or is about to be part of the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return sorted(ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file())


DOCUMENTS = documents()


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors_in(text: str) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in HEADING.findall(FENCED.sub("", text)):
        words = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower())
        anchor = number = words.replace(" ", "-")
        for count in range(1, 100):
            if number not in found:
                break
            number = f"{anchor}-{count}"
        found.add(number)
    return found


@cache
def anchors_of(path: Path) -> frozenset[str]:
    return frozenset(anchors_in(path.read_text("utf-8")))


def broken_links(text: str, place: Path) -> list[str]:
    """Relative links of a document at `place` that lead nowhere; an address of another host is not asked."""
    broken = []
    for target in LINK.findall(INLINE_CODE.sub("", FENCED.sub("", text))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (place.parent / name).resolve() if name else place
        inside = path == ROOT or ROOT in path.parents
        if not inside or not path.exists() or (anchor and (path.suffix != ".md" or anchor not in anchors_of(path))):
            broken.append(target)
    return broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_relative_links_lead_somewhere(document: Path) -> None:
    assert broken_links(document.read_text("utf-8"), document) == []


def test_broken_links_are_noticed() -> None:
    readme = ROOT / "README.md"
    assert broken_links("[a](docs/gone.md) [b](LICENSE) [c](README.md#gone) [d](#commands)", readme) == [
        "docs/gone.md",
        "README.md#gone",
    ]
    assert broken_links(
        "[a](../../elsewhere) [b](https://example.test/) `[c](gone)`\n```\n[d](gone)\n```\n", readme
    ) == ["../../elsewhere"]


def mentioned(text: str) -> set[str]:
    """Documents of this repository that a text names by their path."""
    return set(MENTION.findall(text))


def test_documents_that_code_names_exist() -> None:
    texts = [file for place in ("src", "images", "tools", "bench") for file in (ROOT / place).rglob("*.*")]
    gone = {
        f"{name_of(file)}: {name}"
        for file in texts
        if file.suffix in {".py", ".toml", ".sh", ".html"}
        for name in mentioned(file.read_text("utf-8"))
        if not (ROOT / name).exists()
    }
    assert gone == set()


def test_a_document_that_is_gone_is_noticed() -> None:
    assert mentioned("see spec/gone.md, docs/levels/gone.md. But kbs/docs/initdata.md is another's") == {
        "spec/gone.md",
        "docs/levels/gone.md",
    }


@cache
def verbs() -> dict[tuple[str, ...], set[str]]:
    """Every command with the options it takes."""
    found: dict[tuple[str, ...], set[str]] = {}

    def visit(command: Any, path: tuple[str, ...]) -> None:
        options = {name for item in command.params for name in (*item.opts, *item.secondary_opts)}
        found[path] = {name for name in options if name.startswith("-")} | {"--help", "-h"}
        for name, child in getattr(command, "commands", {}).items():
            visit(child, (*path, name))

    visit(typer.main.get_command(app), ())
    return found


@cache
def groups_that_do_something() -> set[tuple[str, ...]]:
    """Groups that are commands themselves when none of their verbs is named: `cloister audit`."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # the program is a group
    return {(name,) for name, command in commands.items() if getattr(command, "invoke_without_command", False)}


def wrong_commands(text: str) -> list[str]:
    """Lines of shell examples that name a command or an option which does not exist."""
    lines = "".join(SHELL.findall(text)).splitlines()
    return [line for line in lines if not is_possible(line)]


def is_possible(line: str) -> bool:
    """Whether a line is about another program, or about a command of ours with options it has."""
    words = shlex.split(line, comments=True)
    while words and "=" in words[0]:  # variables
        del words[0]
    if not words or Path(words[0]).name != "cloister":
        return True
    path: tuple[str, ...] = ()
    while len(words) > 1 and (*path, words[1]) in verbs():
        path = (*path, words.pop(1))
    group = any(len(other) > len(path) and other[: len(path)] == path for other in verbs())
    if group and path not in groups_that_do_something():
        return False  # a group without its verb
    of_ours = words[1:]
    if path == ("run",):  # what stands behind the image is the program's
        of_ours = list(itertools.takewhile(lambda word: not IMAGE.match(word), of_ours))
    return all(word.partition("=")[0] in verbs()[path] for word in of_ours if word.startswith("-"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_commands_of_examples_exist(document: Path) -> None:
    assert wrong_commands(document.read_text("utf-8")) == []


def test_wrong_commands_are_noticed() -> None:
    lines = [
        "cloister run --gone IMAGE",
        "A=b cloister conquer",
        ".venv/bin/cloister image --output json",
        "cloister podvm",
    ]
    good = [
        "cloister run -p 1:2 IMAGE sh -c x",
        "CLOISTER_HOME=/x cloister podvm build --output json",
        "ls -l",
        "cloister serve",
    ]
    assert wrong_commands("```sh\n" + "\n".join([*lines, *good]) + "\n```\n") == lines


def unknown_codes(text: str) -> list[str]:
    """Refusal codes in backticks that the catalogue does not have. A word is taken for a code by its first part."""
    areas = {code.partition(".")[0] for code in catalogue()} - {"cloister"}
    found = CODE.findall(FENCED.sub("", text))
    suffixes = {"json", "md", "toml", "py", "pem", "key", "db", "log", "txt"}
    return sorted(
        {c for c in found if c.partition(".")[0] in areas and c.rpartition(".")[2] not in suffixes and not _known(c)}
    )


def _known(code: str) -> bool:
    return find_refusal(code) is not None or any(entry.startswith(f"{code}.") for entry in catalogue())


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_codes_are_in_the_catalogue(document: Path) -> None:
    assert unknown_codes(document.read_text("utf-8")) == []


def test_unknown_codes_are_noticed() -> None:
    text = "`podpolicy.exec` `podpolicy.juggle` `trust.release.level` `run.json` `cloister.guest.agent` `trust.db`"
    assert unknown_codes(text) == ["podpolicy.juggle"]
