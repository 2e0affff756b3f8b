"""`cloister policy release|appraisal|approvals ...`: how evidence is judged, who gets what, and who must agree."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.administered import (
    administered,
    moment,
    print_changed,
    print_policy,
    print_struct,
    print_table,
    print_versions,
    read_text,
    short,
)
from cloister.cli.forms import Output, OutputOption
from cloister.cli.output import print_line
from cloister.protocol.resourceuri import parse_prefix_spelling

if TYPE_CHECKING:
    from cloister.client.admin import AdminClient
    from cloister.protocol.admin.access import Changed

app = typer.Typer(no_args_is_help=True, help="Policies of the trust service, versioned.", rich_markup_mode=None)
release = typer.Typer(no_args_is_help=True, help="Release rules: who gets what, per prefix.", rich_markup_mode=None)
appraisal = typer.Typer(no_args_is_help=True, help="Appraisal policies: how evidence is judged.", rich_markup_mode=None)
approvals = typer.Typer(
    no_args_is_help=True, help="Demands: who must approve changes under a prefix.", rich_markup_mode=None
)
app.add_typer(release, name="release")
app.add_typer(appraisal, name="appraisal")
app.add_typer(approvals, name="approvals")

PrefixArgument = Annotated[
    str,
    typer.Argument(
        metavar="PREFIX",
        help="repository/type/tag, repository/type, repository, or * for everything; kbs:/// and /* may be written.",
        callback=parse_prefix_spelling,
    ),
]
FileOption = Annotated[Path, typer.Option("--file", exists=True, dir_okay=False, help="The policy's text.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Id of the policy.")]
ReplacesOption = Annotated[
    int | None, typer.Option("--replaces", min=0, help="The version that was read: refuse when another is in force.")
]


@release.command("set")
@administered
def release_set(
    client: AdminClient,
    prefix: PrefixArgument,
    file: FileOption,
    replaces: ReplacesOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Put a release rule in force as the next version (TOML, JSON or Rego)."""
    _print(client.put_release_rule(prefix, read_text(file), replaces=replaces), output)


@release.command("get")
@administered
def release_get(client: AdminClient, prefix: PrefixArgument, output: OutputOption = Output.TEXT) -> None:
    """Print the rule of a prefix as its owner wrote it."""
    found = client.get_release_rule(prefix)
    print_struct(found) if output is Output.JSON else print_policy(found)


@release.command("list")
@administered
def release_list(client: AdminClient, output: OutputOption = Output.TEXT) -> None:
    """List the rules in force."""
    found = client.list_release_rules()
    print_struct(found) if output is Output.JSON else print_versions(found)


@release.command("history")
@administered
def release_history(client: AdminClient, prefix: PrefixArgument, output: OutputOption = Output.TEXT) -> None:
    """List all versions of a rule, the newest first."""
    found = client.list_release_rule_history(prefix)
    print_struct(found) if output is Output.JSON else print_versions(found)


@release.command("rollback")
@administered
def release_rollback(
    client: AdminClient,
    prefix: PrefixArgument,
    version: Annotated[int, typer.Argument(min=1, help="The old version.")],
    replaces: ReplacesOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Put an old version's rule in force again, as the next version."""
    _print(client.roll_back_release_rule(prefix, version, replaces=replaces), output)


@release.command("rm")
@administered
def release_rm(
    client: AdminClient, prefix: PrefixArgument, replaces: ReplacesOption = None, output: OutputOption = Output.TEXT
) -> None:
    """Remove a rule; the next wider one decides then, or the default."""
    _print(client.delete_release_rule(prefix, replaces=replaces), output)


@appraisal.command("set")
@administered
def appraisal_set(
    client: AdminClient,
    file: FileOption,
    name: Annotated[str, typer.Option("--name", help="Id of the policy, as in its text; Rego has none.")] = "default",
    replaces: ReplacesOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Put an appraisal policy in force as the next version."""
    stored = client.put_appraisal_policy(name, read_text(file), replaces=replaces)
    if output is Output.JSON:
        print_struct(stored)
    else:
        print_line(f"{stored.name}: version {stored.version} is in force")


@appraisal.command("get")
@administered
def appraisal_get(client: AdminClient, name: NameArgument = "default", output: OutputOption = Output.TEXT) -> None:
    """Print an appraisal policy as its owner wrote it."""
    found = client.get_appraisal_policy(name)
    print_struct(found) if output is Output.JSON else print_policy(found)


@appraisal.command("list")
@administered
def appraisal_list(client: AdminClient, output: OutputOption = Output.TEXT) -> None:
    """List the appraisal policies in force."""
    found = client.list_appraisal_policies()
    print_struct(found) if output is Output.JSON else print_versions(found)


@appraisal.command("history")
@administered
def appraisal_history(client: AdminClient, name: NameArgument = "default", output: OutputOption = Output.TEXT) -> None:
    """List all versions of an appraisal policy, the newest first."""
    found = client.list_appraisal_history(name)
    print_struct(found) if output is Output.JSON else print_versions(found)


@appraisal.command("rollback")
@administered
def appraisal_rollback(
    client: AdminClient,
    version: Annotated[int, typer.Argument(min=1, help="The old version.")],
    name: Annotated[str, typer.Option("--name", help="Id of the policy.")] = "default",
    replaces: ReplacesOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Put an old version's text in force again, as the next version."""
    stored = client.roll_back_appraisal_policy(name, version, replaces=replaces)
    if output is Output.JSON:
        print_struct(stored)
    else:
        print_line(f"{stored.name}: version {stored.version} is in force, with the text of version {version}")


@approvals.command("set")
@administered
def approvals_set(
    client: AdminClient,
    prefix: PrefixArgument,
    file: FileOption,
    replaces: ReplacesOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Demand that several people approve changes under a prefix: TOML with `need` and `of`."""
    _print(client.put_demand(prefix, read_text(file), replaces=replaces), output)


@approvals.command("get")
@administered
def approvals_get(client: AdminClient, prefix: PrefixArgument, output: OutputOption = Output.TEXT) -> None:
    """Print the demand of a prefix."""
    found = client.get_demand(prefix)
    print_struct(found) if output is Output.JSON else print_policy(found)


@approvals.command("list")
@administered
def approvals_list(client: AdminClient, output: OutputOption = Output.TEXT) -> None:
    """List the demands in force."""
    found = client.list_demands()
    print_struct(found) if output is Output.JSON else print_versions(found)


@approvals.command("rm")
@administered
def approvals_rm(
    client: AdminClient, prefix: PrefixArgument, replaces: ReplacesOption = None, output: OutputOption = Output.TEXT
) -> None:
    """Demand no approvals any more: that needs the approvals, too."""
    _print(client.delete_demand(prefix, replaces=replaces), output)


@app.command("revoke")
@administered
def revoke_command(
    client: AdminClient,
    init_data: Annotated[str, typer.Argument(metavar="DIGEST", help="Of the pod's init data: sha256:..")],
    output: OutputOption = Output.TEXT,
) -> None:
    """Withdraw whatever a pod was approved for: no further key at once, and a pod under a lease stops within it."""
    done = client.revoke(init_data)
    if output is Output.JSON:
        print_struct(done)
    else:
        print_line(f"revoked {done.subject}")


@app.command("what-if")
@administered
def what_if(
    client: AdminClient,
    prefix: PrefixArgument,
    file: FileOption,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Of how many decisions, the newest.")] = 200,
    output: OutputOption = Output.TEXT,
) -> None:
    """Try a release rule on past decisions: who would be denied, who would get something. Changes nothing."""
    found = client.try_release_rule(prefix, read_text(file), limit=limit)
    if output is Output.JSON:
        print_struct(found)
        return
    print_line(f"{found.tried} decisions were made again, {len(found.changes)} would be others")
    print_table(
        ("no.", "when", "what", "to", "level", "was", "would be", "because"),
        (
            (
                str(case.sequence),
                moment(case.at),
                case.resource,
                short(case.init_data),
                case.level,
                case.was,
                case.would,
                "; ".join(finding.message for finding in case.findings if not finding.ok),
            )
            for case in found.changes
        ),
    )


def _print(changed: Changed, output: Output) -> None:
    print_struct(changed) if output is Output.JSON else print_changed(changed)
