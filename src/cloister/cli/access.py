"""`cloister token|tenant ...` and `cloister approve`: who may do what, where, and with whose consent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.administered import (
    administered,
    moment,
    print_proposal,
    print_struct,
    print_table,
    write_private,
)
from cloister.cli.forms import Output, OutputOption
from cloister.cli.output import print_line

if TYPE_CHECKING:
    from cloister.client.admin import AdminClient

token = typer.Typer(no_args_is_help=True, help="Access tokens of the administration.", rich_markup_mode=None)
tenant = typer.Typer(no_args_is_help=True, help="Tenants: separate spaces of one service.", rich_markup_mode=None)


@token.command("create")
@administered
def token_create(
    client: AdminClient,
    name: Annotated[str, typer.Argument(help="Of whoever holds it; approvals count names.")],
    role: Annotated[
        str, typer.Option("--role", help="root, owner, operator, auditor, approver or publisher.", metavar="ROLE")
    ],
    out: Annotated[Path, typer.Option("--out", help="New private file for the token.")],
    all_tenants: Annotated[bool, typer.Option("--all-tenants", help="Hold in every tenant.")] = False,
    days: Annotated[int, typer.Option(min=0, max=3650, help="For how long; 0 for ever.")] = 90,
    output: OutputOption = Output.TEXT,
) -> None:
    """Make a token and write it to a file; it is shown nowhere else."""
    from cloister.protocol.admin.access import TokenRequest

    made = client.create_token(TokenRequest(name=name, role=role, all_tenants=all_tenants, days=days or None))
    write_private(out, made.text.encode() + b"\n")
    if output is Output.JSON:
        print_struct(made.token)
        return
    print_line(f"{made.token.name} is {made.token.role} in {made.token.tenant or 'every tenant'}: {made.token.id}")
    print_line(f"  token in {out}, readable by you alone; ends {moment(made.token.expires_at) or 'never'}")


@token.command("list")
@administered
def token_list(client: AdminClient, output: OutputOption = Output.TEXT) -> None:
    """List tokens, without their text; dead ones too."""
    found = client.list_tokens()
    if output is Output.JSON:
        print_struct(found)
        return
    print_table(
        ("token", "name", "role", "tenant", "ends", "revoked"),
        (
            (
                item.id,
                item.name,
                item.role,
                item.tenant or "all",
                moment(item.expires_at) or "never",
                moment(item.revoked_at),
            )
            for item in found.tokens
        ),
    )


@token.command("revoke")
@administered
def token_revoke(
    client: AdminClient,
    identity: Annotated[str, typer.Argument(metavar="TOKEN", help="Id of the token (t-..), not its text.")],
    output: OutputOption = Output.TEXT,
) -> None:
    """End a token at once."""
    ended = client.revoke_token(identity)
    if output is Output.JSON:
        print_struct(ended)
    else:
        print_line(f"revoked {ended.id} of {ended.name}")


@tenant.command("create")
@administered
def tenant_create(
    client: AdminClient,
    name: Annotated[str, typer.Argument(help="1 to 63 of a-z, 0-9 and -.")],
    note: Annotated[str, typer.Option("--note", help="For people.")] = "",
    output: OutputOption = Output.TEXT,
) -> None:
    """Make a tenant. Its guests use the addresses below /t/NAME."""
    made = client.create_tenant(name, note)
    if output is Output.JSON:
        print_struct(made)
    else:
        print_line(f"tenant {made.id}: guests use https://HOST:PORT/t/{made.id}")


@tenant.command("list")
@administered
def tenant_list(client: AdminClient, output: OutputOption = Output.TEXT) -> None:
    """List tenants."""
    found = client.list_tenants()
    if output is Output.JSON:
        print_struct(found)
        return
    print_table(
        ("tenant", "state", "since", "note"),
        (
            (item.id, "disabled" if item.disabled else "live", moment(item.created_at), item.note)
            for item in found.tenants
        ),
    )


@tenant.command("disable")
@administered
def tenant_disable(
    client: AdminClient, name: Annotated[str, typer.Argument(help="Of the tenant.")], output: OutputOption = Output.TEXT
) -> None:
    """Answer no guest of a tenant any more; nothing of it is deleted."""
    _set_disabled(client, name, output, disabled=True)


@tenant.command("enable")
@administered
def tenant_enable(
    client: AdminClient, name: Annotated[str, typer.Argument(help="Of the tenant.")], output: OutputOption = Output.TEXT
) -> None:
    """Let a disabled tenant work again."""
    _set_disabled(client, name, output, disabled=False)


@administered
def approve_command(
    client: AdminClient,
    proposal: Annotated[str, typer.Argument(help="Id (p-..) [default: list what waits].")] = "",
    digest: Annotated[str, typer.Option("--digest", help="Approve exactly this; asked for when absent.")] = "",
    reject: Annotated[bool, typer.Option("--reject", help="End the proposal instead.")] = False,
    release: Annotated[
        str, typer.Option("--release", metavar="PREFIX", help="Propose a release of what lies under PREFIX.")
    ] = "",
    init_data: Annotated[str, typer.Option("--init-data", help="With --release: digest of the pod's init data.")] = "",
    days: Annotated[int, typer.Option(min=1, max=90, help="With --release: for how long.")] = 1,
    output: OutputOption = Output.TEXT,
) -> None:
    """Approve a change or a release that several people must agree to; list or propose such."""
    if release:
        made = client.propose_release(release, init_data, days=days)
        print_struct(made) if output is Output.JSON else print_proposal(made)
        return
    if not proposal:
        _list_proposals(client, output)
        return
    if reject:
        done = client.reject(proposal)
    else:
        if not digest:
            found = client.get_proposal(proposal)
            print_proposal(found)
            typer.confirm("approve this?", abort=True, err=True)
            digest = found.digest
        done = client.approve(proposal, digest)
    if output is Output.JSON:
        print_struct(done)
    else:
        print_line(f"{done.id} is {done.state}; approved by {', '.join(done.approved_by) or 'nobody'}")


def _list_proposals(client: AdminClient, output: Output) -> None:
    found = client.list_proposals()
    if output is Output.JSON:
        print_struct(found)
        return
    print_table(
        ("proposal", "what", "prefix", "state", "approved by", "ends"),
        (
            (item.id, item.kind, item.prefix, item.state, ", ".join(item.approved_by), moment(item.expires_at))
            for item in found.proposals
        ),
    )


def _set_disabled(client: AdminClient, name: str, output: Output, *, disabled: bool) -> None:
    changed = client.set_tenant_disabled(name, disabled=disabled)
    if output is Output.JSON:
        print_struct(changed)
    else:
        print_line(f"tenant {changed.id} is {'disabled' if changed.disabled else 'live'}")
