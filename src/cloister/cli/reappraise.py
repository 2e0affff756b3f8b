"""`cloister audit reappraise`: which pods that were accepted would fail by another policy, other values or later?"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from msgspec.structs import replace

from cloister.cli.administered import administered
from cloister.cli.forms import Output, OutputOption
from cloister.cli.output import EXIT_REFUSED, print_json, print_line, short_digest
from cloister.cli.progress import CountBar
from cloister.cli.refusals import refusal_number

if TYPE_CHECKING:
    from cloister.client.admin import AdminClient
    from cloister.protocol.admin.reappraisal import ChangedFinding, SurveyCase

app = typer.Typer(no_args_is_help=True, help="Read what the trust service recorded.", rich_markup_mode=None)

_FILE_BYTES = 8 * 1024 * 1024
_SHOWN_CHANGES = 5


@app.command("reappraise")
@administered
def reappraise_command(
    client: AdminClient,
    policy: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Appraisal policy to judge by [default: in force].")
    ] = None,
    refs: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Reference values, all of them, JSON [default: registered]."),
    ] = None,
    at: Annotated[
        str,
        typer.Option(metavar="TIME", help="Moment to judge at: 2027-01-31, with time and zone, or +7d [default: now]."),
    ] = "",
    collateral: Annotated[  # taken by `administered`
        Path | None,
        typer.Option(help="Without --server: CLOISTER_CACHE with vendors' statements [default: the service's]."),
    ] = None,
    every: Annotated[bool, typer.Option("--every", help="All kept results, not the newest of each pod.")] = False,
    appraisal_policy: Annotated[str, typer.Option(help="Id of the policy in force.")] = "default",
    output: OutputOption = Output.TEXT,
) -> None:
    """Judge kept evidence again and list the pods that would fail. Exit code 1 when one would."""
    from cloister.protocol.admin.reappraisal import SurveyRequest

    now = datetime.now(UTC)
    request = SurveyRequest(
        policy=_read(policy),
        policy_name=policy.stem if policy is not None else "candidate",
        appraisal_policy=appraisal_policy,
        references=_read(refs),
        at=parse_moment(at, now=now),
        every=every,
    )
    found: list[SurveyCase] = []
    page = client.survey(request)
    with CountBar("judging again", page.kept) as bar:
        while True:
            for item in page.results:
                found.append(item)
                bar.advance(item.attestation)
            if not page.next:
                break
            page = client.survey(replace(request, after=page.next))
    if output is Output.JSON:
        print_json(
            {
                "schema": 1,
                "at": page.at.isoformat(),
                **_counts(found),
                "results": [msgspec.to_builtins(item) for item in found],
            }
        )
    else:
        _print(found, page.at, now=now)
    if any(item.fails for item in found):
        raise typer.Exit(EXIT_REFUSED)


def parse_moment(text: str, *, now: datetime) -> datetime:
    """Return the time that `text` means: empty for now, `+N` with d or h, or ISO 8601; without a zone it is UTC.

    Raises:
        typer.BadParameter: none of these.
    """
    if not text:
        return now
    try:
        if text.startswith("+"):
            unit = {"d": timedelta(days=1), "h": timedelta(hours=1)}[text[-1:]]
            return now + int(text[1:-1]) * unit
        moment = datetime.fromisoformat(text)
    except (KeyError, ValueError, OverflowError) as err:
        raise typer.BadParameter(f"not a moment: {text[:40]!r}; like 2027-01-31, 2027-01-31T12:00Z or +7d") from err
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _read(file: Path | None) -> str:
    if file is None:
        return ""
    with file.open("rb") as stream:
        return stream.read(_FILE_BYTES).decode("utf-8", "replace")


def _counts(found: list[SurveyCase]) -> dict[str, int]:
    return {
        "judged": len(found),
        "failing": sum(1 for item in found if item.fails),
        "changed": sum(1 for item in found if item.before != item.after),
    }


def _print(found: list[SurveyCase], at: datetime, *, now: datetime) -> None:
    counts = _counts(found)
    moment = at.isoformat(timespec="minutes")
    print_line(f"{counts['judged']} judged again for {moment}: {counts['failing']} would fail that were accepted")
    for item in found:
        if item.before == item.after:
            continue
        print_line(f"  {item.attestation}  {item.before} -> {item.after}")
        machine = f"{item.tee} {short_digest(item.instance)}, {item.level}"
        print_line(f"    pod        {short_digest(item.init_data)} on {machine}")
        print_line(f"    attested   {item.at.isoformat(timespec='seconds')}")
        for change in item.changes[:_SHOWN_CHANGES]:
            print_line(f"    {_words(change)}")
        if item.remedy:
            print_line(f"    get        {item.remedy}")
        holds = ", ".join(row.resource for row in item.releases) or "nothing"
        print_line(f"    holds      {holds}")
        if item.lease_until is not None:
            still = "runs until" if item.lease_until > now else "ended"
            print_line(f"    lease      {still} {item.lease_until.isoformat(timespec='seconds')}")


def _words(change: ChangedFinding) -> str:
    shown = change.after or change.before
    if shown is None:
        raise RuntimeError("a change of nothing")
    mark = "ok" if change.after is None or change.after.ok else "no"
    values = f": expected {shown.expected}, got {shown.actual}" if shown.expected and mark == "no" else ""
    origin = f"  [{shown.origin}]" if shown.origin else ""
    return f"{mark}         {refusal_number(change.code)} {shown.message}{values}{origin}"
