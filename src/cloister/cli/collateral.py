"""`cloister collateral fetch|list|prefetch|export|import|rm`: what vendors publish, had before it is needed.

An interface for scripts: with `--output json` the members do not change, only more are added. Exit status: 0 all is
had and fresh, 1 refused, 2 usage, 3 not available.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli.evidence import EndorsementOption, platform_choice
from cloister.cli.forms import Output, OutputOption
from cloister.cli.output import EXIT_UNAVAILABLE, StepPrinter, exit_code, print_error, print_json, print_line
from cloister.cli.progress import CountBar
from cloister.errors import CloisterError, Refused
from cloister.sdk.home import home_from_environment

if TYPE_CHECKING:
    from cloister.tee.collateral.cache import Damaged
    from cloister.tee.collateral.collector import Collector, Outcome
    from cloister.tee.collateral.content import Entry
    from cloister.tee.collateral.item import Item

app = typer.Typer(
    no_args_is_help=True, help="Fetch, keep and carry what vendors publish about platforms.", rich_markup_mode=None
)


def _platform(text: str) -> str:
    return platform_choice(text) if text else ""


EvidenceArgument = Annotated[
    list[Path] | None, typer.Argument(metavar="EVIDENCE", exists=True, dir_okay=False, help="Files of evidence.")
]
PlatformOption = Annotated[
    str, typer.Option("--platform", metavar="NAME", callback=_platform, help="Of EVIDENCE: snp, tdx, sgx, ...")
]
ItemOption = Annotated[
    list[str] | None,
    typer.Option("--item", metavar="IDENTITY", help="An item by its identity, for example 'pck-crl ca=platform'."),
]
UpdateOption = Annotated[str, typer.Option("--update", metavar="CHANNEL", help="Intel's channel: standard or early.")]
ServiceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--service",
        metavar="NAME=URL",
        help="A PCCS or mirror: amd-kds, intel-pcs, intel-root, nvidia-rim, nvidia-ocsp.",
    ),
]
StoreOption = Annotated[
    list[Path] | None,
    typer.Option("--store", metavar="DIR", exists=True, file_okay=False, help="VCEKs in Trustee's layout."),
]
CAOption = Annotated[
    Path | None, typer.Option("--tls-ca", metavar="FILE", exists=True, help="More CAs that certify the services.")
]


@app.command("fetch")
def fetch_command(
    evidence: EvidenceArgument = None,
    platform: PlatformOption = "",
    endorsement: EndorsementOption = None,
    item: ItemOption = None,
    update: UpdateOption = "standard",
    service: ServiceOption = None,
    store: StoreOption = None,
    tls_ca: CAOption = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Fetch also what is fresh, or was absent.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Fetch what evidence will be judged by, or items by their identity, unless it is had and fresh.

    Services that ask for rest are left alone, also by other processes. What is had stays when a service fails.
    """
    from cloister.sdk.collateral import fetch_items

    items = _items(evidence or (), platform, endorsement or (), item or (), update)
    collector = _collector(service or (), store or (), tls_ca)
    _report(fetch_items(collector, items, refresh=refresh), len(items), output)


@app.command("prefetch")
def prefetch_command(
    service: ServiceOption = None,
    store: StoreOption = None,
    tls_ca: CAOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Fetch again what has used up half of its time; for a timer, once an hour."""
    collector = _collector(service or (), store or (), tls_ca)
    _report(collector.prefetch(), len(collector.due()), output)


@app.command("list")
def list_command(output: OutputOption = Output.TEXT) -> None:
    """List what is had: identity, age, until when it holds, when it is due."""
    from cloister.sdk.collateral import open_cache
    from cloister.tee.collateral.content import Entry

    now = datetime.now(UTC)
    found = list(open_cache(home_from_environment()).entries())
    entries = sorted((entry for entry in found if isinstance(entry, Entry)), key=lambda entry: entry.item.text)
    damaged = [entry for entry in found if not isinstance(entry, Entry)]
    if output is Output.JSON:
        print_json(
            {
                "schema": 1,
                "items": [entry_document(entry, now) for entry in entries],
                "damaged": [{"path": str(entry.path), "reason": entry.reason} for entry in damaged],
            }
        )
        return
    for entry in entries:
        print_line(f"{entry.item.text}")
        print_line(f"    {_standing(entry, now)}")
    _print_damaged(damaged)
    if not found:
        StepPrinter().note("nothing is had. next: cloister collateral fetch EVIDENCE --platform NAME")


@app.command("export")
def export_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The bundle to write.")],
    evidence: Annotated[
        list[Path] | None,
        typer.Option("--evidence", metavar="FILE", exists=True, help="Only what this evidence needs."),
    ] = None,
    platform: PlatformOption = "",
    endorsement: EndorsementOption = None,
    item: ItemOption = None,
    update: UpdateOption = "standard",
    output: OutputOption = Output.TEXT,
) -> None:
    """Write what is had into one file, for machines without a way out; the same bytes for the same content."""
    from cloister.sdk.collateral import export_file

    items = None
    if evidence or item:
        items = _items(evidence or (), platform, endorsement or (), item or (), update)
    entries = export_file(home_from_environment(), file, items)
    now = datetime.now(UTC)
    if output is Output.JSON:
        print_json({"schema": 1, "file": str(file), "items": [entry_document(entry, now) for entry in entries]})
        return
    step = StepPrinter()
    ends = [entry.content.expires for entry in entries if entry.content.expires is not None]
    first = f", the first ends {min(ends):%Y-%m-%d %H:%M} UTC" if ends else ""
    step("ok", "collateral exported", f"{file}: {len(entries)} items, {file.stat().st_size:,} bytes{first}")
    step.note(f"next, on the other machine: cloister collateral import {file.name}")


@app.command("import")
def import_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A bundle.")],
    output: OutputOption = Output.TEXT,
) -> None:
    """Put the items of a bundle into the cache, each checked like an answer of its vendor; newer ones stay."""
    from cloister.sdk.collateral import import_file

    result = import_file(home_from_environment(), file)
    now = datetime.now(UTC)
    if output is Output.JSON:
        print_json(
            {
                "schema": 1,
                "kept": [entry_document(entry, now) for entry in result.kept],
                "older": [entry_document(entry, now) for entry in result.older],
            }
        )
        return
    step = StepPrinter()
    for entry in result.kept:
        step("ok", entry.item.label, _standing(entry, now))
    for entry in result.older:
        step("--", entry.item.label, "something newer is had already")


@app.command("rm")
def remove_command(
    item: Annotated[list[str] | None, typer.Argument(metavar="IDENTITY", help="As `list` shows it.")] = None,
    damaged: Annotated[bool, typer.Option("--damaged", help="Remove files that do not hold what they say.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Remove everything.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Forget items; also that something newer was known, and that a vendor had none."""
    from cloister.sdk.collateral import open_cache
    from cloister.tee.collateral.content import Entry
    from cloister.tee.collateral.item import parse_item

    if not (item or damaged or everything):
        raise typer.BadParameter("name an item, or give --damaged or --all")
    cache = open_cache(home_from_environment())
    items = [parse_item(text) for text in item or ()]
    if everything:
        items = [entry.item for entry in cache.entries() if isinstance(entry, Entry)]
    removed = [known.text for known in items if cache.remove(known)]
    count = cache.remove_damaged() if damaged or everything else 0
    if output is Output.JSON:
        print_json({"schema": 1, "removed": removed, "damaged": count})
        return
    step = StepPrinter()
    for text in removed:
        step("ok", "removed", text)
    if count:
        step("ok", "removed", f"{count} damaged files")
    if not removed and not count:
        step("--", "nothing to remove")


def entry_document(entry: Entry, at: datetime) -> dict[str, Any]:  # Any: JSON
    """Return the JSON form of what is had of an item."""
    content = entry.content
    return {
        "item": entry.item.text,
        "origin": entry.origin,
        "bytes": len(content.data),
        "fetched": entry.fetched.isoformat(),
        "age_seconds": int(entry.age(at).total_seconds()),
        "issued": content.issued.isoformat() if content.issued else None,
        "expires": content.expires.isoformat() if content.expires else None,
        "due": entry.due.isoformat() if entry.due else None,
        "fresh": entry.fresh(at),
    }


def _items(
    evidence: Sequence[Path], platform: str, endorsements: Sequence[Path], identities: Sequence[str], update: str
) -> tuple[Item, ...]:
    from cloister.sdk.collateral import items_for
    from cloister.tee.collateral.item import parse_item

    if update not in ("standard", "early"):
        raise typer.BadParameter("--update is standard or early")
    if not evidence and not identities:
        raise typer.BadParameter("give files of evidence, or --item")
    if evidence and not platform:
        raise typer.BadParameter("evidence needs --platform")
    found = [parse_item(text) for text in identities]
    for file in evidence:
        found.extend(items_for(file, platform=platform, endorsements=endorsements, update=update))
    if not found:
        raise Refused(
            "collateral.needs.none",
            "evidence of this platform is judged by nothing that a vendor offers for fetching",
            path="--platform",
            actual=platform,
        )
    return tuple(dict.fromkeys(found))


def _collector(services: Sequence[str], stores: Sequence[Path], tls_ca: Path | None) -> Collector:
    from cloister.sdk.collateral import open_collector
    from cloister.tee.collateral.sources import parse_addresses

    addresses = parse_addresses(list(services))
    return open_collector(home_from_environment(), addresses=addresses, stores=stores, tls_ca=tls_ca)


def _report(outcomes: Iterator[Outcome], total: int, output: Output) -> None:
    """Show how each item went, and end with the worst: refused before unavailable."""
    now = datetime.now(UTC)
    step, done = StepPrinter(quiet=output is Output.JSON), []
    with CountBar("collateral", total) as bar:
        for outcome in outcomes:
            done.append(outcome)
            bar.advance(outcome.item.label)
            _print_outcome(step, outcome, now)
    errors = [outcome.error for outcome in done if outcome.error is not None]
    stale = [outcome.entry for outcome in done if outcome.entry is not None and not outcome.entry.fresh(now)]
    if output is Output.JSON:
        print_json({"schema": 1, "items": [_outcome_document(outcome, now) for outcome in done]})
    elif not done:
        step("ok", "nothing is due")
    if errors:
        worst = min(errors, key=exit_code)
        print_error(worst)
        raise typer.Exit(exit_code(worst))
    if stale:
        raise typer.Exit(EXIT_UNAVAILABLE)


def _print_outcome(step: StepPrinter, outcome: Outcome, now: datetime) -> None:
    if outcome.error is not None:
        rest = f"; {_standing(outcome.entry, now)}" if outcome.entry is not None else ""
        step("no", outcome.item.label, f"{_words(outcome.error)}{rest}")
    elif outcome.entry is not None:
        where = f"from {outcome.entry.origin}" if outcome.fetched else "had"
        step("ok", outcome.item.label, f"{where}, {_standing(outcome.entry, now)}")


def _outcome_document(outcome: Outcome, now: datetime) -> dict[str, Any]:  # Any: JSON
    status = "failed" if outcome.error is not None else "fetched" if outcome.fetched else "had"
    document: dict[str, Any] = {"item": outcome.item.text, "status": status, "error": None, "entry": None}
    if outcome.error is not None:
        document["error"] = outcome.error.as_dict()
    if outcome.entry is not None:
        document["entry"] = entry_document(outcome.entry, now)
    return document


def _standing(entry: Entry, now: datetime) -> str:
    age = f"{_span(entry.age(now))} old"
    if entry.content.expires is None:
        return f"{age}, for ever"
    left = entry.content.expires - now
    return f"{age}, {_span(left)} left" if left > timedelta() else f"{age}, STALE for {_span(-left)}"


def _span(span: timedelta) -> str:
    seconds = max(int(span.total_seconds()), 0)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _words(error: CloisterError) -> str:
    return f"{error.message}: {error.actual}" if error.actual else error.message


def _print_damaged(damaged: Iterable[Damaged]) -> None:
    step = StepPrinter()
    for entry in damaged:
        step("!!", "damaged", f"{entry.path}: {entry.reason}. next: cloister collateral rm --damaged")
