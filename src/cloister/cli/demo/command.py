"""`cloister demo`: options, and the place the scenes are played in."""

from __future__ import annotations

from typing import Annotated

import typer

from cloister import __version__
from cloister.cli.options import choose_accelerator, choose_backend, level_line
from cloister.cli.output import StepPrinter
from cloister.errors import Refused
from cloister.host.heldplace import HeldPlace
from cloister.sdk.home import home_from_environment


def demo_command(
    level: Annotated[
        str, typer.Option(help="measured (pod VM, software TPM) or simulated (process sandbox, protects nothing).")
    ] = "measured",
    accelerator: Annotated[str, typer.Option("--accel", help="auto, kvm or tcg.")] = "auto",
) -> None:
    """Seal an app, boot a measured pod VM, release its secret model to it, attack it in five ways, revoke it.

    Needs no account, no container engine and no special hardware. Everything shown is carried out.
    """
    # The scenes load every part of Cloister; help does not need them.
    from cloister.cli.demo.scenes import Scenes

    backend = choose_backend(level, "seabios")
    step = StepPrinter(timings=True)
    step.heading(f"cloister {__version__}   {level_line(backend)}")
    with HeldPlace("cloister-demo") as place:
        try:
            Scenes(home_from_environment(), place.path, step, backend, choose_accelerator(accelerator)).play()
        except Refused as error:
            if error.code == "cli.demo.attack_succeeded":
                place.keep()  # whoever reports it needs what is there
            raise
