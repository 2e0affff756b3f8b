"""Keep generated parts of the documents true: `--write` rewrites them, `--check` fails when they differ.

Whole files: docs/reference/cli.md holds every verb's help, docs/reference/refusals.md every refusal with its reason and
fix. Parts of files stand between two marker lines: README.md holds the output of `cloister --help`, and the reference
pages hold tables taken from the code (`blocks.py`).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import blocks
import click
import typer.main

from cloister.cli.app import app
from cloister.cli.refusals import catalogue

ROOT = Path(__file__).parent.parent
HELP, END = "<!-- cloister --help -->", "<!-- end -->"


def help_of(*words: str) -> str:
    """Return the help text the program prints, at a fixed width and without colour."""
    plain = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1", "_TYPER_FORCE_DISABLE_TERMINAL": "1"}
    environment = {**os.environ, **plain}
    command = [sys.executable, "-m", "cloister", *words, "--help"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return "\n".join(line.rstrip() for line in run.stdout.strip().splitlines())


def verbs(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the path of every verb below `command`, depth first."""
    found = [path]
    children = getattr(command, "commands", {})
    for name in sorted(children):
        found += verbs(children[name], (*path, name))
    return found


def with_block(text: str, begin: str, content: str) -> str:
    """Return `text` with what stands between the line `begin` and the next end marker replaced.

    Raises:
        ValueError: no such block.
    """
    head, found, rest = text.partition(f"{begin}\n")
    _, closed, tail = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"no block {begin}")
    return f"{head}{begin}\n{content}\n{END}{tail}"


def readme(text: str) -> str:
    """Return README.md with the help block renewed."""
    return with_block(text, HELP, f"```text\n{help_of()}\n```")


def with_tables(text: str, tables: blocks.Tables) -> str:
    """Return a reference page with its generated blocks renewed."""
    for name, make in tables.items():
        text = with_block(text, f"<!-- generated: {name} -->", make())
    return text


def cli_reference() -> str:
    """Return docs/reference/cli.md."""
    parts = ["# Command line\n\nWritten by `make docs` from the program itself.\n"]
    for path in verbs(typer.main.get_command(app)):
        parts.append(f"## cloister {' '.join(path)}".rstrip() + f"\n\n```text\n{help_of(*path)}\n```\n")
    return "\n".join(parts)


def refusals_reference() -> str:
    """Return docs/reference/refusals.md."""
    lines = [
        "# Refusals\n",
        "Every refusal has a number for people and a dotted code for programs; both are stable.",
        "`cloister explain NUMBER` prints the same. Written by `make docs` from `src/cloister/cli/refusals.toml`.\n",
    ]
    for entry in sorted(catalogue().values(), key=lambda item: item.id):
        lines += [f"### {entry.id} {entry.title}\n", f"`{entry.code}`\n", f"{entry.why}\n", f"**Fix:** {entry.fix}\n"]
    return "\n".join(lines)


def main() -> int:
    """Write or check; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", action="store_true")
    mode.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    wanted = {
        ROOT / "README.md": readme((ROOT / "README.md").read_text("utf-8")),
        ROOT / "docs/reference/cli.md": cli_reference(),
        ROOT / "docs/reference/refusals.md": refusals_reference(),
    }
    for name, tables in blocks.PAGES.items():
        page = ROOT / name
        wanted[page] = with_tables(page.read_text("utf-8"), tables)
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text]
    for path in stale:
        if arguments.write:
            path.write_text(wanted[path], "utf-8")
        else:
            sys.stderr.write(f"{path.relative_to(ROOT)} is stale: run `make docs`\n")
    return int(bool(stale) and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
