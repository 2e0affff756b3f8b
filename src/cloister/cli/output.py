"""How the command line speaks: steps and errors to standard error, results to standard output.

Three shapes only: a step line (` ok  text  detail`), a refusal line (` no  ...`), and the error block that every
failed command ends with (cause, place, expected, actual, fix). Colour only on a terminal; the words alone carry the
meaning.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from rich.console import Console
from rich.text import Text

from cloister.cli.refusals import find_refusal, refusal_number
from cloister.errors import CloisterError, Unavailable

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 3

_STYLES = {"ok": "green", "no": "red", "!!": "bold red", "--": "dim", "..": "cyan"}
_TEXT_WIDTH = 38
_LEVEL_STYLES = {"HARDWARE": "green", "MEASURED": "yellow", "SIMULATED": "red"}

stderr = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
stdout = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


def visible(text: str) -> str:
    """Return `text` with everything that would steer a terminal or turn the reading direction written out.

    Names in images, answers of registries and words of a guest end up in messages; none of them may repaint the line
    that says so.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def print_line(text: str) -> None:
    """Print one line of a result to standard output, made `visible`."""
    stdout.print(Text(visible(text)))


class StepPrinter:
    """Prints one line per step, with the time it took when timings are wanted."""

    def __init__(self, *, quiet: bool = False, timings: bool = False) -> None:
        self._quiet = quiet
        self._timings = timings
        self._last = time.monotonic()

    def __call__(self, mark: str, text: str, detail: str = "") -> None:
        """Print a step: `mark` is `ok`, `no`, `--`, `..` or, for what went wrong, `!!`."""
        now = time.monotonic()
        took, self._last = now - self._last, now
        if self._quiet:
            return
        line = Text(" ")
        line.append(f"{mark:<3}", style=_STYLES.get(mark, ""))
        line.append(f" {visible(text):<{_TEXT_WIDTH}} ")
        line.append(visible(detail))
        if self._timings and took >= 0.05:
            line.append(f"  {took:.1f} s", style="dim")
        stderr.print(line)

    def heading(self, text: str) -> None:
        """Print the first line: what runs, at which level."""
        if not self._quiet:
            stderr.print(Text(text))

    def note(self, text: str) -> None:
        """Print a line that is no step."""
        if not self._quiet:
            stderr.print(Text(f" {visible(text)}"))


def level_text(level: str) -> Text:
    """Return a level name in its colour."""
    return Text(level.upper(), style=_LEVEL_STYLES.get(level.upper(), ""))


def print_error(error: CloisterError) -> None:
    """Print the error block: cause, place, expected, actual, fix.

    The fix is the error's own where it has one, else the one in the catalogue.
    """
    entry = find_refusal(error.code)
    stderr.print(Text(f"cloister: error: {refusal_number(error.code)} {visible(error.message)}", style="red"))
    for name, value in (("place", error.path), ("expected", error.expected), ("actual", error.actual)):
        if value:
            stderr.print(Text(f"cloister:   {name + ':':<10}{visible(value)}"))
    hint = error.hint or (entry.fix if entry else "")
    if hint:
        stderr.print(Text(f"cloister: hint: {visible(hint)}"))
    stderr.print(Text(f"cloister: more: cloister explain {refusal_number(error.code)}   ({error.code})", style="dim"))


def exit_code(error: CloisterError) -> int:
    """Return the exit code of a command that failed with `error`."""
    return EXIT_UNAVAILABLE if isinstance(error, Unavailable) else EXIT_REFUSED


def print_json(value: Any) -> None:  # Any: JSON
    """Print a result as JSON to standard output."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + os.linesep)


def short_digest(text: str, length: int = 12) -> str:
    """Return a digest the way people read it: without algorithm, its first characters."""
    return text.rpartition(":")[2][:length] + ".."
