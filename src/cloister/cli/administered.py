"""What all verbs share that administer a trust service: where it is, as whom, and how their results are printed.

    @administered
    def list_command(client: AdminClient, output: OutputOption = Output.TEXT) -> None: ...

The decorator adds `--server --token-file --ca --tenant --state` to a verb and gives it a client instead. Without a
server the verb works on the state directory of this machine.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, get_type_hints

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from cloister.cli.output import print_json, print_line, stdout, visible
from cloister.errors import Refused, Unavailable
from cloister.sdk.home import home_from_environment, trust_directory

if TYPE_CHECKING:
    from cloister.protocol.admin.access import Changed, Proposal
    from cloister.protocol.admin.policies import PolicyList, PolicyVersion

_PRIVATE_FILE: Final = 0o600
_CONTEXT: Final = "context"
_COLLATERAL: Final = "collateral"  # an option of a verb that is for whoever judges: the service that runs here
_SHOWN_DIGEST: Final = 19
_FILE_WIDTH: Final = 4000  # characters; wider than any row

ServerOption = Annotated[
    str,
    typer.Option("--server", metavar="URL", envvar="CLOISTER_SERVER", help="Address of the trust service."),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        envvar="CLOISTER_TOKEN_FILE",
        help="File with an access token; with --server.",
    ),
]
CAOption = Annotated[
    Path | None,
    typer.Option(
        "--ca", metavar="FILE", envvar="CLOISTER_CA", help="CA certificate of the service [default: the system's CAs]."
    ),
]
TenantOption = Annotated[str, typer.Option("--tenant", metavar="NAME", help="Whose [default: the token's own].")]
StateOption = Annotated[
    Path | None,
    typer.Option(
        "--state", metavar="DIR", help="Without --server: the state directory [default: $CLOISTER_HOME/trust]."
    ),
]
_OPTIONS: Final[Sequence[tuple[str, Any, Any]]] = (  # Any: annotations and defaults of options
    ("server", ServerOption, ""),
    ("token_file", TokenFileOption, None),
    ("ca", CAOption, None),
    ("tenant", TenantOption, ""),
    ("state", StateOption, None),
)


def administered(verb: Callable[..., None], *, group: bool = False) -> Callable[..., None]:
    """Return a command that takes the shared options and calls `verb` with a client as its first argument.

    Args:
        verb: the command without the shared options.
        group: whether it is what a group of commands does when none of them is named.
    """

    @functools.wraps(verb)
    def command(
        *,
        server: str,
        token_file: Path | None,
        ca: Path | None,
        tenant: str,
        state: Path | None,
        **own: Any,  # Any: the verb's own options
    ) -> None:
        context: typer.Context | None = own.pop(_CONTEXT, None)
        if context is not None and context.invoked_subcommand is not None:
            return  # the group of a verb of its own: the verb does the work
        from cloister.sdk.administration import AdministrationTarget, open_administration

        target = AdministrationTarget(
            server=server,
            token_file=token_file,
            ca_file=ca,
            tenant=tenant,
            state=state or trust_directory(),
            collateral=own.pop(_COLLATERAL, None),
        )
        if not server and state is None:
            home_from_environment()  # made private; a command for a server needs no home, and may have none
        with open_administration(target) as client:
            verb(client, **own)

    # The client's own type is not loaded for this: it brings the network library into every start.
    hints = get_type_hints(verb, localns={"AdminClient": object}, include_extras=True)
    kept = [item.replace(annotation=hints[item.name]) for item in inspect.signature(verb).parameters.values()][1:]
    if group:
        kept.insert(0, inspect.Parameter(_CONTEXT, inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, annotation, default in _OPTIONS
    ]
    keyword = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in kept]
    command.__signature__ = inspect.Signature([*keyword, *shared])  # type: ignore[attr-defined]  # read by typer
    command.__annotations__ = {item.name: item.annotation for item in (*keyword, *shared)}
    del command.__wrapped__  # or the signature of the verb would be read instead
    return command


def print_struct(value: msgspec.Struct) -> None:
    """Print an answer as JSON, with the number of its schema."""
    print_json({"schema": 1, **msgspec.to_builtins(value)})


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows as a table; cells are made visible, never shortened."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    if stdout.is_terminal:
        stdout.print(table)
    else:  # one line for each row, so that it can be searched and cut
        stdout.print(table, width=_FILE_WIDTH)


def print_versions(found: PolicyList) -> None:
    """Print versions of policies as a table."""
    print_table(
        ("name", "version", "digest", "since"),
        (
            (item.name, str(item.version), short(item.digest) if item.text else "removed", moment(item.created_at))
            for item in found.policies
        ),
    )


def print_policy(found: PolicyVersion) -> None:
    """Print a policy's own text and nothing else, so that it can go into a file."""
    stdout.file.write(found.text if found.text.endswith("\n") else found.text + "\n")


def print_changed(changed: Changed) -> None:
    """Print what became of a change that may wait for approvals."""
    if changed.applied is not None:
        print_line(f"{changed.applied.name}: version {changed.applied.version} is in force")
    if changed.proposal is not None:
        print_line(f"proposed as {changed.proposal.id}: nothing is changed before enough people approve")
        print_proposal(changed.proposal)


def print_proposal(proposal: Proposal) -> None:
    """Print a proposal whole: an approver must see what it says."""
    print_line(f"{proposal.id}  {proposal.kind} {proposal.prefix}  {proposal.state}")
    print_line(f"  proposed   by {proposal.created_by}, {moment(proposal.created_at)}")
    if proposal.state == "open":
        print_line(f"  ends       {moment(proposal.expires_at)}")
    for demand in proposal.demands:
        print_line(f"  needs      {demand.need} of {', '.join(demand.of)} (for {demand.prefix})")
    print_line(f"  approved   {', '.join(proposal.approved_by) or 'by nobody'}")
    print_line(f"  digest     {proposal.digest}")
    for name, value in proposal.document.items():
        lines = str(value).splitlines() or [""]
        print_line(f"  {name + ':':<11}{lines[0]}")
        for line in lines[1:]:
            print_line(f"             {line}")


def write_private(place: Path, content: bytes) -> None:
    """Write a new private file; one that is there is never replaced.

    Raises:
        Refused: there is one (`cli.file.exists`).
        Unavailable: it cannot be written (`cli.file.unwritable`).
    """
    try:
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE_FILE)
    except FileExistsError:
        raise Refused(
            "cli.file.exists", "there is such a file already", path=str(place), hint="choose another name"
        ) from None
    except OSError as err:
        raise Unavailable("cli.file.unwritable", f"cannot write the file: {err.strerror}", path=str(place)) from err
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def read_text(file: Path) -> str:
    """Return the text of a file.

    Raises:
        Refused: it is not UTF-8 (`cli.file.not_text`).
        Unavailable: it cannot be read (`cli.file.unreadable`).
    """
    try:
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as err:
        raise Refused("cli.file.not_text", "the file is not text in UTF-8", path=str(file)) from err
    except OSError as err:
        raise Unavailable("cli.file.unreadable", f"cannot read the file: {err.strerror}", path=str(file)) from err


def parse_moment(text: str, flag: str) -> datetime | None:
    """Return a time given on the command line, UTC; None for an empty text.

    Raises:
        typer.BadParameter: not a time.
    """
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"not a time such as 2030-01-31T12:00:00Z: {text[:40]}", param_hint=flag) from None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found


def moment(at: datetime | None) -> str:
    """Return a time as tables show it."""
    return "" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def short(digest: str) -> str:
    """Return the beginning of a digest, with its algorithm."""
    return digest if len(digest) <= _SHOWN_DIGEST else f"{digest[:_SHOWN_DIGEST]}.."
