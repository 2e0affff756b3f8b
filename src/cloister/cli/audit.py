"""`cloister audit`: who got what, when, under which code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.administered import administered, moment, parse_moment, print_struct, print_table, short
from cloister.cli.forms import Output, OutputOption
from cloister.cli.output import print_line
from cloister.cli.refusals import refusal_number

if TYPE_CHECKING:
    from cloister.client.admin import AdminClient
    from cloister.protocol.admin.records import AuditPage, CallPage


app = typer.Typer(rich_markup_mode=None)


def audit_command(
    client: AdminClient,
    resource: Annotated[str, typer.Option(help="Path; with a trailing *, what begins like that.")] = "",
    init_data: Annotated[str, typer.Option("--init-data", help="Digest of one pod's init data.")] = "",
    decision: Annotated[str, typer.Option(help="released or denied.")] = "",
    code: Annotated[str, typer.Option(help="Dotted code.")] = "",
    since: Annotated[str, typer.Option(help="Not before, UTC.")] = "",
    until: Annotated[str, typer.Option(help="Before, UTC.")] = "",
    after: Annotated[int, typer.Option(min=0, help="Number of the last row seen.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most rows.")] = 200,
    calls: Annotated[bool, typer.Option("--calls", help="Administrative calls instead: who changed what.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show who got or was denied what, when, under which code; or who administered what."""
    if calls:
        found = client.list_calls(after=after, limit=limit)
        print_struct(found) if output is Output.JSON else _print_calls(found)
        return
    page = client.list_audit(
        after=after,
        limit=limit,
        since=parse_moment(since, "--since"),
        until=parse_moment(until, "--until"),
        resource=resource,
        init_data=init_data,
        decision=decision,
        code=code,
    )
    print_struct(page) if output is Output.JSON else _print_rows(page, limit)


app.callback(invoke_without_command=True)(administered(audit_command, group=True))


def _print_rows(page: AuditPage, limit: int) -> None:
    print_table(
        ("no.", "when", "what", "decision", "to", "level", "under", "by key", "why"),
        (
            (
                str(row.sequence),
                moment(row.at),
                f"{row.resource} v{row.resource_version}" if row.resource_version else row.resource,
                row.decision,
                short(row.init_data),
                row.level,
                short(row.appraisal_policy_digest),
                row.guest_key[:12],
                "" if not row.denial else f"{refusal_number(row.code)} {row.denial}",
            )
            for row in page.rows
        ),
    )
    if len(page.rows) == limit:
        print_line(f"more may follow: --after {page.next}")


def _print_calls(page: CallPage) -> None:
    print_table(
        ("no.", "when", "who", "role", "what", "about", "outcome"),
        (
            (str(row.sequence), moment(row.at), row.name, row.role, row.action, row.subject, row.code)
            for row in page.calls
        ),
    )
