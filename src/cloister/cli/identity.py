"""`cloister identity set|show|keys|rotate|withdraw`: which pods get which SPIFFE ID, and the keys that vouch for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.administered import administered, moment, print_struct
from cloister.cli.forms import Output, OutputOption
from cloister.cli.output import print_line

if TYPE_CHECKING:
    from cloister.client.admin import AdminClient

app = typer.Typer(
    no_args_is_help=True, help="SPIFFE identities of attested pods: grants and keys.", rich_markup_mode=None
)

_FILE_BYTES = 1024 * 1024

DomainArgument = Annotated[str, typer.Argument(help="The SPIFFE trust domain, like prod.example.org.")]


@app.command("set")
@administered
def set_command(
    client: AdminClient,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Identity policy, TOML or JSON.")],
    output: OutputOption = Output.TEXT,
) -> None:
    """Store the identity policy; it replaces the one in force, which stays in the history."""
    with file.open("rb") as stream:
        text = stream.read(_FILE_BYTES).decode("utf-8", "replace")
    stored = client.put_identity_policy(text)
    if output is Output.JSON:
        print_struct(stored)
    else:
        print_line(f"identity policy version {stored.version}  {stored.digest}")


@app.command("show")
@administered
def show_command(client: AdminClient, output: OutputOption = Output.TEXT) -> None:
    """Print the identity policy in force, as it was stored."""
    stored = client.get_identity_policy()
    if output is Output.JSON:
        print_struct(stored)
    else:
        sys.stdout.write(stored.text)


@app.command("keys")
@administered
def keys_command(client: AdminClient, trust_domain: DomainArgument, output: OutputOption = Output.TEXT) -> None:
    """List the keys of a trust domain: what each signs, from when and until when."""
    found = client.list_identity_keys(trust_domain)
    if output is Output.JSON:
        print_struct(found)
        return
    for key in found.keys:
        note = f"  withdrawn {moment(key.withdrawn_at)}" if key.withdrawn_at else ""
        times = f"signs from {moment(key.active_at)}, published until {moment(key.expires_at)}"
        print_line(f"{key.id}  {key.use}  {times}{note}")


@app.command("rotate")
@administered
def rotate_command(client: AdminClient, trust_domain: DomainArgument, output: OutputOption = Output.TEXT) -> None:
    """Make new keys now: in the bundle at once, signing after an hour, when every relying party knows them."""
    done = client.rotate_identity_keys(trust_domain)
    if output is Output.JSON:
        print_struct(done)
    else:
        print_line("new keys are in the bundle; they sign in an hour")


# One key id in 64 begins with a dash, and some of those with `-h`.
@app.command("withdraw", context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@administered
def withdraw_command(
    client: AdminClient,
    trust_domain: DomainArgument,
    key: Annotated[str, typer.Argument(help="Id of the key, as `cloister identity keys` shows it.")],
    output: OutputOption = Output.TEXT,
) -> None:
    """Take a key out of the bundle at once: all it signed is refused when relying parties refresh."""
    done = client.withdraw_identity_key(trust_domain, key)
    if output is Output.JSON:
        print_struct(done)
    else:
        print_line("withdrawn; SVIDs it signed are refused within 5 minutes, and pods get new ones")
