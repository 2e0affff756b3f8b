"""`cloister identity set|show|keys|rotate|withdraw`: which pods get which SPIFFE ID, and the keys that vouch for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cloister.cli.options import Output, OutputOption
from cloister.cli.output import print_json, print_line
from cloister.errors import Refused
from cloister.sdk.home import home_from_environment

app = typer.Typer(
    no_args_is_help=True, help="SPIFFE identities of attested pods: grants and keys.", rich_markup_mode=None
)

_FILE_BYTES = 1024 * 1024

StateOption = Annotated[
    Path | None, typer.Option("--state", help="Trust service state [default: $CLOISTER_HOME/trust].")
]
DomainArgument = Annotated[str, typer.Argument(help="The SPIFFE trust domain, like prod.example.org.")]


@app.command("set")
def set_command(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Identity policy, TOML or JSON.")],
    state: StateOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Store the identity policy; it replaces the one in force, which stays in the history."""
    from cloister.trust.admin import TrustAdmin

    with file.open("rb") as stream:
        text = stream.read(_FILE_BYTES)
    with TrustAdmin(state or home_from_environment().trust) as admin:
        stored = admin.put_identity_policy(text)
    if output is Output.JSON:
        print_json({"schema": 1, "version": stored.version, "digest": stored.digest})
    else:
        print_line(f"identity policy version {stored.version}  {stored.digest}")


@app.command("show")
def show_command(state: StateOption = None) -> None:
    """Print the identity policy in force, as it was stored."""
    from cloister.trust.admin import TrustAdmin

    with TrustAdmin(state or home_from_environment().trust) as admin:
        stored = admin.identity_policy()
    if stored is None:
        raise Refused(
            "trust.identity.no_grant", "no identity policy is stored", hint="store one with `cloister identity set`"
        )
    sys.stdout.write(stored.text.decode())


@app.command("keys")
def keys_command(trust_domain: DomainArgument, state: StateOption = None, output: OutputOption = Output.TEXT) -> None:
    """List the keys of a trust domain: what each signs, from when and until when."""
    from cloister.trust.admin import TrustAdmin

    with TrustAdmin(state or home_from_environment().trust) as admin:
        rows = admin.identity_keys(trust_domain)
    if output is Output.JSON:
        print_json({"schema": 1, "keys": rows})
        return
    for row in rows:
        note = f"  withdrawn {row['withdrawn_at']}" if row["withdrawn_at"] else ""
        print_line(
            f"{row['id']}  {row['use']}  signs from {row['active_at']}, published until {row['expires_at']}{note}"
        )


@app.command("rotate")
def rotate_command(trust_domain: DomainArgument, state: StateOption = None) -> None:
    """Make new keys now: in the bundle at once, signing after an hour, when every relying party knows them."""
    from cloister.trust.admin import TrustAdmin

    with TrustAdmin(state or home_from_environment().trust) as admin:
        admin.rotate_identity_keys(trust_domain)
    print_line("new keys are in the bundle; they sign in an hour")


@app.command("withdraw")
def withdraw_command(
    trust_domain: DomainArgument,
    key: Annotated[str, typer.Argument(help="Id of the key, as `cloister identity keys` shows it.")],
    state: StateOption = None,
) -> None:
    """Take a key out of the bundle at once: all it signed is refused when relying parties refresh."""
    from cloister.trust.admin import TrustAdmin

    with TrustAdmin(state or home_from_environment().trust) as admin:
        admin.withdraw_identity_key(trust_domain, key)
    print_line("withdrawn; SVIDs it signed are refused within 5 minutes, and pods get new ones")
