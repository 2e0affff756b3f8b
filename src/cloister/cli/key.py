"""`cloister key list|rotate|reseal|move|seal|unseal`: the keys of a trust service, on the machine it runs on.

Works on the state directory, whether a service runs on it or not; a running one follows within a second. `unseal`
gives a share to a running service that was started sealed.
"""

from __future__ import annotations

import dataclasses
import enum
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.forms import Output, OutputOption
from cloister.cli.output import StepPrinter, print_json, print_line
from cloister.sdk.home import home_from_environment

if TYPE_CHECKING:
    from cloister.trust.admin import TrustAdmin

app = typer.Typer(
    no_args_is_help=True, help="List, rotate, seal and unseal the keys of a trust service.", rich_markup_mode=None
)

DataOption = Annotated[
    Path | None, typer.Option("--data", file_okay=False, help="State directory [default: $CLOISTER_HOME/trust].")
]
DatabaseOption = Annotated[
    str, typer.Option("--database", metavar="URL", help="As given to the service [default: trust.db in DATA].")
]
PasswordOption = Annotated[
    Path | None,
    typer.Option("--database-password-file", exists=True, dir_okay=False, help="As given to the service."),
]
PassphraseOption = Annotated[
    Path | None, typer.Option("--passphrase-file", exists=True, dir_okay=False, help="File with the passphrase.")
]


class Rotated(enum.StrEnum):
    """What can be rotated."""

    ROOT = "root"
    DATA = "data"
    TOKEN = "token"  # noqa: S105  the name of a choice


@app.command("list")
def list_command(
    data: DataOption = None,
    database: DatabaseOption = "",
    password: PasswordOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """List all keys: what for, state, since when, until when (UTC), id; of the root key its place."""
    with _admin(data, database, password) as admin:
        keys = admin.keys.list_keys()
    if output is Output.JSON:
        print_json({"version": 1, "keys": [_as_json(dataclasses.asdict(key)) for key in keys]})
        return
    for key in keys:
        times = f"{_time(key.not_before or key.created_at):<16}  {_time(key.not_after):<16}"
        print_line(f"{key.purpose:<5}  {key.state:<7}  {times}  {key.id}  {key.place}".rstrip())


@app.command("rotate")
def rotate_command(
    which: Annotated[Rotated, typer.Argument(help="root, data or token.")],
    data: DataOption = None,
    database: DatabaseOption = "",
    password: PasswordOption = None,
    revoke: Annotated[
        bool, typer.Option("--revoke", help="For a token key that leaked: change at once, old tokens do not count.")
    ] = False,
) -> None:
    """Replace a key by a new one, without a restart and without a moment in which anything cannot be read.

    root: every data key is wrapped with a new root key. data: new rows are sealed under a new data key, and then all
    old ones. token: the next key is published now and signs in five minutes.
    """
    if revoke and which is not Rotated.TOKEN:
        raise typer.BadParameter("only a token key can be revoked", param_hint="--revoke")
    step = StepPrinter()
    with _admin(data, database, password) as admin:
        if which is Rotated.ROOT:
            print_line(admin.keys.rotate_root())
        elif which is Rotated.DATA:
            print_line(admin.keys.rotate_data_key(progress=lambda rows: step("..", "rows sealed anew", str(rows))))
        else:
            print_line(admin.keys.rotate_token_key(revoke=revoke))


@app.command("reseal")
def reseal_command(data: DataOption = None, database: DatabaseOption = "", password: PasswordOption = None) -> None:
    """Finish a rotation of the data key that was cut short; remove data keys that nothing needs any more."""
    with _admin(data, database, password) as admin:
        print_line(f"{admin.keys.reseal()} rows sealed anew")


@app.command("move")
def move_command(
    key_store: Annotated[str, typer.Argument(metavar="URI", help="Address of the other key store.")],
    data: DataOption = None,
    database: DatabaseOption = "",
    password: PasswordOption = None,
) -> None:
    """Go on with a root key in another key store: a file, a hardware module, Vault. Then restart the service."""
    with _admin(data, database, password) as admin:
        print_line(admin.keys.move_root(key_store))


@app.command("seal")
def seal_command(
    data: DataOption = None,
    database: DatabaseOption = "",
    password: PasswordOption = None,
    shares: Annotated[int, typer.Option(min=0, max=255, help="How many people get a share.")] = 0,
    threshold: Annotated[int, typer.Option(min=0, max=255, help="How many of them open it.")] = 0,
    passphrase_file: PassphraseOption = None,
    names: Annotated[
        str, typer.Option(help="Names and addresses that the sealed service answers under, comma-separated.")
    ] = "localhost,127.0.0.1,10.0.2.2",
) -> None:
    """Seal root.key, so that the service starts sealed: by --shares and --threshold, or by a passphrase.

    Shares are printed once, one line each, and kept nowhere: give each to one person.
    """
    from cloister.crypto.keystore.file import seal_file_by_passphrase, seal_file_by_shares

    if bool(shares) == bool(passphrase_file):
        raise typer.BadParameter("give --shares and --threshold, or --passphrase-file")
    with _admin(data, database, password) as admin:
        place = admin.keys.prepare_seal(tuple(names.split(",")))
    if passphrase_file is not None:
        seal_file_by_passphrase(place, _line(passphrase_file))
        return
    for share in seal_file_by_shares(place, threshold=threshold, shares=shares):
        print_line(share)


@app.command("unseal")
def unseal_command(data: DataOption = None, passphrase_file: PassphraseOption = None) -> None:
    """Give one share, or the passphrase, to a service that was started sealed. Read from standard input, unseen."""
    from cloister.trust.keys.unsealing import give_share

    if passphrase_file is not None:
        secret = _line(passphrase_file)
    elif sys.stdin.isatty():
        secret = typer.prompt("Share or passphrase", hide_input=True)
    else:
        secret = sys.stdin.readline().rstrip("\r\n")
    progress = give_share(_directory(data), secret)
    print_line("open" if not progress.sealed else f"{progress.given} of {progress.needed} shares")


def _directory(data: Path | None) -> Path:
    return data or home_from_environment().trust


def _admin(data: Path | None, database: str, password: Path | None) -> TrustAdmin:
    from cloister.trust.admin import TrustAdmin

    return TrustAdmin(_directory(data), database=database, password_file=password)


def _line(place: Path) -> str:
    from cloister.crypto.keystore.uri import read_secret

    return read_secret(place, "passphrase")


def _time(at: datetime | None) -> str:
    return "" if at is None else at.strftime("%Y-%m-%d %H:%M")


def _as_json(values: dict[str, object]) -> dict[str, object]:
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}
