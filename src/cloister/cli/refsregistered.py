"""`cloister refs add|list|rm|history|propose|publisher`: the reference values that a trust service goes by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.administered import administered, moment, print_struct, print_table, read_text, short
from cloister.cli.forms import Output, OutputOption
from cloister.cli.output import print_line
from cloister.cli.refs import app

if TYPE_CHECKING:
    from cloister.client.admin import AdminClient
    from cloister.protocol.admin.references import ReferenceList

publisher = typer.Typer(no_args_is_help=True, help="Whose signatures on reference values count.", rich_markup_mode=None)

_SHOWN_HEX = 24


@app.command("add")
@administered
def add_command(
    client: AdminClient,
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="A signed set (`cloister refs sign`), or unsigned JSON.")
    ],
    output: OutputOption = Output.TEXT,
) -> None:
    """Register reference values: signed by a publisher, or unsigned with a token that may."""
    added = client.add_reference_values(read_text(file))
    if output is Output.JSON:
        print_struct(added)
        return
    print_line(f"{len(added.values)} reference values registered")
    _print_values(added)


@app.command("list")
@administered
def list_command(client: AdminClient, output: OutputOption = Output.TEXT) -> None:
    """List registered reference values, expired ones too, with who vouches for them."""
    found = client.list_reference_values()
    print_struct(found) if output is Output.JSON else _print_values(found)


@app.command("rm")
@administered
def rm_command(
    client: AdminClient,
    entry: Annotated[str, typer.Argument(help="Id of the entry.")],
    output: OutputOption = Output.TEXT,
) -> None:
    """Delete an entry: what matched it is refused from now on."""
    done = client.delete_reference_value(entry)
    if output is Output.JSON:
        print_struct(done)
    else:
        print_line(f"deleted {done.subject}")


@app.command("history")
@administered
def history_command(
    client: AdminClient,
    entry: Annotated[str, typer.Argument(help="Id of one entry [default: all].")] = "",
    output: OutputOption = Output.TEXT,
) -> None:
    """List what became of reference values, the newest change first."""
    found = client.list_reference_history(entry)
    if output is Output.JSON:
        print_struct(found)
        return
    print_table(
        ("when", "change", "entry", "by", "signed set"),
        (
            (
                moment(event.at),
                event.change,
                event.id,
                event.by,
                f"{event.reference_set} version {event.set_version}" if event.key_id else "unsigned",
            )
            for event in found.events
        ),
    )


@app.command("propose")
@administered
def propose_command(
    client: AdminClient,
    attestation: Annotated[str, typer.Argument(help="Id of kept evidence (a-..), as audit rows name it.")],
    out: Annotated[Path, typer.Option("--out", help="File for the unsigned set.")],
    days: Annotated[int, typer.Option(min=1, max=3650, help="For how long the values shall hold.")] = 90,
    output: OutputOption = Output.TEXT,
) -> None:
    """Write a file of values from observed evidence, for a person to check and sign. Nothing is registered."""
    made = client.propose_reference_values(attestation, days=days)
    out.write_text(made.document, "utf-8")
    if output is Output.JSON:
        print_struct(made)
        return
    print_line(f"unsigned reference values in {out}")
    print_line(f"  {made.warning}")
    print_line(f"  then: cloister refs sign {out} --key KEY --out SIGNED && cloister refs add SIGNED")


@publisher.command("add")
@administered
def publisher_add(
    client: AdminClient,
    name: Annotated[str, typer.Argument(help="Name of the publisher.")],
    key: Annotated[Path, typer.Option("--key", exists=True, dir_okay=False, help="Its public key, PEM (P-256).")],
    output: OutputOption = Output.TEXT,
) -> None:
    """Accept a publisher's signatures."""
    added = client.put_publisher(name, read_text(key))
    if output is Output.JSON:
        print_struct(added)
    else:
        print_line(f"{added.name} may sign reference values: key {added.key_id}")


@publisher.command("list")
@administered
def publisher_list(client: AdminClient, output: OutputOption = Output.TEXT) -> None:
    """List whose signatures are accepted."""
    found = client.list_publishers()
    if output is Output.JSON:
        print_struct(found)
        return
    print_table(
        ("publisher", "key", "since"),
        ((item.name, item.key_id, moment(item.created_at)) for item in found.publishers),
    )


@publisher.command("rm")
@administered
def publisher_rm(
    client: AdminClient,
    key: Annotated[str, typer.Argument(help="Id of the key.")],
    output: OutputOption = Output.TEXT,
) -> None:
    """Accept nothing more of a publisher; what it signed before stays until it is deleted."""
    done = client.delete_publisher(key)
    if output is Output.JSON:
        print_struct(done)
    else:
        print_line(f"removed {done.subject}")


def _print_values(found: ReferenceList) -> None:
    print_table(
        ("entry", "register", "value", "holds until", "vouched for by"),
        (
            (
                value.entry.id if number == 0 else "",
                register,
                f"{text[:_SHOWN_HEX]}..",
                (moment(value.entry.not_after) + ("  EXPIRED" if value.expired else "")) if number == 0 else "",
                (value.publisher or short(value.key_id) if value.signed else "nobody: unsigned") if number == 0 else "",
            )
            for value in found.values
            for number, (register, text) in enumerate(sorted(value.entry.registers.items()))
        ),
    )
