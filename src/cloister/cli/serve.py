"""`cloister serve`: run the trust service in the foreground.

Its options are the rows of the settings table; configuration file and environment have the same.
"""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from cloister.cli.output import StepPrinter, stdout
from cloister.sdk.home import home_from_environment, trust_directory
from cloister.trust.settings import TABLE, Setting

_DEFAULTS = {"data": "$CLOISTER_HOME/trust", "listen": "127.0.0.1:7070"}


def serve_command(config: Path | None, check_config: bool, **flags: str | bool | None) -> None:
    """Run the trust service: verifier, reference values, key broker.

    Speaks the key broker protocol over TLS with its own CA, made on first start and kept in the data directory. Stops
    on Ctrl-C after answering what it has begun. Every option is also a key of the configuration file, and an
    environment variable: CLOISTER_SERVE_STORE_SECONDS.
    """
    from cloister.trust.app import serve  # the service's libraries are needed by this verb alone
    from cloister.trust.configuration import load_configuration, value_of, value_text

    given = {field: value for field, value in flags.items() if value is not None and value is not False}
    loaded = load_configuration(given, os.environ, config=config, data=trust_directory())
    settings = loaded.settings
    if check_config:
        for setting in TABLE:
            origin = loaded.origins.get(setting.field, "default")
            text = value_text(value_of(settings, setting.field)) or '""'
            stdout.print(f"{setting.field} = {text}  # {origin}", markup=False, highlight=False, soft_wrap=True)
        return
    scheme = "http" if settings.insecure_http else "https"
    if "data" not in loaded.origins:
        home_from_environment()
    step = StepPrinter()
    step("ok", "trust service starts", f"{scheme}://{value_of(settings, 'listen')}  data {settings.state}")
    if settings.insecure_http:
        step("no", "plain HTTP", "whoever is on the way reads and changes everything; guests cannot tell")
    step.note("next: cloister run IMAGE, or point a guest's init data at this address; stop with Ctrl-C")
    serve(settings)


def _parameter(setting: Setting) -> inspect.Parameter:
    text = setting.help[0].upper() + setting.help[1:]
    if setting.field in _DEFAULTS:
        text += f" [default: {_DEFAULTS[setting.field]}]"
    kind: Any = bool if setting.parse is None else str | None  # Any: a type, or a union of types
    option = typer.Option(
        setting.flag, help=f"{text}.", show_default=False, metavar=None if setting.parse is None else "TEXT"
    )
    return inspect.Parameter(
        setting.field,
        inspect.Parameter.KEYWORD_ONLY,
        default=False if setting.parse is None else None,
        annotation=Annotated[kind, option],
    )


def _signature() -> inspect.Signature:
    """Return the parameters of the command: two of its own, then the table's."""
    config: Any = Annotated[  # Any: an annotated type
        Path | None, typer.Option("--config", help="Configuration file (TOML); flags and environment win.")
    ]
    check: Any = Annotated[  # Any: the same
        bool, typer.Option("--check-config", help="Print every setting and where it comes from, start nothing.")
    ]
    word = inspect.Parameter.KEYWORD_ONLY
    own = [
        inspect.Parameter("config", word, default=None, annotation=config),
        inspect.Parameter("check_config", word, default=False, annotation=check),
    ]
    return inspect.Signature([*own, *(_parameter(setting) for setting in TABLE)])


def _as_typer_reads_it() -> None:
    signature = _signature()
    serve_command.__annotations__ = {name: item.annotation for name, item in signature.parameters.items()}
    serve_command.__signature__ = signature  # type: ignore[attr-defined]  # what `inspect.signature` looks for


_as_typer_reads_it()
