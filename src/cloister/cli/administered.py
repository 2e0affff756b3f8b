"""What all verbs share that administer a trust service: where it is, as whom, and how their results are printed.

    @administered
    def list_command(client: AdminClient, output: OutputOption = Output.TEXT) -> None: ...

The decorator adds the options of `cloister.cli.trustservice` to a verb and gives it an open client instead.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from cloister.cli.output import print_json, print_line, stdout, visible
from cloister.cli.trustservice import OpenService, with_trust_service
from cloister.errors import Refused, Unavailable

if TYPE_CHECKING:
    from cloister.protocol.admin.access import Changed, Proposal
    from cloister.protocol.admin.policies import PolicyList, PolicyVersion

_PRIVATE_FILE: Final = 0o600
_SHOWN_DIGEST: Final = 19
_FILE_WIDTH: Final = 4000  # characters; wider than any row


def administered(verb: Callable[..., None], *, group: bool = False) -> Callable[..., None]:
    """Return a command that takes the shared options and calls `verb` with a client as its first argument.

    Args:
        verb: the command without the shared options.
        group: whether it is what a group of commands does when none of them is named.
    """

    @functools.wraps(verb)
    def opened(service: OpenService, **own: Any) -> None:  # Any: the verb's own options
        with service() as client:
            verb(client, **own)

    return with_trust_service(opened, group=group)


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
