"""`cloister doctor`: what this machine can do, each line with its fix."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import typer
from rich.text import Text

from cloister.cli.forms import Output, OutputOption
from cloister.cli.output import EXIT_UNAVAILABLE, level_text, print_json, stdout
from cloister.rats.claims import LEVEL_MEANING, Level
from cloister.sdk.bundle import find_bundle, launch_files
from cloister.sdk.home import home_from_environment

if TYPE_CHECKING:
    from cloister.host.probe import ProbeLine

_NO_BACK_END: Final = "no back end of `cloister run` yet, whatever devices are there"
_NAME_WIDTH: Final = 17


def doctor_command(output: OutputOption = Output.TEXT) -> None:
    """List what this machine can do: TEE devices, KVM by a real probe boot, QEMU, swtpm, firmware, disk, clock.

    Exits with 0 when pods can run at level measured, with 3 when something they need lacks.
    """
    from cloister.host.probe import probe_machine

    home = home_from_environment()
    bundle = find_bundle(home)
    lines = probe_machine(cache=home.cache, now=datetime.now(UTC), bundle=launch_files(bundle) if bundle else None)
    lacking = {level: _lacking(lines, level) for level in (Level.MEASURED, Level.SIMULATED)}
    if output is Output.JSON:
        levels = {level.value: {"ready": not names, "needs": names} for level, names in lacking.items()}
        levels[Level.HARDWARE.value] = {"ready": False, "needs": [_NO_BACK_END]}
        print_json({"schema": 1, "lines": [dataclasses.asdict(line) for line in lines], "levels": levels})
    else:
        _print(lines, lacking)
    if lacking[Level.MEASURED]:
        raise typer.Exit(EXIT_UNAVAILABLE)


def _lacking(lines: Sequence[ProbeLine], level: Level) -> list[str]:
    """Return what pods of this level need and this machine has not. KVM only makes them faster."""
    return [line.name for line in lines if line.level in (level, None) and not line.ok and line.name != "kvm"]


def _print(lines: Sequence[ProbeLine], lacking: Mapping[Level, list[str]]) -> None:
    for line in lines:
        mark = Text(" ok " if line.ok else " -- ", style="green" if line.ok else "yellow")
        stdout.print(Text.assemble(mark, f" {line.name:<{_NAME_WIDTH}} {line.detail}"))
        if not line.ok and line.fix:
            stdout.print(Text(f"      {'':<{_NAME_WIDTH - 1}} fix: {line.fix}", style="dim"))
    stdout.print(Text.assemble(" level ", level_text(Level.HARDWARE.value), f": {_NO_BACK_END}"))
    for level, names in lacking.items():
        words = f"needs {', '.join(names)}" if names else f"ready: proves {LEVEL_MEANING[level]}"
        stdout.print(Text.assemble(" level ", level_text(level.value), f": {words}"))
    broken = lacking[Level.MEASURED]
    stdout.print(" next: fix the lines above" if broken else " next: cloister run IMAGE, or cloister demo")
