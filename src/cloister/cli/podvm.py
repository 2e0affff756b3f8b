"""`cloister podvm build|inspect|lock`: the measured image every pod boots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.forms import Output, OutputOption
from cloister.cli.output import StepPrinter, print_json, print_line, short_digest
from cloister.cli.progress import PhaseBar
from cloister.sdk.home import Home, home_from_environment

if TYPE_CHECKING:
    from cloister.imagetool.podvm import PodVMBundle

app = typer.Typer(no_args_is_help=True, help="Build and look at the pod-VM image.", rich_markup_mode=None)


def prepare_bundle(home: Home) -> PodVMBundle:
    """Return the pod-VM image, building it behind a progress bar when it is not cached."""
    from cloister.sdk.bundle import build_bundle

    with PhaseBar("pod-VM image") as bar:
        return build_bundle(home, progress=bar)


@app.command("build")
def build_command(output: OutputOption = Output.TEXT) -> None:
    """Build the pod-VM image from locked Debian packages, bit for bit the same anywhere.

    Needs neither root nor a container engine. The result is cached by content; a second build is a look-up.
    """
    bundle = prepare_bundle(home_from_environment())
    if output is Output.JSON:
        print_json({"schema": 1, "path": str(bundle.path), "key": bundle.key, "cached": bundle.cached})
        return
    step = StepPrinter()
    took = "cached" if bundle.cached else f"{sum(seconds for _, seconds in bundle.phase_seconds):.1f} s"
    step("ok", "pod-VM image", f"{bundle.path}  ({took})")
    for phase, seconds in bundle.phase_seconds:
        step("--", f"  {phase}", f"{seconds:.1f} s")
    step("ok", "root hash", bundle.reference.verity.root_hash)
    step.note("next: cloister podvm inspect")


@app.command("inspect")
def inspect_command(
    path: Annotated[Path | None, typer.Argument(help="Directory of a bundle [default: the current build].")] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show what the image is made of and what machines that boot it will measure as."""
    from cloister.imagetool.podvm import inspect
    from cloister.sdk.bundle import build_bundle

    inspection = inspect(path or build_bundle(home_from_environment()).path)
    reference = inspection.bundle.reference
    if output is Output.JSON:
        import msgspec

        print_json({"schema": 1, "reference": msgspec.to_builtins(reference)})
        return
    print_line(f"pod-VM image {reference.key}")
    print_line(f"  root hash  {reference.verity.root_hash}")
    for name, record in sorted(reference.files.items()):
        print_line(f"  {name:<28} {record.size:>11,} bytes  {short_digest(record.digest, 16)}")
    print_line("  expected registers")
    for entry in reference.common:
        values = "  ".join(f"{name} {value[:16]}.." for name, value in sorted(entry.registers.items()))
        print_line(f"    {entry.profile:<8} {entry.vcpus} vCPU {entry.memory_mib:>5} MiB  {values}")


@app.command("lock")
def lock_command() -> None:
    """Resolve the package list against this machine's Debian mirrors and rewrite the lock file."""
    from cloister.sdk.bundle import lock_packages

    with PhaseBar("resolving packages") as bar:
        path, changed = lock_packages(home_from_environment(), progress=bar)
    step = StepPrinter()
    step("ok", "lock file", f"{path}  ({'changed' if changed else 'unchanged'})")
    step.note("next: cloister podvm build")
