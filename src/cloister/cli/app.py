"""The command tree and the one place where an error becomes words and an exit code.

A noun is a module, loaded when it is named on the command line: `cloister image ..` does not pay for what boots pod
VMs. All are loaded for help, for a word that is no noun, and by whoever imports `app`.

Exit codes: 0 yes, 1 refused, 2 usage, 3 unavailable. `cloister run` passes the workload's own status and uses 125
when Cloister itself refused or failed, as container tools do.
"""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Mapping
from copy import copy
from importlib import import_module
from typing import Annotated, Any, Final, NamedTuple

import typer

from cloister import __version__
from cloister.cli.output import exit_code, print_error, stdout
from cloister.errors import CloisterError


class _Group(NamedTuple):
    """A noun with verbs: a module of `cloister.cli` that has a `typer.Typer`."""

    module: str
    attribute: str = "app"
    short_help: str | None = None
    verbs: Mapping[str, tuple[str, str]] = {}  # kept in modules of their own: name to module and function
    groups: Mapping[str, tuple[str, str]] = {}


class _Verb(NamedTuple):
    """A command of its own."""

    module: str
    function: str
    short_help: str
    options: Mapping[str, Any] = {}  # Any: of typer's `command`


# Loading a command makes objects that stay: to look for garbage among them every 700 is a tenth of its start.
_FEWER_COLLECTIONS: Final = 10_000
# As with docker: what follows the image belongs to the workload, dashes and all.
_ARGUMENTS_END_OPTIONS: Final = {"allow_interspersed_args": False}
_COMMANDS: Final[Mapping[str, _Group | _Verb]] = {
    "run": _Verb(
        "run",
        "run_command",
        "Run an unchanged image in a measured pod VM.",
        {"cls": "RunCommand", "context_settings": _ARGUMENTS_END_OPTIONS},
    ),
    "demo": _Verb("demo", "demo_command", "Play the whole flow on this machine, then attack it."),
    "doctor": _Verb("doctor", "doctor_command", "List what this machine can do, each line with its fix."),
    "explain": _Verb("explain", "explain_command", "Explain a refusal: number, code or denial id."),
    "serve": _Verb("serve", "serve_command", "Run the trust service: verifier, reference values, key broker."),
    "collateral": _Group("collateral"),
    "identity": _Group("identity"),
    "log": _Group("log"),
    "image": _Group("image", verbs={"copy": ("imagecopy", "copy_command")}),
    "keyprovider": _Group("keyprovider", short_help="Let skopeo and others use keys of the trust service."),
    "registry": _Group("registry"),
    "podvm": _Group("podvm"),
    "evidence": _Group("evidence"),
    "refs": _Group("refs", groups={"publisher": ("refsregistered", "publisher")}),
    "secret": _Group("secret"),
    "policy": _Group("policy"),
    "token": _Group("access", "token"),
    "tenant": _Group("access", "tenant"),
    "key": _Group("key"),
    "approve": _Verb("access", "approve_command", "Approve what several people must agree to."),
    "audit": _Group(
        "audit",
        short_help="Show who got what, when, under which code.",
        verbs={"reappraise": ("reappraise", "reappraise_command")},
    ),
}


def build_app(*words: str) -> typer.Typer:
    """Return the command tree.

    Args:
        words: the first of a command line: where they name a command or a verb, the tree has nothing else in it.
    """
    made = typer.Typer(
        name="cloister",
        help="Run an unchanged container image where the operator can neither read nor alter it, and prove it.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(_root)
    named = words if words[:1] and words[0] in _COMMANDS else ()
    for name in named[:1] or _COMMANDS:
        found = _COMMANDS[name]
        if isinstance(found, _Verb):
            _add_verb(made, name, found)
        else:
            _add_group(made, name, found, *named[1:2])
    return made


def _add_verb(made: typer.Typer, name: str, verb: _Verb) -> None:
    module = import_module(f"cloister.cli.{verb.module}")
    options = dict(verb.options)
    if "cls" in options:
        options["cls"] = getattr(module, options["cls"])
    made.command(name, short_help=verb.short_help, **options)(getattr(module, verb.function))


def _add_group(made: typer.Typer, name: str, group: _Group, word: str = "") -> None:
    inner = {
        name: getattr(import_module(f"cloister.cli.{module}"), attribute)
        for name, (module, attribute) in group.groups.items()
    }  # first: these modules may also add verbs to the group
    # A copy, as what is added or left out here is for this tree.
    app = copy(getattr(import_module(f"cloister.cli.{group.module}"), group.attribute))
    commands, groups = app.registered_commands, app.registered_groups
    # What typer makes of a verb's parameters is a visible part of a command's start.
    if word not in {item.name for item in (*commands, *groups)} | {*group.verbs, *inner}:
        word = ""
    app.registered_commands = [item for item in commands if not word or item.name == word]
    app.registered_groups = [item for item in groups if not word or item.name == word]
    for verb, (module, function) in group.verbs.items():
        if word in ("", verb):
            app.command(verb)(getattr(import_module(f"cloister.cli.{module}"), function))
    for noun, verbs in inner.items():
        if word in ("", noun):
            app.add_typer(verbs, name=noun)
    if group.short_help is None:
        made.add_typer(app, name=name)
    else:
        made.add_typer(app, name=name, short_help=group.short_help)


def _print_version(wanted: bool) -> None:
    if wanted:
        stdout.print(f"cloister {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def __getattr__(name: str) -> typer.Typer:
    """Return the whole tree as `app`."""
    if name != "app":
        raise AttributeError(name)
    made = build_app()
    globals()["app"] = made
    return made


def _end(number: int, _: object) -> None:
    """Leave by way of every `finally`, so that no pod and no directory is left behind."""
    sys.exit(128 + number)


def run_command_line() -> None:
    """Parse the arguments, run the verb, turn errors into an exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # `nohup` wants its signal ignored
            signal.signal(number, _end)
    gc.set_threshold(_FEWER_COLLECTIONS)
    try:
        build_app(*sys.argv[1:3])(prog_name="cloister")
    except CloisterError as error:
        print_error(error)
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        gc.freeze()  # the process ends: nobody needs to look for garbage in what it loaded
