"""The command tree and the one place where an error becomes words and an exit code.

Exit codes: 0 yes, 1 refused, 2 usage, 3 unavailable. `cloister run` passes the workload's own status and uses 125
when Cloister itself refused or failed, as container tools do.
"""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from cloister import __version__
from cloister.cli import (
    access,
    audit,
    collateral,
    demo,
    doctor,
    evidence,
    explain,
    identity,
    image,
    key,
    keyprovider,
    log,
    podvm,
    policy,
    reappraise,
    refs,
    refsregistered,
    registry,
    run,
    secret,
    serve,
)
from cloister.cli.output import exit_code, print_error, stdout
from cloister.errors import CloisterError

app = typer.Typer(
    name="cloister",
    help="Run an unchanged container image where the operator can neither read nor alter it, and prove it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# As with docker: what follows the image belongs to the workload, dashes and all.
_ARGUMENTS_END_OPTIONS = {"allow_interspersed_args": False}


def _print_version(wanted: bool) -> None:
    if wanted:
        stdout.print(f"cloister {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command(
    "run",
    cls=run.RunCommand,
    short_help="Run an unchanged image in a measured pod VM.",
    context_settings=_ARGUMENTS_END_OPTIONS,
)(run.run_command)
app.command("demo", short_help="Play the whole flow on this machine, then attack it.")(demo.demo_command)
app.command("doctor", short_help="List what this machine can do, each line with its fix.")(doctor.doctor_command)
app.command("explain", short_help="Explain a refusal: number, code or denial id.")(explain.explain_command)
app.command("serve", short_help="Run the trust service: verifier, reference values, key broker.")(serve.serve_command)
app.add_typer(collateral.app, name="collateral")
app.add_typer(identity.app, name="identity")
app.add_typer(log.app, name="log")
app.add_typer(image.app, name="image")
app.add_typer(keyprovider.app, name="keyprovider", short_help="Let skopeo and others use keys of the trust service.")
app.add_typer(registry.app, name="registry")
app.add_typer(podvm.app, name="podvm")
app.add_typer(evidence.app, name="evidence")
refs.app.add_typer(refsregistered.publisher, name="publisher")
app.add_typer(refs.app, name="refs")
app.add_typer(secret.app, name="secret")
app.add_typer(policy.app, name="policy")
app.add_typer(access.token, name="token")
app.add_typer(access.tenant, name="tenant")
app.add_typer(key.app, name="key")
app.command("approve", short_help="Approve what several people must agree to.")(access.approve_command)
audit.app.command("reappraise")(reappraise.reappraise_command)
app.add_typer(audit.app, name="audit", short_help="Show who got what, when, under which code.")


def _end(number: int, _: object) -> None:
    """Leave by way of every `finally`, so that no pod and no directory is left behind."""
    sys.exit(128 + number)


def run_command_line() -> None:
    """Parse the arguments, run the verb, turn errors into an exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # `nohup` wants its signal ignored
            signal.signal(number, _end)
    try:
        app(prog_name="cloister")
    except CloisterError as error:
        print_error(error)
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        sys.exit(130)
