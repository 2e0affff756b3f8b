"""`cloister audit reappraise`: which pods that were accepted would fail by another policy, other values or later?"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from cloister.cli.options import Output, OutputOption
from cloister.cli.output import EXIT_REFUSED, print_json, print_line, short_digest
from cloister.cli.progress import CountBar
from cloister.cli.refusals import refusal_number
from cloister.sdk.home import home_from_environment

if TYPE_CHECKING:
    from cloister.trust.admin import TrustAdmin
    from cloister.trust.verifier.reappraisal import FindingChange
    from cloister.trust.verifier.survey import Surveyed, Wanted

app = typer.Typer(no_args_is_help=True, help="Read what the trust service recorded.", rich_markup_mode=None)

_FILE_BYTES = 8 * 1024 * 1024
_SHOWN_CHANGES = 5


@app.command("reappraise")
def reappraise_command(
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
    collateral: Annotated[
        Path | None, typer.Option(help="CLOISTER_CACHE with vendors' statements [default: the service's].")
    ] = None,
    every: Annotated[bool, typer.Option("--every", help="All kept results, not the newest of each pod.")] = False,
    appraisal_policy: Annotated[str, typer.Option(help="Id of the policy in force.")] = "default",
    state: Annotated[Path | None, typer.Option(help="Trust service state [default: $CLOISTER_HOME/trust].")] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Judge kept evidence again and list the pods that would fail. Exit code 1 when one would."""
    from cloister.trust.admin import TrustAdmin

    with TrustAdmin(state or home_from_environment().trust) as admin:
        wanted = _wanted(admin, policy, refs, at, collateral)
        survey = admin.survey(appraisal_policy)
        found = []
        with CountBar("judging again", survey.count()) as bar:
            for item in survey.run(wanted, every=every):
                found.append(item)
                bar.advance(item.result.attestation)
    if output is Output.JSON:
        print_json(
            {"schema": 1, "at": wanted.at.isoformat(), **_counts(found), "results": [_json(item) for item in found]}
        )
    else:
        _print(found, wanted.at)
    if any(item.result.fails for item in found):
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


def _wanted(admin: TrustAdmin, policy: Path | None, refs: Path | None, at: str, collateral: Path | None) -> Wanted:
    from cloister.rats.reference import parse_reference_entries
    from cloister.tee.regopolicy import parse_named_policy
    from cloister.trust.verifier.survey import Wanted

    return Wanted(
        source=admin.collateral(collateral),
        at=parse_moment(at, now=datetime.now(UTC)),
        policy=parse_named_policy(policy.stem, _read(policy)) if policy is not None else None,
        references=parse_reference_entries(_read(refs)) if refs is not None else None,
    )


def _read(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(_FILE_BYTES)


def _counts(found: list[Surveyed]) -> dict[str, int]:
    return {
        "judged": len(found),
        "failing": sum(1 for item in found if item.result.fails),
        "changed": sum(1 for item in found if item.result.before is not item.result.after),
    }


def _print(found: list[Surveyed], at: datetime) -> None:
    counts = _counts(found)
    moment = at.isoformat(timespec="minutes")
    print_line(f"{counts['judged']} judged again for {moment}: {counts['failing']} would fail that were accepted")
    for item in found:
        result = item.result
        if result.before is result.after:
            continue
        print_line(f"  {result.attestation}  {result.before} -> {result.after}")
        machine = f"{result.tee} {short_digest(result.instance)}, {result.level}"
        print_line(f"    pod        {short_digest(result.init_data)} on {machine}")
        print_line(f"    attested   {result.at.isoformat(timespec='seconds')}")
        for change in result.changes[:_SHOWN_CHANGES]:
            print_line(f"    {_words(change)}")
        if result.remedy:
            print_line(f"    get        {result.remedy}")
        holds = ", ".join(row.resource for row in item.releases) or "nothing"
        print_line(f"    holds      {holds}")
        if item.lease_until is not None:
            still = "runs until" if item.lease_until > datetime.now(UTC) else "ended"
            print_line(f"    lease      {still} {item.lease_until.isoformat(timespec='seconds')}")


def _words(change: FindingChange) -> str:
    shown = change.after or change.before
    if shown is None:
        raise RuntimeError("a change of nothing")
    mark = "ok" if change.after is None or change.after.ok else "no"
    values = f": expected {shown.expected}, got {shown.actual}" if shown.expected and mark == "no" else ""
    origin = f"  [{shown.origin}]" if shown.origin else ""
    return f"{mark}         {refusal_number(change.code)} {shown.message}{values}{origin}"


def _json(item: Surveyed) -> dict[str, Any]:  # Any: JSON
    result = item.result
    return {
        "attestation": result.attestation,
        "at": result.at.isoformat(),
        "tee": result.tee,
        "level": result.level,
        "instance": result.instance,
        "init_data": result.init_data,
        "before": result.before.value,
        "after": result.after.value,
        "fails": result.fails,
        "remedy": result.remedy,
        "changes": [
            {
                "code": change.code,
                "before": msgspec.to_builtins(change.before),
                "after": msgspec.to_builtins(change.after),
            }
            for change in result.changes
        ],
        "releases": [
            {"resource": row.resource, "version": row.version, "at": row.at.isoformat()} for row in item.releases
        ],
        "lease_until": item.lease_until.isoformat() if item.lease_until is not None else None,
    }
