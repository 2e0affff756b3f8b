"""`cloister run IMAGE [ARGS]`: as people know it from docker, in a measured pod VM."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
import typer.core
import typer.exceptions

from cloister import __version__
from cloister.cli.options import (
    choose_accelerator,
    choose_backend,
    level_line,
    parse_environment,
    parse_name,
    parse_publish,
    parse_sealing_keys,
    parse_secret_files,
)
from cloister.cli.output import EXIT_USAGE, StepPrinter, print_error
from cloister.cli.podvm import prepare_bundle
from cloister.cli.refusals import refusal_number
from cloister.cli.report import write_report
from cloister.errors import CloisterError
from cloister.host.vmm.spec import MEMORY_LEAST_MIB, SCRATCH_MIB, Backend
from cloister.protocol.launch import MEMORY_MIB, VCPUS
from cloister.rats.claims import Level
from cloister.sdk.home import home_from_environment
from cloister.sdk.record import RunRecord

if TYPE_CHECKING:
    from cloister.sdk.run import RunRequest
    from cloister.sdk.session import Terminal

EXIT_CLOISTER: Final = 125  # Cloister itself refused or failed; lower numbers belong to the workload
_EXIT_SIGNAL: Final = 128
_FORWARDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class RunCommand(typer.core.TyperCommand):
    """A verb whose usage errors leave with 125 too: 2 may be the workload's own status."""

    def make_context(self, *args: Any, **extra: Any) -> Any:  # Any: passed on as it comes
        """Parse the command line."""
        try:
            return super().make_context(*args, **extra)
        except typer.exceptions.TyperException as error:
            if getattr(error, "exit_code", 0) == EXIT_USAGE:
                error.exit_code = EXIT_CLOISTER
            raise


def run_command(
    image: Annotated[
        str, typer.Argument(help="Registry reference, oci:PATH:TAG, oci-archive:PATH or docker-archive:PATH.")
    ],
    args: Annotated[list[str] | None, typer.Argument(help="Replace the image's command.")] = None,
    env: Annotated[list[str] | None, typer.Option("--env", "-e", help="NAME=VALUE, set over the image's.")] = None,
    workdir: Annotated[str | None, typer.Option("--workdir", "-w", help="Working directory.")] = None,
    user: Annotated[str | None, typer.Option("--user", "-u", help="User: uid, name, or uid:gid.")] = None,
    publish: Annotated[
        list[str] | None, typer.Option("--publish", "-p", help="[IP:]HOST:POD, forwards a TCP port.")
    ] = None,
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Keep standard input open.")] = False,
    tty_: Annotated[bool, typer.Option("--tty", "-t", help="Give the process a terminal.")] = False,
    entrypoint: Annotated[str | None, typer.Option(help="Replace the image's entrypoint and command.")] = None,
    rm: Annotated[bool, typer.Option("--rm", help="Leave no run directory behind.")] = False,
    name: Annotated[str, typer.Option(help="Name of the pod.")] = "",
    level: Annotated[
        str, typer.Option(help="measured (pod VM, software TPM) or simulated (process sandbox, protects nothing).")
    ] = "measured",
    profile: Annotated[str, typer.Option(help="Boot profile of a measured pod: seabios or uki.")] = "seabios",
    accelerator: Annotated[str, typer.Option("--accel", help="auto, kvm or tcg.")] = "auto",
    vcpus: Annotated[int, typer.Option(min=1, max=VCPUS, help="Virtual processors of the pod VM.")] = 2,
    memory: Annotated[
        int, typer.Option(min=MEMORY_LEAST_MIB, max=MEMORY_MIB, help="Memory of the pod VM in MiB.")
    ] = 512,
    scratch: Annotated[
        int,
        typer.Option(
            min=0,
            max=SCRATCH_MIB,
            help="Size in MiB of a disk on which encrypted layers wait; without it, they wait in the pod VM's memory.",
        ),
    ] = 0,
    resource: Annotated[
        list[str] | None, typer.Option(help="repository/type/tag the workload may fetch from the key broker.")
    ] = None,
    secret_file: Annotated[
        list[str] | None,
        typer.Option(
            help="PATH=SOURCE, a file only the workload reads; SOURCE is a file here, kbs:///... or sealed...."
        ),
    ] = None,
    sealing_key: Annotated[
        list[str] | None, typer.Option(help="Accept sealed secrets of this key: kbs:///..., or KID=FILE (PEM or JWK).")
    ] = None,
    unseal: Annotated[list[str] | None, typer.Option(help="kbs:///... that sealed secrets may name.")] = None,
    lease: Annotated[int, typer.Option(min=0, help="Seconds the pod may run on one attestation; 0 is no lease.")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the pod's approval in force after its end.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only what the workload prints.")] = False,
) -> None:
    """Run an unchanged image in a measured pod VM, after its key was released to it.

    Seals and signs the image first unless it already is. Arguments, environment and user come from the signed image
    and the measured policy. Exits with the workload's status; 125 when Cloister refused or failed.
    """
    from cloister.imagetool.podvm import Shape
    from cloister.protocol.resourceuri import parse_resource_path, parse_resource_uri
    from cloister.sdk.plan import WorkloadRequest
    from cloister.sdk.run import RunRequest

    with _refusal_is_125():
        workload = WorkloadRequest(
            args=() if entrypoint else tuple(args or ()),
            entrypoint=(entrypoint, *(args or ())) if entrypoint else (),
            env=parse_environment(env or []),
            workdir=workdir,
            user=user,
            stdin=interactive,
            terminal=tty_,
            resources=tuple(parse_resource_path(item) for item in resource or ()),
            secret_files=parse_secret_files(secret_file or []),
            sealing_keys=parse_sealing_keys(sealing_key or []),
            unseal=tuple(parse_resource_uri(item) for item in unseal or ()),
        )
        request = RunRequest(
            image=image,
            workload=workload,
            ports=tuple(parse_publish(item) for item in publish or ()),
            backend=choose_backend(level, profile),
            accelerator=choose_accelerator(accelerator),
            shape=Shape(vcpus=vcpus, memory_mib=memory),
            scratch_mib=scratch,
            name=parse_name(name),
            lease_seconds=lease,
            keep_approval=keep,
        )
        raise typer.Exit(_run(request, quiet=quiet, rm=rm))


def _run(request: RunRequest, *, quiet: bool, rm: bool) -> int:
    from cloister.sdk.record import new_run_id
    from cloister.sdk.run import run_pod

    step = StepPrinter(quiet=quiet, timings=True)
    step.heading(f"cloister {__version__}   {level_line(request.backend)}")
    home = home_from_environment()
    if request.backend is not Backend.PROCESS:
        prepare_bundle(home)
    run_id = new_run_id()
    directory = Path(f"cloister-run-{run_id}").resolve()
    workload = request.workload
    try:
        with _terminal(interactive=workload.stdin, tty_wanted=workload.terminal) as terminal:
            record = run_pod(home, request, run_id=run_id, directory=directory, terminal=terminal, step=step)
    except SystemExit:
        step("!!", "stopped by a signal", "before the workload started; nothing is left running")
        shutil.rmtree(directory, ignore_errors=True)
        raise
    page = write_report(record, directory)
    if rm:
        shutil.rmtree(directory, ignore_errors=True)
    if record.refusal is not None:
        print_error(record.refusal)
    _conclude(record, page, StepPrinter(quiet=quiet), kept=not rm)
    return EXIT_CLOISTER if record.refusal is not None or record.exit_status is None else record.exit_status


@contextlib.contextmanager
def _refusal_is_125() -> Iterator[None]:
    """Print an error and leave with the number that no workload of a container tool uses."""
    try:
        yield
    except CloisterError as error:
        print_error(error)
        raise typer.Exit(EXIT_CLOISTER) from error


def _conclude(record: RunRecord, page: Path, step: StepPrinter, *, kept: bool) -> None:
    """Say what was proved, what was not, what was denied, and what to do next."""
    for row in record.audit:
        if row["denial_id"]:
            detail = f"{refusal_number(row['code'])} {row['path']}  see: cloister explain {row['denial_id']}"
            step("no", "denied to the pod", detail)
    if record.refusal is None:
        for item in record.proved:
            step("ok", "proved", item)
        for item in record.not_proved:
            step("--", "not proved", item)
    if kept:
        step.note(f"report: {page}")
    if record.refusal is None:
        measured = record.level is not Level.SIMULATED
        step.note(
            "next: cloister doctor" if measured else "next: cloister run --level measured ..., or cloister doctor"
        )


@contextlib.contextmanager
def _terminal(*, interactive: bool, tty_wanted: bool) -> Iterator[Terminal]:
    """Connect this process' streams and signals; restore both afterwards."""
    from cloister.sdk.session import Terminal

    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    sizes: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    raw = tty_wanted and interactive and sys.stdin.isatty()
    saved = termios.tcgetattr(0) if raw else None
    running = threading.Event()

    def note_size(*_: object) -> None:
        size = shutil.get_terminal_size()
        sizes.put((size.columns, size.lines))

    def begin() -> None:
        """From here on signals and keys are the workload's; before, lines are printed and Ctrl-C ends the run."""
        running.set()
        if raw:
            tty.setraw(0)
            note_size()
            previous[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, note_size)

    def take(number: int, _: object) -> None:
        if running.is_set():
            signals.put(number)
            return
        for other in _FORWARDED:
            signal.signal(other, signal.SIG_IGN)  # a second one must not cut the tidying up short
        sys.exit(_EXIT_SIGNAL + number)  # by way of every `finally`

    previous = {number: signal.signal(number, take) for number in _FORWARDED}
    try:
        yield Terminal(
            stdout=sys.stdout.buffer,
            stderr=sys.stderr.buffer,
            stdin=os.dup(0) if interactive else None,
            signals=signals,
            size=sizes if raw else None,
            on_attend=begin,
        )
    finally:
        if saved is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, saved)
        for number, handler in previous.items():
            signal.signal(number, handler)
