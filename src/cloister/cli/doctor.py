"""`cloister doctor`: what this machine can do, each line with its fix."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Annotated, Final

import typer
from rich.text import Text

from cloister.cli.output import level_text, print_json, stdout
from cloister.rats.claims import Level
from cloister.sdk.bundle import find_bundle, launch_files
from cloister.sdk.home import home_from_environment

_NAME_WIDTH: Final = 16


def doctor_command(output: Annotated[str, typer.Option("--output", help="text or json.")] = "text") -> None:
    """List what this machine can do: TEE devices, KVM by a real probe boot, QEMU, swtpm, firmware, disk, clock."""
    from cloister.host.probe import probe_machine

    home = home_from_environment()
    bundle = find_bundle(home)
    lines = probe_machine(cache=home.cache, now=datetime.now(UTC), bundle=launch_files(bundle) if bundle else None)
    if output == "json":
        print_json({"schema": 1, "lines": [dataclasses.asdict(line) for line in lines]})
        return
    for line in lines:
        mark = Text(" ok " if line.ok else " -- ", style="green" if line.ok else "yellow")
        row = Text.assemble(mark, f" {line.name:<{_NAME_WIDTH}} {line.detail}")
        stdout.print(row)
        if not line.ok and line.fix:
            stdout.print(Text(f"      {'':<{_NAME_WIDTH - 1}} fix: {line.fix}", style="dim"))
    for level in (Level.HARDWARE, Level.MEASURED, Level.SIMULATED):
        # No single device makes the level `hardware`; that back end is not driven by `cloister run` yet.
        needed = [line for line in lines if line.level in (level, None)]
        broken = [line.name for line in needed if not line.ok and line.name != "kvm"]
        can = "no `cloister run` back end yet" if level is Level.HARDWARE else ""
        words = can or ("ready" if not broken else f"needs {', '.join(broken)}")
        stdout.print(Text.assemble(" level ", level_text(level.value), f": {words}"))
    stdout.print(" next: cloister demo")
